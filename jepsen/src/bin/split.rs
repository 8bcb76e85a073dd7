//! `split [--runs 20] [--seconds 30] [--operations 10000]`: splits a cluster of three real processes
//! again and again while associations change on both sides, and prints what each heal took. Ends
//! with an error when anything acknowledged is not what a replica shows.

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
    let mut passed = true;
    for number in 1..=arguments.runs {
        let streams = match number % 2 {
            0 => Streams::Resume,
            _ => Streams::StayDead,
        };
        let round = Round {
            split: Duration::from_secs(arguments.seconds),
            operations: arguments.operations,
            streams,
        };
        let outcome = cluster.round(round).await?;
        show(number, streams, &outcome);
        passed &= outcome.anomalies.is_empty();
    }
    let anomalies = cluster.judge_all().await?;
    println!(
        "\nAll runs read again at the end: {} anomalies.",
        anomalies.len()
    );
    Ok(passed && anomalies.is_empty())
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
