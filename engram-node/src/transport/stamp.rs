//! The name of the cluster on every request between nodes.
//!
//! [`Peers`](super::Peers) puts it on; the peer port's guard (`security`) refuses requests of other
//! clusters before a service sees them. Two clusters that share a certificate authority, or have
//! none, stay apart even when one of them takes over addresses of the other.

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The header, and the key of the metadata entry.
pub const CLUSTER_HEADER: &str = "engram-cluster";

/// A connection to another node whose requests name this node's cluster.
pub type PeerChannel = InterceptedService<Channel, Stamp>;

/// What the header says for a cluster.
#[must_use]
pub fn cluster_text(cluster: [u8; 16]) -> String {
    cluster.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts the header on requests. A node that is in no cluster yet puts none.
#[derive(Clone, Debug)]
pub struct Stamp(Option<MetadataValue<Ascii>>);

impl Stamp {
    #[must_use]
    pub fn new(cluster: Option<[u8; 16]>) -> Self {
        // Hexadecimal digits are a valid value.
        Self(cluster.and_then(|cluster| cluster_text(cluster).parse().ok()))
    }
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(cluster) = &self.0 {
            request
                .metadata_mut()
                .insert(CLUSTER_HEADER, cluster.clone());
        }
        Ok(request)
    }
}
