//! What a partition's log says, and what applying it answers. The bytes are fixed in
//! `engram-proto` (`engram/log/v1/log.proto`, ADR 0001); this is the same content as types.
//!
//! A command is proposed by the group's leader and applied by every replica. Everything that
//! applying needs is in it: no replica looks at a clock or draws a random number.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{
    ClientId, EdgeContext, EdgeKey, Embedding, Hlc, MarkId, MemoryId, OverlayDot, PropertyValue,
    Relation, RequestId, Sequence, SlotRange, SpaceConfig, Unit,
};

/// One entry of a partition's log. Each applied command, whatever its outcome, takes one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum PartitionCommand {
    /// The first command of every partition.
    Create {
        config: SpaceConfig,
        slots: SlotRange,
    },
    /// A client's request, or the part of it that falls to this partition.
    Write(Write),
    /// Overlay deltas that the primary brings into the log.
    Adopt { deltas: Vec<OverlayDelta> },
    /// Contributions of these edges that every replica has passed become sums. The frontier is the
    /// log's context at a sequence that all of them have reached.
    Fold {
        frontier: EdgeContext,
        edges: Vec<EdgeKey>,
    },
    /// Every replica notes its digests at this point, under this mark.
    Mark { mark: MarkId },
    /// If purges wait, a generation of the index begins without what they are about.
    Renew,
    /// The last command: the partition and all its state go away.
    Drop,
}

/// Operations of one client request. Each applies or is rejected by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub client: ClientId,
    pub counter: u64,
    /// Whether this is a second or later attempt of the same request.
    pub retried: bool,
    /// The proposer's hybrid logical clock, clamped to its allowed drift.
    pub stamp: Hlc,
    /// Each with its index within the client's request, ascending.
    pub ops: Vec<(u32, Op)>,
}

impl Write {
    #[must_use]
    pub fn request_id(&self, index: u32) -> RequestId {
        RequestId {
            client: self.client,
            counter: self.counter,
            index,
        }
    }
}

/// One operation of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Remember(Remember),
    Forget(Forget),
    Associate(Associate),
    Dissociate(Dissociate),
    RestoreMemory(RestoreMemory),
    RestoreEdge(RestoreEdge),
}

/// Stores a memory, replacing the one with the same id, and adds its out-edges' evidence in the
/// same atomic step.
#[derive(Clone, Debug, PartialEq)]
pub struct Remember {
    pub id: MemoryId,
    pub content: String,
    pub embedding: Option<Embedding>,
    pub embedding_model: String,
    pub labels: BTreeSet<String>,
    pub properties: BTreeMap<String, PropertyValue>,
    pub confidence: Unit,
    pub edges: Vec<OutEdge>,
    pub expected: Expected,
}

/// An out-edge that travels with its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct OutEdge {
    pub to: MemoryId,
    pub relation: Relation,
    pub weight: Unit,
    pub confidence: Unit,
}

/// The compare of compare-and-set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    #[default]
    Anything,
    Absent,
    Version(Sequence),
}

/// Removes a memory and, under the proposer's context, its out-edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Forget {
    pub id: MemoryId,
    pub expected: Expected,
    pub context: EdgeContext,
    /// Its embedding is to leave the index, too, with the next generation.
    pub purge: bool,
}

/// Adds one observation to an edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Associate {
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    pub weight: Unit,
    pub confidence: Unit,
}

/// Removes what the issuer's context covers of one edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Dissociate {
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    pub context: EdgeContext,
}

/// Stores a memory of a backup as it was then. One that is there already is left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreMemory {
    /// Its embedding has the bits that were stored: it is not normalised again. It has no edges,
    /// and expects that there is no such memory.
    pub memory: Remember,
    pub created: Hlc,
    pub updated: Hlc,
}

/// Stores the evidence of an edge of a backup, as sums. An edge that is there already is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreEdge {
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    pub evidence: EvidenceSums,
}

/// The evidence of an edge without its parts: what a reader sees of it, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceSums {
    /// Sum of weight x confidence, in multiples of 2^-32; never above `sum_c`.
    pub sum_wc: u128,
    pub sum_c: u128,
    /// Contributions counted, at least 1.
    pub count: u64,
    pub newest: Hlc,
}

impl EvidenceSums {
    /// Whether any number of contributions has these sums.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let most = u128::from(self.count) << 32;
        self.count > 0 && self.sum_wc <= self.sum_c && self.sum_c <= most
    }
}

/// One change to an edge that a replica accepted on its own (ADR 0003).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OverlayDelta {
    pub dot: OverlayDot,
    pub request: RequestId,
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    pub stamp: Hlc,
    /// Whether this is a second or later attempt of the same request.
    pub retried: bool,
    pub change: EdgeChange,
}

/// What a delta does to its edge.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum EdgeChange {
    Contribute { weight: Unit, confidence: Unit },
    Remove { context: EdgeContext },
}

/// The answer to an applied command.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The partition's sequence after the command.
    pub sequence: Sequence,
    /// One per operation of a [`Write`], by its index; empty for other commands.
    pub outcomes: Vec<(u32, OpOutcome)>,
}

/// What one operation did.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum OpOutcome {
    Remembered {
        version: Sequence,
        created: bool,
    },
    Forgotten {
        existed: bool,
    },
    /// `Associate` and `Dissociate`.
    EdgeChanged,
    Rejected(Rejection),
    /// `RestoreMemory` and `RestoreEdge`. False: there was one already, and it was left alone.
    Restored {
        fresh: bool,
    },
}

/// Why an operation changed nothing. Only what depends on state is decided at apply; the form of
/// a request is checked before it is proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum Rejection {
    #[error("expected {expected}, but the memory {found}")]
    VersionMismatch { expected: String, found: String },
    /// The request id is below what this partition still remembers: the outcome is unknown.
    #[error(
        "the request id is older than the partition remembers; whether it was applied is unknown"
    )]
    RequestTooOld,
    #[error("the memory's hash slot does not belong to this partition")]
    NotInPartition,
    #[error("the embedding has {actual} components, the space has dimension {expected}")]
    WrongDimension { expected: u32, actual: u32 },
    #[error("the id collides with that of another memory under BLAKE3-128")]
    HashCollision,
}
