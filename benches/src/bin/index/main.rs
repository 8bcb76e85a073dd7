//! Engram's index as a worker of `make bench-index`: no server, no RocksDB.
//!
//! Beside what every worker does (`engram_benches::worker`) it answers
//! `{"do":"beside"}` (searches while windows are linked and while a generation is rebuilt, see
//! [`beside`]) and `{"do":"open"}` (a snapshot loaded, against links made anew, see [`open`]).
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures time and starts threads"
)]

mod beside;
mod crew;
mod open;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use engram_benches::worker::{LIMIT, Memory, Subject, Table, serve};
use engram_core::index::{Alone, Crew, IndexShape, NewVector, PartitionIndex, VectorId};
use engram_core::kernel::Kernel;
use engram_core::types::{IndexParameters, MemoryHash, Metric, Quantization, Sequence};
use serde_json::Value;

use crate::crew::Threads;

/// Levels of the graph come from this.
const LEVEL_SEED: u64 = 42;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    None,
    Int8,
}

/// Answers the driver of `make bench-index`.
#[derive(Debug, Parser)]
struct Args {
    /// Rows to index: little-endian f32 of unit length
    #[arg(long)]
    base: PathBuf,
    /// Rows to search for
    #[arg(long)]
    queries: PathBuf,
    #[arg(long)]
    dimension: usize,
    /// Form in which the graph keeps vectors
    #[arg(long, value_enum, default_value = "none")]
    quantization: Form,
    /// Kernel by name; the fastest of this CPU without it
    #[arg(long)]
    kernel: Option<String>,
}

/// An index and the next place in its log.
struct Engram {
    shape: IndexShape,
    index: PartitionIndex,
}

/// The memory of a row.
fn owner(row: usize) -> MemoryHash {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(row as u64).to_le_bytes());
    MemoryHash(bytes)
}

/// Adds a row as a command of its own.
fn insert(index: &PartitionIndex, row: usize, components: &[f32]) {
    let sequence = Sequence(row as u64 + 1);
    index.insert(NewVector {
        id: VectorId(row as u64),
        owner: owner(row),
        sequence,
        components,
    });
    if let Some(generation) = index.applied(sequence) {
        index.begin_generation(generation);
    }
}

/// Does all jobs that wait.
fn link(index: &PartitionIndex, crew: &dyn Crew) {
    while let Some(job) = index.next_job() {
        index.commit(index.run_with(&job, crew));
    }
}

fn filled(shape: IndexShape, base: &Table, threads: usize) -> PartitionIndex {
    let index = PartitionIndex::with_shape(shape);
    for (row, components) in base.rows().enumerate() {
        insert(&index, row, components);
    }
    match threads {
        1 => link(&index, &Alone),
        more => link(&index, &Threads(more)),
    }
    index
}

impl Subject for Engram {
    fn build(&mut self, base: &Table, threads: usize) -> Result<Memory> {
        // The one before goes first.
        self.index = PartitionIndex::with_shape(self.shape);
        self.index = filled(self.shape, base, threads);
        let status = self.index.status();
        Ok(Memory {
            bytes: Some(status.bytes),
            walked: Some(status.walked_bytes),
        })
    }

    fn search(&self, query: &[f32], effort: usize, found: &mut Vec<u32>) {
        let hits = self.index.search(query, LIMIT, effort, &|_| true);
        found.extend(hits.iter().map(|hit| hit.id.0 as u32));
    }

    fn other(&mut self, request: &Value, base: &Table, queries: &Table) -> Result<Value> {
        match request["do"].as_str() {
            Some("beside") => beside::measure(self.shape, base, queries),
            Some("open") => open::measure(self.shape, base, queries),
            _ => bail!("unknown request {request}"),
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let base = Table::read(&args.base, args.dimension)?;
    let queries = Table::read(&args.queries, args.dimension)?;
    let parameters = IndexParameters {
        quantization: match args.quantization {
            Form::None => Quantization::None,
            Form::Int8 => Quantization::Int8,
        },
        ..IndexParameters::new(LEVEL_SEED)
    };
    let mut shape = IndexShape::new(parameters, args.dimension as u32, Metric::Cosine);
    if let Some(name) = &args.kernel {
        let mut kernels = Kernel::all_available().into_iter();
        match kernels.find(|kernel| kernel.name() == name) {
            Some(kernel) => shape.kernel = kernel,
            None => bail!("this CPU has no kernel {name}"),
        }
    }
    let index = PartitionIndex::with_shape(shape);
    serve(Engram { shape, index }, &base, &queries)
}
