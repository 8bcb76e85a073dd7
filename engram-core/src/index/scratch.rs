//! What a walk needs besides the graph, lent from a pool, because it grows with the graph.
//!
//! No caller waits for one: if all are lent out, a new one is made and thrown away. So the memory
//! they hold is bounded whatever the number of threads that search.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::codes::CodeBuffer;
use super::order::Scored;
use super::vectors::Measured;
use crate::kernel::Row;

/// Scratches that are kept.
const SEATS: usize = 64;

static SCRATCHES: [Mutex<Scratch>; SEATS] = [const { Mutex::new(Scratch::new()) }; SEATS];
static NEXT_SEAT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where a thread looks first, so that it finds the scratch that its caches hold.
    static SEAT: usize = NEXT_SEAT.fetch_add(1, Ordering::Relaxed);
}

/// Lends a scratch; a caller within a caller gets another one.
pub(super) fn with_scratch<R>(run: impl FnOnce(&mut Scratch) -> R) -> R {
    let first = SEAT.with(|seat| *seat);
    let mut seats = (first..first + SEATS).map(|seat| &SCRATCHES[seat % SEATS]);
    match seats.find_map(Mutex::try_lock) {
        Some(mut scratch) => run(&mut scratch),
        None => run(&mut Scratch::new()),
    }
}

#[derive(Default)]
pub(super) struct Scratch {
    /// The query.
    pub(super) row: Row,
    pub(super) visited: Visited,
    pub(super) pool: Pool,
    /// Slots that are walked through without being results.
    pub(super) through: BinaryHeap<Reverse<Scored>>,
    pub(super) batch: Vec<u32>,
    pub(super) measured: Measured,
    /// Empty: room for an answer.
    pub(super) nearest: BinaryHeap<Scored>,
    /// What a probe borrows from.
    pub(super) codes: CodeBuffer,
}

impl Scratch {
    const fn new() -> Self {
        Self {
            row: Row::empty(),
            visited: Visited {
                stamps: Vec::new(),
                epoch: 0,
            },
            pool: Pool {
                entries: Vec::new(),
                capacity: 0,
                cursor: 0,
            },
            through: BinaryHeap::new(),
            batch: Vec::new(),
            measured: Measured::new(),
            nearest: BinaryHeap::new(),
            codes: CodeBuffer::new(),
        }
    }
}

/// Slots that a walk has seen: a byte each, in which walk it was.
#[derive(Default)]
pub(super) struct Visited {
    stamps: Vec<u8>,
    epoch: u8,
}

impl Visited {
    /// Begins a walk among so many slots.
    pub(super) fn begin(&mut self, slots: u32) {
        let slots = slots as usize;
        if self.stamps.len() < slots {
            self.stamps.resize(slots.next_power_of_two(), 0);
        }
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.stamps.fill(0);
            self.epoch = 1;
        }
    }

    /// Whether this walk sees the slot for the first time. No for one that was published after the
    /// walk began: the scan of the tail finds it.
    #[inline]
    pub(super) fn enter(&mut self, slot: u32) -> bool {
        match self.stamps.get_mut(slot as usize) {
            Some(stamp) => std::mem::replace(stamp, self.epoch) != self.epoch,
            None => false,
        }
    }
}

/// The nearest results so far, in order, and which of them were expanded.
#[derive(Default)]
pub(super) struct Pool {
    /// Scores, shifted left by one; the lowest bit is set once the slot was expanded.
    entries: Vec<Entry>,
    capacity: usize,
    /// All entries before it were expanded.
    cursor: usize,
}

/// Distance, slot (31 bits) and whether it was expanded, in one integer of the same order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u64);

impl Entry {
    const EXPANDED: u64 = 1;

    #[inline]
    fn new(scored: Scored) -> Self {
        Self(scored.bits() & !0xFFFF_FFFF | u64::from(scored.slot()) << 1)
    }

    #[inline]
    fn scored(self) -> Scored {
        Scored::from_bits(self.0 & !0xFFFF_FFFF | (self.0 & 0xFFFF_FFFF) >> 1)
    }

    #[inline]
    fn is_expanded(self) -> bool {
        self.0 & Self::EXPANDED != 0
    }
}

const _: () = assert!(super::SLOTS_MAX <= 1 << 31);

impl Pool {
    /// Empties it; it will keep the `capacity` nearest.
    pub(super) fn begin(&mut self, capacity: usize) {
        self.entries.clear();
        // One more: an entry is put in before the last one goes.
        self.entries.reserve(capacity + 1);
        self.capacity = capacity;
        self.cursor = 0;
    }

    /// Whether a slot is near enough to be kept.
    #[inline]
    pub(super) fn admits(&self, found: Scored) -> bool {
        self.entries.len() < self.capacity
            || self
                .entries
                .last()
                .is_some_and(|last| Entry::new(found) < *last)
    }

    /// Puts a slot in that was not here before and is admitted.
    #[inline]
    pub(super) fn insert(&mut self, found: Scored) {
        let entry = Entry::new(found);
        if self.entries.len() == self.capacity {
            self.entries.pop();
        }
        let place = self.entries.partition_point(|other| *other < entry);
        self.entries.insert(place, entry);
        self.cursor = self.cursor.min(place);
    }

    /// The nearest entry that was not expanded.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<Scored> {
        let open = &self.entries[self.cursor..];
        self.cursor += open.iter().take_while(|entry| entry.is_expanded()).count();
        self.entries.get(self.cursor).map(|entry| entry.scored())
    }

    /// Marks the entry that [`Self::peek`] gave.
    #[inline]
    pub(super) fn expand(&mut self) {
        self.entries[self.cursor].0 |= Entry::EXPANDED;
        self.cursor += 1;
    }

    /// What is in it, nearest first.
    pub(super) fn results(&self) -> impl Iterator<Item = Scored> {
        self.entries.iter().map(|entry| entry.scored())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Distance;

    proptest! {
        /// Against a sorted set that is cut after each insert.
        #[test]
        fn a_pool_keeps_the_nearest_and_offers_each_once(
            found in proptest::collection::vec((0_u8..20, any::<bool>()), 0..200),
            capacity in 1_usize..12,
        ) {
            let mut pool = Pool::default();
            pool.begin(capacity);
            let mut kept = BTreeSet::new();
            let mut expanded = BTreeSet::new();
            for (slot, (distance, is_turn)) in (0..).zip(found) {
                let scored = Scored::new(Distance(f32::from(distance) - 9.0), slot);
                kept.insert(scored);
                let is_last = kept.len() > capacity && kept.last() == Some(&scored);
                prop_assert_eq!(pool.admits(scored), !is_last);
                if is_last {
                    kept.remove(&scored);
                    continue;
                }
                pool.insert(scored);
                if kept.len() > capacity {
                    kept.pop_last();
                }
                if is_turn {
                    let next = kept.iter().copied().find(|entry| !expanded.contains(entry));
                    prop_assert_eq!(pool.peek(), next);
                    if let Some(next) = next {
                        pool.expand();
                        expanded.insert(next);
                    }
                }
                let results: Vec<Scored> = pool.results().collect();
                prop_assert_eq!(results, kept.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_slot_is_entered_once_in_each_walk() {
        let mut visited = Visited::default();
        for walk in 0..600 {
            visited.begin(100 + walk);
            assert!(visited.enter(7) && visited.enter(99 + walk));
            assert!(!visited.enter(7) && !visited.enter(1 << 20));
        }
    }

    #[test]
    fn scratches_nest() {
        with_scratch(|outer| {
            outer.batch.push(1);
            with_scratch(|inner| assert!(!inner.batch.contains(&1)));
            outer.batch.clear();
        });
    }
}
