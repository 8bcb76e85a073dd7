//! The two gRPC servers: the client port and the peer port.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::cut::cut;
use crate::config::Limits;
use crate::seams::Listener;
use crate::security::Security;
use crate::transport::incoming;

/// An idle client connection is probed after this, and closed when it does not answer in as much.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(30);
/// Largest list of headers that is read, in bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Streams that another node may have open at once on one connection.
const PEER_STREAMS_MAX: u32 = 16_384;

/// Why a port cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the {port} port: {source}")]
pub struct ServeError {
    pub port: &'static str,
    source: tonic::transport::Error,
}

/// When a server stops.
#[derive(Clone, Default)]
pub struct Stops {
    /// No new requests; those in flight go on.
    pub accepting: CancellationToken,
    /// Requests in flight are given up and connections cut.
    pub serving: CancellationToken,
}

/// What serves until `stops`; it is to be spawned.
///
/// # Errors
/// When the TLS material cannot be used.
pub fn client_port(
    listener: Box<dyn Listener>,
    routes: Routes,
    security: &Security,
    limits: Limits,
    stops: &Stops,
) -> Result<impl Future<Output = ()> + Send + use<>, ServeError> {
    let mut server = Server::builder()
        .timeout(limits.request_timeout)
        .max_concurrent_streams(limits.requests_per_connection_max)
        .concurrency_limit_per_connection(limits.requests_per_connection_max as usize)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX);
    if let Some(tls) = security.client_server() {
        server = server.tls_config(tls).map_err(|source| ServeError {
            port: "client",
            source,
        })?;
    }
    let span = tracing::Span::current();
    let mut server = server
        .trace_fn(move |request| {
            tracing::debug_span!(parent: &span, "request", path = request.uri().path())
        })
        .layer(security.authenticator());
    let accepting = stops.accepting.clone().cancelled_owned();
    let served = server
        .add_routes(routes)
        .serve_with_incoming_shutdown(cut(incoming(listener), stops.serving.clone()), accepting);
    Ok(until("client", served, stops.serving.clone()))
}

/// As [`client_port`], for the port on which nodes of `cluster` talk to each other.
///
/// # Errors
/// When the TLS material cannot be used.
pub fn peer_port(
    listener: Box<dyn Listener>,
    routes: Routes,
    security: &Security,
    cluster: [u8; 16],
    stops: &Stops,
) -> Result<impl Future<Output = ()> + Send + use<>, ServeError> {
    let mut server = Server::builder()
        .max_concurrent_streams(PEER_STREAMS_MAX)
        // Peers give calls up all the time, and those that waited out a break come at once: that is no
        // attack.
        .http2_max_pending_accept_reset_streams(Some(PEER_STREAMS_MAX as usize))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX);
    if let Some(tls) = security.peer_server() {
        server = server.tls_config(tls).map_err(|source| ServeError {
            port: "peer",
            source,
        })?;
    }
    let span = tracing::Span::current();
    let mut server = server
        .trace_fn(move |request| {
            tracing::debug_span!(parent: &span, "peer_request", path = request.uri().path())
        })
        .layer(security.peer_guard(cluster));
    let accepting = stops.accepting.clone().cancelled_owned();
    let served = server
        .add_routes(routes)
        .serve_with_incoming_shutdown(cut(incoming(listener), stops.serving.clone()), accepting);
    Ok(until("peer", served, stops.serving.clone()))
}

async fn until(
    port: &'static str,
    served: impl Future<Output = Result<(), tonic::transport::Error>> + Send,
    serving: CancellationToken,
) {
    tokio::select! {
        biased;
        outcome = served => if let Err(error) = outcome {
            tracing::error!(port, %error, "the port failed");
        },
        () = serving.cancelled() => tracing::debug!(port, "requests in flight were given up"),
    }
}
