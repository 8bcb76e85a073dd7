//! What a backup keeps of a partition: memories and edges as readers see them, each as the operation
//! that restores it, in an order that the keys alone decide.
//!
//! The node's backup service walks one view from the start to the end. What must hold: all that is
//! walked is of the view's one sequence and overlay; restoring the operations into an empty space,
//! whatever its partitions, shows readers the same memories and the same edges, to the bit. Sequences,
//! dots, applied request ids and the graph of the index stay behind: they belong to the partition.

use super::view::{PartitionView, ReadError};
use crate::command::{EvidenceSums, Expected, Op, Remember, RestoreEdge, RestoreMemory};
use crate::edges::EdgeRecord;
use crate::keys;
use crate::partition::read;
use crate::storage::{Family, StorageError};
use crate::types::{EdgeKey, Embedding, MemoryHash, MemoryId};

use serde::{Deserialize, Serialize};

/// The place of a record in the order of a backup: all memories, then all edges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BackupKey {
    Memory(MemoryHash),
    Edge(EdgeKey),
}

/// One record of a backup.
#[derive(Clone, Debug, PartialEq)]
pub enum BackupRecord {
    /// The operation that restores it.
    Kept(Op),
    /// An edge whose source is no memory: nobody sees it, and without the source's id nobody can
    /// tell which partition would own it.
    WithoutSource,
}

impl BackupKey {
    /// A number that is evenly spread over keys and is a function of the key alone, for cutting a
    /// run of records where another run with the same records would be cut, too.
    #[must_use]
    pub fn spread(&self) -> u32 {
        let tail = |hash: &MemoryHash| {
            let mut four = [0; 4];
            four.copy_from_slice(&hash.0[12..]);
            u32::from_le_bytes(four)
        };
        match self {
            Self::Memory(hash) => tail(hash),
            Self::Edge(key) => tail(&key.from) ^ tail(&key.to).rotate_left(7),
        }
    }
}

impl PartitionView {
    /// Visits what a backup keeps, behind `after`, until `visit` answers false. True when it came to
    /// the end.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn back_up(
        &self,
        after: Option<&BackupKey>,
        visit: &mut dyn FnMut(BackupKey, BackupRecord) -> bool,
    ) -> Result<bool, ReadError> {
        let after_edge = match after {
            Some(BackupKey::Edge(key)) => Some(key),
            Some(BackupKey::Memory(hash)) => {
                if !self.back_up_memories(Some(*hash), visit)? {
                    return Ok(false);
                }
                None
            }
            None => {
                if !self.back_up_memories(None, visit)? {
                    return Ok(false);
                }
                None
            }
        };
        Ok(self.back_up_edges(after_edge, visit)?)
    }

    fn back_up_memories(
        &self,
        after: Option<MemoryHash>,
        visit: &mut dyn FnMut(BackupKey, BackupRecord) -> bool,
    ) -> Result<bool, StorageError> {
        let mut range = keys::partition_records(self.partition);
        if let Some(after) = after {
            range = range.after(&keys::memory(self.partition, after));
        }
        for entry in read::range(&*self.reader, Family::Memories, &range) {
            let (key, value) = entry?;
            let hash = keys::parse_hash(&key).ok_or_else(|| read::bad_key("a memory"))?;
            let record: super::record::MemoryRecord =
                keys::decode(&value).map_err(|error| error.at("a memory record"))?;
            let vector = record.vector;
            let vector = vector.map(|id| read::vector(&*self.reader, self.partition, id));
            let vector = vector.transpose()?.flatten();
            if record.vector.is_some() && vector.is_none() {
                return Err(StorageError::Corrupt {
                    what: format!("memory {}", record.memory.id),
                    reason: "its embedding is not there".into(),
                });
            }
            let embedding = vector
                .map(|vector| Embedding::from_log(vector.components))
                .transpose()
                .map_err(|error| StorageError::Corrupt {
                    what: format!("the embedding of memory {}", record.memory.id),
                    reason: error.to_string(),
                })?;
            let memory = record.memory;
            let op = Op::RestoreMemory(RestoreMemory {
                created: memory.created,
                updated: memory.updated,
                memory: Remember {
                    id: memory.id,
                    content: memory.content,
                    embedding,
                    embedding_model: memory.embedding_model,
                    labels: memory.labels,
                    properties: memory.properties,
                    confidence: memory.confidence,
                    edges: Vec::new(),
                    expected: Expected::Absent,
                },
            });
            if !visit(BackupKey::Memory(hash), BackupRecord::Kept(op)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn back_up_edges(
        &self,
        after: Option<&EdgeKey>,
        visit: &mut dyn FnMut(BackupKey, BackupRecord) -> bool,
    ) -> Result<bool, StorageError> {
        // Edges come by source: one look for all of a memory's.
        let mut source: Option<(MemoryHash, Option<MemoryId>)> = None;
        let mut ended = true;
        self.walk_edges(after, |key, record| {
            let known = source.take().filter(|(hash, _)| *hash == key.from);
            let (_, from) = match known {
                Some(known) => source.insert(known),
                None => source.insert((key.from, self.id_of(key.from)?)),
            };
            if let Some(record) = self.edge_record(&key, record, from.as_ref())? {
                ended = visit(BackupKey::Edge(key), record);
            }
            Ok(ended)
        })?;
        Ok(ended)
    }

    /// `None`: nothing is left of the edge but removals. Edges towards absent memories are kept:
    /// they are seen again when the memory comes back.
    fn edge_record(
        &self,
        key: &EdgeKey,
        record: Option<EdgeRecord>,
        from: Option<&MemoryId>,
    ) -> Result<Option<BackupRecord>, StorageError> {
        let overlay = self.overlay.of_edge(key);
        let removals = read::source_removals(&*self.reader, self.partition, key.from)?;
        let value = self.value(key, record.as_ref(), removals.as_ref())?;
        let to = record
            .map(|record| record.to)
            .or_else(|| Some(overlay.first()?.to.clone()));
        let (true, Some(to)) = (value.is_live() && value.contributions > 0, to) else {
            return Ok(None);
        };
        let Some(from) = from else {
            return Ok(Some(BackupRecord::WithoutSource));
        };
        Ok(Some(BackupRecord::Kept(Op::RestoreEdge(RestoreEdge {
            from: from.clone(),
            to,
            relation: key.relation.clone(),
            evidence: EvidenceSums {
                sum_wc: value.sum_wc,
                sum_c: value.sum_c,
                count: value.contributions,
                newest: value.newest,
            },
        }))))
    }
}
