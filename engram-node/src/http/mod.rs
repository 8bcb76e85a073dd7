//! The HTTP port: `/livez`, `/readyz` and `/metrics`, for orchestrators and Prometheus.
//!
//! What must hold: `/livez` answers as long as the process can run a task; `/readyz` says why it
//! is not ready; nothing here changes anything.

mod metrics;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::seams::{Clock, Listener, Seams, Stream};

pub use self::metrics::{Metrics, upkeep};

/// Pause after a failed accept, so that a full file table cannot spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the port reports about its node.
pub trait Health: Send + Sync + 'static {
    /// # Errors
    /// Why the node is not ready, in words.
    fn ready(&self) -> Result<(), String>;
    /// Brings the metrics that are read rather than counted up to date.
    fn observe(&self);
}

#[derive(Clone)]
struct Shared {
    health: Arc<dyn Health>,
    metrics: Metrics,
}

/// Serves until `stop` is ready.
pub async fn serve(
    seams: Seams,
    listener: Box<dyn Listener>,
    health: Arc<dyn Health>,
    metrics: Metrics,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Shared { health, metrics });
    let listener = Accepting {
        listener,
        clock: seams.clock,
    };
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP port failed");
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.health.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn render(State(shared): State<Shared>) -> Response {
    shared.health.observe();
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], shared.metrics.render()).into_response()
}

/// A listener of the seams as axum takes it.
struct Accepting {
    listener: Box<dyn Listener>,
    clock: Arc<dyn Clock>,
}

impl axum::serve::Listener for Accepting {
    type Io = Box<dyn Stream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests;
