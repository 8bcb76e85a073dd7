//! The overlay of one replica: edge changes that it accepted or received and that the log has not
//! adopted yet (ADR 0003). On disk each is a record of its own; in memory they are found by edge, so
//! that every read can join them with the log's state.
//!
//! Changed only while the partition's `published` lock is held for writing; readers hold an
//! [`OverlayView`]. What must hold: a dot names one change for ever, and what the view covers is
//! what removals issued here carry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::command::OverlayDelta;
use crate::keys;
use crate::planted;
use crate::types::{ActorId, EdgeKey, Hlc, MemoryHash, OverlayContext, OverlayDot};

/// Copied on write, in this many parts each way, so that a change under a reader copies little.
const SHARDS: usize = 64;

type Deltas = Arc<Vec<OverlayDelta>>;

#[derive(Clone, Debug)]
struct Tables {
    /// By source, then edge; the deltas of an edge in the order of their dots.
    by_source: [Arc<BTreeMap<MemoryHash, BTreeMap<EdgeKey, Deltas>>>; SHARDS],
    by_target: [Arc<BTreeMap<MemoryHash, BTreeSet<EdgeKey>>>; SHARDS],
    /// Dots held here or adopted by the log.
    seen: OverlayContext,
}

/// The overlay at one moment.
#[derive(Clone, Debug)]
pub struct OverlayView(Arc<Tables>);

fn shard(hash: MemoryHash) -> usize {
    usize::from(hash.0[0]) % SHARDS
}

/// The edge that a delta changes.
pub fn edge_of(delta: &OverlayDelta) -> EdgeKey {
    EdgeKey {
        from: delta.from.hash(),
        to: delta.to.hash(),
        relation: delta.relation.clone(),
    }
}

impl OverlayView {
    /// Changes of one edge, in the order of their dots.
    pub fn of_edge(&self, key: &EdgeKey) -> &[OverlayDelta] {
        let edges = self.0.by_source[shard(key.from)].get(&key.from);
        edges
            .and_then(|edges| edges.get(key))
            .map_or(&[], |deltas| deltas.as_slice())
    }

    /// Edges out of a memory that have changes here.
    pub fn out_edges(&self, from: MemoryHash) -> impl Iterator<Item = &EdgeKey> {
        self.0.by_source[shard(from)]
            .get(&from)
            .into_iter()
            .flat_map(BTreeMap::keys)
    }

    /// Edges into a memory that have changes here.
    pub fn in_edges(&self, to: MemoryHash) -> impl Iterator<Item = &EdgeKey> {
        self.0.by_target[shard(to)].get(&to).into_iter().flatten()
    }

    /// All edges that have changes here, in canonical order.
    pub fn edges(&self) -> BTreeSet<&EdgeKey> {
        let sources = self.0.by_source.iter().flat_map(|shard| shard.values());
        sources.flat_map(BTreeMap::keys).collect()
    }

    /// Dots held here or adopted by the log.
    pub fn seen(&self) -> &OverlayContext {
        &self.0.seen
    }
}

/// What came of a delta from another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    New,
    /// Held already, or in the log.
    Known,
    /// The same dot marks another change here: never merged.
    Conflict,
}

/// The overlay and its index by dot.
#[derive(Debug)]
pub struct Overlay {
    view: OverlayView,
    /// The edge that each dot held here changes.
    held: BTreeMap<OverlayDot, Arc<EdgeKey>>,
    /// How many of the held changes have each stamp.
    stamps: BTreeMap<Hlc, u32>,
    /// Estimated size of the held changes.
    bytes: usize,
    /// Sum mod 2^128 over the held changes: equal on replicas that hold the same.
    digest: u128,
}

/// The overlay of one replica in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayStats {
    pub deltas: usize,
    /// Estimated.
    pub bytes: usize,
    /// When the oldest of them was made.
    pub oldest: Option<Hlc>,
}

impl Overlay {
    /// Without changes of its own, over a log that adopted these dots.
    pub fn new(adopted: OverlayContext) -> Self {
        let tables = Tables {
            by_source: std::array::from_fn(|_| Arc::default()),
            by_target: std::array::from_fn(|_| Arc::default()),
            seen: adopted,
        };
        Self {
            view: OverlayView(Arc::new(tables)),
            held: BTreeMap::new(),
            stamps: BTreeMap::new(),
            bytes: 0,
            digest: 0,
        }
    }

    pub fn stats(&self) -> OverlayStats {
        OverlayStats {
            deltas: self.held.len(),
            bytes: self.bytes,
            oldest: self.stamps.keys().next().copied(),
        }
    }

    /// Of what is held, whatever order it came in.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Dots held here that change this edge.
    pub fn dots_of_edge(&self, key: &EdgeKey) -> impl Iterator<Item = OverlayDot> {
        self.view.of_edge(key).iter().map(|delta| delta.dot)
    }

    /// Dots held here that change any edge out of this memory.
    pub fn dots_of_source(&self, from: MemoryHash) -> impl Iterator<Item = OverlayDot> {
        let edges = self.view.out_edges(from);
        edges.flat_map(move |key| self.dots_of_edge(key))
    }

    pub fn view(&self) -> OverlayView {
        self.view.clone()
    }

    pub fn seen(&self) -> &OverlayContext {
        self.view.seen()
    }

    /// The next number of an actor whose changes are all made here.
    pub fn next_n(&self, actor: ActorId) -> u64 {
        let of_actor = OverlayDot { actor, n: 0 }..=OverlayDot { actor, n: u64::MAX };
        let last_held = self
            .held
            .range(of_actor)
            .next_back()
            .map_or(0, |(dot, _)| dot.n);
        if planted!("overlay-dot-reused") {
            return last_held + 1;
        }
        last_held.max(self.seen().floor(actor)) + 1
    }

    /// What receiving this delta would do.
    pub fn classify(&self, delta: &OverlayDelta) -> Received {
        match self.get(delta.dot) {
            Some(held) if held == delta => Received::Known,
            Some(_) => Received::Conflict,
            None if self.seen().covers(delta.dot) => Received::Known,
            None => Received::New,
        }
    }

    /// A change held for the same request and edge.
    pub fn twin(&self, delta: &OverlayDelta) -> Option<&OverlayDelta> {
        let of_edge = self.view.of_edge(&edge_of(delta));
        of_edge.iter().find(|held| held.request == delta.request)
    }

    fn get(&self, dot: OverlayDot) -> Option<&OverlayDelta> {
        let of_edge = self.view.of_edge(self.held.get(&dot)?);
        of_edge.iter().find(|held| held.dot == dot)
    }

    /// Takes in a change that is on disk.
    pub fn insert(&mut self, delta: OverlayDelta) {
        let (dot, key) = (delta.dot, edge_of(&delta));
        self.bytes += delta_bytes(&delta);
        self.digest = self.digest.wrapping_add(delta_digest(&delta));
        *self.stamps.entry(delta.stamp).or_default() += 1;
        let tables = Arc::make_mut(&mut self.view.0);
        tables.seen.insert(dot);
        let targets = Arc::make_mut(&mut tables.by_target[shard(key.to)]);
        targets.entry(key.to).or_default().insert(key.clone());
        let sources = Arc::make_mut(&mut tables.by_source[shard(key.from)]);
        let of_edge = sources
            .entry(key.from)
            .or_default()
            .entry(key.clone())
            .or_default();
        let of_edge = Arc::make_mut(of_edge);
        let place = of_edge.partition_point(|held| held.dot < dot);
        of_edge.insert(place, delta);
        let before = self.held.insert(dot, Arc::new(key));
        assert!(
            before.is_none(),
            "two overlay changes under one dot {dot:?}"
        );
    }

    /// Lets go of changes that the log has adopted, and covers their dots from now on.
    pub fn adopt(&mut self, dots: &[OverlayDot]) {
        for dot in dots {
            let tables = Arc::make_mut(&mut self.view.0);
            tables.seen.insert(*dot);
            let Some(key) = self.held.remove(dot) else {
                continue;
            };
            if let Some(delta) = tables.remove(&key, *dot) {
                self.uncount(&delta);
            }
        }
    }

    fn uncount(&mut self, delta: &OverlayDelta) {
        self.bytes = self.bytes.saturating_sub(delta_bytes(delta));
        self.digest = self.digest.wrapping_sub(delta_digest(delta));
        if let Some(count) = self.stamps.get_mut(&delta.stamp) {
            *count -= 1;
            if *count == 0 {
                self.stamps.remove(&delta.stamp);
            }
        }
    }

    /// Changes that `peer` has not seen, in the order of their dots, up to `bytes_max` of estimated
    /// size; at least one when there is any.
    pub fn missing_from(&self, peer: &OverlayContext, bytes_max: usize) -> Vec<OverlayDelta> {
        let mut bytes = 0;
        let missing = self.held.keys().filter(|dot| !peer.covers(**dot));
        let missing = missing.filter_map(|dot| self.get(*dot));
        let fitting = missing.take_while(|delta| {
            let fits = bytes == 0 || bytes + delta_bytes(delta) <= bytes_max;
            bytes += delta_bytes(delta);
            fits
        });
        fitting.cloned().collect()
    }

    /// The first changes in the order of their dots, up to `bytes_max` of estimated size.
    pub fn first(&self, limit: usize, bytes_max: usize) -> Vec<OverlayDelta> {
        let nothing = OverlayContext::default();
        let mut first = self.missing_from(&nothing, bytes_max);
        first.truncate(limit);
        first
    }
}

impl Tables {
    fn remove(&mut self, key: &EdgeKey, dot: OverlayDot) -> Option<OverlayDelta> {
        let sources = Arc::make_mut(&mut self.by_source[shard(key.from)]);
        let edges = sources.get_mut(&key.from)?;
        let of_edge = edges.get_mut(key)?;
        let place = of_edge.iter().position(|held| held.dot == dot)?;
        let removed = Arc::make_mut(of_edge).remove(place);
        if !of_edge.is_empty() {
            return Some(removed);
        }
        edges.remove(key);
        if edges.is_empty() {
            sources.remove(&key.from);
        }
        let targets = Arc::make_mut(&mut self.by_target[shard(key.to)]);
        if let Some(edges) = targets.get_mut(&key.to) {
            edges.remove(key);
            if edges.is_empty() {
                targets.remove(&key.to);
            }
        }
        Some(removed)
    }
}

/// First 16 bytes of BLAKE3 over the record of a change.
fn delta_digest(delta: &OverlayDelta) -> u128 {
    crate::partition::digest::of_record(&[], &keys::encode(delta), &[])
}

/// Roughly what a delta takes on the wire, and in memory.
pub fn delta_bytes(delta: &OverlayDelta) -> usize {
    const FIXED: usize = 96;
    FIXED + delta.from.as_str().len() + delta.to.as_str().len() + delta.relation.as_str().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::EdgeChange;
    use crate::types::{ClientId, Hlc, MemoryId, Relation, RequestId, Unit};

    fn delta(actor: u8, n: u64, to: &str) -> OverlayDelta {
        OverlayDelta {
            dot: OverlayDot {
                actor: ActorId([actor; 16]),
                n,
            },
            request: RequestId {
                client: ClientId([actor; 16]),
                counter: n,
                index: 0,
            },
            from: MemoryId::new("a").expect("id"),
            to: MemoryId::new(to).expect("id"),
            relation: Relation::new("r").expect("relation"),
            stamp: Hlc(1),
            retried: false,
            change: EdgeChange::Contribute {
                weight: Unit::ONE,
                confidence: Unit::ONE,
            },
        }
    }

    #[test]
    fn changes_are_found_both_ways_until_adopted() {
        let mut overlay = Overlay::new(OverlayContext::default());
        for d in [delta(1, 2, "b"), delta(1, 1, "b"), delta(2, 1, "c")] {
            assert_eq!(overlay.classify(&d), Received::New);
            overlay.insert(d.clone());
            assert_eq!(overlay.classify(&d), Received::Known);
        }
        let held = overlay.view();
        let (from, to) = (delta(1, 1, "b").from.hash(), delta(1, 1, "b").to.hash());
        assert_eq!(held.out_edges(from).count(), 2);
        let key = held.in_edges(to).next().expect("an edge").clone();
        let order: Vec<u64> = held.of_edge(&key).iter().map(|d| d.dot.n).collect();
        assert_eq!(order, [1, 2]);

        overlay.adopt(&[delta(1, 1, "b").dot, delta(1, 2, "b").dot]);
        assert_eq!(overlay.view().in_edges(to).count(), 0);
        assert_eq!(overlay.classify(&delta(1, 1, "b")), Received::Known);
        assert_eq!(overlay.next_n(ActorId([1; 16])), 3);
        assert_eq!(held.of_edge(&key).len(), 2, "an older view does not change");
    }

    #[test]
    fn one_dot_marks_one_change() {
        let mut overlay = Overlay::new(OverlayContext::default());
        overlay.insert(delta(1, 1, "b"));
        assert_eq!(overlay.classify(&delta(1, 1, "c")), Received::Conflict);
    }

    #[test]
    fn a_peer_gets_what_it_has_not_seen() {
        let mut overlay = Overlay::new(OverlayContext::default());
        (1..=5).for_each(|n| overlay.insert(delta(1, n, "b")));
        let mut peer = OverlayContext::default();
        peer.insert(OverlayDot {
            actor: ActorId([1; 16]),
            n: 2,
        });
        let numbers = |deltas: Vec<OverlayDelta>| -> Vec<u64> {
            deltas.iter().map(|delta| delta.dot.n).collect()
        };
        assert_eq!(
            numbers(overlay.missing_from(&peer, usize::MAX)),
            [1, 3, 4, 5]
        );
        assert_eq!(numbers(overlay.missing_from(&peer, 0)), [1]);
        assert_eq!(numbers(overlay.missing_from(&peer, 250)), [1, 3]);
    }
}
