//! How nodes reach each other: one shared HTTP/2 connection per node pair and direction, made
//! through the network seam, and the Raft message streams on it.
//!
//! [`Peers`] gives channels to whoever speaks gRPC to another node; [`incoming`] feeds gRPC
//! servers; [`Links`] and [`RaftService`] carry Raft messages for `consensus`, in the wire's own
//! types: nothing here knows openraft.

mod incoming;
mod link;
mod peers;
mod service;
mod stamp;

pub use incoming::{Incoming, incoming};
pub use link::{CallError, Link, Links};
pub use peers::{MESSAGE_BYTES_MAX, Peers, UnknownNode};
pub use service::{RaftHandler, RaftService, SnapshotReceiver};
pub use stamp::{CLUSTER_HEADER, PeerChannel, Stamp, cluster_text};

/// Who this node is on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNode {
    pub node: engram_core::types::NodeId,
    pub cluster: [u8; 16],
}

impl LocalNode {
    #[must_use]
    pub fn hello_to(self, target: engram_core::types::NodeId) -> engram_proto::peer::RaftHello {
        let cluster = bytes::Bytes::copy_from_slice(&self.cluster);
        engram_proto::peer::RaftHello {
            from: self.node.0,
            to: target.0,
            cluster,
        }
    }
}
