//! What the invariants see of a node: plain data, filled in by the world from outside the node's
//! tasks, at moments when no task of it runs.

use engram_core::types::{GroupId, NodeId, PartitionId, Sequence, SpaceId};

use crate::plan::Host;

/// One node at one moment; a node that is down has no observation.
#[derive(Clone, Debug)]
pub struct NodeObservation {
    pub host: Host,
    pub node: NodeId,
    /// Counts the process's starts.
    pub incarnation: u64,
    pub groups: Vec<GroupObservation>,
    pub partitions: Vec<PartitionObservation>,
}

/// One Raft group's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupObservation {
    pub group: GroupId,
    pub term: u64,
    /// Whether this replica believes itself primary of `term`.
    pub leads: bool,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
}

/// One partition's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionObservation {
    pub space: SpaceId,
    pub partition: PartitionId,
    pub group: GroupId,
    pub sequence: Sequence,
    /// Digests of memories, edges, requests and log at `sequence`, rendered.
    pub digests: String,
    /// (generation, job number, digest), when the topology is at rest at a job.
    pub topology: Option<(u64, u64, String)>,
    /// Digest of the overlay's context, to compare where everyone is in touch.
    pub overlay: String,
    /// Structural jobs that wait.
    pub jobs: usize,
}

/// A record of one group's log on one node, for log matching: read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogObservation {
    pub index: u64,
    pub term: u64,
    /// Checksum of the content.
    pub content: u32,
}
