//! The storage seam: an ordered key-value store with five families, atomic batches and views.
//!
//! `rocks` is the real one; `memory` serves tests and the simulation and can lose what was not
//! synced. All methods block; callers keep them off async threads. What must hold: a batch is
//! applied whole or not at all, also across a crash; after a crash a prefix of the batches in the
//! order of their writing is there, at least up to the last one written with [`Durability::Sync`].

mod batch;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocks;

use std::sync::Arc;

pub use batch::{Batch, BatchOp};
pub use memory::{Damage, MemoryStorage};
#[cfg(feature = "rocksdb")]
pub use rocks::{RocksOptions, RocksStorage};

/// Column families. The names are part of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Raft log entries, votes and purge marks of all groups.
    Log,
    Memories,
    Vectors,
    /// Edges, their reverse index and overlays.
    Edges,
    /// Everything small: node identity, group and partition state, request ids, deaths, marks.
    Metadata,
}

impl Family {
    pub const ALL: [Self; 5] = [
        Self::Log,
        Self::Memories,
        Self::Vectors,
        Self::Edges,
        Self::Metadata,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Memories => "memories",
            Self::Vectors => "vectors",
            Self::Edges => "edges",
            Self::Metadata => "metadata",
        }
    }
}

/// What a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The operating system has it; a crash of the machine may lose it (never out of order).
    Buffered,
    /// The disk has it, and with it every earlier write.
    Sync,
}

/// Why storage failed. After any write error the store refuses all further writes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot open the store at {path}: {reason}")]
    Open { path: String, reason: String },
    #[error("reading {family}: {reason}")]
    Read {
        family: &'static str,
        reason: String,
    },
    #[error("writing failed, the store is now read-only: {reason}")]
    Write { reason: String },
    #[error("the store refuses writes because an earlier one failed")]
    Poisoned,
    #[error("{what} is corrupt: {reason}")]
    Corrupt { what: String, reason: String },
}

/// A key and its value.
pub type Record = (Box<[u8]>, Box<[u8]>);
/// Records in key order, ascending or descending.
pub type Records<'a> = Box<dyn Iterator<Item = Result<Record, StorageError>> + 'a>;

/// Direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Reading, from the newest state or from a view of it.
pub trait Reader: Send + Sync {
    /// # Errors
    /// When the store cannot read or finds its data damaged.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// All records with `start <= key < end`.
    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a>;
}

/// A store. The newest state is read through it, a fixed one through [`Storage::view`].
pub trait Storage: Reader + 'static {
    /// The state after all writes that returned so far; later writes do not change it.
    fn view(&self) -> Arc<dyn Reader>;

    /// Applies a batch whole.
    ///
    /// # Errors
    /// [`StorageError::Write`], after which the store is poisoned: nothing is known of the batch.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError>;

    /// Bytes on disk, for metrics and placement.
    fn bytes_on_disk(&self) -> u64;
}

/// The smallest key greater than every key that begins with `prefix`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Every byte was 0xff: no real prefix here is, but the answer must still be above all keys.
    vec![u8::MAX; prefix.len() + 64]
}

#[cfg(test)]
mod tests;
