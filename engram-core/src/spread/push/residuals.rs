//! What has arrived at one partition and was not pushed on yet, by memory and remaining hops,
//! greatest effect first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::super::ledger::gain;
use crate::types::{MemoryHash, PartitionId, Unit};

/// Effects are told apart by powers of two: the order need not be finer, and an amount that grows a
/// little keeps its place.
type Place = (Reverse<u32>, Reverse<u32>, MemoryHash);

/// See the module.
#[derive(Debug)]
pub(in crate::spread) struct Residuals {
    gains: Vec<u128>,
    entries: BTreeMap<(MemoryHash, u32), Entry>,
    queue: BTreeSet<Place>,
}

#[derive(Debug, Default)]
struct Entry {
    amount: u64,
    /// Which partitions sent it; `None`: a seed. Few.
    origins: Vec<(Option<PartitionId>, u64)>,
}

/// All that waits for one memory with so many hops to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Residual {
    pub(super) memory: MemoryHash,
    pub(super) remaining: u32,
    pub(super) amount: u64,
    pub(super) origins: Vec<(Option<PartitionId>, u64)>,
}

impl Residuals {
    pub(super) fn new(decay: Unit) -> Self {
        Self {
            gains: gain::table(decay),
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn place(&self, memory: MemoryHash, remaining: u32, amount: u64) -> Place {
        let effect = u128::from(amount).saturating_mul(gain::of(&self.gains, remaining));
        let magnitude = u128::BITS - effect.leading_zeros();
        (Reverse(magnitude), Reverse(remaining), memory)
    }

    /// Adds what arrived. Everything injected fits a u64, so no sum overflows.
    pub(super) fn add(
        &mut self,
        origin: Option<PartitionId>,
        memory: MemoryHash,
        remaining: u32,
        amount: u64,
    ) {
        if amount == 0 {
            return;
        }
        let entry = self.entries.entry((memory, remaining)).or_default();
        let before = entry.amount;
        entry.amount = entry.amount.saturating_add(amount);
        match entry.origins.iter_mut().find(|(held, _)| *held == origin) {
            Some((_, held)) => *held = held.saturating_add(amount),
            None => entry.origins.push((origin, amount)),
        }
        let after = entry.amount;
        self.requeue(memory, remaining, before, after);
    }

    fn requeue(&mut self, memory: MemoryHash, remaining: u32, before: u64, after: u64) {
        let old = self.place(memory, remaining, before);
        let new = self.place(memory, remaining, after);
        if old != new && before > 0 {
            self.queue.remove(&old);
        }
        if after > 0 {
            self.queue.insert(new);
        }
    }

    /// Takes out what has the greatest effect; of equals the farthest to go, then the least hash.
    pub(super) fn pop(&mut self) -> Option<Residual> {
        let (_, Reverse(remaining), memory) = self.queue.pop_first()?;
        let Entry { amount, origins } = self.entries.remove(&(memory, remaining))?;
        Some(Residual {
            memory,
            remaining,
            amount,
            origins,
        })
    }

    /// Drops what these partitions sent.
    pub(super) fn drop_from(&mut self, partitions: &BTreeSet<PartitionId>) {
        let is_dropped = |(origin, _): &(Option<PartitionId>, u64)| {
            origin.is_some_and(|origin| partitions.contains(&origin))
        };
        let affected: Vec<(MemoryHash, u32)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.origins.iter().any(is_dropped))
            .map(|(key, _)| *key)
            .collect();
        for (memory, remaining) in affected {
            let Some(entry) = self.entries.get_mut(&(memory, remaining)) else {
                continue;
            };
            let before = entry.amount;
            entry.origins.retain(|origin| !is_dropped(origin));
            entry.amount = entry.origins.iter().map(|(_, amount)| amount).sum();
            let after = entry.amount;
            if after == 0 {
                self.entries.remove(&(memory, remaining));
            }
            self.requeue(memory, remaining, before, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);
    const Q: PartitionId = PartitionId(2);

    fn memory(byte: u8) -> MemoryHash {
        MemoryHash([byte; 16])
    }

    fn residuals() -> Residuals {
        Residuals::new(Unit::from_bits(1 << 31).expect("a half"))
    }

    #[test]
    fn the_greatest_effect_comes_first_and_sums_move_up() {
        let mut residuals = residuals();
        residuals.add(None, memory(1), 0, 1_000);
        residuals.add(Some(P), memory(2), 2, 900);
        residuals.add(Some(P), memory(3), 2, 100);
        residuals.add(Some(Q), memory(3), 2, 4_000);
        let order: Vec<u8> = std::iter::from_fn(|| residuals.pop())
            .map(|residual| residual.memory.0[0])
            .collect();
        // 900 x 1.75 is more than 1,000 x 1.
        assert_eq!(order, [3, 2, 1]);
        assert!(residuals.is_empty());
    }

    #[test]
    fn one_source_can_be_dropped_out_of_a_sum() {
        let mut residuals = residuals();
        residuals.add(Some(P), memory(1), 1, 10);
        residuals.add(Some(Q), memory(1), 1, 5_000);
        residuals.add(Some(Q), memory(2), 1, 7);
        residuals.drop_from(&[Q].into());
        let left = residuals.pop().expect("what P sent");
        assert_eq!((left.amount, left.origins), (10, vec![(Some(P), 10)]));
        assert_eq!(residuals.pop(), None);
        assert!(residuals.entries.is_empty());
    }
}
