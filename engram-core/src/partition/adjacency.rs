//! A partition as a spread query sees it: one pinned state, weights after decay, memories after the
//! query's filter. Read from the arrays where there are any (see `graph`), else from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Partition;
use super::graph::{GraphVersion, InEdge};
use super::read;
use super::view::{Direction, PartitionView, ReadError};
use crate::edges::EdgeRecord;
use crate::filter::Filter;
use crate::keys;
use crate::spread::{Adjacency, OutEdge, Projected, Projection};
use crate::storage::{Family, StorageError};
use crate::types::{Decay, EdgeContext, EdgeKey, MemoryHash, MemoryId, Relation};

/// One pinned state of a partition for one query.
pub struct PartitionAdjacency {
    view: PartitionView,
    graph: GraphVersion,
    projected: Option<Arc<Projected>>,
    filter: Option<Filter>,
    /// `None` follows all.
    relations: Option<BTreeSet<Relation>>,
    ages: EdgeAges,
    /// Memories looked at so far: the id of those that the query sees.
    resolved: Mutex<BTreeMap<MemoryHash, Option<MemoryId>>>,
}

/// How a query reads the age of edges.
#[derive(Clone, Copy, Debug)]
pub struct EdgeAges {
    pub now_millis: u64,
    /// The query's own law; `None`: the space's.
    pub decay: Option<Decay>,
}

impl From<u64> for EdgeAges {
    /// The space's law at this time.
    fn from(now_millis: u64) -> Self {
        let decay = None;
        Self { now_millis, decay }
    }
}

impl Partition {
    /// The partition as it is now, for a spread that reads decay like this.
    #[must_use]
    pub fn adjacency(
        &self,
        filter: Option<Filter>,
        relations: Option<BTreeSet<Relation>>,
        ages: impl Into<EdgeAges>,
    ) -> PartitionAdjacency {
        let ages: EdgeAges = ages.into();
        let (view, graph) = {
            let published = self.published.read();
            (self.view_of(&published), published.graph.clone())
        };
        let decay = ages.decay.unwrap_or(view.state.config.decay);
        if graph.arrays().is_none() {
            self.graph_wanted.store(true, Ordering::Relaxed);
        }
        // The arrays of a space without decay know no ages: such a query reads records.
        let knows_ages = |arrays: &&Arc<_>| decay == Decay::None || has_ages(arrays);
        let arrays = graph.arrays().filter(knows_ages);
        let projected = arrays.map(|arrays| {
            Arc::new(Projected {
                graph: Arc::clone(arrays),
                changed: graph.changed().clone(),
                slots: view.state.slots,
                decay,
                now_millis: ages.now_millis,
                filtered: filter.is_some(),
            })
        });
        let resolved = Mutex::default();
        PartitionAdjacency {
            view,
            graph,
            projected,
            filter,
            relations,
            ages,
            resolved,
        }
    }
}

fn has_ages(arrays: &Projection) -> bool {
    arrays.edges() == 0 || arrays.has_stamps()
}

impl PartitionAdjacency {
    /// The same state, read from the store alone.
    #[cfg(test)]
    pub(super) fn without_arrays(&self) -> Self {
        Self {
            view: self.view.clone(),
            graph: GraphVersion::default(),
            projected: None,
            filter: self.filter.clone(),
            relations: self.relations.clone(),
            ages: self.ages,
            resolved: Mutex::default(),
        }
    }

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

    fn decay(&self) -> Decay {
        self.ages.decay.unwrap_or(self.view.state.config.decay)
    }

    fn follows(&self, relation: &Relation) -> bool {
        let followed = |relations: &BTreeSet<_>| relations.contains(relation);
        self.relations.as_ref().is_none_or(followed)
    }

    /// The edges into a memory from those of this partition, live ones of followed relations.
    pub(super) fn in_edges(
        &self,
        memory: MemoryHash,
        mut push: impl FnMut(InEdge),
    ) -> Result<(), ReadError> {
        let view = &self.view;
        let mut push = |edge: InEdge| {
            if self.follows(&edge.relation) {
                push(edge);
            }
        };
        let only_in_log = view.overlay.in_edges(memory).next().is_none();
        let (decay, now_millis) = (self.decay(), self.ages.now_millis);
        // Without arrays that know the ages that this query reads, the records do.
        if only_in_log
            && self.projected.is_some()
            && self
                .graph
                .in_edges(view, memory, (&decay, now_millis), &mut push)?
        {
            return Ok(());
        }
        for key in view.edge_keys(memory, Direction::In)? {
            let record = read::edge(&*view.reader, view.partition, &key)?;
            let removals = read::source_removals(&*view.reader, view.partition, key.from)?;
            let value = view.value(&key, record.as_ref(), removals.as_ref())?;
            if value.is_live() {
                push(InEdge {
                    from: key.from,
                    weight: value.weight(&decay, now_millis),
                    relation: key.relation,
                });
            }
        }
        Ok(())
    }

    /// The id of a memory that exists and passes the query's filter.
    pub(super) fn name(&self, memory: MemoryHash) -> Result<Option<MemoryId>, ReadError> {
        Ok(self.look_up(memory)?)
    }

    /// Without the overlay; `false` when the arrays cannot tell.
    fn out_edges_of_log(
        &self,
        memory: MemoryHash,
        sink: &mut Vec<OutEdge>,
    ) -> Result<bool, ReadError> {
        if self.projected.is_none() {
            return Ok(false);
        }
        let push = |edge: OutEdge| {
            if self.follows(&edge.relation) {
                sink.push(edge);
            }
        };
        let (decay, now_millis) = (self.decay(), self.ages.now_millis);
        self.graph
            .out_edges(&self.view, memory, (&decay, now_millis), push)
    }
}

impl Adjacency for PartitionAdjacency {
    type Error = ReadError;

    fn resolve(&self, memory: MemoryHash) -> Result<bool, ReadError> {
        match self.graph.exists(&self.view, memory)? {
            Some(false) => Ok(false),
            Some(true) if self.filter.is_none() => Ok(true),
            Some(true) | None => Ok(self.look_up(memory)?.is_some()),
        }
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), ReadError> {
        let view = &self.view;
        let only_in_log = view.overlay.out_edges(memory).next().is_none();
        if only_in_log && self.out_edges_of_log(memory, sink)? {
            return Ok(());
        }
        let removals = read::source_removals(&*view.reader, view.partition, memory)?;
        let mut beside: BTreeSet<_> = view.overlay.out_edges(memory).collect();
        let range = keys::out_edges(view.partition, memory);
        let mut push = |key: &EdgeKey, record: Option<&EdgeRecord>| -> Result<(), StorageError> {
            if !self.follows(&key.relation) {
                return Ok(());
            }
            let value = view.value(key, record, removals.as_ref())?;
            let overlay = view.overlay.of_edge(key);
            let to = record
                .map(|record| &record.to)
                .or_else(|| Some(&overlay.first()?.to));
            if let (true, Some(to)) = (value.is_live(), to) {
                sink.push(OutEdge {
                    to: key.to,
                    slot: to.hash_slot(),
                    relation: key.relation.clone(),
                    weight: value.weight(&self.decay(), self.ages.now_millis),
                });
            }
            Ok(())
        };
        for entry in read::range(&*view.reader, Family::Edges, &range) {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            let record = read::decode_edge(&value)?;
            beside.remove(&key);
            push(&key, Some(&record))?;
        }
        for key in beside {
            push(key, None)?;
        }
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

    fn projected(&self) -> Option<&Arc<Projected>> {
        self.projected.as_ref()
    }
}
