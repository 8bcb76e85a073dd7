//! Queries on one generation: a walk through what is linked, a scan of what is not yet.

use super::beam::{Bounds, Fate, Walked, descend, walk, with_scratch};
use super::graph::Graph;
use super::order::Scored;
use super::{Hit, SCAN_LIVE_MAX, VectorId};
use crate::kernel::{Row, normalise};
use crate::types::Metric;

/// A walk that scored so many slots per result that it keeps, or so large a share of the live
/// ones, without an end is hindered by its filter: a scan that asks the filter first is cheaper.
const SCORED_PER_EFFORT: usize = 48;
const SCORED_SHARE: usize = 8;

type Accept<'a> = &'a dyn Fn(VectorId) -> bool;

pub(super) fn search(
    graph: &Graph,
    query: &[f32],
    limit: usize,
    effort: usize,
    accept: Accept<'_>,
) -> Vec<Hit> {
    let row = query_row(graph, query);
    // Read first: what is committed meanwhile is found twice rather than not at all.
    let linked = graph.linked();
    let live = graph.published().saturating_sub(graph.dead()) as usize;
    let Some(entry) = graph.entry().filter(|_| live > SCAN_LIVE_MAX) else {
        return hits(graph, nearest(graph, &row, 0, limit, accept), limit);
    };
    let effort = effort.max(limit).max(1);
    let budget = (effort * SCORED_PER_EFFORT).max(live / SCORED_SHARE);
    let mut judge = |slot| match graph.is_live(slot) && accept(graph.id(slot)) {
        true => Fate::Keep,
        false => Fate::Through,
    };
    let (walked, mut found) = with_scratch(|scratch| {
        let entries = [descend(graph, &row, entry, 0)];
        let bounds = Bounds {
            level: 0,
            effort,
            budget,
        };
        (
            walk(graph, &row, &entries, bounds, scratch, &mut judge),
            scratch.results(),
        )
    });
    if walked == Walked::OverBudget {
        return hits(graph, nearest(graph, &row, 0, limit, accept), limit);
    }
    found.extend(nearest(graph, &row, linked, limit, accept));
    found.sort_unstable();
    found.dedup();
    if found.len() < limit.min(live) {
        found = nearest(graph, &row, 0, limit, accept);
    }
    hits(graph, found, limit)
}

pub(super) fn scan(graph: &Graph, query: &[f32], limit: usize, accept: Accept<'_>) -> Vec<Hit> {
    let row = query_row(graph, query);
    hits(graph, nearest(graph, &row, 0, limit, accept), limit)
}

fn query_row(graph: &Graph, query: &[f32]) -> Row {
    let dimension = graph.shape.dimension as usize;
    assert!(
        query.len() == dimension,
        "a query of the wrong dimension: {}",
        query.len()
    );
    if graph.shape.metric != Metric::Cosine {
        return Row::new(query);
    }
    let mut query = query.to_vec();
    // A query without a direction is as far from everything; it stays as it is.
    let _ = normalise(&mut query);
    Row::new(&query)
}

/// The `limit` nearest accepted live slots from `start` on, nearest first.
fn nearest(
    graph: &Graph,
    row: &[f32],
    start: u32,
    limit: usize,
    accept: Accept<'_>,
) -> Vec<Scored> {
    let mut best = std::collections::BinaryHeap::new();
    for slot in start..graph.published() {
        if !graph.is_live(slot) || !accept(graph.id(slot)) {
            continue;
        }
        best.push(graph.score(row, slot));
        if best.len() > limit {
            best.pop();
        }
    }
    best.into_sorted_vec()
}

fn hits(graph: &Graph, found: Vec<Scored>, limit: usize) -> Vec<Hit> {
    let hit = |found: Scored| Hit {
        id: graph.id(found.slot()),
        distance: found.distance().0,
    };
    found.into_iter().take(limit).map(hit).collect()
}
