//! The walk through a graph that queries and linking share.
//!
//! The caller judges each slot that is near enough. Only kept ones become results, and they alone
//! bound the walk, so dead or filtered slots, which are walked through, never push a result out.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::graph::Graph;
use super::order::Scored;

/// What a walk needs besides the graph; kept per thread, because it grows with the graph.
#[derive(Default)]
pub(super) struct Scratch {
    /// Epoch in which a slot was last seen.
    seen: Vec<u32>,
    epoch: u32,
    frontier: BinaryHeap<Reverse<Scored>>,
    best: BinaryHeap<Scored>,
    batch: Vec<u32>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Lends this thread's scratch; a caller within a caller gets a new one.
pub(super) fn with_scratch<R>(run: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let result = run(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

impl Scratch {
    fn begin(&mut self, slots: u32) {
        if self.seen.len() < slots as usize {
            self.seen.resize(slots as usize, 0);
        }
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.seen.fill(0);
            self.epoch = 1;
        }
        self.frontier.clear();
        self.best.clear();
    }

    /// Whether this walk sees the slot for the first time.
    #[inline]
    fn enter(&mut self, slot: u32) -> bool {
        let place = slot as usize;
        if place >= self.seen.len() {
            // Published after the walk began; a concurrent commit has linked it.
            self.seen.resize(place + 1, 0);
        }
        std::mem::replace(&mut self.seen[place], self.epoch) != self.epoch
    }

    /// The results of the last walk, nearest first.
    pub(super) fn results(&mut self) -> Vec<Scored> {
        std::mem::take(&mut self.best).into_sorted_vec()
    }
}

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
pub(super) fn descend(graph: &Graph, row: &[f32], entry: u32, level: u8) -> Scored {
    let mut nearest = graph.score(row, entry);
    let mut at = graph.level(entry);
    while at > level {
        let mut best = nearest;
        for slot in graph.neighbours(nearest.slot(), at) {
            best = best.min(graph.score(row, slot));
        }
        if best == nearest {
            at -= 1;
        }
        nearest = best;
    }
    nearest
}

/// Walks one level from `entries`; the results are in `scratch`.
pub(super) fn walk(
    graph: &Graph,
    row: &[f32],
    entries: &[Scored],
    bounds: Bounds,
    scratch: &mut Scratch,
    judge: &mut dyn FnMut(u32) -> Fate,
) -> Walked {
    scratch.begin(graph.published());
    for entry in entries {
        if scratch.enter(entry.slot()) {
            scratch.offer(*entry, bounds.effort, judge);
        }
    }
    let mut scored = 0;
    while let Some(Reverse(nearest)) = scratch.frontier.pop() {
        if scratch.is_beyond(nearest, bounds.effort) {
            return Walked::Whole;
        }
        let mut batch = std::mem::take(&mut scratch.batch);
        batch.extend(
            graph
                .neighbours(nearest.slot(), bounds.level)
                .filter(|slot| {
                    let new = scratch.enter(*slot);
                    if new {
                        graph.row(*slot).prefetch();
                    }
                    new
                }),
        );
        scored += batch.len();
        for slot in batch.drain(..) {
            let found = graph.score(row, slot);
            if !scratch.is_beyond(found, bounds.effort) {
                scratch.offer(found, bounds.effort, judge);
            }
        }
        scratch.batch = batch;
        if scored > bounds.budget {
            return Walked::OverBudget;
        }
    }
    Walked::Whole
}

impl Scratch {
    #[inline]
    fn is_beyond(&self, found: Scored, effort: usize) -> bool {
        self.best.len() >= effort && self.best.peek().is_some_and(|worst| found > *worst)
    }

    #[inline]
    fn offer(&mut self, found: Scored, effort: usize, judge: &mut dyn FnMut(u32) -> Fate) {
        let fate = judge(found.slot());
        if fate != Fate::Skip {
            self.frontier.push(Reverse(found));
        }
        if fate == Fate::Keep {
            self.best.push(found);
            if self.best.len() > effort {
                self.best.pop();
            }
        }
    }
}
