//! Joining: how a node without a cluster asks its way into one.
//!
//! Safe to repeat at any point: the node is registered under its durable identity, so a second
//! request gets the same id.

use std::time::Duration;

use bytes::Bytes;
use engram_core::types::NodeId;
use engram_proto::peer::control_client::ControlClient;
use engram_proto::peer::{JoinRequest, JoinResponse};
use tonic::Code;

use super::command::NodeDescription;
use super::map::{ClusterId, ClusterMap, MapError};
use super::wire;
use crate::seams::Seams;
use crate::transport::Peers;

/// Longest wait for one peer's answer.
const ATTEMPT_WAIT: Duration = Duration::from_secs(6);
/// Pause after all peers were asked in vain.
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// What a node that joined knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub map: ClusterMap,
}

/// Why a node cannot join. Peers that cannot be reached are asked again and are no error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("{peer} refused this node: {reason}")]
    Refused { peer: String, reason: String },
    #[error("the answer of {peer} is not understood: {reason}")]
    NotUnderstood { peer: String, reason: String },
}

/// Asks `targets` in turn, round after round, until one of them has registered this node.
///
/// # Errors
/// When a peer refuses: asking again would not help.
pub async fn join(
    seams: &Seams,
    peers: &Peers,
    targets: &[String],
    node: &NodeDescription,
) -> Result<Joined, JoinError> {
    let mut round = 0u32;
    loop {
        for target in targets {
            match ask(seams, peers, target, node, None).await {
                Ok(response) => return understood(target, &response),
                Err(Attempt::Refused(reason)) => {
                    return Err(JoinError::Refused {
                        peer: target.clone(),
                        reason,
                    });
                }
                // Every failure of the first rounds would only alarm: peers start at different times.
                Err(Attempt::Failed(reason)) if round % 20 == 4 => {
                    tracing::warn!(peer = target, reason, "cannot join yet, trying on");
                }
                Err(Attempt::Failed(reason)) => {
                    tracing::debug!(peer = target, reason, "cannot join yet");
                }
            }
        }
        round = round.wrapping_add(1);
        seams.clock.sleep(ROUND_PAUSE).await;
    }
}

/// Tells `targets` where a node of `cluster` is now, until one of them has noted it; false when
/// none has. For a node that no longer knows where its cluster is.
pub async fn refresh(
    seams: &Seams,
    peers: &Peers,
    targets: &[String],
    node: &NodeDescription,
    cluster: ClusterId,
) -> bool {
    for target in targets {
        match ask(seams, peers, target, node, Some(cluster)).await {
            Ok(_) => return true,
            Err(Attempt::Failed(reason)) => {
                tracing::debug!(peer = target, reason, "cannot tell the addresses yet");
            }
            Err(Attempt::Refused(reason)) => {
                tracing::error!(peer = target, reason, "refused: is --join right?");
            }
        }
    }
    false
}

enum Attempt {
    Failed(String),
    Refused(String),
}

async fn ask(
    seams: &Seams,
    peers: &Peers,
    target: &str,
    node: &NodeDescription,
    cluster: Option<ClusterId>,
) -> Result<JoinResponse, Attempt> {
    let request = JoinRequest {
        identity: Bytes::copy_from_slice(&node.identity),
        cluster: cluster
            .map(|cluster| Bytes::copy_from_slice(&cluster.0))
            .unwrap_or_default(),
        client_address: node.client_address.clone(),
        peer_address: node.peer_address.clone(),
        http_address: node.http_address.clone(),
        zone: node.zone.clone(),
        version: node.version.clone(),
    };
    let mut client = ControlClient::new(peers.channel_to(target));
    let answer = seams.timeout(ATTEMPT_WAIT, client.join(request)).await;
    match answer.map_err(|error| Attempt::Failed(error.to_string()))? {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied => {
                Err(Attempt::Refused(status.message().to_owned()))
            }
            code => Err(Attempt::Failed(format!("{code}: {}", status.message()))),
        },
    }
}

fn understood(peer: &str, response: &JoinResponse) -> Result<Joined, JoinError> {
    let not_understood = |reason: String| JoinError::NotUnderstood {
        peer: peer.to_owned(),
        reason,
    };
    let cluster = wire::sixteen("cluster id", &response.cluster)
        .map_err(|error| not_understood(error.to_string()))?;
    let map = ClusterMap::decode(&response.map)
        .map_err(|error: MapError| not_understood(error.to_string()))?;
    let node = NodeId(response.node);
    if !map.nodes.contains_key(&node) {
        return Err(not_understood(format!(
            "node {node} is not on the map that came with it"
        )));
    }
    Ok(Joined {
        cluster: ClusterId(cluster),
        node,
        map,
    })
}
