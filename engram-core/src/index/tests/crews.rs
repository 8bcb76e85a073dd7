//! Jobs that threads share: the same links as one thread makes, in any order.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// So many threads, which take the pieces as they come.
pub(super) struct Threads(pub(super) usize);

impl Crew for Threads {
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.0.min(pieces) {
                scope.spawn(|| {
                    loop {
                        let piece = next.fetch_add(1, Ordering::Relaxed);
                        if piece >= pieces {
                            break;
                        }
                        work(piece);
                    }
                });
            }
        });
    }
}

/// Does the pieces in an order of its own.
struct Shuffled(u64);

impl Crew for Shuffled {
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let mut order: Vec<usize> = (0..pieces).collect();
        let mut random = StdRng::seed_from_u64(self.0);
        for place in (1..pieces).rev() {
            order.swap(place, random.random_range(0..=place));
        }
        order.into_iter().for_each(work);
    }
}

#[test]
fn the_crew_does_not_show() {
    let log = log(51, 5_000, 8);
    let digest = |crew: &dyn Crew| {
        let mut partition = Partition::new(shape(Kernel::detect(), Metric::Cosine));
        log.iter().for_each(|command| partition.apply(command));
        partition.work_with(crew);
        partition.digest()
    };
    let alone = digest(&Alone);
    for threads in [1, 2, 4, 8] {
        assert_eq!(digest(&Threads(threads)), alone, "{threads} threads");
    }
    assert_eq!(digest(&Shuffled(1)), alone);
}
