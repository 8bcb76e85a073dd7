//! The state machine of one data group: its entries, applied to its partitions.
//!
//! Snapshot stream: version u8, length u32 (big-endian) and bytes of the list of partitions, then
//! each living partition's own stream in the order of the ids.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use engram_core::command::{Applied, OpOutcome, PartitionCommand, Rejection};
use engram_core::partition::{
    ApplyError, InstallError, OpenError, Partition, PartitionSnapshot, SnapshotWriteError,
};
use engram_core::storage::{Batch, Durability, StorageError};
use engram_core::types::{GroupId, PartitionId, Sequence, SlotRange, SpaceConfig};
use engram_proto::convert::{decode_group_command, encode_applied};
use parking_lot::Mutex;

use super::Shared;
use super::group::GroupPartitions;
use crate::consensus::{Machine, MachineError, SnapshotSource};

const SNAPSHOT_VERSION: u8 = 1;
/// Greatest list of partitions in a snapshot, in bytes.
const LIST_BYTES_MAX: usize = 16 << 20;

/// One data group's machine.
pub struct DataMachine {
    group: GroupId,
    shared: Arc<Shared>,
    partitions: Mutex<GroupPartitions>,
}

impl DataMachine {
    /// Blocks while it opens the group's partitions.
    pub(super) fn open(group: GroupId, shared: Arc<Shared>) -> Result<Self, MachineError> {
        let partitions = GroupPartitions::load(group, shared.storage.as_ref())?;
        for id in &partitions.alive {
            match shared.open_partition(*id) {
                Ok(partition) => shared.register(group, partition),
                // A snapshot was being installed: consensus knows and installs it again. Until
                // then the partition serves nothing, and an entry for it stops the replica.
                Err(error @ (OpenError::Incomplete { .. } | OpenError::Missing { .. })) => {
                    tracing::warn!(%group, partition = %id, %error, "a partition is incomplete");
                }
                Err(OpenError::Storage(error)) => return Err(error.into()),
                Err(error @ OpenError::Index { .. }) => return Err(corrupt(*id, error).into()),
            }
        }
        Ok(Self {
            group,
            shared,
            partitions: Mutex::new(partitions),
        })
    }

    fn create(
        &self,
        id: PartitionId,
        config: SpaceConfig,
        slots: SlotRange,
        mut batch: Batch,
    ) -> Result<Applied, MachineError> {
        let mut partitions = self.partitions.lock();
        let mut changed = partitions.clone();
        changed.alive.insert(id);
        changed.put(self.group, &mut batch);
        let storage = Arc::clone(&self.shared.storage);
        let created = Partition::create(storage, id, config, slots, &mut batch);
        self.shared.storage.write(batch, Durability::Buffered)?;
        *partitions = changed;
        let sequence = created.sequence();
        self.shared.register(self.group, created);
        Ok(Applied {
            sequence,
            outcomes: Vec::new(),
        })
    }

    fn drop_partition(
        &self,
        partition: &Partition,
        entry: &[u8],
        mut batch: Batch,
    ) -> Result<Applied, MachineError> {
        let mut partitions = self.partitions.lock();
        let mut changed = partitions.clone();
        changed.alive.remove(&partition.id());
        changed.dropped.insert(partition.id());
        changed.put(self.group, &mut batch);
        let applied = partition.apply(&PartitionCommand::Drop, entry, batch);
        let applied = applied.map_err(apply_error)?;
        *partitions = changed;
        self.shared.unregister(partition.id());
        self.shared.remove_index_file(partition.id());
        Ok(applied)
    }

    /// The space is gone before its partition was ever created here: who proposes that later, with
    /// an older map, must not bring it to life.
    fn drop_unborn(&self, id: PartitionId, mut batch: Batch) -> Result<Applied, MachineError> {
        let mut partitions = self.partitions.lock();
        let mut changed = partitions.clone();
        changed.dropped.insert(id);
        changed.put(self.group, &mut batch);
        self.shared.storage.write(batch, Durability::Buffered)?;
        *partitions = changed;
        Ok(Applied {
            sequence: Sequence(0),
            outcomes: Vec::new(),
        })
    }

    /// An entry for a partition that the group does not have (any more): it changes nothing but
    /// the group's position.
    fn skip(&self, command: &PartitionCommand, batch: Batch) -> Result<Applied, MachineError> {
        self.shared.storage.write(batch, Durability::Buffered)?;
        let outcomes = match command {
            PartitionCommand::Write(write) => {
                let rejected = OpOutcome::Rejected(Rejection::NotInPartition);
                write
                    .ops
                    .iter()
                    .map(|(index, _)| (*index, rejected.clone()))
                    .collect()
            }
            _ => Vec::new(),
        };
        Ok(Applied {
            sequence: Sequence(0),
            outcomes,
        })
    }

    fn apply_command(
        &self,
        id: PartitionId,
        command: PartitionCommand,
        entry: &[u8],
        batch: Batch,
    ) -> Result<Applied, MachineError> {
        let (alive, dropped) = {
            let partitions = self.partitions.lock();
            (
                partitions.alive.contains(&id),
                partitions.dropped.contains(&id),
            )
        };
        let open = self.shared.get(id);
        match (command, open) {
            (PartitionCommand::Create { config, slots }, None) if !alive && !dropped => {
                self.create(id, config, slots, batch)
            }
            // A second creation of the same partition: whoever asked did not know of the first.
            (PartitionCommand::Create { .. }, Some(open)) => {
                self.shared.storage.write(batch, Durability::Buffered)?;
                Ok(Applied {
                    sequence: open.sequence(),
                    outcomes: Vec::new(),
                })
            }
            (_, None) if alive => Err(corrupt(id, "it is incomplete").into()),
            (PartitionCommand::Drop, None) if !dropped => self.drop_unborn(id, batch),
            (command, None) => self.skip(&command, batch),
            (PartitionCommand::Drop, Some(open)) => self.drop_partition(&open, entry, batch),
            (command, Some(open)) => open.apply(&command, entry, batch).map_err(apply_error),
        }
    }
}

fn corrupt(partition: PartitionId, reason: impl std::fmt::Display) -> StorageError {
    StorageError::Corrupt {
        what: format!("partition {partition}"),
        reason: reason.to_string(),
    }
}

fn apply_error(error: ApplyError) -> MachineError {
    match error {
        ApplyError::Storage(error) => MachineError::Storage(error),
        error @ (ApplyError::CreatedTwice { .. } | ApplyError::Dropped { .. }) => {
            MachineError::NotUnderstood(error.to_string())
        }
    }
}

fn install_error(error: InstallError) -> MachineError {
    match error {
        InstallError::Storage(error) | InstallError::Open(OpenError::Storage(error)) => {
            MachineError::Storage(error)
        }
        error => MachineError::Snapshot(error.to_string()),
    }
}

fn write_error(error: SnapshotWriteError) -> MachineError {
    match error {
        SnapshotWriteError::Storage(error) => MachineError::Storage(error),
        error => MachineError::Snapshot(error.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn snapshot_error(error: impl ToString) -> MachineError {
    MachineError::Snapshot(error.to_string())
}

impl Machine for DataMachine {
    fn apply(&self, entry: &[u8], batch: Batch) -> Result<Bytes, MachineError> {
        let (id, command) = decode_group_command(entry)
            .map_err(|error| MachineError::NotUnderstood(error.to_string()))?;
        let applied = self.apply_command(id, command, entry, batch)?;
        self.shared.work.notify_one();
        Ok(encode_applied(&applied))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let partitions = self.partitions.lock().clone();
        let copies = partitions.alive.iter().map(|id| {
            let open = self
                .shared
                .get(*id)
                .ok_or_else(|| corrupt(*id, "it is incomplete"))?;
            open.snapshot().map_err(snapshot_error)
        });
        let copies = copies.collect::<Result<_, MachineError>>()?;
        Ok(Box::new(GroupSnapshot { partitions, copies }))
    }

    fn install(&self, source: &mut dyn Read, batch: Batch) -> Result<(), MachineError> {
        let installed = read_list(self.group, source)?;
        let mut partitions = self.partitions.lock();
        for id in &partitions.alive {
            // Who still holds the old one must not accept a local edge that nobody would see.
            if let Some(old) = self.shared.get(*id) {
                old.retire();
            }
        }
        self.shared.unregister_group(self.group);
        let mut first = Batch::new();
        let gone: BTreeSet<_> = partitions
            .alive
            .difference(&installed.alive)
            .copied()
            .collect();
        for id in &gone {
            Partition::drop_state(*id, &mut first);
        }
        installed.put(self.group, &mut first);
        self.shared.storage.write(first, Durability::Buffered)?;
        *partitions = installed.clone();
        gone.iter()
            .for_each(|id| self.shared.remove_index_file(*id));

        let mut last = Some(batch);
        let final_id = installed.alive.last().copied();
        for id in installed.alive {
            let batch = if Some(id) == final_id {
                last.take()
            } else {
                None
            };
            let storage = Arc::clone(&self.shared.storage);
            let open = Partition::install(storage, id, source, batch.unwrap_or_default());
            self.shared
                .register(self.group, open.map_err(install_error)?);
        }
        match last {
            Some(batch) => Ok(self.shared.storage.write(batch, Durability::Buffered)?),
            None => Ok(()),
        }
    }
}

fn read_list(group: GroupId, source: &mut dyn Read) -> Result<GroupPartitions, MachineError> {
    let mut head = [0; 5];
    source.read_exact(&mut head).map_err(snapshot_error)?;
    let [version, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    if version != SNAPSHOT_VERSION || length > LIST_BYTES_MAX {
        return Err(snapshot_error(
            "not a data group's snapshot of a known version",
        ));
    }
    let mut list = vec![0; length];
    source.read_exact(&mut list).map_err(snapshot_error)?;
    Ok(GroupPartitions::decode(group, &list)?)
}

/// All partitions of a group at one position of its log.
struct GroupSnapshot {
    partitions: GroupPartitions,
    copies: Vec<PartitionSnapshot>,
}

impl SnapshotSource for GroupSnapshot {
    fn write_to(&mut self, sink: &mut dyn Write) -> Result<(), MachineError> {
        let list = self.partitions.encode();
        sink.write_all(&[SNAPSHOT_VERSION])
            .map_err(snapshot_error)?;
        sink.write_all(&(list.len() as u32).to_be_bytes())
            .map_err(snapshot_error)?;
        sink.write_all(&list).map_err(snapshot_error)?;
        // Each copy is let go of as soon as it is written: it holds a view of the store.
        for copy in self.copies.drain(..) {
            copy.write_to(sink).map_err(write_error)?;
        }
        Ok(())
    }
}
