//! Keys of consensus (ADR 0001), all integers big-endian:
//!
//! ```text
//! log       g 00           vote
//! log       g 01 index     log record
//! log       g 02           purge mark
//! log       g 03           committed index hint
//! metadata  01 g           position of the group's state
//! ```

use engram_core::storage::Family;
use engram_core::types::GroupId;

const VOTE: u8 = 0;
const RECORD: u8 = 1;
const PURGED: u8 = 2;
const COMMITTED: u8 = 3;
const GROUP: u8 = 1;

fn log_key(group: GroupId, tag: u8) -> Vec<u8> {
    let mut key = group.0.to_be_bytes().to_vec();
    key.push(tag);
    key
}

pub fn vote(group: GroupId) -> Vec<u8> {
    log_key(group, VOTE)
}

pub fn record(group: GroupId, index: u64) -> Vec<u8> {
    let mut key = log_key(group, RECORD);
    key.extend(index.to_be_bytes());
    key
}

/// The end of all records of a group, exclusive.
pub fn records_end(group: GroupId) -> Vec<u8> {
    log_key(group, RECORD + 1)
}

/// The index in a record's key.
pub fn index_of(key: &[u8]) -> Option<u64> {
    let index: [u8; 8] = key.get(9..)?.try_into().ok()?;
    Some(u64::from_be_bytes(index))
}

pub fn purged(group: GroupId) -> Vec<u8> {
    log_key(group, PURGED)
}

pub fn committed(group: GroupId) -> Vec<u8> {
    log_key(group, COMMITTED)
}

/// Everything of a group in the log family.
pub fn log_range(group: GroupId) -> (Vec<u8>, Vec<u8>) {
    let start = group.0.to_be_bytes().to_vec();
    let end = engram_core::storage::prefix_end(&start);
    (start, end)
}

pub fn position(group: GroupId) -> Vec<u8> {
    let mut key = vec![GROUP];
    key.extend(group.0.to_be_bytes());
    key
}

/// Everything of all groups in the metadata family, and everything in the log family.
pub fn all_groups() -> [(Family, Vec<u8>, Vec<u8>); 2] {
    let end = engram_core::storage::prefix_end(&[u8::MAX; 8]);
    [
        (Family::Metadata, vec![GROUP], vec![GROUP + 1]),
        (Family::Log, Vec::new(), end),
    ]
}

/// The group that a key of either family belongs to, and the end of its keys there.
pub fn group_of(family: Family, key: &[u8]) -> Option<(GroupId, Vec<u8>)> {
    let from = if family == Family::Metadata { 1 } else { 0 };
    let prefix = key.get(..from + 8)?;
    let id: [u8; 8] = prefix[from..].try_into().ok()?;
    let end = engram_core::storage::prefix_end(prefix);
    Some((GroupId(u64::from_be_bytes(id)), end))
}
