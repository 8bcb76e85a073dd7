//! `probe`: whether every partition can commit and be read now, and how long that takes.
//!
//! A mark is written to the log of each partition (an fsync on a majority, and no change of the
//! data), then the partition is read linearizably.

use engram_core::command::PartitionCommand;
use engram_core::types::MarkId;
use engram_proto::peer::read_query::Query;
use engram_proto::peer::{ReadQuery, StatusQuery};
use engram_proto::v1;
use futures::{StreamExt as _, stream};

use super::Services;
use super::failure::Failure;
use crate::control::{ControlCommand, ControlOutcome, PartitionRecord};
use crate::routing::{Deadline, ReadAt};

/// Partitions that are probed at once.
const PROBES_IN_FLIGHT_MAX: usize = 16;

impl Services {
    pub(super) async fn probe(
        &self,
        request: v1::ProbeRequest,
        deadline: Deadline,
    ) -> Result<v1::ProbeResponse, Failure> {
        if !request.space.is_empty() {
            self.space(&request.space, deadline).await?;
        }
        let map = self.router().map();
        let wait = deadline.left(self.router().seams());
        let reply = self
            .inner
            .controls
            .execute(ControlCommand::AllocateMark, wait)
            .await?;
        let ControlOutcome::MarkAllocated { mark } = reply.outcome? else {
            let reason = "a mark was asked for, something else came";
            return Err(Failure::Internal(reason.into()));
        };
        // Something is kept for the way back.
        let probing = self
            .router()
            .deadline(deadline.left(self.router().seams()) * 9 / 10);
        let asked = |name: &str| request.space.is_empty() || request.space == name;
        let places = map
            .partitions()
            .filter(|(space, _)| asked(&space.config.name));
        let places: Vec<(String, PartitionRecord)> = places
            .map(|(space, place)| (space.config.name.clone(), place))
            .collect();
        let probes = stream::iter(places).map(|(space, place)| async move {
            let mut probe = self.probe_partition(place, mark, probing).await;
            probe.space = space;
            probe
        });
        let partitions = probes.buffered(PROBES_IN_FLIGHT_MAX).collect().await;
        Ok(v1::ProbeResponse { partitions })
    }

    async fn probe_partition(
        &self,
        place: PartitionRecord,
        mark: MarkId,
        deadline: Deadline,
    ) -> v1::PartitionProbe {
        let clock = &self.router().seams().clock;
        let mut probe = v1::PartitionProbe {
            partition: place.id.0,
            ..Default::default()
        };
        let begun = clock.monotonic();
        let command = PartitionCommand::Mark { mark };
        if let Err(error) = self.router().command(place, command, deadline).await {
            probe.error = format!("write: {error}");
            return probe;
        }
        let written = clock.monotonic();
        probe.write_micros = written.saturating_sub(begun).as_micros() as u64;
        let query = ReadQuery {
            query: Some(Query::Status(StatusQuery {})),
        };
        let read = self
            .router()
            .read(place, &query, &ReadAt::Linearizable, deadline)
            .await;
        match read {
            Ok(_) => {
                let took = clock.monotonic().saturating_sub(written);
                probe.read_micros = took.as_micros() as u64;
            }
            Err(error) => probe.error = format!("read: {error}"),
        }
        probe
    }
}
