//! The command line.

mod determinism;
mod mutants;
mod pool;
mod replay;
mod seeds;
mod summary;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engram_simulation::plan::WorkloadKind;
use engram_simulation::shrink::Reduction;
use tracing_subscriber::EnvFilter;

/// How a failing seed is run again; what follows is a [`Reduction`].
const REPLAY: &str =
    "cargo run --profile simulation -p engram-simulation --features planted -- replay";

#[derive(Parser)]
#[command(
    name = "simulate",
    about = "Deterministic simulation of whole Engram clusters"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds and sum up; exit code 1 when one fails
    Run(Run),
    /// Run one seed, or a part of its plan, and tell what happened
    Replay(Replay),
    /// Run each seed twice; exit code 1 when the two differ in anything
    Determinism(Determinism),
    /// Plant bugs, one at a time; exit code 1 unless every one is found
    Mutants(Mutants),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args)]
struct Run {
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Seeds that run at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Runs to make a failing seed smaller; 0 leaves it as it is
    #[arg(long, default_value_t = 40)]
    shrink: usize,
    /// Stop after so many failing seeds
    #[arg(long, default_value_t = 5)]
    failures: usize,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Args)]
struct Replay {
    #[arg(long)]
    seed: u64,
    /// Numbers of the faults to keep, from 0
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<usize>>,
    /// Keep no fault
    #[arg(long, conflicts_with = "faults")]
    no_faults: bool,
    #[arg(long)]
    nodes: Option<usize>,
    /// Workloads to keep
    #[arg(long, value_delimiter = ',', value_parser = parse_workload)]
    workloads: Option<Vec<WorkloadKind>>,
    /// Clients of each workload
    #[arg(long)]
    clients: Option<u32>,
    /// Operations of each client
    #[arg(long)]
    operations: Option<u32>,
    /// Length of the safety phase
    #[arg(long)]
    seconds: Option<u64>,
    /// Print the plan too
    #[arg(long)]
    plan: bool,
    /// Write every event into this file
    #[arg(long, value_name = "FILE")]
    trace: Option<std::path::PathBuf>,
    /// Write what clients asked for and were told into this file
    #[arg(long, value_name = "FILE")]
    history: Option<std::path::PathBuf>,
    /// Plant this bug
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// Runs to make it smaller, when it fails
    #[arg(long, default_value_t = 0)]
    shrink: usize,
}

#[derive(Args)]
struct Determinism {
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first: u64,
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

#[derive(Args)]
struct Mutants {
    /// Only this bug; may be given several times
    #[arg(long)]
    name: Vec<String>,
    /// Seeds after which a bug counts as not found
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only seeds whose plan has this workload: sooner, for a bug that the others do not meet
    #[arg(long, value_parser = parse_workload)]
    workload: Option<WorkloadKind>,
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Time after which a bug counts as not found, in seconds
    #[arg(long, default_value_t = 1_800)]
    time_limit: u64,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

fn parse_workload(name: &str) -> Result<WorkloadKind, String> {
    let known = WorkloadKind::ALL.iter().find(|kind| kind.name() == name);
    known.copied().ok_or_else(|| {
        let names: Vec<&str> = WorkloadKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

impl Replay {
    fn reduction(&self) -> Reduction {
        Reduction {
            seed: self.seed,
            faults: match self.no_faults {
                true => Some(Vec::new()),
                false => self.faults.clone(),
            },
            nodes: self.nodes,
            workloads: self.workloads.clone(),
            clients: self.clients,
            operations: self.operations,
            seconds: self.seconds,
        }
    }
}

/// The nodes' own words, where `RUST_LOG` asks for them, at simulated times.
fn install_log() {
    if std::env::var_os("RUST_LOG").is_some() {
        let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        builder.with_ansi(false).with_writer(std::io::stderr).init();
    }
}

pub fn main() -> ExitCode {
    install_log();
    let ok = match Cli::parse().command {
        Command::Run(arguments) => seeds::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Determinism(arguments) => determinism::run(&arguments),
        Command::Mutants(arguments) => {
            let limit = Duration::from_secs(arguments.time_limit);
            mutants::run(&arguments, limit)
        }
    };
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reduction_is_a_command_line_and_back() {
        let reduction = Reduction {
            faults: Some(vec![3, 9]),
            nodes: Some(3),
            workloads: Some(vec![WorkloadKind::Set, WorkloadKind::Edges]),
            clients: Some(1),
            operations: Some(120),
            seconds: Some(30),
            ..Reduction::whole(77)
        };
        let none_left = Reduction {
            faults: Some(Vec::new()),
            ..Reduction::whole(5)
        };
        for reduction in [reduction, none_left, Reduction::whole(1)] {
            let line = format!("simulate replay {reduction}");
            let cli = Cli::try_parse_from(line.split_whitespace()).expect("its own words");
            let Command::Replay(replay) = cli.command else {
                panic!("a replay");
            };
            assert_eq!(replay.reduction(), reduction);
        }
    }
}
