//! `engram start`: the one place where the command line meets the server.

use super::failure::{Exit, Failure};
use crate::config::StartArgs;
use crate::seams::Seams;
use crate::server::{self, logging, signals};

/// Runs a node until SIGTERM or SIGINT.
pub async fn run(args: StartArgs, seams: &Seams) -> Result<Exit, Failure> {
    let config = args
        .resolve()
        .map_err(|error| Failure::usage(error.to_string(), "engram start --help"))?;
    logging::install(&config);
    // Installed first: a signal during a long start ends it in order, too.
    let shutdown = signals()?;
    let starting = Box::pin(server::start(config, seams.clone()));
    tokio::pin!(shutdown);
    let server = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(Exit::Ok),
        started = starting => started.map_err(|error| {
            Failure::new(Exit::Unavailable, format!("the node does not start: {error}"), "engram start --help")
        })?,
    };
    server.run_until(shutdown).await;
    Ok(Exit::Ok)
}
