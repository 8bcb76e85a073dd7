//! TLS material of a node: files in, tonic's configurations out (rustls on ring).
//!
//! A node's one certificate serves both ports. Nodes know each other as [`PEER_NAME`], whatever
//! host or address they run on, so a node that moves keeps its certificate; clients check the host
//! that they dialled.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::peers::is_node;
use super::{SecurityError, files, read};
use crate::seams::Disk;

/// The name in every node's certificate, and in no client's.
pub const PEER_NAME: &str = "node.engram.internal";
/// A handshake that takes longer is given up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Where a node's TLS material lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Need not exist: whose certificates the client port demands.
    pub client_ca: PathBuf,
}

impl TlsFiles {
    /// The files that `engram cert create-node` writes.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            ca: directory.join(files::CA_CERTIFICATE),
            certificate: directory.join(files::NODE_CERTIFICATE),
            key: directory.join(files::NODE_KEY),
            client_ca: directory.join(files::CLIENT_CA),
        }
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// When one cannot be read, is no PEM of its kind, the key is another certificate's, or the
    /// certificate is not a node's.
    pub fn load(&self, disk: &dyn Disk) -> Result<TlsMaterial, SecurityError> {
        const CERTIFICATE: &str = "node certificate";
        let ca = read("CA certificate", &self.ca, disk)?;
        let certificate = read(CERTIFICATE, &self.certificate, disk)?;
        let key = read("node key", &self.key, disk)?;

        certificates("CA certificate", &self.ca, &ca)?;
        let chain = certificates(CERTIFICATE, &self.certificate, &certificate)?;
        if !is_node(&chain[0]) {
            let reason =
                format!("it does not have the name {PEER_NAME} ('engram cert create-node')");
            return Err(unusable(CERTIFICATE, &self.certificate, reason));
        }
        // The reason is fixed: a parser's might quote the key.
        let parsed = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| unusable("node key", &self.key, "it holds no private key in PEM form"))?;
        CertifiedKey::from_der(chain, parsed, &default_provider())
            .map_err(|error| unusable("node key", &self.key, error.to_string()))?;

        Ok(TlsMaterial {
            ca: Certificate::from_pem(ca),
            client_ca: self.client_ca(disk)?,
            identity: Identity::from_pem(certificate, key),
        })
    }

    fn client_ca(&self, disk: &dyn Disk) -> Result<Option<Certificate>, SecurityError> {
        const WHAT: &str = "CA certificate of clients";
        match read(WHAT, &self.client_ca, disk) {
            Ok(pem) => {
                certificates(WHAT, &self.client_ca, &pem)?;
                Ok(Some(Certificate::from_pem(pem)))
            }
            Err(SecurityError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// All certificates of a PEM file: at least one.
fn certificates(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(what, path, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(what, path, "it holds no certificate in PEM form"));
    }
    Ok(chain)
}

fn unusable(what: &'static str, path: &Path, reason: impl Into<String>) -> SecurityError {
    SecurityError::Unusable {
        what,
        path: path.into(),
        reason: reason.into(),
    }
}

/// Checked TLS material.
#[derive(Clone)]
pub struct TlsMaterial {
    ca: Certificate,
    client_ca: Option<Certificate>,
    identity: Identity,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsMaterial(..)")
    }
}

impl TlsMaterial {
    #[must_use]
    pub fn peer_server(&self) -> ServerTlsConfig {
        self.server().client_ca_root(self.ca.clone())
    }

    #[must_use]
    pub fn peer_client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(self.ca.clone())
            .identity(self.identity.clone())
            .domain_name(PEER_NAME)
            .timeout(HANDSHAKE_LIMIT)
    }

    #[must_use]
    pub fn client_server(&self) -> ServerTlsConfig {
        match &self.client_ca {
            Some(ca) => self.server().client_ca_root(ca.clone()),
            None => self.server(),
        }
    }

    fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .timeout(HANDSHAKE_LIMIT)
    }
}
