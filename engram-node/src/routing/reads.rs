//! Reads: from the leader after a barrier, from a replica that covers a session's position, or
//! from any replica.

use std::time::Duration;

use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::{ReadLevel, ReadQuery, ReadRequest, Served, read_response, served};

use super::pursuit::Pursuit;
use super::refusal::Refusal;
use super::{Deadline, Pauses, Router};
use crate::control::PartitionRecord;

/// How fresh an answer has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAt {
    /// The leader, after a majority has confirmed it.
    Linearizable,
    /// Any replica that covers what the session has read and written in this partition.
    Session(EdgeContext),
    Stale,
}

/// The answer of one partition.
#[derive(Clone, Debug)]
pub struct Read {
    pub node: NodeId,
    /// Covers all that the answer rests on.
    pub position: EdgeContext,
    pub answer: served::Answer,
}

/// Why a partition gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("partition {partition} cannot be read: {cause}")]
    Unavailable {
        partition: PartitionId,
        cause: String,
        leader: Option<NodeId>,
    },
    #[error("no replica of partition {partition} has reached the session's position yet: {cause}")]
    Behind {
        partition: PartitionId,
        cause: String,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("partition {partition} is gone")]
    Gone { partition: PartitionId },
}

impl Router {
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(
        &self,
        place: PartitionRecord,
        query: &ReadQuery,
        at: &ReadAt,
        deadline: Deadline,
    ) -> Result<Read, ReadError> {
        match at {
            ReadAt::Linearizable => self.read_leader(place, query, deadline).await,
            ReadAt::Session(_) | ReadAt::Stale => {
                self.read_replica(place, query, at, deadline).await
            }
        }
    }

    async fn read_leader(
        &self,
        place: PartitionRecord,
        query: &ReadQuery,
        deadline: Deadline,
    ) -> Result<Read, ReadError> {
        let (mut pursuit, mut pauses) = (Pursuit::default(), Pauses::default());
        let mut cause = "no node with a replica is known".to_owned();
        loop {
            let replicas = self.replicas(place.id, place.group);
            if replicas.is_empty() {
                return Err(ReadError::Gone {
                    partition: place.id,
                });
            }
            if deadline.has_passed(self.seams()) {
                let leader = self.believed_leader(place.group);
                return Err(ReadError::Unavailable {
                    partition: place.id,
                    cause,
                    leader,
                });
            }
            let believed = self.believed_leader(place.group);
            let Some(target) = pursuit.target(believed, &replicas) else {
                continue;
            };
            let wait = self.attempt_wait(deadline);
            let mut pause = true;
            match self
                .read_at(target, place.id, query, &ReadAt::Linearizable, wait)
                .await
            {
                Ok(read) => {
                    self.note_leader(place.group, Some(target));
                    return Ok(read);
                }
                Err(Refusal::Invalid(reason)) => return Err(ReadError::Invalid(reason)),
                Err(refusal) => {
                    cause = format!("node {target}: {refusal}");
                    if let Refusal::NotLeader { hint } = refusal {
                        pause = pursuit.redirected(target, hint);
                    } else {
                        pursuit.failed(target);
                        self.note_leader(place.group, None);
                    }
                }
            }
            if pause {
                self.pause(place.group, &mut pauses, deadline).await;
            }
        }
    }

    async fn read_replica(
        &self,
        place: PartitionRecord,
        query: &ReadQuery,
        at: &ReadAt,
        deadline: Deadline,
    ) -> Result<Read, ReadError> {
        let mut pauses = Pauses::default();
        loop {
            let (mut cause, mut behind) = ("no node with a replica is known".to_owned(), false);
            let targets = self.nearest_first(place);
            if targets.is_empty() {
                return Err(ReadError::Gone {
                    partition: place.id,
                });
            }
            for target in targets {
                let wait = self.attempt_wait(deadline);
                match self.read_at(target, place.id, query, at, wait).await {
                    Ok(read) => return Ok(read),
                    Err(Refusal::Invalid(reason)) => return Err(ReadError::Invalid(reason)),
                    Err(refusal) => {
                        behind |= refusal == Refusal::Behind;
                        cause = format!("node {target}: {refusal}");
                    }
                }
            }
            pauses.pause(self.seams(), deadline).await;
            if deadline.has_passed(self.seams()) {
                let (partition, leader) = (place.id, self.believed_leader(place.group));
                return Err(match behind {
                    true => ReadError::Behind { partition, cause },
                    false => ReadError::Unavailable {
                        partition,
                        cause,
                        leader,
                    },
                });
            }
        }
    }

    /// Nodes with a replica: this one, then the believed leader, then the others.
    pub(super) fn nearest_first(&self, place: PartitionRecord) -> Vec<NodeId> {
        let leader = self.believed_leader(place.group);
        let mut nodes = self.replicas(place.id, place.group);
        nodes.sort_by_key(|node| (*node != self.local(), Some(*node) != leader));
        nodes
    }

    /// One attempt at one node.
    ///
    /// # Errors
    /// See [`Refusal`]; of a node that does not answer, [`Refusal::Silent`].
    pub async fn read_at(
        &self,
        target: NodeId,
        partition: PartitionId,
        query: &ReadQuery,
        at: &ReadAt,
        wait: Duration,
    ) -> Result<Read, Refusal> {
        let served = if target == self.local() {
            self.here().read(partition, query.clone(), at, wait).await?
        } else {
            let request = read_request(partition, query.clone(), at, wait);
            let answer = self.inner.remote.read(target, request, wait).await;
            match answer
                .map_err(|error| Refusal::Silent(error.to_string()))?
                .answer
            {
                Some(read_response::Answer::Served(served)) => served,
                Some(read_response::Answer::NotServed(refusal)) => return Err(refusal.into()),
                None => return Err(unknown_answer()),
            }
        };
        let Served { position, answer } = served;
        let position = position.ok_or_else(unknown_answer)?;
        Ok(Read {
            node: target,
            position: position.try_into().map_err(|_| unknown_answer())?,
            answer: answer.ok_or_else(unknown_answer)?,
        })
    }
}

fn unknown_answer() -> Refusal {
    Refusal::Unknown("its answer is of no known kind".into())
}

fn read_request(
    partition: PartitionId,
    query: ReadQuery,
    at: &ReadAt,
    wait: Duration,
) -> ReadRequest {
    let (level, position) = match at {
        ReadAt::Linearizable => (ReadLevel::Leader, None),
        ReadAt::Session(position) => (ReadLevel::Covering, Some(position.into())),
        ReadAt::Stale => (ReadLevel::Any, None),
    };
    ReadRequest {
        partition: partition.0,
        wait_millis: wait.as_millis() as u64,
        level: level.into(),
        position,
        query: Some(query),
    }
}
