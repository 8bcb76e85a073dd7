//! One group as it runs here: proposals, read barriers, membership.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_core::planted;
use engram_core::types::{GroupId, NodeId};
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::{ChangeMembers, ReadPolicy, async_runtime::WatchReceiver as _};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::config::ConsensusConfig;
use super::log::{LogStore, Mark};
use super::recovery::Recovery;
use super::runtime::{Command, LogId, PeerNode, Raft, Types};
use super::{BarrierError, Leadership, ProposeError};
use crate::seams::Seams;
use engram_core::limits::COMMAND_BYTES_MAX;

/// Room for an entry's frame around a command of the greatest size, in bytes.
const ENTRY_BYTES_MAX: usize = COMMAND_BYTES_MAX + (1 << 20);
/// Pause before a membership change is tried again that had to wait for another.
const MEMBERSHIP_PAUSE: Duration = Duration::from_millis(100);
/// How long the last user of a stopped group's state may take.
const LAST_USER_TIMEOUT: Duration = Duration::from_secs(30);

type WriteError = RaftError<Types, ClientWriteError<Types>>;

/// A replica that was started here.
pub struct Group {
    pub id: GroupId,
    pub raft: Raft,
    /// Who could be its members when it was started here, as far as the cluster map told.
    pub hosts: BTreeSet<NodeId>,
    /// What the replica has to go through when its log has lost its end.
    pub recovery: Option<Recovery>,
    /// A member that has not answered for longer is not counted on.
    pub(super) heard_within: Duration,
    /// The log that the core writes, to look at.
    pub(super) log: LogStore,
    seams: Seams,
    proposals: Arc<Semaphore>,
    proposals_max: usize,
    /// Set when the node stopped the replica for a reason that Raft does not know.
    stop_reason: Mutex<Option<String>>,
    gone: Mutex<Option<oneshot::Receiver<()>>>,
}

/// What is known of a replica when it is opened.
pub struct Opened {
    pub hosts: BTreeSet<NodeId>,
    pub recovery: Option<Recovery>,
    pub gone: oneshot::Receiver<()>,
}

impl Group {
    /// The last entry of the log here.
    pub fn log_end_id(&self) -> Option<LogId> {
        self.log.last()
    }

    pub fn log_end(&self) -> Option<Mark> {
        self.log_end_id().map(Into::into)
    }

    pub fn new(
        id: GroupId,
        raft: Raft,
        log: LogStore,
        opened: Opened,
        seams: &Seams,
        config: &ConsensusConfig,
    ) -> Self {
        let Opened {
            hosts,
            recovery,
            gone,
        } = opened;
        Self {
            id,
            raft,
            hosts,
            recovery,
            heard_within: config.election_max,
            log,
            seams: seams.clone(),
            proposals: Arc::new(Semaphore::new(config.proposals_max)),
            proposals_max: config.proposals_max,
            stop_reason: Mutex::new(None),
            gone: Mutex::new(Some(gone)),
        }
    }

    pub fn leadership(&self) -> Leadership {
        // Both from the same vote: the one in the server's metrics is that of the last write, which
        // may be an earlier one than the leader's.
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Leadership {
            leader: metrics.current_leader.map(NodeId),
            epoch: metrics.current_term,
        }
    }

    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.raft.voter_ids().map(NodeId).collect()
    }

    /// Why the replica does not run any more, if it does not.
    pub fn stopped(&self) -> Option<String> {
        if let Some(reason) = self.stop_reason.lock().clone() {
            return Some(reason);
        }
        let metrics = self.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        running.err().map(|fatal| fatal.to_string())
    }

    /// Stops the replica and waits until nothing acts on its behalf any more.
    pub async fn stop(&self, reason: &str) {
        self.stop_reason
            .lock()
            .get_or_insert_with(|| reason.to_owned());
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(group = %self.id, %error, "the replica's core had panicked");
        }
        let gone = self.gone.lock().take();
        if let Some(gone) = gone
            && self.seams.timeout(LAST_USER_TIMEOUT, gone).await.is_err()
        {
            tracing::error!(group = %self.id, "the replica's state is still in use");
        }
    }

    pub async fn propose(
        self: &Arc<Self>,
        entry: Bytes,
        wait: Duration,
    ) -> Result<Bytes, ProposeError> {
        let group = self.id;
        if entry.len() > ENTRY_BYTES_MAX {
            let (bytes, limit) = (entry.len(), ENTRY_BYTES_MAX);
            return Err(ProposeError::TooLarge {
                group,
                bytes,
                limit,
            });
        }
        if let Some(reason) = self.stopped() {
            return Err(ProposeError::Stopped { group, reason });
        }
        let Ok(permit) = Arc::clone(&self.proposals).try_acquire_owned() else {
            metrics::counter!("engram_proposals_refused_total").increment(1);
            return Err(ProposeError::Overloaded {
                group,
                limit: self.proposals_max,
            });
        };
        let (answer, answered) = oneshot::channel();
        let this = Arc::clone(self);
        // The permit stays with the proposal, not with the caller who may give up on it.
        self.seams.spawn("propose", async move {
            let written = this.raft.client_write(Command(entry)).await;
            drop(permit);
            drop(answer.send(written));
        });
        match self.seams.timeout(wait, answered).await {
            Ok(Ok(Ok(response))) => Ok(response.data.0),
            Ok(Ok(Err(error))) => Err(self.propose_error(error, wait)),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown {
                group,
                waited: wait,
            }),
        }
    }

    fn propose_error(&self, error: WriteError, waited: Duration) -> ProposeError {
        let group = self.id;
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ProposeError::NotLeader {
                    group,
                    hint: self.hint(&forward),
                }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::Unknown { group, waited }
            }
            // It was running when the entry was handed over: another leader may still commit it.
            RaftError::Fatal(_) => ProposeError::Unknown { group, waited },
            RaftError::APIError(
                error @ (ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_)),
            ) => ProposeError::Stopped {
                group,
                reason: error.to_string(),
            },
        }
    }

    /// The leader to ask instead. This node itself is none: it has just refused.
    fn hint(&self, forward: &ForwardToLeader<Types>) -> Option<NodeId> {
        forward
            .leader_id
            .filter(|leader| leader != self.raft.node_id())
            .map(NodeId)
    }

    pub async fn read_barrier(&self, wait: Duration) -> Result<(), BarrierError> {
        let group = self.id;
        if let Some(reason) = self.stopped() {
            return Err(BarrierError::Stopped { group, reason });
        }
        let barrier = async {
            let linearizer = tokio::select! {
                biased;
                confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex) => {
                    confirmed.map_err(|error| self.barrier_error(error, wait))?
                }
                // Whoever waits for a majority's word that it leads is not told when it no longer does.
                hint = self.leads_no_more() => return Err(BarrierError::NotLeader { group, hint }),
            };
            if planted!("barrier-without-wait") {
                return Ok(());
            }
            let ready = linearizer.await_ready(&self.raft).await;
            ready.map(drop).map_err(|fatal| BarrierError::Stopped {
                group,
                reason: fatal.to_string(),
            })
        };
        let passed = self.seams.timeout(wait, barrier).await;
        passed.unwrap_or(Err(BarrierError::NoQuorum {
            group,
            waited: wait,
        }))
    }

    fn barrier_error(
        &self,
        error: RaftError<Types, LinearizableReadError<Types>>,
        waited: Duration,
    ) -> BarrierError {
        let group = self.id;
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                BarrierError::NotLeader {
                    group,
                    hint: self.hint(&forward),
                }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                BarrierError::NoQuorum { group, waited }
            }
            RaftError::Fatal(fatal) => BarrierError::Stopped {
                group,
                reason: fatal.to_string(),
            },
        }
    }

    /// Ends when this node does not lead, with who does.
    async fn leads_no_more(&self) -> Option<NodeId> {
        let mut metrics = self.raft.metrics();
        loop {
            let leader = metrics.borrow_watched().current_leader;
            if leader != Some(*self.raft.node_id()) {
                return leader.map(NodeId);
            }
            if metrics.changed().await.is_err() {
                // It has stopped: the barrier itself says so.
                std::future::pending::<()>().await;
            }
        }
    }

    pub async fn wait_for_leader(&self, wait: Duration) -> Option<NodeId> {
        // The same source as of `leadership`: whoever asks one after the other must not spin.
        let mut metrics = self.raft.metrics();
        let known = async {
            loop {
                if let Some(leader) = metrics.borrow_watched().current_leader {
                    return NodeId(leader);
                }
                if metrics.changed().await.is_err() {
                    // The replica has stopped and will never know. The caller's pause still counts.
                    std::future::pending::<()>().await;
                }
            }
        };
        self.seams.timeout(wait, known).await.ok()
    }

    pub async fn add_member(
        &self,
        node: NodeId,
        address: String,
        voter: bool,
        wait: Duration,
    ) -> Result<(), ProposeError> {
        let adding = async {
            let metrics = self.raft.server_metrics();
            let membership = metrics.borrow_watched().membership_config.clone();
            if membership.get_node(&node.0).is_none() {
                let peer = PeerNode { address };
                self.retry_membership(wait, || self.raft.add_learner(node.0, peer.clone(), true))
                    .await?;
            }
            if voter && !membership.voter_ids().any(|id| id == node.0) {
                self.retry_membership(wait, || {
                    let change = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
                    self.raft.change_membership(change, false)
                })
                .await?;
            }
            Ok(())
        };
        let added = self.seams.timeout(wait, Box::pin(adding)).await;
        added.unwrap_or(Err(ProposeError::Unknown {
            group: self.id,
            waited: wait,
        }))
    }

    /// Tries a membership change until no other one is in its way.
    async fn retry_membership<T, F>(
        &self,
        wait: Duration,
        mut change: impl FnMut() -> F,
    ) -> Result<(), ProposeError>
    where
        F: Future<Output = Result<T, WriteError>>,
    {
        loop {
            match change().await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::UncommittedLeaderLog(_),
                ))) => self.seams.clock.sleep(MEMBERSHIP_PAUSE).await,
                Err(error) => return Err(self.propose_error(error, wait)),
            }
        }
    }

    /// Gives leadership, if it is here, to the voter that is furthest; returns when it has gone
    /// or `wait` has passed.
    pub async fn hand_over(&self, wait: Duration) {
        let local = *self.raft.node_id();
        let furthest = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            let others = metrics.replication.iter().flatten();
            let others = others.filter(|(id, _)| **id != local && voters.contains(id));
            // One that is not known to answer is better than nobody: a leader that has just begun
            // has heard of none.
            others
                .max_by_key(|(id, matched)| (self.answers(&metrics, **id), **matched))
                .map(|(id, _)| *id)
        };
        let Some(target) = furthest else { return };
        // Not moved in time: the others elect after their timeouts.
        self.transfer(NodeId(target), wait).await;
    }

    /// Gives leadership to `target`; whether it has gone before `wait` has passed.
    pub async fn transfer(&self, target: NodeId, wait: Duration) -> bool {
        let local = *self.raft.node_id();
        if self.raft.trigger().transfer_leader(target.0).await.is_err() {
            return false;
        }
        let mut metrics = self.raft.server_metrics();
        let moved = async {
            while metrics.borrow_watched().current_leader == Some(local) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        self.seams.timeout(wait, moved).await.is_ok()
    }
}
