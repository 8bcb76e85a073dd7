//! The data groups' partitions on this node.
//!
//! [`Replicas`] is the registry that routing and the services read; it gives consensus the
//! machine of each data group and drives the index jobs of all partitions. [`machine`] applies
//! log entries to the partitions of one group; [`jobs`] links windows on blocking threads and
//! saves the links now and then, so that a restart need not link again; [`gate`] holds writers back while it lags;
//! [`purging`] makes what was purged go away. What must hold: a
//! partition is in the registry only while its state is whole; which partitions a group has is
//! itself state of the group, changed by its log.

mod crew;
mod gate;
mod group;
mod jobs;
mod machine;
mod purging;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_core::keys;
use engram_core::partition::{OpenError, Partition};
use engram_core::storage::{Batch, Durability, Family, Storage, StorageError};
use engram_core::types::{GroupId, Hlc, PartitionId};
use parking_lot::RwLock;
use tokio::sync::Notify;

pub use self::crew::Hands;
pub use self::gate::{INDEX_TAIL_MAX_DEFAULT, INDEX_TAIL_MAX_LEAST, LinkGate, LinkingLags};
use self::group::GroupPartitions;
pub use self::machine::DataMachine;
pub use self::purging::{Cleared, Purging};
use crate::consensus::{Machine, MachineError, MachineFactory};
use crate::seams::Seams;

/// The record of the bound of stamps.
const STAMP: &str = "stamp";

fn stamp_key() -> Vec<u8> {
    keys::program(STAMP)
}

/// All partitions that have a replica on this node.
pub struct Replicas {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    storage: Arc<dyn Storage>,
    /// Links of the partitions, one file each.
    index_dir: PathBuf,
    open: RwLock<BTreeMap<PartitionId, (GroupId, Arc<Partition>)>>,
    /// Woken when a partition may have a job.
    work: Arc<Notify>,
    /// Cores that jobs may use.
    hands: Hands,
    /// Where writers wait for linking.
    gate: LinkGate,
    cleared: Cleared,
}

impl Replicas {
    /// Starts the job runner; the partitions come with their groups. `index_tail_max` is the bound
    /// at which writers wait for linking.
    #[must_use]
    pub fn new(
        seams: Seams,
        storage: Arc<dyn Storage>,
        data_dir: &Path,
        index_tail_max: u32,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            seams,
            storage,
            index_dir: data_dir.join("index"),
            open: RwLock::default(),
            work: Arc::default(),
            hands: Hands::new(std::thread::available_parallelism().map_or(1, usize::from)),
            gate: LinkGate::new(index_tail_max),
            cleared: Cleared::default(),
        });
        jobs::start(&shared);
        Arc::new(Self { shared })
    }

    #[must_use]
    pub fn partition(&self, partition: PartitionId) -> Option<Arc<Partition>> {
        self.shared
            .open
            .read()
            .get(&partition)
            .map(|(_, open)| Arc::clone(open))
    }

    /// All of them, in the order of their ids.
    #[must_use]
    pub fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)> {
        self.shared.all()
    }

    /// Where writers wait for linking.
    #[must_use]
    pub fn gate(&self) -> &LinkGate {
        &self.shared.gate
    }

    /// Purges of which nothing is left here.
    #[must_use]
    pub fn cleared(&self) -> &Cleared {
        &self.shared.cleared
    }

    /// Blocks. The bound of stamps that this node kept last.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn kept_stamp(&self) -> Result<Option<Hlc>, StorageError> {
        let bytes = self.shared.storage.get(Family::Metadata, &stamp_key())?;
        let decode = |bytes: Vec<u8>| keys::decode(&bytes).map_err(|error| error.at(STAMP));
        bytes.map(decode).transpose()
    }

    /// Blocks. Keeps a bound of stamps, durable on return.
    ///
    /// # Errors
    /// When storage cannot be written.
    pub fn keep_stamp(&self, bound: Hlc) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        batch.put(Family::Metadata, stamp_key(), keys::encode(&bound));
        self.shared.storage.write(batch, Durability::Sync)
    }

    /// Saves the links of all partitions, for a quick start next time. To be called when no more
    /// entries are applied.
    pub async fn save_indexes(&self) {
        let shared = Arc::clone(&self.shared);
        self.shared
            .seams
            .blocking(move || jobs::save_all(&shared, &mut BTreeMap::new()))
            .await;
    }
}

impl Shared {
    fn all(&self) -> Vec<(GroupId, Arc<Partition>)> {
        self.open.read().values().cloned().collect()
    }

    fn register(&self, group: GroupId, partition: Arc<Partition>) {
        self.open.write().insert(partition.id(), (group, partition));
        self.work.notify_one();
    }

    fn unregister(&self, partition: PartitionId) {
        self.open.write().remove(&partition);
    }

    fn unregister_group(&self, group: GroupId) {
        self.open.write().retain(|_, (of, _)| *of != group);
    }

    fn get(&self, partition: PartitionId) -> Option<Arc<Partition>> {
        self.open
            .read()
            .get(&partition)
            .map(|(_, open)| Arc::clone(open))
    }

    fn index_file(&self, partition: PartitionId) -> PathBuf {
        self.index_dir.join(format!("{:016x}.snap", partition.0))
    }

    /// Blocks. Removes the links' file; a left-over is harmless, since ids are never reused.
    fn remove_index_file(&self, partition: PartitionId) {
        if let Err(error) = self.seams.disk.remove_file(&self.index_file(partition)) {
            tracing::warn!(%partition, %error, "cannot remove an index file");
        }
    }

    /// Blocks. Opens a partition with the links that were saved, when there are any.
    fn open_partition(&self, partition: PartitionId) -> Result<Arc<Partition>, OpenError> {
        let storage = Arc::clone(&self.storage);
        match self.seams.disk.open_file(&self.index_file(partition)) {
            Ok(mut links) => Partition::open(storage, partition, Some(&mut links)),
            Err(_) => Partition::open(storage, partition, None),
        }
    }
}

impl MachineFactory for Replicas {
    fn open(&self, group: GroupId) -> Result<Arc<dyn Machine>, MachineError> {
        let machine = DataMachine::open(group, Arc::clone(&self.shared))?;
        Ok(Arc::new(machine))
    }

    fn destroy(&self, group: GroupId, mut batch: Batch) -> Result<(), MachineError> {
        let partitions = GroupPartitions::load(group, self.shared.storage.as_ref())?;
        for partition in &partitions.alive {
            // Who still holds it must not accept a local edge that nobody would see.
            if let Some(open) = self.shared.get(*partition) {
                open.retire();
            }
        }
        self.shared.unregister_group(group);
        for partition in &partitions.alive {
            Partition::drop_state(*partition, &mut batch);
        }
        GroupPartitions::delete(group, &mut batch);
        self.shared.storage.write(batch, Durability::Sync)?;
        for partition in &partitions.alive {
            self.shared.remove_index_file(*partition);
        }
        Ok(())
    }
}
