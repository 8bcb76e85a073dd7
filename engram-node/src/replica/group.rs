//! Which partitions a group has: `01 g 01` in the metadata family.

use std::collections::BTreeSet;

use engram_core::storage::{Batch, Family, Reader, StorageError};
use engram_core::types::{GroupId, PartitionId};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// A group's partitions, as its log has created and dropped them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPartitions {
    pub alive: BTreeSet<PartitionId>,
    /// Ids are never reused: these are not created again.
    pub dropped: BTreeSet<PartitionId>,
}

fn key(group: GroupId) -> Vec<u8> {
    let mut key = vec![0x01];
    key.extend(group.0.to_be_bytes());
    key.push(0x01);
    key
}

fn corrupt(group: GroupId, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt {
        what: format!("partitions of group {group}"),
        reason: reason.into(),
    }
}

impl GroupPartitions {
    pub fn load(group: GroupId, reader: &(impl Reader + ?Sized)) -> Result<Self, StorageError> {
        match reader.get(Family::Metadata, &key(group))? {
            Some(bytes) => Self::decode(group, &bytes),
            None => Ok(Self::default()),
        }
    }

    pub fn put(&self, group: GroupId, batch: &mut Batch) {
        batch.put(Family::Metadata, key(group), self.encode());
    }

    pub fn delete(group: GroupId, batch: &mut Batch) {
        batch.delete(Family::Metadata, key(group));
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        // Into memory, and two sets of numbers cannot refuse to be serialised.
        let body = postcard::to_allocvec(self);
        bytes.extend(body.unwrap_or_else(|error| panic!("postcard: {error}")));
        bytes
    }

    /// # Errors
    /// [`StorageError::Corrupt`] when the version or the content is unknown.
    pub fn decode(group: GroupId, bytes: &[u8]) -> Result<Self, StorageError> {
        match bytes.split_first() {
            Some((&VERSION, body)) => {
                postcard::from_bytes(body).map_err(|error| corrupt(group, error.to_string()))
            }
            _ => Err(corrupt(group, "unknown version")),
        }
    }
}
