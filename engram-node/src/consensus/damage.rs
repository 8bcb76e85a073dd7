//! Replicas whose records are damaged, and their repair: log and state are deleted, and the replica
//! begins anew as one whose log has lost its end ([`super::recovery`]).
//!
//! What must hold: nothing is deleted before another member has proved that it leads the group with a
//! majority, since that majority has all that was ever committed, and this replica, which is stopped, is
//! not part of it. The vote stays, so that nobody gets a second one in the same term; and the mark becomes
//! the end of that leader's log, so that the replica votes for nobody before it has again what it may once
//! have acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::storage::{Batch, Family, StorageError};
use engram_core::types::GroupId;
use engram_proto::peer::RaftLogEnd;
use engram_proto::peer::raft_message::Body;
use parking_lot::Mutex;

use super::log::Mark;
use super::{Consensus, GroupSpec, Inner, StartError, keys, state, wire};

/// How long a member may take to prove that it leads.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// The replicas of a node that met damaged records. Clones share it.
#[derive(Clone, Default)]
pub struct Damages {
    groups: Arc<Mutex<BTreeMap<GroupId, String>>>,
    /// How often each began anew.
    repairs: Arc<Mutex<BTreeMap<GroupId, u64>>>,
}

impl Damages {
    /// Notes a failure, if it is damage. A failed disk or an entry of a newer version is none.
    pub fn note(&self, group: GroupId, error: &StorageError) {
        if matches!(error, StorageError::Corrupt { .. }) {
            let mut groups = self.groups.lock();
            groups.entry(group).or_insert_with(|| error.to_string());
        }
    }

    /// The group runs again.
    fn repaired(&self, group: GroupId) {
        *self.repairs.lock().entry(group).or_default() += 1;
        self.groups.lock().remove(&group);
    }

    pub fn repairs(&self, group: GroupId) -> u64 {
        self.repairs.lock().get(&group).copied().unwrap_or(0)
    }

    fn list(&self) -> Vec<GroupId> {
        self.groups.lock().keys().copied().collect()
    }
}

/// Nobody is known to lead a group: to be tried again.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no other member has proved that it leads group {group}")]
pub struct NoLeader {
    group: GroupId,
}

/// Why a replica was not repaired: to be tried again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    NoLeader(#[from] NoLeader),
    #[error("what is left of group {group} cannot be told: {reason}")]
    Unreadable { group: GroupId, reason: String },
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Consensus {
    /// Groups whose replica here met damaged records, and does not run because of it.
    #[must_use]
    pub fn damaged(&self) -> Vec<GroupId> {
        let inner = &self.inner;
        let stopped = |group: &GroupId| match inner.group(*group) {
            Some(running) => running.stopped().is_some(),
            None => true,
        };
        inner.damages.list().into_iter().filter(stopped).collect()
    }

    /// Deletes what a damaged replica has, but for its vote, and starts it empty: the others bring it back
    /// to where they are.
    ///
    /// # Errors
    /// See [`RepairError`]; nothing was deleted when no leader was found.
    pub async fn repair_group(&self, spec: &GroupSpec) -> Result<(), RepairError> {
        let group = spec.group;
        let inner = &self.inner;
        if let Some(running) = inner.group(group) {
            running.stop("its records are damaged").await;
        }
        // Only now: whatever this replica has acknowledged, the leader has by the time it is asked.
        let leader = inner.find_leader(spec).await?;
        let led = leader.last.map(|id| Mark::from(wire::read_log_id(id)));
        {
            let _admin = inner.admin.lock().await;
            let running = inner.groups.write().remove(&group);
            if let Some(running) = running {
                running.stop("its records are damaged").await;
            }
            inner.wipe(group, led).await?;
            inner.note_deletion(group);
            inner.failed.lock().remove(&group);
        }
        metrics::counter!("engram_replicas_repaired_total").increment(1);
        tracing::warn!(%group, "a damaged replica begins anew: the others bring it back");
        let spec = GroupSpec {
            bootstrap: false,
            ..spec.clone()
        };
        self.start_group(&spec).await?;
        // Until then it is still known as damaged, and is neither here nor gone.
        inner.damages.repaired(group);
        Ok(())
    }
}

impl Inner {
    /// Asks the other members until one has proved that it leads: what it said of its log, which it had
    /// read before.
    pub(super) async fn find_leader(&self, spec: &GroupSpec) -> Result<RaftLogEnd, NoLeader> {
        let group = spec.group;
        for (node, address) in &spec.hosts {
            if *node == self.config.node {
                continue;
            }
            self.links.peers().suggest_address(*node, address);
            let asked = Body::Recovering(RaftLogEnd::default());
            let answer = self.links.to(*node).call(group, asked, PROOF_TIMEOUT).await;
            if let Ok(Body::RecoveringAnswer(end)) = answer
                && end.leads
            {
                return Ok(end);
            }
        }
        Err(NoLeader { group })
    }

    /// Deletes log, state and snapshots of a stopped group; its vote stays. `mark` is where its log has
    /// to come before it is a replica like any other: what it says of itself is no proof any more.
    async fn wipe(&self, group: GroupId, mark: Option<Mark>) -> Result<(), RepairError> {
        let unreadable = |reason: String| RepairError::Unreadable { group, reason };
        let (machines, snapshots) = (Arc::clone(&self.machines), self.snapshots.clone());
        let (storage, marks) = (Arc::clone(&self.storage), self.writer.marks.clone());
        let work = move || {
            // Who cannot tell whom it voted for must not come back under the same name.
            let vote = storage.get(Family::Log, &keys::vote(group));
            let vote = vote.map_err(|error| error.to_string())?;
            marks.begin_anew(group, mark);
            marks.save().map_err(|error| error.to_string())?;
            let mut batch = Batch::new();
            state::forget(group, &snapshots, &mut batch).map_err(|error| error.to_string())?;
            if let Some(vote) = vote {
                batch.put(Family::Log, keys::vote(group), vote);
            }
            let destroyed = machines.destroy(group, batch);
            destroyed.map_err(|error| error.to_string())
        };
        // What the stopped group had queued, a vote perhaps, is on disk before.
        let settled = self.writer.write(Batch::new()).await;
        settled.map_err(|poisoned| unreadable(poisoned.to_string()))?;
        self.seams.blocking(work).await.map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_damage_counts_as_damage() {
        let damages = Damages::default();
        let write = StorageError::Write {
            reason: "no space".into(),
        };
        damages.note(GroupId(1), &write);
        assert!(damages.list().is_empty());
        let corrupt = StorageError::Corrupt {
            what: "a record".into(),
            reason: "a bit".into(),
        };
        damages.note(GroupId(1), &corrupt);
        assert_eq!(damages.list(), [GroupId(1)]);
        assert_eq!(damages.repairs(GroupId(1)), 0);
        damages.repaired(GroupId(1));
        assert!(damages.list().is_empty());
        assert_eq!(damages.repairs(GroupId(1)), 1);
    }
}
