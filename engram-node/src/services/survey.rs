//! How partitions are doing: every replica is asked, whoever answers is shown.

use std::time::Duration;

use engram_core::types::NodeId;
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ReadQuery, StatusAnswer, StatusQuery};
use engram_proto::v1;
use futures::{StreamExt as _, stream};

use super::Services;
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::{Deadline, ReadAt, Refusal};

/// How long a replica may take to say how it is doing.
const SURVEY_WAIT: Duration = Duration::from_millis(1_000);
/// Replicas that are asked at once.
const SURVEYS_IN_FLIGHT_MAX: usize = 64;

impl Services {
    /// Partitions in the order given, with what their replicas say.
    pub(super) async fn survey(
        &self,
        places: &[(&SpaceRecord, PartitionRecord)],
        deadline: Deadline,
    ) -> Vec<v1::Partition> {
        let map = self.router().map();
        let wait = deadline.left(self.router().seams()).min(SURVEY_WAIT);
        let mut asked = Vec::new();
        for (number, (_, place)) in places.iter().enumerate() {
            let nodes = map.replicas(place.group).iter();
            asked.extend(nodes.map(|node| (number, *node, *place)));
        }
        let answers = stream::iter(asked).map(|(number, node, place)| async move {
            (number, node, self.ask_status(node, place, wait).await)
        });
        let answers: Vec<_> = answers.buffered(SURVEYS_IN_FLIGHT_MAX).collect().await;
        let mut partitions: Vec<v1::Partition> = places
            .iter()
            .map(|(space, place)| blank(space, *place))
            .collect();
        for (number, node, answer) in answers {
            add(&mut partitions[number], node, answer);
        }
        partitions
    }

    pub(super) async fn ask_status(
        &self,
        node: NodeId,
        place: PartitionRecord,
        wait: Duration,
    ) -> Survey {
        let query = status_query();
        let read = self
            .router()
            .read_at(node, place.id, &query, &ReadAt::Stale, wait)
            .await;
        match read.map(|read| (read.position.sequence.0, read.answer)) {
            Ok((sequence, Answer::Status(status))) => Survey::Status(sequence, status),
            // It answers, but its replica could not even be opened.
            Err(Refusal::Stopped(reason)) => Survey::OutOfService(reason),
            Ok(_) | Err(_) => Survey::Silent,
        }
    }
}

/// What a partition's replica is asked for its status.
pub(super) fn status_query() -> ReadQuery {
    ReadQuery {
        query: Some(Query::Status(StatusQuery {})),
    }
}

/// What a node says of its replica of a partition.
pub(super) enum Survey {
    /// At this sequence.
    Status(u64, StatusAnswer),
    /// Why it has none that serves.
    OutOfService(String),
    Silent,
}

impl Survey {
    /// What a replica that serves says, and its sequence.
    pub(super) fn status(self) -> Option<(u64, StatusAnswer)> {
        match self {
            Self::Status(sequence, status) => Some((sequence, status)),
            Self::OutOfService(_) | Self::Silent => None,
        }
    }
}

fn blank(space: &SpaceRecord, place: PartitionRecord) -> v1::Partition {
    v1::Partition {
        id: place.id.0,
        group: place.group.0,
        space: space.config.name.clone(),
        slot_start: u32::from(place.slots.start),
        slot_end: u32::from(place.slots.end),
        ..Default::default()
    }
}

fn add(partition: &mut v1::Partition, node: NodeId, answer: Survey) {
    let blank = v1::Replica {
        node: node.0,
        ..Default::default()
    };
    let (sequence, status) = match answer {
        Survey::Status(sequence, status) => (sequence, status),
        Survey::OutOfService(stopped) => {
            partition.replicas.push(v1::Replica {
                reachable: true,
                stopped,
                ..blank
            });
            return;
        }
        Survey::Silent => {
            partition.replicas.push(blank);
            return;
        }
    };
    // The newest epoch knows best who leads, and whoever has stopped does not know it any more.
    if status.leader != 0 && status.stopped.is_empty() && status.epoch >= partition.epoch {
        (partition.primary, partition.epoch) = (status.leader, status.epoch);
    }
    partition.replicas.push(v1::Replica {
        reachable: true,
        sequence,
        memories: status.memories,
        edges: status.edges,
        index_tail: status.index_tail,
        overlay_deltas: status.overlay_deltas,
        bytes: status.bytes,
        overlay_bytes: status.overlay_bytes,
        folded_edges: status.folded_edges,
        edge_conflicts: status.edge_conflicts,
        reused_dots: status.reused_dots,
        index_bytes: status.index_bytes,
        index_generations: status.index_generations,
        purge_last: status.purge_last,
        purge_done: status.purge_done,
        stopped: status.stopped,
        ..blank
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_epoch_names_the_primary() {
        let mut partition = v1::Partition::default();
        let status = |leader, epoch| {
            let answer = StatusAnswer {
                leader,
                epoch,
                ..Default::default()
            };
            Survey::Status(5, answer)
        };
        add(&mut partition, NodeId(1), status(1, 3));
        add(&mut partition, NodeId(2), status(3, 4));
        add(&mut partition, NodeId(3), Survey::Silent);
        add(&mut partition, NodeId(4), status(0, 9));
        add(
            &mut partition,
            NodeId(5),
            Survey::OutOfService("torn".into()),
        );
        assert_eq!((partition.primary, partition.epoch), (3, 4));
        let reachable: Vec<bool> = partition.replicas.iter().map(|r| r.reachable).collect();
        assert_eq!(reachable, [true, true, false, true, true]);
        assert_eq!(partition.replicas[4].stopped, "torn");
    }
}
