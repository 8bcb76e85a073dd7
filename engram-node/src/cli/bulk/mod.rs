//! Bulk data: reading and writing JSONL and `.npy`, and loading them into a space.
//!
//! Used by `engram import`, `engram export`, the demo and the benchmarks.

mod batches;
pub mod colocate;
pub mod jsonl;
pub mod lines;
pub mod load;
pub mod npy;
pub mod progress;
pub mod rejects;
