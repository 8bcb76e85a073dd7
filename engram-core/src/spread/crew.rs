//! Who does the pieces of a hop. Core starts no thread: the caller lends its own.

/// Threads that work on one hop together.
pub trait Crew: Sync {
    /// Pieces that can be worked on at once.
    fn lanes(&self) -> usize;

    /// Calls `piece` once with each number below `pieces`, in any order and from any threads, and
    /// returns when all calls have.
    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Crew for Alone {
    fn lanes(&self) -> usize {
        1
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        (0..pieces).for_each(piece);
    }
}
