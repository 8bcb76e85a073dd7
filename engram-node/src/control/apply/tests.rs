use proptest::prelude::*;

use super::*;
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
        apply(&mut map, &ControlCommand::DropSpace { name: name.into() })
            .outcome
            .expect("dropped");
        map.validate();
        let again = apply(&mut map, &ControlCommand::DropSpace { name: name.into() }).outcome;
        assert_eq!(
            again,
            Err(ControlRefusal::UnknownSpace { name: name.into() })
        );
    }
    assert!(map.groups.values().all(|group| group.shared));
    assert_eq!(map.groups.len(), 1);
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
        Just(ControlCommand::AllocateMark),
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
