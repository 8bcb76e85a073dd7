//! Which replicas are where, and how much each node has, while a plan is being made.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::{GroupId, NodeId};

use super::{Health, Healths, Sizes, health_of};
use crate::control::ClusterMap;

/// What a node holds.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub replicas: usize,
    pub primaries: usize,
    pub bytes: u64,
}

/// The layout under construction. Groups that are being moved count where they are going.
pub struct Layout<'a> {
    map: &'a ClusterMap,
    sizes: &'a Sizes,
    /// Nodes that may be given replicas and leaderships: active and alive.
    pub usable: BTreeSet<NodeId>,
    pub groups: BTreeMap<GroupId, Vec<NodeId>>,
    loads: BTreeMap<NodeId, Load>,
}

impl<'a> Layout<'a> {
    pub fn new(map: &'a ClusterMap, healths: &Healths, sizes: &'a Sizes) -> Self {
        let usable = map
            .nodes
            .values()
            .filter(|node| node.state.is_active() && health_of(healths, node.id) == Health::Alive);
        let mut layout = Self {
            map,
            sizes,
            usable: usable.map(|node| node.id).collect(),
            groups: BTreeMap::new(),
            loads: map.nodes.keys().map(|id| (*id, Load::default())).collect(),
        };
        for group in map.groups.values() {
            layout.add(group.id, group.settled().to_vec());
        }
        layout
    }

    fn add(&mut self, group: GroupId, nodes: Vec<NodeId>) {
        let bytes = self.size(group);
        for (rank, node) in nodes.iter().enumerate() {
            let load = self.loads.entry(*node).or_default();
            load.replicas += 1;
            load.primaries += usize::from(rank == 0);
            load.bytes += bytes;
        }
        self.groups.insert(group, nodes);
    }

    /// Puts a group elsewhere.
    pub fn place(&mut self, group: GroupId, nodes: Vec<NodeId>) {
        let bytes = self.size(group);
        for (rank, node) in self
            .groups
            .remove(&group)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            let load = self.loads.entry(*node).or_default();
            load.replicas -= 1;
            load.primaries -= usize::from(rank == 0);
            load.bytes -= bytes;
        }
        self.add(group, nodes);
    }

    pub fn size(&self, group: GroupId) -> u64 {
        self.sizes.get(&group).copied().unwrap_or(0)
    }

    pub fn load(&self, node: NodeId) -> Load {
        self.loads.get(&node).cloned().unwrap_or_default()
    }

    pub fn zone(&self, node: NodeId) -> &'a str {
        self.map.nodes.get(&node).map_or("", |node| &node.zone)
    }

    /// Zones that the nodes are in.
    pub fn zones(&self, nodes: &[NodeId]) -> usize {
        let zones = nodes.iter().map(|node| self.zone(*node));
        zones.collect::<BTreeSet<_>>().len()
    }

    /// The usable node that is best for one more replica beside `nodes`: in another zone, then with
    /// the least on it.
    pub fn best_for(&self, nodes: &[NodeId], excluded: &BTreeSet<NodeId>) -> Option<NodeId> {
        let taken: BTreeSet<&str> = nodes.iter().map(|node| self.zone(*node)).collect();
        let free = self.usable.iter().copied();
        free.filter(|node| !nodes.contains(node) && !excluded.contains(node))
            .min_by_key(|node| {
                let load = self.load(*node);
                let same_zone = taken.contains(self.zone(*node));
                (same_zone, load.replicas, load.bytes, *node)
            })
    }
}
