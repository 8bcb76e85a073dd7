//! A replica leaves its node, because the cluster map has none there any more.
//!
//! The map of a node may be behind: it says that the replica has left, while a newer one has it back,
//! and it votes and acknowledges. What must hold: no replica is deleted that counts. So a leader of the
//! group is asked when the replica has stopped: whatever it has acknowledged until then, it did as a
//! member that this leader knows of; and whoever adds it later finds nothing of it.

use engram_core::types::GroupId;

use super::damage::NoLeader;
use super::{Consensus, GroupSpec, Inner, StartError};

/// Why a replica has not left its node: to be tried again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaveError {
    #[error(transparent)]
    NoLeader(#[from] NoLeader),
    /// The cluster map here is behind.
    #[error("this node is still, or again, a member of group {group}")]
    Member { group: GroupId },
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Consensus {
    /// Stops and deletes this node's replica of a group that goes on without it, on the nodes that
    /// `spec` names.
    ///
    /// # Errors
    /// See [`LeaveError`]; the replica runs as before unless it could not be deleted or started.
    pub async fn leave_group(&self, spec: &GroupSpec) -> Result<(), LeaveError> {
        let group = spec.group;
        self.inner.check_left(spec).await?;
        if let Some(running) = self.inner.group(group) {
            running.stop("its replica leaves this node").await;
        }
        if let Err(error) = self.inner.check_left(spec).await {
            self.inner.groups.write().remove(&group);
            self.start_group(spec).await?;
            return Err(error);
        }
        Ok(self.remove_group(group).await?)
    }
}

impl Inner {
    /// Whether a leader of the group has proved that this node is no member.
    async fn check_left(&self, spec: &GroupSpec) -> Result<(), LeaveError> {
        let leader = self.find_leader(spec).await?;
        let mut members = leader.voters.iter().chain(&leader.learners);
        match members.any(|member| *member == self.config.node.0) {
            true => Err(LeaveError::Member { group: spec.group }),
            false => Ok(()),
        }
    }
}
