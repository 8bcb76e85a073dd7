//! Small graphs in memory, whole or as the partitions that own a range of slots.

use std::cell::Cell;

use proptest::prelude::*;

use super::super::{Adjacency, Normalization, OutEdge, SpreadParameters};
use crate::types::{EdgeContext, MemoryHash, MemoryId, Relation, Sequence, SlotRange, Unit};

#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) relation: Relation,
    pub(super) weight: Unit,
}

/// Memories are numbers; those that are not there do not exist or do not pass the filter.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) there: Vec<bool>,
    pub(super) edges: Vec<Edge>,
}

pub(super) fn relation(name: &str) -> Relation {
    Relation::new(name).expect("a valid relation")
}

pub(super) fn id(index: usize) -> MemoryId {
    MemoryId::new(format!("m{index}")).expect("a valid id")
}

pub(super) fn hash(index: usize) -> MemoryHash {
    id(index).hash()
}

impl Graph {
    /// `count` memories that all are there, and edges of weight from a table.
    pub(super) fn new(count: usize, edges: &[(usize, usize, &str, f64)]) -> Self {
        let edge = |(from, to, name, weight): &(usize, usize, &str, f64)| Edge {
            from: *from,
            to: *to,
            relation: relation(name),
            weight: Unit::from_f64(*weight).expect("in range"),
        };
        Self {
            there: vec![true; count],
            edges: edges.iter().map(edge).collect(),
        }
    }

    pub(super) fn index(&self, memory: MemoryHash) -> usize {
        let known = (0..self.there.len()).find(|index| hash(*index) == memory);
        known.expect("a memory of this graph")
    }

    pub(super) fn whole(&self) -> Part<'_> {
        self.part(SlotRange::ALL)
    }

    pub(super) fn part(&self, slots: SlotRange) -> Part<'_> {
        Part {
            graph: self,
            slots,
            reads_left: Cell::new(u64::MAX),
        }
    }
}

/// A partition's view. It asserts that it is asked for its own memories only.
#[derive(Debug)]
pub(super) struct Part<'a> {
    graph: &'a Graph,
    slots: SlotRange,
    /// Reading fails when they are used up.
    pub(super) reads_left: Cell<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskGone;

impl Part<'_> {
    fn index(&self, memory: MemoryHash) -> Result<usize, DiskGone> {
        self.reads_left
            .set(self.reads_left.get().checked_sub(1).ok_or(DiskGone)?);
        let index = self.graph.index(memory);
        assert!(
            self.slots.contains(id(index).hash_slot()),
            "asked the wrong partition"
        );
        Ok(index)
    }
}

impl Adjacency for Part<'_> {
    type Error = DiskGone;

    fn resolve(&self, memory: MemoryHash) -> Result<bool, DiskGone> {
        Ok(self.graph.there[self.index(memory)?])
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), DiskGone> {
        let index = self.index(memory)?;
        assert!(
            self.graph.there[index],
            "edges of a memory that did not resolve"
        );
        let own = self.graph.edges.iter().filter(|edge| edge.from == index);
        sink.extend(own.map(|edge| OutEdge {
            to: hash(edge.to),
            slot: id(edge.to).hash_slot(),
            relation: edge.relation.clone(),
            weight: edge.weight,
        }));
        Ok(())
    }

    fn id(&self, memory: MemoryHash) -> Result<MemoryId, DiskGone> {
        Ok(id(self.index(memory)?))
    }

    fn pinned(&self) -> EdgeContext {
        let sequence = Sequence(u64::from(self.slots.start));
        EdgeContext {
            sequence,
            ..EdgeContext::default()
        }
    }
}

const MEMORIES: usize = 20;
const RELATIONS: [&str; 3] = ["is", "has", "near"];

fn unit() -> impl Strategy<Value = Unit> {
    let bits = prop_oneof![
        Just(0),
        Just(1),
        Just(1 << 31),
        Just(1 << 32),
        0..=1_u64 << 32
    ];
    bits.prop_map(|bits| Unit::from_bits(bits).expect("in range"))
}

fn edge() -> impl Strategy<Value = Edge> {
    let name = prop::sample::select(RELATIONS.as_slice());
    (0..MEMORIES, 0..MEMORIES, name, unit()).prop_map(|(from, to, name, weight)| Edge {
        from,
        to,
        relation: relation(name),
        weight,
    })
}

/// One edge per (from, to, relation), as in a partition.
pub(super) fn graphs() -> impl Strategy<Value = Graph> {
    let there = prop::collection::vec(prop::bool::weighted(0.8), MEMORIES);
    (there, prop::collection::vec(edge(), 0..90)).prop_map(|(there, mut edges)| {
        edges.sort_by(|a, b| (a.from, a.to, &a.relation).cmp(&(b.from, b.to, &b.relation)));
        edges.dedup_by(|a, b| (a.from, a.to, &a.relation) == (b.from, b.to, &b.relation));
        Graph { there, edges }
    })
}

pub(super) fn seeds() -> impl Strategy<Value = Vec<(usize, u64)>> {
    let amount = prop_oneof![
        Just(0),
        Just(1),
        1_u64..100,
        Just(super::super::ONE),
        Just(u64::MAX),
        any::<u64>(),
    ];
    prop::collection::vec((0..MEMORIES, amount), 0..6)
}

/// All rules, each often off.
pub(super) fn parameters() -> impl Strategy<Value = SpreadParameters> {
    let one = || prop_oneof![Just(Unit::ONE), unit()];
    let factors =
        prop::collection::btree_map(prop::sample::select(RELATIONS.as_slice()), unit(), 0..3);
    let relations = prop::option::weighted(
        0.3,
        prop::collection::btree_set(prop::sample::select(RELATIONS.as_slice()), 0..3),
    );
    let threshold = prop_oneof![Just(0), Just(2), 0_u64..1 << 34];
    let normalization = prop_oneof![Just(Normalization::Fan), Just(Normalization::None)];
    let limits = (
        prop::option::weighted(0.4, 1_u32..4),
        prop_oneof![Just(1_000_usize), 1_usize..12],
    );
    (
        (0_u32..7, one(), threshold, normalization),
        (relations, factors, one(), 0_u32..4),
        (
            limits,
            any::<bool>(),
            prop_oneof![Just(usize::MAX), 0_usize..8],
        ),
    )
        .prop_map(
            |(
                (hops, decay, threshold, normalization),
                (relations, factors, revisit, refractory_hops),
                ((fan_limit, activated_max), explain, limit),
            )| {
                SpreadParameters {
                    hops,
                    decay,
                    edge_decay: None,
                    threshold,
                    normalization,
                    relations: relations.map(|names| names.into_iter().map(relation).collect()),
                    relation_factors: factors
                        .into_iter()
                        .map(|(name, factor)| (relation(name), factor))
                        .collect(),
                    revisit,
                    refractory_hops,
                    fan_limit,
                    explain,
                    activated_max,
                    limit,
                }
            },
        )
}
