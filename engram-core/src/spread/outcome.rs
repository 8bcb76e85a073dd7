//! What a spread answers, and how paths are told from the predecessors.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::{Best, TraceEntry};
use crate::types::{MemoryHash, MemoryId, Relation};

/// What happened in one hop, over all partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopStats {
    pub hop: u32,
    /// Memories whose activation counted in this hop.
    pub active: u64,
    /// Edges that carried a share greater than 0 away from them.
    pub edges_followed: u64,
}

/// A memory and what it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activated {
    pub memory: MemoryHash,
    pub id: MemoryId,
    /// Sum over hops, hop 0 included; saturating.
    pub total: u64,
    /// With `explain`: the strongest path, seed first.
    pub path: Vec<PathStep>,
}

/// One memory on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStep {
    pub memory: MemoryHash,
    pub id: MemoryId,
    /// Relation that led here; `None` for the seed.
    pub relation: Option<Relation>,
    /// What arrived by this step; for the seed, what was injected.
    pub share: u64,
}

/// The answer: the same on every layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpreadOutcome {
    /// At most the query's limit: greatest total, then least hash.
    pub activated: Vec<Activated>,
    /// Memories activated in all.
    pub activated_total: u64,
    /// From hop 0; ends early when nothing was sent on.
    pub hops: Vec<HopStats>,
    pub edges_followed: u64,
    /// Seeds that do not exist or do not pass the filter, by hash.
    pub missing_seeds: Vec<MemoryHash>,
}

/// Edges followed in all hops.
pub(super) fn edges_followed(hops: &[HopStats]) -> u64 {
    hops.iter()
        .map(|stats| stats.edges_followed)
        .fold(0, u64::saturating_add)
}

/// The most activated: greatest total, then least hash.
pub(super) fn most_activated(
    totals: impl IntoIterator<Item = (MemoryHash, u64)>,
    limit: usize,
) -> Vec<(MemoryHash, u64)> {
    let mut top = Top::new(limit);
    for (memory, total) in totals {
        top.offer(total, memory);
    }
    top.finish().collect()
}

/// Keeps the greatest of many totals, of equals those with the least key, without putting all of
/// them in order.
pub(super) struct Top<K> {
    limit: usize,
    held: Vec<(Reverse<u64>, K)>,
    /// Totals below it cannot be among the greatest.
    floor: u64,
}

/// Held beyond the limit, at least, before the least are dropped.
const TOP_SLACK: usize = 64;
/// Room made at once, at most.
const TOP_RESERVED: usize = 1_024;

impl<K: Ord> Top<K> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Vec::with_capacity(limit.saturating_add(TOP_SLACK).min(TOP_RESERVED)),
            floor: 0,
        }
    }

    #[inline]
    pub(super) fn offer(&mut self, total: u64, key: K) {
        if total < self.floor {
            return;
        }
        self.held.push((Reverse(total), key));
        if self.held.len() >= self.limit.saturating_mul(2).saturating_add(TOP_SLACK) {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.held.len() > self.limit && self.limit > 0 {
            self.held.select_nth_unstable(self.limit - 1);
        }
        self.held.truncate(self.limit);
        self.floor = match self.held.last() {
            Some((Reverse(least), _)) if self.held.len() == self.limit => *least,
            _ => self.floor,
        };
    }

    pub(super) fn finish(mut self) -> impl Iterator<Item = (K, u64)> {
        self.shrink();
        self.held.sort_unstable();
        let held = self.held.into_iter();
        held.map(|(Reverse(total), key)| (key, total))
    }
}

/// Adds up what several partitions did in the same hops.
pub(super) fn add_hops(sum: &mut Vec<HopStats>, part: &[HopStats]) {
    for stats in part {
        match sum.iter_mut().find(|held| held.hop == stats.hop) {
            Some(held) => {
                held.active = held.active.saturating_add(stats.active);
                held.edges_followed = held.edges_followed.saturating_add(stats.edges_followed);
            }
            None => sum.push(*stats),
        }
    }
}

/// A step before ids are known.
pub(super) struct HashStep {
    pub(super) memory: MemoryHash,
    relation: Option<Relation>,
    share: u64,
}

impl HashStep {
    pub(super) fn named(self, id: MemoryId) -> PathStep {
        PathStep {
            memory: self.memory,
            id,
            relation: self.relation,
            share: self.share,
        }
    }
}

/// The predecessors of every (memory, hop) that counted.
#[derive(Default)]
pub(super) struct Trace(BTreeMap<(MemoryHash, u32), (u64, Option<Best>)>);

impl Trace {
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = TraceEntry>) {
        self.0.extend(
            entries
                .into_iter()
                .map(|entry| ((entry.memory, entry.hop), (entry.amount, entry.best))),
        );
    }

    /// The strongest path: from the hop in which most counted for the memory (the least of
    /// equals) back along the best single share of each amount. Empty without a trace.
    pub(super) fn path(&self, memory: MemoryHash) -> Vec<HashStep> {
        let hops = self.0.range((memory, 0)..=(memory, u32::MAX));
        let strongest = hops.rev().max_by_key(|(_, (amount, _))| *amount);
        let mut steps = Vec::new();
        let mut here = strongest.map(|(key, _)| *key);
        while let Some((memory, hop)) = here {
            let Some((amount, best)) = self.0.get(&(memory, hop)) else {
                break;
            };
            let relation = best.as_ref().map(|best| best.relation.clone());
            let share = best.as_ref().map_or(*amount, |best| best.share);
            steps.push(HashStep {
                memory,
                relation,
                share,
            });
            here = match best {
                Some(best) => hop.checked_sub(1).map(|before| (best.source, before)),
                None => None,
            };
        }
        steps.reverse();
        steps
    }
}
