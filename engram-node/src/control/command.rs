//! Commands of the control plane and what applying them answers, as types.
//!
//! A proposer builds a [`ControlCommand`]; [`super::wire`] gives it its bytes; [`super::apply`]
//! applies it. What must hold: everything random or timed is in the command, so that every replica
//! arrives at the same map.

use engram_core::types::{GroupId, MarkId, NodeId, PartitionId, SpaceConfig, SpaceId};

use super::map::{ClusterId, LocalFallback, MoveCause, MoveId, NodeState};

/// A change of the cluster map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// The first command of a cluster's life. Its founder becomes node 1.
    InitCluster {
        cluster: ClusterId,
        founder: NodeDescription,
    },
    /// A node joins, or says where it can be reached now. Idempotent by identity.
    RegisterNode(NodeDescription),
    CreateSpace(NewSpace),
    /// The space is there no more. Its name stays taken until all its partitions are known to be
    /// dropped.
    DropSpace {
        name: String,
    },
    /// Proposed by the leader of the partition's group once the group's own log has dropped it: from
    /// then on no node can serve it as if it were there, however old its map is.
    FinishDrop {
        partition: PartitionId,
    },
    /// A fresh verification mark.
    AllocateMark,
    SetNodeState {
        node: NodeId,
        state: NodeState,
    },
    /// A leaving node without replicas is no longer part of the cluster.
    RemoveNode {
        node: NodeId,
    },
    StartMove(NewMove),
    /// The replicas go back to where they were.
    CancelMove {
        group: GroupId,
        id: MoveId,
    },
    /// Proposed by the group's leader once the group has the members that the move wanted, for
    /// certain.
    FinishMove {
        group: GroupId,
        id: MoveId,
    },
    /// Which replica of a group is to lead.
    PreferPrimary {
        group: GroupId,
        node: NodeId,
    },
    AlterSpace {
        name: String,
        replicas: u32,
    },
}

/// A move that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMove {
    pub group: GroupId,
    /// Where the planner believed the replicas to be.
    pub expected: Vec<NodeId>,
    /// Where they are to be; the first is the preferred primary.
    pub goal: Vec<NodeId>,
    pub cause: MoveCause,
    /// Milliseconds since the Unix epoch, for people.
    pub now_millis: u64,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescription {
    /// Random, durable in the node's data directory.
    pub identity: [u8; 16],
    /// `host:port`, as others reach it.
    pub client_address: String,
    pub peer_address: String,
    pub http_address: String,
    pub zone: String,
    pub version: String,
}

/// A space that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSpace {
    /// Its space id is ignored: the state machine allocates one.
    pub config: SpaceConfig,
    pub replicas: u32,
    /// The nodes of each partition, in slot order; the first node is the preferred primary.
    pub placement: Vec<Vec<NodeId>>,
    pub local_fallback: LocalFallback,
}

/// What an applied command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlReply {
    /// Commands that the map reflects after this one.
    pub index: u64,
    pub outcome: Result<ControlOutcome, ControlRefusal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlOutcome {
    NodeRegistered {
        node: NodeId,
        /// It had been registered before.
        known: bool,
    },
    SpaceCreated {
        space: SpaceId,
        /// It was there before, with the same configuration.
        existed: bool,
    },
    SpaceDropped {
        space: SpaceId,
    },
    MarkAllocated {
        mark: MarkId,
    },
    MoveStarted {
        id: MoveId,
    },
    /// Whatever was asked for holds now.
    Done,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlRefusal {
    #[error("the cluster is not founded yet")]
    NotInitialized,
    #[error("this is another cluster: {reason}")]
    OtherCluster { reason: String },
    #[error("a space of this name exists with another configuration: {reason}")]
    SpaceExistsDifferent { reason: String },
    #[error("no space is named {name:?}")]
    UnknownSpace { name: String },
    /// Until all replicas know.
    #[error("a space named {name:?} is still being dropped")]
    SpaceBeingDropped { name: String },
    #[error("{reason}")]
    InvalidConfig { reason: String },
    #[error("the placement is not possible: {reason}")]
    InvalidPlacement { reason: String },
    #[error("{reason}")]
    InvalidNode { reason: String },
    #[error("{reason}")]
    Limit { reason: String },
    #[error("node {node} is not part of the cluster")]
    UnknownNode { node: NodeId },
    /// Another change came first: plan again.
    #[error("{reason}")]
    Conflict { reason: String },
    #[error("{reason}")]
    NotPossible { reason: String },
}
