//! What the integration tests share: a seeded source of numbers, and commands made from it.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::command::{
    Associate, Expected, Forget, Op, OutEdge, PartitionCommand, Remember, Write,
};
use engram_core::types::{
    ClientId, Decay, EdgeContext, Embedding, Hlc, IndexParameters, MemoryId, Metric, PropertyValue,
    Relation, SpaceConfig, SpaceId, Unit,
};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the same numbers everywhere for ever.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    pub fn unit(&mut self) -> Unit {
        Unit::from_bits(self.draw() >> 32).expect("below 2^32")
    }

    pub fn row(&mut self, dimension: u32) -> Vec<f32> {
        (0..dimension)
            .map(|_| (self.draw() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}

pub fn config(dimension: u32, decay: Decay) -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "test".into(),
        dimension,
        metric: Metric::Cosine,
        index: IndexParameters {
            m: 8,
            ef_construction: 40,
            ..IndexParameters::new(5)
        },
        embedding_model: String::new(),
        decay,
    }
}

pub fn id(n: usize) -> MemoryId {
    MemoryId::new(format!("memory-{n}")).expect("a valid id")
}

pub fn relation(n: usize) -> Relation {
    Relation::new(["is", "has", "near"][n % 3]).expect("a valid relation")
}

pub fn remember(n: usize, embedding: Option<Embedding>, edges: Vec<OutEdge>) -> Op {
    let kind = PropertyValue::Number((n % 5) as f64);
    Op::Remember(Remember {
        id: id(n),
        content: String::new(),
        embedding,
        embedding_model: String::new(),
        labels: BTreeSet::from([["odd", "even"][(n + 1) % 2].to_owned()]),
        properties: BTreeMap::from([("kind".to_owned(), kind)]),
        confidence: Unit::ONE,
        edges,
        expected: Expected::Anything,
    })
}

pub fn forget(n: usize) -> Op {
    let context = EdgeContext::default();
    Op::Forget(Forget {
        id: id(n),
        expected: Expected::Anything,
        context,
        purge: false,
    })
}

pub fn associate(from: usize, edge: OutEdge) -> Op {
    let OutEdge {
        to,
        relation,
        weight,
        confidence,
    } = edge;
    Op::Associate(Associate {
        from: id(from),
        to,
        relation,
        weight,
        confidence,
    })
}

pub fn write(counter: u64, ops: Vec<Op>) -> PartitionCommand {
    PartitionCommand::Write(Write {
        client: ClientId([1; 16]),
        counter,
        retried: false,
        stamp: Hlc::from_millis(1_000_000 + counter * 1_000),
        ops: (0..).zip(ops).collect(),
    })
}
