//! `verify`: every replica of a space notes its digests at one point of each partition's log, and
//! the notes are compared.
//!
//! The mark travels through the log, so all replicas note at the same sequence whatever is written
//! meanwhile. A replica that cannot be asked makes the answer unequal: nothing is proved of it.

use std::time::Duration;

use engram_core::command::PartitionCommand;
use engram_core::types::{MarkId, NodeId};
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{MarkDigests, MarkQuery, ReadQuery};
use engram_proto::v1;
use futures::future::{join_all, try_join_all};

use super::Services;
use super::failure::Failure;
use crate::control::{ControlCommand, ControlOutcome, PartitionRecord};
use crate::routing::{ATTEMPT_MAX, Deadline, Pauses, ReadAt};

/// What a replica said at the mark, or why it did not.
type Note = (NodeId, Result<MarkDigests, String>);

impl Services {
    pub(super) async fn verify(
        &self,
        request: v1::VerifyRequest,
        deadline: Deadline,
    ) -> Result<v1::VerifyResponse, Failure> {
        let space = self.space(&request.space, deadline).await?;
        let wait = deadline.left(self.router().seams());
        let reply = self
            .inner
            .controls
            .execute(ControlCommand::AllocateMark, wait)
            .await?;
        let ControlOutcome::MarkAllocated { mark } = reply.outcome? else {
            return Err(Failure::Internal(
                "a mark was asked for, something else came".into(),
            ));
        };
        let partitions = space
            .partitions
            .iter()
            .map(|place| self.verify_partition(*place, mark, request.deep, deadline));
        let partitions = try_join_all(partitions).await?;
        let equal = partitions.iter().all(|partition| partition.equal);
        Ok(v1::VerifyResponse { equal, partitions })
    }

    async fn verify_partition(
        &self,
        place: PartitionRecord,
        mark: MarkId,
        deep: bool,
        deadline: Deadline,
    ) -> Result<v1::PartitionVerification, Failure> {
        // The last part of the time belongs to the replicas.
        let left = deadline.left(self.router().seams());
        let marking = self.router().deadline(left / 2);
        let command = PartitionCommand::Mark { mark };
        let applied = self.router().command(place, command, marking).await?;
        let asking = self
            .router()
            .deadline(deadline.left(self.router().seams()) * 9 / 10);
        let map = self.router().map();
        let nodes = map.replicas(place.group).iter();
        let notes = nodes.map(|node| async {
            let sequence = applied.sequence.0;
            (
                *node,
                self.note_of(*node, place, (mark, deep), sequence, asking)
                    .await,
            )
        });
        Ok(compare(place, applied.sequence.0, join_all(notes).await))
    }

    /// Waits until the replica has applied the mark and linked what was sealed before it.
    async fn note_of(
        &self,
        node: NodeId,
        place: PartitionRecord,
        (mark, deep): (MarkId, bool),
        sequence: u64,
        deadline: Deadline,
    ) -> Result<MarkDigests, String> {
        let query = ReadQuery {
            query: Some(Query::Mark(MarkQuery { mark: mark.0, deep })),
        };
        let seams = self.router().seams();
        let mut pauses = Pauses::default();
        loop {
            let wait = deadline.left(seams);
            let wait = if deep { wait } else { wait.min(ATTEMPT_MAX) };
            let why = match self
                .router()
                .read_at(node, place.id, &query, &ReadAt::Stale, wait)
                .await
            {
                Ok(read) => match read.answer {
                    // An attempt at the mark that was thought lost may have come before.
                    Answer::Mark(answer) => match answer.digests {
                        Some(digests) if digests.sequence >= sequence => return Ok(digests),
                        _ => format!(
                            "it is at sequence {} and has not applied and linked everything up to \
                             sequence {sequence}",
                            read.position.sequence
                        ),
                    },
                    _ => return Err("its answer is of no known kind".into()),
                },
                Err(refusal) => refusal.to_string(),
            };
            if deadline.left(seams) <= Duration::ZERO {
                return Err(why);
            }
            pauses.pause(seams, deadline).await;
        }
    }
}

/// Everything but what one replica found on its own disk has to be equal.
fn alike(one: &MarkDigests, other: &MarkDigests) -> bool {
    let blank = |digests: &MarkDigests| MarkDigests {
        damage: String::new(),
        ..digests.clone()
    };
    blank(one) == blank(other)
}

/// What the greatest number of replicas says is right; with a tie nobody is.
fn majority(notes: &[Note]) -> Option<MarkDigests> {
    let said: Vec<&MarkDigests> = notes
        .iter()
        .filter_map(|(_, note)| note.as_ref().ok())
        .collect();
    let votes = |digests: &MarkDigests| said.iter().filter(|other| alike(other, digests)).count();
    let right = said.iter().copied().max_by_key(|digests| votes(digests))?;
    let rival = |digests: &&MarkDigests| !alike(digests, right) && votes(digests) == votes(right);
    (!said.iter().copied().any(|digests| rival(&digests))).then(|| right.clone())
}

fn compare(place: PartitionRecord, sequence: u64, notes: Vec<Note>) -> v1::PartitionVerification {
    let right = majority(&notes);
    let replicas: Vec<v1::ReplicaDigests> = notes
        .into_iter()
        .map(|(node, note)| match note {
            Ok(digests) => {
                let agrees = right.as_ref().is_some_and(|right| alike(right, &digests));
                v1::ReplicaDigests {
                    node: node.0,
                    agrees: agrees && digests.damage.is_empty(),
                    error: digests.damage,
                    log_hash: digests.log_hash,
                    memory_digest: digests.memory_digest,
                    edge_digest: digests.edge_digest,
                    generation: digests.generation,
                    index_jobs: digests.index_jobs,
                    topology_digest: digests.topology_digest,
                }
            }
            Err(error) => v1::ReplicaDigests {
                node: node.0,
                error,
                ..Default::default()
            },
        })
        .collect();
    let equal = !replicas.is_empty() && replicas.iter().all(|replica| replica.agrees);
    v1::PartitionVerification {
        partition: place.id.0,
        sequence,
        equal,
        replicas,
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{GroupId, PartitionId, SlotRange};

    use super::*;

    fn place() -> PartitionRecord {
        PartitionRecord {
            id: PartitionId(1),
            group: GroupId(1),
            slots: SlotRange::ALL,
        }
    }

    fn note(node: u64, topology: u8) -> Note {
        let topology_digest = vec![topology; 16].into();
        let digests = MarkDigests {
            sequence: 9,
            topology_digest,
            ..Default::default()
        };
        (NodeId(node), Ok(digests))
    }

    fn agreement(notes: Vec<Note>) -> (bool, Vec<bool>) {
        let verified = compare(place(), 9, notes);
        (
            verified.equal,
            verified
                .replicas
                .iter()
                .map(|replica| replica.agrees)
                .collect(),
        )
    }

    #[test]
    fn the_minority_is_named() {
        let all = agreement(vec![note(1, 7), note(2, 7), note(3, 7)]);
        assert_eq!(all, (true, vec![true, true, true]));
        let one = agreement(vec![note(1, 7), note(2, 8), note(3, 7)]);
        assert_eq!(one, (false, vec![true, false, true]));
        let tie = agreement(vec![note(1, 7), note(2, 8)]);
        assert_eq!(tie, (false, vec![false, false]));
    }

    #[test]
    fn silence_and_damage_are_not_agreement() {
        let silent = (NodeId(3), Err("no answer".to_owned()));
        let (equal, agrees) = agreement(vec![note(1, 7), note(2, 7), silent]);
        assert_eq!((equal, agrees), (false, vec![true, true, false]));
        let (node, digests) = note(3, 7);
        let digests = digests.map(|d| MarkDigests {
            damage: "rotten".into(),
            ..d
        });
        let (equal, agrees) = agreement(vec![note(1, 7), note(2, 7), (node, digests)]);
        assert_eq!((equal, agrees), (false, vec![true, true, false]));
        assert_eq!(agreement(Vec::new()), (false, Vec::new()));
    }
}
