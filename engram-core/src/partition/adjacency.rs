//! A partition as a spread query sees it: one pinned state, weights after decay, memories after the
//! query's filter.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::Partition;
use super::read;
use super::view::{PartitionView, ReadError};
use crate::filter::Filter;
use crate::keys;
use crate::spread::{Adjacency, OutEdge};
use crate::storage::{Family, StorageError};
use crate::types::{EdgeContext, MemoryHash, MemoryId, Relation};

/// One pinned state of a partition for one query.
pub struct PartitionAdjacency {
    view: PartitionView,
    filter: Option<Filter>,
    /// `None` follows all.
    relations: Option<BTreeSet<Relation>>,
    now_millis: u64,
    /// Memories looked at so far: the id of those that the query sees.
    resolved: Mutex<BTreeMap<MemoryHash, Option<MemoryId>>>,
}

impl Partition {
    /// The partition as it is now, for a spread that reads decay at `now_millis`.
    #[must_use]
    pub fn adjacency(
        &self,
        filter: Option<Filter>,
        relations: Option<BTreeSet<Relation>>,
        now_millis: u64,
    ) -> PartitionAdjacency {
        let (view, resolved) = (self.view(), Mutex::default());
        PartitionAdjacency {
            view,
            filter,
            relations,
            now_millis,
            resolved,
        }
    }
}

impl PartitionAdjacency {
    fn look_up(&self, memory: MemoryHash) -> Result<Option<MemoryId>, StorageError> {
        if let Some(known) = self.resolved.lock().get(&memory) {
            return Ok(known.clone());
        }
        let record = self.view.record(memory)?;
        let seen = record.map(|record| record.memory).filter(|memory| {
            self.filter
                .as_ref()
                .is_none_or(|filter| filter.matches(memory))
        });
        let id = seen.map(|memory| memory.id);
        self.resolved.lock().insert(memory, id.clone());
        Ok(id)
    }
}

impl Adjacency for PartitionAdjacency {
    type Error = ReadError;

    fn resolve(&self, memory: MemoryHash) -> Result<bool, ReadError> {
        Ok(self.look_up(memory)?.is_some())
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), ReadError> {
        let view = &self.view;
        let removals = read::source_removals(&*view.reader, view.partition, memory)?;
        let mut beside: BTreeSet<_> = view.overlay.out_edges(memory).collect();
        let range = keys::out_edges(view.partition, memory);
        let mut push = |key: &crate::types::EdgeKey, record: Option<&crate::edges::EdgeRecord>| {
            let followed = |relations: &BTreeSet<_>| relations.contains(&key.relation);
            if !self.relations.as_ref().is_none_or(followed) {
                return;
            }
            let value = view.value(key, record, removals.as_ref());
            let overlay = view.overlay.of_edge(key);
            let to = record
                .map(|record| &record.to)
                .or_else(|| Some(&overlay.first()?.to));
            if let (true, Some(to)) = (value.is_live(), to) {
                sink.push(OutEdge {
                    to: key.to,
                    slot: to.hash_slot(),
                    relation: key.relation.clone(),
                    weight: value.weight(&view.state.config.decay, self.now_millis),
                });
            }
        };
        for entry in read::range(&*view.reader, Family::Edges, &range) {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            let record = read::decode_edge(&value)?;
            beside.remove(&key);
            push(&key, Some(&record));
        }
        beside.into_iter().for_each(|key| push(key, None));
        Ok(())
    }

    fn id(&self, memory: MemoryHash) -> Result<MemoryId, ReadError> {
        let id = self.look_up(memory)?;
        Ok(id.ok_or_else(|| StorageError::Corrupt {
            what: format!("memory {memory:?}"),
            reason: "a query resolved it, but it is not in the query's view".into(),
        })?)
    }

    fn pinned(&self) -> EdgeContext {
        self.view.context()
    }
}
