use proptest::prelude::*;

use super::*;
use crate::control::map::{MoveId, MoveRecord, NodeState};
use crate::control::samples;

fn three_nodes() -> ClusterMap {
    let mut map = ClusterMap::default();
    for command in samples::commands().into_iter().take(3) {
        apply(&mut map, &command)
            .outcome
            .expect("a founded cluster");
    }
    map
}

fn create(map: &mut ClusterMap, space: &NewSpace) -> Result<ControlOutcome, ControlRefusal> {
    let outcome = apply(map, &ControlCommand::CreateSpace(space.clone())).outcome;
    map.validate();
    outcome
}

/// Everything but the count of commands.
fn state(map: &ClusterMap) -> ClusterMap {
    ClusterMap {
        index: 0,
        ..map.clone()
    }
}

#[test]
fn nothing_happens_before_the_founding() {
    let mut map = ClusterMap::default();
    for command in samples::commands().into_iter().skip(1) {
        assert_eq!(
            apply(&mut map, &command).outcome,
            Err(ControlRefusal::NotInitialized)
        );
    }
    assert_eq!(state(&map), ClusterMap::default());
    assert_eq!(
        apply(&mut map, &samples::init()).outcome,
        Ok(ControlOutcome::NodeRegistered {
            node: NodeId(1),
            known: false
        })
    );
}

#[test]
fn a_cluster_is_founded_once() {
    let mut map = three_nodes();
    let again = apply(&mut map, &samples::init()).outcome;
    assert_eq!(
        again,
        Ok(ControlOutcome::NodeRegistered {
            node: NodeId(1),
            known: true
        })
    );
    let other = ControlCommand::InitCluster {
        cluster: ClusterId([8; 16]),
        founder: samples::node(7),
    };
    let before = state(&map);
    assert!(matches!(
        apply(&mut map, &other).outcome,
        Err(ControlRefusal::OtherCluster { .. })
    ));
    assert_eq!(state(&map), before);
}

#[test]
fn a_node_keeps_its_id_and_may_move() {
    let mut map = three_nodes();
    let moved = NodeDescription {
        peer_address: "elsewhere:1".into(),
        ..samples::node(2)
    };
    let reply = apply(&mut map, &ControlCommand::RegisterNode(moved)).outcome;
    assert_eq!(
        reply,
        Ok(ControlOutcome::NodeRegistered {
            node: NodeId(2),
            known: true
        })
    );
    assert_eq!(map.nodes[&NodeId(2)].peer_address, "elsewhere:1");
    assert_eq!(map.nodes.len(), 3);
}

#[test]
fn a_node_without_an_address_is_refused() {
    let mut map = three_nodes();
    for bad in ["", "host", "host:0", ":80", "host:70000"] {
        let node = NodeDescription {
            client_address: bad.into(),
            ..samples::node(4)
        };
        let outcome = apply(&mut map, &ControlCommand::RegisterNode(node)).outcome;
        assert!(
            matches!(outcome, Err(ControlRefusal::InvalidNode { .. })),
            "{bad}"
        );
    }
    assert_eq!(map.nodes.len(), 3);
}

#[test]
fn a_space_is_created_once() {
    let mut map = three_nodes();
    let space = samples::space("words", &[&[1, 2, 3], &[2, 3, 1]]);
    let created = create(&mut map, &space);
    assert_eq!(
        created,
        Ok(ControlOutcome::SpaceCreated {
            space: SpaceId(1),
            existed: false
        })
    );
    let before = state(&map);

    // The proposer did not hear the answer and asks again.
    assert_eq!(create(&mut map, &space), created);
    assert_eq!(state(&map), before);

    // Another proposer drew another seed and another placement: still the same space.
    let mut again = samples::space("words", &[&[3, 2, 1], &[1, 3, 2]]);
    again.config.index.level_seed = 7;
    let existing = create(&mut map, &again);
    assert_eq!(
        existing,
        Ok(ControlOutcome::SpaceCreated {
            space: SpaceId(1),
            existed: true
        })
    );

    let mut other = space.clone();
    other.config.dimension = 9;
    let refused = create(&mut map, &other);
    let reason = "its dimension is 8, not 9".to_owned();
    assert_eq!(
        refused,
        Err(ControlRefusal::SpaceExistsDifferent { reason })
    );
    let fewer = samples::space("words", &[&[1, 2, 3]]);
    assert!(matches!(
        create(&mut map, &fewer),
        Err(ControlRefusal::SpaceExistsDifferent { .. })
    ));
    assert_eq!(state(&map), before);
}

#[test]
fn impossible_spaces_are_refused() {
    let mut map = three_nodes();
    let before = state(&map);
    for placement in [&[&[1, 1][..]][..], &[&[1, 4]], &[&[1, 2], &[1]], &[]] {
        let outcome = create(&mut map, &samples::space("words", placement));
        assert!(outcome.is_err(), "{placement:?}");
    }
    let mut unnamed = samples::space("", &[&[1]]);
    assert!(matches!(
        create(&mut map, &unnamed),
        Err(ControlRefusal::InvalidConfig { .. })
    ));
    unnamed.config.name = "words".into();
    unnamed.config.dimension = 0;
    assert!(matches!(
        create(&mut map, &unnamed),
        Err(ControlRefusal::InvalidConfig { .. })
    ));
    assert_eq!(state(&map), before);
}

#[test]
fn large_spaces_have_groups_of_their_own_and_small_ones_share() {
    let mut map = three_nodes();
    create(
        &mut map,
        &samples::space("large", &[&[1, 2, 3], &[2, 3, 1]]),
    )
    .expect("created");
    assert_eq!(map.groups.len(), 2);
    for n in 0..SHARED_GROUPS_MAX * 2 {
        create(
            &mut map,
            &samples::space(&format!("small-{n}"), &[&[1, 2, 3]]),
        )
        .expect("created");
    }
    assert_eq!(map.groups.len(), 2 + SHARED_GROUPS_MAX);
    for group in map.groups.values().filter(|group| group.shared) {
        assert_eq!(map.partitions_of(group.id).count(), 2);
    }
}

#[test]
fn dropping_frees_a_spaces_own_groups_only() {
    let mut map = three_nodes();
    create(&mut map, &samples::space("large", &[&[1], &[2]])).expect("created");
    create(&mut map, &samples::space("small", &[&[1]])).expect("created");
    for name in ["large", "small"] {
        let dropped = map.space(name).expect("there").clone();
        let drop = ControlCommand::DropSpace { name: name.into() };
        let space = dropped.config.space;
        // Asked a second time, it is being dropped all the same.
        for _ in 0..2 {
            let outcome = apply(&mut map, &drop).outcome;
            assert_eq!(outcome, Ok(ControlOutcome::SpaceDropped { space }));
            map.validate();
        }
        assert!(map.space(name).is_none());
        for partition in dropped.partitions {
            assert!(map.partition(partition.id).is_none());
            assert!(map.groups.contains_key(&partition.group), "it has to learn");
            let finish = ControlCommand::FinishDrop {
                partition: partition.id,
            };
            apply(&mut map, &finish).outcome.expect("finished");
            map.validate();
        }
        let unknown = ControlRefusal::UnknownSpace { name: name.into() };
        assert_eq!(apply(&mut map, &drop).outcome, Err(unknown));
    }
    assert!(map.groups.values().all(|group| group.shared));
    assert_eq!(map.groups.len(), 1);
}

#[test]
fn a_name_is_free_when_every_group_has_dropped_its_partition() {
    let mut map = three_nodes();
    let wanted = samples::space("words", &[&[1], &[2]]);
    create(&mut map, &wanted).expect("created");
    let partitions = map.space("words").expect("there").partitions.clone();
    let drop = ControlCommand::DropSpace {
        name: "words".into(),
    };
    apply(&mut map, &drop).outcome.expect("dropped");
    for partition in partitions {
        assert_eq!(
            create(&mut map, &wanted),
            Err(ControlRefusal::SpaceBeingDropped {
                name: "words".into()
            })
        );
        assert_eq!(
            map.dropping_of(partition.group).collect::<Vec<_>>(),
            [partition.id]
        );
        let finish = ControlCommand::FinishDrop {
            partition: partition.id,
        };
        apply(&mut map, &finish).outcome.expect("finished");
    }
    create(&mut map, &wanted).expect("created again");
    assert_eq!(map.space("words").expect("there").config.space.0, 2);
}

#[test]
fn control_voters_are_odd_and_the_oldest() {
    let mut map = ClusterMap::default();
    apply(&mut map, &samples::init()).outcome.expect("founded");
    let mut counts = vec![map.control_voters().len()];
    for n in 2..=7 {
        apply(&mut map, &ControlCommand::RegisterNode(samples::node(n)))
            .outcome
            .expect("joined");
        counts.push(map.control_voters().len());
    }
    assert_eq!(counts, [1, 1, 3, 3, 5, 5, 5]);
    assert_eq!(map.control_voters(), [1, 2, 3, 4, 5].map(NodeId));
}

#[test]
fn a_map_survives_its_encoding() {
    let mut map = ClusterMap::default();
    for command in samples::commands() {
        apply(&mut map, &command).outcome.expect("accepted");
        assert_eq!(ClusterMap::decode(&map.encode()), Ok(map.clone()));
    }
    assert!(ClusterMap::decode(&[]).is_err());
    assert!(ClusterMap::decode(&[2]).is_err());
    assert!(ClusterMap::decode(&map.encode()[..20]).is_err());
}

/// Nodes 1 to 4; group 1 on the first three.
fn four_nodes() -> ClusterMap {
    let mut map = three_nodes();
    let fourth = ControlCommand::RegisterNode(samples::node(4));
    apply(&mut map, &fourth).outcome.expect("joined");
    create(&mut map, &samples::space("words", &[&[1, 2, 3]])).expect("created");
    map
}

const GROUP: GroupId = GroupId(1);

fn move_of(map: &ClusterMap) -> &MoveRecord {
    map.groups[&GROUP].change.as_ref().expect("a move")
}

#[test]
fn a_move_is_started_once_and_ended_once() {
    let mut map = four_nodes();
    let start = samples::start_move(1, &[1, 2, 3], &[1, 2, 4]);
    let started = apply(&mut map, &start).outcome;
    assert_eq!(started, Ok(ControlOutcome::MoveStarted { id: MoveId(1) }));
    map.validate();
    assert_eq!(map.replicas(GROUP), [1, 2, 3].map(NodeId));
    assert_eq!(map.hosts(GROUP), (1..=4).map(NodeId).collect());
    // The proposer did not hear the answer; somebody else wants something else.
    assert_eq!(apply(&mut map, &start).outcome, started);
    let other = samples::start_move(1, &[1, 2, 3], &[4, 2, 3]);
    let refused = apply(&mut map, &other).outcome;
    assert!(matches!(refused, Err(ControlRefusal::Conflict { .. })));

    let finish = |id| ControlCommand::FinishMove {
        group: GROUP,
        id: MoveId(id),
    };
    let before = state(&map);
    apply(&mut map, &finish(9)).outcome.expect("nothing to end");
    assert_eq!(state(&map), before);
    for _ in 0..2 {
        apply(&mut map, &finish(1)).outcome.expect("ended");
        map.validate();
        assert_eq!(map.replicas(GROUP), [1, 2, 4].map(NodeId));
        assert_eq!(map.groups[&GROUP].change, None);
    }
    let late = apply(&mut map, &start).outcome;
    assert!(
        matches!(late, Err(ControlRefusal::Conflict { .. })),
        "planned on an older map"
    );
}

#[test]
fn a_move_that_is_called_off_is_a_move_back_that_the_first_one_cannot_end() {
    let mut map = four_nodes();
    let start = samples::start_move(1, &[1, 2, 3], &[1, 2, 4]);
    apply(&mut map, &start).outcome.expect("started");
    let cancel = ControlCommand::CancelMove {
        group: GROUP,
        id: MoveId(1),
    };
    for _ in 0..2 {
        apply(&mut map, &cancel).outcome.expect("called off");
        map.validate();
        let back = move_of(&map);
        assert!(back.cancelled);
        assert_eq!(
            (back.id, back.goal.clone()),
            (MoveId(2), [1, 2, 3].map(NodeId).into())
        );
        assert!(
            map.hosts(GROUP).contains(&NodeId(4)),
            "it may be a member still"
        );
    }
    // The leader of the first move believes that it is done.
    let stale = ControlCommand::FinishMove {
        group: GROUP,
        id: MoveId(1),
    };
    apply(&mut map, &stale).outcome.expect("nothing to end");
    assert!(map.groups[&GROUP].change.is_some());
    let finish = ControlCommand::FinishMove {
        group: GROUP,
        id: MoveId(2),
    };
    apply(&mut map, &finish).outcome.expect("back");
    assert_eq!(map.replicas(GROUP), [1, 2, 3].map(NodeId));
    assert!(!map.hosts(GROUP).contains(&NodeId(4)));
}

#[test]
fn impossible_moves_are_refused() {
    let mut map = four_nodes();
    let drained = ControlCommand::SetNodeState {
        node: NodeId(4),
        state: NodeState::Draining,
    };
    apply(&mut map, &drained).outcome.expect("drained");
    let before = state(&map);
    for goal in [&[][..], &[1, 1], &[1, 2, 9], &[1, 2, 4], &[3, 2, 1]] {
        let command = samples::start_move(1, &[1, 2, 3], goal);
        let outcome = apply(&mut map, &command).outcome;
        assert!(outcome.is_err(), "{goal:?}");
    }
    assert_eq!(state(&map), before);
}

#[test]
fn a_node_leaves_with_nothing_on_it_and_never_comes_back() {
    let mut map = four_nodes();
    let set = |node, state| ControlCommand::SetNodeState {
        node: NodeId(node),
        state,
    };
    let remove = |node| ControlCommand::RemoveNode { node: NodeId(node) };
    for (node, state) in [(4, NodeState::Active), (1, NodeState::Leaving)] {
        apply(&mut map, &set(node, state)).outcome.expect("set");
        let refused = apply(&mut map, &remove(node)).outcome;
        assert!(
            matches!(refused, Err(ControlRefusal::NotPossible { .. })),
            "{node}"
        );
    }
    // A restart is no return to duty.
    let again = ControlCommand::RegisterNode(samples::node(1));
    apply(&mut map, &again).outcome.expect("known");
    assert_eq!(map.nodes[&NodeId(1)].state, NodeState::Leaving);
    assert_eq!(map.control_voters(), [2, 3, 4].map(NodeId));

    apply(&mut map, &set(4, NodeState::Leaving))
        .outcome
        .expect("set");
    for _ in 0..2 {
        apply(&mut map, &remove(4)).outcome.expect("gone");
        map.validate();
    }
    let back = ControlCommand::RegisterNode(samples::node(4));
    let refused = apply(&mut map, &back).outcome;
    assert!(matches!(refused, Err(ControlRefusal::InvalidNode { .. })));
    assert!(!map.nodes.contains_key(&NodeId(4)));
}

#[test]
fn a_space_may_ask_for_more_replicas_than_its_group_has() {
    let mut map = four_nodes();
    let alter = |replicas| ControlCommand::AlterSpace {
        name: "words".into(),
        replicas,
    };
    for impossible in [0, 5, 99] {
        let refused = apply(&mut map, &alter(impossible)).outcome;
        assert!(refused.is_err(), "{impossible}");
    }
    apply(&mut map, &alter(1)).outcome.expect("altered");
    assert_eq!(map.wanted_replicas(&map.groups[&GROUP]), 1);
    // Its shared group still has three: a space of three does not join it, one of one does.
    create(&mut map, &samples::space("three", &[&[1, 2, 3]])).expect("created");
    assert_eq!(map.partitions_of(GROUP).count(), 1);
}

#[test]
fn the_preferred_primary_can_be_chosen_also_during_a_move() {
    let mut map = four_nodes();
    let start = samples::start_move(1, &[1, 2, 3], &[1, 2, 4]);
    apply(&mut map, &start).outcome.expect("started");
    let prefer = |node| ControlCommand::PreferPrimary {
        group: GROUP,
        node: NodeId(node),
    };
    apply(&mut map, &prefer(2)).outcome.expect("preferred");
    assert_eq!(map.replicas(GROUP), [2, 1, 3].map(NodeId));
    assert_eq!(move_of(&map).goal, [2, 1, 4].map(NodeId));
    assert!(
        apply(&mut map, &prefer(3)).outcome.is_err(),
        "it is going away"
    );
}

fn any_command() -> impl Strategy<Value = ControlCommand> {
    let name = (0..4u8).prop_map(|n| format!("space-{n}"));
    let set = prop::collection::vec(1..6u64, 1..4);
    prop_oneof![
        (1..6u8).prop_map(|n| ControlCommand::RegisterNode(samples::node(n))),
        (name.clone(), prop::collection::vec(set, 1..4)).prop_map(|(name, placement)| {
            let sets: Vec<&[u64]> = placement.iter().map(Vec::as_slice).collect();
            ControlCommand::CreateSpace(samples::space(&name, &sets))
        }),
        name.prop_map(|name| ControlCommand::DropSpace { name }),
        (1..9u64).prop_map(|partition| ControlCommand::FinishDrop {
            partition: PartitionId(partition),
        }),
        Just(ControlCommand::AllocateMark),
        (1..6u64, 0..4u8).prop_map(|(node, state)| {
            let states = [
                NodeState::Active,
                NodeState::Draining,
                NodeState::Maintenance,
                NodeState::Leaving,
            ];
            let (node, state) = (NodeId(node), states[usize::from(state)]);
            ControlCommand::SetNodeState { node, state }
        }),
        (1..6u64).prop_map(|node| ControlCommand::RemoveNode { node: NodeId(node) }),
        (
            1..6u64,
            prop::collection::vec(1..6u64, 1..4),
            prop::collection::vec(1..6u64, 1..4)
        )
            .prop_map(|(group, from, to)| samples::start_move(group, &from, &to)),
        (1..6u64, 1..9u64).prop_map(|(group, id)| ControlCommand::CancelMove {
            group: GroupId(group),
            id: MoveId(id),
        }),
        (1..6u64, 1..9u64).prop_map(|(group, id)| ControlCommand::FinishMove {
            group: GroupId(group),
            id: MoveId(id),
        }),
        (1..6u64, 1..6u64).prop_map(|(group, node)| ControlCommand::PreferPrimary {
            group: GroupId(group),
            node: NodeId(node),
        }),
        (0..4u8, 0..6u32).prop_map(|(n, replicas)| ControlCommand::AlterSpace {
            name: format!("space-{n}"),
            replicas,
        }),
    ]
}

proptest! {
    /// Whatever is proposed: the map stays sound, refusals change nothing, no id comes twice.
    #[test]
    fn any_history_keeps_the_map_sound(
        commands in prop::collection::vec(any_command(), 1..60),
    ) {
        let mut map = ClusterMap::default();
        apply(&mut map, &samples::init()).outcome.expect("founded");
        let (mut partitions, mut groups) = (BTreeSet::new(), BTreeSet::new());
        for command in commands {
            let before = map.clone();
            let reply = apply(&mut map, &command);
            map.validate();
            prop_assert_eq!(reply.index, before.index + 1);
            if reply.outcome.is_err() {
                prop_assert_eq!(state(&map), state(&before));
            }
            for (_, partition) in map.partitions() {
                if before.partition(partition.id).is_none() {
                    prop_assert!(partitions.insert(partition.id), "a partition id came twice");
                }
            }
            for group in map.groups.keys().filter(|group| !before.groups.contains_key(group)) {
                prop_assert!(groups.insert(*group), "a group id came twice");
            }
        }
    }
}
