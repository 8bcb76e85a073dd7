//! Walks over random graphs: the same on every layout, and what a plain search over the whole graph
//! gives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const MEMORIES: usize = 16;

#[derive(Clone, Debug)]
struct Edge {
    from: usize,
    to: usize,
    relation: &'static str,
    weight: Unit,
}

#[derive(Clone, Debug)]
struct Graph {
    there: Vec<bool>,
    edges: Vec<Edge>,
}

fn id(index: usize) -> MemoryId {
    MemoryId::new(format!("m{index:02}")).expect("a valid id")
}

fn start(index: usize) -> Start {
    let id = id(index);
    Start {
        memory: id.hash(),
        slot: id.hash_slot(),
    }
}

fn index(memory: MemoryHash) -> usize {
    let known = (0..MEMORIES).find(|index| id(*index).hash() == memory);
    known.expect("a memory of the graph")
}

fn homes(partitions: u32) -> Homes {
    let slots = SlotRange::split_evenly(partitions).into_iter();
    let home = |(number, slots): (u64, SlotRange)| (slots, PartitionId(100 - number));
    Homes((0..).zip(slots).map(home).collect())
}

/// What a partition answers.
fn expand(graph: &Graph, homes: &Homes, ask: &Ask) -> Expanded {
    let is_own = |memory: usize| homes.of(id(memory).hash_slot()) == Ok(ask.partition);
    let mut expanded = Expanded::default();
    for memory in ask.own.iter().map(|memory| index(*memory)) {
        assert!(is_own(memory), "asked the wrong partition");
        let is_there = graph.there[memory];
        expanded.ids.push(is_there.then(|| id(memory)));
        let edges = graph.edges.iter().filter(|edge| edge.from == memory);
        if is_there && ask.out_edges {
            expanded.edges.extend(edges.map(|edge| WalkEdge {
                at: id(memory).hash(),
                other: id(edge.to).hash(),
                heading: Heading::Out(id(edge.to).hash_slot()),
                relation: Relation::new(edge.relation).expect("a relation"),
                weight: edge.weight,
            }));
        }
    }
    for memory in ask.into.iter().map(|memory| index(*memory)) {
        let edges = graph.edges.iter();
        let edges = edges.filter(|edge| edge.to == memory && is_own(edge.from));
        expanded.edges.extend(edges.map(|edge| WalkEdge {
            at: id(memory).hash(),
            other: id(edge.from).hash(),
            heading: Heading::In,
            relation: Relation::new(edge.relation).expect("a relation"),
            weight: edge.weight,
        }));
    }
    expanded.is_cut = expanded.edges.len() > ask.edges_max;
    expanded.edges.truncate(ask.edges_max);
    // The order of an answer means nothing.
    expanded.edges.reverse();
    expanded
}

fn parameters(direction: WalkDirection, hops_max: u32) -> WalkParameters {
    WalkParameters {
        direction,
        hops_max,
        memories_max: 1_000,
        edges_max: 10_000,
    }
}

fn run(
    graph: &Graph,
    goal: Goal,
    starts: &[usize],
    parameters: WalkParameters,
    partitions: u32,
) -> WalkOutcome {
    let homes = homes(partitions);
    let starts: Vec<Start> = starts.iter().map(|index| start(*index)).collect();
    let mut walk = Walk::new(goal, &starts, parameters, homes.clone()).expect("slots are owned");
    let mut rounds = 0;
    loop {
        let asks = walk.round();
        if asks.is_empty() {
            return walk.finish();
        }
        let answers = asks.iter().map(|ask| expand(graph, &homes, ask)).collect();
        walk.take(answers).expect("its own answers");
        rounds += 1;
        assert!(rounds <= parameters.hops_max + 1, "a hop is read twice");
    }
}

/// Edges as the walk may follow them: (from, to, weight), between memories that are there.
fn ways(graph: &Graph, direction: WalkDirection) -> Vec<(usize, usize, Unit)> {
    let mut ways = Vec::new();
    for edge in graph.edges.iter().filter(|edge| edge.weight != Unit::ZERO) {
        if direction.is_out() {
            ways.push((edge.from, edge.to, edge.weight));
        }
        if direction.is_in() {
            ways.push((edge.to, edge.from, edge.weight));
        }
    }
    ways.retain(|(from, to, _)| graph.there[*from] && graph.there[*to]);
    ways
}

/// By hops: how strongly each memory is reached with at most so many.
fn strengths(
    graph: &Graph,
    from: usize,
    direction: WalkDirection,
    hops: u32,
) -> Vec<BTreeMap<usize, Strength>> {
    let ways = ways(graph, direction);
    let mut best = vec![BTreeMap::from([(from, Strength::ONE)])];
    for _ in 0..hops {
        let last = best.last().expect("at least one").clone();
        let mut next = last.clone();
        for (from, to, weight) in &ways {
            let reached = last.get(from).and_then(|strength| strength.times(*weight));
            if let Some(strength) = reached {
                let held = next.entry(*to).or_insert(strength);
                *held = (*held).max(strength);
            }
        }
        best.push(next);
    }
    best
}

fn graphs() -> impl Strategy<Value = Graph> {
    let weight = prop_oneof![
        Just(0),
        Just(1),
        Just(1 << 31),
        Just(1 << 32),
        1..=1_u64 << 32
    ];
    let relation = prop::sample::select(&["is", "near"][..]);
    let edge =
        (0..MEMORIES, 0..MEMORIES, relation, weight).prop_map(|(from, to, relation, weight)| {
            Edge {
                from,
                to,
                relation,
                weight: Unit::from_bits(weight).expect("in range"),
            }
        });
    let there = prop::collection::vec(prop::bool::weighted(0.85), MEMORIES);
    (there, prop::collection::vec(edge, 0..60)).prop_map(|(there, mut edges)| {
        edges.sort_by_key(|edge| (edge.from, edge.to, edge.relation));
        edges.dedup_by_key(|edge| (edge.from, edge.to, edge.relation));
        Graph { there, edges }
    })
}

fn directions() -> impl Strategy<Value = WalkDirection> {
    prop::sample::select(&[WalkDirection::Out, WalkDirection::In, WalkDirection::Both][..])
}

/// The product along a path, each step of which must be an edge of the graph.
fn strength_of(graph: &Graph, direction: WalkDirection, path: &FoundPath) -> Option<Strength> {
    let mut strength = Strength::ONE;
    for pair in path.steps.windows(2) {
        let by = pair[1].by.as_ref()?;
        let (mut from, mut to) = (index(pair[0].id.hash()), index(pair[1].id.hash()));
        if by.is_reversed {
            (from, to) = (to, from);
        }
        let allowed = match by.is_reversed {
            true => direction.is_in(),
            false => direction.is_out(),
        };
        let is_it = |edge: &&Edge| {
            (edge.from, edge.to, edge.relation) == (from, to, by.relation.as_str())
                && edge.weight == by.weight
        };
        graph.edges.iter().find(is_it).filter(|_| allowed)?;
        strength = strength.times(by.weight)?;
    }
    Some(strength)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn around_is_what_a_plain_search_reaches(
        graph in graphs(), from in 0..MEMORIES, direction in directions(), hops in 0_u32..5,
    ) {
        let outcome = run(&graph, Goal::Around, &[from], parameters(direction, hops), 1);
        for partitions in [2, 8] {
            let other = run(&graph, Goal::Around, &[from], parameters(direction, hops), partitions);
            prop_assert_eq!(&other, &outcome);
        }
        if !graph.there[from] {
            prop_assert_eq!((outcome.missing.len(), outcome.reached.len()), (1, 0));
            return Ok(());
        }
        let layers = strengths(&graph, from, direction, hops);
        let first = |memory: &usize| layers.iter().position(|layer| layer.contains_key(memory));
        let last = layers.last().expect("at least one");
        let truth: BTreeSet<(usize, usize)> = last
            .keys()
            .map(|memory| (first(memory).expect("it is in the last"), *memory))
            .collect();
        let got: BTreeSet<(usize, usize)> = outcome
            .reached
            .iter()
            .map(|one| (one.hops as usize, index(one.memory)))
            .collect();
        prop_assert_eq!(got, truth);
        prop_assert_eq!(outcome.end, WalkEnd::Complete);
    }

    #[test]
    fn the_best_path_is_found(
        graph in graphs(), from in 0..MEMORIES, to in 0..MEMORIES, direction in directions(), hops in 0_u32..6,
    ) {
        for by in [PathBy::Hops, PathBy::Strength] {
            let goal = Goal::Path { to: start(to), by };
            let outcome = run(&graph, goal.clone(), &[from], parameters(direction, hops), 1);
            for partitions in [2, 8] {
                let other = run(&graph, goal.clone(), &[from], parameters(direction, hops), partitions);
                prop_assert_eq!(&other, &outcome);
            }
            let layers = strengths(&graph, from, direction, hops);
            let both = graph.there[from] && graph.there[to];
            let best = match by {
                PathBy::Hops => layers.iter().find_map(|layer| layer.get(&to)),
                PathBy::Strength => layers.last().and_then(|layer| layer.get(&to)),
            };
            let best = best.copied().filter(|_| both);
            prop_assert_eq!(outcome.path.as_ref().map(|path| path.strength), best);
            prop_assert_eq!(outcome.missing.is_empty(), both);
            let Some(path) = outcome.path else { continue };
            prop_assert_eq!(strength_of(&graph, direction, &path), Some(path.strength));
            let ends = (path.steps.first(), path.steps.last());
            let ends = (ends.0.map(|step| step.id.clone()), ends.1.map(|step| step.id.clone()));
            prop_assert_eq!(ends, (Some(id(from)), Some(id(to))));
            let fewest = layers.iter().position(|layer| layer.get(&to) == Some(&path.strength));
            prop_assert_eq!(Some(path.steps.len() - 1), fewest);
        }
    }

    #[test]
    fn limits_end_a_walk_after_whole_hops(
        graph in graphs(), from in 0..MEMORIES, memories_max in 1_usize..12, edges_max in 0_usize..20,
    ) {
        let whole = run(&graph, Goal::Around, &[from], parameters(WalkDirection::Both, 5), 1);
        let bounded = WalkParameters { memories_max, edges_max, ..parameters(WalkDirection::Both, 5) };
        let outcome = run(&graph, Goal::Around, &[from], bounded, 1);
        prop_assert_eq!(&run(&graph, Goal::Around, &[from], bounded, 8).reached, &outcome.reached);
        let within = |hops: u32| whole.reached.iter().filter(|one| one.hops <= hops).cloned().collect::<Vec<_>>();
        match outcome.end {
            WalkEnd::Complete => prop_assert_eq!(outcome.reached, whole.reached),
            WalkEnd::TooManyMemories { hops } => {
                prop_assert_eq!(&outcome.reached, &within(hops));
                prop_assert!(outcome.reached.len() <= memories_max);
            }
            WalkEnd::TooManyEdges { hops } => prop_assert_eq!(outcome.reached, within(hops)),
        }
    }
}

#[test]
fn a_component_is_a_walk_without_an_end() {
    let edge = |from, to| Edge {
        from,
        to,
        relation: "is",
        weight: Unit::ONE,
    };
    let graph = Graph {
        there: vec![true; MEMORIES],
        edges: (0..9)
            .map(|n| edge(n + usize::from(n % 2 == 0), n + usize::from(n % 2 == 1)))
            .collect(),
    };
    let endless = parameters(WalkDirection::Both, u32::MAX);
    let outcome = {
        let homes = homes(3);
        let mut walk = Walk::new(Goal::Around, &[start(0)], endless, homes.clone()).expect("owned");
        loop {
            let asks = walk.round();
            if asks.is_empty() {
                break walk.finish();
            }
            let answers = asks.iter().map(|ask| expand(&graph, &homes, ask)).collect();
            walk.take(answers).expect("its own answers");
        }
    };
    let reached: Vec<usize> = outcome
        .reached
        .iter()
        .map(|one| index(one.memory))
        .collect();
    assert_eq!(reached, (0..10).collect::<Vec<_>>());
    assert_eq!(outcome.end, WalkEnd::Complete);
}

#[test]
fn answers_to_something_else_are_refused() {
    let mut walk = Walk::new(
        Goal::Around,
        &[start(0)],
        parameters(WalkDirection::Out, 2),
        homes(2),
    )
    .expect("slots are owned");
    assert!(walk.take(Vec::new()).is_err());
    assert!(walk.take(vec![Expanded::default()]).is_err());
    let nobody = Homes(Vec::new());
    let refused = Walk::new(
        Goal::Around,
        &[start(0)],
        parameters(WalkDirection::Out, 2),
        nobody,
    );
    assert!(matches!(refused, Err(WalkError::NoPartition(_))));
}
