//! Stand-ins for the rest of a node, for tests of routing and of the services.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engram_core::command::{Applied, PartitionCommand, Write};
use engram_core::partition::Partition;
use engram_core::storage::{
    Batch, Durability, MemoryStorage, RocksOptions, Storage as _, StorageError,
};
use engram_core::types::{
    Decay, GroupId, Hlc, IndexParameters, Metric, NodeId, PartitionId, SlotRange, SpaceConfig,
    SpaceId,
};
use engram_proto::convert::encode_group_command;
use engram_proto::peer::Expiry;
use parking_lot::Mutex;

use super::ports::{Groups, Links, Locals};
use crate::consensus::{BarrierError, Leadership, ProposeError};
use crate::liveness::Clocks;
use crate::seams::{BoxFuture, Clock, Entropy, Seams, Tasks};
use crate::transport::PeerChannel;

/// The seams of the system. Its network and disk are not used.
pub fn system_seams() -> Seams {
    crate::seams::os::seams(RocksOptions::default())
}

/// A space of small vectors.
pub fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "s".into(),
        dimension: 2,
        metric: Metric::Cosine,
        index: IndexParameters::new(1),
        embedding_model: String::new(),
        decay: Decay::None,
    }
}

/// An empty partition in memory.
pub fn partition(id: PartitionId, slots: SlotRange) -> Arc<Partition> {
    let storage = Arc::new(MemoryStorage::new());
    let mut batch = Batch::new();
    let partition = Partition::create(storage.clone(), id, config(), slots, &mut batch);
    storage.write(batch, Durability::Buffered).unwrap();
    partition
}

/// Applies a write as a replica does.
pub fn apply(partition: &Partition, write: Write) -> Applied {
    let command = PartitionCommand::Write(write);
    let bytes = encode_group_command(partition.id(), &command);
    partition.apply(&command, &bytes, Batch::new()).unwrap()
}

/// The partitions of a node.
#[derive(Default)]
pub struct Held(pub Vec<(GroupId, Arc<Partition>)>);

impl Locals for Held {
    fn partition(&self, partition: PartitionId) -> Option<Arc<Partition>> {
        let held = self.0.iter().find(|(_, held)| held.id() == partition);
        held.map(|(_, partition)| Arc::clone(partition))
    }

    fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)> {
        self.0.clone()
    }

    fn kept_stamp(&self) -> Result<Option<Hlc>, StorageError> {
        Ok(None)
    }

    fn keep_stamp(&self, _bound: Hlc) -> Result<(), StorageError> {
        Ok(())
    }
}

/// No other node can be reached.
pub struct NoLinks;

impl Links for NoLinks {
    fn channel(&self, _node: NodeId) -> Option<PeerChannel> {
        None
    }

    fn dial_again(&self, _node: NodeId, _asked_at: Duration) {}
}

/// Nothing is known of the time of others, and whatever comes is in time.
pub struct NoClocks;

impl Clocks for NoClocks {
    fn there(&self, _node: NodeId, _wait: Duration) -> Option<Expiry> {
        None
    }

    fn left(&self, _expiry: &Expiry) -> Duration {
        Duration::MAX
    }
}

/// A clock that stands still until somebody sleeps.
#[derive(Default)]
struct StillClock(Mutex<Duration>);

#[async_trait]
impl Clock for StillClock {
    fn wall_millis(&self) -> u64 {
        1_700_000_000_000
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock()
    }

    async fn sleep(&self, duration: Duration) {
        *self.0.lock() += duration;
    }
}

struct Inline;

impl Tasks for Inline {
    fn spawn(&self, _name: &'static str, _future: BoxFuture<()>) {
        panic!("the router spawns nothing");
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// Seams under which time passes only where somebody sleeps.
pub fn still_seams() -> Seams {
    // The network and the disk are those of the system, and are not used.
    let system = system_seams();
    let clock = Arc::new(StillClock::default());
    Seams {
        clock,
        tasks: Arc::new(Inline),
        entropy: Arc::new(Zeros),
        ..system
    }
}

/// This node has no replica of anything.
pub struct NoGroups;

#[async_trait]
impl Groups for NoGroups {
    fn leadership(&self, _group: GroupId) -> Leadership {
        Leadership::default()
    }

    fn why_stopped(&self, _group: GroupId) -> Option<String> {
        None
    }

    async fn propose(
        &self,
        group: GroupId,
        _entry: Bytes,
        _wait: Duration,
    ) -> Result<Bytes, ProposeError> {
        Err(ProposeError::NoReplica { group })
    }

    async fn read_barrier(&self, group: GroupId, _wait: Duration) -> Result<(), BarrierError> {
        Err(BarrierError::NoReplica { group })
    }

    async fn wait_for_leader(&self, _group: GroupId, _wait: Duration) -> Option<NodeId> {
        None
    }
}
