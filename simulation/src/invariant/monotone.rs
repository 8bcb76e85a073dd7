//! What a running process knows never goes back: the term, the committed and the applied index of
//! each group, the sequence of each partition, the cluster map (Raft section 5.1; design.md section 3: state is
//! applied once, in order).
//!
//! Across a restart the applied state may go back, since it is written without a sync and replayed; a
//! replica whose records were damaged begins anew, with the vote that it has given. A term may not: it
//! is shown when the vote for it is on disk.
//! Broken by: a vote that is given before it is on disk; a snapshot installed over a newer state; an election that forgets the term; an
//! applied index saved apart from the state.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId, PartitionId};

use super::{Findings, Moment, Watcher};
use crate::observe::NodeObservation;

/// What is counted: the node; where a restart may take things back, its incarnation; how often the
/// replica began anew in it.
type Key = (NodeId, (u64, u64), Thing);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Term(GroupId),
    Committed(GroupId),
    Applied(GroupId),
    Sequence(PartitionId),
    Map,
}

/// Remembers the last number of each.
#[derive(Default)]
pub struct Monotone {
    last: BTreeMap<Key, u64>,
}

impl Watcher for Monotone {
    fn name(&self) -> &'static str {
        "progress is monotone"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            self.last
                .retain(|(of, _, thing), _| *of != node.node || !has_left(node, *thing));
            let anew = |group: GroupId| {
                let here = node.groups.iter().find(|here| here.group == group);
                here.map_or((0, 0), |here| (here.deletions, here.repairs))
            };
            let groups = node.groups.iter().flat_map(|group| {
                let things = [
                    (Thing::Term(group.group), group.term),
                    (Thing::Committed(group.group), group.committed_index),
                    (Thing::Applied(group.group), group.applied_index),
                ];
                things.map(|(thing, now)| (group.group, thing, now))
            });
            let partitions = node.partitions.iter().map(|replica| {
                let thing = Thing::Sequence(replica.partition);
                (replica.group, thing, replica.sequence.0)
            });
            let map = node.map.iter();
            let map = map.map(|map| (GroupId::CONTROL, Thing::Map, map.index));
            for (group, thing, now) in groups.chain(partitions).chain(map) {
                let (deletions, repairs) = anew(group);
                let began = match thing {
                    // Who left has no vote any more; a repair keeps it.
                    Thing::Term(_) => (0, deletions.saturating_sub(repairs)),
                    // What was known of the cluster outlives a replica that begins anew.
                    Thing::Map => (node.incarnation, 0),
                    _ => (node.incarnation, deletions),
                };
                let key = (node.node, began, thing);
                let before = self.last.insert(key, now).unwrap_or(0);
                if now < before {
                    findings.report(format!(
                        "node {}: {thing:?} went back from {before} to {now}",
                        node.node
                    ));
                }
            }
        }
    }
}

/// Whether a replica is neither here any more nor belongs here: if it comes back, it begins anew.
fn has_left(node: &NodeObservation, thing: Thing) -> bool {
    let group = match thing {
        Thing::Map => return false,
        Thing::Term(group) | Thing::Committed(group) | Thing::Applied(group) => {
            if node.groups.iter().any(|here| here.group == group) {
                return false;
            }
            group
        }
        Thing::Sequence(partition) => {
            if node
                .partitions
                .iter()
                .any(|here| here.partition == partition)
            {
                return false;
            }
            let placed = node
                .map
                .as_ref()
                .and_then(|map| map.partitions.get(&partition));
            let Some((group, _, _)) = placed else {
                return node.map.is_some();
            };
            *group
        }
    };
    let Some(map) = &node.map else {
        return false;
    };
    let placed = map.groups.get(&group);
    group != GroupId::CONTROL && !placed.is_some_and(|nodes| nodes.contains(&node.node))
}

#[cfg(test)]
mod tests {
    use super::super::trial::{GROUP, group, node, partition, watch};
    use super::*;
    use crate::observe::{GroupObservation, MapObservation};

    #[test]
    fn going_back_is_found_but_not_across_a_restart() {
        let mut watcher = Monotone::default();
        let at = |incarnation, sequence| NodeObservation {
            incarnation,
            partitions: vec![partition(sequence, "")],
            ..node(0, Vec::new())
        };
        assert_eq!(watch(&mut watcher, &[at(1, 7)]), []);
        assert_eq!(watch(&mut watcher, &[at(2, 5)]), []);
        assert_eq!(watch(&mut watcher, &[at(2, 6)]), []);
        assert_eq!(watch(&mut watcher, &[at(2, 5)]).len(), 1);
    }

    #[test]
    fn a_replica_begins_anew_but_for_its_term() {
        let mut watcher = Monotone::default();
        let at = |repairs, committed_index, term| {
            let group = GroupObservation {
                deletions: repairs,
                repairs,
                committed_index,
                ..group(term, false)
            };
            node(0, vec![group])
        };
        assert_eq!(watch(&mut watcher, &[at(0, 81, 3)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 0, 3)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 5, 3)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 4, 3)]).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(2, 4, 2)]).len(), 1);
        let left = GroupObservation {
            deletions: 3,
            repairs: 2,
            ..group(1, false)
        };
        assert_eq!(watch(&mut watcher, &[node(0, vec![left])]), []);
    }

    #[test]
    fn a_term_never_goes_back() {
        let mut watcher = Monotone::default();
        let at = |incarnation, term| NodeObservation {
            incarnation,
            ..node(0, vec![group(term, false)])
        };
        assert_eq!(watch(&mut watcher, &[at(1, 4)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 3)]).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(2, 4)]), []);
        assert_eq!(watch(&mut watcher, &[at(3, 3)]).len(), 1);
    }

    #[test]
    fn a_map_does_not_go_back_when_its_replica_begins_anew() {
        let mut watcher = Monotone::default();
        let at = |incarnation, deletions, index| NodeObservation {
            incarnation,
            map: Some(MapObservation {
                index,
                ..MapObservation::default()
            }),
            ..node(
                0,
                vec![GroupObservation {
                    group: GroupId::CONTROL,
                    deletions,
                    ..group(1, false)
                }],
            )
        };
        assert_eq!(watch(&mut watcher, &[at(1, 0, 7)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 1, 6)]).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(2, 1, 5)]), []);
    }

    #[test]
    fn a_replica_that_has_left_begins_anew() {
        let mut watcher = Monotone::default();
        let at = |groups, placed: Vec<NodeId>| NodeObservation {
            map: Some(MapObservation {
                index: 1,
                nodes: vec![NodeId(1)],
                groups: BTreeMap::from([(GROUP, placed)]),
                dropping: Vec::new(),
                partitions: BTreeMap::new(),
            }),
            ..node(0, groups)
        };
        let placed = || vec![NodeId(1)];
        assert_eq!(
            watch(&mut watcher, &[at(vec![group(4, false)], placed())]),
            []
        );
        // Not started yet is not gone.
        assert_eq!(watch(&mut watcher, &[at(Vec::new(), placed())]), []);
        let back = [at(vec![group(3, false)], placed())];
        assert_eq!(watch(&mut watcher, &back).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(Vec::new(), Vec::new())]), []);
        assert_eq!(
            watch(&mut watcher, &[at(vec![group(0, false)], placed())]),
            []
        );
    }
}
