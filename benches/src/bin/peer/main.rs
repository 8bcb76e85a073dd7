//! Replicated writes beside etcd's: three nodes of each on this machine, in turns, in one run.
//!
//! Both clusters store on the same file system, acknowledge after an fsync on a majority, and are
//! asked by the same number of clients, each of which waits for its answer before it writes again.
//! Only one of the two is under load at any time. etcd is spoken to over its own gRPC API; its binary
//! comes from the distribution (Debian: etcd-server).

mod etcd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use engram_benches::latency::{Latencies, Percentiles};
use engram_benches::program;
use engram_client::{Client, types as v1};
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::{Clock, Seams};
use serde::Serialize;

const SPACE: &str = "writes";
const LIMIT: Duration = Duration::from_secs(60);

/// Writes to Engram and to etcd, in turns.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// The server
    #[arg(long, default_value = "target/release/engram")]
    binary: PathBuf,
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of load for each of both in a round
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    #[arg(long, default_value_t = 3)]
    partitions: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    clients: u64,
    bytes: usize,
    partitions: u32,
    rounds: Vec<Round>,
    /// Of all rounds.
    engram: Percentiles,
    etcd: Percentiles,
    /// Writes per second, Engram over etcd, round by round.
    ratios: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Round {
    engram_per_second: f64,
    engram_p99_ms: f64,
    etcd_per_second: f64,
    etcd_p99_ms: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    program::run(async |seams| measure(&args, seams).await)
}

async fn measure(args: &Args, seams: &Seams) -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("engram-peer-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let measured = compare(args, seams, &directory).await;
    std::fs::remove_dir_all(&directory)?;
    println!("{}", serde_json::to_string_pretty(&measured?)?);
    Ok(())
}

async fn compare(args: &Args, seams: &Seams, directory: &Path) -> anyhow::Result<Report> {
    let clock = seams.clock.clone();
    let mut cluster = LocalCluster::new(&args.binary, directory, 3, Fate::Bound, clock);
    cluster.start().await?;
    let engram = cluster.client()?;
    create(&engram, seams, args.partitions).await?;
    let etcd = etcd::Cluster::start(&args.etcd, directory, seams).await?;
    let (mut all_engram, mut all_etcd) = (Latencies::new()?, Latencies::new()?);
    let (mut rounds, mut ratios) = (Vec::new(), Vec::new());
    for number in 0..args.rounds {
        // Who begins alternates.
        let (ours, theirs) = if number.is_multiple_of(2) {
            let ours = load_engram(&engram, args, seams, number).await?;
            (ours, etcd.load(args, seams, number).await?)
        } else {
            let theirs = etcd.load(args, seams, number).await?;
            (load_engram(&engram, args, seams, number).await?, theirs)
        };
        all_engram.add(&ours.latencies)?;
        all_etcd.add(&theirs.latencies)?;
        let round = Round {
            engram_per_second: ours.per_second(),
            engram_p99_ms: ours.latencies.percentiles().p99_ms,
            etcd_per_second: theirs.per_second(),
            etcd_p99_ms: theirs.latencies.percentiles().p99_ms,
        };
        eprintln!("{round:?}");
        ratios.push(round.engram_per_second / round.etcd_per_second);
        rounds.push(round);
    }
    Ok(Report {
        clients: args.clients,
        bytes: args.bytes,
        partitions: args.partitions,
        rounds,
        engram: all_engram.percentiles(),
        etcd: all_etcd.percentiles(),
        ratios,
    })
}

async fn create(client: &Client, seams: &Seams, partitions: u32) -> anyhow::Result<()> {
    let ready = async || (client.status().await.ok()?.nodes_alive == 3).then_some(());
    until(&*seams.clock, LIMIT, "not all nodes were alive", ready).await?;
    client
        .create_space(v1::CreateSpaceRequest {
            name: SPACE.into(),
            dimension: 1,
            partitions,
            replicas: 3,
            ..Default::default()
        })
        .await?;
    let look = async || {
        let all = client.partitions(Some(SPACE)).await.ok()?;
        all.iter().all(|it| it.primary != 0).then_some(())
    };
    until(
        &*seams.clock,
        LIMIT,
        "not every partition had a primary",
        look,
    )
    .await?;
    Ok(())
}

/// What one round of load has brought.
pub(crate) struct Load {
    latencies: Latencies,
    time: Duration,
}

impl Load {
    fn per_second(&self) -> f64 {
        self.latencies.percentiles().count as f64 / self.time.as_secs_f64()
    }
}

/// Clients that write until the time is over. `write` is given a client and a number that no other
/// write has.
pub(crate) async fn load<F>(
    args: &Args,
    seams: &Seams,
    write: impl Fn(u64, u64) -> F + Clone + Send + 'static,
) -> anyhow::Result<Load>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (stop, numbers) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (done, mut results) = tokio::sync::mpsc::channel(args.clients as usize);
    let began = seams.clock.monotonic();
    for client in 0..args.clients {
        let (write, done) = (write.clone(), done.clone());
        let (stop, numbers, clock) = (stop.clone(), numbers.clone(), seams.clock.clone());
        seams.spawn("load", async move {
            let result = one_client(client, write, &stop, &numbers, &*clock).await;
            drop(done.send(result).await);
        });
    }
    drop(done);
    seams.clock.sleep(Duration::from_secs(args.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Latencies::new()?;
    while let Some(result) = results.recv().await {
        latencies.add(&result?)?;
    }
    let time = seams.clock.monotonic() - began;
    ensure!(latencies.percentiles().count > 0, "nothing was written");
    Ok(Load { latencies, time })
}

async fn one_client<F>(
    client: u64,
    write: impl Fn(u64, u64) -> F + Send,
    stop: &AtomicBool,
    numbers: &AtomicU64,
    clock: &dyn Clock,
) -> anyhow::Result<Latencies>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut latencies = Latencies::new()?;
    while !stop.load(Ordering::Relaxed) {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let began = clock.monotonic();
        write(client, number).await?;
        latencies.record(clock.monotonic() - began);
    }
    Ok(latencies)
}

async fn load_engram(
    client: &Client,
    args: &Args,
    seams: &Seams,
    round: u32,
) -> anyhow::Result<Load> {
    let (space, value) = (client.space(SPACE), "v".repeat(args.bytes));
    load(args, seams, move |_, number| {
        let memory = v1::Memory {
            id: format!("k{round}-{number}"),
            content: value.clone(),
            ..Default::default()
        };
        let space = space.clone();
        async move {
            let written = space.remember(memory).await;
            written.map(drop).context("a write to Engram")
        }
    })
    .await
}
