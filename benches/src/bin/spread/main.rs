//! Edges per second of a local spread, beside a plain CSR loop in the same run.
//!
//! Graphs: WordNet (`--wordnet DIR`) and R-MAT. On each, the same seeds are spread three hops by
//! the engine's arrays with its rules and exact integers, and by [`csr`], floats without rules. The
//! answers are compared, then the rates. Builds without RocksDB:
//! `cargo run --release -p engram-benches --no-default-features --bin spread`.
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures time and starts threads"
)]

mod crew;
mod csr;
mod dump;
mod graphs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use engram_core::spread::{
    Activation, Adjacency, Alone, ChangedVertices, Crew, ONE, OutEdge, Projected, Projection,
    SpreadParameters, activate,
};
use engram_core::types::{Decay, EdgeContext, MemoryHash, MemoryId, SlotRange};
use serde_json::{Value, json};

use crate::crew::Threads;
use crate::csr::{Csr, Loop};
use crate::graphs::{Dice, Graph};

/// Memories in an answer.
const ANSWER: usize = 20;

/// Measures spreading on one machine, without a server.
#[derive(Debug, Parser)]
struct Args {
    /// Directory with memories.jsonl and edges.jsonl; without it WordNet is left out
    #[arg(long, env = "ENGRAM_WORDNET")]
    wordnet: Option<PathBuf>,
    /// Vertices of the R-MAT graph, as a power of two; 0 leaves it out
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Edges of the R-MAT graph
    #[arg(long, default_value_t = 10_000_000)]
    edges: usize,
    /// Seeds, each a query of its own
    #[arg(long, default_value_t = 200)]
    queries: usize,
    /// Threads of one query
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds for which each is repeated
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Directory that gets the graphs, seeds and answers, so that others can be measured on them
    #[arg(long)]
    dump: Option<PathBuf>,
}

/// A graph that is all arrays: no store behind it.
struct Arrays(Arc<Projected>);

impl Adjacency for Arrays {
    type Error = anyhow::Error;

    fn resolve(&self, memory: MemoryHash) -> Result<bool> {
        let vertex = self.0.graph.find(memory);
        Ok(vertex.is_some_and(|vertex| self.0.graph.is_here(vertex)))
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<()> {
        let graph = &self.0.graph;
        let vertex = graph.find(memory);
        let edges = vertex
            .into_iter()
            .flat_map(|vertex| graph.out_edges(vertex));
        sink.extend(edges.map(|edge| OutEdge {
            to: graph.name(edge.to),
            slot: edge.slot,
            relation: edge.relation.clone(),
            weight: edge.weight,
        }));
        Ok(())
    }

    fn id(&self, memory: MemoryHash) -> Result<MemoryId> {
        Ok(MemoryId::new(format!("{memory:?}"))?)
    }

    fn pinned(&self) -> EdgeContext {
        EdgeContext::default()
    }

    fn projected(&self) -> Option<&Arc<Projected>> {
        Some(&self.0)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut results = Vec::new();
    if let Some(directory) = &args.wordnet {
        results.push(measure("wordnet", &graphs::wordnet(directory)?, &args)?);
    }
    if args.scale > 0 {
        let graph = graphs::rmat(args.scale, args.edges, &mut Dice(7));
        results.push(measure("r-mat", &graph, &args)?);
    }
    println!("{}", serde_json::to_string_pretty(&Value::Array(results))?);
    Ok(())
}

/// How a kind of query did.
struct Run {
    edges: u64,
    seconds: f64,
    /// Of each query, in microseconds, ascending.
    micros: Vec<f64>,
}

impl Run {
    fn rate(&self) -> f64 {
        self.edges as f64 / self.seconds
    }

    fn at(&self, quantile: f64) -> f64 {
        let place = (self.micros.len() - 1) as f64 * quantile;
        self.micros[place.round() as usize]
    }

    fn json(&self) -> Value {
        json!({
            "edges_per_second": self.rate().round(),
            "queries": self.micros.len(),
            "p50_us": self.at(0.5),
            "p99_us": self.at(0.99),
        })
    }
}

/// Time on the processor of the main thread, where the system tells it; a machine that does other
/// things as well would be measured otherwise.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}

/// Repeats all queries until the time is up. A query gives the edges that it followed. The rate is
/// over processor time with one thread, over wall time with more.
fn repeat(
    seconds: f64,
    threads: usize,
    queries: &[u32],
    mut one: impl FnMut(u32) -> Result<u64>,
) -> Result<Run> {
    for query in queries.iter().take(20) {
        one(*query)?;
    }
    let mut run = Run {
        edges: 0,
        seconds: 0.0,
        micros: Vec::new(),
    };
    let processor = processor_seconds().filter(|_| threads == 1);
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        for query in queries {
            let at = Instant::now();
            run.edges += one(*query)?;
            let took = at.elapsed().as_secs_f64();
            run.seconds += took;
            run.micros.push(took * 1e6);
        }
    }
    if let Some((before, after)) = processor.zip(processor_seconds()) {
        run.seconds = after - before;
    }
    run.micros.sort_by(f64::total_cmp);
    Ok(run)
}

fn measure(name: &str, graph: &Graph, args: &Args) -> Result<Value> {
    let projection = graph.projection()?;
    let csr = Csr::new(&projection);
    let bytes = projection.bytes();
    let edges = f64::from(projection.edges());
    eprintln!(
        "{name}: {} vertices, {} edges, {:.1} B an edge and {:.1} B a vertex",
        projection.vertices(),
        projection.edges(),
        bytes.edges as f64 / edges,
        bytes.vertices as f64 / f64::from(projection.vertices()),
    );
    let (hub, degree) = csr.hub();
    let seeds = csr.seeds(args.queries, &mut Dice(11));
    let arrays = Arrays(Arc::new(Projected {
        graph: Arc::new(projection),
        changed: ChangedVertices::default(),
        slots: SlotRange::ALL,
        decay: Decay::None,
        now_millis: 0,
        filtered: false,
    }));
    let threads = Threads(args.threads);
    let crew: &dyn Crew = if args.threads > 1 { &threads } else { &Alone };
    compare(&arrays, &csr, &seeds, crew)?;
    if let Some(directory) = &args.dump {
        dump::write(directory, name, &csr, &seeds)?;
    }
    let mut plain = Loop::new(&csr);
    let reference = repeat(args.seconds, 1, &seeds, |seed| {
        Ok(plain.spread(seed, 3, ANSWER).0)
    })?;
    let engine = repeat(args.seconds, args.threads, &seeds, |seed| {
        followed(&arrays, seed, crew)
    })?;
    let at_hub = repeat(args.seconds / 4.0, args.threads, &[hub], |seed| {
        followed(&arrays, seed, crew)
    })?;
    let plain_at_hub = repeat(args.seconds / 4.0, 1, &[hub], |seed| {
        Ok(plain.spread(seed, 3, ANSWER).0)
    })?;
    let ratio = engine.rate() / reference.rate();
    eprintln!(
        "{name}: {:.1} M edges/s, the plain loop {:.1} M: {ratio:.2}x; p50 {:.1} us beside {:.1} us; hub of {degree}: {:.0} us beside {:.0} us",
        engine.rate() / 1e6,
        reference.rate() / 1e6,
        engine.at(0.5),
        reference.at(0.5),
        at_hub.at(0.5),
        plain_at_hub.at(0.5),
    );
    Ok(json!({
        "graph": name,
        "vertices": arrays.0.graph.vertices(),
        "edges": arrays.0.graph.edges(),
        "bytes_per_edge": bytes.edges as f64 / edges,
        "bytes_per_vertex": bytes.vertices as f64 / f64::from(arrays.0.graph.vertices()),
        "threads": args.threads,
        "engine": engine.json(),
        "plain_csr_loop": reference.json(),
        "ratio": ratio,
        "hub_out_degree": degree,
        "engine_at_hub": at_hub.json(),
        "plain_csr_loop_at_hub": plain_at_hub.json(),
    }))
}

fn spread(arrays: &Arrays, seed: u32, limit: usize, crew: &dyn Crew) -> Result<Activation> {
    let parameters = SpreadParameters {
        limit,
        ..SpreadParameters::default()
    };
    let seeds = [(arrays.0.graph.name(seed), ONE)];
    Ok(activate(arrays, &parameters, &seeds, crew)?)
}

fn followed(arrays: &Arrays, seed: u32, crew: &dyn Crew) -> Result<u64> {
    let activation = spread(arrays, seed, ANSWER, crew)?;
    Ok(activation.hops.iter().map(|hop| hop.edges_followed).sum())
}

/// Both give the same answer, but for what floats and rounding differ by: each of the many shares that
/// reach a hub is rounded down by up to 2^-32.
fn compare(arrays: &Arrays, csr: &Csr, seeds: &[u32], crew: &dyn Crew) -> Result<()> {
    let graph: &Projection = &arrays.0.graph;
    let mut plain = Loop::new(csr);
    for seed in seeds {
        let activation = spread(arrays, *seed, ANSWER, crew)?;
        let (_, best) = plain.spread(*seed, 3, ANSWER);
        ensure!(
            activation.activated.len() == best.len(),
            "answers of different lengths"
        );
        for ((memory, total), (vertex, plain)) in activation.activated.iter().zip(&best) {
            let exact = *total as f64 / ONE as f64;
            let plain = f64::from(*plain);
            ensure!(
                (exact - plain).abs() < 5e-3 * exact + 1e-5,
                "{exact} at {memory:?}, {plain} at {:?}",
                graph.name(*vertex)
            );
        }
    }
    Ok(())
}
