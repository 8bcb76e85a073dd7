//! Recall: the memories nearest to a vector, filtered inside the search.
//!
//! The search runs on the index as it is now, the answer is of one view. A vector that the view
//! does not know is refused inside the search, so it costs no place in the answer. A vector that
//! was killed between view and search would be missed: then the recall is repeated, the second
//! time with the applier held off.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::view::{PartitionView, ReadError};
use super::{Partition, read};
use crate::filter::Filter;
use crate::index::{DEFAULT_EFFORT, VectorId};
use crate::limits;
use crate::storage::StorageError;
use crate::types::{Memory, MemoryId, Sequence};

/// What is recalled.
#[derive(Clone, Debug)]
pub struct RecallQuery<'a> {
    pub vector: &'a [f32],
    pub limit: usize,
    /// Width of the search; 0 takes the default.
    pub effort: usize,
    pub filter: Option<&'a Filter>,
    /// Left out: the memory that the vector was taken from.
    pub exclude: Option<&'a MemoryId>,
}

impl<'a> RecallQuery<'a> {
    /// The nearest memories, with the default effort.
    #[must_use]
    pub fn new(vector: &'a [f32], limit: usize) -> Self {
        Self {
            vector,
            limit,
            effort: 0,
            filter: None,
            exclude: None,
        }
    }
}

/// A memory and its distance; smaller is nearer.
#[derive(Clone, Debug, PartialEq)]
pub struct RecallHit {
    pub distance: f32,
    pub memory: Memory,
}

/// The nearest memories of one partition, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Recalled {
    pub sequence: Sequence,
    pub hits: Vec<RecallHit>,
}

impl Partition {
    /// The memories nearest to a vector, in one state of the partition.
    ///
    /// # Errors
    /// When the query does not fit the space, a bound is exceeded, or storage cannot be read.
    pub fn recall(&self, query: &RecallQuery<'_>) -> Result<Recalled, ReadError> {
        let view = self.view();
        query.check(view.state.config.dimension)?;
        if query.limit == 0 {
            return Ok(Recalled {
                sequence: view.sequence(),
                hits: Vec::new(),
            });
        }
        let recalled = self.recall_in(&view, query)?;
        if self.published.read().last_kill <= view.sequence() {
            return Ok(recalled);
        }
        let held = self.published.read();
        self.recall_in(&self.view_of(&held), query)
    }

    fn recall_in(
        &self,
        view: &PartitionView,
        query: &RecallQuery<'_>,
    ) -> Result<Recalled, ReadError> {
        let effort = if query.effort == 0 {
            DEFAULT_EFFORT
        } else {
            query.effort
        };
        let excluded = query
            .exclude
            .map(|id| view.record(id.hash()))
            .transpose()?
            .flatten();
        let excluded = excluded.and_then(|record| record.vector);
        let filtered = Filtered {
            view,
            filter: query.filter,
            known: RefCell::default(),
        };
        let failed = RefCell::new(None);
        let fail = |error| {
            failed.borrow_mut().get_or_insert(error);
        };
        let accept = |id: VectorId| {
            // What lives in the index now and was there at the view lived at the view.
            let there = id.0 < view.state.next_vector && Some(id) != excluded;
            there
                && filtered.accept(id).unwrap_or_else(|error| {
                    fail(error);
                    false
                })
        };
        let stored = |id| match read::vector(&*view.reader, view.partition, id) {
            Ok(vector) => vector.map(|vector| vector.components),
            Err(error) => {
                fail(error);
                None
            }
        };
        let hits = self
            .index
            .search_stored(query.vector, query.limit, effort, &accept, &stored);
        if let Some(error) = failed.into_inner() {
            return Err(error.into());
        }
        let mut recalled = Recalled {
            sequence: view.sequence(),
            hits: Vec::new(),
        };
        for hit in hits {
            let memory = filtered.look_up(hit.id)?;
            recalled.hits.extend(memory.map(|memory| RecallHit {
                distance: hit.distance,
                memory,
            }));
        }
        Ok(recalled)
    }
}

impl RecallQuery<'_> {
    fn check(&self, dimension: u32) -> Result<(), ReadError> {
        check_vector(self.vector, dimension)?;
        at_most("limit", self.limit, limits::RECALL_LIMIT_MAX)?;
        at_most("effort", self.effort, limits::SEARCH_EFFORT_MAX)
    }
}

/// Whether a query fits the space.
pub(super) fn check_vector(vector: &[f32], dimension: u32) -> Result<(), ReadError> {
    if vector.len() != dimension as usize {
        return Err(ReadError::WrongDimension {
            expected: dimension,
            actual: vector.len(),
        });
    }
    match vector.iter().position(|value| !value.is_finite()) {
        Some(position) => Err(ReadError::NotFinite { position }),
        None => Ok(()),
    }
}

fn at_most(what: &'static str, actual: usize, max: usize) -> Result<(), ReadError> {
    if actual <= max {
        Ok(())
    } else {
        Err(ReadError::TooLarge { what, actual, max })
    }
}

/// The memories behind the vectors that a search meets. Without a filter only those of the answer
/// are read.
struct Filtered<'a> {
    view: &'a PartitionView,
    filter: Option<&'a Filter>,
    /// What the filter said of each vector; the memories are not kept, since they may be many.
    known: RefCell<BTreeMap<VectorId, bool>>,
}

impl Filtered<'_> {
    fn accept(&self, id: VectorId) -> Result<bool, StorageError> {
        let Some(filter) = self.filter else {
            return Ok(true);
        };
        if let Some(known) = self.known.borrow().get(&id) {
            return Ok(*known);
        }
        let accepted = self
            .look_up(id)?
            .is_some_and(|memory| filter.matches(&memory));
        self.known.borrow_mut().insert(id, accepted);
        Ok(accepted)
    }

    /// The memory whose embedding this is, in the view.
    fn look_up(&self, id: VectorId) -> Result<Option<Memory>, StorageError> {
        let (reader, partition) = (&*self.view.reader, self.view.partition);
        let Some(vector) = read::vector(reader, partition, id)? else {
            return Ok(None);
        };
        let record = self.view.record(vector.owner)?;
        Ok(record
            .filter(|record| record.vector == Some(id))
            .map(|record| record.memory))
    }
}
