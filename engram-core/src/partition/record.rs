//! The records of a partition that are neither edges nor generations. Field order is the on-disk
//! format (postcard behind `keys::encode`'s version byte).

use serde::{Deserialize, Serialize};

use crate::command::OpOutcome;
use crate::edges::Conflict;
use crate::index::{IndexPosition, VectorId};
use crate::types::{
    ClientId, EdgeContext, EdgeKey, Memory, MemoryHash, MemoryId, Sequence, SlotRange, SpaceConfig,
};

/// What is always there, rewritten by every command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    pub config: SpaceConfig,
    pub slots: SlotRange,
    pub sequence: Sequence,
    /// Chain over (previous hash, sequence, command bytes).
    pub log_hash: [u8; 32],
    /// Sum mod 2^128 over memories, of key, record and embedding bits.
    pub memory_digest: u128,
    /// Sum mod 2^128 over edge records and waiting removals.
    pub edge_digest: u128,
    pub memories: u64,
    /// Edges with evidence in the log.
    pub edges: u64,
    /// Edges of which some evidence was folded.
    pub folded_edges: u64,
    pub next_vector: u64,
    /// The greatest client that the request table ever dropped.
    pub dropped_client: Option<ClientId>,
}

/// A memory and the vector id of its embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryRecord {
    pub memory: Memory,
    pub vector: Option<VectorId>,
}

/// An embedding as the index compares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VectorRecord {
    pub inserted: Sequence,
    pub owner: MemoryHash,
    pub components: Vec<f32>,
}

/// A client of the request table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// Counters below it are too old to be told apart.
    pub floor: u64,
    pub last_used: Sequence,
    /// Counters whose outcomes are kept.
    pub kept: u32,
    /// Sum mod 2^128 over the records of the kept outcomes.
    pub outcomes: u128,
}

/// What a request's operations did, by their index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Of the command that last applied a part of the request.
    pub sequence: Sequence,
    pub outcomes: Vec<(u32, OpOutcome)>,
}

/// Digests at a verification mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRecord {
    pub sequence: Sequence,
    pub log_hash: [u8; 32],
    pub memory_digest: u128,
    pub edge_digest: u128,
    /// The newest generation, and the jobs of it that the log had sealed.
    pub position: IndexPosition,
}

/// A change of an edge that folding had made undecidable. It was applied add-wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictRecord {
    pub sequence: Sequence,
    pub edge: EdgeKey,
    pub to: MemoryId,
    pub conflict: Conflict,
}

/// Purges that the log has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeRecord {
    /// Ever.
    pub asked: u64,
    /// The command that asked for the last one.
    pub last: Sequence,
}

/// Contexts under which all out-edges of a memory were removed, while they name overlay dots that
/// the log has not adopted yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRemovals(pub Vec<EdgeContext>);
