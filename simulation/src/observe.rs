//! What the invariants see of a node: plain data, filled in by the world from outside the node's
//! tasks, at moments when no task of it runs.

use std::collections::BTreeMap;

use engram_core::types::{EdgeContext, GroupId, NodeId, PartitionId, Sequence, SpaceId};

use crate::plan::Host;

/// One node at one moment; a node that is down has no observation.
#[derive(Clone, Debug)]
pub struct NodeObservation {
    pub host: Host,
    pub node: NodeId,
    /// Counts the process's starts.
    pub incarnation: u64,
    /// Whether a fault has ever made records of its disk read wrong.
    pub disk_was_damaged: bool,
    /// Groups whose replica met damaged records and does not run because of it.
    pub damaged: Vec<GroupId>,
    /// What this node knows of the cluster map; none before it has joined.
    pub map: Option<MapObservation>,
    pub groups: Vec<GroupObservation>,
    pub partitions: Vec<PartitionObservation>,
}

/// A node's copy of the cluster map, as far as placement is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapObservation {
    /// Control commands that it reflects.
    pub index: u64,
    pub nodes: Vec<NodeId>,
    /// Where the replicas of each data group belong.
    pub groups: BTreeMap<GroupId, Vec<NodeId>>,
    /// Of dropped spaces, whose groups may not know it yet.
    pub dropping: Vec<PartitionId>,
    /// Data group, space, and the replicas that the space asks for.
    pub partitions: BTreeMap<PartitionId, (GroupId, SpaceId, u32)>,
}

/// One Raft group's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupObservation {
    pub group: GroupId,
    /// How often it began anew within the process since its records were damaged.
    pub repairs: u64,
    /// How often what there was of it was deleted within the process.
    pub deletions: u64,
    pub term: u64,
    /// The term of the vote on this replica's disk, when it can be read.
    pub stored_term: Option<u64>,
    /// Whether this replica believes itself primary of `term`.
    pub leads: bool,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Why this replica does not run any more, if it does not.
    pub stopped: Option<String>,
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
    /// What it says that it has seen: its sequence, and the dots of local changes.
    pub seen: EdgeContext,
    /// What its records on disk come to, where that was asked for and they can be read.
    pub stored: Option<StoredObservation>,
    /// Structural jobs that wait.
    pub jobs: usize,
    /// Something that was purged may still be here.
    pub purging: bool,
}

/// A partition's records, added up from the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObservation {
    /// Digests of memories and edges as the replica holds them in memory, and as its records are.
    pub held: (u128, u128),
    pub records: (u128, u128),
}

/// A record of one group's log on one node, for log matching: read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogObservation {
    pub index: u64,
    pub term: u64,
    /// Checksum of the content.
    pub content: u32,
    /// Term of the entry before, when the store still has it: two entries of one index and term
    /// must agree in it.
    pub previous_term: Option<u64>,
}
