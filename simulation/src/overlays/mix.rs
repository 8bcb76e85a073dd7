//! What may happen in a run: each seed uses some of it, since one kind of event hides what another
//! would show.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Drawn once, by a seed.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub crashes: bool,
    /// A snapshot replaces what a replica has from the log.
    pub snapshots: bool,
    /// Wiped disks, and disks set back to a copy.
    pub disks: bool,
    /// Moves, expulsions and returns.
    pub members: bool,
    pub cuts: bool,
    /// Attempts at a majority that are answered by one replica's word, and carried out late or twice.
    pub twins: bool,
    pub forgets: bool,
}

impl Mix {
    pub fn draw(rng: &mut StdRng) -> Self {
        let mild = rng.random_bool(0.3);
        let mut wild = |chance: f64| rng.random_bool(chance) && !mild;
        let (crashes, disks, members, twins) = (wild(0.8), wild(0.7), wild(0.8), wild(0.4));
        Self {
            crashes,
            disks,
            members,
            twins,
            snapshots: rng.random_bool(0.7),
            cuts: rng.random_bool(0.8),
            forgets: rng.random_bool(0.6),
        }
    }

    /// Whether every replica keeps what it has and stays: no removal can then be too late for what
    /// was folded, and nothing acknowledged can be gone.
    pub fn is_mild(self) -> bool {
        !(self.crashes || self.disks || self.members || self.twins)
    }
}
