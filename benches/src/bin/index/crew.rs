//! Threads that share an index job.

use std::sync::atomic::{AtomicUsize, Ordering};

use engram_core::index::Crew;

/// So many threads, started anew for each step of a job, as a server starts them.
pub struct Threads(pub usize);

impl Crew for Threads {
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
            for _ in 1..self.0.min(pieces) {
                scope.spawn(take_pieces);
            }
            take_pieces();
        });
    }
}
