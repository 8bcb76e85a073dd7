//! Spreading on arrays gives the bits of the oracle: with arrays of an older state and the rest
//! read one by one, sparse and dense, with pieces in any order and on several threads.

use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::{
    Adjacency, Alone, ChangedVertices, Crew, OutEdge, Projected, Projection, ProjectionBuilder,
    SpreadParameters, run, spread,
};
use super::cluster::Dice;
use super::graph::{Edge, Graph, Part, graphs, hash, id, parameters, seeds};
use crate::types::{Decay, EdgeContext, MemoryHash, MemoryId, SlotRange};

/// A part of a graph with arrays that were made before its last changes.
pub(super) struct Projecting<'a> {
    part: Part<'a>,
    projected: Option<Arc<Projected>>,
}

impl<'a> Projecting<'a> {
    /// `aged` picks the memories that the arrays have as they were before: gone, or with other
    /// edges; some are in none of them.
    pub(super) fn new(graph: &'a Graph, slots: SlotRange, aged: u64) -> Self {
        let mut dice = Dice(aged);
        let count = graph.there.len();
        let changed: Vec<bool> = (0..count)
            .map(|_| aged != 0 && dice.below(4) == 0)
            .collect();
        let mut before = graph.clone();
        for (memory, _) in changed.iter().enumerate().filter(|(_, changed)| **changed) {
            before.there[memory] = dice.below(2) == 0;
            before
                .edges
                .retain(|edge| edge.from != memory || dice.below(2) == 0);
        }
        let unknown: Vec<bool> = changed
            .iter()
            .map(|changed| *changed && dice.below(2) == 0)
            .collect();
        let arrays = project(&before, slots, &unknown);
        let mut vertices = ChangedVertices::default();
        for (memory, _) in changed.iter().enumerate().filter(|(_, changed)| **changed) {
            arrays
                .find(hash(memory))
                .into_iter()
                .for_each(|vertex| vertices.insert(vertex));
        }
        let projected = Projected {
            graph: Arc::new(arrays),
            changed: vertices,
            slots,
            decay: Decay::None,
            now_millis: 0,
            filtered: aged % 2 == 1,
        };
        Self {
            part: graph.part(slots),
            projected: Some(Arc::new(projected)),
        }
    }

    /// Without arrays.
    pub(super) fn plain(graph: &'a Graph, slots: SlotRange) -> Self {
        Self {
            part: graph.part(slots),
            projected: None,
        }
    }
}

/// The arrays of a part, without memories that are `unknown` and not the target of an edge.
fn project(graph: &Graph, slots: SlotRange, unknown: &[bool]) -> Projection {
    let own = |memory: usize| slots.contains(id(memory).hash_slot());
    let mut edges: Vec<&Edge> = graph.edges.iter().filter(|edge| own(edge.from)).collect();
    edges.retain(|edge| !unknown[edge.from]);
    edges.sort_by_key(|edge| (hash(edge.from), hash(edge.to), edge.relation.clone()));
    let mut vertices: Vec<usize> = (0..graph.there.len())
        .filter(|memory| own(*memory) && !unknown[*memory])
        .chain(edges.iter().map(|edge| edge.to))
        .collect();
    vertices.sort_by_key(|memory| hash(*memory));
    vertices.dedup();
    let mut builder = ProjectionBuilder::new(false);
    for memory in vertices {
        let is_here = own(memory) && graph.there[memory];
        builder.vertex(hash(memory), is_here).expect("in order");
    }
    builder.seal_vertices();
    for Edge {
        from,
        to,
        relation,
        weight,
    } in edges
    {
        let slot = || id(*to).hash_slot();
        builder
            .edge(hash(*from), hash(*to), slot, relation, *weight, 0)
            .expect("in order");
    }
    builder.finish()
}

impl Adjacency for Projecting<'_> {
    type Error = super::graph::DiskGone;

    fn resolve(&self, memory: MemoryHash) -> Result<bool, Self::Error> {
        self.part.resolve(memory)
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), Self::Error> {
        self.part.out_edges(memory, sink)
    }

    fn id(&self, memory: MemoryHash) -> Result<MemoryId, Self::Error> {
        self.part.id(memory)
    }

    fn pinned(&self) -> EdgeContext {
        self.part.pinned()
    }

    fn projected(&self) -> Option<&Arc<Projected>> {
        self.projected.as_ref()
    }
}

/// Pieces in an order of their own.
pub(super) struct Shuffled(pub(super) u64);

impl Crew for Shuffled {
    fn lanes(&self) -> usize {
        3
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        let mut dice = Dice(self.0);
        let mut left: Vec<usize> = (0..pieces).collect();
        while !left.is_empty() {
            piece(left.swap_remove(dice.below(left.len())));
        }
    }
}

/// Real threads that take the next piece when they have done one.
struct Threads(usize);

impl Crew for Threads {
    fn lanes(&self) -> usize {
        self.0
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        let next = Mutex::new(0..pieces);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    loop {
                        let taken = next.lock().next();
                        let Some(number) = taken else { break };
                        piece(number);
                    }
                });
            }
        });
    }
}

fn hashed(seeds: &[(usize, u64)]) -> Vec<(MemoryHash, u64)> {
    seeds
        .iter()
        .map(|(seed, amount)| (hash(*seed), *amount))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn arrays_give_the_bits_of_the_oracle(
        graph in graphs(), rules in parameters(), seeds in seeds(), aged in any::<u64>(), order in any::<u64>(),
    ) {
        let seeds = hashed(&seeds);
        let truth = spread(&graph.whole(), &rules, &seeds);
        for aged in [0, aged] {
            let arrays = Projecting::new(&graph, SlotRange::ALL, aged);
            prop_assert_eq!(&run(&arrays, &rules, &seeds, &Alone), &truth);
            prop_assert_eq!(&run(&arrays, &rules, &seeds, &Shuffled(order)), &truth);
            // The memory of an earlier query is used again.
            prop_assert_eq!(&run(&arrays, &rules, &seeds, &Alone), &truth);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn threads_give_the_bits_of_the_oracle(
        graph in graphs(), rules in parameters(), seeds in seeds(), aged in any::<u64>(), threads in 2_usize..5,
    ) {
        let rules = SpreadParameters { explain: false, ..rules };
        let seeds = hashed(&seeds);
        let arrays = Projecting::new(&graph, SlotRange::ALL, aged);
        let truth = spread(&graph.whole(), &rules, &seeds);
        prop_assert_eq!(run(&arrays, &rules, &seeds, &Threads(threads)), truth);
    }
}

/// Memories that the arrays have never heard of follow the rules like the others.
#[test]
fn unknown_memories_rest_after_they_have_sent() {
    let graph = Graph::new(2, &[(0, 0, "self", 1.0), (0, 1, "r", 1.0)]);
    let rules = SpreadParameters {
        refractory_hops: 1,
        ..SpreadParameters::default()
    };
    let mut arrays = Projecting::new(&graph, SlotRange::ALL, 0);
    let empty = project(&Graph::default(), SlotRange::ALL, &[]);
    let projected = arrays.projected.as_ref().expect("arrays");
    arrays.projected = Some(Arc::new(Projected {
        graph: Arc::new(empty),
        ..(**projected).clone()
    }));
    let seeds = hashed(&[(0, 64)]);
    let truth = spread(&graph.whole(), &rules, &seeds);
    assert_eq!(run(&arrays, &rules, &seeds, &Alone), truth);
}

/// A failing read in the middle of a hop leaves nothing behind for the next query.
#[test]
fn a_failed_query_leaves_clean_memory() {
    let graph = Graph::new(
        6,
        &[
            (0, 1, "r", 1.0),
            (0, 2, "r", 0.5),
            (1, 3, "r", 1.0),
            (2, 4, "r", 1.0),
            (4, 5, "r", 1.0),
        ],
    );
    let rules = SpreadParameters::default();
    let seeds = hashed(&[(0, 1 << 32), (4, 1 << 20)]);
    let truth = spread(&graph.whole(), &rules, &seeds);
    // Odd: every memory is asked for by the filter.
    let arrays = Projecting::new(&graph, SlotRange::ALL, 7);
    let mut failures = 0;
    for reads in 0..20 {
        arrays.part.reads_left.set(reads);
        failures += usize::from(run(&arrays, &rules, &seeds, &Alone).is_err());
        arrays.part.reads_left.set(u64::MAX);
        assert_eq!(run(&arrays, &rules, &seeds, &Alone), truth);
    }
    assert!(failures > 3, "{failures}");
}

#[test]
fn arrays_find_what_they_hold() {
    let graph = Graph::new(
        300,
        &[
            (0, 1, "r", 0.5),
            (0, 2, "s", 1.0),
            (7, 1, "r", 1.0),
            (7, 9, "r", 0.0),
        ],
    );
    let arrays = project(&graph, SlotRange::ALL, &[false; 300]);
    assert_eq!((arrays.vertices(), arrays.edges()), (300, 3));
    for memory in 0..300 {
        let vertex = arrays.find(hash(memory)).expect("it is there");
        assert_eq!(arrays.name(vertex), hash(memory));
        assert!(arrays.is_here(vertex));
    }
    assert_eq!(arrays.find(hash(301)), None);
    let vertex = |memory| arrays.find(hash(memory)).expect("it is there");
    let mut into: Vec<u32> = arrays.in_sources(vertex(1)).to_vec();
    into.sort_unstable();
    let mut expected = vec![vertex(0), vertex(7)];
    expected.sort_unstable();
    assert_eq!(into, expected);
    let out: Vec<_> = arrays.out_edges(vertex(0)).map(|edge| edge.to).collect();
    assert_eq!(out.len(), 2);
    // 16 bytes an edge, without the vertices.
    assert_eq!(arrays.bytes().edges, 3 * 16);
}
