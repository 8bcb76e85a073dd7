//! The Engram engine: everything that is a pure function of a partition's log.
//!
//! `engram-node` feeds it commands that a Raft group has ordered; the embedded facade feeds it
//! directly. Nothing here knows a network, an async runtime, a wall clock or a random number
//! generator: time, ids and random bits arrive inside commands. Nothing here spawns a thread:
//! background work is handed out as jobs that the caller runs where it likes.
//!
//! What must hold: two replicas that applied the same commands have equal digests, whatever CPU,
//! thread count, restart history or storage backend they ran on.

#[cfg(test)]
mod cases;
pub mod command;
pub mod edges;
pub mod embedded;
pub mod filter;
pub mod index;
pub mod kernel;
pub mod keys;
pub mod limits;
pub mod partition;
pub mod planted;
pub mod spread;
pub mod storage;
mod sync;
pub mod types;
pub mod walk;
