//! The partition's edges as arrays (`spread::Projection`), and what has changed since they were
//! made.
//!
//! Arrays are built by a job from one state of the partition: `graph_job`, `build_graph` (long, off
//! every lock), `commit_graph`. From the job's state on, each command and each local change notes
//! the memories whose existence or out-edges it touched. A reader pins arrays and notes together
//! with its view of the storage; what is noted is read from the store once, by the first reader
//! that meets it, and kept with the note until the next arrays. Readers take no lock but the short
//! one of every view. Memories to which an edge was changed are noted beside, for those who follow
//! edges backwards.
//!
//! What must hold: for every memory without a note the arrays say what the log's records say; the
//! edges into a memory that is not noted as a target are those of the arrays' sources, as their
//! notes have them. Changes in the overlay are noted too and always read from the store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::view::{PartitionView, ReadError};
use super::{Partition, read};
use crate::edges::EdgeRecord;
use crate::keys;
use crate::spread::{ChangedVertices, OutEdge, Projection, ProjectionBuilder, ProjectionError};
use crate::storage::{Family, StorageError};
use crate::types::{
    Decay, EdgeKey, HashSlot, MemoryHash, PartitionId, Relation, Sequence, SpaceConfig, Unit,
};

/// Notes above which new arrays are due: this many, or one for so many vertices.
const REBUILD_NOTES_MIN: usize = 64;
const REBUILD_SHARE: usize = 16;
/// Notes above which the arrays are let go: writers have outrun the job.
const NOTES_MAX: usize = 4 << 20;
/// Notes are copied on write in this many parts.
const SHARDS: usize = 256;

/// Arrays and notes at one moment. Cheap to clone.
#[derive(Clone, Default)]
pub struct GraphVersion {
    arrays: Option<Arc<Projection>>,
    /// Noted memories that have a number in the arrays.
    changed: ChangedVertices,
    /// `None`: nobody will build arrays that could need notes.
    notes: Option<Notes>,
    /// Memories to which an edge was changed, wherever `notes` are.
    targets: Targets,
    /// Counts how often notes began: a job of an earlier time cannot be committed.
    era: u64,
}

#[derive(Clone)]
struct Notes {
    shards: Arc<[Shard; SHARDS]>,
    len: usize,
}

type Shard = Arc<BTreeMap<MemoryHash, Arc<Note>>>;

/// Memories to which a command changed an edge.
#[derive(Clone)]
struct Targets {
    shards: Arc<[TargetShard; SHARDS]>,
    len: usize,
}

type TargetShard = Arc<BTreeMap<MemoryHash, Sequence>>;

impl Default for Targets {
    fn default() -> Self {
        Self {
            shards: Arc::new(std::array::from_fn(|_| Arc::default())),
            len: 0,
        }
    }
}

impl Targets {
    fn contains(&self, memory: MemoryHash) -> bool {
        self.shards[shard(memory)].contains_key(&memory)
    }

    fn insert(&mut self, memory: MemoryHash, sequence: Sequence) {
        let shards = Arc::make_mut(&mut self.shards);
        let before = Arc::make_mut(&mut shards[shard(memory)]).insert(memory, sequence);
        self.len += usize::from(before.is_none());
    }

    fn retain_after(&mut self, sequence: Sequence) {
        let shards = Arc::make_mut(&mut self.shards);
        self.len = 0;
        for shard in shards {
            Arc::make_mut(shard).retain(|_, noted| *noted > sequence);
            self.len += shard.len();
        }
    }
}

/// A memory that a command touched, and what the log says of it since, once somebody asked.
struct Note {
    sequence: Sequence,
    state: OnceLock<SourceState>,
}

/// A memory as the log has it.
struct SourceState {
    exists: bool,
    edges: Vec<StoredEdge>,
}

struct StoredEdge {
    to: MemoryHash,
    slot: HashSlot,
    relation: Relation,
    weight: Unit,
    stamp_millis: u64,
}

/// A state of which arrays are to be made.
pub struct GraphJob {
    view: PartitionView,
    era: u64,
}

/// Arrays that wait for their commit.
pub struct BuiltGraph {
    arrays: Projection,
    sequence: Sequence,
    era: u64,
}

/// Why arrays were not made. Spreading reads the store instead.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Projection(#[from] ProjectionError),
}

fn shard(memory: MemoryHash) -> usize {
    usize::from(memory.0[0]) % SHARDS
}

impl Notes {
    fn new() -> Self {
        Self {
            shards: Arc::new(std::array::from_fn(|_| Arc::default())),
            len: 0,
        }
    }

    fn get(&self, memory: MemoryHash) -> Option<&Arc<Note>> {
        self.shards[shard(memory)].get(&memory)
    }

    fn insert(&mut self, memory: MemoryHash, sequence: Sequence) {
        let note = Arc::new(Note {
            sequence,
            state: OnceLock::new(),
        });
        let shards = Arc::make_mut(&mut self.shards);
        let before = Arc::make_mut(&mut shards[shard(memory)]).insert(memory, note);
        self.len += usize::from(before.is_none());
    }

    /// Lets go of what arrays of this sequence say themselves.
    fn retain_after(&mut self, sequence: Sequence) {
        let shards = Arc::make_mut(&mut self.shards);
        self.len = 0;
        for shard in shards {
            Arc::make_mut(shard).retain(|_, note| note.sequence > sequence);
            self.len += shard.len();
        }
    }

    fn memories(&self) -> impl Iterator<Item = MemoryHash> + '_ {
        self.shards.iter().flat_map(|shard| shard.keys().copied())
    }
}

impl GraphVersion {
    pub fn arrays(&self) -> Option<&Arc<Projection>> {
        self.arrays.as_ref()
    }

    pub fn changed(&self) -> &ChangedVertices {
        &self.changed
    }

    /// Notes that `sequence` touched these memories.
    pub fn note(&mut self, memories: impl IntoIterator<Item = MemoryHash>, sequence: Sequence) {
        let Some(notes) = &mut self.notes else {
            return;
        };
        for memory in memories {
            notes.insert(memory, sequence);
            if let Some(vertex) = self.arrays.as_ref().and_then(|arrays| arrays.find(memory)) {
                self.changed.insert(vertex);
            }
        }
        if notes.len > NOTES_MAX {
            self.let_go();
        }
    }

    /// Notes that `sequence` changed edges to these memories.
    pub fn note_targets(
        &mut self,
        memories: impl IntoIterator<Item = MemoryHash>,
        sequence: Sequence,
    ) {
        if self.notes.is_none() {
            return;
        }
        for memory in memories {
            self.targets.insert(memory, sequence);
        }
        if self.targets.len > NOTES_MAX {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        let era = self.era;
        *self = Self {
            era,
            ..Self::default()
        };
    }

    fn is_rebuild_due(&self) -> bool {
        let vertices = self.arrays.as_ref().map_or(0, |arrays| arrays.vertices());
        let allowed = REBUILD_NOTES_MIN.max(vertices as usize / REBUILD_SHARE);
        self.notes.as_ref().is_some_and(|notes| notes.len > allowed)
    }

    /// Whether the log holds the memory; `None` where neither arrays nor notes can tell.
    pub fn exists(
        &self,
        view: &PartitionView,
        memory: MemoryHash,
    ) -> Result<Option<bool>, ReadError> {
        let Some(arrays) = &self.arrays else {
            return Ok(None);
        };
        if let Some(note) = self.notes.as_ref().and_then(|notes| notes.get(memory)) {
            return Ok(Some(note.state(view, memory)?.exists));
        }
        let vertex = arrays.find(memory);
        Ok(Some(vertex.is_some_and(|vertex| arrays.is_here(vertex))))
    }

    /// Out-edges that the log has; `false` where neither arrays nor notes can tell.
    pub fn out_edges(
        &self,
        view: &PartitionView,
        memory: MemoryHash,
        (decay, now_millis): (&Decay, u64),
        mut push: impl FnMut(OutEdge),
    ) -> Result<bool, ReadError> {
        let Some(arrays) = &self.arrays else {
            return Ok(false);
        };
        if let Some(note) = self.notes.as_ref().and_then(|notes| notes.get(memory)) {
            for edge in &note.state(view, memory)?.edges {
                push(edge.at(decay, now_millis));
            }
            return Ok(true);
        }
        if let Some(vertex) = arrays.find(memory) {
            arrays.out_edges(vertex).for_each(|edge| {
                push(OutEdge {
                    to: arrays.name(edge.to),
                    slot: edge.slot,
                    relation: edge.relation.clone(),
                    weight: decayed(edge.weight, decay, now_millis, edge.stamp_millis),
                });
            });
        }
        Ok(true)
    }
}

impl GraphVersion {
    /// Edges into a memory that the log has; `false` where neither arrays nor notes can tell.
    pub fn in_edges(
        &self,
        view: &PartitionView,
        memory: MemoryHash,
        (decay, now_millis): (&Decay, u64),
        mut push: impl FnMut(InEdge),
    ) -> Result<bool, ReadError> {
        let (Some(arrays), Some(notes)) = (&self.arrays, &self.notes) else {
            return Ok(false);
        };
        if self.targets.contains(memory) {
            return Ok(false);
        }
        let Some(vertex) = arrays.find(memory) else {
            return Ok(true);
        };
        let mut before = None;
        for source in arrays.in_sources(vertex) {
            // Once for each edge, ascending.
            if before.replace(*source) == Some(*source) {
                continue;
            }
            let from = arrays.name(*source);
            if let Some(note) = notes.get(from) {
                let edges = note.state(view, from)?.edges.iter();
                for edge in edges.filter(|edge| edge.to == memory) {
                    push(InEdge {
                        from,
                        relation: edge.relation.clone(),
                        weight: decayed(edge.weight, decay, now_millis, edge.stamp_millis),
                    });
                }
                continue;
            }
            for edge in arrays.edges_between(*source, vertex) {
                push(InEdge {
                    from,
                    relation: edge.relation.clone(),
                    weight: decayed(edge.weight, decay, now_millis, edge.stamp_millis),
                });
            }
        }
        Ok(true)
    }
}

/// An edge into a memory, from one of this partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InEdge {
    pub from: MemoryHash,
    pub relation: Relation,
    /// After decay.
    pub weight: Unit,
}

fn decayed(weight: Unit, decay: &Decay, now_millis: u64, stamp_millis: u64) -> Unit {
    let age_millis = now_millis.saturating_sub(stamp_millis);
    weight.times(crate::edges::decay_factor(decay, age_millis))
}

impl StoredEdge {
    /// The edge under a key, unless the log makes nothing visible of it.
    fn of(key: EdgeKey, record: &EdgeRecord) -> Option<Self> {
        let value = record.state.value();
        value.is_live().then(|| Self {
            to: key.to,
            slot: record.to.hash_slot(),
            relation: key.relation,
            weight: value.weight(&Decay::None, 0),
            stamp_millis: value.newest.millis(),
        })
    }

    fn at(&self, decay: &Decay, now_millis: u64) -> OutEdge {
        OutEdge {
            to: self.to,
            slot: self.slot,
            relation: self.relation.clone(),
            weight: decayed(self.weight, decay, now_millis, self.stamp_millis),
        }
    }
}

impl Note {
    /// What the log says since the note was made. Every view that holds the note shows the same.
    fn state(&self, view: &PartitionView, memory: MemoryHash) -> Result<&SourceState, ReadError> {
        if let Some(state) = self.state.get() {
            return Ok(state);
        }
        let mut edges = Vec::new();
        let range = keys::out_edges(view.partition, memory);
        for entry in read::range(&*view.reader, Family::Edges, &range) {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            edges.extend(StoredEdge::of(key, &read::decode_edge(&value)?));
        }
        let exists = view.record(memory)?.is_some();
        Ok(self.state.get_or_init(|| SourceState { exists, edges }))
    }
}

impl Partition {
    /// The next arrays to be made, if readers miss them or too much has changed. Build and commit
    /// them, or give the job back with [`Self::abandon_graph`].
    #[must_use]
    pub fn graph_job(&self) -> Option<GraphJob> {
        {
            let published = self.published.read();
            let misses =
                published.graph.arrays.is_none() && self.graph_wanted.load(Ordering::Relaxed);
            if published.dropped || !(misses || published.graph.is_rebuild_due()) {
                return None;
            }
        }
        if self.graph_building.swap(true, Ordering::AcqRel) {
            return None;
        }
        let mut published = self.published.write();
        if published.graph.notes.is_none() {
            published.graph.era += 1;
            published.graph.notes = Some(Notes::new());
            published.graph.targets = Targets::default();
        }
        Some(GraphJob {
            era: published.graph.era,
            view: self.view_of(&published),
        })
    }

    /// Puts arrays in the place of those before.
    pub fn commit_graph(&self, built: BuiltGraph) {
        let arrays = Arc::new(built.arrays);
        {
            let mut published = self.published.write();
            let beside: Vec<MemoryHash> = {
                let overlay = published.overlay.view();
                overlay.edges().into_iter().map(|key| key.from).collect()
            };
            let sequence = published.state.sequence;
            let graph = &mut published.graph;
            if graph.era == built.era
                && let Some(notes) = &mut graph.notes
            {
                notes.retain_after(built.sequence);
                graph.targets.retain_after(built.sequence);
                let mut changed = ChangedVertices::default();
                for memory in notes.memories() {
                    arrays
                        .find(memory)
                        .into_iter()
                        .for_each(|vertex| changed.insert(vertex));
                }
                graph.changed = changed;
                graph.arrays = Some(arrays);
                graph.note(beside, sequence);
            }
        }
        self.graph_building.store(false, Ordering::Release);
    }

    /// Gives a job back whose arrays could not be made; it is offered again.
    pub fn abandon_graph(&self) {
        self.graph_building.store(false, Ordering::Release);
    }

    /// Bytes of the arrays, if there are any.
    #[must_use]
    pub fn graph_arrays(&self) -> Option<Arc<Projection>> {
        self.published.read().graph.arrays.clone()
    }
}

impl GraphJob {
    /// Reads the whole graph of the job's state: takes long, changes nothing.
    ///
    /// # Errors
    /// When storage fails, or the graph has more vertices or edges than can be numbered.
    pub fn build(&self) -> Result<BuiltGraph, GraphError> {
        let view = &self.view;
        let config: &SpaceConfig = &view.state.config;
        let mut builder = ProjectionBuilder::new(config.decay != Decay::None);
        vertices(view, &mut builder)?;
        builder.seal_vertices();
        let range = keys::all_edges(view.partition);
        for entry in read::range(&*view.reader, Family::Edges, &range) {
            let (key, value) = entry?;
            let key = keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?;
            let from = key.from;
            if let Some(edge) = StoredEdge::of(key, &read::decode_edge(&value)?) {
                let slot = || edge.slot;
                builder.edge(
                    from,
                    edge.to,
                    slot,
                    &edge.relation,
                    edge.weight,
                    edge.stamp_millis,
                )?;
            }
        }
        Ok(BuiltGraph {
            arrays: builder.finish(),
            sequence: view.sequence(),
            era: self.era,
        })
    }
}

type Hashes<'a> = Box<dyn Iterator<Item = Result<MemoryHash, StorageError>> + 'a>;

/// Every memory here and every end of an edge, once, in the order of hashes: three ranges of the
/// store that are in this order already.
fn vertices(view: &PartitionView, builder: &mut ProjectionBuilder) -> Result<(), GraphError> {
    let id: PartitionId = view.partition;
    let keys_of = |family, range, hash: fn(&[u8]) -> Option<MemoryHash>| -> Hashes<'_> {
        let records = read::range(&*view.reader, family, &range);
        Box::new(records.map(move |entry| {
            let (key, _) = entry?;
            hash(&key).ok_or_else(|| read::bad_key("a memory or an edge"))
        }))
    };
    let memories = keys_of(
        Family::Memories,
        keys::partition_records(id),
        keys::parse_hash,
    );
    let from = |key: &[u8]| keys::parse_edge(key).map(|key| key.from);
    let sources = keys_of(Family::Edges, keys::all_edges(id), from);
    let to = |key: &[u8]| keys::parse_reverse_edge(key).map(|key| key.to);
    let targets = keys_of(Family::Edges, keys::all_reverse_edges(id), to);
    let mut streams = [memories, sources, targets].map(Iterator::peekable);
    loop {
        let mut heads = [None; 3];
        for (head, stream) in heads.iter_mut().zip(&mut streams) {
            *head = match stream.peek() {
                None => None,
                Some(Ok(hash)) => Some(*hash),
                Some(Err(error)) => return Err(error.clone().into()),
            };
        }
        let Some(least) = heads.into_iter().flatten().min() else {
            return Ok(());
        };
        builder.vertex(least, heads[0] == Some(least))?;
        for stream in &mut streams {
            while stream
                .next_if(|hash| matches!(hash, Ok(hash) if *hash == least))
                .is_some()
            {}
        }
    }
}
