//! The control plane as a machine of the control group: keeps the map in the metadata family and
//! publishes it.
//!
//! What must hold: the stored map and the applied position are written in one batch, so a command
//! is never applied twice; the published map never goes back. It is what the log has made, but for a
//! replica that begins anew ([`ControlMachine::begin_anew`]): until that has come as far again, the
//! map that was known is published, and stored beside the replica's own.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use engram_core::planted;
use engram_core::storage::{Batch, Durability, Family, Storage};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::apply::apply;
use super::map::ClusterMap;
use super::wire;
use crate::consensus::{Machine, MachineError, SnapshotSource};

/// Key of the cluster map in the metadata family.
const MAP_KEY: &[u8] = &[3];
/// Key of the map of a replica that began anew and is behind the published one.
const BEHIND_KEY: &[u8] = &[3, 1];
/// Largest map that a snapshot may carry, in bytes.
const MAP_BYTES_MAX: u64 = 256 << 20;

/// The state machine of [`engram_core::types::GroupId::CONTROL`].
pub struct ControlMachine {
    storage: Arc<dyn Storage>,
    /// What the log has made of the map so far. Held while it changes: one change at a time, storage
    /// before publication.
    state: Mutex<Arc<ClusterMap>>,
    published: watch::Sender<Arc<ClusterMap>>,
}

impl ControlMachine {
    /// With the map that storage holds.
    ///
    /// # Errors
    /// When storage cannot be read or its map is of another version.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Arc<Self>, MachineError> {
        let stored = |key| match storage.get(Family::Metadata, key)? {
            Some(bytes) => decode(&bytes).map(|map| Some(Arc::new(map))),
            None => Ok(None),
        };
        let known = stored(MAP_KEY)?.unwrap_or_default();
        let state = stored(BEHIND_KEY)?.unwrap_or_else(|| Arc::clone(&known));
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            published: watch::Sender::new(known),
            storage,
        }))
    }

    /// The replica's log is gone: it is brought back from the first entry on, or by a snapshot. What
    /// is known of the cluster stays published, for no node may act on an older map than before. In one
    /// write with `batch`, synced.
    ///
    /// # Errors
    /// When storage cannot be written.
    pub fn begin_anew(&self, mut batch: Batch) -> Result<(), MachineError> {
        let mut state = self.state.lock();
        let none = ClusterMap::default();
        batch.put(Family::Metadata, BEHIND_KEY, none.encode());
        self.storage.write(batch, Durability::Sync)?;
        *state = Arc::new(none);
        Ok(())
    }

    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.published.borrow().clone()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.published.subscribe()
    }

    fn store(
        &self,
        state: &mut Arc<ClusterMap>,
        map: ClusterMap,
        mut batch: Batch,
    ) -> Result<(), MachineError> {
        map.validate();
        let known = self.published.borrow().index;
        let is_news = map.index >= known || planted!("map-goes-back");
        if is_news {
            batch.put(Family::Metadata, MAP_KEY, map.encode());
            batch.delete(Family::Metadata, BEHIND_KEY);
        } else {
            batch.put(Family::Metadata, BEHIND_KEY, map.encode());
        }
        self.storage.write(batch, Durability::Buffered)?;
        *state = Arc::new(map);
        if is_news {
            self.published.send_replace(Arc::clone(state));
        }
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
        let mut state = self.state.lock();
        let mut map = ClusterMap::clone(&state);
        let reply = apply(&mut map, &command);
        self.store(&mut state, map, batch)?;
        Ok(wire::encode_reply(&reply))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(MapCopy(Arc::clone(&self.state.lock()))))
    }

    fn install(&self, source: &mut dyn Read, batch: Batch) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        let mut limited = source.take(MAP_BYTES_MAX);
        limited
            .read_to_end(&mut bytes)
            .map_err(|error| MachineError::Snapshot(error.to_string()))?;
        let map = decode(&bytes)?;
        let mut state = self.state.lock();
        self.store(&mut state, map, batch)
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
    use engram_core::storage::{MemoryStorage, Reader as _};

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

    /// From its first entry, and again after a restart in the middle.
    #[test]
    fn a_machine_that_begins_anew_shows_what_was_known_until_it_has_come_as_far() {
        let storage = Arc::new(MemoryStorage::default());
        let first = machine(&storage);
        fill(&first);
        let known = first.map();
        first.begin_anew(Batch::new()).expect("begun");
        let entries: Vec<_> = samples::commands()
            .iter()
            .map(wire::encode_command)
            .collect();
        let (before, last) = entries.split_at(entries.len() - 1);
        let (some, rest) = before.split_at(before.len() / 2);
        let apply_all = |machine: &ControlMachine, entries: &[Bytes]| {
            for entry in entries {
                machine.apply(entry, Batch::new()).expect("applied");
                assert_eq!(machine.map(), known);
            }
        };
        apply_all(&first, some);
        let second = machine(&storage);
        apply_all(&second, rest);
        assert_eq!(second.state.lock().index + 1, known.index);
        let mut watch = second.watch();
        apply_all(&second, last);
        assert!(
            watch.has_changed().expect("the machine lives"),
            "its own now"
        );
        assert_eq!(*watch.borrow_and_update(), known);
        let behind = storage.get(Family::Metadata, BEHIND_KEY);
        assert_eq!(behind.expect("readable"), None);
    }

    #[test]
    fn an_older_snapshot_is_installed_and_not_shown() {
        let source = machine(&Arc::new(MemoryStorage::default()));
        let mut older = Vec::new();
        let snapshot = source.snapshot();
        snapshot
            .and_then(|mut source| source.write_to(&mut older))
            .expect("written");
        let target = machine(&Arc::new(MemoryStorage::default()));
        fill(&target);
        let known = target.map();
        target.begin_anew(Batch::new()).expect("begun");
        let installed = target.install(&mut older.as_slice(), Batch::new());
        installed.expect("installed");
        assert_eq!((target.map(), target.state.lock().index), (known, 0));
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
