//! Benchmarks of Engram.
