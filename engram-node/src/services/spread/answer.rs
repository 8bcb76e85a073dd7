//! From what the engine answers to what the client gets.

use std::collections::BTreeMap;

use engram_core::spread::{
    Accounting, Activated, Finished, HopStats, ONE, PathStep, Rank, SpreadOutcome,
};
use engram_core::types::{MemoryHash, MemoryId, PartitionId};
use engram_proto::v1::{self, spread_event::Event};

use super::super::token::Positions;

/// Cells of missing activation that an answer lists.
const CELLS_MAX: usize = 1_024;

fn in_ones(amount: u128) -> f64 {
    amount as f64 / ONE as f64
}

pub fn hop(stats: &HopStats, attempt: u32) -> Event {
    Event::Hop(v1::HopDone {
        hop: stats.hop,
        active_memories: stats.active,
        edges_followed: stats.edges_followed,
        attempt,
    })
}

/// `ids` names the seeds; `positions` is what was read besides.
pub fn result(
    finished: Finished,
    ids: &BTreeMap<MemoryHash, MemoryId>,
    attempt: u32,
    mut positions: Positions,
) -> v1::SpreadResult {
    let Finished {
        outcome,
        pinned,
        accounting,
        ranking,
        excluded,
        ..
    } = finished;
    let SpreadOutcome {
        activated,
        activated_total,
        edges_followed,
        missing_seeds,
        ..
    } = outcome;
    pinned
        .iter()
        .for_each(|(partition, position)| positions.note(*partition, position));
    let missing_seeds = missing_seeds.iter().filter_map(|hash| ids.get(hash));
    let ranks = ranking.into_iter();
    v1::SpreadResult {
        activated: activated
            .into_iter()
            .zip(ranks)
            .map(api_activated)
            .collect(),
        activated_total,
        edges_followed,
        missing_seeds: missing_seeds.map(|id| id.as_str().to_owned()).collect(),
        token: Some(positions.token()),
        reinforced: 0,
        accounting: Some(api_accounting(&accounting, &excluded, attempt)),
        hybrid: None,
    }
}

fn api_activated((activated, rank): (Activated, Rank)) -> v1::Activated {
    let step = |step: PathStep| v1::PathStep {
        id: step.id.as_str().to_owned(),
        relation: step
            .relation
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        share: step.share,
    };
    v1::Activated {
        id: activated.id.as_str().to_owned(),
        activation: activated.total,
        score: in_ones(u128::from(activated.total)),
        path: activated.path.into_iter().map(step).collect(),
        activation_at_most: rank.at_most,
        certain_before_next: rank.is_before_next,
        similarity: None,
        combined: None,
        memory: None,
    }
}

fn api_accounting(
    accounting: &Accounting,
    excluded: &[PartitionId],
    attempts: u32,
) -> v1::SpreadAccounting {
    let cells = accounting.missing.iter().take(CELLS_MAX);
    let cells = cells.map(|(cell, amount)| v1::MissingActivation {
        from_partition: cell.from.map(|from| from.0),
        to_partition: cell.to.0,
        remaining_hops: cell.remaining,
        activation: in_ones(*amount),
    });
    let lost_share = accounting.lost_share();
    let pruned = accounting.pruned.values();
    let bound = accounting.bound.as_ref();
    v1::SpreadAccounting {
        confidence: 1.0 - lost_share,
        lost_share,
        injected: in_ones(accounting.injected),
        missing: in_ones(accounting.missing_total()),
        cells: cells.collect(),
        excluded_partitions: excluded.iter().map(|partition| partition.0).collect(),
        error_bound: bound.map(|bound| in_ones(bound.total)),
        error_bound_per_memory: bound.map(|bound| in_ones(bound.of_any())),
        pruned: in_ones(pruned.fold(0, |sum, amount| sum.saturating_add(*amount))),
        attempts,
    }
}
