//! State machine safety and leader completeness (Raft sections 5.4.3 and 5.4): an entry that was
//! once committed is the entry at its index for ever, on every node that has committed so far, and
//! in the log of every later primary. Acknowledged writes rest on this.
//!
//! Broken by: acknowledging before a majority has synced; counting a follower's unsynced append; a
//! replica whose log lost its end but votes as if it had not; committing an entry of an earlier
//! term by counting replicas.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId};

use super::{Findings, Moment, Watcher};
use crate::observe::{GroupObservation, LogObservation, NodeObservation};
use crate::plan::Host;

/// An entry when it was first seen committed.
#[derive(Clone, Copy)]
struct Fixed {
    term: u64,
    content: u32,
    on: NodeId,
    /// Term of the node that had it committed: at least the term in which that happened.
    known_in: u64,
}

/// Remembers every committed entry.
#[derive(Default)]
pub struct Committed {
    fixed: BTreeMap<(GroupId, u64), Fixed>,
    /// Up to where each node's committed entries were read.
    read: BTreeMap<(Host, GroupId), u64>,
    /// Primaries whose logs were compared already, by (group, term).
    compared: BTreeMap<(GroupId, u64), NodeId>,
}

impl Committed {
    fn check(
        &mut self,
        node: &NodeObservation,
        group: &GroupObservation,
        entry: &LogObservation,
        findings: &mut Findings<'_>,
    ) {
        let here = Fixed {
            term: entry.term,
            content: entry.content,
            on: node.node,
            known_in: group.term,
        };
        let fixed = self.fixed.entry((group.group, entry.index)).or_insert(here);
        if (fixed.term, fixed.content) != (here.term, here.content) {
            findings.report(format!(
                "group {}, index {}: committed with term {} on node {}, with term {} on node {}",
                group.group, entry.index, fixed.term, fixed.on, here.term, node.node
            ));
        }
    }

    /// A primary has all that was committed before its term.
    fn check_primary(
        &mut self,
        moment: &Moment<'_>,
        node: &NodeObservation,
        group: &GroupObservation,
        findings: &mut Findings<'_>,
    ) {
        if self.compared.insert((group.group, group.term), node.node) == Some(node.node) {
            return;
        }
        let earlier = (group.group, 0)..=(group.group, u64::MAX);
        let owed: Vec<(u64, Fixed)> = self
            .fixed
            .range(earlier)
            .filter(|(_, fixed)| fixed.known_in < group.term)
            .map(|((_, index), fixed)| (*index, *fixed))
            .collect();
        let Some((last, _)) = owed.last() else {
            return;
        };
        if group.last_log_index < *last {
            findings.report(format!(
                "group {}: node {} is primary of term {} with a log up to {}, but {last} was committed in term {} or before",
                group.group, node.node, group.term, group.last_log_index, group.term - 1
            ));
            return;
        }
        let entries = moment.logs.log(node.host, group.group, 0..*last + 1);
        let held: BTreeMap<u64, &LogObservation> =
            entries.iter().map(|entry| (entry.index, entry)).collect();
        for (index, fixed) in owed {
            // What is missing at the front is in a snapshot.
            let Some(entry) = held.get(&index) else {
                continue;
            };
            if (entry.term, entry.content) != (fixed.term, fixed.content) {
                findings.report(format!(
                    "group {}: node {} is primary of term {} with another entry at {index} than was committed in term {} or before",
                    group.group, node.node, group.term, fixed.known_in
                ));
                return;
            }
        }
    }
}

impl Watcher for Committed {
    fn name(&self) -> &'static str {
        "committed entries stay"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            // 0 also says that nothing is committed yet.
            for group in node.groups.iter().filter(|group| group.committed_index > 0) {
                let read = self.read.entry((node.host, group.group)).or_insert(0);
                // What a node that was set back commits again is compared again.
                let from = (*read).min(group.committed_index);
                *read = group.committed_index;
                for entry in
                    moment
                        .logs
                        .log(node.host, group.group, from..group.committed_index + 1)
                {
                    self.check(node, group, &entry, findings);
                }
            }
        }
        for node in moment.nodes {
            for group in node.groups.iter().filter(|group| group.leads) {
                self.check_primary(moment, node, group, findings);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{Given, entry, group, node, watch_logs};
    use super::*;

    fn committed(term: u64, leads: bool, index: u64) -> GroupObservation {
        GroupObservation {
            last_log_index: index,
            committed_index: if leads { 0 } else { index },
            ..group(term, leads)
        }
    }

    #[test]
    fn a_committed_entry_is_never_another() {
        let mut watcher = Committed::default();
        let logs = Given(BTreeMap::from([
            (0, vec![entry(1, 1, 10), entry(2, 1, 20)]),
            (1, vec![entry(1, 1, 10), entry(2, 2, 21)]),
        ]));
        let one = node(0, vec![committed(1, false, 2)]);
        let other = |index| node(1, vec![committed(2, false, index)]);
        assert_eq!(
            watch_logs(&mut watcher, &[one.clone(), other(1)], &logs),
            []
        );
        assert_eq!(watch_logs(&mut watcher, &[one, other(2)], &logs).len(), 1);
    }

    #[test]
    fn a_later_primary_has_what_was_committed() {
        let logs = |second| {
            Given(BTreeMap::from([
                (0, vec![entry(1, 1, 10), entry(2, 1, 20)]),
                (1, second),
            ]))
        };
        let nodes = |index| {
            [
                node(0, vec![committed(1, false, 2)]),
                node(1, vec![committed(2, true, index)]),
            ]
        };
        let found = |second: Vec<LogObservation>| {
            let index = second.last().map_or(0, |entry| entry.index);
            watch_logs(&mut Committed::default(), &nodes(index), &logs(second)).len()
        };
        assert_eq!(found(vec![entry(1, 1, 10), entry(2, 1, 20)]), 0);
        assert_eq!(
            found(vec![entry(2, 1, 20)]),
            0,
            "the front is in a snapshot"
        );
        assert_eq!(found(vec![entry(1, 1, 10)]), 1, "too short");
        assert_eq!(
            found(vec![entry(1, 1, 10), entry(2, 2, 21)]),
            1,
            "another entry"
        );
    }
}
