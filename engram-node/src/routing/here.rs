//! Serving a request on this node: what a forwarded request, or a local one, comes down to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::{Applied, EdgeChange, Op, PartitionCommand, Write};
use engram_core::limits::COMMAND_BYTES_MAX;
use engram_core::partition::{LocalChange, LocalError, Partition};
use engram_core::planted;
use engram_core::storage::StorageError;
use engram_core::types::{
    ActorId, EdgeContext, EdgeKey, GroupId, Hlc, NodeId, PartitionId, Sequence, Unit,
};
use engram_proto::convert::{decode_applied, encode_group_command};
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ReadQuery, Served};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::accepted::Accepted;
use super::answer;
use super::backups::Backups;
use super::ports::{Groups, Locals};
use super::reads::ReadAt;
use super::refusal::Refusal;
use super::stamps::{Reading, Stamps};
use crate::control::ClusterMap;
use crate::seams::Seams;

type RemovalsOnTheWay = BTreeMap<PartitionId, BTreeMap<Sequence, u32>>;

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
    /// Of changes that enter here; `None` until the first one. Held while a bound is written.
    stamps: tokio::sync::Mutex<Option<Stamps>>,
    /// Drawn at the first local write of this process.
    actor: Mutex<Option<ActorId>>,
    /// How many writes with removals are on their way to the log, by what they have seen of it.
    removals: Mutex<RemovalsOnTheWay>,
    accepted: Arc<Accepted>,
    backups: Backups,
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
        let (stamps, actor, removals) = Default::default();
        let backups = Backups::new(seams.clone());
        Self {
            inner: Arc::new(Inner {
                seams,
                backups,
                node,
                map,
                groups,
                locals,
                stamps,
                actor,
                removals,
                accepted: Arc::default(),
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

    /// Changes that were accepted here alone.
    #[must_use]
    pub fn accepted(&self) -> &Arc<Accepted> {
        &self.inner.accepted
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

    /// The stamp of a change that enters here now. The bound that it needs is on disk.
    async fn next_stamp(&self) -> Result<Hlc, Refusal> {
        let mut stamps = self.inner.stamps.lock().await;
        let stamps = match &mut *stamps {
            Some(stamps) => stamps,
            none => {
                let kept = self.on_disk(|locals| locals.kept_stamp()).await?;
                none.insert(Stamps::new(kept))
            }
        };
        let clock = &self.inner.seams.clock;
        let given = stamps.next(Reading {
            wall_millis: clock.wall_millis(),
            monotonic: clock.monotonic(),
        });
        if let Some(drift) = given.drift {
            metrics::counter!("engram_clock_alarms_total", "clock" => drift.label()).increment(1);
            tracing::debug!(?drift, "the wall clock jumped: stamps do not follow it");
        }
        if let Some(bound) = given.keep
            && let Err(refusal) = self.on_disk(move |locals| locals.keep_stamp(bound)).await
        {
            stamps.not_kept();
            return Err(refusal);
        }
        Ok(given.stamp)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Locals) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let locals = Arc::clone(&self.inner.locals);
        let done = self
            .inner
            .seams
            .blocking(move || work(locals.as_ref()))
            .await;
        done.map_err(|error| Refusal::Storage(error.to_string()))
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
        let clock = &self.inner.seams.clock;
        let until = clock.monotonic() + wait;
        let mut removals = None;
        if let PartitionCommand::Write(write) = &mut command {
            self.pass_gate(&replica, write, wait).await?;
            write.stamp = self.next_stamp().await?;
            if write
                .ops
                .iter()
                .any(|(_, op)| matches!(op, Op::Forget(_) | Op::Dissociate(_)))
            {
                if !planted!("removal-without-barrier") {
                    self.inner.groups.read_barrier(group, wait).await?;
                }
                // Its caller may have gone on: what it sees from now on is not for it.
                if clock.monotonic() > until {
                    return Err(Refusal::Stopped("its time passed before it began".into()));
                }
                removals = Some(self.removal_starts(&replica, write));
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
        drop(removals);
        decode_applied(&reply).map_err(|error| Refusal::Unknown(format!("the answer: {error}")))
    }

    /// A write with embeddings waits while linking lags.
    async fn pass_gate(
        &self,
        replica: &Partition,
        write: &Write,
        wait: Duration,
    ) -> Result<(), Refusal> {
        let embeds =
            |(_, op): &(u32, Op)| matches!(op, Op::Remember(memory) if memory.embedding.is_some());
        match self.inner.locals.gate() {
            // Half of the time is left for the log.
            Some(gate) if write.ops.iter().any(embeds) => gate
                .pass(&self.inner.seams, replica, wait / 2)
                .await
                .map_err(|lags| Refusal::Overloaded(lags.to_string())),
            _ => Ok(()),
        }
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
        let (reader, backups) = (Arc::clone(&replica), self.inner.backups.clone());
        if let Some(Query::BackUpOpen(query)) = &query.query {
            let opened = backups.open(&reader, query)?;
            return Ok(answer::served(&reader, Answer::BackUpOpen(opened)));
        }
        let execute = move || match &query.query {
            Some(Query::BackUpPage(page)) => {
                let page = backups.page(&reader, page)?;
                Ok(answer::served(&reader, Answer::BackUpPage(page)))
            }
            _ => answer::execute(&reader, &query),
        };
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
            status.purge_done = self.inner.locals.purged(partition).0;
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
        let changes = local_changes(write, self.next_stamp().await?)?;
        let actor = self.actor();
        let accept = move || {
            let deltas = replica
                .accept_local(actor, &changes)
                .map_err(local_refusal)?;
            Ok::<_, Refusal>((replica.context(), deltas))
        };
        let (position, deltas) = self.inner.seams.blocking(accept).await?;
        self.inner.accepted.note(partition, deltas);
        Ok(position)
    }

    /// Fills in what removals have seen, and notes that they are on their way: no frontier of
    /// folding may pass them before they are in the log.
    fn removal_starts(&self, replica: &Partition, write: &mut Write) -> RemovalOnTheWay {
        let partition = replica.id();
        let mut removals = self.inner.removals.lock();
        let sequence = replica.sequence();
        fill_contexts(write, replica);
        *removals
            .entry(partition)
            .or_default()
            .entry(sequence)
            .or_default() += 1;
        RemovalOnTheWay {
            here: self.clone(),
            partition,
            sequence,
        }
    }

    /// Whether every removal that is on its way to the log from here, or will be, has seen the log
    /// up to this sequence.
    #[must_use]
    pub fn removals_have_seen(&self, partition: PartitionId, sequence: Sequence) -> bool {
        let removals = self.inner.removals.lock();
        let oldest = removals.get(&partition).and_then(|of| of.keys().next());
        oldest.is_none_or(|oldest| *oldest >= sequence)
    }

    fn actor(&self) -> ActorId {
        *self
            .inner
            .actor
            .lock()
            .get_or_insert_with(|| ActorId(self.inner.seams.random_id()))
    }
}

/// Removals of one write, from the moment they get their context until the log has answered.
struct RemovalOnTheWay {
    here: Here,
    partition: PartitionId,
    sequence: Sequence,
}

impl Drop for RemovalOnTheWay {
    fn drop(&mut self) {
        let mut removals = self.here.inner.removals.lock();
        let Some(of_partition) = removals.get_mut(&self.partition) else {
            return;
        };
        if let Some(count) = of_partition.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                of_partition.remove(&self.sequence);
            }
        }
        if of_partition.is_empty() {
            removals.remove(&self.partition);
        }
    }
}

/// Whether a replica that has seen `held` may answer a session that has seen `wanted`.
pub(super) fn covers(held: &EdgeContext, wanted: &EdgeContext) -> bool {
    held.sequence >= wanted.sequence && held.overlay.covers_all(&wanted.overlay)
}

fn fill_contexts(write: &mut Write, replica: &Partition) {
    for (_, op) in &mut write.ops {
        match op {
            Op::Forget(forget) => forget.context = replica.forget_context(forget.id.hash()),
            Op::Dissociate(edge) => {
                let key = EdgeKey {
                    from: edge.from.hash(),
                    to: edge.to.hash(),
                    relation: edge.relation.clone(),
                };
                edge.context = replica.removal_context(&key);
            }
            Op::Remember(_) | Op::Associate(_) | Op::RestoreMemory(_) | Op::RestoreEdge(_) => {}
        }
    }
}

fn local_changes(write: &Write, stamp: Hlc) -> Result<Vec<LocalChange>, Refusal> {
    let change = |(index, op): &(u32, Op)| {
        let (from, to, relation, change) = match op {
            Op::Associate(edge) => {
                let (weight, confidence): (Unit, Unit) = (edge.weight, edge.confidence);
                let change = EdgeChange::Contribute { weight, confidence };
                (&edge.from, &edge.to, &edge.relation, change)
            }
            Op::Dissociate(edge) => {
                // The replica fills in what it has seen when it accepts the removal.
                let change = EdgeChange::Remove {
                    context: EdgeContext::default(),
                };
                (&edge.from, &edge.to, &edge.relation, change)
            }
            Op::Remember(_) | Op::Forget(_) | Op::RestoreMemory(_) | Op::RestoreEdge(_) => {
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
        LocalError::Full { .. } => Refusal::Overloaded(error.to_string()),
    }
}
