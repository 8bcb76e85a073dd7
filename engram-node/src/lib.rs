//! The Engram server and command line.
//!
//! Services hold no logic; only `consensus` speaks openraft; only `membership` speaks foca;
//! everything that touches the machine goes through `seams`. Without the feature `rocksdb` there are
//! no seams of a real process, and no command line: that is what the simulation builds.

#[cfg(feature = "rocksdb")]
pub mod backup;
#[cfg(feature = "rocksdb")]
pub mod cli;
pub mod config;
pub mod consensus;
pub mod control;
#[cfg(feature = "rocksdb")]
pub mod demo;
pub mod http;
pub mod liveness;
pub mod membership;
pub mod overlay;
pub mod placement;
pub mod replica;
pub mod routing;
pub mod seams;
pub mod security;
pub mod server;
pub mod services;
pub mod transport;
