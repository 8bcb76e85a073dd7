//! Serving a request on this node: what a forwarded request, or a local one, comes down to.

use std::sync::Arc;
use std::time::Duration;

use engram_core::command::{Applied, EdgeChange, Op, PartitionCommand, Write};
use engram_core::limits::COMMAND_BYTES_MAX;
use engram_core::partition::{LocalChange, LocalError, Partition};
use engram_core::planted;
use engram_core::types::{ActorId, EdgeContext, GroupId, Hlc, NodeId, PartitionId, Unit};
use engram_proto::convert::{decode_applied, encode_group_command};
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ReadQuery, Served};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::answer;
use super::ports::{Groups, Locals};
use super::reads::ReadAt;
use super::refusal::Refusal;
use crate::control::ClusterMap;
use crate::seams::Seams;

/// The replicas of this node, as requests reach them. Cheap to clone.
#[derive(Clone)]
pub struct Here {
    inner: Arc<Inner>,
}

struct Inner {
    seams: Seams,
    node: NodeId,
    map: watch::Receiver<Arc<ClusterMap>>,
    groups: Arc<dyn Groups>,
    locals: Arc<dyn Locals>,
    /// The last stamp given to a change that entered here.
    stamp: Mutex<Hlc>,
    /// Drawn at the first local write of this process.
    actor: Mutex<Option<ActorId>>,
}

impl Here {
    #[must_use]
    pub fn new(
        seams: Seams,
        node: NodeId,
        map: watch::Receiver<Arc<ClusterMap>>,
        groups: Arc<dyn Groups>,
        locals: Arc<dyn Locals>,
    ) -> Self {
        let (stamp, actor) = (Mutex::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                seams,
                node,
                map,
                groups,
                locals,
                stamp,
                actor,
            }),
        }
    }

    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    #[must_use]
    pub fn partition(&self, partition: PartitionId) -> Option<Arc<Partition>> {
        self.inner.locals.partition(partition)
    }

    #[must_use]
    pub fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)> {
        self.inner.locals.partitions()
    }

    /// Whether a replica here has seen what somebody who has seen `position` must see.
    #[must_use]
    pub fn covers(&self, replica: &Partition, position: &EdgeContext) -> bool {
        covers(&replica.context(), position)
    }

    #[must_use]
    pub fn leads(&self, group: GroupId) -> bool {
        self.inner.groups.leadership(group).leader == Some(self.inner.node)
    }

    /// The partition's replica and group here.
    fn replica(&self, partition: PartitionId) -> Result<(GroupId, Arc<Partition>), Refusal> {
        let group = self
            .inner
            .map
            .borrow()
            .partition(partition)
            .map(|(_, record)| record.group);
        let group = group.ok_or(Refusal::NoReplica)?;
        let replica = self.inner.locals.partition(partition);
        let replica = replica.ok_or_else(|| match self.inner.groups.why_stopped(group) {
            Some(reason) => Refusal::Stopped(reason),
            None => Refusal::NoReplica,
        })?;
        Ok((group, replica))
    }

    fn check_leads(&self, group: GroupId) -> Result<(), Refusal> {
        match self.inner.groups.leadership(group).leader {
            Some(leader) if leader == self.inner.node => Ok(()),
            hint => Err(Refusal::NotLeader { hint }),
        }
    }

    fn next_stamp(&self) -> Hlc {
        let mut stamp = self.inner.stamp.lock();
        *stamp = stamp.tick(self.inner.seams.clock.wall_millis());
        *stamp
    }

    /// Proposes a command here. A write gets its stamp, and its removals the context that this
    /// leader has after it proved that it leads.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn propose(
        &self,
        partition: PartitionId,
        mut command: PartitionCommand,
        wait: Duration,
    ) -> Result<Applied, Refusal> {
        let (group, replica) = self.replica(partition)?;
        self.check_leads(group)?;
        if let PartitionCommand::Write(write) = &mut command {
            write.stamp = self.next_stamp();
            if write
                .ops
                .iter()
                .any(|(_, op)| matches!(op, Op::Forget(_) | Op::Dissociate(_)))
            {
                if !planted!("removal-without-barrier") {
                    self.inner.groups.read_barrier(group, wait).await?;
                }
                fill_contexts(write, &replica.context());
            }
        }
        let entry = encode_group_command(partition, &command);
        if entry.len() > COMMAND_BYTES_MAX {
            let bytes = entry.len();
            return Err(Refusal::Invalid(format!(
                "the request takes {bytes} bytes in the log, at most {COMMAND_BYTES_MAX} are allowed"
            )));
        }
        let reply = self.inner.groups.propose(group, entry, wait).await?;
        decode_applied(&reply).map_err(|error| Refusal::Unknown(format!("the answer: {error}")))
    }

    /// Reads a partition here, if this replica may serve such a read now.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn read(
        &self,
        partition: PartitionId,
        query: ReadQuery,
        at: &ReadAt,
        wait: Duration,
    ) -> Result<Served, Refusal> {
        let (group, replica) = self.replica(partition)?;
        match at {
            ReadAt::Linearizable => {
                self.check_leads(group)?;
                if !planted!("read-without-barrier") {
                    self.inner.groups.read_barrier(group, wait).await?;
                }
            }
            ReadAt::Session(position)
                if !covers(&replica.context(), position) && !planted!("session-token-ignored") =>
            {
                return Err(Refusal::Behind);
            }
            ReadAt::Session(_) | ReadAt::Stale => {}
        }
        let reader = Arc::clone(&replica);
        let execute = move || answer::execute(&reader, &query);
        let mut served = self.inner.seams.blocking(execute).await?;
        if replica.is_retired() {
            // Its records may have been replaced while they were read.
            return Err(Refusal::NoReplica);
        }
        if let Some(Answer::Status(status)) = &mut served.answer {
            let leadership = self.inner.groups.leadership(group);
            status.leader = leadership.leader.map_or(0, |node| node.0);
            status.epoch = leadership.epoch;
            status.stopped = self.inner.groups.why_stopped(group).unwrap_or_default();
            status.catching_up = self.inner.groups.catching_up(group);
        }
        Ok(served)
    }

    /// Accepts edge changes into this replica's overlay. On disk here when it returns.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing was kept then.
    pub async fn accept_local(
        &self,
        partition: PartitionId,
        write: &Write,
    ) -> Result<EdgeContext, Refusal> {
        let (_, replica) = self.replica(partition)?;
        let changes = local_changes(write, self.next_stamp(), &replica.context())?;
        let actor = self.actor();
        self.inner
            .seams
            .blocking(move || {
                replica
                    .accept_local(actor, &changes)
                    .map_err(local_refusal)?;
                Ok(replica.context())
            })
            .await
    }

    fn actor(&self) -> ActorId {
        *self
            .inner
            .actor
            .lock()
            .get_or_insert_with(|| ActorId(self.inner.seams.random_id()))
    }
}

/// Whether a replica that has seen `held` may answer a session that has seen `wanted`.
pub(super) fn covers(held: &EdgeContext, wanted: &EdgeContext) -> bool {
    held.sequence >= wanted.sequence && held.overlay.covers_all(&wanted.overlay)
}

fn fill_contexts(write: &mut Write, context: &EdgeContext) {
    for (_, op) in &mut write.ops {
        match op {
            Op::Forget(forget) => forget.context = context.clone(),
            Op::Dissociate(edge) => edge.context = context.clone(),
            Op::Remember(_) | Op::Associate(_) => {}
        }
    }
}

fn local_changes(
    write: &Write,
    stamp: Hlc,
    context: &EdgeContext,
) -> Result<Vec<LocalChange>, Refusal> {
    let change = |(index, op): &(u32, Op)| {
        let (from, to, relation, change) = match op {
            Op::Associate(edge) => {
                let (weight, confidence): (Unit, Unit) = (edge.weight, edge.confidence);
                let change = EdgeChange::Contribute { weight, confidence };
                (&edge.from, &edge.to, &edge.relation, change)
            }
            Op::Dissociate(edge) => {
                let change = EdgeChange::Remove {
                    context: context.clone(),
                };
                (&edge.from, &edge.to, &edge.relation, change)
            }
            Op::Remember(_) | Op::Forget(_) => {
                let reason = "only changes of edges can be accepted by one replica alone";
                return Err(Refusal::Invalid(reason.into()));
            }
        };
        Ok(LocalChange {
            request: write.request_id(*index),
            retried: write.retried,
            stamp,
            from: from.clone(),
            to: to.clone(),
            relation: relation.clone(),
            change,
        })
    };
    write.ops.iter().map(change).collect()
}

fn local_refusal(error: LocalError) -> Refusal {
    match error {
        LocalError::Storage(error) => Refusal::Storage(error.to_string()),
        LocalError::NotInPartition { .. } => Refusal::Invalid(error.to_string()),
        LocalError::Dropped { .. } => Refusal::NoReplica,
    }
}
