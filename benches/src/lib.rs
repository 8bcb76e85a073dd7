//! Benchmarks of Engram: against a running cluster, or of one part in one process.
//!
//! Each program prints a table for people and one JSON object for documents, and says what it ran
//! against, so that a figure can be made again.

pub mod latency;
pub mod processor;
#[cfg(feature = "cluster")]
pub mod program;
pub mod worker;
