//! The arrays and their notes against the store: whatever was written while arrays were made, both
//! say the same of every memory, forwards and backwards.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::support::*;
use crate::command::{EdgeChange, Op, PartitionCommand};
use crate::partition::{GraphJob, LocalChange, PartitionAdjacency};
use crate::spread::Adjacency as _;
use crate::types::{ActorId, EdgeContext, Hlc, MemoryHash, RequestId, Unit};
use crate::walk::Ask;

const NAMES: u8 = 7;

#[derive(Clone, Debug)]
enum Event {
    Remember(u8),
    Forget(u8),
    Associate(u8, u8, u8),
    Dissociate(u8, u8),
    /// Beside the log.
    Local(u8, u8, u8),
    Adopt,
    /// Takes the state of which arrays are made.
    Begin,
    /// Makes them and puts them in place.
    Commit,
}

fn events() -> impl Strategy<Value = Event> {
    let name = || 0..NAMES;
    prop_oneof![
        4 => name().prop_map(Event::Remember),
        1 => name().prop_map(Event::Forget),
        6 => (name(), name(), 0_u8..=4).prop_map(|(from, to, weight)| Event::Associate(from, to, weight)),
        2 => (name(), name()).prop_map(|(from, to)| Event::Dissociate(from, to)),
        2 => (name(), name(), 1_u8..=4).prop_map(|(from, to, weight)| Event::Local(from, to, weight)),
        1 => Just(Event::Adopt),
        2 => Just(Event::Begin),
        3 => Just(Event::Commit),
    ]
}

fn name(n: u8) -> String {
    format!("m{n}")
}

fn local(counter: u64, from: u8, to: u8, weight: u8) -> LocalChange {
    LocalChange {
        request: RequestId {
            client: CLIENT,
            counter: 1_000_000 + counter,
            index: 0,
        },
        retried: false,
        stamp: Hlc::from_millis(counter),
        from: id(&name(from)),
        to: id(&name(to)),
        relation: relation("r"),
        change: EdgeChange::Contribute {
            weight: unit(f64::from(weight) / 4.0),
            confidence: Unit::ONE,
        },
    }
}

/// What spreading sees of a memory: whether it is there, and its out-edges but those of weight 0.
fn forwards(
    adjacency: &PartitionAdjacency,
    memory: MemoryHash,
) -> (bool, BTreeSet<(MemoryHash, u64)>) {
    let mut edges = Vec::new();
    let is_there = adjacency.resolve(memory).expect("it can be read");
    adjacency
        .out_edges(memory, &mut edges)
        .expect("they can be read");
    let edges = edges.iter().map(|edge| (edge.to, edge.weight.bits()));
    (is_there, edges.filter(|(_, weight)| *weight > 0).collect())
}

fn backwards(adjacency: &PartitionAdjacency, memory: MemoryHash) -> BTreeSet<(MemoryHash, u64)> {
    let mut edges = BTreeSet::new();
    let push = |edge: crate::partition::InEdge| {
        if edge.weight > Unit::ZERO {
            assert!(edges.insert((edge.from, edge.weight.bits())), "twice");
        }
    };
    adjacency.in_edges(memory, push).expect("they can be read");
    edges
}

fn check(driven: &Driven) {
    let adjacency = driven.partition.adjacency(None, None, 0);
    let truth = adjacency.without_arrays();
    for n in 0..NAMES {
        let memory = id(&name(n)).hash();
        assert_eq!(
            forwards(&adjacency, memory),
            forwards(&truth, memory),
            "m{n}"
        );
        assert_eq!(
            backwards(&adjacency, memory),
            backwards(&truth, memory),
            "into m{n}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arrays_and_store_say_the_same(events in prop::collection::vec(events(), 1..60)) {
        let mut driven = Driven::new();
        let mut job: Option<GraphJob> = None;
        let mut counter = 0;
        for event in events {
            counter += 1;
            match event {
                Event::Remember(n) => {
                    driven.op(Op::Remember(remember(&name(n), None)));
                }
                Event::Forget(n) => {
                    let context = driven.partition.context();
                    driven.op(forget(&name(n), context));
                }
                Event::Associate(from, to, weight) => {
                    driven.op(associate(&name(from), &name(to), f64::from(weight) / 4.0));
                }
                Event::Dissociate(from, to) => {
                    let context: EdgeContext = driven.partition.context();
                    driven.op(dissociate(&name(from), &name(to), context));
                }
                Event::Local(from, to, weight) => {
                    let actor = ActorId([1; 16]);
                    let change = local(counter, from, to, weight);
                    driven.partition.accept_local(actor, &[change]).expect("accepts");
                }
                Event::Adopt => {
                    let deltas = driven.partition.adoptable(usize::MAX, usize::MAX);
                    driven.apply(PartitionCommand::Adopt { deltas });
                }
                Event::Begin => {
                    // The first reader asks for arrays.
                    drop(driven.partition.adjacency(None, None, 0));
                    job = job.or_else(|| driven.partition.graph_job());
                }
                Event::Commit => {
                    if let Some(job) = job.take() {
                        driven.partition.commit_graph(job.build().expect("it can be read"));
                    }
                }
            }
            check(&driven);
        }
    }
}

#[test]
fn a_walk_reads_both_ways() {
    let mut driven = Driven::new();
    for n in 0..3 {
        driven.op(Op::Remember(remember(&name(n), None)));
    }
    driven.op(associate("m0", "m1", 0.5));
    driven.op(associate("m2", "m1", 1.0));
    let ask = |own: &[u8], into: &[u8], edges_max| {
        let hashes = |names: &[u8]| names.iter().map(|n| id(&name(*n)).hash()).collect();
        Ask {
            partition: P,
            own: hashes(own),
            out_edges: true,
            into: hashes(into),
            edges_max,
        }
    };
    let adjacency = driven.partition.adjacency(None, None, 0);
    let expanded = adjacency.expand(&ask(&[0, 5], &[1], 10)).expect("reads");
    assert_eq!(expanded.ids, [Some(id("m0")), None]);
    let ends: Vec<_> = expanded
        .edges
        .iter()
        .map(|edge| (edge.at, edge.other))
        .collect();
    let [zero, one, two] = ["m0", "m1", "m2"].map(|name| id(name).hash());
    assert_eq!(ends[0], (zero, one));
    let into: BTreeSet<_> = ends[1..].iter().copied().collect();
    assert_eq!(into, [(one, zero), (one, two)].into());
    assert!(!expanded.is_cut);
    let cut = adjacency.expand(&ask(&[0], &[1], 2)).expect("reads");
    assert_eq!((cut.is_cut, cut.edges.len()), (true, 2));
}
