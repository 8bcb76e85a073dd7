//! The cluster map: the control plane's replicated state, held by every node.
//!
//! Applied commands change it ([`super::apply`]); routing, placement and the services read it.
//! What must hold: ids are never reused; every partition's group exists; the slot ranges of a
//! space's partitions cover all slots in order.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::types::{GroupId, HashSlot, NodeId, PartitionId, SlotRange, SpaceConfig, SpaceId};
use serde::{Deserialize, Serialize};

/// Most voters of the control group; all other nodes follow it as learners.
pub const CONTROL_VOTERS_MAX: usize = 5;

/// Random and durable: a node of another cluster is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

/// Format of the encoded map; the first byte of every copy on disk and in snapshots.
const MAP_FORMAT: u8 = 3;

/// Why bytes are no cluster map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("the cluster map is empty")]
    Empty,
    #[error("the cluster map has format {0}, this version reads {MAP_FORMAT}")]
    Format(u8),
    #[error("the cluster map is damaged: {0}")]
    Damaged(String),
}

/// All of the control plane's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    pub cluster: ClusterId,
    /// Control commands that this map reflects, refused ones included.
    pub index: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub spaces: BTreeMap<SpaceId, SpaceRecord>,
    /// Spaces that were dropped, with those of their partitions whose groups may not know it yet.
    /// Until they all do, a node with an older map finds the old space under its name, and replicas
    /// that serve it; so nobody gets the name before.
    pub dropping: BTreeMap<SpaceId, SpaceRecord>,
    pub groups: BTreeMap<GroupId, GroupRecord>,
    pub next_node: u64,
    pub next_space: u64,
    pub next_partition: u64,
    pub next_group: u64,
    pub next_mark: u64,
    pub next_move: u64,
    /// Nodes that left, with their identities: they do not come back as themselves.
    pub left: BTreeMap<NodeId, [u8; 16]>,
}

/// A move of a group's replicas; never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MoveId(pub u64);

impl std::fmt::Display for MoveId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an operator wants of a node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum NodeState {
    #[default]
    Active,
    /// Leads nothing and takes no new replicas.
    Draining,
    /// As draining; and while it is down, its replicas are not created elsewhere.
    Maintenance,
    /// Its replicas go elsewhere, then it leaves the cluster.
    Leaving,
}

impl NodeState {
    /// Whether it may be given replicas and leaderships.
    #[must_use]
    pub fn is_active(self) -> bool {
        self == Self::Active
    }
}

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
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
    pub state: NodeState,
}

/// A space and its partitions in slot order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceRecord {
    pub config: SpaceConfig,
    pub replicas: u32,
    pub partitions: Vec<PartitionRecord>,
    pub local_fallback: LocalFallback,
}

/// What becomes of a change of an edge that asks for a majority when none answers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum LocalFallback {
    /// One replica accepts it, and the answer says so.
    #[default]
    Allowed,
    /// It fails.
    Refused,
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
    /// Where its replicas are; the first is the preferred primary. They vote, unless a move is
    /// under way: then it is between these and its goal who does.
    pub replicas: Vec<NodeId>,
    /// Carries partitions of several small spaces.
    pub shared: bool,
    /// The members that it began with. Only they write its first log entry, and the same one,
    /// however late they are and wherever the group has moved since.
    pub founders: Vec<NodeId>,
    pub change: Option<MoveRecord>,
}

/// A move under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    pub id: MoveId,
    /// Where the replicas are to be; the first is the preferred primary.
    pub goal: Vec<NodeId>,
    /// Every node that may be a member of the group before the move has ended. None of them may
    /// delete its replica.
    pub touched: BTreeSet<NodeId>,
    pub cause: MoveCause,
    /// Milliseconds since the Unix epoch, for people.
    pub started_millis: u64,
    /// It was called off: its goal is where the replicas were.
    pub cancelled: bool,
}

/// Why a group moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MoveCause {
    Operator,
    Rebalance,
    /// A node leaves the cluster.
    Leaving,
    /// A node is dead for longer than the grace period.
    Dead,
    /// The space has another number of replicas now.
    Replicas,
}

impl ClusterMap {
    /// The bytes that are stored, put into snapshots and sent to joining nodes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let encoded = postcard::to_extend(self, vec![MAP_FORMAT]);
        encoded.unwrap_or_else(|error| panic!("a map of plain values is encodable: {error}"))
    }

    /// # Errors
    /// When the bytes are of another format or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let (format, rest) = bytes.split_first().ok_or(MapError::Empty)?;
        let damaged = |error: postcard::Error| MapError::Damaged(error.to_string());
        match *format {
            MAP_FORMAT => postcard::from_bytes(rest).map_err(damaged),
            other => Err(MapError::Format(other)),
        }
    }

    /// Whether the cluster has been founded.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.cluster != ClusterId::default()
    }

    #[must_use]
    pub fn node_by_identity(&self, identity: &[u8; 16]) -> Option<&NodeRecord> {
        self.nodes.values().find(|node| node.identity == *identity)
    }

    /// All partitions with their spaces, in order of spaces and slots.
    pub fn partitions(&self) -> impl Iterator<Item = (&SpaceRecord, PartitionRecord)> {
        let of = |space: &SpaceRecord| space.partitions.clone();
        self.spaces
            .values()
            .flat_map(move |space| of(space).into_iter().map(move |it| (space, it)))
    }

    /// The partitions that `group` carries, with their spaces.
    pub fn partitions_of(
        &self,
        group: GroupId,
    ) -> impl Iterator<Item = (&SpaceRecord, PartitionRecord)> {
        self.partitions()
            .filter(move |(_, partition)| partition.group == group)
    }

    /// The partitions of dropped spaces that `group` may still serve.
    pub fn dropping_of(&self, group: GroupId) -> impl Iterator<Item = PartitionId> {
        let spaces = self.dropping.values();
        let partitions = spaces.flat_map(|space| &space.partitions);
        partitions
            .filter(move |partition| partition.group == group)
            .map(|partition| partition.id)
    }

    /// The dropped space that still has this name, if there is one.
    #[must_use]
    pub fn being_dropped(&self, name: &str) -> Option<&SpaceRecord> {
        self.dropping.values().find(|it| it.config.name == name)
    }

    #[must_use]
    pub fn partition(&self, id: PartitionId) -> Option<(&SpaceRecord, PartitionRecord)> {
        self.partitions().find(|(_, partition)| partition.id == id)
    }

    /// The nodes that vote in the control group: the first 1, 3 or 5 that joined and stay.
    #[must_use]
    pub fn control_voters(&self) -> Vec<NodeId> {
        let stays = |node: &&NodeRecord| node.state != NodeState::Leaving;
        let staying: Vec<NodeId> = self.nodes.values().filter(stays).map(|it| it.id).collect();
        let voters = match staying.len() {
            // The last node keeps the control plane, whatever it was told.
            0 => return self.nodes.keys().copied().take(1).collect(),
            1..=2 => 1,
            3..=4 => 3,
            _ => CONTROL_VOTERS_MAX,
        };
        staying.into_iter().take(voters).collect()
    }

    /// Copies that the spaces of a group ask for; what it has, where no space does.
    #[must_use]
    pub fn wanted_replicas(&self, group: &GroupRecord) -> usize {
        let asked = self
            .partitions_of(group.id)
            .map(|(space, _)| space.replicas as usize);
        asked.max().unwrap_or(group.replicas.len())
    }

    /// Nodes that hold, or may hold, a replica of `group`: those of a move under way included.
    #[must_use]
    pub fn hosts(&self, group: GroupId) -> BTreeSet<NodeId> {
        self.groups
            .get(&group)
            .map(GroupRecord::hosts)
            .unwrap_or_default()
    }

    /// Checks what must hold of every map.
    ///
    /// # Panics
    /// When it does not: the map was changed by something else than its commands.
    pub fn validate(&self) {
        let mut partitions = BTreeSet::new();
        for space in self.spaces.values() {
            let mut next = 0;
            for partition in &space.partitions {
                assert!(
                    partitions.insert(partition.id),
                    "partition {} twice",
                    partition.id
                );
                assert!(
                    partition.id.0 < self.next_partition,
                    "partition id was never given out"
                );
                assert!(
                    self.groups.contains_key(&partition.group),
                    "partition without a group"
                );
                assert!(
                    partition.slots.start == next,
                    "a gap in the slots of a space"
                );
                next = partition.slots.end;
            }
            assert!(
                next == SlotRange::ALL.end,
                "the slots of a space are not covered"
            );
        }
        for space in self.dropping.values() {
            assert!(!space.partitions.is_empty(), "a dropped space is over");
            let name = &space.config.name;
            assert!(self.space(name).is_none(), "a name that is taken twice");
            for partition in &space.partitions {
                assert!(
                    partitions.insert(partition.id),
                    "partition {} twice",
                    partition.id
                );
                assert!(
                    self.groups.contains_key(&partition.group),
                    "a partition is being dropped from no group"
                );
            }
        }
        for group in self.groups.values() {
            assert!(group.id.0 < self.next_group, "group id was never given out");
            assert!(!group.replicas.is_empty(), "a group without replicas");
            let known = |node: &NodeId| self.nodes.contains_key(node);
            assert!(
                group.hosts().iter().all(known),
                "a replica on an unknown node"
            );
            let distinct =
                |nodes: &[NodeId]| nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
            assert!(distinct(&group.replicas), "two replicas on one node");
            if let Some(change) = &group.change {
                assert!(change.id.0 < self.next_move, "move id was never given out");
                assert!(
                    !change.goal.is_empty() && distinct(&change.goal),
                    "a move to nowhere, or twice to one node"
                );
                let nodes = group.replicas.iter().chain(&change.goal);
                assert!(
                    nodes.into_iter().all(|node| change.touched.contains(node)),
                    "a move touches all its nodes"
                );
            }
        }
        for node in self.left.keys() {
            assert!(!self.nodes.contains_key(node), "a node that left is there");
        }
    }

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

impl GroupRecord {
    /// Nodes that hold, or may hold, a replica.
    #[must_use]
    pub fn hosts(&self) -> BTreeSet<NodeId> {
        let moving = self.change.iter().flat_map(|change| &change.touched);
        self.replicas.iter().chain(moving).copied().collect()
    }

    /// Where the replicas are to be when all that is under way has ended.
    #[must_use]
    pub fn settled(&self) -> &[NodeId] {
        self.change
            .as_ref()
            .map_or(&self.replicas, |change| &change.goal)
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
