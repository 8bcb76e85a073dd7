//! Typed reads of a partition's records, from the newest state or from a view.

use serde::de::DeserializeOwned;

use super::record::{MemoryRecord, RequestRecord, SourceRemovals, VectorRecord};
use crate::command::OpOutcome;
use crate::edges::EdgeRecord;
use crate::index::VectorId;
use crate::keys::{self, KeyRange};
use crate::storage::{Family, Order, Reader, Records, StorageError};
use crate::types::{EdgeKey, MemoryHash, PartitionId, RequestId};

/// The record under a key.
pub fn record<T: DeserializeOwned>(
    reader: &dyn Reader,
    family: Family,
    key: &[u8],
    what: &str,
) -> Result<Option<T>, StorageError> {
    let bytes = reader.get(family, key)?;
    bytes
        .map(|bytes| keys::decode(&bytes).map_err(|error| error.at(what)))
        .transpose()
}

pub fn memory(
    reader: &dyn Reader,
    partition: PartitionId,
    hash: MemoryHash,
) -> Result<Option<MemoryRecord>, StorageError> {
    record(
        reader,
        Family::Memories,
        &keys::memory(partition, hash),
        "a memory record",
    )
}

pub fn vector(
    reader: &dyn Reader,
    partition: PartitionId,
    id: VectorId,
) -> Result<Option<VectorRecord>, StorageError> {
    record(
        reader,
        Family::Vectors,
        &keys::vector(partition, id.0),
        "a vector record",
    )
}

pub fn edge(
    reader: &dyn Reader,
    partition: PartitionId,
    key: &EdgeKey,
) -> Result<Option<EdgeRecord>, StorageError> {
    let bytes = reader.get(Family::Edges, &keys::edge(partition, key))?;
    bytes.map(|bytes| decode_edge(&bytes)).transpose()
}

pub fn decode_edge(bytes: &[u8]) -> Result<EdgeRecord, StorageError> {
    EdgeRecord::decode(bytes).map_err(|error| StorageError::Corrupt {
        what: "an edge record".into(),
        reason: error.to_string(),
    })
}

pub fn source_removals(
    reader: &dyn Reader,
    partition: PartitionId,
    from: MemoryHash,
) -> Result<Option<SourceRemovals>, StorageError> {
    let key = keys::source_removals(partition, from);
    record(
        reader,
        Family::Edges,
        &key,
        "the waiting removals of a memory",
    )
}

/// Whether the log has applied this request, a change of an edge, as far as the table of requests
/// remembers. What was accepted beside the log for it then is the same change once more, also when
/// what the log had of it was removed since.
pub fn is_applied(
    reader: &dyn Reader,
    partition: PartitionId,
    request: RequestId,
) -> Result<bool, StorageError> {
    let key = keys::request(partition, request.client, request.counter);
    let known: Option<RequestRecord> =
        record(reader, Family::Metadata, &key, "the outcomes of a request")?;
    Ok(known.is_some_and(|known| known.outcome(request.index) == Some(&OpOutcome::EdgeChanged)))
}

/// All records of a range, in key order.
pub fn range<'a>(reader: &'a dyn Reader, family: Family, range: &KeyRange) -> Records<'a> {
    reader.scan(family, &range.start, &range.end, Order::Ascending)
}

/// A key that no part of this program writes.
pub fn bad_key(what: &str) -> StorageError {
    StorageError::Corrupt {
        what: what.to_owned(),
        reason: "its key has another form".into(),
    }
}
