//! Members of a group: who they are as the leader sees it, and the changes of them.
//!
//! Placement and the control plane call this on the group's leader. Each change is one attempt and
//! idempotent: whoever leads next looks at the members again and goes on from there. What must hold:
//! voters change through a joint configuration only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};

use super::Consensus;
use super::group::Group;
use super::runtime::{PeerNode, Types};

/// The members of a group, as its leader sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// While a change of voters is under way: those before and those after.
    pub voters: BTreeSet<NodeId>,
    /// Members without a vote.
    pub learners: BTreeSet<NodeId>,
    /// No change is under way: all that was changed is committed.
    pub settled: bool,
    /// Entries of the leader's log that each other member lacks; those that have not answered for
    /// longer than an election takes are not in it, whatever they had.
    pub behind: BTreeMap<NodeId, u64>,
}

/// Why members were not changed. The change may yet come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("this node does not lead group {group}")]
    NotLeader { group: GroupId },
    #[error("group {group} cannot change its members now: {reason}")]
    NotNow { group: GroupId, reason: String },
    #[error("group {group} did not answer in {waited:?}")]
    Timeout { group: GroupId, waited: Duration },
}

impl Consensus {
    /// The members of a group; `None` when this node does not lead it.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Option<Members> {
        self.inner.group(group)?.members()
    }

    /// Makes a node a member without a vote, if it is none. It is sent a snapshot and the log.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(
        &self,
        group: GroupId,
        node: NodeId,
        address: String,
        wait: Duration,
    ) -> Result<(), ChangeError> {
        let nodes = BTreeMap::from([(node.0, PeerNode { address })]);
        self.change(group, ChangeMembers::AddNodes(nodes), wait)
            .await
    }

    /// Makes exactly these members the voters; who loses its vote is no member any more. A change
    /// that was left half done is completed first.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_voters(
        &self,
        group: GroupId,
        voters: &BTreeSet<NodeId>,
        wait: Duration,
    ) -> Result<(), ChangeError> {
        let ids = voters.iter().map(|node| node.0).collect();
        self.change(group, ChangeMembers::ReplaceAllVoters(ids), wait)
            .await
    }

    /// Ends the membership of nodes without a vote.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn drop_learners(
        &self,
        group: GroupId,
        nodes: &BTreeSet<NodeId>,
        wait: Duration,
    ) -> Result<(), ChangeError> {
        let ids = nodes.iter().map(|node| node.0).collect();
        self.change(group, ChangeMembers::RemoveNodes(ids), wait)
            .await
    }

    /// Gives leadership to a voter; returns when it has gone, or `wait` has passed.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn transfer_to(
        &self,
        group: GroupId,
        to: NodeId,
        wait: Duration,
    ) -> Result<(), ChangeError> {
        let running = self.inner.group(group);
        let running = running.ok_or(ChangeError::NotLeader { group })?;
        if running.members().is_none() {
            return Err(ChangeError::NotLeader { group });
        }
        metrics::counter!("engram_leadership_transfers_total").increment(1);
        if running.transfer(to, wait).await {
            return Ok(());
        }
        Err(ChangeError::Timeout {
            group,
            waited: wait,
        })
    }

    /// Bytes of a snapshot of the group that were sent to the node so far; 0 when none is under way.
    #[must_use]
    pub fn snapshot_bytes_sent(&self, group: GroupId, node: NodeId) -> u64 {
        self.inner.snapshots.sent(group, node)
    }

    async fn change(
        &self,
        group: GroupId,
        change: ChangeMembers<u64, PeerNode>,
        wait: Duration,
    ) -> Result<(), ChangeError> {
        let running = self.inner.group(group);
        let running = running.ok_or(ChangeError::NotLeader { group })?;
        let changing = Box::pin(running.raft.change_membership(change, false));
        let changed = self.inner.seams.timeout(wait, changing).await;
        match changed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(change_error(group, error)),
            Err(_) => Err(ChangeError::Timeout {
                group,
                waited: wait,
            }),
        }
    }
}

fn change_error(group: GroupId, error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
    let not_now = |reason: String| ChangeError::NotNow { group, reason };
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
            ChangeError::NotLeader { group }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_)),
        )) => not_now(error.to_string()),
        error => not_now(error.to_string()),
    }
}

impl Group {
    /// `None` when the replica here does not lead.
    pub fn members(&self) -> Option<Members> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader || metrics.running_state.is_err() {
            return None;
        }
        let membership = &metrics.membership_config;
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let held = metrics.replication.iter().flatten();
        let held = held.filter(|(node, _)| self.answers(&metrics, **node));
        let behind = held.map(|(node, matched)| {
            let held = matched.as_ref().map_or(0, |id| id.index + 1);
            (NodeId(*node), last.saturating_sub(held))
        });
        Some(Members {
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.membership().learner_ids().map(NodeId).collect(),
            settled: metrics.committed_membership_config == metrics.membership_config
                && membership.membership().get_joint_config().len() == 1,
            behind: behind.collect(),
        })
    }

    /// Whether a member has answered this leader lately: one whose replica has stopped does not.
    pub(super) fn answers(&self, metrics: &RaftMetrics<Types>, node: u64) -> bool {
        let heard = metrics.heartbeat.as_ref().and_then(|it| it.get(&node));
        let heard = heard.and_then(Option::as_ref);
        heard.is_some_and(|at| at.elapsed() <= self.heard_within)
    }
}
