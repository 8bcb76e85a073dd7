//! One partition's part of a spread, as plainly as the rules can be written: what arrived in a hop,
//! and the shares that go out. It is the oracle, and what runs where a graph has no projection or
//! paths are to be told; [`super::engine`] must do the same on arrays.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::outcome::HopStats;
use super::parameters::SpreadParameters;
use super::split::share;
use super::wire::{Arrival, Best, TraceEntry};
use super::{Adjacency, OutEdge};
use crate::limits::SPREAD_TARGETS_MAX;
use crate::types::{HashSlot, MemoryHash, Relation, Unit};

/// Shares are merged by target when this many have gathered since the last time.
const MERGE_AT_LEAST: usize = 1 << 16;

/// Why a hop could not be processed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BoardError<E> {
    Adjacency(E),
    TooManyTargets,
}

/// What the partition's memories have got and done so far in this query.
#[derive(Debug, Default)]
pub(super) struct Board {
    entries: BTreeMap<MemoryHash, Entry>,
    trace: Vec<TraceEntry>,
    /// Edges looked at and memories that looked, in the last hop.
    looked_at: u64,
}

#[derive(Debug, Default)]
struct Entry {
    total: u64,
    last_sent: Option<u32>,
}

/// Activation on its way to a slot's partition.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) slot: HashSlot,
    pub(super) arrival: Arrival,
}

impl Board {
    /// Distinct memories activated so far.
    pub(super) fn activated(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn totals(&self) -> impl Iterator<Item = (MemoryHash, u64)> {
        self.entries
            .iter()
            .map(|(memory, entry)| (*memory, entry.total))
    }

    /// What rounding down can have taken from all shares of the last hop, at most.
    pub(super) fn rounding(&self) -> u64 {
        self.looked_at
    }

    /// What is to be explained; leaves none behind.
    pub(super) fn take_trace(&mut self) -> Vec<TraceEntry> {
        std::mem::take(&mut self.trace)
    }

    /// Applies the rules to everything that arrived in `hop`, complete and in any order, and
    /// gives what its memories send on, merged by target.
    pub(super) fn process<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        arrivals: Vec<Arrival>,
    ) -> Result<(HopStats, Vec<Outgoing>), BoardError<A::Error>> {
        let mut stats = HopStats {
            hop,
            ..HopStats::default()
        };
        let mut outbox = Outbox::default();
        let mut edges = Vec::new();
        self.looked_at = 0;
        for arrival in merge(arrivals) {
            let memory = arrival.target;
            let Some(amount) = self.count(adjacency, parameters, hop, arrival)? else {
                continue;
            };
            stats.active += 1;
            if hop == parameters.hops || self.is_refractory(memory, hop, parameters) {
                continue;
            }
            edges.clear();
            adjacency
                .out_edges(memory, &mut edges)
                .map_err(BoardError::Adjacency)?;
            self.looked_at += edges.len() as u64 + 1;
            let followed = send(memory, amount, &edges, parameters, &mut outbox);
            if outbox.is_over_full() {
                return Err(BoardError::TooManyTargets);
            }
            stats.edges_followed += followed;
            if followed > 0
                && let Some(entry) = self.entries.get_mut(&memory)
            {
                entry.last_sent = Some(hop);
            }
        }
        Ok((stats, outbox.merged()))
    }

    /// Prunes, then threshold, then revisit factor. What remains of the amount is added to the
    /// memory's total; `None` when nothing does.
    fn count<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        arrival: Arrival,
    ) -> Result<Option<u64>, BoardError<A::Error>> {
        let Arrival {
            target: memory,
            mut amount,
            best,
        } = arrival;
        let again = self.entries.contains_key(&memory);
        if !again && !adjacency.resolve(memory).map_err(BoardError::Adjacency)? {
            return Ok(None);
        }
        if amount < parameters.threshold {
            return Ok(None);
        }
        if again {
            amount = scale(amount, parameters.revisit);
        }
        if amount == 0 {
            return Ok(None);
        }
        let entry = self.entries.entry(memory).or_default();
        entry.total = entry.total.saturating_add(amount);
        if parameters.explain {
            self.trace.push(TraceEntry {
                memory,
                hop,
                amount,
                best,
            });
        }
        Ok(Some(amount))
    }

    fn is_refractory(&self, memory: MemoryHash, hop: u32, parameters: &SpreadParameters) -> bool {
        let last_sent = self.entries.get(&memory).and_then(|entry| entry.last_sent);
        last_sent.is_some_and(|sent| hop - sent <= parameters.refractory_hops)
    }
}

pub(super) fn scale(amount: u64, factor: Unit) -> u64 {
    ((u128::from(amount) * u128::from(factor.bits())) >> 32) as u64
}

/// Shares of one memory, into the outbox; gives how many edges carried one.
fn send(
    source: MemoryHash,
    amount: u64,
    edges: &[OutEdge],
    parameters: &SpreadParameters,
    outbox: &mut Outbox,
) -> u64 {
    let followed = edges.iter().filter_map(|edge| {
        Some((
            edge,
            parameters.effective_weight(&edge.relation, edge.weight)?,
        ))
    });
    let weighted: Vec<(&OutEdge, Unit)> = followed.collect();
    let sum: u128 = weighted
        .iter()
        .map(|(_, weight)| u128::from(weight.bits()))
        .sum();
    let mut shares: Vec<(u64, &OutEdge)> = weighted
        .into_iter()
        .map(|(edge, weight)| {
            let (decay, normalization) = (parameters.decay, parameters.normalization);
            (share(amount, decay, weight, sum, normalization), edge)
        })
        .filter(|(share, _)| *share > 0)
        .collect();
    if let Some(limit) = parameters.fan_limit
        && shares.len() > limit as usize
    {
        shares.sort_unstable_by(|(left, a), (right, b)| {
            right
                .cmp(left)
                .then_with(|| (a.to, &a.relation).cmp(&(b.to, &b.relation)))
        });
        shares.truncate(limit as usize);
    }
    for (share, edge) in &shares {
        let best = || Best {
            share: *share,
            source,
            relation: edge.relation.clone(),
        };
        let best = parameters.explain.then(best);
        let arrival = Arrival {
            target: edge.to,
            amount: *share,
            best,
        };
        outbox.push(Outgoing {
            slot: edge.slot,
            arrival,
        });
    }
    shares.len() as u64
}

/// Shares to send, merged by target whenever they have doubled.
#[derive(Default)]
struct Outbox {
    shares: Vec<Outgoing>,
    merged: usize,
}

impl Outbox {
    fn push(&mut self, outgoing: Outgoing) {
        self.shares.push(outgoing);
        if self.shares.len() >= MERGE_AT_LEAST.max(2 * self.merged) {
            self.merge();
        }
    }

    fn is_over_full(&self) -> bool {
        self.merged > SPREAD_TARGETS_MAX
    }

    fn merge(&mut self) {
        self.shares
            .sort_unstable_by_key(|outgoing| outgoing.arrival.target);
        self.shares.dedup_by(|from, into| {
            let same = from.arrival.target == into.arrival.target;
            if same {
                absorb(&mut into.arrival, &mut from.arrival);
            }
            same
        });
        self.merged = self.shares.len();
    }

    fn merged(mut self) -> Vec<Outgoing> {
        self.merge();
        self.shares
    }
}

/// One arrival per target, in the order of targets.
pub(super) fn merge(mut arrivals: Vec<Arrival>) -> Vec<Arrival> {
    arrivals.sort_unstable_by_key(|arrival| arrival.target);
    arrivals.dedup_by(|from, into| {
        let same = from.target == into.target;
        if same {
            absorb(into, from);
        }
        same
    });
    arrivals
}

/// Adds `from` to `into`; both orders of any number of these give the same.
fn absorb(into: &mut Arrival, from: &mut Arrival) {
    into.amount = into.amount.saturating_add(from.amount);
    if rank(from.best.as_ref()) > rank(into.best.as_ref()) {
        std::mem::swap(&mut into.best, &mut from.best);
    }
}

/// Greater is better: the share, then the least source, then the least relation.
fn rank(best: Option<&Best>) -> Option<(u64, Reverse<MemoryHash>, Reverse<&Relation>)> {
    best.map(|best| (best.share, Reverse(best.source), Reverse(&best.relation)))
}
