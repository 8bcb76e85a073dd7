//! Import rate, recall@10 with its latency, and spread latency, on WordNet through a cluster.
//!
//! DIR holds `memories.jsonl`, `embeddings.f16.npy`, `edges.jsonl`, `queries.f16.npy` and
//! `queries.jsonl`, whose lines name the exact nearest of each query.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use engram_benches::latency::{Latencies, Percentiles};
use engram_benches::program;
use engram_client::{Client, SpaceClient, types as v1};
use engram_core::types::Metric;
use engram_node::cli::bulk::jsonl::Embeddings;
use engram_node::cli::bulk::load::{IN_FLIGHT_DEFAULT, Input, Loader, OnError};
use engram_node::cli::bulk::npy::NpyReader;
use engram_node::cli::bulk::progress::Progress;
use engram_node::cli::bulk::rejects::Rejects;
use engram_node::demo::wait::until;
use engram_node::seams::{Clock, Seams};
use serde::{Deserialize, Serialize};

/// Neighbours that are compared.
const NEAREST: usize = 10;
/// Longest wait for the index to link what was imported.
const LINK_LIMIT: Duration = Duration::from_secs(1_800);

/// Loads WordNet into a cluster and measures it.
#[derive(Debug, Parser)]
struct Args {
    /// Client addresses, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        env = "ENGRAM_ENDPOINT"
    )]
    endpoints: Vec<String>,
    /// Directory with the data
    #[arg(long, env = "ENGRAM_DATA")]
    data: PathBuf,
    /// Space to load into; made when it is not there
    #[arg(long, default_value = "wordnet-bench")]
    space: String,
    #[arg(long, default_value_t = 3)]
    partitions: u32,
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Measure what is in the space, load nothing
    #[arg(long)]
    skip_import: bool,
    /// Queries that are asked at once
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Search effort; 0: the default
    #[arg(long, default_value_t = 0)]
    effort: u32,
    /// Spreads that are measured
    #[arg(long, default_value_t = 200)]
    spreads: usize,
    #[arg(long, default_value_t = 3)]
    hops: u32,
    /// File to write the JSON to, besides standard output
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    nodes: u32,
    partitions: u32,
    replicas: u32,
    dimension: u32,
    concurrency: usize,
    effort: u32,
    hops: u32,
    import: Option<ImportReport>,
    recall_at_10: f64,
    recall: Percentiles,
    recall_per_second: f64,
    spread: Percentiles,
    spread_activated_mean: f64,
}

#[derive(Debug, Serialize)]
struct ImportReport {
    memories: u64,
    memories_per_second: f64,
    edges: u64,
    edges_per_second: f64,
    /// From the last acknowledgement until every replica had linked all.
    linked_after_seconds: f64,
}

/// A query and the ids of its exact nearest.
struct Query {
    vector: Vec<f32>,
    nearest: HashSet<String>,
}

#[derive(Deserialize)]
struct QueryLine {
    nearest: Vec<String>,
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
    let queries = queries(&args.data)?;
    let dimension = queries[0].vector.len() as u32;
    let import = match args.skip_import {
        true => None,
        false => Some(import(args, &client, dimension, seams).await?),
    };
    let space = client.space(&args.space);
    let queries = Arc::new(queries);
    // Once unmeasured, so that connections and caches are as they are in service.
    ask(
        &space,
        &queries[..queries.len().min(50)],
        args.effort,
        &*seams.clock,
    )
    .await?;
    let began = seams.clock.monotonic();
    let (latencies, found) = ask_all(args, &space, &queries, seams).await?;
    let took = seams.clock.monotonic() - began;
    let (spread, activated) = spread(args, &space, &queries, &*seams.clock).await?;
    let report = Report {
        nodes: client.status().await?.nodes_alive,
        partitions: args.partitions,
        replicas: args.replicas,
        dimension,
        concurrency: args.concurrency,
        effort: args.effort,
        hops: args.hops,
        import,
        recall_at_10: found as f64 / (queries.len() * NEAREST) as f64,
        recall: latencies.percentiles(),
        recall_per_second: queries.len() as f64 / took.as_secs_f64(),
        spread: spread.percentiles(),
        spread_activated_mean: activated,
    };
    let json = serde_json::to_string_pretty(&report)?;
    println!("{}\n\n{json}", table(&report));
    if let Some(path) = &args.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn queries(data: &Path) -> anyhow::Result<Vec<Query>> {
    let open = |name: &str| {
        let path = data.join(name);
        File::open(&path)
            .map(BufReader::new)
            .with_context(|| path.display().to_string())
    };
    let mut rows = NpyReader::new(open("queries.f16.npy")?)?;
    let mut queries = Vec::new();
    for line in std::io::BufRead::lines(open("queries.jsonl")?) {
        let line: QueryLine = serde_json::from_str(&line?)?;
        let vector = rows.next_row()?.context("fewer rows than queries")?;
        let nearest = line.nearest.into_iter().take(NEAREST).collect();
        queries.push(Query { vector, nearest });
    }
    ensure!(!queries.is_empty(), "there are no queries");
    Ok(queries)
}

async fn import(
    args: &Args,
    client: &Client,
    dimension: u32,
    seams: &Seams,
) -> anyhow::Result<ImportReport> {
    let request = v1::CreateSpaceRequest {
        name: args.space.clone(),
        dimension,
        metric: v1::Metric::Cosine.into(),
        partitions: args.partitions,
        replicas: args.replicas,
        if_not_exists: true,
        ..Default::default()
    };
    client.create_space(request).await?;
    let file = |name: &str| args.data.join(name);
    let input = Input::open(
        Some(&file("memories.jsonl")),
        Some(&file("embeddings.f16.npy")),
        Some(&file("edges.jsonl")),
    )?;
    let loader = Loader {
        space: client.space(&args.space),
        embeddings: Embeddings {
            dimension,
            metric: Metric::Cosine,
        },
        on_error: OnError::Stop,
        in_flight: IN_FLIGHT_DEFAULT,
        progress: Progress::Shown,
        seams: seams.clone(),
    };
    let mut rejects = Rejects::new(PathBuf::from(format!("{}-rejected.jsonl", args.space)));
    let loaded = loader.load(input, &mut rejects).await?;
    let acknowledged = seams.clock.monotonic();
    let linked = async || {
        let partitions = client.partitions(Some(&args.space)).await.ok()?;
        let done = |replica: &v1::Replica| !replica.reachable || replica.index_tail < TAIL_AT_REST;
        partitions
            .iter()
            .flat_map(|p| &p.replicas)
            .all(done)
            .then_some(())
    };
    until(
        &*seams.clock,
        LINK_LIMIT,
        "the index did not link all",
        linked,
    )
    .await?;
    let waited = seams.clock.monotonic() - acknowledged;
    Ok(ImportReport {
        memories: loaded.memories,
        memories_per_second: loaded.memories as f64 / loaded.memories_time.as_secs_f64(),
        edges: loaded.edges,
        edges_per_second: loaded.edges as f64 / loaded.edges_time.as_secs_f64(),
        linked_after_seconds: waited.as_secs_f64(),
    })
}

/// A tail shorter than a window stays unlinked, and is searched exactly.
const TAIL_AT_REST: u64 = 1_024;

/// Asks all queries, so many at once; answers with latencies and the number of exact nearest found.
async fn ask_all(
    args: &Args,
    space: &SpaceClient,
    queries: &Arc<Vec<Query>>,
    seams: &Seams,
) -> anyhow::Result<(Latencies, usize)> {
    let workers = args.concurrency.max(1);
    let (done, mut answers) = tokio::sync::mpsc::channel(workers);
    for worker in 0..workers {
        let (space, queries, done) = (space.clone(), queries.clone(), done.clone());
        let (clock, effort) = (seams.clock.clone(), args.effort);
        seams.spawn("queries", async move {
            let share = queries.len().div_ceil(workers);
            let part = queries.chunks(share).nth(worker).unwrap_or(&[]);
            drop(done.send(ask(&space, part, effort, &*clock).await).await);
        });
    }
    drop(done);
    let mut latencies = Latencies::new()?;
    let mut found = 0;
    while let Some(answer) = answers.recv().await {
        let (part, hits) = answer?;
        latencies.add(&part)?;
        found += hits;
    }
    Ok((latencies, found))
}

async fn ask(
    space: &SpaceClient,
    queries: &[Query],
    effort: u32,
    clock: &dyn Clock,
) -> anyhow::Result<(Latencies, usize)> {
    let mut latencies = Latencies::new()?;
    let mut found = 0;
    for query in queries {
        let vector = v1::Vector {
            components: query.vector.clone(),
        };
        let request = v1::RecallRequest {
            query: Some(v1::recall_request::Query::Vector(vector)),
            limit: NEAREST as u32,
            effort,
            ..Default::default()
        };
        let began = clock.monotonic();
        let answer = space.recall(request).await?;
        latencies.record(clock.monotonic() - began);
        found += answer
            .hits
            .iter()
            .filter(|hit| query.nearest.contains(&hit.id))
            .count();
    }
    Ok((latencies, found))
}

/// Spreads from the nearest memory of each query.
async fn spread(
    args: &Args,
    space: &SpaceClient,
    queries: &[Query],
    clock: &dyn Clock,
) -> anyhow::Result<(Latencies, f64)> {
    let mut latencies = Latencies::new()?;
    let mut activated = 0;
    let mut asked = 0u32;
    for query in queries.iter().take(args.spreads) {
        let mut nearest: Vec<&String> = query.nearest.iter().collect();
        nearest.sort();
        let Some(id) = nearest.first() else { continue };
        let seeds = vec![v1::Seed {
            id: (*id).clone(),
            activation: None,
        }];
        let request = v1::SpreadRequest {
            seeds,
            hops: args.hops,
            ..Default::default()
        };
        let began = clock.monotonic();
        let answer = space.spread(request).await?;
        latencies.record(clock.monotonic() - began);
        activated += answer.result.activated_total;
        asked += 1;
    }
    Ok((latencies, activated as f64 / f64::from(asked.max(1))))
}

fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{} nodes, {} partitions x {} replicas, dimension {}, {} at once",
        report.nodes, report.partitions, report.replicas, report.dimension, report.concurrency
    )];
    if let Some(import) = &report.import {
        lines.push(format!(
            "import   {} memories at {:.0}/s, {} associations at {:.0}/s, linked {:.1} s later",
            import.memories,
            import.memories_per_second,
            import.edges,
            import.edges_per_second,
            import.linked_after_seconds
        ));
    }
    let row = |what: &str, figures: &Percentiles| {
        format!(
            "{what:<8} p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, greatest {:.2} ms ({} asked)",
            figures.p50_ms, figures.p90_ms, figures.p99_ms, figures.max_ms, figures.count
        )
    };
    let (per_second, at_10) = (report.recall_per_second, report.recall_at_10);
    lines.push(format!(
        "{}; {per_second:.0}/s; recall@10 {at_10:.4}",
        row("recall", &report.recall)
    ));
    lines.push(format!(
        "{}; {} hops, {:.0} memories activated on average",
        row("spread", &report.spread),
        report.hops,
        report.spread_activated_mean
    ));
    lines.join("\n")
}
