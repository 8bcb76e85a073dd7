//! One log, driven as Raft drives it, over a disk that crashes between any two of its writes.
//!
//! The log store and the node's log writer are those of production. The disk does one piece of work
//! when the world says so, so that a machine can die while entries, a vote or a cut wait for it; it
//! refuses syncs, and single records read wrong. [`model`] says what the log may hold after each
//! operation. What must hold: what was reported durable is there after a crash; what was not is there
//! in the order of the calls, as far as it is there; a record that reads wrong is an error, and never
//! another entry.

mod machine;
mod model;
#[cfg(test)]
mod tests;
mod world;

use world::World;

/// What a run was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub seed: u64,
    pub steps: usize,
}

/// Enough for some dozens of crashes.
const STEPS: usize = 400;

impl Setup {
    /// The run of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, steps: STEPS }
    }
}

/// How a run went. Equal for equal setups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub appended: usize,
    pub cut: usize,
    pub purged: usize,
    pub votes: usize,
    pub crashes: usize,
    /// Crashes while an operation waited for the disk.
    pub crashes_within: usize,
    /// Operations that a failed sync ended.
    pub failed_syncs: usize,
    pub damaged: usize,
    /// Starts, and reads after one, that said that a record reads wrong.
    pub refused_at_start: usize,
    pub refused_when_read: usize,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Runs a world to its end, or to the first thing that does not hold.
///
/// # Panics
/// When there is no runtime to be had.
#[must_use]
pub fn run(setup: Setup) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(async {
        let mut world = World::new(setup.seed);
        for _ in 0..setup.steps {
            if !world.report.violations.is_empty() {
                break;
            }
            world.step().await;
        }
        world.report
    })
}
