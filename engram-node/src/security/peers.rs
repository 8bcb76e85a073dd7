//! Only nodes of this cluster on the peer port: the layer in front of the peer services.
//!
//! The cluster's CA also signs the certificates of clients, and TLS checks no more than the
//! signature. So each request's certificate must also carry the name that only nodes have. And two
//! clusters may share a CA, or have none: so each request also names its cluster, but for the one
//! by which a node asks to join.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower::{Layer, Service};

use super::tls::PEER_NAME;
use crate::transport::{CLUSTER_HEADER, cluster_text};

/// The one request of a node that is in no cluster yet; its handler looks at the cluster itself.
const JOIN_PATH: &str = "/engram.peer.v1.Control/Join";

/// Admits requests whose connection shows a node's certificate (without TLS, all of them) and that
/// name this cluster.
#[derive(Clone, Debug)]
pub struct PeerGuard {
    tls: bool,
    cluster: Arc<str>,
}

impl PeerGuard {
    #[must_use]
    pub fn new(tls: bool, cluster: [u8; 16]) -> Self {
        Self {
            tls,
            cluster: cluster_text(cluster).into(),
        }
    }

    fn check<B>(&self, request: &http::Request<B>) -> Result<(), Status> {
        if self.tls && !shows_a_node(request.extensions()) {
            return Err(Status::permission_denied(
                "the peer port is for nodes: this certificate is not a node's ('engram cert \
                 create-node')",
            ));
        }
        let named = request.headers().get(CLUSTER_HEADER);
        let ours = named.is_some_and(|cluster| cluster.as_bytes() == self.cluster.as_bytes());
        if ours || request.uri().path() == JOIN_PATH {
            return Ok(());
        }
        metrics::counter!("engram_peer_requests_of_other_clusters_total").increment(1);
        Err(Status::failed_precondition(format!(
            "this node belongs to cluster {}, the request to another one",
            self.cluster
        )))
    }
}

fn shows_a_node(extensions: &http::Extensions) -> bool {
    extensions
        .get::<TlsConnectInfo<TcpConnectInfo>>()
        .and_then(TlsConnectInfo::peer_certs)
        .is_some_and(|chain| chain.first().is_some_and(is_node))
}

/// Whether a certificate, whose signature TLS has checked, is a node's.
pub(super) fn is_node(certificate: &CertificateDer<'_>) -> bool {
    let Ok(name) = ServerName::try_from(PEER_NAME) else {
        return false;
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

impl<S> Layer<S> for PeerGuard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            guard: self.clone(),
            inner,
        }
    }
}

/// A service behind a [`PeerGuard`].
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    guard: PeerGuard,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.guard.check(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(refusal) => Either::Right(ready(Ok(refusal.into_http()))),
        }
    }
}
