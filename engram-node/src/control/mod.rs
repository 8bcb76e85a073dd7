//! The control plane: nodes, spaces, slot ranges and placement, as one replicated state machine.

pub mod map;

pub use map::{ClusterId, ClusterMap, GroupRecord, NodeRecord, PartitionRecord, SpaceRecord};
