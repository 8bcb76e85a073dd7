//! The cluster map as the first version stored it, for data directories of that time.

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId, SpaceId};
use serde::Deserialize;

use super::map::{ClusterId, ClusterMap, GroupRecord, NodeRecord, NodeState, SpaceRecord};

#[derive(Deserialize)]
struct Map1 {
    cluster: ClusterId,
    index: u64,
    nodes: BTreeMap<NodeId, Node1>,
    spaces: BTreeMap<SpaceId, SpaceRecord>,
    groups: BTreeMap<GroupId, Group1>,
    next_node: u64,
    next_space: u64,
    next_partition: u64,
    next_group: u64,
    next_mark: u64,
}

#[derive(Deserialize)]
struct Node1 {
    id: NodeId,
    identity: [u8; 16],
    client_address: String,
    peer_address: String,
    http_address: String,
    zone: String,
    version: String,
}

#[derive(Deserialize)]
struct Group1 {
    id: GroupId,
    replicas: Vec<NodeId>,
    shared: bool,
}

/// Reads the bytes after the format.
pub fn decode(bytes: &[u8]) -> Result<ClusterMap, postcard::Error> {
    let map: Map1 = postcard::from_bytes(bytes)?;
    let node = |(id, node): (NodeId, Node1)| {
        let record = NodeRecord {
            id: node.id,
            identity: node.identity,
            client_address: node.client_address,
            peer_address: node.peer_address,
            http_address: node.http_address,
            zone: node.zone,
            version: node.version,
            state: NodeState::Active,
        };
        (id, record)
    };
    let group = |(id, group): (GroupId, Group1)| {
        let record = GroupRecord {
            id: group.id,
            founders: group.replicas.clone(),
            replicas: group.replicas,
            shared: group.shared,
            change: None,
        };
        (id, record)
    };
    Ok(ClusterMap {
        cluster: map.cluster,
        index: map.index,
        nodes: map.nodes.into_iter().map(node).collect(),
        spaces: map.spaces,
        groups: map.groups.into_iter().map(group).collect(),
        next_node: map.next_node,
        next_space: map.next_space,
        next_partition: map.next_partition,
        next_group: map.next_group,
        next_mark: map.next_mark,
        // An unfounded map numbers nothing yet.
        next_move: map.next_mark.min(1),
        left: BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::samples;

    /// What the first version wrote for the founder of a cluster and one space of one partition.
    const GOLDEN: &str = include_str!("testdata/map-format-1.hex");

    fn golden() -> Vec<u8> {
        let text: String = GOLDEN.split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn a_map_of_the_first_version_is_read() {
        let mut expected = ClusterMap::default();
        let commands = samples::commands();
        for command in [0, 1, 2, 4, 5].map(|at: usize| &commands[at]) {
            apply(&mut expected, command).outcome.expect("accepted");
        }
        let read = ClusterMap::decode(&golden()).expect("readable");
        read.validate();
        assert_eq!(read, expected);
    }
}
