//! Channels to other nodes, one per node, shared by all that talk to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::NodeId;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{ClientTlsConfig, Endpoint};

use super::stamp::{PeerChannel, Stamp};
use crate::seams::Seams;

/// Greatest message on the peer port, in bytes: an entry of the greatest size and its frame.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// A connection attempt is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is probed at this interval, and closed when no answer comes in the other.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Flow control windows: room for one great frame, so that it does not wait for round trips.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Calls given up on one connection whose late answers are known for what they are. HTTP/2 takes an
/// answer to any other for a fault of the sender, and by default closes a connection after 1,024 of
/// those, with all calls on it: between nodes that trust each other it does not.
const GIVEN_UP_CALLS_MAX: usize = 1_024;

/// No address is known for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no peer address is known for node {0}")]
pub struct UnknownNode(pub NodeId);

/// All nodes that this one may talk to. Clones share it.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    tls: Option<ClientTlsConfig>,
    local: NodeId,
    stamp: Stamp,
    nodes: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    address: String,
    /// Made when it is first asked for.
    channel: Option<Dialled>,
}

struct Dialled {
    channel: PeerChannel,
    at: Duration,
}

impl Peers {
    /// With `tls`, nothing but TLS is spoken. Requests name `cluster`; a node that is in none yet
    /// can only ask to join one.
    #[must_use]
    pub fn new(
        seams: Seams,
        tls: Option<ClientTlsConfig>,
        local: NodeId,
        cluster: Option<[u8; 16]>,
    ) -> Self {
        let nodes = Mutex::new(BTreeMap::new());
        Self {
            shared: Arc::new(Shared {
                seams,
                tls,
                local,
                stamp: Stamp::new(cluster),
                nodes,
            }),
        }
    }

    #[must_use]
    pub fn local(&self) -> NodeId {
        self.shared.local
    }

    /// `address` is `host:port` of the node's peer port. A new address makes a new connection.
    pub fn set_address(&self, node: NodeId, address: String) {
        let mut nodes = self.shared.nodes.lock();
        if nodes.get(&node).is_none_or(|peer| peer.address != address) {
            nodes.insert(
                node,
                Peer {
                    address,
                    channel: None,
                },
            );
        }
    }

    /// As [`Peers::set_address`], but a known address stays, and an empty one says nothing.
    pub fn suggest_address(&self, node: NodeId, address: &str) {
        if address.is_empty() {
            return;
        }
        let mut nodes = self.shared.nodes.lock();
        nodes.entry(node).or_insert_with(|| Peer {
            address: address.to_owned(),
            channel: None,
        });
    }

    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.shared
            .nodes
            .lock()
            .get(&node)
            .map(|peer| peer.address.clone())
    }

    pub fn forget(&self, node: NodeId) {
        self.shared.nodes.lock().remove(&node);
    }

    /// The shared channel to a node. It connects when it is first used, and again when it broke.
    ///
    /// # Errors
    /// [`UnknownNode`] when no address was set.
    pub fn channel(&self, node: NodeId) -> Result<PeerChannel, UnknownNode> {
        let mut nodes = self.shared.nodes.lock();
        let peer = nodes.get_mut(&node).ok_or(UnknownNode(node))?;
        let address = &peer.address;
        let dialled = peer.channel.get_or_insert_with(|| Dialled {
            channel: self.channel_to(address),
            at: self.shared.seams.clock.monotonic(),
        });
        Ok(dialled.channel.clone())
    }

    /// What was asked at `asked_at` has no answer: whoever asks next gets a new connection. A network
    /// that was split leaves connections behind that nobody will ever answer, and does not close
    /// them. Calls that are under way keep theirs.
    pub fn dial_again(&self, node: NodeId, asked_at: Duration) {
        let mut nodes = self.shared.nodes.lock();
        let Some(peer) = nodes.get_mut(&node) else {
            return;
        };
        if peer.channel.take_if(|it| it.at <= asked_at).is_some() {
            metrics::counter!("engram_peer_redials_total").increment(1);
        }
    }

    /// A channel of its own to `host:port`, for use before node ids are known. A malformed address
    /// fails when the channel is used.
    #[must_use]
    pub fn channel_to(&self, address: &str) -> PeerChannel {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .unwrap_or_else(|_| Endpoint::from_static("http://malformed.invalid:1"));
        let mut endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .http2_max_concurrent_reset_streams(GIVEN_UP_CALLS_MAX)
            .http2_max_local_error_reset_streams(None)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if let Some(tls) = &self.shared.tls {
            match endpoint.clone().tls_config(tls.clone()) {
                Ok(with_tls) => endpoint = with_tls,
                // Without it the https scheme makes every call fail: nothing goes out in clear.
                Err(error) => tracing::error!(%error, "peer TLS configuration is unusable"),
            }
        }
        let (seams, address) = (self.shared.seams.clone(), address.to_owned());
        let channel =
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let (net, address) = (Arc::clone(&seams.net), address.clone());
                async move { net.connect(&address).await.map(TokioIo::new) }
            }));
        InterceptedService::new(channel, self.shared.stamp.clone())
    }
}
