//! The Rust client of Engram.
