//! Placement: where replicas belong ([`planner`], pure), who decides when they move ([`manager`] on
//! the control plane's leader), how a group comes to have other members ([`change`], pure, carried
//! out by [`mover`] on the group's leader), who leads ([`leaders`]), and making it so on each node
//! ([`reconciler`]).
//!
//! ```text
//! operator, dead node -> planner -> StartMove -> map -> mover of the group's leader
//!     -> add learners, catch up, joint change -> FinishMove -> map -> old replica goes (reconciler)
//! ```

pub mod change;
pub mod health;
pub mod leaders;
pub mod manager;
pub mod mover;
pub mod planner;
pub mod reconciler;

use engram_core::types::{GroupId, PartitionId};

/// The partitions whose replicas run here.
pub trait LocalPartitions: Send + Sync {
    /// The partitions that exist in a group.
    fn of_group(&self, group: GroupId) -> Vec<PartitionId>;
}
