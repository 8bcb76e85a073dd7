//! The threads that share an index job, or a hop of a spread: which cores it may use besides its own.
//!
//! [`jobs`](super::jobs) borrows hands for each job and gives them back after it. What must hold: in
//! steady state linking leaves one core to everything else; only while many windows wait (a bulk
//! import, a restart without saved links) it takes all of them. Links do not depend on any of it.
//!
//! Spreads have hands of their own: a hop takes the cores that no other one has, and the thread it
//! came with. Activation does not depend on it either.

use std::sync::atomic::{AtomicUsize, Ordering};

use engram_core::index::Crew;
use parking_lot::Mutex;

/// So many windows must wait for linking to take the last core, too.
const CATCH_UP_WINDOWS: u64 = 32;

/// The cores of this machine, as far as jobs use them.
pub struct Hands {
    cores: usize,
    taken: Mutex<usize>,
}

/// Hands lent to one job; they go back when it is dropped.
pub struct Lent<'a> {
    hands: &'a Hands,
    count: usize,
}

impl Hands {
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self {
            cores,
            taken: Mutex::new(0),
        }
    }

    /// Jobs that may run side by side.
    #[must_use]
    pub fn steady(&self) -> usize {
        self.cores.saturating_sub(1).max(1)
    }

    /// Hands for a job of a partition with so many `waiting` windows: at least the caller's own.
    pub fn lend(&self, waiting: u64) -> Lent<'_> {
        let allowed = if waiting >= CATCH_UP_WINDOWS {
            self.cores
        } else {
            self.steady()
        };
        self.take(allowed)
    }

    fn take(&self, allowed: usize) -> Lent<'_> {
        let mut taken = self.taken.lock();
        let count = allowed.saturating_sub(*taken).max(1);
        *taken += count;
        Lent { hands: self, count }
    }
}

impl engram_core::spread::Crew for Hands {
    fn lanes(&self) -> usize {
        self.cores.saturating_sub(*self.taken.lock()).max(1)
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        Crew::run(&self.take(self.cores), pieces, piece);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.hands.taken.lock() -= self.count;
    }
}

impl Crew for Lent<'_> {
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let take_pieces = || {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                work(piece);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.count.min(pieces) {
                scope.spawn(take_pieces);
            }
            take_pieces();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_is_left_until_much_waits() {
        let hands = Hands::new(4);
        let first = hands.lend(1);
        assert_eq!(first.count, 3);
        let second = hands.lend(1);
        assert_eq!(second.count, 1, "its own thread is there anyway");
        drop((first, second));
        assert_eq!(hands.lend(CATCH_UP_WINDOWS).count, 4);
        assert_eq!(Hands::new(1).lend(1).count, 1);
        assert_eq!(*hands.taken.lock(), 0);
    }

    #[test]
    fn a_hop_takes_what_others_leave() {
        use engram_core::spread::Crew as _;
        let hands = Hands::new(3);
        assert_eq!(hands.lanes(), 3);
        let other = hands.take(2);
        assert_eq!(hands.lanes(), 1);
        drop(other);
        let done = AtomicUsize::new(0);
        hands.run(7, &|_| {
            assert_eq!(hands.lanes(), 1, "all are taken");
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!((done.into_inner(), hands.lanes()), (7, 3));
    }

    #[test]
    fn every_piece_is_done_once() {
        let hands = Hands::new(3);
        let done: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
        hands.lend(CATCH_UP_WINDOWS).run(done.len(), &|piece| {
            done[piece].fetch_add(1, Ordering::Relaxed);
        });
        assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
    }
}
