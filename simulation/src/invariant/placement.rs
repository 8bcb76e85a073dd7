//! Placement (design.md sections 3 and 7): a partition has as many replicas as its space asks for,
//! no two of them on one node, and all of a group's voters are nodes of the cluster; a process keeps
//! a replica for as long as its map places it there. That replicas
//! are only where the map says, and at full number, is asked of the healed cluster by
//! [`super::liveness`].
//!
//! Broken by: a planner that counts a node twice; a move that removes before it has added, on the
//! map or on a disk; a map that differs between nodes at one index.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::{GroupId, NodeId};

use super::{Findings, Moment, Watcher};
use crate::observe::{MapObservation, NodeObservation};

/// Remembers which replicas were where.
#[derive(Default)]
pub struct Placement {
    /// By node and process.
    here: BTreeMap<(NodeId, u64), BTreeSet<GroupId>>,
}

impl Watcher for Placement {
    fn name(&self) -> &'static str {
        "placement"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        let maps: Vec<(&NodeObservation, &MapObservation)> = moment
            .nodes
            .iter()
            .filter_map(|node| Some((node, node.map.as_ref()?)))
            .collect();
        for (node, map) in &maps {
            self.check_kept(node, map, findings);
            check(node, map, findings);
            let same = maps.iter().find(|(_, other)| other.index == map.index);
            if let Some((other, theirs)) = same
                && theirs != map
            {
                findings.report(format!(
                    "nodes {} and {} have different maps at index {}",
                    other.node, node.node, map.index
                ));
            }
        }
    }
}

impl Placement {
    fn check_kept(
        &mut self,
        node: &NodeObservation,
        map: &MapObservation,
        findings: &mut Findings<'_>,
    ) {
        let here = node.groups.iter().map(|group| group.group);
        // One that met damaged records begins anew here: it is taken away only for that.
        let now: BTreeSet<GroupId> = here.chain(node.damaged.iter().copied()).collect();
        let key = (node.node, node.incarnation);
        let before = self.here.insert(key, now.clone()).unwrap_or_default();
        for group in before.difference(&now) {
            let placed = map.groups.get(group);
            if placed.is_some_and(|nodes| nodes.contains(&node.node)) {
                findings.report(format!(
                    "node {} has given up its replica of group {group}, which its map places there",
                    node.node
                ));
            }
        }
    }
}

fn check(node: &NodeObservation, map: &MapObservation, findings: &mut Findings<'_>) {
    for (group, replicas) in &map.groups {
        let distinct: BTreeSet<_> = replicas.iter().collect();
        if distinct.len() != replicas.len() {
            findings.report(format!(
                "map of node {}: group {group} has two replicas on one node: {replicas:?}",
                node.node
            ));
        }
        if let Some(stranger) = replicas.iter().find(|replica| !map.nodes.contains(replica)) {
            findings.report(format!(
                "map of node {}: group {group} has a replica on {stranger}, which is no node",
                node.node
            ));
        }
    }
    for (partition, (group, space, wanted)) in &map.partitions {
        let held = map.groups.get(group).map_or(0, Vec::len);
        if held < *wanted as usize {
            findings.report(format!(
                "map of node {}: partition {partition} of space {space} has {held} replicas of {wanted}",
                node.node
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engram_core::types::{GroupId, NodeId, PartitionId, SpaceId};

    use super::super::trial::{group, node, watch};
    use super::*;

    fn map(replicas: &[u64]) -> MapObservation {
        MapObservation {
            index: 7,
            nodes: vec![NodeId(1), NodeId(2), NodeId(3)],
            groups: BTreeMap::from([(GroupId(1), replicas.iter().copied().map(NodeId).collect())]),
            dropping: Vec::new(),
            partitions: BTreeMap::from([(PartitionId(1), (GroupId(1), SpaceId(1), 3))]),
        }
    }

    fn knowing(host: usize, map: MapObservation) -> NodeObservation {
        NodeObservation {
            map: Some(map),
            ..node(host, Vec::new())
        }
    }

    fn found(nodes: &[NodeObservation]) -> usize {
        watch(&mut Placement::default(), nodes).len()
    }

    #[test]
    fn replicas_are_enough_apart_and_on_nodes() {
        assert_eq!(found(&[knowing(0, map(&[1, 2, 3]))]), 0);
        assert_eq!(found(&[knowing(0, map(&[1, 2, 2]))]), 1);
        assert_eq!(found(&[knowing(0, map(&[1, 2]))]), 1);
        assert_eq!(found(&[knowing(0, map(&[1, 2, 9]))]), 1);
    }

    #[test]
    fn a_replica_stays_while_it_is_placed() {
        let group = |id| crate::observe::GroupObservation {
            group: GroupId(id),
            ..group(1, false)
        };
        let at = |incarnation, groups, replicas: &[u64]| NodeObservation {
            incarnation,
            groups,
            ..knowing(0, map(replicas))
        };
        let mut watcher = Placement::default();
        let here = || vec![group(1), group(2)];
        assert_eq!(watch(&mut watcher, &[at(1, here(), &[1, 2, 3])]), []);
        // The map knows nothing of group 2 any more.
        assert_eq!(
            watch(&mut watcher, &[at(1, vec![group(1)], &[1, 2, 3])]),
            []
        );
        let gone = [at(1, Vec::new(), &[1, 2, 3])];
        assert_eq!(watch(&mut watcher, &gone).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(2, here(), &[1, 2, 3])]), []);
        assert_eq!(watch(&mut watcher, &[at(3, Vec::new(), &[1, 2, 3])]), []);
    }

    #[test]
    fn one_index_has_one_map() {
        let other = MapObservation {
            nodes: vec![NodeId(1), NodeId(2), NodeId(3), NodeId(4)],
            ..map(&[1, 2, 3])
        };
        let nodes = [knowing(0, map(&[1, 2, 3])), knowing(1, other.clone())];
        assert_eq!(found(&nodes), 1);
        let later = MapObservation { index: 8, ..other };
        assert_eq!(found(&[knowing(0, map(&[1, 2, 3])), knowing(1, later)]), 0);
    }
}
