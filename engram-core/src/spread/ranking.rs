//! Which places of a ranking are certain when totals may be too small.

use super::ledger::Accounting;
use super::outcome::Activated;
use super::plan::{Place, SlotTable};
use crate::types::PartitionId;

/// A place in the answer's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// The memory's true total is between what was answered and this; `None`: nothing is known.
    pub at_most: Option<u64>,
    /// Whatever is missing, the memory stays before the next one of the answer; the last one,
    /// before everything that is not in it.
    pub is_before_next: bool,
}

/// `partition` tells where a place is; `unseen`: memories outside `activated` may count too.
pub(super) fn ranking(
    activated: &[Activated],
    next_total: u64,
    accounting: &Accounting,
    slots: &SlotTable,
    partition: impl Fn(Place) -> PartitionId,
) -> Vec<Rank> {
    let upper = |one: &Activated| -> Option<u64> {
        let bound = accounting.bound.as_ref()?;
        let lacks = bound.of(partition(slots.place(one.id.hash_slot())));
        Some(u64::try_from(u128::from(one.total).saturating_add(lacks)).unwrap_or(u64::MAX))
    };
    let uppers: Vec<Option<u64>> = activated.iter().map(upper).collect();
    let complete = accounting
        .bound
        .as_ref()
        .is_some_and(|bound| bound.total == 0);
    // What is not in the answer may have up to this.
    let outside = accounting
        .bound
        .as_ref()
        .map(|bound| u128::from(next_total).saturating_add(bound.of_any()));
    let place = |(index, one): (usize, &Activated)| {
        let is_before_next = complete
            || match uppers.get(index + 1) {
                Some(next) => next.is_some_and(|next| one.total > next),
                None => outside.is_some_and(|outside| u128::from(one.total) > outside),
            };
        Rank {
            at_most: uppers[index],
            is_before_next,
        }
    };
    activated.iter().enumerate().map(place).collect()
}
