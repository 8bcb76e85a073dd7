//! Deterministic simulation of Engram: what happens is decided by one seed.
//!
//! [`swarm`] draws a [`plan`] from a seed; [`run`] carries it out on a [`world`]: real nodes and
//! clients on a simulated network, disk and clock. Clients do what [`workload`] says, their
//! questions and answers make the [`history`], and [`invariant`] watches the nodes and judges the
//! answers. What fails is made smaller by [`shrink`]. The binary `simulate` does this for many seeds.
//!
//! [`replicas`] holds the replicas of one partition around a given log, without consensus: small, and
//! exhaustive about crashes between two commands. [`gossip`] holds membership and the exchange of edge
//! changes in clusters of hundreds of nodes, in virtual time. [`overlays`] holds the replicas of one
//! partition that are wiped, restored, moved and expelled while edges change on all of them. [`logs`]
//! holds one log over a disk that crashes between any two writes.
//!
//! What must hold: a seed run twice gives the same trace, on any machine.

pub mod gossip;
pub mod history;
#[cfg(all(test, feature = "planted"))]
mod hunt;
pub mod invariant;
mod libc_seam;
pub mod linearizability;
pub mod logs;
pub mod observe;
pub mod overlays;
pub mod plan;
mod probes;
pub mod replicas;
pub mod run;
pub mod shrink;
pub mod swarm;
pub mod thread;
pub mod workload;
pub mod world;
