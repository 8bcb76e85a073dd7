//! At most one primary per group and term (election safety, Raft section 5.2; design.md section 9:
//! "a paused, then resumed primary overwrites nothing").
//!
//! Broken by: a vote that is given before it is on disk and forgotten by a crash; a vote given
//! twice in a term; a quorum counted with the wrong members.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId};

use super::{Findings, Moment, Watcher};

/// Remembers all primaries that were ever seen.
#[derive(Default)]
pub struct OnePrimary {
    seen: BTreeMap<(GroupId, u64), NodeId>,
}

impl Watcher for OnePrimary {
    fn name(&self) -> &'static str {
        "one primary per term"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            for group in node.groups.iter().filter(|group| group.leads) {
                let first = *self
                    .seen
                    .entry((group.group, group.term))
                    .or_insert(node.node);
                if first != node.node {
                    findings.report(format!(
                        "group {}, term {}: nodes {first} and {} were both primary",
                        group.group, group.term, node.node
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

    #[test]
    fn two_primaries_of_one_term_are_found_even_one_after_the_other() {
        let mut watcher = OnePrimary::default();
        let first = [
            node(0, vec![group(3, true)]),
            node(1, vec![group(3, false)]),
        ];
        assert_eq!(watch(&mut watcher, &first), []);
        assert_eq!(watch(&mut watcher, &[node(1, vec![group(4, true)])]), []);
        assert_eq!(
            watch(&mut watcher, &[node(1, vec![group(3, true)])]).len(),
            1
        );
    }
}
