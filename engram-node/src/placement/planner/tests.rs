//! Plans of any cluster: sound, and found to be complete once they are carried out.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::{GroupId, NodeId};
use proptest::prelude::*;

use super::*;
use crate::control::apply::apply;
use crate::control::{ControlCommand, NodeDescription, NodeState, samples};
use crate::placement::manager::start;

const MIB: u64 = 1 << 20;

/// A cluster as generated.
#[derive(Clone, Debug)]
struct Case {
    /// Zone, state and health of each node.
    nodes: Vec<(u8, NodeState, Health)>,
    /// Wanted replicas, a start in the ring of nodes, and mebibytes, of each space.
    spaces: Vec<(usize, usize, u64)>,
    /// What the spaces ask for later.
    altered: Vec<u32>,
}

fn any_case(healthy: bool) -> impl Strategy<Value = Case> {
    let state = prop_oneof![
        6 => Just(NodeState::Active),
        1 => Just(NodeState::Draining),
        1 => Just(NodeState::Maintenance),
        1 => Just(NodeState::Leaving),
    ];
    let health = prop_oneof![
        6 => Just(Health::Alive),
        1 => Just(Health::Suspect),
        1 => Just(Health::Dead),
        1 => Just(Health::Gone),
    ];
    let node = (0..3u8, state, health).prop_map(move |(zone, state, health)| match healthy {
        true => (zone, NodeState::Active, Health::Alive),
        false => (zone, state, health),
    });
    let spaces = prop::collection::vec((1..4usize, 0..8usize, 0..1_000u64), 1..24);
    let altered = prop::collection::vec(1..5u32, 0..6);
    (prop::collection::vec(node, 1..8), spaces, altered).prop_map(|(nodes, spaces, altered)| Case {
        nodes,
        spaces,
        altered,
    })
}

impl Case {
    fn map(&self) -> ClusterMap {
        let mut map = ClusterMap::default();
        let mut run = |command: ControlCommand| drop(apply(&mut map, &command));
        run(samples::init());
        for (n, (zone, ..)) in (1..).zip(&self.nodes) {
            run(ControlCommand::RegisterNode(NodeDescription {
                zone: format!("zone-{zone}"),
                ..samples::node(n)
            }));
        }
        for (n, (replicas, first, _)) in self.spaces.iter().enumerate() {
            let count = self.nodes.len();
            let ring = (0..(*replicas).min(count)).map(|at| ((first + at) % count) as u64 + 1);
            let nodes: Vec<u64> = ring.collect();
            // Two partitions each: they have groups of their own, in the order of spaces.
            let set = nodes.as_slice();
            run(ControlCommand::CreateSpace(samples::space(
                &format!("space-{n}"),
                &[set, set],
            )));
        }
        for (n, replicas) in self.altered.iter().enumerate() {
            run(ControlCommand::AlterSpace {
                name: format!("space-{n}"),
                replicas: *replicas,
            });
        }
        for (n, (_, state, _)) in (1..).zip(&self.nodes) {
            run(ControlCommand::SetNodeState {
                node: NodeId(n),
                state: *state,
            });
        }
        map.validate();
        map
    }

    fn healths(&self) -> Healths {
        let nodes = (1..).zip(&self.nodes);
        nodes
            .map(|(n, (.., health))| (NodeId(n), *health))
            .collect()
    }

    fn sizes(&self) -> Sizes {
        let sizes = self
            .spaces
            .iter()
            .flat_map(|(.., size)| [*size * MIB, size / 2 * MIB]);
        (1..)
            .zip(sizes)
            .map(|(group, size)| (GroupId(group), size))
            .collect()
    }
}

/// Carries a plan out at once.
fn carry_out(map: &mut ClusterMap, plan: &Plan) {
    for planned in &plan.moves {
        let group = planned.group;
        let command = start(planned.clone(), 0);
        apply(map, &command)
            .outcome
            .unwrap_or_else(|refusal| panic!("{refusal}: {planned:?}"));
        map.validate();
        let id = map.groups[&group].change.as_ref().expect("a move").id;
        let finish = ControlCommand::FinishMove { group, id };
        apply(map, &finish).outcome.expect("ended");
    }
    for (group, node) in &plan.transfers {
        let (group, node) = (*group, *node);
        let command = ControlCommand::PreferPrimary { group, node };
        apply(map, &command).outcome.expect("preferred");
    }
}

fn check_sound(map: &ClusterMap, healths: &Healths, plan: &Plan) {
    let mut planned = BTreeSet::new();
    for it in &plan.moves {
        assert!(planned.insert(it.group), "one move a group");
        assert_eq!(it.from, map.replicas(it.group));
        let goal: BTreeSet<NodeId> = it.goal.iter().copied().collect();
        assert_eq!(
            goal.len(),
            it.goal.len(),
            "two replicas on one node: {it:?}"
        );
        let majority = |nodes: &[NodeId]| is_majority(alive(nodes, healths), nodes.len());
        assert!(majority(&it.from), "Raft could not change it: {it:?}");
        assert!(majority(&it.goal), "it would not have a majority: {it:?}");
        for node in it.added() {
            assert!(map.nodes[&node].state.is_active(), "{it:?}");
            assert_eq!(health_of(healths, node), Health::Alive, "{it:?}");
        }
    }
}

fn replicas_of(map: &ClusterMap) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<NodeId, usize> = map.nodes.keys().map(|it| (*it, 0)).collect();
    for node in map.groups.values().flat_map(|group| &group.replicas) {
        *counts.entry(*node).or_default() += 1;
    }
    counts
}

fn primaries_of(map: &ClusterMap) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<NodeId, usize> = map.nodes.keys().map(|it| (*it, 0)).collect();
    for node in map
        .groups
        .values()
        .filter_map(|group| group.replicas.first())
    {
        *counts.entry(*node).or_default() += 1;
    }
    counts
}

fn difference(counts: &BTreeMap<NodeId, usize>) -> usize {
    counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0)
}

#[test]
fn a_new_node_gets_its_share_and_nothing_else_moves() {
    let case = Case {
        nodes: vec![(0, NodeState::Active, Health::Alive); 4],
        spaces: vec![(3, 0, 100); 4],
        altered: vec![],
    };
    let mut map = case.map();
    // Eight groups of three replicas, all on nodes 1 to 3.
    assert_eq!(replicas_of(&map)[&NodeId(4)], 0);
    let plan = rebalance(&map, &case.healths(), &case.sizes());
    assert_eq!(plan.moves.len(), 6, "as few as make it even: {plan:?}");
    assert!(
        plan.moves.iter().all(|it| it.added() == [NodeId(4)]),
        "{plan:?}"
    );
    carry_out(&mut map, &plan);
    assert_eq!(difference(&replicas_of(&map)), 0);
    assert_eq!(difference(&primaries_of(&map)), 0);
}

#[test]
fn heavy_groups_are_not_all_on_one_node() {
    let case = Case {
        nodes: vec![(0, NodeState::Active, Health::Alive); 2],
        spaces: vec![(1, 0, 1_000), (1, 0, 1_000), (1, 1, 2), (1, 1, 2)],
        altered: vec![],
    };
    let mut map = case.map();
    let (healths, sizes) = (case.healths(), case.sizes());
    assert_eq!(
        difference(&replicas_of(&map)),
        0,
        "the counts are even already"
    );
    let plan = rebalance(&map, &healths, &sizes);
    carry_out(&mut map, &plan);
    let bytes = |node: u64| {
        let here = map
            .groups
            .values()
            .filter(|it| it.replicas == [NodeId(node)]);
        here.map(|group| sizes[&group.id]).sum::<u64>()
    };
    let (one, two) = (bytes(1), bytes(2));
    assert!(one.abs_diff(two) <= 600 * MIB, "{one} and {two} bytes");
    assert_eq!(difference(&replicas_of(&map)), 0);
}

#[test]
fn nothing_moves_for_a_few_bytes() {
    let case = Case {
        nodes: vec![(0, NodeState::Active, Health::Alive); 2],
        spaces: vec![(1, 0, 0), (1, 1, 0)],
        altered: vec![],
    };
    for most in [2, 1_000, MIB] {
        let sizes = Sizes::from([(GroupId(1), most), (GroupId(2), most / 2)]);
        let plan = rebalance(&case.map(), &case.healths(), &sizes);
        assert_eq!(plan, Plan::default(), "for {most} bytes");
    }
}

#[test]
fn a_partition_that_would_lose_its_majority_is_named() {
    let case = Case {
        nodes: vec![
            (0, NodeState::Active, Health::Alive),
            (0, NodeState::Active, Health::Alive),
            (0, NodeState::Active, Health::Dead),
        ],
        spaces: vec![(3, 0, 1), (1, 1, 1)],
        altered: vec![],
    };
    let blocked = stopping_blocks(&case.map(), &case.healths(), NodeId(1));
    let groups: Vec<u64> = blocked.iter().map(|it| it.group.0).collect();
    assert_eq!(
        groups,
        [1, 2],
        "the groups of three, and not those of node 2 alone"
    );
    assert!(
        blocked[0]
            .reason
            .to_string()
            .contains("1 of its 3 replicas")
    );
}

#[test]
fn a_group_without_a_living_majority_is_blocked_and_left_alone() {
    let case = Case {
        nodes: vec![
            (0, NodeState::Active, Health::Alive),
            (0, NodeState::Active, Health::Gone),
            (0, NodeState::Active, Health::Gone),
            (0, NodeState::Active, Health::Alive),
        ],
        spaces: vec![(3, 0, 1)],
        altered: vec![],
    };
    let plan = required(&case.map(), &case.healths(), &case.sizes());
    assert_eq!(plan.moves, []);
    let reason = BlockReason::NoMajority {
        alive: 1,
        replicas: 3,
    };
    assert!(
        plan.blocked.iter().all(|it| it.reason == reason),
        "{plan:?}"
    );
    assert_eq!(plan.blocked.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What must move: sound, the same from the same input, and nothing is left to do afterwards.
    #[test]
    fn required_moves_are_sound_and_complete(case in any_case(false)) {
        let (mut map, healths, sizes) = (case.map(), case.healths(), case.sizes());
        let plan = required(&map, &healths, &sizes);
        prop_assert_eq!(&plan, &required(&map, &healths, &sizes));
        check_sound(&map, &healths, &plan);
        carry_out(&mut map, &plan);
        let again = required(&map, &healths, &sizes);
        prop_assert_eq!(&again.moves, &vec![], "after {:?}", plan);
        let blocked: BTreeSet<GroupId> = again.blocked.iter().map(|it| it.group).collect();
        for group in map.groups.values().filter(|group| !blocked.contains(&group.id)) {
            prop_assert_eq!(group.replicas.len(), map.wanted_replicas(group));
            for node in &group.replicas {
                prop_assert!(map.nodes[node].state != NodeState::Leaving);
                prop_assert!(health_of(&healths, *node) != Health::Gone);
            }
        }
    }

    /// No more replicas move than have to.
    #[test]
    fn required_moves_touch_only_what_is_wrong(case in any_case(false)) {
        let (map, healths, sizes) = (case.map(), case.healths(), case.sizes());
        for planned in required(&map, &healths, &sizes).moves {
            let group = &map.groups[&planned.group];
            let wanted = map.wanted_replicas(group);
            let bad = |node: &&NodeId| {
                map.nodes[node].state == NodeState::Leaving
                    || health_of(&healths, **node) == Health::Gone
            };
            let bad = planned.from.iter().filter(bad).count();
            let good = planned.from.len() - bad;
            let removed = planned.removed().len();
            prop_assert!(removed <= bad + good.saturating_sub(wanted), "{:?}", planned);
            prop_assert!(planned.added().len() <= wanted.saturating_sub(good), "{:?}", planned);
        }
    }

    #[test]
    fn rebalancing_is_sound_converges_and_is_even(case in any_case(false)) {
        let (mut map, healths, sizes) = (case.map(), case.healths(), case.sizes());
        let plan = rebalance(&map, &healths, &sizes);
        prop_assert_eq!(&plan, &rebalance(&map, &healths, &sizes));
        check_sound(&map, &healths, &plan);
        let before: BTreeMap<GroupId, usize> =
            map.groups.values().map(|it| (it.id, it.replicas.len())).collect();
        carry_out(&mut map, &plan);
        for group in map.groups.values() {
            prop_assert_eq!(group.replicas.len(), before[&group.id]);
        }
        prop_assert_eq!(rebalance(&map, &healths, &sizes), Plan::default(), "after {:?}", plan);
    }

    /// Where nothing limits it: replicas differ by at most one, zones are used, and not more moves
    /// than the surplus asks for.
    #[test]
    fn a_healthy_cluster_is_made_even(case in any_case(true)) {
        let (mut map, healths) = (case.map(), case.healths());
        // Without bytes nothing is exchanged beyond what the counts ask for.
        let sizes = Sizes::new();
        let one_zone = case.nodes.iter().all(|(zone, ..)| *zone == case.nodes[0].0);
        let counts = replicas_of(&map);
        let plan = rebalance(&map, &healths, &sizes);
        carry_out(&mut map, &plan);
        for group in map.groups.values() {
            let zone = |node: &NodeId| map.nodes[node].zone.clone();
            let used: BTreeSet<String> = group.replicas.iter().map(zone).collect();
            let all: BTreeSet<String> = map.nodes.keys().map(zone).collect();
            prop_assert_eq!(used.len(), all.len().min(group.replicas.len()));
        }
        if one_zone {
            prop_assert!(difference(&replicas_of(&map)) <= 1, "{:?}", replicas_of(&map));
            let even = counts.values().sum::<usize>() / counts.len();
            let surplus: usize = counts.values().map(|it| it.saturating_sub(even + 1)).sum();
            let deficit: usize = counts.values().map(|it| even.saturating_sub(*it)).sum();
            let moved: usize = plan.moves.iter().map(|it| it.added().len()).sum();
            prop_assert!(moved <= surplus.max(deficit), "{:?} moved {}", counts, moved);
        }
    }
}
