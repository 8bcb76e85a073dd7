//! The cluster map: the control plane's replicated state, held by every node.
//!
//! Applied commands change it ([`super::apply`]); routing, placement and the services read it.
//! What must hold: ids are never reused; every partition's group exists; the slot ranges of a
//! space's partitions cover all slots in order.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, HashSlot, NodeId, PartitionId, SlotRange, SpaceConfig, SpaceId};
use serde::{Deserialize, Serialize};

/// Random and durable: a node of another cluster is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

/// All of the control plane's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    pub cluster: ClusterId,
    /// Position of the control log that this map reflects.
    pub index: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub spaces: BTreeMap<SpaceId, SpaceRecord>,
    pub groups: BTreeMap<GroupId, GroupRecord>,
    pub next_node: u64,
    pub next_space: u64,
    pub next_partition: u64,
    pub next_group: u64,
    pub next_mark: u64,
}

/// A node as it described itself when it last joined or restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    /// Random, durable in the node's data directory.
    pub identity: [u8; 16],
    /// `host:port`, as others reach it.
    pub client_address: String,
    pub peer_address: String,
    pub http_address: String,
    pub zone: String,
    pub version: String,
}

/// A space and its partitions in slot order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceRecord {
    pub config: SpaceConfig,
    pub replicas: u32,
    pub partitions: Vec<PartitionRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    pub id: PartitionId,
    pub group: GroupId,
    pub slots: SlotRange,
}

/// A data group and where its replicas belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub id: GroupId,
    /// Voters; the first is the preferred primary.
    pub replicas: Vec<NodeId>,
}

impl ClusterMap {
    #[must_use]
    pub fn space(&self, name: &str) -> Option<&SpaceRecord> {
        self.spaces.values().find(|space| space.config.name == name)
    }

    /// Nodes that hold a replica of `group`, the preferred primary first.
    #[must_use]
    pub fn replicas(&self, group: GroupId) -> &[NodeId] {
        self.groups.get(&group).map_or(&[], |group| &group.replicas)
    }
}

impl SpaceRecord {
    /// The partition that owns `slot`.
    ///
    /// # Panics
    /// When the partitions do not cover all slots, which [`ClusterMap`] rules out.
    #[must_use]
    pub fn partition_of(&self, slot: HashSlot) -> PartitionRecord {
        let owner = self
            .partitions
            .iter()
            .find(|partition| partition.slots.contains(slot));
        *owner.unwrap_or_else(|| panic!("no partition of {} owns {slot:?}", self.config.name))
    }
}
