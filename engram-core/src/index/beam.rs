//! The walk through a graph that queries and linking share.
//!
//! The caller judges each slot that is near enough. Only kept ones become results, and they alone
//! bound the walk, so dead or filtered slots, which are walked through, never push a result out.
//!
//! What a walk costs is waiting for memory: the lists of slots that may be expanded and the vectors
//! of those to be scored are asked for before they are needed.

use std::cmp::Reverse;

use super::graph::{Graph, each_link};
use super::order::Scored;
use super::scratch::Scratch;
use super::vectors::Probe;

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// No better result can be reached, or everything was seen.
    Whole,
    /// More slots would have been scored than allowed.
    OverBudget,
}

/// What becomes of a slot that a walk comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is a result, and its neighbours are seen.
    Keep,
    /// Its neighbours are seen.
    Through,
    Skip,
}

/// The bounds of a walk.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) level: u8,
    /// Results to keep.
    pub(super) effort: usize,
    /// Slots to score at most.
    pub(super) budget: usize,
}

/// From `entry` down to `level`, to the slot that has no nearer neighbour there.
pub(super) fn descend(
    graph: &Graph,
    probe: Probe<'_>,
    entry: u32,
    level: u8,
    scratch: &mut Scratch,
) -> Scored {
    let mut nearest = graph.vectors.score(probe, entry);
    let mut at = graph.level(entry);
    while at > level {
        scratch.batch.clear();
        each_link(graph.list(nearest.slot(), at), |slot| {
            scratch.batch.push(slot);
        });
        let best = scratch.score_batch(graph, probe).min();
        match best.filter(|best| *best < nearest) {
            Some(best) => nearest = best,
            None => at -= 1,
        }
    }
    nearest
}

/// Walks one level from `entries`; the results are in the pool of `scratch`.
pub(super) fn walk(
    graph: &Graph,
    probe: Probe<'_>,
    entries: &[Scored],
    bounds: Bounds,
    scratch: &mut Scratch,
    mut judge: impl FnMut(u32) -> Fate,
) -> Walked {
    scratch.visited.begin(graph.published());
    scratch.pool.begin(bounds.effort);
    scratch.through.clear();
    for entry in entries {
        if scratch.visited.enter(entry.slot()) {
            scratch.offer(*entry, &mut judge);
        }
    }
    let mut scored = 0;
    while let Some(nearest) = scratch.next() {
        scratch.gather_unseen(graph, nearest.slot(), bounds.level);
        scored += scratch.batch.len();
        graph
            .vectors
            .measure(probe, &scratch.batch, &mut scratch.measured);
        for place in 0..scratch.batch.len() {
            let found = Scored::new(scratch.measured.distances[place], scratch.batch[place]);
            if scratch.pool.admits(found) && scratch.offer(found, &mut judge) && bounds.level == 0 {
                graph.prefetch_list(found.slot());
            }
        }
        if scored > bounds.budget {
            return Walked::OverBudget;
        }
    }
    Walked::Whole
}

impl Scratch {
    /// Takes in a slot, if it is wanted.
    #[inline]
    fn offer(&mut self, found: Scored, judge: &mut impl FnMut(u32) -> Fate) -> bool {
        match judge(found.slot()) {
            Fate::Keep => self.pool.insert(found),
            Fate::Through => self.through.push(Reverse(found)),
            Fate::Skip => return false,
        }
        true
    }

    /// The nearest slot whose neighbours were not looked at, unless all that are left are farther
    /// than all results and there are enough of those.
    #[inline]
    fn next(&mut self) -> Option<Scored> {
        let through = self.through.peek().map(|Reverse(found)| *found);
        match (self.pool.peek(), through) {
            (Some(found), None) => {
                self.pool.expand();
                Some(found)
            }
            (Some(found), Some(through)) if found < through => {
                self.pool.expand();
                Some(found)
            }
            (_, Some(through)) if self.pool.admits(through) => {
                self.through.pop();
                Some(through)
            }
            (_, _) => None,
        }
    }

    /// Puts the neighbours of a slot that this walk has not seen into the batch. Without a branch:
    /// whether a slot was seen cannot be predicted.
    #[inline]
    fn gather_unseen(&mut self, graph: &Graph, slot: u32, level: u8) {
        let max = graph.links_max(level);
        self.batch.resize(max + 1, 0);
        let mut count = 0;
        let (batch, visited) = (&mut self.batch, &mut self.visited);
        each_link(graph.list(slot, level), |slot| {
            batch[count.min(max)] = slot;
            count += usize::from(visited.enter(slot));
        });
        self.batch.truncate(count);
    }

    /// The batch with its distances.
    fn score_batch(
        &mut self,
        graph: &Graph,
        probe: Probe<'_>,
    ) -> impl Iterator<Item = Scored> + use<'_> {
        graph
            .vectors
            .measure(probe, &self.batch, &mut self.measured);
        let distances = self.measured.distances.iter();
        distances
            .zip(&self.batch)
            .map(|(distance, slot)| Scored::new(*distance, *slot))
    }
}
