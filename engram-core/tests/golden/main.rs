//! Data that an earlier version wrote must open. `partition-0.1.txt` holds the records of a partition
//! as version 0.1 stores them, with what readers saw of it then.
//!
//! A change that no longer opens them is a change of format: it needs another format version, and a
//! way to read this one. `ENGRAM_WRITE_GOLDEN=FILE cargo test -p engram-core --test golden` writes
//! such a file from the history below, for the next release to keep beside this one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use engram_core::command::{
    Associate, Dissociate, EdgeChange, Expected, Forget, Op, OutEdge, PartitionCommand, Remember,
    Write,
};
use engram_core::partition::{LocalChange, Partition, PartitionView, RecallQuery};
use engram_core::storage::{Batch, Durability, Family, MemoryStorage, Order, Reader as _, Storage};
use engram_core::types::{
    ActorId, ClientId, Decay, EdgeContext, EdgeKey, Embedding, Hlc, IndexParameters, MarkId,
    MemoryId, Metric, PartitionId, PropertyValue, Relation, RequestId, SlotRange, SpaceConfig,
    SpaceId, Unit,
};

const P: PartitionId = PartitionId(7);
const DIMENSION: u32 = 4;
const GOLDEN: &str = include_str!("partition-0.1.txt");

fn id(n: u32) -> MemoryId {
    MemoryId::new(format!("memory-{n}")).expect("a valid id")
}

fn relation() -> Relation {
    Relation::new("near").expect("a relation")
}

fn half() -> Unit {
    Unit::from_f64(0.5).expect("a unit")
}

fn row(n: u32) -> Vec<f32> {
    let part = |k: u32| ((n * 37 + k * 11) % 19) as f32 - 9.25;
    (0..DIMENSION).map(part).collect()
}

fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "golden".into(),
        dimension: DIMENSION,
        metric: Metric::Cosine,
        index: IndexParameters {
            m: 4,
            ef_construction: 16,
            ..IndexParameters::new(11)
        },
        embedding_model: String::new(),
        decay: Decay::Exponential {
            half_life_millis: 60_000,
        },
    }
}

fn remember(n: u32) -> Op {
    let embedding = Embedding::new(row(n), DIMENSION, Metric::Cosine).expect("a row");
    Op::Remember(Remember {
        id: id(n),
        content: format!("about {n}"),
        embedding: (n % 5 != 4).then_some(embedding),
        embedding_model: String::new(),
        labels: BTreeSet::from(["odd".to_owned()]),
        properties: BTreeMap::from([
            ("n".to_owned(), PropertyValue::Number(f64::from(n))),
            ("t".to_owned(), PropertyValue::List(vec!["x".into()])),
        ]),
        confidence: half(),
        edges: vec![OutEdge {
            to: id(n / 2),
            relation: relation(),
            weight: half(),
            confidence: Unit::ONE,
        }],
        expected: Expected::Anything,
    })
}

/// A history with a record of every kind: folded and live evidence, removals, deaths, marks, changes
/// beside the log.
fn write_history(storage: &MemoryStorage) {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let mut batch = Batch::new();
    let partition = Partition::create(shared, P, config(), SlotRange::ALL, &mut batch);
    storage.write(batch, Durability::Sync).expect("writes");
    let mut counter = 0;
    let apply = |command: PartitionCommand| {
        let bytes = format!("{command:?}").into_bytes();
        partition
            .apply_durably(&command, &bytes, Batch::new())
            .expect("applies");
    };
    let mut write = |ops: Vec<Op>| {
        counter += 1;
        PartitionCommand::Write(Write {
            client: ClientId([9; 16]),
            counter,
            retried: u64::is_multiple_of(counter, 3),
            stamp: Hlc::from_millis(1_000 + counter),
            ops: (0..).zip(ops).collect(),
        })
    };
    for n in 0..12 {
        apply(write(vec![remember(n)]));
    }
    apply(write(vec![Op::Associate(Associate {
        from: id(3),
        to: id(1),
        relation: relation(),
        weight: Unit::ONE,
        confidence: half(),
    })]));
    let edge = EdgeKey {
        from: id(3).hash(),
        to: id(1).hash(),
        relation: relation(),
    };
    let frontier = EdgeContext {
        sequence: partition.sequence(),
        ..EdgeContext::default()
    };
    apply(PartitionCommand::Fold {
        frontier,
        edges: vec![edge],
    });
    let context = partition.forget_context(id(2).hash());
    apply(write(vec![
        Op::Forget(Forget {
            id: id(2),
            expected: Expected::Anything,
            context,
            purge: false,
        }),
        Op::Dissociate(Dissociate {
            from: id(5),
            to: id(2),
            relation: relation(),
            context: partition.context(),
        }),
    ]));
    apply(PartitionCommand::Mark { mark: MarkId(3) });
    let change = |counter, change| LocalChange {
        request: RequestId {
            client: ClientId([8; 16]),
            counter,
            index: 0,
        },
        retried: false,
        stamp: Hlc::from_millis(5_000),
        from: id(4),
        to: id(1),
        relation: relation(),
        change,
    };
    let contribute = EdgeChange::Contribute {
        weight: half(),
        confidence: half(),
    };
    let deltas = partition
        .accept_local(ActorId([5; 16]), &[change(1, contribute.clone())])
        .expect("accepted");
    apply(PartitionCommand::Adopt { deltas });
    partition
        .accept_local(ActorId([5; 16]), &[change(2, contribute)])
        .expect("accepted");
}

/// What readers see, as text.
fn shown(view: &PartitionView) -> String {
    let mut text = String::new();
    let memories = view.export_memories(None, usize::MAX, usize::MAX);
    for found in memories.expect("reads").memories {
        let bits = found.embedding.iter().flatten().map(|part| part.to_bits());
        let bits: Vec<u32> = bits.collect();
        writeln!(text, "memory {:?} {bits:?}", found.memory).expect("into memory");
    }
    for edge in view.export_edges(None, usize::MAX).expect("reads").edges {
        writeln!(text, "edge {edge:?}").expect("into memory");
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |two: &[u8]| {
        let two = std::str::from_utf8(two).expect("ASCII");
        u8::from_str_radix(two, 16).expect("hexadecimal digits")
    };
    digits.map(byte).collect()
}

fn dump(storage: &MemoryStorage) -> String {
    let mut text = String::new();
    for (number, family) in Family::ALL.into_iter().enumerate() {
        let all = storage.scan(family, &[], &[0xff; 64], Order::Ascending);
        for record in all {
            let (key, value) = record.expect("reads");
            writeln!(text, "record {number} {} {}", hex(&key), hex(&value)).expect("into memory");
        }
    }
    text
}

fn load(text: &str) -> (MemoryStorage, String) {
    let storage = MemoryStorage::new();
    let (mut batch, mut rest) = (Batch::new(), String::new());
    for line in text.lines() {
        let Some(record) = line.strip_prefix("record ") else {
            rest.push_str(line);
            rest.push('\n');
            continue;
        };
        let parts: Vec<&str> = record.split(' ').collect();
        let number: usize = parts[0].parse().expect("a number");
        batch.put(Family::ALL[number], unhex(parts[1]), unhex(parts[2]));
    }
    storage.write(batch, Durability::Sync).expect("writes");
    (storage, rest)
}

#[test]
fn a_partition_of_version_0_1_opens_and_shows_the_same() {
    if let Ok(path) = std::env::var("ENGRAM_WRITE_GOLDEN") {
        let storage = MemoryStorage::new();
        write_history(&storage);
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::open(shared, P, None).expect("opens");
        let text = dump(&storage) + &shown(&partition.view());
        std::fs::write(path, text).expect("writable");
    }
    let (storage, expected) = load(GOLDEN);
    let shared: Arc<dyn Storage> = Arc::new(storage);
    let partition = Partition::open(Arc::clone(&shared), P, None).expect("opens");
    assert_eq!(shown(&partition.view()), expected);
    let (found, view) = partition.recompute_digests().expect("recomputes");
    assert_eq!(
        found,
        view.digests(),
        "the digests are those of the records"
    );
    assert!(partition.marked(MarkId(3)).expect("reads").is_some());

    // It goes on as one that was written now.
    let query = row(1);
    let query = RecallQuery {
        vector: &query,
        limit: 1,
        effort: 0,
        filter: None,
        exclude: None,
    };
    let hits = partition.recall(&query).expect("recalls").hits;
    assert_eq!(hits[0].memory.id, id(1));
    let again = PartitionCommand::Write(Write {
        client: ClientId([9; 16]),
        counter: 1,
        retried: true,
        stamp: Hlc::from_millis(9_000),
        ops: vec![(0, remember(0))],
    });
    let before = partition.status().memory_digest;
    partition
        .apply(&again, b"again", Batch::new())
        .expect("applies");
    assert_eq!(
        partition.status().memory_digest,
        before,
        "a request of then is known"
    );
}
