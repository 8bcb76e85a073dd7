//! One node of a run: its disk, its replica, its side of the protocol.

use std::sync::Arc;
use std::time::Duration;

use engram_core::partition::Partition;
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{
    ActorId, Decay, IndexParameters, Metric, NodeId, PartitionId, SlotRange, SpaceConfig, SpaceId,
};
use engram_node::overlay::Protocol;

pub const PARTITION: PartitionId = PartitionId(3);
pub const CLUSTER: [u8; 16] = [5; 16];

/// A node that has a replica, or what is left of one.
pub struct Node {
    pub storage: MemoryStorage,
    pub partition: Arc<Partition>,
    pub protocol: Protocol,
    pub actor: ActorId,
    /// A copy of its disk from an earlier time.
    pub backup: Option<MemoryStorage>,
    pub is_up: bool,
}

pub fn node_id(number: usize) -> NodeId {
    NodeId(number as u64 + 1)
}

/// The number of a node.
pub fn number_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "overlays".into(),
        dimension: 1,
        metric: Metric::L2,
        index: IndexParameters::new(1),
        embedding_model: String::new(),
        decay: Decay::None,
    }
}

impl Node {
    /// `life` is greater than that of any process before.
    fn new(number: usize, storage: MemoryStorage, partition: Arc<Partition>, life: u64) -> Self {
        let mut actor = [0; 16];
        actor[..8].copy_from_slice(&life.to_be_bytes());
        Self {
            storage,
            partition,
            protocol: Protocol::new(node_id(number), CLUSTER, life << 32, Duration::ZERO),
            actor: ActorId(actor),
            backup: None,
            is_up: true,
        }
    }

    /// A founder of the partition.
    pub fn found(number: usize, life: u64) -> Self {
        let storage = MemoryStorage::new();
        let mut batch = Batch::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::create(shared, PARTITION, config(), SlotRange::ALL, &mut batch);
        let written = storage.write(batch, Durability::Sync);
        written.unwrap_or_else(|error| panic!("create: {error}"));
        Self::new(number, storage, partition, life)
    }

    /// Starts from a disk.
    pub fn open(number: usize, storage: MemoryStorage, life: u64) -> Self {
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::open(shared, PARTITION, None)
            .unwrap_or_else(|error| panic!("open: {error}"));
        Self::new(number, storage, partition, life)
    }

    /// Starts from an empty disk and a snapshot.
    pub fn filled(number: usize, snapshot: &[u8], life: u64) -> Self {
        let storage = MemoryStorage::new();
        let partition = install(&storage, snapshot);
        Self::new(number, storage, partition, life)
    }

    /// A snapshot replaces what it has from the log.
    pub fn install(&mut self, snapshot: &[u8]) {
        self.partition = install(&self.storage, snapshot);
    }

    /// A snapshot of it; none of a replica that is on its way out.
    pub fn snapshot(&self) -> Option<Vec<u8>> {
        if self.partition.is_retired() {
            return None;
        }
        let mut bytes = Vec::new();
        let snapshot = self.partition.snapshot();
        let written = snapshot.map(|snapshot| snapshot.write_to(&mut bytes));
        match written {
            Ok(Ok(_)) => Some(bytes),
            Ok(Err(error)) => panic!("snapshot: {error}"),
            Err(error) => panic!("snapshot: {error}"),
        }
    }

    /// Commands of the list that it has applied; the creation is the first and not in it.
    pub fn applied(&self) -> usize {
        (self.partition.sequence().0 - 1) as usize
    }
}

fn install(storage: &MemoryStorage, snapshot: &[u8]) -> Arc<Partition> {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let mut bytes = snapshot;
    Partition::install(shared, PARTITION, &mut bytes, Batch::new())
        .unwrap_or_else(|error| panic!("install: {error}"))
}
