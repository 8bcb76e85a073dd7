//! Time from `kill -9` of a primary to the first acknowledged write of each partition that it led.
//!
//! Starts three real processes, keeps one writer busy for each partition, and kills the node that
//! leads most, over and over; a killed node comes back before the next kill. Default settings.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use engram_benches::latency::{Latencies, Percentiles};
use engram_benches::program;
use engram_client::{Client, types as v1};
use engram_node::demo::ledger::Writers;
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::Seams;
use serde::Serialize;

const SPACE: &str = "failover";
const DIMENSION: u32 = 8;
/// Longest wait for anything; it is never waited for in full when all is well.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills primaries and measures how long their partitions take no writes.
#[derive(Debug, Parser)]
struct Args {
    /// The server
    #[arg(long, default_value = "target/release/engram")]
    binary: PathBuf,
    #[arg(long, default_value_t = 20)]
    kills: u32,
    #[arg(long, default_value_t = 3)]
    partitions: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    kills: u32,
    partitions: u32,
    /// One sample for each partition that a killed node led.
    resumed_after: Percentiles,
    lost: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    program::run(async |seams| measure(&args, seams).await)
}

async fn measure(args: &Args, seams: &Seams) -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("engram-failover-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let clock = seams.clock.clone();
    let mut cluster = LocalCluster::new(&args.binary, &directory, 3, Fate::Bound, clock);
    cluster.start().await?;
    let client = cluster.client()?;
    let ready = async || (client.status().await.ok()?.nodes_alive == 3).then_some(());
    until(&*seams.clock, LIMIT, "not all nodes were alive", ready).await?;
    client
        .create_space(v1::CreateSpaceRequest {
            name: SPACE.into(),
            dimension: DIMENSION,
            partitions: args.partitions,
            replicas: 3,
            if_not_exists: true,
            ..Default::default()
        })
        .await?;
    let partitions = whole(&client, seams, args.partitions).await?;
    let writers = Writers::start(&client, SPACE, DIMENSION as usize, &partitions, seams);
    let ledger = writers.ledger.clone();
    let mut latencies = Latencies::new()?;
    for kill in 1..=args.kills {
        let partitions = whole(&client, seams, args.partitions).await?;
        // Writes flow before the kill.
        let before = seams.clock.monotonic();
        let flows = async || {
            let flows = |it: &v1::Partition| ledger.acknowledged_since(it.id, before) >= 5;
            partitions.iter().all(flows).then_some(())
        };
        until(&*seams.clock, LIMIT, "writes did not flow", flows).await?;
        let victim = busiest(&partitions).context("no partition has a primary")?;
        let led: Vec<u64> = partitions
            .iter()
            .filter(|it| it.primary == victim)
            .map(|it| it.id)
            .collect();
        let index = cluster.index_of(victim).context("a node of ours")?;
        let killed = seams.clock.monotonic();
        cluster.kill(index)?;
        let resumed = async || {
            led.iter()
                .map(|id| ledger.resumed_after(*id, killed))
                .collect::<Option<Vec<_>>>()
        };
        let resumed = until(&*seams.clock, LIMIT, "writes did not resume", resumed).await?;
        resumed.iter().for_each(|time| latencies.record(*time));
        eprintln!(
            "kill {kill}: node {victim}, {} partitions, {resumed:?}",
            led.len()
        );
        cluster.restart(index).await?;
        let back = async || (client.status().await.ok()?.nodes_alive == 3).then_some(());
        until(
            &*seams.clock,
            LIMIT,
            "the killed node did not come back",
            back,
        )
        .await?;
    }
    let ledger = writers.stop().await;
    let audit = ledger.check(&client.space(SPACE)).await?;
    let report = Report {
        kills: args.kills,
        partitions: args.partitions,
        resumed_after: latencies.percentiles(),
        lost: audit.lost.len(),
    };
    println!("{}", serde_json::to_string_pretty(&report)?);
    drop(cluster);
    std::fs::remove_dir_all(&directory)?;
    ensure!(audit.holds(), "acknowledged writes were lost: {audit:?}");
    Ok(())
}

/// The partitions, once each has a primary and three replicas that are level.
async fn whole(client: &Client, seams: &Seams, count: u32) -> anyhow::Result<Vec<v1::Partition>> {
    let look = async || {
        let partitions = client.partitions(Some(SPACE)).await.ok()?;
        let whole = |it: &v1::Partition| {
            it.primary != 0 && it.replicas.len() == 3 && it.replicas.iter().all(|it| it.reachable)
        };
        (partitions.len() == count as usize && partitions.iter().all(whole)).then_some(partitions)
    };
    let whole = until(&*seams.clock, LIMIT, "the partitions were not whole", look);
    Ok(whole.await?)
}

fn busiest(partitions: &[v1::Partition]) -> Option<u64> {
    let led = |node: u64| partitions.iter().filter(|it| it.primary == node).count();
    let primaries = partitions.iter().map(|it| it.primary);
    primaries
        .filter(|node| *node != 0)
        .max_by_key(|node| led(*node))
}
