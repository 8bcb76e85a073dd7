//! One state of a partition as readers see it: a view of the storage and the overlay that goes with
//! it. Every answer states its sequence.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Partition;
use super::overlay::OverlayView;
use super::read;
use super::record::{MemoryRecord, SourceRemovals, StateRecord};
use crate::command::EdgeChange;
use crate::edges::{EdgeRecord, EdgeValue, visible};
use crate::keys;
use crate::storage::{Family, Reader, StorageError};
use crate::types::{
    Dot, EdgeContext, EdgeKey, Hlc, Memory, MemoryHash, MemoryId, PartitionId, Relation, Sequence,
    Unit,
};

/// Why a read failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the query has {actual} components, the space has dimension {expected}")]
    WrongDimension { expected: u32, actual: usize },
    #[error("component {position} of the query is not a finite number")]
    NotFinite { position: usize },
    #[error("{what} is {actual}, at most {max} is allowed")]
    TooLarge {
        what: &'static str,
        actual: usize,
        max: usize,
    },
}

/// One state of a partition.
#[derive(Clone)]
pub struct PartitionView {
    pub(super) partition: PartitionId,
    pub(super) reader: Arc<dyn Reader>,
    pub(super) state: Arc<StateRecord>,
    /// What the log covers: its sequence and the overlay dots that it has adopted.
    pub(super) log: Arc<EdgeContext>,
    pub(super) overlay: OverlayView,
}

/// A memory and, where asked for, its embedding as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundMemory {
    pub memory: Memory,
    pub embedding: Option<Vec<f32>>,
}

/// The answer to a read by id.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub sequence: Sequence,
    /// In the order of the ids asked for.
    pub memories: Vec<Option<FoundMemory>>,
}

/// A visible edge.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundEdge {
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    /// After decay.
    pub weight: Unit,
    /// Sum of the confidences of the evidence.
    pub confidence: f64,
    /// Pieces of evidence.
    pub contributions: u64,
    pub newest: Hlc,
}

/// Which end of an edge is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Edges out of the memory.
    Out,
    /// Edges into the memory from memories of this partition.
    In,
}

/// What [`PartitionView::neighbors`] is asked.
#[derive(Clone, Debug)]
pub struct NeighborsQuery<'a> {
    pub id: &'a MemoryId,
    pub direction: Direction,
    /// Empty takes all.
    pub relations: &'a BTreeSet<Relation>,
    /// The time at which decay is read.
    pub now_millis: u64,
    pub limit: usize,
}

/// Edges of a memory, the heaviest first, equal ones in canonical order.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbors {
    pub sequence: Sequence,
    pub edges: Vec<FoundEdge>,
    /// Visible edges beyond the limit.
    pub left_out: usize,
}

/// A page of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPage {
    pub sequence: Sequence,
    pub memories: Vec<FoundMemory>,
    /// Where the next page goes on; `None` at the end.
    pub next: Option<MemoryHash>,
}

/// A page of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgePage {
    pub sequence: Sequence,
    pub edges: Vec<FoundEdge>,
    /// Where the next page goes on; `None` at the end.
    pub next: Option<EdgeKey>,
}

impl PartitionView {
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.state.sequence
    }

    /// What this view shows: the log's sequence, and overlay dots in the log or beside it.
    #[must_use]
    pub fn context(&self) -> EdgeContext {
        EdgeContext {
            sequence: self.sequence(),
            overlay: self.overlay.seen().clone(),
        }
    }

    /// # Errors
    /// When storage cannot be read.
    pub fn get(&self, ids: &[MemoryId], with_embedding: bool) -> Result<Found, ReadError> {
        let one = |id: &MemoryId| -> Result<Option<FoundMemory>, ReadError> {
            let record = self
                .record(id.hash())?
                .filter(|record| record.memory.id == *id);
            Ok(record
                .map(|record| self.found(record, with_embedding))
                .transpose()?)
        };
        let memories = ids.iter().map(one).collect::<Result<_, _>>()?;
        Ok(Found {
            sequence: self.sequence(),
            memories,
        })
    }

    /// The embedding of a memory as it is compared: of unit length under cosine.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn embedding(&self, id: &MemoryId) -> Result<Option<Vec<f32>>, ReadError> {
        let record = self
            .record(id.hash())?
            .filter(|record| record.memory.id == *id);
        let Some(record) = record else {
            return Ok(None);
        };
        Ok(self.found(record, true)?.embedding)
    }

    pub(super) fn record(&self, hash: MemoryHash) -> Result<Option<MemoryRecord>, StorageError> {
        read::memory(&*self.reader, self.partition, hash)
    }

    fn found(
        &self,
        record: MemoryRecord,
        with_embedding: bool,
    ) -> Result<FoundMemory, StorageError> {
        let vector = record.vector.filter(|_| with_embedding);
        let vector = vector
            .map(|id| read::vector(&*self.reader, self.partition, id))
            .transpose()?;
        let embedding = vector.flatten().map(|record| record.components);
        Ok(FoundMemory {
            memory: record.memory,
            embedding,
        })
    }

    /// Edges of a memory. One whose end should be in this partition and is missing is hidden; an
    /// end that belongs to another partition is not looked at.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn neighbors(&self, query: &NeighborsQuery<'_>) -> Result<Neighbors, ReadError> {
        let hash = query.id.hash();
        let mut edges = Vec::new();
        if self.may_show(query.id)? {
            for key in self.edge_keys(hash, query.direction)? {
                let wanted = query.relations.is_empty() || query.relations.contains(&key.relation);
                if wanted && let Some(edge) = self.edge(&key, None, query.now_millis)? {
                    edges.push(edge);
                }
            }
        }
        // Keys come in canonical order and the sort is stable.
        edges.sort_by_key(|edge| std::cmp::Reverse(edge.weight));
        let left_out = edges.len().saturating_sub(query.limit);
        edges.truncate(query.limit);
        Ok(Neighbors {
            sequence: self.sequence(),
            edges,
            left_out,
        })
    }

    /// Whether an end of an edge is there, as far as this partition can tell.
    fn may_show(&self, id: &MemoryId) -> Result<bool, StorageError> {
        if !self.state.slots.contains(id.hash_slot()) {
            return Ok(true);
        }
        Ok(self
            .record(id.hash())?
            .is_some_and(|record| record.memory.id == *id))
    }

    pub(super) fn edge_keys(
        &self,
        hash: MemoryHash,
        direction: Direction,
    ) -> Result<BTreeSet<EdgeKey>, StorageError> {
        let range = match direction {
            Direction::Out => keys::out_edges(self.partition, hash),
            Direction::In => keys::in_edges(self.partition, hash),
        };
        let mut found = BTreeSet::new();
        for entry in read::range(&*self.reader, Family::Edges, &range) {
            let (key, _) = entry?;
            let key = match direction {
                Direction::Out => keys::parse_edge(&key),
                Direction::In => keys::parse_reverse_edge(&key),
            };
            found.insert(key.ok_or_else(|| read::bad_key("an edge"))?);
        }
        match direction {
            Direction::Out => found.extend(self.overlay.out_edges(hash).cloned()),
            Direction::In => found.extend(self.overlay.in_edges(hash).cloned()),
        }
        Ok(found)
    }

    /// The edge under a key, if it is visible. `record` is its log state where that is read
    /// already.
    fn edge(
        &self,
        key: &EdgeKey,
        record: Option<EdgeRecord>,
        now_millis: u64,
    ) -> Result<Option<FoundEdge>, StorageError> {
        let record = match record {
            Some(record) => Some(record),
            None => read::edge(&*self.reader, self.partition, key)?,
        };
        let removals = read::source_removals(&*self.reader, self.partition, key.from)?;
        let value = self.value(key, record.as_ref(), removals.as_ref())?;
        let overlay = self.overlay.of_edge(key);
        let to = record
            .map(|record| record.to)
            .or_else(|| Some(overlay.first()?.to.clone()));
        let (true, Some(to)) = (value.is_live(), to) else {
            return Ok(None);
        };
        let Some(from) = self.record(key.from)? else {
            return Ok(None);
        };
        if !self.may_show(&to)? {
            return Ok(None);
        }
        Ok(Some(FoundEdge {
            from: from.memory.id,
            to,
            relation: key.relation.clone(),
            weight: value.weight(&self.state.config.decay, now_millis),
            confidence: value.confidence(),
            contributions: value.contributions,
            newest: value.newest,
        }))
    }

    /// Log state joined with the overlay, but for what the log has taken away, or has under another
    /// mark.
    pub(super) fn value(
        &self,
        key: &EdgeKey,
        record: Option<&EdgeRecord>,
        removals: Option<&SourceRemovals>,
    ) -> Result<EdgeValue, StorageError> {
        let state = record.map(|record| &record.state);
        let mut left = Vec::new();
        for delta in self.overlay.of_edge(key) {
            let contributes = matches!(delta.change, EdgeChange::Contribute { .. });
            let removed = removals.is_some_and(|it| it.covers(&Dot::Overlay(delta.dot)));
            let applied = || read::is_applied(&*self.reader, self.partition, delta.request);
            if !(contributes && (removed || applied()?)) {
                left.push(delta.clone());
            }
        }
        Ok(visible(state, &left, &self.log))
    }

    /// Memories in the order of their keys, behind `after`: at most `limit`, and not many more
    /// bytes than `bytes_max`. Ask the same view for all pages of one export.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn export_memories(
        &self,
        after: Option<MemoryHash>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<MemoryPage, ReadError> {
        let mut range = keys::partition_records(self.partition);
        if let Some(after) = after {
            range = range.after(&keys::memory(self.partition, after));
        }
        let (mut memories, mut bytes, mut last) = (Vec::new(), 0, None);
        for entry in read::range(&*self.reader, Family::Memories, &range) {
            let (key, value) = entry?;
            if memories.len() == limit || bytes >= bytes_max {
                let next = last;
                return Ok(MemoryPage {
                    sequence: self.sequence(),
                    memories,
                    next,
                });
            }
            let record = keys::decode(&value).map_err(|error| error.at("a memory record"))?;
            let found = self.found(record, true)?;
            bytes += value.len() + found.embedding.as_ref().map_or(0, |row| row.len() * 4);
            memories.push(found);
            last = keys::parse_hash(&key);
        }
        Ok(MemoryPage {
            sequence: self.sequence(),
            memories,
            next: None,
        })
    }

    /// Visible edges in canonical order, behind `after`, at most `limit`. Weights do not decay in
    /// an export.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn export_edges(
        &self,
        after: Option<&EdgeKey>,
        limit: usize,
    ) -> Result<EdgePage, ReadError> {
        let (mut edges, mut last, mut cut) = (Vec::new(), None, false);
        self.walk_edges(after, |key, record| {
            cut = edges.len() == limit;
            if !cut {
                edges.extend(self.edge(&key, record, 0)?);
                last = Some(key);
            }
            Ok(!cut)
        })?;
        Ok(EdgePage {
            sequence: self.sequence(),
            edges,
            next: last.filter(|_| cut),
        })
    }

    /// Visits the edges behind `after` in canonical order, those included that only the overlay
    /// has, with their log state, until `visit` answers false.
    pub(super) fn walk_edges(
        &self,
        after: Option<&EdgeKey>,
        mut visit: impl FnMut(EdgeKey, Option<EdgeRecord>) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut range = keys::all_edges(self.partition);
        if let Some(after) = after {
            range = range.after(&keys::edge(self.partition, after));
        }
        let mut beside = self
            .overlay
            .edges()
            .into_iter()
            .filter(|key| Some(*key) > after)
            .peekable();
        let mut logged = read::range(&*self.reader, Family::Edges, &range).peekable();
        loop {
            // The lesser of both keys comes next; an edge may be in the log and in the overlay.
            let in_log = match logged.peek() {
                Some(Ok((key, _))) => {
                    Some(keys::parse_edge(key).ok_or_else(|| read::bad_key("an edge"))?)
                }
                Some(Err(error)) => return Err(error.clone()),
                None => None,
            };
            let in_overlay = beside.peek().map(|key| (*key).clone());
            let Some(key) = in_log.iter().chain(in_overlay.iter()).min().cloned() else {
                return Ok(());
            };
            beside.next_if(|next| **next == key);
            let record = if in_log.as_ref() == Some(&key) {
                logged.next().transpose()?
            } else {
                None
            };
            let record = record
                .map(|(_, value)| read::decode_edge(&value))
                .transpose()?;
            if !visit(key, record)? {
                return Ok(());
            }
        }
    }
}

impl Partition {
    /// # Errors
    /// When storage cannot be read.
    pub fn get(&self, ids: &[MemoryId], with_embedding: bool) -> Result<Found, ReadError> {
        self.view().get(ids, with_embedding)
    }

    /// See [`PartitionView::embedding`].
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn embedding(&self, id: &MemoryId) -> Result<Option<Vec<f32>>, ReadError> {
        self.view().embedding(id)
    }

    /// See [`PartitionView::neighbors`].
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn neighbors(&self, query: &NeighborsQuery<'_>) -> Result<Neighbors, ReadError> {
        self.view().neighbors(query)
    }

    /// See [`PartitionView::export_memories`].
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn export_memories(
        &self,
        after: Option<MemoryHash>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<MemoryPage, ReadError> {
        self.view().export_memories(after, limit, bytes_max)
    }

    /// See [`PartitionView::export_edges`].
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn export_edges(
        &self,
        after: Option<&EdgeKey>,
        limit: usize,
    ) -> Result<EdgePage, ReadError> {
        self.view().export_edges(after, limit)
    }
}
