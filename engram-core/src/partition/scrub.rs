//! Verification: digests noted at marks, and digests added up again from the disk.

use super::record::{MarkRecord, MemoryRecord};
use super::view::{PartitionView, ReadError};
use super::{Partition, digest, read};
use crate::edges;
use crate::index::{IndexPosition, TopologyDigest};
use crate::keys;
use crate::storage::{Family, StorageError};
use crate::types::{MarkId, Sequence};

/// Digests of a partition's state at one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    pub sequence: Sequence,
    pub memory: u128,
    pub edge: u128,
}

/// What a replica says at a verification mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkDigests {
    pub sequence: Sequence,
    pub log_hash: [u8; 32],
    pub memory: u128,
    pub edge: u128,
    pub position: IndexPosition,
    /// `None` while the jobs sealed before the mark still run, or when the generation is gone.
    pub topology: Option<TopologyDigest>,
}

impl Partition {
    /// What was noted at a mark; `None` when it was not applied here or is too old.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn marked(&self, mark: MarkId) -> Result<Option<MarkDigests>, ReadError> {
        let key = keys::mark(self.id, mark);
        let record: Option<MarkRecord> =
            read::record(&*self.storage, Family::Metadata, &key, "a mark")?;
        Ok(record.map(|record| MarkDigests {
            sequence: record.sequence,
            log_hash: record.log_hash,
            memory: record.memory_digest,
            edge: record.edge_digest,
            position: record.position,
            topology: self.index.digest_at(record.position),
        }))
    }

    /// Adds up the digests of a view from its records, each of which is read and checked. They
    /// equal [`PartitionView::digests`], or the disk does not hold what the log said.
    ///
    /// # Errors
    /// When a record is missing or cannot be read.
    pub fn recompute_digests(&self) -> Result<(Digests, PartitionView), ReadError> {
        let view = self.view();
        Ok((view.recompute_digests()?, view))
    }
}

impl PartitionView {
    /// The running digests at this view.
    #[must_use]
    pub fn digests(&self) -> Digests {
        Digests {
            sequence: self.state.sequence,
            memory: self.state.memory_digest,
            edge: self.state.edge_digest,
        }
    }

    fn recompute_digests(&self) -> Result<Digests, StorageError> {
        let (memory, edge) = (self.memory_digest()?, self.edge_digest()?);
        Ok(Digests {
            sequence: self.sequence(),
            memory,
            edge,
        })
    }

    fn memory_digest(&self) -> Result<u128, StorageError> {
        let range = keys::partition_records(self.partition);
        let mut sum = 0_u128;
        for entry in read::range(&*self.reader, Family::Memories, &range) {
            let (key, value) = entry?;
            let record: MemoryRecord =
                keys::decode(&value).map_err(|error| error.at("a memory record"))?;
            let mut embedding = Vec::new();
            if let Some(id) = record.vector {
                let vector = read::vector(&*self.reader, self.partition, id)?;
                embedding = vector.map(|record| record.components).unwrap_or_default();
            }
            sum = sum.wrapping_add(digest::of_record(&key, &value, &embedding));
        }
        Ok(sum)
    }

    fn edge_digest(&self) -> Result<u128, StorageError> {
        let mut sum = 0_u128;
        let edges = keys::all_edges(self.partition);
        for entry in read::range(&*self.reader, Family::Edges, &edges) {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            let record = read::decode_edge(&value)?;
            sum = sum.wrapping_add(edges::digest(&key, &record.state));
        }
        let removals = keys::all_source_removals(self.partition);
        for entry in read::range(&*self.reader, Family::Edges, &removals) {
            let (key, value) = entry?;
            sum = sum.wrapping_add(digest::of_record(&key, &value, &[]));
        }
        Ok(sum)
    }
}
