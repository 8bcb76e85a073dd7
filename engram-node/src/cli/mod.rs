//! The command line: one binary, `engram`.
//!
//! Commands talk to a cluster through the client library alone, so whatever they can do a program
//! can do. What must hold: answers go to standard output, everything else to standard error; exit
//! codes are stable ([`failure::Exit`]); an error says what to try next.

pub mod backup;
pub mod bulk;
pub mod cert;
pub mod cluster;
pub mod context;
pub mod edge;
pub mod export;
pub mod failure;
pub mod import;
pub mod memory;
pub mod output;
pub mod recall;
pub mod space;
pub mod spread;
pub mod start;
pub mod token;
pub mod vector;
pub mod walk;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use engram_core::storage::RocksOptions;

use self::context::{ClientArgs, WithClient};
use self::failure::{EXIT_CODES, Exit, Failure};
use self::output::Output;
use crate::config::StartArgs;
use crate::demo::{self, DemoArgs};
use crate::seams::{Seams, os};

/// A distributed, replicated memory graph.
#[derive(Debug, Parser)]
#[command(name = "engram", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a local cluster of real processes and be shown around
    Demo(DemoArgs),
    /// Run a node
    Start(StartArgs),
    /// Create, list, describe, alter and drop spaces
    Space(WithClient<space::SpaceArgs>),
    /// Load memories and associations into a space
    ///
    /// MEMORIES has one JSON object per line: {"id", "content", "embedding": [..], "labels": [..],
    /// "properties": {..}, "confidence"}; EDGES: {"from", "to", "relation", "weight",
    /// "confidence"}. Row i of EMBEDDINGS (float16 or float32 .npy) belongs to line i of MEMORIES.
    Import(WithClient<import::ImportArgs>),
    /// Write a space to a directory that `engram import` reads back
    Export(WithClient<export::ExportArgs>),
    /// Back up spaces to a directory; list, check and remove backups
    Backup(WithClient<backup::BackupArgs>),
    /// Create spaces from a backup
    Restore(WithClient<backup::RestoreArgs>),
    /// Store a memory
    Remember(WithClient<memory::RememberArgs>),
    /// Show memories by id
    Get(WithClient<memory::GetArgs>),
    /// Remove a memory and the associations that leave it
    Forget(WithClient<memory::ForgetArgs>),
    /// Associate one memory with another
    Associate(WithClient<edge::AssociateArgs>),
    /// Add evidence of weight 1 to an association
    Strengthen(WithClient<edge::StrengthenArgs>),
    /// Remove an association
    Dissociate(WithClient<edge::EdgeArgs>),
    /// Show the associations of a memory, or the memories within some hops
    Neighbors(WithClient<edge::NeighborsArgs>),
    /// Find the shortest or the strongest path between two memories
    Path(WithClient<walk::PathArgs>),
    /// Show the memories that are connected with one
    Component(WithClient<walk::ComponentArgs>),
    /// Find the memories nearest to a vector or to another memory
    Recall(WithClient<recall::RecallArgs>),
    /// Spread activation along associations
    Spread(WithClient<spread::SpreadArgs>),
    /// Look at nodes and partitions, and steer them
    Cluster(WithClient<cluster::ClusterArgs>),
    /// Compare the digests of every replica of a space
    Verify(WithClient<cluster::VerifyArgs>),
    /// Make certificates for a cluster with TLS
    Cert(cert::CertArgs),
    /// Make bearer tokens for clients
    Token(token::TokenArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// What the exit codes mean
    #[command(long_about = EXIT_CODES)]
    ExitCodes,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no async runtime: {error}");
            return ExitCode::from(Exit::Unavailable as u8);
        }
    };
    let output = cli.command.output();
    let ended = runtime.block_on(async {
        let seams = os::seams(RocksOptions::default());
        Box::pin(run(cli.command, &seams)).await
    });
    // Tasks that still hold a connection have nothing left to do.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            match output {
                Output::Json => eprintln!("{}", failure.json()),
                Output::Table | Output::Dot => eprintln!("{failure}"),
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

async fn run(command: Command, seams: &Seams) -> Result<Exit, Failure> {
    match command {
        Command::Demo(args) => demo::run(&args, seams).await,
        Command::Start(args) => start::run(args, seams).await,
        Command::Space(with) => space::run(&with.args, &with.client, seams).await,
        Command::Import(with) => import::run(&with.args, &with.client, seams).await,
        Command::Export(with) => export::run(&with.args, &with.client, seams).await,
        Command::Backup(with) => backup::run(&with.args, &with.client, seams).await,
        Command::Restore(with) => backup::restore(&with.args, &with.client, seams).await,
        Command::Remember(with) => memory::remember(&with.args, &with.client).await,
        Command::Get(with) => memory::get(&with.args, &with.client).await,
        Command::Forget(with) => memory::forget(&with.args, &with.client).await,
        Command::Associate(with) => edge::associate(&with.args, &with.client).await,
        Command::Strengthen(with) => edge::strengthen(&with.args, &with.client).await,
        Command::Dissociate(with) => edge::dissociate(&with.args, &with.client).await,
        Command::Neighbors(with) => edge::neighbors(&with.args, &with.client).await,
        Command::Path(with) => walk::path(&with.args, &with.client).await,
        Command::Component(with) => walk::component(&with.args, &with.client).await,
        Command::Recall(with) => recall::run(&with.args, &with.client).await,
        Command::Spread(with) => spread::run(&with.args, &with.client).await,
        Command::Cluster(with) => cluster::run(&with.args, &with.client, seams).await,
        Command::Verify(with) => cluster::verify(&with.args, &with.client).await,
        Command::Cert(args) => local(cert::run(&args, seams).map_err(|error| error.to_string())),
        Command::Token(args) => {
            local(token::run(&args, &*seams.entropy).map_err(|error| error.to_string()))
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "engram", &mut std::io::stdout());
            Ok(Exit::Ok)
        }
        Command::ExitCodes => output::line(EXIT_CODES).map(|()| Exit::Ok),
    }
}

/// The end of a command that works on files alone: what to print, or what was in the way.
fn local(ended: Result<String, String>) -> Result<Exit, Failure> {
    let text = ended.map_err(|message| Failure::usage(message, ""))?;
    output::line(text.trim_end()).map(|()| Exit::Ok)
}

impl Command {
    /// How the user wants errors, too.
    fn output(&self) -> Output {
        self.client().map_or(Output::Table, |client| client.output)
    }

    fn client(&self) -> Option<&ClientArgs> {
        match self {
            Self::Space(with) => Some(&with.client),
            Self::Import(with) => Some(&with.client),
            Self::Export(with) => Some(&with.client),
            Self::Backup(with) => Some(&with.client),
            Self::Restore(with) => Some(&with.client),
            Self::Remember(with) => Some(&with.client),
            Self::Get(with) => Some(&with.client),
            Self::Forget(with) => Some(&with.client),
            Self::Associate(with) => Some(&with.client),
            Self::Strengthen(with) => Some(&with.client),
            Self::Dissociate(with) => Some(&with.client),
            Self::Neighbors(with) => Some(&with.client),
            Self::Path(with) => Some(&with.client),
            Self::Component(with) => Some(&with.client),
            Self::Recall(with) => Some(&with.client),
            Self::Spread(with) => Some(&with.client),
            Self::Cluster(with) => Some(&with.client),
            Self::Verify(with) => Some(&with.client),
            Self::Demo(_)
            | Self::Start(_)
            | Self::Cert(_)
            | Self::Token(_)
            | Self::Completions { .. }
            | Self::ExitCodes => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                !about.is_empty() && !about.contains("ClientArgs"),
                "{}",
                command.get_name()
            );
        }
    }

    #[test]
    fn options_are_found_where_people_put_them() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in [
            "engram space --endpoint a:1 list",
            "engram space list --endpoint a:1,b:2 -o json",
            "engram recall s --like dog --limit 3",
            "engram recall s --like dog --spread --hops 2 --nearest 5 --activation-weight 0.3",
            "engram spread s --like dog --nearest 20 --similarity-weight 0.2 --explain",
            "engram spread s --seed dog=0.5 --seed cat --explain -o dot",
            "engram import s --memories m.jsonl --embeddings e.npy --create --partitions 3",
            "engram import s --edges e.jsonl --on-error stop",
            "engram import s --memories m.jsonl --edges e.jsonl --colocate out",
            "engram neighbors s dog --hops 2 --direction both --relation is",
            "engram path s dog cat --by strength --max-hops 4 -o dot",
            "engram component s dog --limit 50 --stale",
            "engram help exit-codes",
            "engram cluster drain 2 --dry-run -o json",
            "engram cluster decommission 2 --on-interrupt cancel --wait-limit 5m",
            "engram cluster rebalance --dry-run",
            "engram cluster move 7 --from 1 --to 4 --no-wait",
            "engram cluster transfer 7 --to 2",
            "engram cluster maintenance on 2",
            "engram cluster health --wait",
            "engram cluster cancel 3 4",
            "engram space alter words --replicas 3",
            "engram backup create D --space a --space b --parallel 2",
            "engram backup list D -o json",
            "engram backup verify D 20260101T000000Z --remove-damaged",
            "engram backup remove D 20260101T000000Z",
            "engram restore D --id x --space a --as b --partitions 4 --replicas 1",
            "engram restore D --resume",
        ] {
            let parsed = parse(line);
            let help = |error: &clap::Error| error.kind() == clap::error::ErrorKind::DisplayHelp;
            assert!(
                parsed.is_ok() || parsed.as_ref().is_err_and(help),
                "{line}: {parsed:?}"
            );
        }
        for line in [
            "engram",
            "engram recall s",
            "engram recall s --like a --vector-file f",
            "engram recall s --like a --hops 2",
            "engram spread s --like a --vector-file f",
            "engram spread s",
            "engram import s",
            "engram import s --edges e.jsonl --embeddings e.npy",
            "engram import s --edges e.jsonl --colocate out",
            "engram get s",
            "engram path s dog",
            "engram neighbors s dog --hops 0",
            "engram get s a --deadline 10",
            "engram backup create s3://bucket/x",
            "engram restore file:///etc",
            "engram restore D --as b",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
