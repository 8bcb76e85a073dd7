//! `engram demo`: a local cluster of real processes, a sample of real data, and a guided tour that
//! ends with the kill of a node.
//!
//! Exit code 0 only if everything held: each acknowledged write found again and all replicas equal.

pub mod ledger;
pub mod processes;
mod sample;
mod tour;
pub mod wait;

use std::path::{Path, PathBuf};

use clap::Args;

use self::processes::{Fate, LocalCluster, ProcessError};
use self::tour::Tour;
use self::wait::Late;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{hex, line};
use crate::seams::Seams;

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Processes to start, 3 to 9
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    pub nodes: u64,
    /// Leave the cluster running
    #[arg(long)]
    pub keep: bool,
    /// Directory for the nodes' data, empty or not there yet [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

pub async fn run(args: &DemoArgs, seams: &Seams) -> Result<Exit, Failure> {
    let directory = Directory::make(args, seams)?;
    let binary = std::env::current_exe()?;
    let fate = if args.keep { Fate::Free } else { Fate::Bound };
    let nodes = args.nodes as usize;
    let cluster = LocalCluster::new(&binary, &directory.path, nodes, fate, seams.clock.clone());
    let mut tour = Tour::new(cluster, seams.clone());
    // Whichever ends first, dropping the tour ends the processes.
    let ended = tokio::select! {
        ended = Box::pin(tour.run(&directory.path)) => ended,
        signal = interrupted() => Err(signal),
    };
    match ended {
        Ok(()) if args.keep => {
            tour.further(&directory.path, true)?;
            let pids: Vec<String> = tour.process_ids().iter().map(ToString::to_string).collect();
            tour.leave_running();
            line(&format!(
                "\nThe cluster goes on running. To stop it and remove its data:\n   kill {}; rm -r {}",
                pids.join(" "),
                directory.path.display()
            ))?;
            Ok(Exit::Ok)
        }
        Ok(()) => {
            tour.further(&directory.path, false)?;
            drop(tour);
            directory.remove();
            line("\nThe cluster is stopped and its data removed.")?;
            Ok(Exit::Ok)
        }
        Err(failure) => {
            drop(tour);
            eprintln!(
                "\nThe nodes' data and logs stay in {}",
                directory.path.display()
            );
            Err(failure)
        }
    }
}

/// The failure to report when the user ends the demo.
async fn interrupted() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let ctrl_c = tokio::signal::ctrl_c();
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => drop(terminated.recv().await),
            // No handler: the signal ends this process, and the kernel the nodes.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = ctrl_c => {}
        () = terminated => {}
    }
    Failure::new(
        Exit::Unavailable,
        "interrupted; all nodes are stopped",
        "engram demo",
    )
}

/// Where the nodes' data lies.
struct Directory {
    path: PathBuf,
    /// Whether it was made for this run.
    ours: bool,
}

impl Directory {
    fn make(args: &DemoArgs, seams: &Seams) -> Result<Self, Failure> {
        let (path, ours) = match &args.data {
            Some(path) => (path.clone(), false),
            None => {
                let name = format!("engram-demo-{}", hex(&seams.random_id()[..6]));
                (std::env::temp_dir().join(name), true)
            }
        };
        let failed = |error: std::io::Error| {
            Failure::usage(format!("{}: {error}", path.display()), "another --data DIR")
        };
        std::fs::create_dir_all(&path).map_err(failed)?;
        if !is_empty(&path).map_err(failed)? {
            let message = format!("{} is not empty", path.display());
            return Err(Failure::usage(message, "another --data DIR"));
        }
        Ok(Self { path, ours })
    }

    /// Removes what this run made, and nothing else.
    fn remove(&self) {
        let removed = match self.ours {
            true => std::fs::remove_dir_all(&self.path),
            false => remove_entries(&self.path),
        };
        if let Err(error) = removed {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

fn is_empty(path: &Path) -> std::io::Result<bool> {
    Ok(std::fs::read_dir(path)?.next().is_none())
}

fn remove_entries(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl From<ProcessError> for Failure {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Client(error) => error.into(),
            other => Self::new(Exit::Unavailable, other.to_string(), "the nodes' logs"),
        }
    }
}

impl From<Late> for Failure {
    fn from(late: Late) -> Self {
        Self::new(Exit::Unavailable, late.to_string(), "the nodes' logs")
    }
}
