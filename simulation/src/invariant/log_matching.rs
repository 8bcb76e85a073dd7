//! Log matching (Raft section 5.3): two logs that hold an entry of the same index and term hold the
//! same entry, and the same entries before it.
//!
//! Checked by induction: of each (group, index, term) ever seen, the content and the term of the
//! entry before are remembered, and must always be the same. Broken by: an entry changed on disk or
//! on the way and not noticed; appending behind a gap; a truncation that keeps the wrong tail; a
//! leader that reuses an index within its term after it lost unsynced entries.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId};

use super::{Findings, Moment, Watcher};
use crate::plan::Host;

/// Entries behind the last one known that are read again, since they may have been replaced.
const REREAD_ENTRIES: u64 = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    content: u32,
    previous_term: Option<u64>,
    on: NodeId,
}

/// Remembers every entry that was ever seen.
#[derive(Default)]
pub struct LogMatching {
    seen: BTreeMap<(GroupId, u64, u64), Seen>,
    /// Up to where each node's log was read.
    read: BTreeMap<(Host, GroupId), u64>,
}

impl Watcher for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            for group in &node.groups {
                let read = self.read.entry((node.host, group.group)).or_insert(0);
                let from = (*read)
                    .min(group.last_log_index)
                    .saturating_sub(REREAD_ENTRIES);
                *read = group.last_log_index;
                let range = from..group.last_log_index + 1;
                let entries = moment.logs.log(node.host, group.group, range);
                for entry in entries {
                    let here = Seen {
                        content: entry.content,
                        previous_term: entry.previous_term,
                        on: node.node,
                    };
                    let key = (group.group, entry.index, entry.term);
                    let first = self.seen.entry(key).or_insert(here);
                    let differs = first.content != here.content
                        || matches!((first.previous_term, here.previous_term), (Some(one), Some(other)) if one != other);
                    if differs {
                        findings.report(format!(
                            "group {}, index {}, term {}: nodes {} and {} hold different entries, or \
                             different ones before",
                            group.group, entry.index, entry.term, first.on, node.node
                        ));
                    }
                    first.previous_term = first.previous_term.or(here.previous_term);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::trial::{Given, entry, group, node, watch_logs};
    use super::*;
    use crate::observe::{GroupObservation, LogObservation};

    fn with_log(last_log_index: u64) -> GroupObservation {
        GroupObservation {
            last_log_index,
            ..group(2, false)
        }
    }

    fn compare(one: Vec<LogObservation>, other: Vec<LogObservation>) -> usize {
        let nodes = [node(0, vec![with_log(2)]), node(1, vec![with_log(2)])];
        let logs = Given(BTreeMap::from([(0, one), (1, other)]));
        watch_logs(&mut LogMatching::default(), &nodes, &logs).len()
    }

    #[test]
    fn entries_of_one_index_and_term_are_the_same() {
        let log = || vec![entry(1, 1, 10), entry(2, 2, 20)];
        assert_eq!(compare(log(), log()), 0);
        assert_eq!(
            compare(log(), vec![entry(1, 1, 10), entry(2, 1, 99)]),
            0,
            "another term"
        );
        assert_eq!(compare(log(), vec![entry(1, 1, 10), entry(2, 2, 21)]), 1);
    }

    #[test]
    fn so_are_the_entries_before() {
        let after = |previous_term| LogObservation {
            previous_term,
            ..entry(2, 2, 20)
        };
        assert_eq!(compare(vec![after(Some(1))], vec![after(None)]), 0);
        assert_eq!(compare(vec![after(Some(1))], vec![after(Some(2))]), 1);
    }
}
