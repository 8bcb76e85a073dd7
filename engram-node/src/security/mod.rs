//! Who may talk to a node: TLS, bearer tokens, the cluster key, and the rule that an unprotected
//! node stays on loopback.
//!
//! ```text
//! client port   TLS, then Authorization: Bearer <token> -> Authenticator -> services
//! peer port     TLS both ways, certificates of the cluster's CA -> PeerGuard -> peer services
//! datagrams     keyed MAC with the cluster key (membership)
//! ```
//!
//! `server` loads a [`Security`] at start and takes the configurations and layers from it. What
//! must hold: what a file here says is checked when it is loaded, so that a mistake is named at
//! start and not at the first connection; secrets appear in no log and no error.

pub mod auth;
pub mod exposure;
pub mod issue;
pub mod peers;
pub mod tls;
pub mod tokens;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tonic::transport::{ClientTlsConfig, ServerTlsConfig};

pub use auth::{Authenticator, Caller, require_role};
pub use exposure::{ExposureError, Protection, check_exposure};
pub use peers::PeerGuard;
pub use tls::TlsFiles;
pub use tokens::{Role, Tokens};

use crate::seams::Disk;
use tls::TlsMaterial;

/// A shorter cluster key could be guessed.
pub const CLUSTER_KEY_BYTES_MIN: usize = 16;

/// Names of files in a certificate directory, as `engram cert` writes them.
pub mod files {
    pub const CA_CERTIFICATE: &str = "ca.crt";
    /// Its presence makes the client port demand certificates.
    pub const CLIENT_CA: &str = "client-ca.crt";
    pub const CA_KEY: &str = "ca.key";
    pub const NODE_CERTIFICATE: &str = "node.crt";
    pub const NODE_KEY: &str = "node.key";
    pub const CLIENT_CERTIFICATE: &str = "client.crt";
    pub const CLIENT_KEY: &str = "client.key";
    pub const CLUSTER_KEY: &str = "cluster.key";
}

/// Why the security material of a node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the {what} {} is not usable: {reason}", path.display())]
    Unusable {
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("{}: line {line}: {reason}", path.display())]
    Token {
        path: PathBuf,
        line: usize,
        reason: &'static str,
    },
}

/// What a node's configuration says about its security.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// Directory with ca.crt, node.crt, node.key and cluster.key, as `engram cert create-node`
    /// writes it; turns TLS on for clients and nodes. With client-ca.crt in it, clients must also
    /// present a certificate of that CA.
    pub tls_dir: Option<PathBuf>,
    /// File with the hashes of the bearer tokens that clients may use (`engram token create`).
    pub token_file: Option<PathBuf>,
    /// Secret of all nodes, which authenticates membership datagrams; else cluster.key in `tls_dir`.
    pub cluster_key_file: Option<PathBuf>,
    /// Listen beyond loopback without protection.
    pub insecure: bool,
}

/// The loaded and checked security material of a node.
#[derive(Clone, Debug)]
pub struct Security {
    tls: Option<TlsMaterial>,
    tokens: Option<Arc<Tokens>>,
    cluster_key: Option<ClusterSecret>,
    insecure: bool,
}

#[derive(Clone, PartialEq, Eq)]
struct ClusterSecret(Vec<u8>);

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

impl Security {
    /// Loads what the options name.
    ///
    /// # Errors
    /// When a named file cannot be read or used.
    pub fn load(options: &SecurityOptions, disk: &dyn Disk) -> Result<Self, SecurityError> {
        let tls = match &options.tls_dir {
            Some(directory) => Some(TlsFiles::in_directory(directory).load(disk)?),
            None => None,
        };
        let tokens = match &options.token_file {
            Some(path) => Some(Arc::new(Tokens::load(path, disk)?)),
            None => None,
        };
        Ok(Self {
            tls,
            tokens,
            cluster_key: cluster_key(options, disk)?,
            insecure: options.insecure,
        })
    }

    /// What stands between the ports and whoever reaches them.
    #[must_use]
    pub fn protection(&self) -> Protection {
        Protection {
            tls: self.tls.is_some(),
            tokens: self.tokens.is_some(),
            cluster_key: self.cluster_key.is_some(),
            insecure: self.insecure,
        }
    }

    /// TLS of the peer port: a certificate of the cluster's CA is demanded. [`PeerGuard`] checks
    /// that it is a node's.
    #[must_use]
    pub fn peer_server(&self) -> Option<ServerTlsConfig> {
        self.tls.as_ref().map(TlsMaterial::peer_server)
    }

    /// TLS of connections to other nodes' peer ports.
    #[must_use]
    pub fn peer_client(&self) -> Option<ClientTlsConfig> {
        self.tls.as_ref().map(TlsMaterial::peer_client)
    }

    /// TLS of the client port.
    #[must_use]
    pub fn client_server(&self) -> Option<ServerTlsConfig> {
        self.tls.as_ref().map(TlsMaterial::client_server)
    }

    /// The layer in front of the client port's services.
    #[must_use]
    pub fn authenticator(&self) -> Authenticator {
        Authenticator::new(self.tokens.clone())
    }

    /// The layer in front of the peer port's services, of a node of `cluster`.
    #[must_use]
    pub fn peer_guard(&self, cluster: [u8; 16]) -> PeerGuard {
        PeerGuard::new(self.tls.is_some(), cluster)
    }

    /// The secret for membership's datagrams.
    #[must_use]
    pub fn cluster_key(&self) -> Option<&[u8]> {
        self.cluster_key.as_ref().map(|secret| secret.0.as_slice())
    }
}

fn cluster_key(
    options: &SecurityOptions,
    disk: &dyn Disk,
) -> Result<Option<ClusterSecret>, SecurityError> {
    const WHAT: &str = "cluster key";
    let path = match (&options.cluster_key_file, &options.tls_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(directory)) => directory.join(files::CLUSTER_KEY),
        (None, None) => return Ok(None),
    };
    let secret = read(WHAT, &path, disk)?.trim_ascii().to_vec();
    if secret.len() < CLUSTER_KEY_BYTES_MIN {
        let reason = format!(
            "it has {} bytes, fewer than {CLUSTER_KEY_BYTES_MIN}",
            secret.len()
        );
        return Err(SecurityError::Unusable {
            what: WHAT,
            path,
            reason,
        });
    }
    Ok(Some(ClusterSecret(secret)))
}

fn read(what: &'static str, path: &Path, disk: &dyn Disk) -> Result<Vec<u8>, SecurityError> {
    disk.read_file(path).map_err(|source| SecurityError::Read {
        what,
        path: path.into(),
        source,
    })
}
