//! A partition's graph as arrays: what spreading and walking read instead of the store.
//!
//! ```text
//! names     hash of each vertex, ascending       16 B a vertex   number <-> hash
//! buckets   first vertex by the hash's top bits   1 B a vertex    hash -> number
//! slots     hash slot of each vertex's id         2 B a vertex    where a target lives
//! sources   first edge, reciprocal of the sum    16 B a vertex
//! edges     target, weight before decay           8 B an edge     by source, target, relation
//! relations number of the relation                4 B an edge
//! stamps    newest evidence, if weights decay     6 B an edge
//! reverse   sources of each target                4 B an edge and 4 B a vertex
//! ```
//!
//! 16 bytes an edge where weights do not decay, 22 where they do; the vertices come on top.
//!
//! Vertices are all memories that the partition holds and all that its edges lead to, here or
//! elsewhere, whether they exist or not. Numbers are in the order of hashes, so the least hash is
//! the least number. An edge whose evidence weighs nothing is left out: it carries nothing and
//! adds nothing to any sum. Immutable once built; what changes later is told by
//! [`Projected`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::scratch::Scratch;
use super::split::Reciprocal;
use crate::types::{Decay, HashSlot, MemoryHash, Relation, SlotRange, Unit};

/// Vertices, and edges, that one projection can number.
pub const PROJECTION_MAX: usize = u32::MAX as usize - 1;
/// In place of a slot: no edge leads there.
const SLOT_UNKNOWN: u16 = u16::MAX;
/// Scratch memory kept for the next query; more queries at once allocate their own.
const SCRATCH_KEPT: usize = 4;

/// Why a graph cannot be projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectionError {
    #[error("a projection numbers at most {PROJECTION_MAX} {what}")]
    TooMany { what: &'static str },
    #[error("{what} were not given in the order of their hashes")]
    OutOfOrder { what: &'static str },
    #[error("an edge leads to a vertex that was not declared")]
    UnknownVertex,
}

/// See the module.
pub struct Projection {
    names: Vec<MemoryHash>,
    buckets: Vec<u32>,
    /// How far a hash's top 64 bits are shifted to give its bucket.
    bucket_shift: u32,
    slots: Vec<u16>,
    here: Bits,
    /// One more than vertices: the last holds the number of edges.
    sources: Vec<Source>,
    edges: Vec<Edge>,
    relations: Vec<u32>,
    relation_names: Vec<Relation>,
    /// Milliseconds of the newest evidence; empty when weights do not decay.
    stamps: Vec<[u8; 6]>,
    /// One more than vertices: places in `reverse`.
    reverse_starts: Vec<u32>,
    reverse: Vec<u32>,
    scratch: Mutex<Vec<Scratch>>,
}

/// What a vertex's out-edges begin with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Source {
    pub(super) first: u32,
    /// Of the weights before decay, without relation factors.
    pub(super) reciprocal: Reciprocal,
}

/// An out-edge. Weights are 1 to 2^32, stored one less.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) to: u32,
    weight_less_one: u32,
}

impl Edge {
    #[inline]
    pub(super) fn weight(self) -> u64 {
        u64::from(self.weight_less_one) + 1
    }
}

/// One bit for each vertex.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Whether the bit is there and set.
    #[inline]
    pub(super) fn get(&self, index: u32) -> bool {
        self.0
            .get(index as usize / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(super) fn set(&mut self, index: u32) {
        let word = index as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}

/// An out-edge of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectedEdge<'a> {
    pub to: u32,
    pub slot: HashSlot,
    pub relation: &'a Relation,
    /// Before decay.
    pub weight: Unit,
    /// Of the newest evidence; 0 where weights do not decay.
    pub stamp_millis: u64,
}

/// What a projection takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectionBytes {
    pub vertices: usize,
    /// Edges and reverse adjacency, without what there is once per vertex.
    pub edges: usize,
}

impl Projection {
    #[must_use]
    pub fn vertices(&self) -> u32 {
        self.names.len() as u32
    }

    #[must_use]
    pub fn edges(&self) -> u32 {
        self.edges.len() as u32
    }

    #[must_use]
    pub fn bytes(&self) -> ProjectionBytes {
        ProjectionBytes {
            vertices: self.names.capacity() * 16
                + self.buckets.capacity() * 4
                + self.slots.capacity() * 2
                + self.here.bytes()
                + self.sources.capacity() * size_of::<Source>()
                + self.reverse_starts.capacity() * 4,
            edges: self.edges.capacity() * size_of::<Edge>()
                + self.relations.capacity() * 4
                + self.stamps.capacity() * 6
                + self.reverse.capacity() * 4,
        }
    }

    /// The vertex of this hash.
    #[must_use]
    pub fn find(&self, memory: MemoryHash) -> Option<u32> {
        let bucket = bucket_of(memory, self.bucket_shift);
        let range = self.buckets[bucket] as usize..self.buckets[bucket + 1] as usize;
        let place = self.names[range.clone()].binary_search(&memory).ok()?;
        Some((range.start + place) as u32)
    }

    /// The hash of a vertex below [`Self::vertices`].
    #[must_use]
    pub fn name(&self, vertex: u32) -> MemoryHash {
        self.names[vertex as usize]
    }

    /// Hash slot of a vertex's id, if an edge leads to it.
    #[inline]
    pub(super) fn slot(&self, vertex: u32) -> Option<HashSlot> {
        let slot = self.slots[vertex as usize];
        (slot != SLOT_UNKNOWN).then_some(HashSlot(slot))
    }

    /// Whether the partition holds the memory, as of when the projection was built.
    #[inline]
    #[must_use]
    pub fn is_here(&self, vertex: u32) -> bool {
        self.here.get(vertex)
    }

    #[must_use]
    pub fn relation_names(&self) -> &[Relation] {
        &self.relation_names
    }

    /// Whether weights have an age.
    #[must_use]
    pub fn has_stamps(&self) -> bool {
        !self.stamps.is_empty()
    }

    #[inline]
    pub(super) fn source(&self, vertex: u32) -> (Source, Range<usize>) {
        let source = self.sources[vertex as usize];
        let end = self.sources[vertex as usize + 1].first;
        (source, source.first as usize..end as usize)
    }

    #[inline]
    pub(super) fn edges_of(&self, range: Range<usize>) -> &[Edge] {
        &self.edges[range]
    }

    pub(super) fn relation_numbers(&self, range: Range<usize>) -> &[u32] {
        &self.relations[range]
    }

    /// Milliseconds of an edge's newest evidence; 0 where weights do not decay.
    pub(super) fn stamp_millis(&self, edge: usize) -> u64 {
        let Some(bytes) = self.stamps.get(edge) else {
            return 0;
        };
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    }

    /// Out-edges of a vertex, as they are stored: by target, then relation.
    pub fn out_edges(&self, vertex: u32) -> impl Iterator<Item = ProjectedEdge<'_>> {
        let (_, range) = self.source(vertex);
        range.map(|edge| self.projected_edge(edge))
    }

    /// Edges from one vertex to another.
    pub fn edges_between(&self, from: u32, to: u32) -> impl Iterator<Item = ProjectedEdge<'_>> {
        let (_, range) = self.source(from);
        let edges = &self.edges[range.clone()];
        let first = edges.partition_point(|edge| edge.to < to);
        let end = edges.partition_point(|edge| edge.to <= to);
        (range.start + first..range.start + end).map(|edge| self.projected_edge(edge))
    }

    fn projected_edge(&self, edge: usize) -> ProjectedEdge<'_> {
        let Edge { to, .. } = self.edges[edge];
        ProjectedEdge {
            to,
            slot: HashSlot(self.slots[to as usize]),
            relation: &self.relation_names[self.relations[edge] as usize],
            weight: Unit::from_bits(self.edges[edge].weight()).unwrap_or(Unit::ONE),
            stamp_millis: self.stamp_millis(edge),
        }
    }

    /// Vertices of this partition with an edge to this one, once per edge, ascending.
    #[must_use]
    pub fn in_sources(&self, vertex: u32) -> &[u32] {
        let start = self.reverse_starts[vertex as usize] as usize;
        let end = self.reverse_starts[vertex as usize + 1] as usize;
        &self.reverse[start..end]
    }

    /// Memory for one query; none of an earlier one is left in it.
    pub(super) fn scratch(&self) -> Scratch {
        let kept = self.scratch.try_lock().and_then(|mut kept| kept.pop());
        kept.unwrap_or_else(|| Scratch::new(self.names.len()))
    }

    /// Takes it back, clean, for the next query.
    pub(super) fn give_back(&self, scratch: Scratch) {
        if let Some(mut kept) = self.scratch.try_lock()
            && kept.len() < SCRATCH_KEPT
        {
            kept.push(scratch);
        }
    }
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projection")
            .field("vertices", &self.vertices())
            .field("edges", &self.edges())
            .finish_non_exhaustive()
    }
}

/// Vertices of a projection whose memory or out-edges have changed since it was built. Copied on
/// write in parts, so that readers keep theirs.
#[derive(Clone, Debug, Default)]
pub struct ChangedVertices {
    parts: Vec<Option<Arc<[u64; CHANGED_WORDS]>>>,
}

/// Words of one part: 32,768 vertices.
const CHANGED_WORDS: usize = 512;

impl ChangedVertices {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    #[inline]
    #[must_use]
    pub fn contains(&self, vertex: u32) -> bool {
        let word = vertex as usize / 64;
        let part = self.parts.get(word / CHANGED_WORDS);
        part.and_then(Option::as_ref)
            .is_some_and(|part| part[word % CHANGED_WORDS] >> (vertex % 64) & 1 == 1)
    }

    pub fn insert(&mut self, vertex: u32) {
        let word = vertex as usize / 64;
        let part = word / CHANGED_WORDS;
        if part >= self.parts.len() {
            self.parts.resize(part + 1, None);
        }
        let part = self.parts[part].get_or_insert_with(|| Arc::new([0; CHANGED_WORDS]));
        Arc::make_mut(part)[word % CHANGED_WORDS] |= 1 << (vertex % 64);
    }
}

/// A projection as one query reads it.
#[derive(Clone, Debug)]
pub struct Projected {
    pub graph: Arc<Projection>,
    /// What has to be read through the adjacency instead.
    pub changed: ChangedVertices,
    /// Slots of the partition: what lies outside is sent on.
    pub slots: SlotRange,
    pub decay: Decay,
    /// The time at which decay is read.
    pub now_millis: u64,
    /// Not every memory that is here passes the query's filter.
    pub filtered: bool,
}

fn bucket_of(memory: MemoryHash, shift: u32) -> usize {
    let [a, b, c, d, e, f, g, h, ..] = memory.0;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> shift) as usize
}

/// Builds a [`Projection`] from vertices and then edges, both in the order of hashes: that in
/// which a store has them.
pub struct ProjectionBuilder {
    projection: Projection,
    with_stamps: bool,
    relation_numbers: BTreeMap<Relation, u32>,
    /// Vertex whose edges are being added, and the sum of their weights.
    current: Option<u32>,
    sum: u64,
}

impl ProjectionBuilder {
    #[must_use]
    pub fn new(with_stamps: bool) -> Self {
        Self {
            projection: Projection {
                names: Vec::new(),
                buckets: Vec::new(),
                bucket_shift: 0,
                slots: Vec::new(),
                here: Bits::default(),
                sources: Vec::new(),
                edges: Vec::new(),
                relations: Vec::new(),
                relation_names: Vec::new(),
                stamps: Vec::new(),
                reverse_starts: Vec::new(),
                reverse: Vec::new(),
                scratch: Mutex::default(),
            },
            with_stamps,
            relation_numbers: BTreeMap::new(),
            current: None,
            sum: 0,
        }
    }

    /// The next vertex; `is_here` when the partition holds this memory.
    ///
    /// # Errors
    /// When there are too many, or their order is not that of hashes.
    pub fn vertex(&mut self, memory: MemoryHash, is_here: bool) -> Result<(), ProjectionError> {
        let projection = &mut self.projection;
        if projection.names.last().is_some_and(|last| *last >= memory) {
            return Err(ProjectionError::OutOfOrder { what: "vertices" });
        }
        if projection.names.len() >= PROJECTION_MAX {
            return Err(ProjectionError::TooMany { what: "vertices" });
        }
        if is_here {
            projection.here.set(projection.names.len() as u32);
        }
        projection.names.push(memory);
        Ok(())
    }

    /// Ends the vertices; edges follow.
    pub fn seal_vertices(&mut self) {
        let projection = &mut self.projection;
        let len = projection.names.len();
        projection.names.shrink_to_fit();
        projection.slots = vec![SLOT_UNKNOWN; len];
        projection.sources = vec![Source::default(); len + 1];
        // Four vertices a bucket, and at least one bucket.
        let bits = (len / 4).max(1).ilog2().max(1);
        projection.bucket_shift = 64 - bits;
        let mut starts = vec![0_u32; (1 << bits) + 1];
        for name in &projection.names {
            starts[bucket_of(*name, projection.bucket_shift) + 1] += 1;
        }
        for bucket in 1..starts.len() {
            starts[bucket] += starts[bucket - 1];
        }
        projection.buckets = starts;
    }

    /// The next edge, by source and, where lookups shall be quick, by target. One of weight 0 is
    /// left out. `slot` is the target's.
    ///
    /// # Errors
    /// When an end was not declared, there are too many, or their order is not that of sources.
    pub fn edge(
        &mut self,
        from: MemoryHash,
        to: MemoryHash,
        slot: impl FnOnce() -> HashSlot,
        relation: &Relation,
        weight: Unit,
        stamp_millis: u64,
    ) -> Result<(), ProjectionError> {
        let Some(weight_less_one) = weight.bits().checked_sub(1) else {
            return Ok(());
        };
        let from = match self.current {
            Some(current) if self.projection.names[current as usize] == from => current,
            _ => self.open(from)?,
        };
        let target = self
            .projection
            .find(to)
            .ok_or(ProjectionError::UnknownVertex)?;
        let number = self.relation_number(relation);
        let projection = &mut self.projection;
        if projection.edges.len() >= PROJECTION_MAX {
            return Err(ProjectionError::TooMany { what: "edges" });
        }
        debug_assert_eq!(self.current, Some(from), "edges go to the open source");
        projection.slots[target as usize] = slot().0;
        projection.edges.push(Edge {
            to: target,
            weight_less_one: weight_less_one as u32,
        });
        projection.relations.push(number);
        if self.with_stamps {
            let bytes = stamp_millis.to_le_bytes();
            let mut narrow = [0; 6];
            narrow.copy_from_slice(&bytes[..6]);
            projection.stamps.push(narrow);
        }
        self.sum += weight.bits();
        Ok(())
    }

    fn open(&mut self, from: MemoryHash) -> Result<u32, ProjectionError> {
        let vertex = self
            .projection
            .find(from)
            .ok_or(ProjectionError::UnknownVertex)?;
        if self.current.is_some_and(|current| current >= vertex) {
            return Err(ProjectionError::OutOfOrder { what: "edges" });
        }
        self.close();
        let before = self.current.map_or(0, |current| current as usize + 1);
        let first = self.projection.edges.len() as u32;
        for source in &mut self.projection.sources[before..=vertex as usize] {
            source.first = first;
        }
        self.current = Some(vertex);
        Ok(vertex)
    }

    fn close(&mut self) {
        let sum = std::mem::take(&mut self.sum);
        if let Some(current) = self.current
            && sum > 0
        {
            self.projection.sources[current as usize].reciprocal = Reciprocal::of(sum);
        }
    }

    fn relation_number(&mut self, relation: &Relation) -> u32 {
        let names = &mut self.projection.relation_names;
        // Runs of the same one are common.
        if let Some(last) = self.projection.relations.last()
            && names[*last as usize] == *relation
        {
            return *last;
        }
        if let Some(number) = self.relation_numbers.get(relation) {
            return *number;
        }
        let number = names.len() as u32;
        names.push(relation.clone());
        self.relation_numbers.insert(relation.clone(), number);
        number
    }

    #[must_use]
    pub fn finish(mut self) -> Projection {
        self.close();
        let before = self.current.map_or(0, |current| current as usize + 1);
        let mut projection = self.projection;
        let end = projection.edges.len() as u32;
        for source in &mut projection.sources[before..] {
            source.first = end;
        }
        projection.edges.shrink_to_fit();
        projection.relations.shrink_to_fit();
        projection.stamps.shrink_to_fit();
        reverse(&mut projection);
        projection
    }
}

/// Sources by target: a counting sort, stable, so that they ascend.
fn reverse(projection: &mut Projection) {
    let vertices = projection.names.len();
    let mut starts = vec![0_u32; vertices + 1];
    for edge in &projection.edges {
        starts[edge.to as usize + 1] += 1;
    }
    for vertex in 0..vertices {
        starts[vertex + 1] += starts[vertex];
    }
    let mut next = starts.clone();
    let mut sources = vec![0; projection.edges.len()];
    for vertex in 0..vertices as u32 {
        let (_, range) = projection.source(vertex);
        for edge in range {
            let place = &mut next[projection.edges[edge].to as usize];
            sources[*place as usize] = vertex;
            *place += 1;
        }
    }
    projection.reverse_starts = starts;
    projection.reverse = sources;
}
