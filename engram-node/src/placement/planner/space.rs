//! Where the replicas of a new space go.
//!
//! Called by whoever proposes a space. What must hold: no node holds two replicas of a partition;
//! the same input gives the same plan; as far as zones allow, replicas differ by at most one
//! between nodes.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::NodeId;

use crate::control::ClusterMap;
use crate::membership::{Liveness, LivenessView};

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{replicas} replicas need {replicas} nodes, {usable} of {known} are usable")]
    TooFewNodes {
        replicas: u32,
        usable: usize,
        known: usize,
    },
}

/// A node that may take replicas.
struct Candidate<'a> {
    node: NodeId,
    zone: &'a str,
    suspect: bool,
    /// Replicas and primaries there, of all spaces.
    replicas: usize,
    primaries: usize,
    /// Those of the space that is planned.
    planned: usize,
    led: usize,
}

/// The nodes of each partition of a new space, the preferred primary first.
///
/// # Errors
/// When there are fewer usable nodes than replicas.
pub fn plan_space(
    map: &ClusterMap,
    liveness: &LivenessView,
    partitions: u32,
    replicas: u32,
) -> Result<Vec<Vec<NodeId>>, PlanError> {
    let mut candidates = candidates(map, liveness);
    let wanted = replicas as usize;
    if candidates.len() < wanted {
        let usable = candidates.len();
        return Err(PlanError::TooFewNodes {
            replicas,
            usable,
            known: map.nodes.len(),
        });
    }
    Ok((0..partitions)
        .map(|_| place(&mut candidates, wanted))
        .collect())
}

fn candidates<'a>(map: &'a ClusterMap, liveness: &LivenessView) -> Vec<Candidate<'a>> {
    let mut replicas: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut primaries = replicas.clone();
    for group in map.groups.values() {
        for node in group.settled() {
            *replicas.entry(*node).or_default() += 1;
        }
        if let Some(node) = group.settled().first() {
            *primaries.entry(*node).or_default() += 1;
        }
    }
    let state = |node| liveness.get(&node).copied().unwrap_or(Liveness::Suspect);
    let usable = map
        .nodes
        .values()
        .filter(|node| node.state.is_active() && state(node.id) != Liveness::Dead);
    let candidate = |node: &'a crate::control::NodeRecord| Candidate {
        node: node.id,
        zone: &node.zone,
        suspect: state(node.id) == Liveness::Suspect,
        replicas: replicas.get(&node.id).copied().unwrap_or(0),
        primaries: primaries.get(&node.id).copied().unwrap_or(0),
        planned: 0,
        led: 0,
    };
    usable.map(candidate).collect()
}

/// Picks the nodes of one partition and counts them.
fn place(candidates: &mut [Candidate<'_>], wanted: usize) -> Vec<NodeId> {
    let mut chosen: Vec<usize> = Vec::with_capacity(wanted);
    let mut zones = BTreeSet::new();
    while chosen.len() < wanted {
        let free = (0..candidates.len()).filter(|at| !chosen.contains(at));
        let next = free.min_by_key(|at| {
            let it = &candidates[*at];
            (
                it.suspect,
                zones.contains(it.zone),
                it.planned,
                it.replicas,
                it.node,
            )
        });
        let Some(next) = next else { break };
        zones.insert(candidates[next].zone);
        chosen.push(next);
    }
    chosen.sort_by_key(|at| {
        let it = &candidates[*at];
        (it.suspect, it.led, it.primaries, it.node)
    });
    for (rank, at) in chosen.iter().enumerate() {
        let it = &mut candidates[*at];
        it.planned += 1;
        it.replicas += 1;
        if rank == 0 {
            it.led += 1;
            it.primaries += 1;
        }
    }
    chosen.into_iter().map(|at| candidates[at].node).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::apply::apply;
    use crate::control::{ControlCommand, NodeDescription, samples};

    /// A map whose nodes are in the given zones.
    fn map_of(zones: &[u8]) -> ClusterMap {
        let mut map = ClusterMap::default();
        apply(&mut map, &samples::init()).outcome.expect("founded");
        for (n, zone) in (1..).zip(zones) {
            let node = NodeDescription {
                zone: format!("zone-{zone}"),
                ..samples::node(n)
            };
            apply(&mut map, &ControlCommand::RegisterNode(node))
                .outcome
                .expect("joined");
        }
        map
    }

    fn all_alive(map: &ClusterMap) -> LivenessView {
        map.nodes
            .keys()
            .map(|node| (*node, Liveness::Alive))
            .collect()
    }

    fn spread(counts: &BTreeMap<NodeId, usize>) -> usize {
        counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0)
    }

    fn counts(
        map: &ClusterMap,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> BTreeMap<NodeId, usize> {
        let mut counts: BTreeMap<NodeId, usize> = map.nodes.keys().map(|it| (*it, 0)).collect();
        nodes
            .into_iter()
            .for_each(|node| *counts.entry(node).or_default() += 1);
        counts
    }

    #[test]
    fn three_nodes_lead_a_third_each() {
        let map = map_of(&[0, 0, 0]);
        let plan = plan_space(&map, &all_alive(&map), 3, 3).expect("a plan");
        let primaries: BTreeSet<NodeId> = plan.iter().map(|nodes| nodes[0]).collect();
        assert_eq!(primaries.len(), 3);
    }

    #[test]
    fn dead_nodes_get_nothing_and_suspects_only_what_they_must() {
        let map = map_of(&[0, 0, 0, 0]);
        let mut view = all_alive(&map);
        view.insert(NodeId(1), Liveness::Dead);
        view.insert(NodeId(2), Liveness::Suspect);
        let plan = plan_space(&map, &view, 4, 2).expect("a plan");
        assert!(plan.iter().flatten().all(|node| node.0 >= 3));
        let plan = plan_space(&map, &view, 4, 3).expect("a plan");
        assert!(
            plan.iter()
                .all(|nodes| nodes[0].0 >= 3 && !nodes.contains(&NodeId(1)))
        );
        let error = PlanError::TooFewNodes {
            replicas: 4,
            usable: 3,
            known: 4,
        };
        assert_eq!(plan_space(&map, &view, 1, 4), Err(error));
    }

    #[test]
    fn a_new_node_is_filled_first() {
        let mut map = map_of(&[0, 0, 0]);
        let space = samples::space("old", &[&[1, 2], &[2, 3], &[3, 1]]);
        apply(&mut map, &ControlCommand::CreateSpace(space))
            .outcome
            .expect("created");
        apply(&mut map, &ControlCommand::RegisterNode(samples::node(4)))
            .outcome
            .expect("joined");
        let plan = plan_space(&map, &all_alive(&map), 1, 1).expect("a plan");
        assert_eq!(plan, [[NodeId(4)]]);
    }

    proptest! {
        #[test]
        fn plans_are_sound(
            zones in prop::collection::vec(0..4u8, 1..10),
            partitions in 1..40u32,
            replicas in 1..6u32,
        ) {
            let map = map_of(&zones);
            let view = all_alive(&map);
            let plan = plan_space(&map, &view, partitions, replicas);
            prop_assert_eq!(&plan, &plan_space(&map, &view, partitions, replicas));
            if zones.len() < replicas as usize {
                prop_assert!(plan.is_err());
                return Ok(());
            }
            let plan = plan.expect("there are enough nodes");
            prop_assert_eq!(plan.len(), partitions as usize);
            let kinds = zones.iter().collect::<BTreeSet<_>>().len();
            for nodes in &plan {
                prop_assert_eq!(nodes.len(), replicas as usize);
                prop_assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), nodes.len());
                let used: BTreeSet<&str> =
                    nodes.iter().map(|node| map.nodes[node].zone.as_str()).collect();
                prop_assert_eq!(used.len(), kinds.min(replicas as usize));
            }
            if kinds == 1 {
                let held = counts(&map, plan.iter().flatten().copied());
                prop_assert!(spread(&held) <= 1, "{:?}", held);
                let led = counts(&map, plan.iter().map(|nodes| nodes[0]));
                prop_assert!(spread(&led) <= 2, "{:?}", led);
            }
        }
    }
}
