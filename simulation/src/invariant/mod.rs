//! What must hold of every run: one file per invariant, each beginning with the property, where it
//! is promised, and what would break it.
//!
//! Two kinds. *Watchers* look at the nodes from outside, every so many ticks and at the end, and
//! remember what they saw. *Judges* look at the whole history of answers once a run is over. The
//! last part of a history is the audit: reads of everything, made after the cluster has healed.
//! Each file has a test with an input that breaks its invariant: a checker that cannot fail is a
//! defect.

pub(crate) mod acknowledged;
mod committed;
mod digests;
mod edges;
mod evidence;
mod exactly_once;
pub mod linearizable;
pub mod liveness;
mod log_matching;
mod monotone;
mod one_primary;
mod placement;
mod recall;
mod records;
mod seen;
mod session;
mod spaces;
mod spread;
mod undamaged;
mod votes;

pub use evidence::{CONTRIBUTIONS_MAX, confidence};
pub use spread::LIMIT as SPREAD_LIMIT;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use engram_core::types::GroupId;

use crate::history::{Record, Stamp};
use crate::observe::{LogObservation, NodeObservation};
use crate::plan::Host;

/// Violations of one invariant after which the others of it are only counted.
const VIOLATIONS_SHOWN_MAX: usize = 5;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub at: Duration,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64();
        write!(f, "{} at {at:.3} s: {}", self.invariant, self.what)
    }
}

/// The logs of the nodes, read from their stores.
pub trait Logs {
    /// The entries of a group's log on a node that are there, in order.
    fn log(&self, host: Host, group: GroupId, range: Range<u64>) -> Vec<LogObservation>;
}

/// All nodes that are up, at one moment at which no task runs.
pub struct Moment<'a> {
    pub at: Duration,
    pub nodes: &'a [NodeObservation],
    pub logs: &'a dyn Logs,
}

/// Collects the violations of one invariant.
pub struct Findings<'a> {
    invariant: &'static str,
    at: Duration,
    found: &'a mut Vec<Violation>,
}

impl<'a> Findings<'a> {
    pub fn new(invariant: &'static str, at: Duration, found: &'a mut Vec<Violation>) -> Self {
        Self {
            invariant,
            at,
            found,
        }
    }

    pub fn report(&mut self, what: impl Into<String>) {
        self.report_at(self.at, what);
    }

    pub fn report_at(&mut self, at: Duration, what: impl Into<String>) {
        let same = |violation: &&Violation| violation.invariant == self.invariant;
        if self.found.iter().filter(same).count() < VIOLATIONS_SHOWN_MAX {
            self.found.push(Violation {
                invariant: self.invariant,
                at,
                what: what.into(),
            });
        }
    }
}

/// Looks at the nodes while a run goes on.
pub trait Watcher {
    fn name(&self) -> &'static str;
    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>);
}

/// The watchers that look at little, with nothing seen yet.
#[must_use]
pub fn quick_watchers() -> Vec<Box<dyn Watcher>> {
    vec![
        Box::new(one_primary::OnePrimary::default()),
        Box::new(votes::Votes),
        Box::new(digests::Digests::default()),
        Box::new(monotone::Monotone::default()),
        Box::new(placement::Placement::default()),
        Box::new(records::Records),
        Box::new(seen::Seen::default()),
        Box::new(undamaged::Undamaged),
    ]
}

/// The watchers that read logs, with nothing seen yet.
#[must_use]
pub fn log_watchers() -> Vec<Box<dyn Watcher>> {
    vec![
        Box::new(log_matching::LogMatching::default()),
        Box::new(committed::Committed::default()),
    ]
}

/// What is known of a run when it is over.
pub struct Ended<'a> {
    pub records: &'a [Record],
    /// From here on the cluster was healed and nobody wrote but the auditor.
    pub audit: Stamp,
    /// A fault destroyed data that was synced on one replica: what only that replica had
    /// acknowledged (local changes of edges) may be gone.
    pub local_may_be_lost: bool,
}

type Judge = fn(&Ended<'_>, &mut Findings<'_>);

const JUDGES: [(&str, Judge); 8] = [
    ("acknowledged writes are kept", acknowledged::judge),
    ("nothing is applied twice", exactly_once::judge),
    ("linearizable reads", linearizable::judge),
    ("session reads are monotone", session::judge),
    ("edges converge", edges::judge),
    ("recall agrees with brute force", recall::judge),
    ("spreads agree with the oracle", spread::judge),
    ("spaces come and go", spaces::judge),
];

/// Judges the history of a run that is over.
#[must_use]
pub fn judge(ended: &Ended<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, judge) in JUDGES {
        judge(ended, &mut Findings::new(name, Duration::ZERO, &mut found));
    }
    found
}

/// What a test of an invariant needs.
#[cfg(test)]
mod trial {
    use std::collections::BTreeMap;

    use engram_core::types::{EdgeContext, NodeId, PartitionId, Sequence, SpaceId};

    use super::*;
    use crate::observe::{GroupObservation, PartitionObservation};

    pub const GROUP: GroupId = GroupId(4);

    /// Logs by host; all of one group.
    #[derive(Default)]
    pub struct Given(pub BTreeMap<usize, Vec<LogObservation>>);

    impl Logs for Given {
        fn log(&self, host: Host, _group: GroupId, range: Range<u64>) -> Vec<LogObservation> {
            let entries = self.0.get(&host.0).into_iter().flatten();
            entries
                .filter(|entry| range.contains(&entry.index))
                .cloned()
                .collect()
        }
    }

    pub fn entry(index: u64, term: u64, content: u32) -> LogObservation {
        LogObservation {
            index,
            term,
            content,
            previous_term: None,
        }
    }

    pub fn group(term: u64, leads: bool) -> GroupObservation {
        GroupObservation {
            group: GROUP,
            repairs: 0,
            deletions: 0,
            term,
            stored_term: Some(term),
            leads,
            last_log_index: 0,
            committed_index: 0,
            applied_index: 0,
            voters: Vec::new(),
            learners: Vec::new(),
            stopped: None,
        }
    }

    pub fn partition(sequence: u64, digests: &str) -> PartitionObservation {
        PartitionObservation {
            space: SpaceId(1),
            partition: PartitionId(1),
            group: GROUP,
            sequence: Sequence(sequence),
            digests: digests.into(),
            topology: None,
            overlay: String::new(),
            seen: EdgeContext::default(),
            stored: None,
            jobs: 0,
            purging: false,
        }
    }

    pub fn node(host: usize, groups: Vec<GroupObservation>) -> NodeObservation {
        NodeObservation {
            host: Host(host),
            node: NodeId(host as u64 + 1),
            incarnation: 1,
            disk_was_damaged: false,
            damaged: Vec::new(),
            map: None,
            groups,
            partitions: Vec::new(),
        }
    }

    pub fn watch(watcher: &mut dyn Watcher, nodes: &[NodeObservation]) -> Vec<Violation> {
        watch_logs(watcher, nodes, &Given::default())
    }

    pub fn watch_logs(
        watcher: &mut dyn Watcher,
        nodes: &[NodeObservation],
        logs: &dyn Logs,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        let at = Duration::from_secs(1);
        let name = watcher.name();
        let moment = Moment { at, nodes, logs };
        watcher.watch(&moment, &mut Findings::new(name, at, &mut found));
        found
    }

    /// What one judge finds; the audit begins at stamp 1,000.
    pub fn judged(judge: Judge, records: &[Record]) -> Vec<Violation> {
        let mut found = Vec::new();
        let ended = Ended {
            records,
            audit: Stamp(1_000),
            local_may_be_lost: false,
        };
        judge(
            &ended,
            &mut Findings::new("trial", Duration::ZERO, &mut found),
        );
        found
    }
}
