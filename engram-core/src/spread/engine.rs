//! One partition's part of a spread over arrays: the rules of [`super::board`], by vertex number.
//!
//! A hop has two phases. *Counting* goes through the vertices with arrivals and applies filter,
//! threshold, revisit and refractory rules to each added-up amount. *Sending* splits what the
//! counted ones send and adds the shares up at their targets. While few vertices have arrivals
//! they are kept in a list; when many edges are followed the list costs more than it saves, and
//! the next counting looks at all vertices in their order instead. Sums of integers commute, so
//! neither this nor the number of threads changes a bit.
//!
//! Vertices that the projection does not know get numbers behind its own, for this query.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::board::{BoardError, Outgoing, scale};
use super::crew::Crew;
use super::outcome::{HopStats, Top, most_activated};
use super::parameters::{Normalization, SpreadParameters};
use super::projection::{Edge, Projected, Projection};
use super::scratch::Scratch;
use super::split::{QuickSplit, Split};
use super::wire::Arrival;
use super::{Adjacency, OutEdge};
use crate::edges::decay_factor;
use crate::kernel::prefetch;
use crate::limits::SPREAD_TARGETS_MAX;
use crate::types::{Decay, HashSlot, MemoryHash, SlotRange, Unit};

/// One in so many vertices must be a target, counted with doubles, for a hop to be dense.
const DENSE_SHARE: usize = 8;
/// Edges of one hop below which more threads are not worth their pieces.
const CREW_EDGES_MIN: u64 = if cfg!(test) { 4 } else { 1 << 16 };
/// Targets of one merging piece, at least.
const PIECE_TARGETS_MIN: usize = if cfg!(test) { 4 } else { 1_024 };
/// Pieces per lane: enough that an uneven one does not hold up the others.
const PIECES_PER_LANE: usize = 4;

/// Edges between the one that is followed and the one whose target is fetched from memory.
const EDGES_AHEAD: usize = 32;

/// The state of one query at one partition.
pub(super) struct Engine {
    projected: Arc<Projected>,
    scratch: Scratch,
    extra: Extra,
    edge_rules: EdgeRules,
}

/// Vertices without a place in the projection.
#[derive(Default)]
struct Extra {
    numbers: BTreeMap<MemoryHash, u32>,
    names: Vec<MemoryHash>,
    /// Slots that the projection does not know.
    slots: BTreeMap<u32, HashSlot>,
}

/// What the query asks of edges.
struct EdgeRules {
    /// Factor by relation number; `None` is not followed. Empty: all are, with factor 1.
    factors: Vec<Option<Unit>>,
    decays: bool,
    fan_limit: Option<usize>,
}

impl EdgeRules {
    fn new(projected: &Projected, parameters: &SpreadParameters) -> Self {
        let plain = parameters.relations.is_none() && parameters.relation_factors.is_empty();
        let names = projected.graph.relation_names().iter();
        let factor = |relation| parameters.effective_weight(relation, Unit::ONE);
        Self {
            factors: if plain {
                Vec::new()
            } else {
                names.map(factor).collect()
            },
            decays: projected.graph.has_stamps(),
            fan_limit: parameters.fan_limit.map(|limit| limit as usize),
        }
    }

    /// Weights count as they are stored, and all shares are sent.
    fn are_plain(&self) -> bool {
        self.factors.is_empty() && !self.decays && self.fan_limit.is_none()
    }
}

/// An edge with the weight that counts; reused from memory to memory.
#[derive(Clone, Copy)]
struct Weighted {
    to: u32,
    relation: u32,
    weight: u64,
}

/// Where shares go: straight to the next hop, or into buckets by ranges of targets.
trait Sink {
    fn add(&mut self, target: u32, share: u64);

    /// A share for this target follows soon.
    fn expect(&self, _target: u32) {}
}

/// Few targets: they are listed.
struct Listed<'a> {
    next: &'a mut [u64],
    touched: &'a mut Vec<u32>,
}

impl Sink for Listed<'_> {
    #[inline]
    fn add(&mut self, target: u32, share: u64) {
        let held = &mut self.next[target as usize];
        if *held == 0 && share > 0 {
            self.touched.push(target);
        }
        *held = held.saturating_add(share);
    }
}

/// Many targets: they are found by looking.
struct Unlisted<'a>(&'a mut [u64]);

impl Sink for Unlisted<'_> {
    #[inline]
    fn add(&mut self, target: u32, share: u64) {
        let held = &mut self.0[target as usize];
        *held = held.saturating_add(share);
    }

    #[inline]
    fn expect(&self, target: u32) {
        prefetch(&self.0[target as usize]);
    }
}

/// For several threads: shares by ranges of 2^`shift` targets.
struct Bucketed {
    buckets: Vec<Vec<(u32, u64)>>,
    shift: u32,
}

impl Sink for Bucketed {
    #[inline]
    fn add(&mut self, target: u32, share: u64) {
        if share > 0 {
            self.buckets[(target >> self.shift) as usize].push((target, share));
        }
    }
}

/// What one hop sent, besides what stays in this partition.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) outgoing: Vec<Outgoing>,
    /// What waits here for the next hop; where nothing is sent on, only whether it is 0 matters.
    pub(super) kept: u64,
    /// What rounding down can have taken from all shares together, at most: less than 1 for each
    /// edge, and for each memory that sends.
    pub(super) rounding: u64,
}

impl Engine {
    pub(super) fn new(projected: &Arc<Projected>, parameters: &SpreadParameters) -> Self {
        let mut scratch = projected.graph.scratch();
        scratch.keeps_sent = parameters.refractory_hops > 0;
        scratch.grow(scratch.next.len());
        Self {
            scratch,
            extra: Extra::default(),
            edge_rules: EdgeRules::new(projected, parameters),
            projected: Arc::clone(projected),
        }
    }

    /// Distinct memories activated so far.
    pub(super) fn activated(&self) -> u64 {
        self.scratch.activated.len() as u64
    }

    /// The most activated: greatest total, then least hash.
    pub(super) fn top(&self, limit: usize) -> Vec<(MemoryHash, u64)> {
        let totals = &self.scratch.total;
        let activated = self.scratch.activated.iter();
        if !self.extra.names.is_empty() {
            let named = activated.map(|vertex| (self.name(*vertex), totals[*vertex as usize]));
            return most_activated(named, limit);
        }
        // The order of numbers is that of hashes, so only what is answered has to be named.
        let mut top = Top::new(limit);
        for vertex in activated {
            top.offer(totals[*vertex as usize], *vertex);
        }
        let best = top.finish();
        best.map(|(vertex, total)| (self.name(vertex), total))
            .collect()
    }

    /// Applies the rules to everything that arrived in `hop`: `arrivals`, and what the hop before
    /// left here.
    pub(super) fn process<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        arrivals: Vec<Arrival>,
        crew: &dyn Crew,
    ) -> Result<(HopStats, Sent), BoardError<A::Error>> {
        for arrival in arrivals {
            let vertex = self.number(arrival.target);
            self.arrive(vertex, arrival.amount);
        }
        let mut stats = HopStats {
            hop,
            ..HopStats::default()
        };
        stats.active = self.count(adjacency, parameters, hop)?;
        let mut rounding = 0;
        stats.edges_followed = self.send(adjacency, parameters, hop, crew, &mut rounding)?;
        let mut sent = self.sort_out(stats.edges_followed);
        sent.rounding = rounding;
        if sent.outgoing.len() > SPREAD_TARGETS_MAX {
            return Err(BoardError::TooManyTargets);
        }
        Ok((stats, sent))
    }

    fn graph(&self) -> &Projection {
        &self.projected.graph
    }

    fn number(&mut self, memory: MemoryHash) -> u32 {
        if let Some(vertex) = self.graph().find(memory) {
            return vertex;
        }
        let known = self.graph().vertices();
        let Extra { numbers, names, .. } = &mut self.extra;
        let number = *numbers.entry(memory).or_insert_with(|| {
            names.push(memory);
            known + names.len() as u32 - 1
        });
        let len = known as usize + names.len();
        if len > self.scratch.next.len() {
            self.scratch.grow(len);
        }
        number
    }

    fn name(&self, vertex: u32) -> MemoryHash {
        let known = self.graph().vertices();
        match vertex.checked_sub(known) {
            None => self.graph().name(vertex),
            Some(extra) => self.extra.names[extra as usize],
        }
    }

    /// Slot of a vertex that an edge leads to.
    fn slot(&self, vertex: u32) -> Option<HashSlot> {
        let known = (vertex < self.graph().vertices()).then(|| self.graph().slot(vertex));
        known
            .flatten()
            .or_else(|| self.extra.slots.get(&vertex).copied())
    }

    fn arrive(&mut self, vertex: u32, amount: u64) {
        let Scratch {
            next,
            touched,
            is_dense,
            ..
        } = &mut self.scratch;
        if *is_dense {
            Unlisted(next).add(vertex, amount);
        } else {
            Listed { next, touched }.add(vertex, amount);
        }
    }

    /// Counting: fills `senders` and `others` with what sends, and gives how many counted.
    fn count<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
    ) -> Result<u64, BoardError<A::Error>> {
        let mut counted = 0;
        self.scratch.senders.clear();
        self.scratch.others.clear();
        self.scratch.expected = 0;
        if self.scratch.is_dense {
            for vertex in 0..self.scratch.next.len() as u32 {
                counted += self.count_one(adjacency, parameters, hop, vertex)?;
            }
        } else {
            for place in 0..self.scratch.touched.len() {
                let vertex = self.scratch.touched[place];
                counted += self.count_one(adjacency, parameters, hop, vertex)?;
            }
            self.scratch.touched.clear();
        }
        self.scratch.is_dense = false;
        Ok(counted)
    }

    #[inline]
    fn count_one<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        vertex: u32,
    ) -> Result<u64, BoardError<A::Error>> {
        let place = vertex as usize;
        let mut amount = self.scratch.next[place];
        if amount == 0 {
            return Ok(0);
        }
        self.scratch.next[place] = 0;
        let total = self.scratch.total[place];
        if total == 0 && !self.resolves(adjacency, vertex)? || amount < parameters.threshold {
            return Ok(0);
        }
        if total > 0 {
            amount = scale(amount, parameters.revisit);
            if amount == 0 {
                return Ok(0);
            }
        } else {
            self.scratch.activated.push(vertex);
        }
        self.scratch.total[place] = total.saturating_add(amount);
        if hop < parameters.hops && !self.is_refractory(vertex, hop, parameters) {
            if self.is_as_projected(vertex) {
                // Their edges are needed next: this also brings them nearer.
                self.scratch.expected += self.graph().source(vertex).1.len() as u64;
                self.scratch.senders.push((vertex, amount));
            } else {
                self.scratch.others.push((vertex, amount));
            }
        }
        Ok(1)
    }

    #[inline]
    fn resolves<A: Adjacency>(
        &self,
        adjacency: &A,
        vertex: u32,
    ) -> Result<bool, BoardError<A::Error>> {
        if self.is_as_projected(vertex) {
            if !self.graph().is_here(vertex) {
                return Ok(false);
            }
            if !self.projected.filtered {
                return Ok(true);
            }
        }
        adjacency
            .resolve(self.name(vertex))
            .map_err(BoardError::Adjacency)
    }

    #[inline]
    fn is_as_projected(&self, vertex: u32) -> bool {
        let changed = &self.projected.changed;
        vertex < self.graph().vertices() && (changed.is_empty() || !changed.contains(vertex))
    }

    #[inline]
    fn is_refractory(&self, vertex: u32, hop: u32, parameters: &SpreadParameters) -> bool {
        let last_sent = self.scratch.last_sent.get(vertex as usize);
        match last_sent {
            None | Some(0) => false,
            Some(after) => hop + 1 - u32::from(*after) <= parameters.refractory_hops,
        }
    }

    /// Sending: splits what `senders` and `others` hold, adds it up at the targets, and gives how many edges
    /// carried a share.
    fn send<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        crew: &dyn Crew,
        rounding: &mut u64,
    ) -> Result<u64, BoardError<A::Error>> {
        let senders = std::mem::take(&mut self.scratch.senders);
        let others = std::mem::take(&mut self.scratch.others);
        let expected = self.scratch.expected;
        *rounding = expected + (senders.len() + others.len()) as u64;
        let mut total = self.send_projected(parameters, hop, &senders, expected, crew);
        let mut edges = Vec::new();
        for (vertex, amount) in &others {
            edges.clear();
            adjacency
                .out_edges(self.name(*vertex), &mut edges)
                .map_err(BoardError::Adjacency)?;
            *rounding += edges.len() as u64;
            let followed = self.send_read(parameters, *amount, &edges);
            self.note_sent(*vertex, hop, followed);
            total += followed;
        }
        (self.scratch.senders, self.scratch.others) = (senders, others);
        Ok(total)
    }

    fn note_sent(&mut self, vertex: u32, hop: u32, followed: u64) {
        if followed > 0
            && let Some(last_sent) = self.scratch.last_sent.get_mut(vertex as usize)
        {
            // Hops are few.
            *last_sent = hop as u8 + 1;
        }
    }

    fn send_projected(
        &mut self,
        parameters: &SpreadParameters,
        hop: u32,
        senders: &[(u32, u64)],
        expected: u64,
        crew: &dyn Crew,
    ) -> u64 {
        let vertices = self.scratch.next.len();
        let is_dense = expected as usize >= vertices / DENSE_SHARE;
        if crew.lanes() > 1 && expected >= CREW_EDGES_MIN {
            self.scratch.is_dense = true;
            return self.send_with_crew(parameters, hop, senders, expected, crew);
        }
        self.scratch.is_dense = is_dense;
        let (graph, rules) = (&*self.projected.graph, &self.edge_rules);
        let age = (&self.projected.decay, self.projected.now_millis);
        let Scratch {
            next,
            touched,
            last_sent,
            ..
        } = &mut self.scratch;
        let mut work = Sending {
            graph,
            rules,
            age,
            parameters,
            weighted: Vec::new(),
        };
        if is_dense {
            work.all(senders, &mut Unlisted(next), last_sent, hop)
        } else {
            work.all(senders, &mut Listed { next, touched }, last_sent, hop)
        }
    }

    /// Two rounds of pieces: senders into buckets of targets, then each range of targets takes
    /// in its buckets.
    fn send_with_crew(
        &mut self,
        parameters: &SpreadParameters,
        hop: u32,
        senders: &[(u32, u64)],
        expected: u64,
        crew: &dyn Crew,
    ) -> u64 {
        let pieces = crew.lanes() * PIECES_PER_LANE;
        let graph = &*self.projected.graph;
        let ranges = even_ranges(graph, senders, expected, pieces);
        let vertices = self.scratch.next.len();
        let width = (vertices / pieces)
            .next_power_of_two()
            .max(PIECE_TARGETS_MIN);
        let shift = width.ilog2();
        let (rules, age) = (
            &self.edge_rules,
            (&self.projected.decay, self.projected.now_millis),
        );
        let done: Vec<Mutex<Option<PieceDone>>> = ranges.iter().map(|_| Mutex::default()).collect();
        let keeps_sent = self.scratch.keeps_sent;
        crew.run(ranges.len(), &|piece| {
            let mut work = Sending {
                graph,
                rules,
                age,
                parameters,
                weighted: Vec::new(),
            };
            let buckets = vec![Vec::new(); vertices.div_ceil(width)];
            let mut sink = Bucketed { buckets, shift };
            let mut sent = Vec::new();
            let followed = work.each(&senders[ranges[piece].clone()], &mut sink, |vertex| {
                if keeps_sent {
                    sent.push(vertex);
                }
            });
            *done[piece].lock() = Some(PieceDone {
                followed,
                sent,
                buckets: sink.buckets,
            });
        });
        let done: Vec<PieceDone> = done
            .into_iter()
            .filter_map(|piece| piece.into_inner())
            .collect();
        assert_eq!(done.len(), ranges.len(), "a crew left out a piece");
        let parts: Vec<Mutex<&mut [u64]>> = self
            .scratch
            .next
            .chunks_mut(width)
            .map(Mutex::new)
            .collect();
        crew.run(parts.len(), &|part| {
            let mut next = parts[part].lock();
            let first = part << shift;
            for piece in &done {
                for (target, share) in &piece.buckets[part] {
                    let held = &mut next[*target as usize - first];
                    *held = held.saturating_add(*share);
                }
            }
        });
        drop(parts);
        for vertex in done.iter().flat_map(|piece| &piece.sent) {
            self.scratch.last_sent[*vertex as usize] = hop as u8 + 1;
        }
        done.iter().map(|piece| piece.followed).sum()
    }

    /// Shares over edges that were read one by one.
    fn send_read(&mut self, parameters: &SpreadParameters, amount: u64, edges: &[OutEdge]) -> u64 {
        let weighted = edges.iter().filter_map(|edge| {
            let weight = parameters.effective_weight(&edge.relation, edge.weight)?;
            Some((edge, weight.bits()))
        });
        let weighted: Vec<(&OutEdge, u64)> = weighted.collect();
        let sum = weighted.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let split = Split::new(amount, parameters.decay, sum, parameters.normalization);
        let shares = weighted
            .iter()
            .map(|(edge, weight)| (split.share_of(*weight), *edge));
        let mut shares: Vec<(u64, &OutEdge)> = shares.filter(|(share, _)| *share > 0).collect();
        if let Some(limit) = self.edge_rules.fan_limit {
            shares.sort_unstable_by(|(left, a), (right, b)| {
                let names = (a.to, &a.relation).cmp(&(b.to, &b.relation));
                right.cmp(left).then(names)
            });
            shares.truncate(limit);
        }
        for (share, edge) in &shares {
            let target = self.number(edge.to);
            if self.slot(target).is_none() {
                self.extra.slots.insert(target, edge.slot);
            }
            self.arrive(target, *share);
        }
        shares.len() as u64
    }

    /// Takes out what goes to other partitions; `followed` edges carried a share.
    fn sort_out(&mut self, followed: u64) -> Sent {
        let own = self.projected.slots;
        if own == SlotRange::ALL {
            return Sent {
                kept: followed,
                ..Sent::default()
            };
        }
        let mut sent = Sent::default();
        let mut place = |engine: &mut Self, vertex: u32| -> bool {
            let amount = engine.scratch.next[vertex as usize];
            let slot = engine.slot(vertex).filter(|slot| !own.contains(*slot));
            let (Some(slot), true) = (slot, amount > 0) else {
                sent.kept += u64::from(amount > 0);
                return true;
            };
            engine.scratch.next[vertex as usize] = 0;
            let arrival = Arrival {
                target: engine.name(vertex),
                amount,
                best: None,
            };
            sent.outgoing.push(Outgoing { slot, arrival });
            false
        };
        if self.scratch.is_dense {
            for vertex in 0..self.scratch.next.len() as u32 {
                place(self, vertex);
            }
        } else {
            let mut touched = std::mem::take(&mut self.scratch.touched);
            touched.retain(|vertex| place(self, *vertex));
            self.scratch.touched = touched;
        }
        sent
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clean(self.graph().vertices() as usize);
        self.graph().give_back(scratch);
    }
}

struct PieceDone {
    followed: u64,
    /// Vertices that sent, where a rule asks for it.
    sent: Vec<u32>,
    buckets: Vec<Vec<(u32, u64)>>,
}

/// Ranges of senders with about the same number of edges.
fn even_ranges(
    graph: &Projection,
    senders: &[(u32, u64)],
    edges: u64,
    pieces: usize,
) -> Vec<Range<usize>> {
    let each = edges.div_ceil(pieces as u64).max(1);
    let (mut ranges, mut start, mut gathered) = (Vec::new(), 0, 0);
    for (index, (vertex, _)) in senders.iter().enumerate() {
        gathered += graph.source(*vertex).1.len() as u64;
        if gathered >= each {
            ranges.push(start..index + 1);
            (start, gathered) = (index + 1, 0);
        }
    }
    if start < senders.len() {
        ranges.push(start..senders.len());
    }
    ranges
}

/// Splits amounts over the edges of a projection.
struct Sending<'a> {
    graph: &'a Projection,
    rules: &'a EdgeRules,
    /// How weights decay, and the time at which that is read.
    age: (&'a Decay, u64),
    parameters: &'a SpreadParameters,
    weighted: Vec<Weighted>,
}

impl Sending<'_> {
    /// Sends for each, and notes in which hop who has sent.
    fn all(
        &mut self,
        senders: &[(u32, u64)],
        sink: &mut impl Sink,
        last_sent: &mut [u8],
        hop: u32,
    ) -> u64 {
        if last_sent.is_empty() {
            return self.each(senders, sink, |_| ());
        }
        self.each(senders, sink, |vertex| {
            last_sent[vertex as usize] = hop as u8 + 1;
        })
    }

    fn each(
        &mut self,
        senders: &[(u32, u64)],
        sink: &mut impl Sink,
        mut sent: impl FnMut(u32),
    ) -> u64 {
        let mut followed = 0;
        let plain = self.rules.are_plain() && self.parameters.normalization == Normalization::Fan;
        for (vertex, amount) in senders {
            let carried = if plain {
                self.plain(*vertex, *amount, sink)
            } else {
                self.by_rules(*vertex, *amount, sink)
            };
            if carried > 0 {
                sent(*vertex);
            }
            followed += carried;
        }
        followed
    }

    /// `fan`, every edge with the weight that is stored.
    #[inline]
    fn plain(&self, vertex: u32, amount: u64, sink: &mut impl Sink) -> u64 {
        let (source, range) = self.graph.source(vertex);
        if range.is_empty() {
            return 0;
        }
        let edges = self.graph.edges_of(range);
        let sum = || edges.iter().map(|edge| u128::from(edge.weight())).sum();
        let decay = self.parameters.decay;
        let mut carried = 0;
        if let Some(split) = QuickSplit::new(amount, decay, source.reciprocal) {
            for (place, edge) in edges.iter().enumerate() {
                if let Some(later) = edges.get(place + EDGES_AHEAD) {
                    sink.expect(later.to);
                }
                let weight = edge.weight();
                let share = match split.share_of(weight) {
                    Some(share) => share,
                    None => split.in_full(weight, sum()),
                };
                carried += u64::from(share > 0);
                sink.add(edge.to, share);
            }
            return carried;
        }
        let split = Split::new(amount, decay, sum(), Normalization::Fan);
        for edge in edges {
            let share = split.share_of(edge.weight());
            carried += u64::from(share > 0);
            sink.add(edge.to, share);
        }
        carried
    }

    fn by_rules(&mut self, vertex: u32, amount: u64, sink: &mut impl Sink) -> u64 {
        self.weigh(vertex);
        let sum = self
            .weighted
            .iter()
            .map(|edge| u128::from(edge.weight))
            .sum();
        let SpreadParameters {
            decay,
            normalization,
            ..
        } = *self.parameters;
        let split = Split::new(amount, decay, sum, normalization);
        // From here on the shares.
        for edge in &mut self.weighted {
            edge.weight = split.share_of(edge.weight);
        }
        self.weighted.retain(|edge| edge.weight > 0);
        if let Some(limit) = self.rules.fan_limit
            && self.weighted.len() > limit
        {
            let names = self.graph.relation_names();
            // The order of vertices is that of their hashes.
            self.weighted.select_nth_unstable_by(limit, |a, b| {
                let relations = || names[a.relation as usize].cmp(&names[b.relation as usize]);
                (b.weight.cmp(&a.weight))
                    .then(a.to.cmp(&b.to))
                    .then_with(relations)
            });
            self.weighted.truncate(limit);
        }
        for edge in &self.weighted {
            sink.add(edge.to, edge.weight);
        }
        self.weighted.len() as u64
    }

    /// The edges that are followed, with the weights that count.
    fn weigh(&mut self, vertex: u32) {
        self.weighted.clear();
        let (_, range) = self.graph.source(vertex);
        let relations = self.graph.relation_numbers(range.clone());
        let edges = self.graph.edges_of(range.clone());
        for ((edge, relation), place) in edges.iter().zip(relations).zip(range) {
            if let Some(weight) = self.weight(*edge, *relation, place) {
                self.weighted.push(Weighted {
                    to: edge.to,
                    relation: *relation,
                    weight,
                });
            }
        }
    }

    fn weight(&self, edge: Edge, relation: u32, place: usize) -> Option<u64> {
        let factor = match self.rules.factors.get(relation as usize) {
            None => Unit::ONE,
            Some(factor) => (*factor)?,
        };
        let mut weight = Unit::from_bits(edge.weight())?;
        if self.rules.decays {
            let (decay, now_millis) = self.age;
            let age_millis = now_millis.saturating_sub(self.graph.stamp_millis(place));
            weight = weight.times(decay_factor(decay, age_millis));
        }
        Some(weight.times(factor).bits())
    }
}
