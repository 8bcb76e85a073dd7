//! Hands for the parallel parts of a job. Core never spawns: whoever runs a job brings the threads.

use std::sync::OnceLock;

/// Threads that share the pieces of one piece of work.
pub trait Crew: Sync {
    /// Calls `work` once for each number below `pieces`, in any order, on any threads, and returns
    /// when all calls have. What comes of it does not depend on the order or the threads.
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Crew for Alone {
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..pieces).for_each(work);
    }
}

/// What `make` gives for each number below `count`, in order; a crew shares pieces of `size`.
pub(super) fn gather<T: Send + Sync>(
    crew: &dyn Crew,
    count: usize,
    size: usize,
    make: &(dyn Fn(usize) -> T + Sync),
) -> Vec<T> {
    let pieces = count.div_ceil(size);
    if pieces <= 1 {
        return (0..count).map(make).collect();
    }
    let cells: Vec<OnceLock<T>> = std::iter::repeat_with(OnceLock::new).take(count).collect();
    crew.run(pieces, &|piece| {
        let start = piece * size;
        for (number, cell) in (start..).zip(&cells[start..count.min(start + size)]) {
            cell.get_or_init(|| make(number));
        }
    });
    let made = cells.into_iter().map(OnceLock::into_inner);
    made.map(|made| match made {
        Some(made) => made,
        None => unreachable!("a crew returned before all pieces were done"),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does the pieces backwards, some of them twice.
    struct Unruly;

    impl Crew for Unruly {
        fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
            (0..pieces).rev().for_each(|piece| {
                work(piece);
                work(piece / 2);
            });
        }
    }

    #[test]
    fn order_and_number_of_hands_do_not_show() {
        for count in [0, 1, 4, 5, 23] {
            let expected: Vec<usize> = (0..count).map(|n| n * n).collect();
            for crew in [&Alone as &dyn Crew, &Unruly] {
                assert_eq!(gather(crew, count, 4, &|n| n * n), expected);
            }
        }
    }
}
