//! Who this node is: a durable record in the metadata family, under `00 "node"`.
//!
//! What must hold: the identity is drawn once per data directory and durable before anyone hears
//! of it; the incarnation grows with every start, also when the wall clock went back.

use engram_core::storage::{Batch, Durability, Family, Storage, StorageError};
use engram_core::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::control::ClusterId;
use crate::seams::Seams;

const KEY: &[u8] = b"\x00node";
const FORMAT: u8 = 1;

/// What the data directory says about its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub identity: [u8; 16],
    /// Of this process, for SWIM.
    pub incarnation: u64,
    /// `None` until the node has founded or joined a cluster.
    pub member: Option<ClusterMember>,
}

/// A place in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMember {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// This node wrote, or is to write, the cluster's first entry.
    pub founder: bool,
}

impl NodeIdentity {
    /// Reads the record, or draws an identity, and begins a new incarnation. Blocks.
    ///
    /// # Errors
    /// When storage fails or the record is damaged.
    pub fn open(storage: &dyn Storage, seams: &Seams) -> Result<Self, StorageError> {
        let stored = match storage.get(Family::Metadata, KEY)? {
            Some(bytes) => Some(decode(&bytes)?),
            None => None,
        };
        let now = seams.clock.wall_millis();
        let record = match stored {
            Some(record) => Self {
                incarnation: now.max(record.incarnation + 1),
                ..record
            },
            None => Self {
                identity: seams.random_id(),
                incarnation: now.max(1),
                member: None,
            },
        };
        record.store(storage)?;
        Ok(record)
    }

    /// Notes the node's place in a cluster. Durable on return. Blocks.
    ///
    /// # Errors
    /// When storage fails.
    pub fn become_member(
        &mut self,
        storage: &dyn Storage,
        member: ClusterMember,
    ) -> Result<(), StorageError> {
        self.member = Some(member);
        self.store(storage)
    }

    fn store(&self, storage: &dyn Storage) -> Result<(), StorageError> {
        let encoded = postcard::to_extend(self, vec![FORMAT]);
        let value = encoded.unwrap_or_else(|error| panic!("a plain record is encodable: {error}"));
        let mut batch = Batch::new();
        batch.put(Family::Metadata, KEY, value);
        storage.write(batch, Durability::Sync)
    }
}

fn decode(bytes: &[u8]) -> Result<NodeIdentity, StorageError> {
    let corrupt = |reason: String| StorageError::Corrupt {
        what: "the node record".into(),
        reason,
    };
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            postcard::from_bytes(rest).map_err(|error| corrupt(error.to_string()))
        }
        Some((format, _)) => Err(corrupt(format!("format {format} is not known"))),
        None => Err(corrupt("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use engram_core::storage::{MemoryStorage, RocksOptions};

    use super::*;
    use crate::seams::os;

    #[tokio::test]
    async fn the_identity_stays_and_the_incarnation_grows() {
        let (storage, seams) = (MemoryStorage::new(), os::seams(RocksOptions::default()));
        let mut first = NodeIdentity::open(&storage, &seams).expect("opens");
        assert_eq!(first.member, None);
        let cluster = ClusterId([3; 16]);
        let member = ClusterMember {
            cluster,
            node: NodeId(4),
            founder: false,
        };
        first.become_member(&storage, member).expect("stored");

        // Whatever the machine loses, it is not this.
        let storage = storage.crash(0);
        let second = NodeIdentity::open(&storage, &seams).expect("opens");
        assert_eq!(
            (second.identity, second.member),
            (first.identity, Some(member))
        );
        assert!(second.incarnation > first.incarnation);

        // The clock was far ahead when the last process started.
        let ahead = NodeIdentity {
            incarnation: u64::MAX / 2,
            ..first
        };
        ahead.store(&storage).expect("stored");
        let third = NodeIdentity::open(&storage, &seams).expect("opens");
        assert_eq!(third.incarnation, u64::MAX / 2 + 1);
    }

    #[tokio::test]
    async fn a_damaged_record_is_an_error() {
        let (storage, seams) = (MemoryStorage::new(), os::seams(RocksOptions::default()));
        for damaged in [&b""[..], b"\x02", b"\x01\x05"] {
            let mut batch = Batch::new();
            batch.put(Family::Metadata, KEY, damaged);
            storage.write(batch, Durability::Sync).expect("written");
            let opened = NodeIdentity::open(&storage, &seams);
            assert!(matches!(opened, Err(StorageError::Corrupt { .. })));
        }
    }
}
