//! The control plane: nodes, spaces, slot ranges and placement, as one replicated state machine.
//!
//! [`apply`] is the pure function of its log, [`machine`] runs it in the control group, and
//! [`plane`] is what the rest of the node calls. What must hold: a map that a node publishes
//! reflects a prefix of the control group's log.

pub mod apply;
pub mod command;
pub mod join;
pub mod machine;
pub mod map;
pub mod members;
pub mod plane;
#[cfg(test)]
pub mod samples;
pub mod service;
pub mod wire;

pub use command::{
    ControlCommand, ControlOutcome, ControlRefusal, ControlReply, NewMove, NewSpace,
    NodeDescription,
};
pub use machine::ControlMachine;
pub use map::{
    ClusterId, ClusterMap, GroupRecord, LocalFallback, MoveCause, MoveId, MoveRecord, NodeRecord,
    NodeState, PartitionRecord, SpaceRecord,
};
pub use plane::{ControlError, ControlPlane};
