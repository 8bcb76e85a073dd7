//! An index from what storage keeps: generations, vectors and deaths, and a snapshot of the links
//! if there is a sound one. Jobs that the snapshot does not have done are offered again.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::graph::Graph;
use super::snapshot::Snapshot;
use super::{
    GENERATIONS_HELD_MAX, Generation, IndexShape, PartitionIndex, SnapshotError, SourceError,
    StoredVector, VectorId,
};
use crate::kernel::Row;
use crate::planted;
use crate::types::Sequence;

/// An index that was loaded, and what its snapshot was good for.
pub struct Rebuilt {
    pub index: PartitionIndex,
    pub snapshot: SnapshotUse,
}

/// What became of the snapshot.
#[derive(Debug)]
pub enum SnapshotUse {
    /// There was none; no job is done.
    Absent,
    /// Links came from it.
    Used,
    /// It was not used; no job is done. Searches are exact until the links are back.
    Refused(SnapshotError),
}

/// Why an index cannot be rebuilt: what storage holds is not the state of a partition.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("a partition has no generation")]
    NoGeneration,
    #[error("generation {found} follows generation {after}")]
    GenerationOrder { after: u64, found: u64 },
    #[error("vector {found} was stored where vector {expected} was to come")]
    VectorMissing { expected: VectorId, found: VectorId },
    #[error("the vectors end before vector {expected}")]
    VectorsEnd { expected: VectorId },
    #[error("vector {id} has {actual} components, the space has dimension {expected}")]
    Dimension {
        id: VectorId,
        actual: usize,
        expected: u32,
    },
    #[error("vector {id} died at sequence 0, before any command")]
    Death { id: VectorId },
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl PartitionIndex {
    /// Rebuilds the index of a partition at rest. `generations` are all that the partition keeps,
    /// ascending; `vectors` all stored ones, ascending; `deaths` all deaths. Without a usable
    /// snapshot only the newest generation is built.
    ///
    /// # Errors
    /// When storage fails, or what it gives is not the state of a partition. A snapshot that is
    /// damaged or does not fit is no error: see [`Rebuilt::snapshot`].
    pub fn rebuild(
        shape: IndexShape,
        generations: Vec<Generation>,
        vectors: &mut dyn Iterator<Item = Result<(VectorId, StoredVector), SourceError>>,
        deaths: &mut dyn Iterator<Item = Result<(VectorId, Sequence), SourceError>>,
        snapshot: Option<&mut dyn Read>,
    ) -> Result<Rebuilt, RebuildError> {
        check_order(&generations)?;
        let mut usage = SnapshotUse::Absent;
        let mut held = None;
        if let Some(source) = snapshot {
            match read_snapshot(source, shape, &generations) {
                Ok(found) => held = Some(found),
                Err(error) => usage = SnapshotUse::Refused(error),
            }
        }
        let known = held.as_ref().map_or(&[][..], |(_, numbers)| numbers);
        let loaded = worth_loading(generations, known);
        let mut loaded = load(shape, loaded, vectors, deaths)?;
        if let Some((snapshot, _)) = held {
            usage = match snapshot.apply(&loaded.graphs) {
                Ok(()) => SnapshotUse::Used,
                Err(error) => {
                    loaded.forget_links();
                    SnapshotUse::Refused(error)
                }
            };
        }
        let index = Self::from_graphs(shape, loaded.graphs, loaded.applied);
        Ok(Rebuilt {
            index,
            snapshot: usage,
        })
    }
}

fn check_order(generations: &[Generation]) -> Result<(), RebuildError> {
    if generations.is_empty() {
        return Err(RebuildError::NoGeneration);
    }
    for pair in generations.windows(2) {
        let (after, found) = (pair[0].number, pair[1].number);
        if found != after + 1 {
            return Err(RebuildError::GenerationOrder { after, found });
        }
    }
    Ok(())
}

/// The snapshot, and the numbers of the generations in it.
fn read_snapshot(
    source: &mut dyn Read,
    shape: IndexShape,
    generations: &[Generation],
) -> Result<(Snapshot, Vec<u64>), SnapshotError> {
    let snapshot = Snapshot::read(source, shape)?;
    let numbers = snapshot.numbers(shape)?;
    let is_kept = |number: &u64| generations.iter().any(|kept| kept.number == *number);
    if !numbers.first().is_some_and(is_kept) {
        return Err(SnapshotError::Foreign("its oldest generation is not kept"));
    }
    Ok((snapshot, numbers))
}

/// Of all generations those that an index holds: what links are `known` of, and the newest.
fn worth_loading(mut generations: Vec<Generation>, known: &[u64]) -> Vec<Generation> {
    let newest = generations.pop();
    generations.retain(|generation| known.contains(&generation.number));
    generations.truncate(GENERATIONS_HELD_MAX - 1);
    generations.extend(newest);
    generations
}

struct Loaded {
    graphs: Vec<Arc<Graph>>,
    applied: Sequence,
}

impl Loaded {
    /// Replaces the graphs by the newest one without links, with the same rows.
    fn forget_links(&mut self) {
        let Some(newest) = self.graphs.last() else {
            return;
        };
        let bare = newest.without_links();
        self.graphs = vec![Arc::new(bare)];
    }
}

fn load(
    shape: IndexShape,
    generations: Vec<Generation>,
    vectors: &mut dyn Iterator<Item = Result<(VectorId, StoredVector), SourceError>>,
    deaths: &mut dyn Iterator<Item = Result<(VectorId, Sequence), SourceError>>,
) -> Result<Loaded, RebuildError> {
    let starts = generations.iter().map(|generation| generation.start);
    let mut applied = starts.max().unwrap_or_default();
    let graphs: Vec<Arc<Graph>> = generations
        .into_iter()
        .map(|generation| Arc::new(Graph::new(generation, shape)))
        .collect();
    for vector in vectors {
        let (id, vector) = vector?;
        applied = applied.max(vector.sequence);
        push(shape, &graphs, id, &vector)?;
    }
    for graph in &graphs {
        if u64::from(graph.published()) < graph.generation.base_len() {
            return Err(RebuildError::VectorsEnd {
                expected: expected(graph),
            });
        }
    }
    // Ordered, so that of two deaths of a vector the first counts, as when they were applied.
    let mut ordered = BTreeMap::<VectorId, Sequence>::new();
    for death in deaths {
        let (id, at) = death?;
        if at == Sequence(0) {
            return Err(RebuildError::Death { id });
        }
        ordered
            .entry(id)
            .and_modify(|first| *first = at.min(*first))
            .or_insert(at);
    }
    for (id, at) in ordered {
        applied = applied.max(at);
        graphs.iter().for_each(|graph| graph.kill(id, at));
    }
    Ok(Loaded { graphs, applied })
}

/// The vector that takes a graph's next slot.
fn expected(graph: &Graph) -> VectorId {
    graph
        .generation
        .vector_of(u64::from(graph.published()))
        .unwrap_or_default()
}

fn push(
    shape: IndexShape,
    graphs: &[Arc<Graph>],
    id: VectorId,
    vector: &StoredVector,
) -> Result<(), RebuildError> {
    let holds = |graph: &&Arc<Graph>| graph.generation.slot_of(id).is_some();
    let mut row = None;
    for graph in graphs.iter().filter(holds) {
        let expected = expected(graph);
        if expected != id {
            return Err(RebuildError::VectorMissing {
                expected,
                found: id,
            });
        }
        if vector.components.len() != shape.dimension as usize {
            let (actual, expected) = (vector.components.len(), shape.dimension);
            return Err(RebuildError::Dimension {
                id,
                actual,
                expected,
            });
        }
        let row = row.get_or_insert_with(|| Row::new(&vector.components));
        let (level, mut sequence) = (graph.level_of(vector.owner), vector.sequence);
        if planted!("window-sealed-late-on-replay") {
            sequence = sequence.next();
        }
        graph.push(id, row, level, sequence);
    }
    Ok(())
}
