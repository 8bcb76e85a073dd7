//! What strengthening costs in memory: a partition takes rounds of `strengthen` on many edges,
//! folds them, and the bytes of its edge records are added up.
//!
//! `cargo run --release --no-default-features --example folded_edges [edges] [rounds]`, by default
//! ten rounds on a million edges. Everything goes through the state machine, over the store in
//! memory.

use std::sync::Arc;

use engram_core::command::{Associate, Op, PartitionCommand, Write};
use engram_core::edges::EdgeRecord;
use engram_core::keys;
use engram_core::limits::OPS_PER_COMMAND_MAX;
use engram_core::partition::{FoldScan, Partition};
use engram_core::storage::{
    Batch, Durability, Family, MemoryStorage, Order, Reader as _, Storage as _, StorageError,
};
use engram_core::types::{
    ClientId, Decay, Hlc, IndexParameters, MemoryId, Metric, PartitionId, Relation, SlotRange,
    SpaceConfig, SpaceId, Unit,
};

const PARTITION: PartitionId = PartitionId(1);
/// A day in 2026, and the pace of the strengthening.
const START_MILLIS: u64 = 1_790_000_000_000;
const MILLIS_PER_COMMAND: u64 = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let edges = arguments.next().transpose()?.unwrap_or(1_000_000);
    let rounds = arguments.next().transpose()?.unwrap_or(10);
    let storage = Arc::new(MemoryStorage::new());
    let mut batch = Batch::new();
    let partition = Partition::create(
        storage.clone(),
        PARTITION,
        config(),
        SlotRange::ALL,
        &mut batch,
    );
    storage.write(batch, Durability::Buffered)?;

    let mut counter = 0;
    for _ in 0..rounds {
        let all: Vec<u64> = (0..edges).collect();
        for part in all.chunks(OPS_PER_COMMAND_MAX) {
            counter += 1;
            apply(&partition, &strengthen(counter, part)?)?;
        }
    }
    let before = measure(&storage)?;
    fold_all(&partition)?;
    let after = measure(&storage)?;
    let status = partition.status();
    println!("strengthens            {}", edges * rounds);
    println!("edges                  {}", status.edges);
    println!("edges folded           {}", status.folded_edges);
    println!("bytes per edge before  {:.1}", before.per_edge());
    println!(
        "bytes per edge folded  {:.1} (greatest {})",
        after.per_edge(),
        after.greatest
    );
    println!("(record without the target's id and without the key)");
    Ok(())
}

fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "folded".into(),
        dimension: 1,
        metric: Metric::L2,
        index: IndexParameters::new(1),
        embedding_model: String::new(),
        decay: Decay::None,
    }
}

fn apply(
    partition: &Partition,
    command: &PartitionCommand,
) -> Result<(), Box<dyn std::error::Error>> {
    let applied = partition.apply(command, b"not hashed here", Batch::new())?;
    let rejected = applied
        .outcomes
        .iter()
        .any(|(_, outcome)| matches!(outcome, engram_core::command::OpOutcome::Rejected(_)));
    if rejected {
        return Err("an operation was rejected".into());
    }
    Ok(())
}

/// One strengthening of each of these edges. Confidences differ, so that sums are no round numbers.
fn strengthen(counter: u64, edges: &[u64]) -> Result<PartitionCommand, Box<dyn std::error::Error>> {
    let relation = Relation::new("strengthened").ok_or("a relation")?;
    let op = |(index, edge): (u32, &u64)| {
        let confidence =
            Unit::from_bits(1 + (edge.wrapping_mul(0x9e37_79b9) ^ counter) % (1 << 32));
        Ok::<_, Box<dyn std::error::Error>>((
            index,
            Op::Associate(Associate {
                from: MemoryId::new(format!("memory-{}", edge / 8))?,
                to: MemoryId::new(format!("memory-{}", edge.wrapping_mul(31) % 1_000_003))?,
                relation: relation.clone(),
                weight: Unit::ONE,
                confidence: confidence.ok_or("a confidence")?,
            }),
        ))
    };
    Ok(PartitionCommand::Write(Write {
        client: ClientId([7; 16]),
        counter,
        retried: false,
        stamp: Hlc::from_millis(START_MILLIS + counter * MILLIS_PER_COMMAND),
        ops: (0..).zip(edges).map(op).collect::<Result<_, _>>()?,
    }))
}

fn fold_all(partition: &Partition) -> Result<(), Box<dyn std::error::Error>> {
    let frontier = partition.context();
    let scan = FoldScan {
        records_max: 1 << 20,
        contributions_min: 2,
    };
    let mut after = None;
    loop {
        let page = partition.view().foldable(&frontier, after.as_ref(), scan)?;
        if !page.edges.is_empty() {
            let (frontier, edges) = (frontier.clone(), page.edges);
            apply(partition, &PartitionCommand::Fold { frontier, edges })?;
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

#[derive(Default)]
struct Measured {
    edges: u64,
    bytes: u64,
    greatest: u64,
}

impl Measured {
    fn per_edge(&self) -> f64 {
        self.bytes as f64 / self.edges as f64
    }
}

fn measure(storage: &MemoryStorage) -> Result<Measured, StorageError> {
    let mut measured = Measured::default();
    let range = keys::all_edges(PARTITION);
    for entry in storage.scan(Family::Edges, &range.start, &range.end, Order::Ascending) {
        let (_, value) = entry?;
        let record = EdgeRecord::decode(&value).map_err(|error| StorageError::Corrupt {
            what: "an edge record".into(),
            reason: error.to_string(),
        })?;
        // The id and its length; names of memories are shorter than 128 bytes here.
        let beyond = (value.len() - record.to.as_str().len() - 1) as u64;
        measured.edges += 1;
        measured.bytes += beyond;
        measured.greatest = measured.greatest.max(beyond);
    }
    Ok(measured)
}
