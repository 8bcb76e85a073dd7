//! Liveness (design.md section 9): when the faults have stopped, everything is available, at its
//! number of replicas and equal, within the plan's bound.
//!
//! Here is what "well" means; `run` waits for it and gives up at the bound. Then a client reads and
//! writes everywhere. Broken by: an election that never settles; a replica that stopped and is not
//! started again; a group that waits for a snapshot nobody sends; an overlay that is not adopted.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::{GroupId, NodeId};

use crate::observe::{GroupObservation, NodeObservation, PartitionObservation};

/// What is not well yet; nothing when all is.
#[must_use]
pub fn complaints(nodes: &[NodeObservation], hosts: usize) -> Vec<String> {
    let mut complaints = Vec::new();
    if nodes.len() < hosts {
        complaints.push(format!("{} of {hosts} nodes are up", nodes.len()));
    }
    let maps: Vec<_> = nodes.iter().filter_map(|node| node.map.as_ref()).collect();
    let Some(map) = maps.first() else {
        complaints.push("no node knows the map".into());
        return complaints;
    };
    if maps.len() < nodes.len() || maps.iter().any(|other| other != map) {
        complaints.push("the nodes know different maps".into());
        return complaints;
    }
    let dropping = map.dropping.iter();
    complaints.extend(dropping.map(|it| format!("partition {it} is still being dropped")));
    for (group, replicas) in &map.groups {
        check_group(*group, replicas, nodes, &mut complaints);
    }
    check_group(GroupId::CONTROL, &map.nodes, nodes, &mut complaints);
    for node in nodes {
        let strangers = node.groups.iter().filter(|group| {
            let placed = map.groups.get(&group.group);
            group.group != GroupId::CONTROL
                && !placed.is_some_and(|replicas| replicas.contains(&node.node))
        });
        complaints.extend(strangers.map(|group| {
            format!(
                "node {} has a replica of group {} that the map does not place there",
                node.node, group.group
            )
        }));
    }
    for (partition, (group, _, _)) in &map.partitions {
        let placed = map.groups.get(group).map_or(&[][..], Vec::as_slice);
        let replicas: Vec<(NodeId, &PartitionObservation)> = nodes
            .iter()
            .filter(|node| placed.contains(&node.node))
            .flat_map(|node| node.partitions.iter().map(move |one| (node.node, one)))
            .filter(|(_, one)| one.partition == *partition)
            .collect();
        if replicas.len() < placed.len() {
            complaints.push(format!(
                "partition {partition} is open on {} of {} nodes",
                replicas.len(),
                placed.len()
            ));
        }
        check_equal(&replicas, &mut complaints);
    }
    complaints
}

fn check_group(
    group: GroupId,
    replicas: &[NodeId],
    nodes: &[NodeObservation],
    complaints: &mut Vec<String>,
) {
    let here: BTreeMap<NodeId, &GroupObservation> = nodes
        .iter()
        .filter(|node| replicas.contains(&node.node))
        .filter_map(|node| {
            let replica = node.groups.iter().find(|one| one.group == group)?;
            Some((node.node, replica))
        })
        .collect();
    for node in replicas {
        match here.get(node) {
            None => complaints.push(format!("group {group} has no replica on node {node}")),
            Some(replica) => {
                if let Some(reason) = &replica.stopped {
                    complaints.push(format!("group {group} stopped on node {node}: {reason}"));
                }
            }
        }
    }
    let leaders = here.values().filter(|replica| replica.leads).count();
    if leaders != 1 {
        complaints.push(format!("group {group} has {leaders} primaries"));
    }
    let terms: BTreeSet<u64> = here.values().map(|replica| replica.term).collect();
    if terms.len() > 1 {
        complaints.push(format!("group {group} is in terms {terms:?}"));
    }
    let applied: BTreeSet<u64> = here.values().map(|replica| replica.applied_index).collect();
    let last: BTreeSet<u64> = here
        .values()
        .map(|replica| replica.last_log_index)
        .collect();
    if applied.len() > 1 || applied != last {
        complaints.push(format!(
            "group {group} has applied {applied:?} of logs up to {last:?}"
        ));
    }
    // The control group's voters are some of the nodes, and so is everybody's view of them.
    let voters: BTreeSet<&Vec<NodeId>> = here.values().map(|replica| &replica.voters).collect();
    let wanted: BTreeSet<&NodeId> = replicas.iter().collect();
    let is_full = |voters: &&Vec<NodeId>| voters.iter().collect::<BTreeSet<_>>() == wanted;
    if voters.len() > 1 || (group != GroupId::CONTROL && !voters.iter().all(is_full)) {
        complaints.push(format!(
            "group {group} has voters {voters:?}, and should have {replicas:?}"
        ));
    }
}

fn check_equal(replicas: &[(NodeId, &PartitionObservation)], complaints: &mut Vec<String>) {
    let Some((first_node, first)) = replicas.first() else {
        return;
    };
    for (node, replica) in replicas {
        let partition = replica.partition;
        if replica.jobs > 0 {
            complaints.push(format!(
                "partition {partition} on node {node} has {} jobs to do",
                replica.jobs
            ));
        }
        if replica.purging {
            complaints.push(format!(
                "partition {partition} on node {node} has not ended its purge"
            ));
        }
        let same_state = (replica.sequence, &replica.digests) == (first.sequence, &first.digests);
        let same_overlay = replica.overlay == first.overlay;
        let same_graph = replica.topology == first.topology;
        let differences = [
            (same_state, "state"),
            (same_overlay, "overlay"),
            (same_graph, "graph"),
        ];
        for (_, what) in differences.iter().filter(|(same, _)| !same) {
            complaints.push(format!(
                "partition {partition}: node {node} at {} and node {first_node} at {} differ in their {what}",
                replica.sequence, first.sequence
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{PartitionId, SpaceId};

    use super::super::trial::{GROUP, group, node, partition};
    use super::*;
    use crate::observe::MapObservation;

    fn map() -> MapObservation {
        let nodes = vec![NodeId(1), NodeId(2)];
        MapObservation {
            index: 3,
            groups: BTreeMap::from([(GROUP, nodes.clone())]),
            dropping: Vec::new(),
            partitions: BTreeMap::from([(PartitionId(1), (GROUP, SpaceId(1), 2))]),
            nodes,
        }
    }

    fn replica(id: GroupId, leads: bool) -> GroupObservation {
        GroupObservation {
            group: id,
            last_log_index: 9,
            committed_index: 9,
            applied_index: 9,
            voters: vec![NodeId(1), NodeId(2)],
            ..group(5, leads)
        }
    }

    fn well(host: usize) -> NodeObservation {
        let leads = host == 0;
        NodeObservation {
            map: Some(map()),
            partitions: vec![partition(7, "digest")],
            ..node(
                host,
                vec![replica(GroupId::CONTROL, leads), replica(GROUP, leads)],
            )
        }
    }

    /// The complaints when the second node is changed.
    fn after(change: impl FnOnce(&mut NodeObservation)) -> Vec<String> {
        let mut nodes = [well(0), well(1)];
        change(&mut nodes[1]);
        complaints(&nodes, 2)
    }

    #[test]
    fn a_healthy_cluster_has_no_complaints() {
        assert_eq!(after(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_illness_is_named() {
        type Illness = (fn(&mut NodeObservation), &'static str);
        let ill: [Illness; 10] = [
            (|node| node.map = None, "different maps"),
            (|node| node.groups[1].leads = true, "2 primaries"),
            (|node| node.groups[0].leads = true, "2 primaries"),
            (|node| node.groups[1].applied_index = 8, "applied"),
            (
                |node| node.groups[1].stopped = Some("disk".into()),
                "stopped",
            ),
            (|node| node.groups[1].voters.clear(), "voters"),
            (|node| drop(node.groups.pop()), "no replica"),
            (|node| node.partitions.clear(), "open on 1 of 2"),
            (|node| node.partitions[0].digests = "other".into(), "state"),
            (|node| node.partitions[0].jobs = 1, "jobs"),
        ];
        for (change, expected) in ill {
            let found = after(change);
            assert!(
                found.iter().any(|one| one.contains(expected)),
                "{expected}: {found:?}"
            );
        }
        let overlay = after(|node| node.partitions[0].overlay = "x".into());
        assert!(overlay[0].contains("overlay"));
        let stray = after(|node| node.groups.push(replica(GroupId(99), false)));
        assert!(stray[0].contains("does not place"));
        assert!(complaints(&[well(0)], 2)[0].contains("1 of 2 nodes"));
        let mut dropping = [well(0), well(1)];
        for node in &mut dropping {
            let map = node.map.as_mut().expect("a map");
            map.dropping.push(PartitionId(8));
        }
        assert!(complaints(&dropping, 2)[0].contains("being dropped"));
    }
}
