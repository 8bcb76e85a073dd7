//! The reference semantics written a second time, as plainly as possible, from the design alone.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{
    Activated, HopStats, Normalization, PathStep, SpreadError, SpreadOutcome, SpreadParameters,
    spread,
};
use super::graph::{Edge, Graph, graphs, hash, id, parameters, seeds};
use crate::types::{MemoryHash, Relation, Unit};

/// Amount, source, relation.
type Shares = Vec<(u64, usize, Relation)>;

/// What one memory got in one hop, and each share of it.
#[derive(Default)]
struct Got {
    amount: u64,
    shares: Shares,
}

#[derive(Default)]
struct Naive {
    /// By memory: what counted, by hop, with the single shares.
    counted: BTreeMap<usize, BTreeMap<u32, (u64, Shares)>>,
    sent: BTreeMap<usize, u32>,
    hops: Vec<HopStats>,
}

/// The outcome, and the hop after which there were too many.
pub(super) fn naive(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
) -> (SpreadOutcome, Option<u32>) {
    let mut state = Naive::default();
    let mut frontier: BTreeMap<usize, Got> = BTreeMap::new();
    for (memory, amount) in seeds {
        let got = frontier.entry(*memory).or_default();
        got.amount = got.amount.saturating_add(*amount);
    }
    let mut too_many = None;
    for hop in 0..=rules.hops {
        frontier = state.hop(graph, rules, hop, frontier);
        if frontier.is_empty() {
            break;
        }
        if state.counted.len() > rules.activated_max {
            too_many = Some(hop);
            break;
        }
    }
    let mut missing: Vec<MemoryHash> = seeds
        .iter()
        .filter(|(seed, _)| !graph.there[*seed])
        .map(|(seed, _)| hash(*seed))
        .collect();
    missing.sort();
    missing.dedup();
    (state.outcome(rules, missing), too_many)
}

impl Naive {
    fn hop(
        &mut self,
        graph: &Graph,
        rules: &SpreadParameters,
        hop: u32,
        arrived: BTreeMap<usize, Got>,
    ) -> BTreeMap<usize, Got> {
        let mut stats = HopStats {
            hop,
            ..HopStats::default()
        };
        let mut next: BTreeMap<usize, Got> = BTreeMap::new();
        for (memory, Got { mut amount, shares }) in arrived {
            if !graph.there[memory] || amount < rules.threshold {
                continue;
            }
            if self.counted.contains_key(&memory) {
                amount = ((u128::from(amount) * u128::from(rules.revisit.bits())) >> 32) as u64;
            }
            if amount == 0 {
                continue;
            }
            stats.active += 1;
            self.counted
                .entry(memory)
                .or_default()
                .insert(hop, (amount, shares));
            let rests = self
                .sent
                .get(&memory)
                .is_some_and(|sent| hop <= sent + rules.refractory_hops);
            if rests || hop == rules.hops {
                continue;
            }
            let sends = shares_of(graph, rules, memory, amount);
            if !sends.is_empty() {
                self.sent.insert(memory, hop);
            }
            stats.edges_followed += sends.len() as u64;
            for (share, edge) in sends {
                let got = next.entry(edge.to).or_default();
                got.amount = got.amount.saturating_add(share);
                got.shares.push((share, memory, edge.relation.clone()));
            }
        }
        self.hops.push(stats);
        next
    }

    fn outcome(&self, rules: &SpreadParameters, missing_seeds: Vec<MemoryHash>) -> SpreadOutcome {
        let total = |hops: &BTreeMap<u32, (u64, Shares)>| {
            hops.values()
                .fold(0_u64, |sum, (amount, _)| sum.saturating_add(*amount))
        };
        let mut activated: Vec<Activated> = self
            .counted
            .iter()
            .map(|(memory, hops)| Activated {
                memory: hash(*memory),
                id: id(*memory),
                total: total(hops),
                path: if rules.explain {
                    self.path(*memory)
                } else {
                    Vec::new()
                },
            })
            .collect();
        activated.sort_by_key(|one| (u64::MAX - one.total, one.memory));
        activated.truncate(rules.limit);
        SpreadOutcome {
            activated,
            activated_total: self.counted.len() as u64,
            edges_followed: self.hops.iter().map(|stats| stats.edges_followed).sum(),
            hops: self.hops.clone(),
            missing_seeds,
        }
    }

    fn path(&self, memory: usize) -> Vec<PathStep> {
        let most = self.counted[&memory]
            .values()
            .map(|(amount, _)| *amount)
            .max();
        let hop = self.counted[&memory]
            .iter()
            .find(|(_, (amount, _))| Some(*amount) == most);
        self.path_to(memory, *hop.expect("it counted in some hop").0)
    }

    fn path_to(&self, memory: usize, hop: u32) -> Vec<PathStep> {
        let (amount, shares) = &self.counted[&memory][&hop];
        let step = |relation, share| PathStep {
            memory: hash(memory),
            id: id(memory),
            relation,
            share,
        };
        let best = shares.iter().min_by_key(|(share, from, relation)| {
            (u64::MAX - share, hash(*from), relation.clone())
        });
        match best {
            None => vec![step(None, *amount)],
            Some((share, from, relation)) => {
                let mut path = self.path_to(*from, hop - 1);
                path.push(step(Some(relation.clone()), *share));
                path
            }
        }
    }
}

/// The shares that a memory sends, after the cap.
fn shares_of<'a>(
    graph: &'a Graph,
    rules: &SpreadParameters,
    memory: usize,
    amount: u64,
) -> Vec<(u64, &'a Edge)> {
    let follows = |edge: &&Edge| {
        rules
            .relations
            .as_ref()
            .is_none_or(|all| all.contains(&edge.relation))
    };
    let weight = |edge: &Edge| -> u128 {
        let factor = rules
            .relation_factors
            .get(&edge.relation)
            .copied()
            .unwrap_or(Unit::ONE);
        u128::from(edge.weight.times(factor).bits())
    };
    let edges: Vec<&Edge> = graph
        .edges
        .iter()
        .filter(|edge| edge.from == memory)
        .filter(follows)
        .collect();
    let sum: u128 = edges.iter().map(|edge| weight(edge)).sum();
    let mut shares = Vec::new();
    for edge in edges {
        let product = u128::from(amount) * u128::from(rules.decay.bits()) * weight(edge);
        let share = match rules.normalization {
            Normalization::Fan if sum == 0 => 0,
            Normalization::Fan => product / sum / (1 << 32),
            Normalization::None => product / (1 << 64),
        };
        if share > 0 {
            shares.push((
                u64::try_from(share).expect("no greater than the amount"),
                edge,
            ));
        }
    }
    if let Some(limit) = rules.fan_limit {
        shares
            .sort_by_key(|(share, edge)| (u64::MAX - share, hash(edge.to), edge.relation.clone()));
        shares.truncate(limit as usize);
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn the_oracle_is_the_naive_model(graph in graphs(), rules in parameters(), seeds in seeds()) {
        let (truth, too_many) = naive(&graph, &rules, &seeds);
        let hashed: Vec<(MemoryHash, u64)> =
            seeds.iter().map(|(seed, amount)| (hash(*seed), *amount)).collect();
        let answer = spread(&graph.whole(), &rules, &hashed);
        let expected = match too_many {
            None => Ok(truth),
            Some(hop) => Err(SpreadError::TooManyActivated { hop, complete: Box::new(truth) }),
        };
        prop_assert_eq!(answer, expected);
    }
}
