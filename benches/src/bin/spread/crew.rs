//! Threads for the pieces of a hop.

use std::sync::atomic::{AtomicUsize, Ordering};

use engram_core::spread::Crew;

/// So many threads, started anew for each round of pieces.
pub struct Threads(pub usize);

impl Crew for Threads {
    fn lanes(&self) -> usize {
        self.0
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= pieces {
                    break;
                }
                piece(number);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.0 {
                scope.spawn(work);
            }
            work();
        });
    }
}
