//! A whole node: puts the parts together, starts and stops them.
//!
//! ```text
//! store -> identity -> ports -> a place in a cluster -> consensus (control group)
//!       -> peer port -> the cluster map -> membership, heartbeats, reconciler -> client port
//! ```
//!
//! [`start`] returns when the node serves clients. What must hold: nothing listens before the rule
//! on exposure was checked; the identity is durable before another node hears of it; a stop hands
//! leadership over before the peer port closes.

mod assembly;
mod cut;
pub mod entry;
mod grpc;
pub mod identity;
pub mod logging;
mod machines;
pub mod ports;
mod scope;
mod serving;
mod watchers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use engram_core::storage::{Batch, Durability, Storage, StorageError};
use engram_core::types::NodeId;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Config;
use crate::consensus::{Consensus, RepairError, StartError};
use crate::control::ControlPlane;
use crate::replica::Replicas;
use crate::seams::Seams;
use crate::security::{ExposureError, SecurityError};
use grpc::Stops;
use ports::Advertised;

/// How long a stopping node waits for its tasks to let go of the store.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Exposure(#[from] ExposureError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Port(#[from] ports::PortError),
    #[error(transparent)]
    Entry(#[from] entry::EntryError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error(transparent)]
    Serve(#[from] grpc::ServeError),
    #[error("the reflection service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the state of the control plane cannot be read: {0}")]
    Control(#[from] crate::consensus::MachineError),
    #[error("no address for {address}, by which others are to reach this node: {source}")]
    Unresolvable {
        address: String,
        source: std::io::Error,
    },
    #[error("cannot write {what}: {source}")]
    Write {
        what: &'static str,
        source: std::io::Error,
    },
}

/// A running node.
pub struct Server {
    seams: Seams,
    grace: Duration,
    advertised: Advertised,
    plane: ControlPlane,
    consensus: Consensus,
    replicas: Arc<Replicas>,
    storage: Arc<dyn Storage>,
    client: Stops,
    peer: Stops,
    /// Everything that runs beside the ports.
    background: CancellationToken,
    /// Closed when no task of the client port runs any more.
    client_done: mpsc::Receiver<()>,
    peer_done: mpsc::Receiver<()>,
    /// Dropped last, and with it every task of the node. A server that is dropped without
    /// [`Server::stop`] ends as in a crash.
    end: DropGuard,
}

/// Starts a node; it serves clients when this returns.
///
/// # Errors
/// See [`ServerError`]. A node that is to join waits for its peers and returns no error meanwhile.
pub async fn start(config: Config, seams: Seams) -> Result<Server, ServerError> {
    assembly::assemble(config, seams).await
}

impl Server {
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.plane.local()
    }

    #[must_use]
    pub fn addresses(&self) -> &Advertised {
        &self.advertised
    }

    #[must_use]
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    #[must_use]
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Serves until `shutdown` is ready, then stops.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        self.stop().await;
    }

    /// Stops in order: no new requests, a while for those in flight, leadership handed over, the
    /// replicas stopped, and last the port to the other nodes.
    pub async fn stop(mut self) {
        tracing::info!(node = self.node().0, "stopping");
        self.client.accepting.cancel();
        if self
            .seams
            .timeout(self.grace, self.client_done.recv())
            .await
            .is_err()
        {
            tracing::warn!(grace = ?self.grace, "requests were still in flight");
        }
        self.client.serving.cancel();
        self.background.cancel();
        self.consensus.shutdown().await;
        self.replicas.save_indexes().await;
        self.peer.accepting.cancel();
        self.peer.serving.cancel();
        self.peer_done.recv().await;
        self.close_store().await;
    }

    /// Syncs the store and waits until the last task has let go of it, so that the data directory
    /// can be opened again.
    async fn close_store(self) {
        let Self {
            seams,
            plane,
            consensus,
            replicas,
            storage,
            end,
            ..
        } = self;
        let node = plane.local().0;
        drop((plane, consensus, replicas, end));
        let store = Arc::downgrade(&storage);
        let synced = seams
            .blocking(move || storage.write(Batch::new(), Durability::Sync))
            .await;
        if let Err(error) = synced {
            tracing::error!(%error, "the store was not synced");
        }
        let begun = seams.clock.monotonic();
        while store.strong_count() > 0 {
            if seams.clock.monotonic().saturating_sub(begun) > CLOSE_WAIT {
                tracing::warn!(node, "the store is still in use");
                break;
            }
            seams.clock.sleep(CLOSE_PAUSE).await;
        }
        tracing::info!(node, "stopped");
    }
}

/// Ready on SIGTERM or SIGINT.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}

#[cfg(test)]
mod tests;
