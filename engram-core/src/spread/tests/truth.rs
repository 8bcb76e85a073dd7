//! Whether an answer that lacks something says so: against the oracle, memory by memory.

use std::collections::BTreeMap;

use super::super::{Finished, ParticipantPlan, SpreadParameters, spread};
use super::graph::{Graph, hash, id};
use crate::types::{MemoryHash, PartitionId};

/// What the oracle gives each memory.
pub(super) fn truth(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
) -> BTreeMap<MemoryHash, u64> {
    let seeds: Vec<(MemoryHash, u64)> = seeds
        .iter()
        .map(|(seed, amount)| (hash(*seed), *amount))
        .collect();
    let rules = SpreadParameters {
        limit: usize::MAX,
        explain: false,
        ..rules.clone()
    };
    let outcome = spread(&graph.whole(), &rules, &seeds).expect("it spreads");
    outcome
        .activated
        .iter()
        .map(|one| (one.memory, one.total))
        .collect()
}

fn partition_of(participants: &[ParticipantPlan], memory: usize) -> PartitionId {
    let slot = id(memory).hash_slot();
    let mut plans = participants.iter().flat_map(|one| &one.partitions);
    let plan = plans.find(|plan| plan.slots.contains(slot));
    plan.expect("slots are covered").partition
}

/// The answer never has too much, never lacks more than its bound, and calls no pair certain that
/// is not. `finished` must hold all memories that counted.
pub(super) fn check(
    graph: &Graph,
    participants: &[ParticipantPlan],
    truth: &BTreeMap<MemoryHash, u64>,
    finished: &Finished,
) -> Result<(), String> {
    let bound = finished.accounting.bound.as_ref().ok_or("no bound")?;
    let got: BTreeMap<MemoryHash, u64> = finished
        .outcome
        .activated
        .iter()
        .map(|one| (one.memory, one.total))
        .collect();
    let mut lacks = 0_u128;
    for memory in 0..graph.there.len() {
        let true_total = truth.get(&hash(memory)).copied().unwrap_or(0);
        let total = got.get(&hash(memory)).copied().unwrap_or(0);
        let missing = true_total
            .checked_sub(total)
            .ok_or_else(|| format!("memory {memory} has {total}, the truth is {true_total}"))?;
        let allowed = bound.of(partition_of(participants, memory));
        if u128::from(missing) > allowed {
            return Err(format!(
                "memory {memory} lacks {missing}, more than {allowed}"
            ));
        }
        lacks += u128::from(missing);
    }
    if lacks > bound.total {
        return Err(format!("all lack {lacks}, more than {}", bound.total));
    }
    check_ranking(truth, finished)
}

fn check_ranking(truth: &BTreeMap<MemoryHash, u64>, finished: &Finished) -> Result<(), String> {
    let activated = &finished.outcome.activated;
    if activated.len() != finished.ranking.len() {
        return Err("a place without a rank".into());
    }
    for (index, (one, rank)) in activated.iter().zip(&finished.ranking).enumerate() {
        let true_total = |memory: MemoryHash| truth.get(&memory).copied().unwrap_or(0);
        let here = true_total(one.memory);
        if rank.at_most.is_some_and(|at_most| here > at_most) {
            return Err(format!("{here} is more than the most that was allowed"));
        }
        if !rank.is_before_next {
            continue;
        }
        let behind = match activated.get(index + 1) {
            Some(next) => true_total(next.memory),
            None => truth
                .iter()
                .filter(|(memory, _)| !activated.iter().any(|one| one.memory == **memory))
                .map(|(_, total)| *total)
                .max()
                .unwrap_or(0),
        };
        if behind > here {
            return Err(format!(
                "place {index} is certain, but {behind} is more than {here}"
            ));
        }
    }
    Ok(())
}
