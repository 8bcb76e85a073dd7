//! Placement: where replicas belong ([`planner`], pure), making it so on each node
//! ([`reconciler`]), and creating spaces as a call that waits until they can be used ([`spaces`]).

pub mod planner;
pub mod reconciler;
pub mod spaces;

use engram_core::types::{GroupId, PartitionId};

/// A partition as this node has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalState {
    /// This node leads its group.
    pub primary: bool,
    /// The Raft term.
    pub epoch: u64,
}

/// The partitions whose replicas run here.
pub trait LocalPartitions: Send + Sync {
    /// `None` when the partition does not exist here (yet).
    fn state(&self, partition: PartitionId) -> Option<LocalState>;
    /// The partitions that exist in a group.
    fn of_group(&self, group: GroupId) -> Vec<PartitionId>;
}
