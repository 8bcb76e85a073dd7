//! How a node comes to have a place in a cluster: it remembers one, founds one, or joins one.

use engram_core::types::NodeId;
use std::sync::Arc;

use engram_core::storage::{Storage, StorageError};

use super::identity::{ClusterMember, NodeIdentity};
use crate::config::Config;
use crate::control::join::{JoinError, join};
use crate::control::{ClusterId, ClusterMap, NodeDescription};
use crate::seams::Seams;
use crate::transport::Peers;

/// The founder's id; the control plane numbers from it.
const FOUNDER: NodeId = NodeId(1);

/// A place in a cluster, and the map that came with it.
pub struct Entry {
    pub member: ClusterMember,
    /// Of the node that was joined; the control group brings newer ones.
    pub map: Option<ClusterMap>,
}

/// Why a node has no place.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The peers to join, without this node itself: one list may serve all nodes of a cluster, and the
/// node that is alone on its list founds it.
#[must_use]
pub fn others(config: &Config, description: &NodeDescription) -> Vec<String> {
    let other = |target: &&String| **target != description.peer_address;
    config.join.iter().filter(other).cloned().collect()
}

/// Durable on return.
///
/// # Errors
/// When the cluster refuses this node or its place cannot be stored. Peers that do not answer are
/// asked again for ever.
pub async fn enter(
    seams: &Seams,
    storage: &Arc<dyn Storage>,
    identity: NodeIdentity,
    config: &Config,
    peers: &Peers,
    description: &NodeDescription,
) -> Result<Entry, EntryError> {
    if let Some(member) = identity.member {
        return Ok(Entry { member, map: None });
    }
    let targets = others(config, description);
    let entry = if targets.is_empty() {
        let cluster = ClusterId(seams.random_id());
        tracing::info!(%cluster, "founding a cluster");
        Entry {
            member: ClusterMember {
                cluster,
                node: FOUNDER,
                founder: true,
            },
            map: None,
        }
    } else {
        tracing::info!(peers = ?targets, "joining a cluster");
        let joined = join(seams, peers, &targets, description).await?;
        let member = ClusterMember {
            cluster: joined.cluster,
            node: joined.node,
            founder: false,
        };
        Entry {
            member,
            map: Some(joined.map),
        }
    };
    let (storage, member, mut identity) = (Arc::clone(storage), entry.member, identity);
    seams
        .blocking(move || identity.become_member(storage.as_ref(), member))
        .await?;
    Ok(entry)
}
