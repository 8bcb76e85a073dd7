//! Placement: where replicas belong ([`planner`], pure), and making it so on each node
//! ([`reconciler`]).

pub mod planner;
pub mod reconciler;

use engram_core::types::{GroupId, PartitionId};

/// The partitions whose replicas run here.
pub trait LocalPartitions: Send + Sync {
    /// The partitions that exist in a group.
    fn of_group(&self, group: GroupId) -> Vec<PartitionId>;
}
