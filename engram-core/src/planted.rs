//! Bugs that can be planted, to prove that the simulation would find them.
//!
//! A site in production code asks `planted!("name")`. Without the feature `planted` that is the
//! constant `false`: normal and release builds hold none of this. With it, it is true in the thread
//! that [`activate`]d the name: a simulated cluster runs on one thread, several run side by side.
//!
//! What must hold: each name of [`REGISTRY`] has exactly one site, and no site has another name;
//! a planted bug is one change, of the kind that a review may miss. How to plant one is told in
//! docs/reliability.md.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    pub name: &'static str,
    /// What no longer holds, in one sentence.
    pub breaks: &'static str,
    /// Which check of the simulation is expected to see it.
    pub expected: &'static str,
}

const fn bug(name: &'static str, breaks: &'static str, expected: &'static str) -> Bug {
    Bug {
        name,
        breaks,
        expected,
    }
}

/// All of them, by name.
pub const REGISTRY: &[Bug] = &[
    bug(
        "ack-before-fsync",
        "log entries count as durable when they are queued for the disk, not when they are on it",
        "acknowledged writes: a power cut takes entries that a majority was said to have",
    ),
    bug(
        "applied-index-apart",
        "the applied position is written before the state that belongs to it",
        "equal digests: a crash between the two skips an entry on one replica",
    ),
    bug(
        "barrier-without-wait",
        "a leader that has proved that it leads answers before it has applied what it must show",
        "linearizability: reads right after a change of leader",
    ),
    bug(
        "edges-averaged",
        "a contribution is merged into the newest one held by weighted mean, under that one's dot",
        "edges: the sums and removals of the operation log",
    ),
    bug(
        "exchange-takes-all-for-equal",
        "a replica that is asked for edge changes says that both have seen the same",
        "liveness: overlays that do not become equal",
    ),
    bug(
        "expected-version-too-lax",
        "compare-and-set passes when the memory is newer than expected, too",
        "linearizability of registers: of two racing writers both win",
    ),
    bug(
        "failed-sync-acknowledged",
        "the log writer goes on after a failed write and reports it as done",
        "acknowledged writes, log matching: a replica is said to have what its disk never got",
    ),
    bug(
        "fallback-new-request",
        "a change that falls back to one replica's word gets a request id of its own",
        "exactly once: the attempt at a majority is carried out late, and both count",
    ),
    bug(
        "fold-past-the-unheard",
        "evidence is folded that a replica which was not heard of may not have passed",
        "edges: removals that had seen it do not find it any more",
    ),
    bug(
        "forgetting-keeps-edges",
        "forgetting a memory leaves its out-edges",
        "edges: evidence that a forgetting took is counted",
    ),
    bug(
        "forgotten-memory-recalled",
        "forgetting a memory leaves its vector alive in the index of the replica",
        "recall against brute force, equal topology digests",
    ),
    bug(
        "installed-too-early",
        "a snapshot counts as installed from the moment that its installation begins",
        "liveness: after a crash in the middle the replica goes on with half of it and stops",
    ),
    bug(
        "late-forward-served",
        "a request that lay in a broken connection is served after its sender has given it up",
        "edges: a removal takes evidence that was acknowledged after it",
    ),
    bug(
        "left-replica-stays",
        "a node keeps its replica after the group has moved away",
        "liveness: a replica that the map does not place",
    ),
    bug(
        "local-edge-not-synced",
        "a local change of an edge is acknowledged before it is on disk",
        "edges: a crash of the one replica that has it loses an acknowledged observation",
    ),
    bug(
        "log-chain-unchecked",
        "a log record whose checksum does not fit its predecessor is served",
        "equal digests: a flipped bit is applied, or replicated",
    ),
    bug(
        "lost-answer-not-applied",
        "a forwarded write whose answer was lost is reported as not applied",
        "linearizability, set: a write that was refused is there",
    ),
    bug(
        "map-goes-back",
        "a replica of the control group that is brought back shows each older map on its way",
        "progress is monotone: the map of a running node",
    ),
    bug(
        "name-free-at-once",
        "a dropped space's name is free as soon as the map has forgotten the space, not when its groups have",
        "spaces: a node with an old map serves the dropped space under the name of the new one",
    ),
    bug(
        "overlay-dot-reused",
        "the numbers of local edge changes begin anew once the log has adopted the earlier ones",
        "edges: a second change under a used dot is taken for one that is known",
    ),
    bug(
        "overlay-dots-unseen",
        "what a replica says that it has seen leaves out the overlay dots",
        "edges, session reads: removals miss local evidence, and sessions lose sight of it",
    ),
    bug(
        "overlay-not-handed-over",
        "a node whose replica moves away deletes it with local edge changes that nobody else has",
        "edges: local observations that are gone after a move",
    ),
    bug(
        "purge-one-too-many",
        "purging takes the first entry with it that must stay",
        "liveness, log matching: a follower that needs this entry never gets it",
    ),
    bug(
        "read-without-barrier",
        "a leader answers linearizable reads without asking whether it still leads",
        "linearizability: reads at a leader that was cut off",
    ),
    bug(
        "removal-ignores-context",
        "a removal takes all evidence of its edge, also what its issuer had not seen",
        "edges: observations that no removal had seen are gone",
    ),
    bug(
        "removal-without-barrier",
        "a removal takes its context from a leader that may not have applied everything yet",
        "edges: evidence acknowledged before the removal survives it",
    ),
    bug(
        "replica-leaves-early",
        "a node deletes its replica when a move away from it begins, not when it has ended",
        "placement: a voter without its replica",
    ),
    bug(
        "retry-applied-twice",
        "a second attempt of a request is applied again",
        "counter: more evidence than requests",
    ),
    bug(
        "session-takes-the-last",
        "a session keeps the last position that it saw instead of the greatest",
        "session reads: they go back",
    ),
    bug(
        "session-token-ignored",
        "any replica answers a session read, however far behind it is",
        "session reads: they go back",
    ),
    bug(
        "short-log-believed",
        "a replica that lost the end of its log takes the members that its log names for all there are",
        "one primary, no panic: the founder, brought back to its first entries, elects itself alone",
    ),
    bug(
        "snapshot-keeps-old-records",
        "a snapshot is installed over the records that it should replace",
        "equal digests from records: what was forgotten meanwhile is still there",
    ),
    bug(
        "snapshot-taken-late",
        "a snapshot holds a newer state than it says: entries are applied again over it",
        "equal digests: the receiver has counted commands twice",
    ),
    bug(
        "snapshot-takes-overlay",
        "installing a snapshot deletes the replica's own edge overlay",
        "edges: local observations of a replica that was cut off are gone",
    ),
    bug(
        "snapshot-without-requests",
        "the table of applied request ids is left out of snapshots",
        "liveness: the receiver refuses the snapshot and stops",
    ),
    bug(
        "space-by-hearsay",
        "a description says that a majority confirmed the space, when only the node's map has it",
        "spaces: a name that was dropped and made again is described as the earlier space",
    ),
    bug(
        "spread-bound-of-one-hop",
        "what is missing counts once in the bound, however far it could have travelled",
        "spread against the oracle: a partial answer lacks more than it says",
    ),
    bug(
        "spread-frame-doubled",
        "a frame of a spread that comes twice is counted twice",
        "spread against the oracle: activation from nowhere",
    ),
    bug(
        "spread-push-doubled",
        "a push of an async spread that comes twice is counted twice",
        "spread against the oracle: activation from nowhere",
    ),
    bug(
        "token-one-behind",
        "the token of a write names the state before it",
        "session reads: a session does not see its own write",
    ),
    bug(
        "topology-by-timing",
        "a window is linked by what lives when the job runs, not by what lived when it was sealed",
        "equal topology digests",
    ),
    bug(
        "truncation-keeps-records",
        "cutting the log's end off leaves its records on disk",
        "log matching: after a crash entries of a deposed leader are back",
    ),
    bug(
        "vote-before-fsync",
        "a vote is given before it is on disk",
        "votes on disk, one primary per term: a crash lets a node vote twice",
    ),
    bug(
        "window-sealed-late-on-replay",
        "rebuilding the index after a restart seals its windows one command late",
        "equal topology digests",
    ),
];

/// Whether a planted bug of this name is active in this thread. To be used in an `if` at the one
/// site of the name.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        $crate::planted::is_active($name)
    };
}

/// Whether this build can plant bugs at all.
pub const COMPILED_IN: bool = cfg!(feature = "planted");

/// Always false: the compiler removes whatever hangs on it.
#[cfg(not(feature = "planted"))]
#[must_use]
#[inline(always)]
pub const fn is_active(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use active::{Active, UnknownBug, activate, is_active, reached};

#[cfg(feature = "planted")]
mod active {
    use std::cell::Cell;
    use std::marker::PhantomData;

    use super::REGISTRY;

    thread_local! {
        /// The bug that is active here, and how often its site asked.
        static ACTIVE: Cell<Option<(&'static str, u64)>> = const { Cell::new(None) };
    }

    /// No bug has this name.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("no planted bug is called {0:?}")]
    pub struct UnknownBug(pub String);

    /// A planted bug, until this is dropped. It belongs to the thread that activated it.
    #[must_use = "the bug is planted until this is dropped"]
    #[derive(Debug)]
    pub struct Active(PhantomData<*const ()>);

    impl Drop for Active {
        fn drop(&mut self) {
            ACTIVE.set(None);
        }
    }

    /// Plants a bug in this thread, instead of the one before.
    ///
    /// # Errors
    /// When the registry has no bug of this name.
    pub fn activate(name: &str) -> Result<Active, UnknownBug> {
        let bug = REGISTRY.iter().find(|bug| bug.name == name);
        let bug = bug.ok_or_else(|| UnknownBug(name.to_owned()))?;
        ACTIVE.set(Some((bug.name, 0)));
        Ok(Active(PhantomData))
    }

    /// How often the site of the active bug was reached since it was activated: 0 means that the
    /// run cannot have shown anything.
    #[must_use]
    pub fn reached() -> u64 {
        ACTIVE.get().map_or(0, |(_, reached)| reached)
    }

    /// See [`crate::planted!`].
    #[must_use]
    pub fn is_active(name: &'static str) -> bool {
        match ACTIVE.get() {
            Some((active, reached)) if active == name => {
                ACTIVE.set(Some((active, reached + 1)));
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn collect_sites(directory: &Path, sites: &mut BTreeMap<String, usize>) {
        for entry in fs::read_dir(directory).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect_sites(&path, sites);
            } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("planted.rs")
            {
                let text = fs::read_to_string(&path).expect("a readable file");
                for (_, rest) in text
                    .match_indices("planted!(\"")
                    .map(|(at, it)| (at, &text[at + it.len()..]))
                {
                    let name = rest.split('"').next().unwrap_or_default();
                    *sites.entry(name.to_owned()).or_default() += 1;
                }
            }
        }
    }

    #[test]
    fn each_bug_has_one_site_and_each_site_a_bug() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the workspace");
        let mut sites = BTreeMap::new();
        for sources in ["engram-core/src", "engram-node/src", "engram-client/src"] {
            collect_sites(&workspace.join(sources), &mut sites);
        }
        let expected: BTreeMap<String, usize> = REGISTRY
            .iter()
            .map(|bug| (bug.name.to_owned(), 1))
            .collect();
        assert_eq!(sites, expected);
        assert_eq!(expected.len(), REGISTRY.len(), "a name is there twice");
        assert!(REGISTRY.is_sorted_by_key(|bug| bug.name));
    }

    #[cfg(not(feature = "planted"))]
    #[test]
    fn nothing_is_planted_in_a_normal_build() {
        const { assert!(!COMPILED_IN && !is_active("ack-before-fsync")) }
    }

    #[cfg(feature = "planted")]
    #[test]
    fn a_bug_is_planted_until_it_is_dropped() {
        assert!(!is_active("edges-averaged"));
        let active = activate("edges-averaged").expect("known");
        assert!(is_active("edges-averaged") && !is_active("ack-before-fsync"));
        assert_eq!(reached(), 1);
        drop(active);
        assert!(!is_active("edges-averaged"));
        assert!(activate("no such bug").is_err());
    }
}
