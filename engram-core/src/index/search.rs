//! Queries on one generation: a walk through what is linked, a scan of what is not yet, and a second
//! scoring with the full vectors where the graph has codes.

use std::collections::BinaryHeap;

use super::beam::{Bounds, Fate, Walked, descend, walk};
use super::graph::Graph;
use super::order::Scored;
use super::scratch::{Scratch, with_scratch};
use super::vectors::Probe;
use super::{Hit, SCAN_LIVE_MAX, VectorId};
use crate::types::Metric;

/// A walk that scored so many slots per result that it keeps, or so large a share of the live
/// ones, without an end is hindered by its filter: a scan that asks the filter first is cheaper.
const SCORED_PER_EFFORT: usize = 48;
const SCORED_SHARE: usize = 8;
/// Slots that a scan scores at once.
const SCAN_BATCH: usize = 256;
/// For each result so many of those nearest by their codes are scored again.
const RESCORED_PER_RESULT: usize = 2;
/// As above, where nothing but codes is in memory and all of them are scanned.
const RESCORED_OF_SCAN: usize = 4;

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) query: &'a [f32],
    pub(super) limit: usize,
    pub(super) effort: usize,
    pub(super) accept: &'a dyn Fn(VectorId) -> bool,
    /// Reads full vectors that are not in memory.
    pub(super) stored: &'a dyn Fn(VectorId) -> Option<Vec<f32>>,
}

pub(super) fn search(graph: &Graph, ask: Ask<'_>) -> Vec<Hit> {
    with_query(graph, ask, |row, probe, scratch| {
        // Read first: what is committed meanwhile is found in the tail.
        let linked = graph.linked();
        let live = graph.published().saturating_sub(graph.dead()) as usize;
        let Some(entry) = graph.entry().filter(|_| live > SCAN_LIVE_MAX) else {
            return scan_all(graph, ask, row, probe, scratch);
        };
        let effort = ask.effort.max(ask.limit).max(1);
        let bounds = Bounds {
            level: 0,
            effort,
            budget: (effort * SCORED_PER_EFFORT).max(live / SCORED_SHARE),
        };
        let entries = [descend(graph, probe, entry, 0, scratch)];
        let walked = walk(graph, probe, &entries, bounds, scratch, |slot| {
            match graph.is_live(slot) && (ask.accept)(graph.id(slot)) {
                true => Fate::Keep,
                false => Fate::Through,
            }
        });
        if walked == Walked::OverBudget {
            return scan_all(graph, ask, row, probe, scratch);
        }
        let keep = match graph.vectors.are_coded() {
            true => ask.limit * RESCORED_PER_RESULT,
            false => ask.limit,
        };
        let mut nearest = Nearest::new(graph, probe, keep, scratch);
        let results = scratch.pool.results();
        // The others are in the tail.
        let found = results.filter(|found| found.slot() < linked).take(keep);
        nearest.found.extend(found);
        nearest.scan(linked, ask, scratch);
        let found = nearest.finish(ask, row, scratch);
        // That may be all that `accept` takes, or all that the walk could come to.
        if found.len() < ask.limit.min(live) {
            return scan_all(graph, ask, row, probe, scratch);
        }
        found
    })
}

pub(super) fn scan(graph: &Graph, ask: Ask<'_>) -> Vec<Hit> {
    with_query(graph, ask, |row, probe, scratch| {
        scan_all(graph, ask, row, probe, scratch)
    })
}

/// Compares with the full vectors where they are in memory, else with the codes.
fn scan_all(
    graph: &Graph,
    ask: Ask<'_>,
    row: &[f32],
    probe: Probe<'_>,
    scratch: &mut Scratch,
) -> Vec<Hit> {
    let mut nearest = match graph.vectors.full_query(row) {
        Some(full) => Nearest::new(graph, full, ask.limit, scratch),
        None => Nearest::new(graph, probe, ask.limit * RESCORED_OF_SCAN, scratch),
    };
    nearest.scan(0, ask, scratch);
    nearest.finish(ask, row, scratch)
}

/// Lends a scratch, the query as it is, and in the form in which graphs are walked.
fn with_query<R>(
    graph: &Graph,
    ask: Ask<'_>,
    run: impl FnOnce(&[f32], Probe<'_>, &mut Scratch) -> R,
) -> R {
    let dimension = graph.shape.dimension as usize;
    assert!(
        ask.query.len() == dimension,
        "a query of the wrong dimension: {}",
        ask.query.len()
    );
    with_scratch(|scratch| {
        let mut row = std::mem::take(&mut scratch.row);
        let mut codes = std::mem::take(&mut scratch.codes);
        row.set(ask.query);
        if graph.shape.metric == Metric::Cosine {
            // A query without a direction is as far from everything; it stays as it is.
            let _ = row.normalise();
        }
        let probe = graph.vectors.query(&row, &mut codes);
        let result = run(&row, probe, scratch);
        (scratch.row, scratch.codes) = (row, codes);
        result
    })
}

/// The nearest accepted live slots of those that it is shown.
struct Nearest<'a> {
    graph: &'a Graph,
    probe: Probe<'a>,
    keep: usize,
    found: BinaryHeap<Scored>,
}

impl<'a> Nearest<'a> {
    fn new(graph: &'a Graph, probe: Probe<'a>, keep: usize, scratch: &mut Scratch) -> Self {
        Self {
            graph,
            probe,
            keep,
            found: std::mem::take(&mut scratch.nearest),
        }
    }

    /// Looks at the slots from `start` on.
    fn scan(&mut self, start: u32, ask: Ask<'_>, scratch: &mut Scratch) {
        let graph = self.graph;
        scratch.batch.clear();
        for slot in start..graph.published() {
            if graph.is_live(slot) && (ask.accept)(graph.id(slot)) {
                scratch.batch.push(slot);
            }
            if scratch.batch.len() == SCAN_BATCH {
                self.score(scratch);
            }
        }
        self.score(scratch);
    }

    fn score(&mut self, scratch: &mut Scratch) {
        let Scratch {
            batch, measured, ..
        } = scratch;
        self.graph.vectors.measure(self.probe, batch, measured);
        for (slot, distance) in batch.drain(..).zip(&measured.distances) {
            let found = Scored::new(*distance, slot);
            if self.found.len() < self.keep {
                self.found.push(found);
            } else if let Some(mut worst) = self.found.peek_mut()
                && found < *worst
            {
                *worst = found;
            }
        }
    }

    /// The answer, nearest first.
    fn finish(self, ask: Ask<'_>, row: &[f32], scratch: &mut Scratch) -> Vec<Hit> {
        let graph = self.graph;
        let mut found = self.found.into_sorted_vec();
        if let Probe::Codes(_) = self.probe {
            rescore(graph, ask, row, &mut found, scratch);
        }
        let hit = |found: &Scored| Hit {
            id: graph.id(found.slot()),
            distance: found.distance().0,
        };
        let hits = found.iter().take(ask.limit).map(hit).collect();
        found.clear();
        scratch.nearest = BinaryHeap::from(found);
        hits
    }
}

/// Puts what was found by codes into the order of the full vectors. What storage does not give keeps
/// the distance of its codes.
fn rescore(graph: &Graph, ask: Ask<'_>, row: &[f32], found: &mut [Scored], scratch: &mut Scratch) {
    let Scratch {
        batch, measured, ..
    } = scratch;
    batch.clear();
    batch.extend(found.iter().map(|found| found.slot()));
    match graph.vectors.full_query(row) {
        Some(full) => graph.vectors.measure(full, batch, measured),
        None => {
            measured.distances.clear();
            let distance = |found: &Scored| match (ask.stored)(graph.id(found.slot())) {
                Some(other) => graph.vectors.distance(row, &other),
                None => found.distance(),
            };
            let distances = found.iter().map(distance);
            measured.distances.extend(distances);
        }
    }
    for (found, distance) in found.iter_mut().zip(&measured.distances) {
        *found = Scored::new(*distance, found.slot());
    }
    found.sort_unstable();
}
