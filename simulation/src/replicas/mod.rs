//! Replicas of one partition around one log: the production state machine, index, edges and
//! snapshots over the in-memory store, which loses what was not synced when a replica crashes.
//!
//! What must hold: replicas that applied the same log are equal in every digest, whatever crashed,
//! was restored or was delayed on the way; and a planted fault is found.

pub mod workload;
pub mod world;
