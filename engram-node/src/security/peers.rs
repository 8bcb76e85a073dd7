//! Only nodes on the peer port: the layer in front of the peer services.
//!
//! The cluster's CA also signs the certificates of clients, and TLS checks no more than the
//! signature. So each request's certificate must also carry the name that only nodes have.

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

/// Admits requests whose connection shows a node's certificate; without TLS, all of them.
#[derive(Clone, Copy, Debug)]
pub struct PeerGuard {
    tls: bool,
}

impl PeerGuard {
    #[must_use]
    pub fn new(tls: bool) -> Self {
        Self { tls }
    }

    fn admits(self, extensions: &http::Extensions) -> bool {
        if !self.tls {
            return true;
        }
        extensions
            .get::<TlsConnectInfo<TcpConnectInfo>>()
            .and_then(TlsConnectInfo::peer_certs)
            .is_some_and(|chain| chain.first().is_some_and(is_node))
    }
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
            guard: *self,
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
        if self.guard.admits(request.extensions()) {
            return Either::Left(self.inner.call(request));
        }
        let refusal = Status::permission_denied(
            "the peer port is for nodes: this certificate is not a node's ('engram cert \
             create-node')",
        );
        Either::Right(ready(Ok(refusal.into_http())))
    }
}
