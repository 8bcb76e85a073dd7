//! Replicas of one partition and the changes beside its log, through everything that may happen to
//! them: wiped and restored from a backup, moved with changes pending, taken off the map while they
//! are away and back later, cut off from each other in every way, with clocks that jump.
//!
//! The partitions, and the protocol that passes edge changes on, adopts and folds them
//! ([`engram_node::overlay::Protocol`]), are those of production. The log is a list: a proposal is
//! in it at once if the leader reaches a majority, or late, when its client has gone on. Each seed
//! draws what may happen in it ([`mix::Mix`]). What must hold while it happens: nothing that a replica
//! has on disk and the log has not is gone after a crash or a snapshot, and no dot marks two changes.
//! When the faults have ended: replicas have equal digests and nothing beside the log; every change
//! that was acknowledged is in the log, unless all copies of it were destroyed; every edge is worth
//! what the log's operations say, unless folding had to choose and reported it, which it must not
//! where all replicas stay.

mod clients;
mod faults;
mod judge;
mod mix;
mod network;
mod node;
mod oracle;
#[cfg(test)]
mod tests;
mod world;

pub use world::World;

/// What a run was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub seed: u64,
    pub steps: usize,
}

impl Setup {
    /// The run of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, steps: 1_500 }
    }
}

/// How a run went. Equal for equal setups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub entries: usize,
    pub local_changes: usize,
    /// Second attempts beside the log of what is, or comes late, in the log.
    pub twins: usize,
    pub forgotten: usize,
    pub crashed: usize,
    pub installed: usize,
    pub wiped: usize,
    pub restored: usize,
    pub moved: usize,
    pub expelled: usize,
    pub returned: usize,
    pub cuts: usize,
    pub folded_edges: u64,
    pub conflicts: u64,
    /// Changes of which every copy was destroyed.
    pub destroyed: usize,
    /// All replicas stayed, so that folding may not have had to choose.
    pub mild: bool,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Runs a world to its end.
#[must_use]
pub fn run(setup: Setup) -> Report {
    let mut world = World::new(setup.seed);
    for _ in 0..setup.steps {
        world.step();
    }
    world.end()
}
