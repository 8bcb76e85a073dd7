//! What a group's replica looks like from outside, for status pages and for the simulation's
//! invariants. Nothing here changes anything or waits.

use engram_core::storage::{Family, Order, StorageError};
use engram_core::types::{GroupId, NodeId};
use openraft::async_runtime::WatchReceiver as _;

use super::codec::{VoteRecord, unversioned};
use super::group::Group;
use super::keys;
use super::log::Header;
use super::node::Consensus;

/// One replica as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub group: GroupId,
    /// How often the replica began anew in this process because its records were damaged.
    pub repairs: u64,
    /// How often what there was of it was deleted in this process: it had left and came back, or was
    /// repaired.
    pub deletions: u64,
    /// Of the vote that counts as written.
    pub term: u64,
    /// Whether this replica is primary of that term, as far as it knows.
    pub leads: bool,
    /// Index of the last entry in the log here; 0 when there is none.
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// Index up to which the log was compacted.
    pub purged_index: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Why the replica does not run any more, if it does not.
    pub stopped: Option<String>,
}

/// One entry in the log on disk, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntryStatus {
    pub index: u64,
    pub term: u64,
    /// Of this entry and all before it.
    pub chain: u32,
    /// Of this entry's bytes alone.
    pub content: u32,
}

impl Consensus {
    /// All replicas here, in the order of their groups.
    #[must_use]
    pub fn status(&self) -> Vec<GroupStatus> {
        let groups = self.inner().all_groups();
        groups
            .iter()
            .map(|group| GroupStatus {
                repairs: self.inner().damages.repairs(group.id),
                deletions: self.inner().deletions(group.id),
                ..group.status()
            })
            .collect()
    }

    /// The entries `first..end` of a group that the store has. Blocks while it reads.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn log_entries(
        &self,
        group: GroupId,
        first: u64,
        end: u64,
    ) -> Result<Vec<LogEntryStatus>, StorageError> {
        let (first, end) = (keys::record(group, first), keys::record(group, end));
        let records = self
            .inner()
            .storage()
            .scan(Family::Log, &first, &end, Order::Ascending);
        let described = records.map(|record| {
            let (_, bytes) = record?;
            let header = Header::read(&bytes).ok_or_else(|| StorageError::Corrupt {
                what: format!("a log record of group {group}"),
                reason: "too short or unknown".into(),
            })?;
            Ok(LogEntryStatus {
                index: header.id.index,
                term: header.id.term,
                chain: header.chain,
                content: Header::content_checksum(&bytes),
            })
        });
        described.collect()
    }

    /// The term of the vote that the store has of a group. Blocks while it reads.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stored_term(&self, group: GroupId) -> Result<Option<u64>, StorageError> {
        let stored = self
            .inner()
            .storage()
            .get(Family::Log, &keys::vote(group))?;
        let vote = stored.map(|bytes| unversioned::<VoteRecord>("vote", &bytes));
        Ok(vote.transpose()?.map(|vote| vote.term))
    }

    /// Gives leadership of `group`, if it is here, to the voter that is furthest; returns when it
    /// has gone or the wait for it is over.
    pub async fn hand_over(&self, group: GroupId) {
        if let Some(running) = self.inner().group(group) {
            running
                .hand_over(self.inner().config.hand_over_timeout)
                .await;
        }
    }
}

impl Group {
    fn status(&self) -> GroupStatus {
        let stopped = self.stopped();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let index = |id: Option<super::runtime::LogId>| id.map_or(0, |id| id.index);
        // The core's own vote may be ahead of the disk, and then a crash takes it back: nobody has
        // heard of it. Leader and term are of one vote, so that they belong together.
        let vote = self.log.saved_vote();
        let elects =
            |vote: &super::runtime::Vote| vote.committed && vote.leader_id.voted_for == metrics.id;
        GroupStatus {
            group: self.id,
            repairs: 0,
            deletions: 0,
            term: vote.map_or(0, |vote| vote.leader_id.term),
            // A replica that was started again has its vote, and does not lead by it.
            leads: stopped.is_none()
                && metrics.state.is_leader()
                && vote.as_ref().is_some_and(elects),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(metrics.local_committed),
            applied_index: index(metrics.last_applied),
            purged_index: index(metrics.purged),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            stopped,
        }
    }
}
