//! Consensus: Raft groups and nothing else. This is the only module that speaks openraft.
//!
//! Control, placement, routing and the services call [`Consensus`]; it calls the state machines
//! ([`Machine`]) that they registered. What must hold: an entry is acknowledged only after a
//! majority has fsynced it; entries are applied in order, once, with the applied position in the
//! same storage batch.

mod campaign;
mod codec;
mod compaction;
mod config;
mod damage;
mod group;
mod inspect;
mod keys;
mod leaving;
pub mod log;
mod membership;
mod network;
mod node;
mod receive;
mod recovery;
pub mod runtime;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod tokio_rt;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};

pub use compaction::{Compaction, LogMoment};
pub use config::ConsensusConfig;
pub use damage::{Damages, RepairError};
pub use inspect::{GroupStatus, LogEntryStatus};
pub use leaving::LeaveError;
pub use membership::{ChangeError, Members};
pub use node::Consensus;
use node::Inner;
pub use snapshot::TransferCounts;
pub use tokio_rt::seed_this_thread;

/// A Raft group as a node is told to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    pub group: GroupId,
    /// The first members and their peer addresses.
    pub voters: BTreeMap<NodeId, String>,
    /// Whether this node writes the first membership entry when the group is pristine here.
    pub bootstrap: bool,
    /// All nodes that may be members now, as far as the cluster map tells, and their peer addresses.
    pub hosts: BTreeMap<NodeId, String>,
    /// Those of them that may vote.
    pub electors: BTreeSet<NodeId>,
}

/// Who leads a group, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub epoch: u64,
}

/// Why a proposal was not answered with its result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not applied: ask the hinted node.
    #[error("node is not the leader of group {group}")]
    NotLeader {
        group: GroupId,
        hint: Option<NodeId>,
    },
    /// Not applied: this node has no replica of the group.
    #[error("no replica of group {group} here")]
    NoReplica { group: GroupId },
    /// It may yet be applied, or be lost.
    #[error("group {group} gave no answer in {waited:?}; the outcome is unknown")]
    Unknown { group: GroupId, waited: Duration },
    /// Not applied, and this replica is out of service.
    #[error("the replica of group {group} has stopped: {reason}")]
    Stopped { group: GroupId, reason: String },
    /// Not applied: too many proposals are in flight.
    #[error("group {group} has {limit} proposals in flight")]
    Overloaded { group: GroupId, limit: usize },
    /// Not applied: the entry is too big for any attempt to succeed.
    #[error("an entry of {bytes} bytes for group {group}; at most {limit} are allowed")]
    TooLarge {
        group: GroupId,
        bytes: usize,
        limit: usize,
    },
}

/// Why a read barrier could not be passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    #[error("node is not the leader of group {group}")]
    NotLeader {
        group: GroupId,
        hint: Option<NodeId>,
    },
    #[error("no replica of group {group} here")]
    NoReplica { group: GroupId },
    #[error("no majority of group {group} answered in {waited:?}")]
    NoQuorum { group: GroupId, waited: Duration },
    #[error("the replica of group {group} has stopped: {reason}")]
    Stopped { group: GroupId, reason: String },
}

/// Why a group could not be started or removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    #[error("group {group}: {reason}")]
    Storage { group: GroupId, reason: String },
    #[error("group {group}: {reason}")]
    Raft { group: GroupId, reason: String },
}

/// Gives the state machine of each group.
pub trait MachineFactory: Send + Sync + 'static {
    /// The group's machine, with the state that storage holds. Blocks; called once per start.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn open(&self, group: GroupId) -> Result<Arc<dyn Machine>, MachineError>;

    /// Deletes all state of the group's machine, open or not, by adding that to `batch`, which deletes
    /// what consensus keeps of the group, and writing it, synced: a replica has all of it or nothing.
    /// Blocks; called when no entry is being applied any more. Idempotent.
    ///
    /// # Errors
    /// When storage fails.
    fn destroy(
        &self,
        group: GroupId,
        batch: engram_core::storage::Batch,
    ) -> Result<(), MachineError>;
}

/// A replicated state machine: the control plane's, or a data group's partitions.
///
/// All methods block and are called off the async threads, one at a time per group.
pub trait Machine: Send + Sync + 'static {
    /// Applies one entry. The machine adds its writes to `batch`, which already holds the applied
    /// position, and writes it to storage with `Durability::Buffered` before it answers.
    ///
    /// # Errors
    /// When the entry cannot be understood or storage fails: the replica stops.
    fn apply(
        &self,
        entry: &[u8],
        batch: engram_core::storage::Batch,
    ) -> Result<Bytes, MachineError>;

    /// Writes a consistent copy of the state to `sink`; later entries do not change it.
    /// Called with the applied position fixed.
    ///
    /// # Errors
    /// When storage or the sink fails.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError>;

    /// Replaces the state by a snapshot's, `batch` (the applied position) in the last write.
    /// A crash in between leaves a state that is recognised as incomplete.
    ///
    /// # Errors
    /// When the snapshot is damaged or storage fails.
    fn install(
        &self,
        source: &mut dyn std::io::Read,
        batch: engram_core::storage::Batch,
    ) -> Result<(), MachineError>;
}

/// A frozen copy of a machine's state, streamed once.
pub trait SnapshotSource: Send {
    /// # Errors
    /// When storage or the sink fails.
    fn write_to(&mut self, sink: &mut dyn std::io::Write) -> Result<(), MachineError>;
}

/// Why a replica stops.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MachineError {
    #[error("log entry not understood: {0}")]
    NotUnderstood(String),
    #[error(transparent)]
    Storage(#[from] engram_core::storage::StorageError),
    #[error("snapshot: {0}")]
    Snapshot(String),
}
