//! Deterministic simulation of Engram: what happens is decided by one seed.
//!
//! So far it holds replicas of one partition around one log ([`world`]): the production state
//! machine, index, edges and snapshots over the in-memory store, which loses what was not synced
//! when a replica crashes. Consensus, network and clocks are not simulated yet: the log is given.
//!
//! What must hold: a seed run twice gives the same trace; replicas that applied the same log are
//! equal in every digest, whatever crashed, was restored or was delayed on the way; and a planted
//! fault is found.

pub mod gossip;
pub mod observe;
pub mod plan;
pub mod workload;
pub mod world;
