//! `split [--runs 20] [--seconds 30] [--operations 10000]`: splits a cluster of three real processes
//! again and again while associations change on both sides, and prints what each heal took. Ends
//! with an error when anything acknowledged is not what a replica shows, when a split had too few
//! operations, or when the replicas were equal later than promised.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use engram_core::storage::RocksOptions;
use engram_jepsen::binary;
use engram_jepsen::links::Streams;
use engram_jepsen::split::{Outcome, Round, SplitError, Splittable};
use engram_node::seams::{Seams, os};

#[derive(Parser)]
struct Arguments {
    /// Splits, one after the other, of one cluster.
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// How long each lasts, at least.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Operations during each, at least.
    #[arg(long, default_value_t = 10_000)]
    operations: usize,
    /// Operations of one client in a second, at most.
    #[arg(long, default_value_t = 40)]
    rate: u32,
    /// How soon after a heal all replicas must be equal. A machine that does much else at the same
    /// time needs more.
    #[arg(long, default_value_t = 2_000)]
    equal_within_millis: u64,
}

/// Anomalies that are printed of one run.
const ANOMALIES_SHOWN: usize = 20;

async fn run(arguments: &Arguments, seams: &Seams) -> Result<bool, SplitError> {
    let binary = match binary::find() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("SKIPPED, not passed: {error}");
            return Ok(false);
        }
    };
    let directory = tempfile::tempdir()?;
    let mut cluster = Splittable::start(&binary, directory.path(), seams).await?;
    println!(
        "| run | streams across the cut | acknowledged: 1 node / 2 nodes | fell back to local | unknown | equal after |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let within = Duration::from_millis(arguments.equal_within_millis);
    let (mut passed, mut heals) = (true, Vec::new());
    for number in 1..=arguments.runs {
        let streams = match number % 2 {
            0 => Streams::Resume,
            _ => Streams::StayDead,
        };
        let round = Round {
            split: Duration::from_secs(arguments.seconds),
            operations: arguments.operations,
            pace: Duration::from_secs(1) / arguments.rate.max(1),
            streams,
        };
        let outcome = cluster.round(round).await?;
        show(number, streams, &outcome);
        let (one, other) = outcome.acknowledged;
        passed &= outcome.anomalies.is_empty() && one + other >= arguments.operations;
        heals.push(outcome.equal_after);
    }
    let anomalies = cluster.judge_all().await?;
    println!(
        "\nAll runs read again at the end: {} anomalies.",
        anomalies.len()
    );
    heals.sort_unstable();
    let late = heals.iter().filter(|heal| **heal > within).count();
    if let (Some(greatest), Some(median)) = (heals.last(), heals.get(heals.len() / 2)) {
        println!(
            "Equal after a heal: {:.2} s at the median, {:.2} s at most; {late} of {} later than {within:?}.",
            median.as_secs_f64(),
            greatest.as_secs_f64(),
            heals.len(),
        );
    }
    Ok(passed && anomalies.is_empty() && late == 0)
}

fn show(number: u32, streams: Streams, outcome: &Outcome) {
    let (one, other) = outcome.acknowledged;
    println!(
        "| {number} | {} | {one} / {other} | {} | {} | {:.2} s |",
        match streams {
            Streams::Resume => "resume",
            Streams::StayDead => "stay dead",
        },
        outcome.fell_back,
        outcome.unknown,
        outcome.equal_after.as_secs_f64(),
    );
    for (node, anomaly) in outcome.anomalies.iter().take(ANOMALIES_SHOWN) {
        println!("node {node}: {anomaly:?}");
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seams = os::seams(RocksOptions::default());
    match run(&arguments, &seams).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
