//! What folding needs to know of a partition: which edges have enough to fold, and what folding
//! left undecided (ADR 0003). The primary asks; replicas fold when the log says so.

use super::read;
use super::record::ConflictRecord;
use super::view::PartitionView;
use crate::keys;
use crate::limits;
use crate::storage::{Family, Order, Record, StorageError};
use crate::types::{EdgeContext, EdgeKey, MemoryHash, MemoryId, PartitionId};

/// A part of the way through a partition's edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoldPage {
    /// Edges that are worth a place in a folding command, in canonical order.
    pub edges: Vec<EdgeKey>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<EdgeKey>,
}

/// How far one look goes.
#[derive(Clone, Copy, Debug)]
pub struct FoldScan {
    /// Records looked at.
    pub records_max: usize,
    /// An edge with fewer contributions to fold is left alone.
    pub contributions_min: usize,
}

/// A conflict and its number, counted from 1 in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedConflict {
    pub number: u64,
    pub record: ConflictRecord,
}

impl PartitionView {
    /// What the log covers here, without the overlay.
    #[must_use]
    pub fn log_context(&self) -> &EdgeContext {
        &self.log
    }

    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The id behind a hash; `None` when the memory is not there.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn id_of(&self, memory: MemoryHash) -> Result<Option<MemoryId>, StorageError> {
        Ok(self.record(memory)?.map(|record| record.memory.id))
    }

    /// Edges behind `after` with contributions that the frontier covers.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn foldable(
        &self,
        frontier: &EdgeContext,
        after: Option<&EdgeKey>,
        scan: FoldScan,
    ) -> Result<FoldPage, StorageError> {
        let mut range = keys::all_edges(self.partition);
        if let Some(after) = after {
            range = range.after(&keys::edge(self.partition, after));
        }
        let mut page = FoldPage::default();
        let records = read::range(&*self.reader, Family::Edges, &range);
        for (looked_at, entry) in records.enumerate() {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            let state = read::decode_edge(&value)?.state;
            let is_last = looked_at + 1 == scan.records_max
                || page.edges.len() + 1 == limits::EDGES_PER_FOLD_MAX;
            if is_last {
                page.next = Some(key.clone());
            }
            if state.foldable(frontier) >= scan.contributions_min {
                page.edges.push(key);
            }
            if is_last {
                break;
            }
        }
        Ok(page)
    }

    /// What folding left undecided, the newest first.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn conflicts(&self, limit: usize) -> Result<Vec<NumberedConflict>, StorageError> {
        let range = keys::conflicts(self.partition);
        let records = self.reader.scan(
            Family::Metadata,
            &range.start,
            &range.end,
            Order::Descending,
        );
        let decode = |entry: Result<Record, StorageError>| {
            let (key, value) = entry?;
            let number = keys::parse_number(&key).ok_or_else(|| read::bad_key("a conflict"))?;
            let record = keys::decode(&value).map_err(|error| error.at("a conflict"))?;
            Ok(NumberedConflict { number, record })
        };
        records.take(limit).map(decode).collect()
    }
}
