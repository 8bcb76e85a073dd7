//! Spreads through a cluster: latency beside that of an empty call, frames and bytes for a query,
//! and how many are answered in a second by clients that ask at once.
//!
//! DIR holds `memories.jsonl` and `edges.jsonl`; embeddings are not needed. What nodes sent is read
//! from their metrics before and after.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use engram_benches::latency::{Latencies, Percentiles};
use engram_benches::program;
use engram_client::{Client, SpaceClient, types as v1};
use engram_core::types::{Metric, SlotRange};
use engram_node::cli::bulk::colocate::{Colocated, colocate};
use engram_node::cli::bulk::jsonl::Embeddings;
use engram_node::cli::bulk::load::{IN_FLIGHT_DEFAULT, Input, Loader, OnError};
use engram_node::cli::bulk::progress::Progress;
use engram_node::cli::bulk::rejects::Rejects;
use engram_node::seams::{Clock, Seams};
use serde::{Deserialize, Serialize};

/// Queries before anything is measured: the first ones make nodes build their arrays.
const WARM_UP: usize = 400;
/// Empty calls that are measured.
const EMPTY_CALLS: usize = 2_000;

/// Measures spreads through a cluster.
#[derive(Debug, Parser)]
struct Args {
    /// Client addresses, separated by commas
    #[arg(long, value_delimiter = ',', env = "ENGRAM_ENDPOINT")]
    endpoints: Vec<String>,
    /// HTTP addresses of the same nodes, separated by commas
    #[arg(long, value_delimiter = ',')]
    http: Vec<String>,
    /// Directory with the data
    #[arg(long, env = "ENGRAM_WORDNET")]
    data: PathBuf,
    #[arg(long, default_value_t = 3)]
    partitions: u32,
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Spreads of each kind that are measured, one at a time
    #[arg(long, default_value_t = 1_000)]
    queries: usize,
    #[arg(long, default_value_t = 3)]
    hops: u32,
    /// Place memories by their associations first, as `engram import --colocate` does
    #[arg(long)]
    colocate: bool,
    /// Clients that ask at once
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// File to write the JSON to, besides standard output
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    nodes: u32,
    partitions: u32,
    replicas: u32,
    hops: u32,
    memories: u64,
    edges: u64,
    /// Of the associations, those that join two partitions.
    crossing_share: f64,
    empty_call: Percentiles,
    kinds: Vec<Kind>,
    concurrency: usize,
    spreads_per_second: f64,
    concurrent: Percentiles,
}

/// One kind of spread, one in flight.
#[derive(Debug, Serialize)]
struct Kind {
    name: &'static str,
    latency: Percentiles,
    activated_mean: f64,
    /// By all nodes, for a query.
    sent_bytes: f64,
    sent_messages: f64,
    /// Steps of a participant: in `exact`, hops and what is between them.
    steps_of_a_node: f64,
}

#[derive(Deserialize)]
struct MemoryLine {
    id: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    program::run(async |seams| measure(&args, seams).await)
}

async fn measure(args: &Args, seams: &Seams) -> anyhow::Result<()> {
    let client = Client::builder()
        .endpoints(args.endpoints.iter().cloned())
        .deadline(Duration::from_secs(30))
        .connect()
        .await?;
    let space = client.space("spread-bench");
    let directory = std::env::temp_dir().join(format!("spread-bench-{}", std::process::id()));
    let placed = colocate(
        &args.data.join("memories.jsonl"),
        &args.data.join("edges.jsonl"),
        &SlotRange::split_evenly(args.partitions),
        &directory,
    )?;
    let ended = Box::pin(measure_placed(args, seams, &client, &space, &placed)).await;
    std::fs::remove_dir_all(&directory)?;
    ended
}

async fn measure_placed(
    args: &Args,
    seams: &Seams,
    client: &Client,
    space: &SpaceClient,
    placed: &Colocated,
) -> anyhow::Result<()> {
    let (files, crossing) = match args.colocate {
        true => (
            [placed.memories.clone(), placed.edges.clone()],
            placed.crossing,
        ),
        false => {
            let file = |name: &str| args.data.join(name);
            let files = [file("memories.jsonl"), file("edges.jsonl")];
            (files, placed.crossing_by_hash)
        }
    };
    let (memories, edges) = load(args, client, space, &files, seams).await?;
    let seeds = Arc::new(seeds(&files[0], args.queries)?);
    let clock = &*seams.clock;
    let exact = |seed: &str| request(seed, args.hops);
    for seed in seeds.iter().cycle().take(WARM_UP) {
        space.spread(exact(seed)).await?;
    }
    let mut empty = Latencies::new()?;
    for _ in 0..EMPTY_CALLS {
        let began = clock.monotonic();
        client.list_spaces().await?;
        empty.record(clock.monotonic() - began);
    }
    let stale = |seed: &str| v1::SpreadRequest {
        consistency: v1::Consistency::Stale.into(),
        ..exact(seed)
    };
    let pushed = |seed: &str| v1::SpreadRequest {
        mode: v1::SpreadMode::Async.into(),
        ..exact(seed)
    };
    let kinds = vec![
        kind(
            "exact, linearizable (default)",
            args,
            space,
            &seeds,
            clock,
            &exact,
        )
        .await?,
        kind("exact, stale", args, space, &seeds, clock, &stale).await?,
        kind("async, linearizable", args, space, &seeds, clock, &pushed).await?,
    ];
    let began = clock.monotonic();
    let concurrent = at_once(args, space, &seeds, seams).await?;
    let took = clock.monotonic() - began;
    let report = Report {
        nodes: client.status().await?.nodes_alive,
        partitions: args.partitions,
        replicas: args.replicas,
        hops: args.hops,
        memories,
        edges,
        crossing_share: crossing as f64 / placed.associations.max(1) as f64,
        empty_call: empty.percentiles(),
        kinds,
        concurrency: args.concurrency,
        spreads_per_second: seeds.len() as f64 / took.as_secs_f64(),
        concurrent: concurrent.percentiles(),
    };
    let json = serde_json::to_string_pretty(&report)?;
    println!("{json}");
    if let Some(path) = &args.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn request(seed: &str, hops: u32) -> v1::SpreadRequest {
    let seed = v1::Seed {
        id: seed.to_owned(),
        activation: None,
    };
    v1::SpreadRequest {
        seeds: vec![seed],
        hops,
        ..Default::default()
    }
}

/// Memories spread evenly over the file.
fn seeds(memories: &Path, count: usize) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(memories)?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(!lines.is_empty(), "there are no memories");
    let step = (lines.len() / count).max(1);
    let chosen = lines.iter().step_by(step).take(count);
    let id = |line: &&str| Ok(serde_json::from_str::<MemoryLine>(line)?.id);
    chosen.map(id).collect()
}

async fn load(
    args: &Args,
    client: &Client,
    space: &SpaceClient,
    [memories, edges]: &[PathBuf; 2],
    seams: &Seams,
) -> anyhow::Result<(u64, u64)> {
    let dimension = 1;
    let created = v1::CreateSpaceRequest {
        name: "spread-bench".into(),
        dimension,
        metric: v1::Metric::Cosine.into(),
        partitions: args.partitions,
        replicas: args.replicas,
        if_not_exists: true,
        ..Default::default()
    };
    client.create_space(created).await?;
    let input = Input::open(Some(memories), None, Some(edges))?;
    let loader = Loader {
        space: space.clone(),
        embeddings: Embeddings {
            dimension,
            metric: Metric::Cosine,
        },
        on_error: OnError::Stop,
        in_flight: IN_FLIGHT_DEFAULT,
        progress: Progress::Hidden,
        seams: seams.clone(),
    };
    let mut rejects = Rejects::new(std::env::temp_dir().join("spread-bench-rejected.jsonl"));
    let loaded = loader.load(input, &mut rejects).await?;
    Ok((loaded.memories, loaded.edges))
}

async fn kind(
    name: &'static str,
    args: &Args,
    space: &SpaceClient,
    seeds: &[String],
    clock: &dyn Clock,
    request: &(dyn Fn(&str) -> v1::SpreadRequest + Sync),
) -> anyhow::Result<Kind> {
    for seed in seeds.iter().take(50) {
        space.spread(request(seed)).await?;
    }
    let before = sent(&args.http)?;
    let mut latencies = Latencies::new()?;
    let mut activated = 0;
    for seed in seeds {
        let began = clock.monotonic();
        let answer = space.spread(request(seed)).await?;
        latencies.record(clock.monotonic() - began);
        activated += answer.result.activated_total;
    }
    let after = sent(&args.http)?;
    let queries = seeds.len() as f64;
    let grown = |name: &str| {
        let of = |sums: &BTreeMap<String, f64>| sums.get(name).copied().unwrap_or(0.0);
        of(&after) - of(&before)
    };
    let parts = grown("engram_spread_steps_count").max(1.0);
    Ok(Kind {
        name,
        latency: latencies.percentiles(),
        activated_mean: activated as f64 / queries,
        sent_bytes: grown("engram_spread_sent_bytes_sum") / queries,
        sent_messages: grown("engram_spread_sent_messages_sum") / queries,
        steps_of_a_node: grown("engram_spread_steps_sum") / parts,
    })
}

/// Sums of the metrics of spreads, over all nodes.
fn sent(http: &[String]) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut sums = BTreeMap::new();
    for address in http {
        let mut stream = TcpStream::connect(address)?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        for line in text
            .lines()
            .filter(|line| line.starts_with("engram_spread_"))
        {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if let Ok(value) = value.parse::<f64>() {
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
    }
    Ok(sums)
}

async fn at_once(
    args: &Args,
    space: &SpaceClient,
    seeds: &Arc<Vec<String>>,
    seams: &Seams,
) -> anyhow::Result<Latencies> {
    let workers = args.concurrency.max(1);
    let (done, mut parts) = tokio::sync::mpsc::channel(workers);
    for worker in 0..workers {
        let (space, seeds, done) = (space.clone(), seeds.clone(), done.clone());
        let (clock, hops) = (seams.clock.clone(), args.hops);
        seams.spawn("spreads", async move {
            let share = seeds.len().div_ceil(workers);
            let part = seeds.chunks(share).nth(worker).unwrap_or(&[]);
            drop(
                done.send(one_by_one(&space, part, hops, &*clock).await)
                    .await,
            );
        });
    }
    drop(done);
    let mut latencies = Latencies::new()?;
    while let Some(part) = parts.recv().await {
        latencies.add(&part?)?;
    }
    Ok(latencies)
}

async fn one_by_one(
    space: &SpaceClient,
    seeds: &[String],
    hops: u32,
    clock: &dyn Clock,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    for seed in seeds {
        let began = clock.monotonic();
        space.spread(request(seed, hops)).await?;
        latencies.record(clock.monotonic() - began);
    }
    Ok(latencies)
}
