//! A machine that stores `key=value` entries, for tests.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use engram_core::storage::{Batch, Durability, Family, Order, Storage, prefix_end};
use engram_core::types::GroupId;

use crate::consensus::{Machine, MachineError, MachineFactory, SnapshotSource};

pub struct Toys(pub Arc<dyn Storage>);

impl MachineFactory for Toys {
    fn open(&self, group: GroupId) -> Result<Arc<dyn Machine>, MachineError> {
        Ok(Arc::new(Toy {
            group,
            storage: Arc::clone(&self.0),
        }))
    }

    fn destroy(&self, group: GroupId, mut batch: Batch) -> Result<(), MachineError> {
        let (start, end) = range(group);
        batch.delete_range(Family::Memories, start, end);
        Ok(self.0.write(batch, Durability::Sync)?)
    }
}

struct Toy {
    group: GroupId,
    storage: Arc<dyn Storage>,
}

fn range(group: GroupId) -> (Vec<u8>, Vec<u8>) {
    let start = group.0.to_be_bytes().to_vec();
    let end = prefix_end(&start);
    (start, end)
}

fn key_of(group: GroupId, key: &str) -> Vec<u8> {
    let mut full = group.0.to_be_bytes().to_vec();
    full.extend(key.as_bytes());
    full
}

pub fn get(storage: &dyn Storage, group: GroupId, key: &str) -> Option<String> {
    let value = storage.get(Family::Memories, &key_of(group, key)).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

impl Machine for Toy {
    fn apply(&self, entry: &[u8], mut batch: Batch) -> Result<Bytes, MachineError> {
        let text = std::str::from_utf8(entry).unwrap();
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| MachineError::NotUnderstood(text.to_owned()))?;
        batch.put(Family::Memories, key_of(self.group, key), value);
        self.storage.write(batch, Durability::Buffered)?;
        Ok(Bytes::copy_from_slice(entry))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let (start, end) = range(self.group);
        let view = self.storage.view();
        let records = view.scan(Family::Memories, &start, &end, Order::Ascending);
        let records = records.collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(Copied(records)))
    }

    fn install(&self, source: &mut dyn Read, mut batch: Batch) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).unwrap();
        let records: Vec<(Vec<u8>, Vec<u8>)> = postcard::from_bytes(&bytes).unwrap();
        let (start, end) = range(self.group);
        batch.delete_range(Family::Memories, start, end);
        for (key, value) in records {
            batch.put(Family::Memories, key, value);
        }
        Ok(self.storage.write(batch, Durability::Buffered)?)
    }
}

struct Copied(Vec<engram_core::storage::Record>);

impl SnapshotSource for Copied {
    fn write_to(&mut self, sink: &mut dyn Write) -> Result<(), MachineError> {
        let bytes = postcard::to_allocvec(&self.0).unwrap();
        sink.write_all(&bytes)
            .map_err(|error| MachineError::Snapshot(error.to_string()))
    }
}
