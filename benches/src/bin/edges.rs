//! `edges [--edges N] [--strengthens N]`: what an association takes in the store after many
//! observations of it were folded.
//!
//! One partition over the store in memory, by the commands that a primary proposes: the
//! observations of all edges in turn, and between them ways through the edges that fold what the
//! frontier covers. Printed: bytes of the records by their parts, and what folding took.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use engram_core::command::{Associate, Op, PartitionCommand, Write};
use engram_core::edges::EdgeRecord;
use engram_core::keys;
use engram_core::limits::OPS_PER_COMMAND_MAX;
use engram_core::partition::{FoldScan, Partition};
use engram_core::storage::{Batch, Durability, Family, MemoryStorage, Order, Storage};
use engram_core::types::{
    ClientId, Decay, EdgeContext, EdgeKey, Hlc, IndexParameters, MemoryId, Metric, PartitionId,
    Relation, SlotRange, SpaceConfig, SpaceId, Unit,
};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1_000_000)]
    edges: u64,
    /// Observations of all edges together.
    #[arg(long, default_value_t = 10_000_000)]
    strengthens: u64,
}

const PARTITION: PartitionId = PartitionId(1);
/// Edges out of one memory.
const FAN_OUT: u64 = 10;
/// As the primary does it.
const RECORDS_PER_LOOK: usize = 4_096;
const CONTRIBUTIONS_MIN: usize = 4;
/// An edge may not take more, beyond its key.
const BYTES_PROMISED: f64 = 40.0;

/// The partition, and what stands for its log.
struct Log {
    partition: Arc<Partition>,
    storage: Arc<MemoryStorage>,
    commands: u64,
}

fn memory(number: u64) -> Result<MemoryId> {
    Ok(MemoryId::new(format!("memory-{number}"))?)
}

impl Log {
    fn new() -> Result<Self> {
        let storage = Arc::new(MemoryStorage::new());
        let mut batch = Batch::new();
        let config = SpaceConfig {
            space: SpaceId(1),
            name: "edges".into(),
            dimension: 1,
            metric: Metric::L2,
            index: IndexParameters::new(1),
            embedding_model: String::new(),
            decay: Decay::None,
        };
        let shared: Arc<dyn Storage> = storage.clone();
        let partition = Partition::create(shared, PARTITION, config, SlotRange::ALL, &mut batch);
        storage.write(batch, Durability::Buffered)?;
        Ok(Self {
            partition,
            storage,
            commands: 0,
        })
    }

    fn apply(&mut self, command: &PartitionCommand) -> Result<()> {
        self.commands += 1;
        let bytes = self.commands.to_le_bytes();
        self.partition.apply(command, &bytes, Batch::new())?;
        Ok(())
    }

    /// One observation of each of these edges.
    fn strengthen(&mut self, edges: std::ops::Range<u64>, now_millis: u64) -> Result<()> {
        let relation = Relation::new("near").context("a relation")?;
        let op = |edge: u64| -> Result<Op> {
            Ok(Op::Associate(Associate {
                from: memory(edge / FAN_OUT)?,
                to: memory(edge)?,
                relation: relation.clone(),
                weight: Unit::ONE,
                confidence: Unit::from_f64(0.1)?,
            }))
        };
        let ops: Vec<Op> = edges.map(op).collect::<Result<_>>()?;
        let write = Write {
            client: ClientId([1; 16]),
            counter: self.commands + 1,
            retried: false,
            stamp: Hlc::from_millis(now_millis),
            ops: (0..).zip(ops).collect(),
        };
        self.apply(&PartitionCommand::Write(write))
    }

    /// A way through all edges; answers with how many were folded.
    fn fold(&mut self, contributions_min: usize) -> Result<u64> {
        let frontier: EdgeContext = self.partition.view().log_context().clone();
        let scan = FoldScan {
            records_max: RECORDS_PER_LOOK,
            contributions_min,
        };
        let (mut after, mut folded): (Option<EdgeKey>, u64) = (None, 0);
        loop {
            let page = self
                .partition
                .view()
                .foldable(&frontier, after.as_ref(), scan)?;
            if !page.edges.is_empty() {
                folded += page.edges.len() as u64;
                let (frontier, edges) = (frontier.clone(), page.edges);
                self.apply(&PartitionCommand::Fold { frontier, edges })?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(folded),
            }
        }
    }

    fn sizes(&self) -> Result<Sizes> {
        let range = keys::all_edges(PARTITION);
        let view = self.storage.view();
        let mut sizes = Sizes::default();
        for entry in view.scan(Family::Edges, &range.start, &range.end, Order::Ascending) {
            let (key, value) = entry?;
            let record = EdgeRecord::decode(&value)?;
            sizes.edges += 1;
            sizes.keys += key.len() as u64;
            sizes.targets += record.to.as_str().len() as u64 + 1;
            sizes.values += value.len() as u64;
            sizes.greatest = sizes.greatest.max(value.len() as u64);
            sizes.unfolded += record.state.contributions().count() as u64;
            sizes.observations += record.state.value().contributions;
        }
        Ok(sizes)
    }
}

#[derive(Debug, Default)]
struct Sizes {
    edges: u64,
    keys: u64,
    values: u64,
    /// Of the values: the target's id, which names the edge as the key does.
    targets: u64,
    greatest: u64,
    unfolded: u64,
    observations: u64,
}

impl Sizes {
    fn each(&self, bytes: u64) -> f64 {
        bytes as f64 / self.edges.max(1) as f64
    }

    fn show(&self, what: &str) {
        println!(
            "| {what} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
            self.edges,
            self.each(self.keys),
            self.each(self.targets),
            self.each(self.values - self.targets),
            self.each(self.values),
            self.greatest,
        );
    }
}

#[allow(clippy::disallowed_methods, reason = "this program is no server")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut log = Log::new()?;
    let passes = arguments.strengthens / arguments.edges.max(1);
    let began = Instant::now();
    let mut now_millis = 1_790_000_000_000;
    let mut in_folding = std::time::Duration::ZERO;
    let mut folded = 0;
    println!(
        "| after | edges | key | target's id | state | record beyond the key | greatest record |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for pass in 0..passes {
        for start in (0..arguments.edges).step_by(OPS_PER_COMMAND_MAX) {
            let end = arguments.edges.min(start + OPS_PER_COMMAND_MAX as u64);
            now_millis += 1;
            log.strengthen(start..end, now_millis)?;
        }
        if pass == 0 {
            log.sizes()?.show("one observation each");
        }
        let started = Instant::now();
        folded += log.fold(CONTRIBUTIONS_MIN)?;
        in_folding += started.elapsed();
    }
    let left = log.sizes()?;
    left.show("all observations, folded as a primary does");
    let started = Instant::now();
    folded += log.fold(1)?;
    in_folding += started.elapsed();
    let all = log.sizes()?;
    all.show("all observations, all folded");
    println!(
        "\n{} observations in {:.0} s; {folded} edges folded in {:.1} s of it; the primary left {:.2} \
         observations of an edge unfolded.",
        passes * arguments.edges,
        began.elapsed().as_secs_f64(),
        in_folding.as_secs_f64(),
        left.each(left.unfolded),
    );
    ensure!(all.unfolded == 0, "{} were not folded", all.unfolded);
    ensure!(
        all.observations == passes * arguments.edges,
        "{} observations count",
        all.observations
    );
    let state = all.each(all.values - all.targets);
    ensure!(
        state <= BYTES_PROMISED,
        "an edge takes {state:.1} bytes beyond its key and its target's id, {BYTES_PROMISED} are promised"
    );
    Ok(())
}
