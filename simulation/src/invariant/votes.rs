//! A vote is on disk before anybody hears of it (Raft section 5: persistent state is updated on
//! stable storage before responding to RPCs).
//!
//! What a replica shows of its term is what it counts as written, so its disk must hold a vote of
//! that term or a later one. Broken by: a vote that is given while its write is still queued. A crash
//! then makes the node forget it, and vote again in the same term; that takes bad luck to be seen
//! in an election, and none to be seen here.

use super::{Findings, Moment, Watcher};

/// Compares each moment by itself.
pub struct Votes;

impl Watcher for Votes {
    fn name(&self) -> &'static str {
        "votes are on disk"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            for group in node.groups.iter().filter(|group| group.stopped.is_none()) {
                if let Some(stored) = group.stored_term
                    && stored < group.term
                {
                    findings.report(format!(
                        "node {}, group {}: it shows term {}, its disk has a vote of term {stored}",
                        node.node, group.group, group.term
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{group, node, watch};
    use super::*;
    use crate::observe::GroupObservation;

    fn found(term: u64, stored_term: Option<u64>) -> usize {
        let group = GroupObservation {
            stored_term,
            ..group(term, false)
        };
        watch(&mut Votes, &[node(0, vec![group])]).len()
    }

    #[test]
    fn a_term_that_is_not_stored_is_found() {
        assert_eq!(found(3, Some(3)), 0);
        assert_eq!(found(3, Some(4)), 0);
        assert_eq!(found(3, None), 0, "it cannot be read");
        assert_eq!(found(3, Some(2)), 1);
    }
}
