//! Deterministic simulation of Engram: what happens is decided by one seed.
//!
//! [`world`] holds whole clusters: real nodes and clients on a simulated network, disk and clock,
//! carried through a [`plan`]. [`replicas`] holds the replicas of one partition around a given log,
//! without consensus: small, and exhaustive about crashes between two commands. [`gossip`] holds
//! membership and the exchange of edge changes in clusters of hundreds of nodes, in virtual time.
//!
//! What must hold: a seed run twice gives the same trace, on any machine.

pub mod gossip;
mod libc_seam;
pub mod observe;
pub mod plan;
mod probes;
pub mod replicas;
pub mod thread;
pub mod world;
