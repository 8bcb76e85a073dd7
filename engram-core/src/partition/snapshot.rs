//! Snapshots: a partition's log-derived state as one stream, and its installation at another
//! replica. The overlay is not part of it: it belongs to each replica.
//!
//! The links of the index are copied before the view is taken, so that they never know more than
//! the records do; the jobs between are run again at the receiver. Installing marks the partition
//! as incomplete on disk before it deletes anything; the mark goes with the last batch.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::open::{OpenError, PartitionOptions};
use super::requests::TableCheck;
use super::stream::{
    CHUNK_BYTES, ChunkKind, ChunkReader, ChunkWriter, StreamError, push_record, take_record,
};
use super::view::PartitionView;
use super::{Partition, read};
use crate::index::SnapshotError;
use crate::keys::{self, KeyRange};
use crate::planted;
use crate::storage::{Batch, Durability, Family, Order, Storage, StorageError};
use crate::types::{ClientId, PartitionId, Sequence};

use serde::{Deserialize, Serialize};

/// Bytes of records that an installation writes at once.
const INSTALL_BATCH_BYTES: usize = 4 << 20;

/// One state of a partition, to be sent.
pub struct PartitionSnapshot {
    view: PartitionView,
    index: Vec<u8>,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    partition: PartitionId,
    sequence: Sequence,
}

/// Why a snapshot was not written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotWriteError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("writing the snapshot: {0}")]
    Io(#[from] io::Error),
}

/// Why a snapshot was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Nothing was changed when this is about the first chunk; else the partition is incomplete
    /// until another snapshot is installed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the snapshot is of partition {found}, not of {expected}")]
    WrongPartition {
        expected: PartitionId,
        found: PartitionId,
    },
    /// Its sender lost applied request ids: a retry would be applied a second time here.
    #[error("the snapshot lacks request ids of client {client:?}")]
    Requests { client: ClientId },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What a snapshot holds, by family. The overlay and the mark of an installation lie outside.
fn ranges(id: PartitionId) -> Vec<(Family, KeyRange)> {
    let metadata = keys::partition_metadata(id);
    let records = keys::partition_records(id);
    vec![
        (
            Family::Metadata,
            KeyRange {
                start: metadata.start,
                end: keys::installing(id),
            },
        ),
        (Family::Metadata, keys::conflicts(id)),
        (Family::Metadata, KeyRange::of_prefix(keys::purges(id))),
        (Family::Memories, records.clone()),
        (Family::Vectors, records),
        (Family::Edges, keys::all_edges(id)),
        (Family::Edges, keys::all_reverse_edges(id)),
        (Family::Edges, keys::all_source_removals(id)),
    ]
}

impl Partition {
    /// The partition as it is now, to be sent to another replica or kept.
    ///
    /// # Errors
    /// When the links of the index cannot be copied.
    pub fn snapshot(&self) -> Result<PartitionSnapshot, SnapshotError> {
        let mut index = Vec::new();
        self.index.save(&mut index)?;
        Ok(PartitionSnapshot {
            view: self.view(),
            index,
        })
    }

    /// Replaces the log-derived state of the partition by a snapshot, and writes `batch` with its
    /// end. Any [`Partition`] that was open under this id is dead: drop it first.
    ///
    /// # Errors
    /// See [`InstallError`]; a partition of which a part was replaced opens as incomplete.
    ///
    /// # Durability
    /// On disk when this returns.
    pub fn install(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        source: &mut dyn Read,
        batch: Batch,
    ) -> Result<Arc<Self>, InstallError> {
        Self::install_with(storage, id, source, batch, PartitionOptions::default())
    }

    /// As [`Self::install`], with other options than the default.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn install_with(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        source: &mut dyn Read,
        batch: Batch,
        options: PartitionOptions,
    ) -> Result<Arc<Self>, InstallError> {
        let mut chunks = ChunkReader::start(source)?;
        check_header(&mut chunks, id)?;
        clear(&*storage, id)?;
        let index = receive(&*storage, id, &mut chunks)?;
        let mut last = batch;
        last.delete(Family::Metadata, keys::installing(id));
        storage.write(last, Durability::Sync)?;
        let partition = Self::open_with(storage, id, Some(&mut index.as_slice()), options)?;
        partition.drop_adopted_overlay()?;
        Ok(partition)
    }

    /// Deletes overlay records that the installed log has adopted.
    fn drop_adopted_overlay(&self) -> Result<(), StorageError> {
        let view = self.view();
        let mut batch = Batch::new();
        for entry in read::range(&*view.reader, Family::Edges, &keys::overlays(self.id)) {
            let (key, _) = entry?;
            let dot = keys::parse_overlay(&key).ok_or_else(|| read::bad_key("an overlay delta"))?;
            if view.log.overlay.covers(dot) {
                batch.delete(Family::Edges, key);
            }
        }
        if batch.is_empty() {
            Ok(())
        } else {
            self.storage.write(batch, Durability::Buffered)
        }
    }
}

impl PartitionSnapshot {
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.view.sequence()
    }

    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.view.partition
    }

    /// Writes the stream; the same snapshot always gives the same bytes.
    ///
    /// # Errors
    /// When storage cannot be read or the sink does not take it.
    pub fn write_to(&self, sink: &mut dyn Write) -> Result<(), SnapshotWriteError> {
        let id = self.view.partition;
        let mut writer = ChunkWriter::start(sink)?;
        let header = Header {
            partition: id,
            sequence: self.sequence(),
        };
        writer.chunk(ChunkKind::Header, &keys::encode(&header))?;
        for part in self.index.chunks(CHUNK_BYTES) {
            writer.chunk(ChunkKind::Index, part)?;
        }
        for (family, range) in ranges(id) {
            self.write_range(&mut writer, family, &range)?;
        }
        Ok(writer.finish()?)
    }

    fn write_range(
        &self,
        writer: &mut ChunkWriter<'_>,
        family: Family,
        range: &KeyRange,
    ) -> Result<(), SnapshotWriteError> {
        let id = self.view.partition;
        let head = vec![family_code(family)];
        let mut payload = head.clone();
        let records = self
            .view
            .reader
            .scan(family, &range.start, &range.end, Order::Ascending);
        for entry in records {
            let (key, value) = entry?;
            if planted!("snapshot-without-requests") && keys::requests(id).contains(&key) {
                continue;
            }
            let full = payload.len() + key.len() + value.len() > CHUNK_BYTES;
            if full && payload.len() > head.len() {
                writer.chunk(ChunkKind::Records, &payload)?;
                payload.truncate(head.len());
            }
            push_record(&mut payload, &key, &value);
        }
        if payload.len() > head.len() {
            writer.chunk(ChunkKind::Records, &payload)?;
        }
        Ok(())
    }
}

/// Families in the stream. The numbers are part of the format.
fn family_code(family: Family) -> u8 {
    match family {
        Family::Log => 0,
        Family::Memories => 1,
        Family::Vectors => 2,
        Family::Edges => 3,
        Family::Metadata => 4,
    }
}

fn check_header(chunks: &mut ChunkReader<'_>, id: PartitionId) -> Result<(), InstallError> {
    let Some((ChunkKind::Header, payload)) = chunks.next()? else {
        return Err(chunks
            .damaged("it does not begin with what it is of")
            .into());
    };
    let Ok(header) = keys::decode::<Header>(&payload) else {
        return Err(chunks.damaged("its header does not decode").into());
    };
    if header.partition != id {
        return Err(InstallError::WrongPartition {
            expected: id,
            found: header.partition,
        });
    }
    Ok(())
}

/// Marks the partition as incomplete and deletes what the snapshot replaces, as one step.
fn clear(storage: &dyn Storage, id: PartitionId) -> Result<(), StorageError> {
    let mut batch = Batch::new();
    batch.put(Family::Metadata, keys::installing(id), keys::encode(&()));
    for (family, range) in ranges(id) {
        if !(family == Family::Memories && planted!("snapshot-keeps-old-records")) {
            batch.delete_range(family, range.start, range.end);
        }
    }
    if planted!("snapshot-takes-overlay") {
        let overlay = keys::overlays(id);
        batch.delete_range(Family::Edges, overlay.start, overlay.end);
    }
    storage.write(batch, Durability::Sync)
}

/// Writes the records in bounded batches and returns the links of the index. When it returns, the
/// hash over the whole stream was right, and the request table is whole.
fn receive(
    storage: &dyn Storage,
    id: PartitionId,
    chunks: &mut ChunkReader<'_>,
) -> Result<Vec<u8>, InstallError> {
    let allowed = ranges(id);
    let (mut index, mut batch) = (Vec::new(), Batch::new());
    let mut table = TableCheck::default();
    while let Some((kind, payload)) = chunks.next()? {
        match kind {
            ChunkKind::Index => index.extend_from_slice(&payload),
            ChunkKind::Records => {
                let records = take_records(&payload, &allowed)
                    .ok_or_else(|| chunks.damaged("it holds what is no record of the partition"))?;
                for (family, key, value) in records {
                    if family == Family::Metadata {
                        table.take(id, key, value)?;
                    }
                    batch.put(family, key, value);
                }
            }
            ChunkKind::Header | ChunkKind::End => {
                return Err(chunks.damaged("it begins a second time").into());
            }
        }
        if batch.bytes() >= INSTALL_BATCH_BYTES {
            storage.write(std::mem::take(&mut batch), Durability::Buffered)?;
        }
    }
    storage.write(batch, Durability::Buffered)?;
    match table.incomplete() {
        None => Ok(index),
        Some(client) => Err(InstallError::Requests { client }),
    }
}

/// A record of a chunk: its family, key and value.
type Record<'a> = (Family, &'a [u8], &'a [u8]);

/// The records of a chunk; `None` when one does not belong to the partition.
fn take_records<'a>(payload: &'a [u8], allowed: &[(Family, KeyRange)]) -> Option<Vec<Record<'a>>> {
    let (code, mut rest) = payload.split_first()?;
    let family = *Family::ALL
        .iter()
        .find(|family| family_code(**family) == *code)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (key, value) = take_record(&mut rest)?;
        let fits = |(of, range): &(Family, KeyRange)| *of == family && range.contains(key);
        if !allowed.iter().any(fits) {
            return None;
        }
        records.push((family, key, value));
    }
    Some(records)
}
