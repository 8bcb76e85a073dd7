//! Random commands for one partition, from a seeded generator.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::command::{
    Associate, Dissociate, Expected, Forget, Op, OutEdge, PartitionCommand, Remember, Write,
};
use engram_core::types::{
    ClientId, EdgeContext, Embedding, Hlc, MarkId, MemoryId, Metric, Relation, Sequence, Unit,
};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

/// Dimension of the embeddings of the simulated space.
pub const DIMENSION: u32 = 8;

/// Memories that the workload talks about: few, so that operations meet.
const IDS: u32 = 96;

fn id(rng: &mut StdRng) -> MemoryId {
    let name = format!("memory-{}", rng.random_range(0..IDS));
    MemoryId::new(name).unwrap_or_else(|error| panic!("a valid id: {error}"))
}

fn unit(rng: &mut StdRng) -> Unit {
    Unit::from_bits(rng.random_range(0..=1_u64 << 32)).unwrap_or(Unit::ONE)
}

fn relation(rng: &mut StdRng) -> Relation {
    let name = ["is", "has", "near"][rng.random_range(0..3)];
    Relation::new(name).unwrap_or_else(|| panic!("a valid relation"))
}

fn embedding(rng: &mut StdRng) -> Option<Embedding> {
    let components = (0..DIMENSION)
        .map(|_| rng.random_range(-1.0_f32..1.0))
        .collect();
    Embedding::new(components, DIMENSION, Metric::Cosine).ok()
}

fn remember(rng: &mut StdRng) -> Remember {
    let out_edge = |rng: &mut StdRng| OutEdge {
        to: id(rng),
        relation: relation(rng),
        weight: unit(rng),
        confidence: unit(rng),
    };
    let edges = rng.random_range(0..3);
    Remember {
        id: id(rng),
        content: format!("content {}", rng.next_u32()),
        embedding: embedding(rng),
        embedding_model: String::new(),
        labels: BTreeSet::from([["a", "b"][rng.random_range(0..2)].to_owned()]),
        properties: BTreeMap::new(),
        confidence: unit(rng),
        edges: (0..edges).map(|_| out_edge(rng)).collect(),
        expected: if rng.random_bool(0.1) {
            Expected::Absent
        } else {
            Expected::Anything
        },
    }
}

fn op(rng: &mut StdRng, seen: Sequence) -> Op {
    // A removal knows the log up to some point: often all of it, sometimes less.
    let lag = if rng.random_bool(0.3) {
        rng.random_range(0..8)
    } else {
        0
    };
    let sequence = Sequence(seen.0.saturating_sub(lag));
    let context = EdgeContext {
        sequence,
        ..EdgeContext::default()
    };
    match rng.random_range(0..10) {
        0..=4 => Op::Remember(remember(rng)),
        5 => Op::Forget(Forget {
            id: id(rng),
            expected: Expected::Anything,
            context,
            purge: rng.random_bool(0.5),
        }),
        6..=8 => Op::Associate(Associate {
            from: id(rng),
            to: id(rng),
            relation: relation(rng),
            weight: unit(rng),
            confidence: unit(rng),
        }),
        _ => Op::Dissociate(Dissociate {
            from: id(rng),
            to: id(rng),
            relation: relation(rng),
            context,
        }),
    }
}

/// The command that follows sequence `seen`. Request ids are sometimes used again, as by a client
/// that never heard the answer.
pub fn command(rng: &mut StdRng, seen: Sequence) -> PartitionCommand {
    if rng.random_bool(0.02) {
        return PartitionCommand::Mark {
            mark: MarkId(seen.0),
        };
    }
    if rng.random_bool(0.01) {
        return PartitionCommand::Renew;
    }
    let client = ClientId([rng.random_range(1..4); 16]);
    let retried = rng.random_bool(0.05);
    let counter = if retried {
        seen.0.saturating_sub(rng.random_range(0..4))
    } else {
        seen.0
    };
    let ops = (0..rng.random_range(1..4))
        .map(|index| (index, op(rng, seen)))
        .collect();
    let stamp = Hlc::from_millis(1_700_000_000_000 + seen.0);
    PartitionCommand::Write(Write {
        client,
        counter,
        retried,
        stamp,
        ops,
    })
}
