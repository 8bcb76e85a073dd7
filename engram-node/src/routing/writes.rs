//! Writes: to the leader of the partition's group, wherever that is, until the deadline.

use std::time::Duration;

use engram_core::command::{Applied, PartitionCommand, Write};
use engram_core::planted;
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::{
    AcceptLocalRequest, ProposeRequest, accept_local_response, propose_response,
};

use super::ports::LinkError;
use super::pursuit::Pursuit;
use super::refusal::Refusal;
use super::{Deadline, Pauses, Router};
use crate::control::PartitionRecord;

/// Why a write was not answered with what it did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("partition {partition} took no write: {cause}")]
    NotApplied {
        partition: PartitionId,
        cause: String,
        leader: Option<NodeId>,
    },
    #[error(
        "partition {partition} did not answer in {waited:?}, so whether the write happened is unknown: {cause}"
    )]
    Unknown {
        partition: PartitionId,
        waited: Duration,
        cause: String,
        leader: Option<NodeId>,
    },
    /// Not applied.
    #[error("partition {partition} takes no more writes at once: {cause}")]
    Overloaded {
        partition: PartitionId,
        cause: String,
    },
    /// Not applied, and never will be.
    #[error("{0}")]
    Invalid(String),
    /// Its space was dropped. Not applied by this attempt.
    #[error("partition {partition} is gone")]
    Gone { partition: PartitionId },
}

/// Why no replica accepted an edge change on its own. Nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalWriteError {
    #[error("no replica of partition {partition} accepted the change: {cause}")]
    NotAccepted {
        partition: PartitionId,
        /// A replica that gave no answer may have kept the change all the same.
        open: bool,
        cause: String,
    },
    #[error("{0}")]
    Invalid(String),
}

/// What one attempt at one node came to.
enum Attempt {
    Applied(Applied),
    Refused(Refusal),
    Link(LinkError),
}

impl Router {
    /// Applies a write, once, however often it is attempted.
    ///
    /// # Errors
    /// See [`WriteError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown.
    pub async fn write(
        &self,
        place: PartitionRecord,
        write: Write,
        deadline: Deadline,
    ) -> Result<Applied, WriteError> {
        self.command(place, PartitionCommand::Write(write), deadline)
            .await
    }

    /// Applies a command that may be applied again without harm, or a write.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn command(
        &self,
        place: PartitionRecord,
        mut command: PartitionCommand,
        deadline: Deadline,
    ) -> Result<Applied, WriteError> {
        let started = self.seams().clock.monotonic();
        let (mut pursuit, mut pauses) = (Pursuit::default(), Pauses::default());
        let mut open = false;
        let mut last = Refusal::NoReplica;
        let mut cause = "no node with a replica is known".to_owned();
        loop {
            let replicas = self.replicas(place.id, place.group);
            if replicas.is_empty() {
                return Err(self.give_up(place, open, started, &Refusal::NoReplica, cause, true));
            }
            if deadline.has_passed(self.seams()) {
                return Err(self.give_up(place, open, started, &last, cause, false));
            }
            let target = pursuit.target(self.believed_leader(place.group), &replicas);
            let Some(target) = target else { continue };
            let mut pause = true;
            match self
                .attempt(target, place.id, &command, self.attempt_wait(deadline))
                .await
            {
                Attempt::Applied(applied) => {
                    self.note_leader(place.group, Some(target));
                    return Ok(applied);
                }
                Attempt::Refused(Refusal::Invalid(reason)) => {
                    if open {
                        // An earlier attempt may have been applied all the same.
                        return Err(self.give_up(place, true, started, &last, reason, false));
                    }
                    return Err(WriteError::Invalid(reason));
                }
                Attempt::Refused(refusal) => {
                    cause = format!("node {target}: {refusal}");
                    match &refusal {
                        Refusal::NotLeader { hint } => pause = pursuit.redirected(target, *hint),
                        Refusal::Overloaded(_) => {}
                        Refusal::Unknown(_) => {
                            open = true;
                            pursuit.failed(target);
                        }
                        _ => pursuit.failed(target),
                    }
                    last = refusal;
                }
                Attempt::Link(error) => {
                    open |= matches!(error, LinkError::Lost { .. })
                        && !planted!("lost-answer-not-applied");
                    cause = error.to_string();
                    last = Refusal::Stopped(cause.clone());
                    pursuit.failed(target);
                    self.note_leader(place.group, None);
                }
            }
            if let PartitionCommand::Write(write) = &mut command {
                // The first attempt may have left its mark: contributions say so.
                write.retried |= open;
            }
            if pause {
                self.pause(place.group, &mut pauses, deadline).await;
            }
        }
    }

    fn give_up(
        &self,
        place: PartitionRecord,
        open: bool,
        started: Duration,
        last: &Refusal,
        cause: String,
        gone: bool,
    ) -> WriteError {
        let partition = place.id;
        let leader = self.believed_leader(place.group);
        if open {
            let waited = self.seams().clock.monotonic().saturating_sub(started);
            return WriteError::Unknown {
                partition,
                waited,
                cause,
                leader,
            };
        }
        match last {
            _ if gone => WriteError::Gone { partition },
            Refusal::Overloaded(_) => WriteError::Overloaded { partition, cause },
            _ => WriteError::NotApplied {
                partition,
                cause,
                leader,
            },
        }
    }

    async fn attempt(
        &self,
        target: NodeId,
        partition: PartitionId,
        command: &PartitionCommand,
        wait: Duration,
    ) -> Attempt {
        if target == self.local() {
            return match self.here().propose(partition, command.clone(), wait).await {
                Ok(applied) => Attempt::Applied(applied),
                Err(refusal) => Attempt::Refused(refusal),
            };
        }
        let request = ProposeRequest {
            partition: partition.0,
            wait_millis: wait.as_millis() as u64,
            command: Some(command.into()),
            // Whoever sends it knows the receiver's time.
            expires: None,
        };
        match self
            .inner
            .remote
            .propose(target, request, wait)
            .await
            .map(|answer| answer.answer)
        {
            Ok(Some(propose_response::Answer::Applied(applied))) => match applied.try_into() {
                Ok(applied) => Attempt::Applied(applied),
                Err(error) => Attempt::Refused(Refusal::Unknown(format!("its answer: {error}"))),
            },
            Ok(Some(propose_response::Answer::NotServed(refusal))) => {
                Attempt::Refused(refusal.into())
            }
            Ok(None) => Attempt::Refused(Refusal::Unknown("its answer is of no known kind".into())),
            Err(error) => Attempt::Link(error),
        }
    }

    /// Has one replica of the partition accept edge changes: this node's if it has one, else any
    /// that answers. The position covers them.
    ///
    /// # Errors
    /// See [`LocalWriteError`].
    pub async fn write_local(
        &self,
        place: PartitionRecord,
        write: &Write,
        deadline: Deadline,
    ) -> Result<EdgeContext, LocalWriteError> {
        let mut cause = "no node with a replica is known".to_owned();
        let mut open = false;
        for target in self.nearest_first(place) {
            let accepted = if target == self.local() {
                self.here().accept_local(place.id, write).await
            } else {
                self.accept_at(target, place.id, write, self.attempt_wait(deadline))
                    .await
            };
            match accepted {
                Ok(position) => return Ok(position),
                Err(Refusal::Invalid(reason)) => return Err(LocalWriteError::Invalid(reason)),
                Err(refusal) => {
                    open |= matches!(refusal, Refusal::Unknown(_));
                    cause = format!("node {target}: {refusal}");
                }
            }
        }
        Err(LocalWriteError::NotAccepted {
            partition: place.id,
            open,
            cause,
        })
    }

    async fn accept_at(
        &self,
        target: NodeId,
        partition: PartitionId,
        write: &Write,
        wait: Duration,
    ) -> Result<EdgeContext, Refusal> {
        use accept_local_response::Answer;
        let request = AcceptLocalRequest {
            partition: partition.0,
            write: Some(write.into()),
            expires: None,
        };
        let answer = self.inner.remote.accept_local(target, request, wait).await;
        // A change that was kept without an answer is a twin of the next attempt's: it counts once.
        let answer = answer.map_err(|error| match error {
            LinkError::Lost { .. } => Refusal::Unknown(error.to_string()),
            _ => Refusal::Stopped(error.to_string()),
        })?;
        match answer.answer {
            Some(Answer::Position(position)) => position
                .try_into()
                .map_err(|error| Refusal::Unknown(format!("its answer: {error}"))),
            Some(Answer::NotServed(refusal)) => Err(refusal.into()),
            None => Err(Refusal::Unknown("its answer is of no known kind".into())),
        }
    }
}
