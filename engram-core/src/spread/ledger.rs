//! What became of activation: sent, consumed, missing; and how much an answer can lack at most.
//!
//! A *cell* is (source partition, target partition, remaining hops); seeds have no source. Reports
//! add what they sent and consumed; what was sent and never reported as consumed is *missing*.
//!
//! # The bound
//!
//! Under `fan` with linear rules, one unit that arrives at a memory with r hops to go adds at most
//! `G(r) = 1 + d + ... + d^r` to the totals of all memories together: it counts once, and at most d
//! of it travels on. So the answer lacks at most the sum of missing x G(r), each cell at least 0,
//! plus what was cut off or rounded away x G of where it would have arrived. A node that died in
//! the middle may have sent more than it reported; what its receivers consumed beyond that makes a
//! cell negative, and counts as 0. That is sound: what it consumed without a report is missing at
//! it with one more hop to go, and G(r + 1) of that outweighs all it can have sent on.
//!
//! For one memory the same holds, and a little less: what is missing at another partition must
//! travel at least one hop to reach it, so it adds at most G(r) - 1.
//!
//! Sums saturate. While everything injected is at most [`INJECTED_MAX`], no total can, and neither
//! can the true one: beyond it no bound is given.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::HOPS_MAX;
use crate::planted;
use crate::types::{PartitionId, Unit};

/// Injected activation up to which totals cannot saturate: each memory counts at most all of it in
/// each hop.
pub const INJECTED_MAX: u64 = u64::MAX / (HOPS_MAX as u64 + 1);

/// Where activation was on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// `None`: a seed.
    pub from: Option<PartitionId>,
    pub to: PartitionId,
    /// Hops it may still travel when it arrives.
    pub remaining: u32,
}

/// Activation by cell. Canonical order, no zeros.
pub type Cells = BTreeMap<Cell, u128>;

/// Activation without a place, by the remaining hops it would have arrived with.
pub type ByRemaining = BTreeMap<u32, u128>;

/// Adds to a cell.
pub(super) fn book(cells: &mut Cells, cell: Cell, amount: u128) {
    if amount > 0 {
        let held = cells.entry(cell).or_default();
        *held = held.saturating_add(amount);
    }
}

pub(super) fn book_remaining(sums: &mut ByRemaining, remaining: u32, amount: u128) {
    if amount > 0 {
        let held = sums.entry(remaining).or_default();
        *held = held.saturating_add(amount);
    }
}

/// The coordinator's account of one attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    injected: u128,
    sent: Cells,
    consumed: Cells,
    pruned: ByRemaining,
}

/// What an answer lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    pub injected: u128,
    /// Sent, or injected, and not known to have been consumed.
    pub missing: Cells,
    /// Cut off or rounded away on purpose, at most: where it would have arrived.
    pub pruned: ByRemaining,
    /// How much totals can lack; `None` when the rules allow no such statement.
    pub bound: Option<Bound>,
}

/// How much totals can lack, in the unit of totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// All memories together, also those that are not in the answer.
    pub total: u128,
    /// Any single memory of a partition that is not in `by_partition`.
    pub elsewhere: u128,
    /// Any single memory of these partitions.
    pub by_partition: BTreeMap<PartitionId, u128>,
}

impl Bound {
    /// For a single memory.
    #[must_use]
    pub fn of(&self, partition: PartitionId) -> u128 {
        let own = self.by_partition.get(&partition);
        own.copied().unwrap_or(self.elsewhere)
    }

    /// For a memory of which nothing is known.
    #[must_use]
    pub fn of_any(&self) -> u128 {
        let greatest = self.by_partition.values().max().copied();
        greatest.unwrap_or(0).max(self.elsewhere)
    }
}

impl Accounting {
    #[must_use]
    pub fn missing_total(&self) -> u128 {
        self.missing
            .values()
            .fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Missing of injected, at most 1.
    #[must_use]
    pub fn lost_share(&self) -> f64 {
        let missing = self.missing_total();
        if missing == 0 {
            return 0.0;
        }
        (missing as f64 / self.injected as f64).min(1.0)
    }
}

impl Ledger {
    pub(super) fn inject(&mut self, to: PartitionId, remaining: u32, amount: u64) {
        let amount = u128::from(amount);
        let from = None;
        self.injected = self.injected.saturating_add(amount);
        book(
            &mut self.sent,
            Cell {
                from,
                to,
                remaining,
            },
            amount,
        );
    }

    pub(super) fn report(&mut self, sent: &Cells, consumed: &Cells, pruned: &ByRemaining) {
        for (cell, amount) in sent {
            book(&mut self.sent, *cell, *amount);
        }
        for (cell, amount) in consumed {
            book(&mut self.consumed, *cell, *amount);
        }
        for (remaining, amount) in pruned {
            book_remaining(&mut self.pruned, *remaining, *amount);
        }
    }

    /// `is_linear` allows a bound.
    pub(super) fn close(&self, decay: Unit, is_linear: bool) -> Accounting {
        let mut missing = Cells::new();
        for (cell, sent) in &self.sent {
            let consumed = self.consumed.get(cell).copied().unwrap_or(0);
            book(&mut missing, *cell, sent.saturating_sub(consumed));
        }
        let certain = is_linear && self.injected <= u128::from(INJECTED_MAX);
        Accounting {
            injected: self.injected,
            bound: certain.then(|| bound(&missing, &self.pruned, decay)),
            missing,
            pruned: self.pruned.clone(),
        }
    }
}

/// `G(r)`, see the module.
pub(super) mod gain {
    use crate::limits::HOPS_MAX;
    use crate::types::Unit;

    /// G(0) to G of the most hops there are, in Q32, rounded up.
    pub(in crate::spread) fn table(decay: Unit) -> Vec<u128> {
        let one = u128::from(Unit::ONE.bits());
        let mut gains = vec![one];
        for _ in 0..HOPS_MAX {
            let last = gains[gains.len() - 1];
            gains.push(one + (last * u128::from(decay.bits())).div_ceil(one));
        }
        gains
    }

    pub(in crate::spread) fn of(table: &[u128], remaining: u32) -> u128 {
        table[(remaining as usize).min(table.len() - 1)]
    }
}

/// amount x gain, rounded up.
fn weigh(amount: u128, gain: u128) -> u128 {
    match amount.checked_mul(gain) {
        Some(product) => product.div_ceil(u128::from(Unit::ONE.bits())),
        None => u128::MAX,
    }
}

fn bound(missing: &Cells, pruned: &ByRemaining, decay: Unit) -> Bound {
    let gains = gain::table(decay);
    let one = u128::from(Unit::ONE.bits());
    let gain = |remaining: u32| gain::of(&gains, remaining);
    let anywhere = pruned.iter().fold(0_u128, |sum, (remaining, amount)| {
        sum.saturating_add(weigh(*amount, gain(*remaining)))
    });
    let (mut total, mut elsewhere) = (anywhere, anywhere);
    for (cell, amount) in missing {
        let gain = match planted!("spread-bound-of-one-hop") {
            true => one,
            false => gain(cell.remaining),
        };
        total = total.saturating_add(weigh(*amount, gain));
        elsewhere = elsewhere.saturating_add(weigh(*amount, gain - one));
    }
    let mut by_partition: BTreeMap<PartitionId, u128> = BTreeMap::new();
    for (cell, amount) in missing {
        let held = by_partition.entry(cell.to).or_insert(elsewhere);
        // Here it counts by itself, besides what it sends on.
        *held = held.saturating_add(*amount);
    }
    Bound {
        total,
        elsewhere,
        by_partition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);
    const Q: PartitionId = PartitionId(2);
    const HALF: u64 = 1 << 31;

    fn half() -> Unit {
        Unit::from_bits(HALF).expect("a half")
    }

    #[test]
    fn what_is_missing_weighs_more_the_farther_it_could_travel() {
        let mut ledger = Ledger::default();
        ledger.inject(P, 2, 100);
        ledger.inject(Q, 2, 60);
        let consumed = [(
            Cell {
                from: None,
                to: Q,
                remaining: 2,
            },
            60,
        )]
        .into();
        let sent: Cells = [(
            Cell {
                from: Some(Q),
                to: P,
                remaining: 1,
            },
            30,
        )]
        .into();
        ledger.report(&sent, &consumed, &[(0, 2)].into());
        let accounting = ledger.close(half(), true);
        assert_eq!(
            (accounting.injected, accounting.missing_total()),
            (160, 130)
        );
        assert!((accounting.lost_share() - 130.0 / 160.0).abs() < 1e-12);
        let bound = accounting.bound.expect("linear");
        // 100 x 1.75 + 30 x 1.5 + 2.
        assert_eq!(bound.total, 175 + 45 + 2);
        assert_eq!(bound.of(Q), 75 + 15 + 2);
        assert_eq!(bound.of(P), 75 + 15 + 2 + 130);
        assert_eq!(bound.of_any(), bound.of(P));
    }

    #[test]
    fn what_was_consumed_without_having_been_reported_as_sent_is_no_credit() {
        let mut ledger = Ledger::default();
        ledger.inject(P, 1, 10);
        let unreported = [(
            Cell {
                from: Some(P),
                to: Q,
                remaining: 0,
            },
            5,
        )]
        .into();
        ledger.report(&Cells::new(), &unreported, &ByRemaining::new());
        let accounting = ledger.close(half(), true);
        assert_eq!(accounting.missing_total(), 10);
        assert_eq!(accounting.bound.expect("linear").total, 15);
    }

    #[test]
    fn no_bound_where_sums_could_saturate_or_rules_are_not_linear() {
        let mut ledger = Ledger::default();
        ledger.inject(P, 1, INJECTED_MAX);
        assert!(ledger.close(half(), true).bound.is_some());
        assert!(ledger.close(half(), false).bound.is_none());
        ledger.inject(P, 1, 1);
        assert!(ledger.close(half(), true).bound.is_none());
    }
}
