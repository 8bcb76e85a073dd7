//! Edge changes beside the log, between the replicas of a partition (ADR 0003,
//! docs/protocols/edges.md): gossiped as hints, exchanged until both sides have the same, brought
//! into the log by the primary, and folded there once every replica has passed them.
//!
//! ```text
//! local change, rumour, answer, time -> protocol -> calls, rumours, proposals
//!                                      /    |    \
//!                                 peers  parts  frontier
//! ```
//!
//! [`protocol`] is a pure step: an event and the time in, effects out, over the replicas of this
//! node. [`runner`] joins it to connections, membership and the log; simulations drive it directly.
//! What must hold: whatever one replica accepted reaches all that can be dialled, whatever the
//! membership believes of them; joining twice changes nothing; nothing grows without a bound.

mod departed;
pub mod frontier;
mod handover;
mod measures;
pub mod parts;
pub mod peers;
pub mod protocol;
pub mod rumour;
pub mod runner;

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_core::partition::Partition;
use engram_core::types::{NodeId, PartitionId};

pub use handover::Handover;
pub use protocol::{Effect, Event, Protocol};
pub use rumour::Rumour;
pub use runner::{OverlayService, start};

/// A replica of this node, as the protocol sees it.
#[derive(Clone)]
pub struct Place {
    pub partition: Arc<Partition>,
    /// The other nodes that the cluster map gives the partition to, or is about to.
    pub others: Vec<NodeId>,
    /// Whether this node leads the partition's group.
    pub leads: bool,
}

/// The replicas of this node.
pub type Places = BTreeMap<PartitionId, Place>;

#[cfg(test)]
mod tests;
