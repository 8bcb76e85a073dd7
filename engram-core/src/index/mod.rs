//! The vector index of a partition: HNSW as a pure function of the log.
//!
//! The partition's applier inserts and kills vectors in log order; workers of the node take
//! structural jobs (`next_job`, `run`, `commit`); queries search at any time. What must hold: two
//! indexes that were fed the same log have equal digests at the same [`IndexPosition`], whatever
//! kernel, thread count, timing of jobs, snapshot or rebuild lies between; an inserted vector is
//! found at once; no lock is held while linking or searching. docs/protocols/index.md tells how,
//! ADR 0004 fixes the bytes.
//!
//! One role per file: `generation` (the record that fixes slots), `level`, `graph` (one generation
//! in memory), `vectors` and `codes` (and how far they are apart), `beam` (the walk that queries and links
//! share), `scratch` (what walks need), `link` (what a job computes), `crew` (the threads that
//! compute it), `partition` (the generations of a partition together), `search`, `snapshot`,
//! `rebuild`.

mod beam;
mod chunked;
mod codes;
mod crew;
mod generation;
mod graph;
mod level;
mod link;
mod order;
mod partition;
mod rebuild;
mod scratch;
mod search;
mod snapshot;
#[cfg(test)]
mod tests;
mod vectors;

use std::error::Error;
use std::fmt;

pub use crew::{Alone, Crew};
pub use generation::{Generation, GenerationError};
pub use link::{Job, LinkedWindow};
pub use partition::PartitionIndex;
pub use rebuild::{RebuildError, Rebuilt, SnapshotUse};
pub use snapshot::SnapshotError;

use crate::kernel::Kernel;
use crate::types::{IndexParameters, MemoryHash, Metric, Sequence};
use serde::{Deserialize, Serialize};

/// Search effort (`ef`) of a query that names none: recall@10 of 0.98 and more on real text.
pub const DEFAULT_EFFORT: usize = 96;
/// Spaces with at most this many live vectors are scanned exactly: it is as fast, and complete. A
/// model has few vectors and is about walks.
pub const SCAN_LIVE_MAX: usize = if cfg!(feature = "model") { 8 } else { 1_000 };
/// A generation with fewer slots is never replaced.
pub const GENERATION_SLOTS_MIN: u32 = 1_024;
/// Share of dead slots, in percent, at which a generation is replaced.
pub const GENERATION_DEAD_PERCENT: u32 = 15;
/// Generations that an index holds at most: the one that serves, the one that takes over next, and
/// the newest. One that began between these is left out here: its digests are not known, no more.
pub const GENERATIONS_HELD_MAX: usize = 3;
/// Slots of the greatest window.
pub const WINDOW_SLOTS_MAX: u32 = 256;
/// With n slots sealed, the next window takes n / 16 of them, within its bounds.
pub const WINDOW_DIVISOR: u32 = 16;
/// Slots of one generation.
pub const SLOTS_MAX: u32 = 1 << 31;

/// A stored embedding, numbered from 0 per partition in the order of the log; never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VectorId(pub u64);

impl VectorId {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for VectorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a partition's index is made for, and the kernel that runs it here.
#[derive(Clone, Copy, Debug)]
pub struct IndexShape {
    pub parameters: IndexParameters,
    pub dimension: u32,
    pub metric: Metric,
    /// Changes nothing but the speed.
    pub kernel: Kernel,
}

impl IndexShape {
    /// With the fastest kernel of this CPU.
    #[must_use]
    pub fn new(parameters: IndexParameters, dimension: u32, metric: Metric) -> Self {
        Self {
            parameters,
            dimension,
            metric,
            kernel: Kernel::detect(),
        }
    }
}

/// A vector that the log adds. Its components are finite, as many as the space's dimension, and of
/// unit length under cosine (see [`crate::kernel::normalise`]).
#[derive(Clone, Copy, Debug)]
pub struct NewVector<'a> {
    pub id: VectorId,
    pub owner: MemoryHash,
    pub sequence: Sequence,
    pub components: &'a [f32],
}

/// A vector as storage keeps it, under its id.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredVector {
    pub owner: MemoryHash,
    pub sequence: Sequence,
    pub components: Vec<f32>,
}

/// Why storage did not give a vector or a death.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SourceError(Box<dyn Error + Send + Sync>);

impl SourceError {
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A found vector; smaller distances are nearer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    pub id: VectorId,
    pub distance: f32,
}

/// A point in an index's life: so many jobs of a generation. What a verification mark records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IndexPosition {
    pub generation: u64,
    pub jobs: u64,
}

/// Hash of a topology: a sum mod 2^128, little-endian, over its neighbour lists.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TopologyDigest(pub [u8; 16]);

impl fmt::Display for TopologyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TopologyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How an index is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexStatus {
    /// The generation that answers queries.
    pub serving: IndexPosition,
    /// The generation that the log started last, and the jobs done in it.
    pub newest: IndexPosition,
    /// Jobs that the log has sealed in the newest generation.
    pub newest_sealed: u64,
    /// Sealed jobs that are not done, over all generations here: what admission control watches.
    pub jobs_waiting: u64,
    /// Generations held, at most [`GENERATIONS_HELD_MAX`].
    pub generations: u32,
    /// Slots of the serving generation that every search scans.
    pub tail: u32,
    /// Live and dead slots of the serving generation.
    pub live: u32,
    pub dead: u32,
    /// Memory that vectors and links take.
    pub bytes: u64,
    /// The part of it that walks touch: all but full vectors beside codes.
    pub walked_bytes: u64,
}
