//! The control plane as a machine of the control group: keeps the map in the metadata family and
//! publishes it.
//!
//! What must hold: the stored map and the applied position are written in one batch, so a command
//! is never applied twice; the published map is the stored one.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use engram_core::storage::{Batch, Durability, Family, Storage};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::apply::apply;
use super::map::ClusterMap;
use super::wire;
use crate::consensus::{Machine, MachineError, SnapshotSource};

/// Key of the cluster map in the metadata family.
const MAP_KEY: &[u8] = &[3];
/// Largest map that a snapshot may carry, in bytes.
const MAP_BYTES_MAX: u64 = 256 << 20;

/// The state machine of [`engram_core::types::GroupId::CONTROL`].
pub struct ControlMachine {
    storage: Arc<dyn Storage>,
    /// Held while the map changes: one change at a time, storage before publication.
    changing: Mutex<()>,
    published: watch::Sender<Arc<ClusterMap>>,
}

impl ControlMachine {
    /// With the map that storage holds.
    ///
    /// # Errors
    /// When storage cannot be read or its map is of another version.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Arc<Self>, MachineError> {
        let map = match storage.get(Family::Metadata, MAP_KEY)? {
            Some(bytes) => decode(&bytes)?,
            None => ClusterMap::default(),
        };
        let published = watch::Sender::new(Arc::new(map));
        Ok(Arc::new(Self {
            storage,
            changing: Mutex::new(()),
            published,
        }))
    }

    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.published.borrow().clone()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.published.subscribe()
    }

    fn store(&self, map: ClusterMap, mut batch: Batch) -> Result<(), MachineError> {
        map.validate();
        batch.put(Family::Metadata, MAP_KEY, map.encode());
        self.storage.write(batch, Durability::Buffered)?;
        self.published.send_replace(Arc::new(map));
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<ClusterMap, MachineError> {
    ClusterMap::decode(bytes).map_err(|error| MachineError::Snapshot(error.to_string()))
}

impl Machine for ControlMachine {
    fn apply(&self, entry: &[u8], batch: Batch) -> Result<Bytes, MachineError> {
        let command = wire::decode_command(entry)
            .map_err(|error| MachineError::NotUnderstood(error.to_string()))?;
        let _changing = self.changing.lock();
        let mut map = ClusterMap::clone(&self.map());
        let reply = apply(&mut map, &command);
        self.store(map, batch)?;
        Ok(wire::encode_reply(&reply))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(MapCopy(self.map())))
    }

    fn install(&self, source: &mut dyn Read, batch: Batch) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        let mut limited = source.take(MAP_BYTES_MAX);
        limited
            .read_to_end(&mut bytes)
            .map_err(|error| MachineError::Snapshot(error.to_string()))?;
        let map = decode(&bytes)?;
        let _changing = self.changing.lock();
        self.store(map, batch)
    }
}

/// The map as it was when the snapshot was taken.
struct MapCopy(Arc<ClusterMap>);

impl SnapshotSource for MapCopy {
    fn write_to(&mut self, sink: &mut dyn Write) -> Result<(), MachineError> {
        sink.write_all(&self.0.encode())
            .map_err(|error| MachineError::Snapshot(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use engram_core::storage::MemoryStorage;

    use super::*;
    use crate::control::samples;

    fn machine(storage: &Arc<MemoryStorage>) -> Arc<ControlMachine> {
        ControlMachine::open(Arc::clone(storage) as Arc<dyn Storage>).expect("opens")
    }

    fn fill(machine: &ControlMachine) {
        for command in samples::commands() {
            let reply = machine
                .apply(&wire::encode_command(&command), Batch::new())
                .expect("applied");
            wire::decode_reply(&reply)
                .expect("a reply")
                .outcome
                .expect("accepted");
        }
    }

    #[test]
    fn the_map_comes_back_from_storage() {
        let storage = Arc::new(MemoryStorage::default());
        let first = machine(&storage);
        fill(&first);
        assert_eq!(machine(&storage).map(), first.map());
        assert_eq!(first.map().index, samples::commands().len() as u64);
    }

    #[test]
    fn a_snapshot_carries_the_map() {
        let source = machine(&Arc::new(MemoryStorage::default()));
        fill(&source);
        let mut bytes = Vec::new();
        source
            .snapshot()
            .expect("taken")
            .write_to(&mut bytes)
            .expect("written");

        let storage = Arc::new(MemoryStorage::default());
        let target = machine(&storage);
        let mut watch = target.watch();
        target
            .install(&mut bytes.as_slice(), Batch::new())
            .expect("installed");
        assert_eq!(target.map(), source.map());
        assert!(watch.has_changed().expect("the machine lives"));
        assert_eq!(*watch.borrow_and_update(), source.map());
        assert_eq!(machine(&storage).map(), source.map());

        let damaged = target.install(&mut &bytes[..9], Batch::new());
        assert!(matches!(damaged, Err(MachineError::Snapshot(_))));
        assert_eq!(target.map(), source.map());
    }

    #[test]
    fn what_is_not_understood_stops_the_replica() {
        let machine = machine(&Arc::new(MemoryStorage::default()));
        let outcome = machine.apply(b"\xff\xff", Batch::new());
        assert!(matches!(outcome, Err(MachineError::NotUnderstood(_))));
        assert_eq!(machine.map().index, 0);
    }
}
