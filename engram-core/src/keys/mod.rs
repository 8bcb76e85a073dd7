//! The keys of a partition's records (ADR 0001), and the version byte before every value. No other
//! module knows a key's bytes.
//!
//! ```text
//! family    key                                   value
//! metadata  00 name                              the program's own records
//! metadata  02 p 00                               partition state
//! metadata  02 p 01 generation(8)                 index generation
//! metadata  02 p 02 v                             death of a vector
//! metadata  02 p 03 client(16)                    client of the request table
//! metadata  02 p 04 client(16) counter(8)         outcomes of an applied request
//! metadata  02 p 05 mark(8)                       digests at a verification mark
//! metadata  02 p 06                               overlay dots that the log has adopted
//! metadata  02 p 07                               a snapshot is being installed
//! metadata  02 p 08 number(8)                     conflict that folding left undecided
//! metadata  02 p 09                               purges that the log has asked for
//! memories  p h                                   memory record
//! vectors   p v                                   embedding
//! edges     p 00 h(from) h(to) relation           edge state
//! edges     p 01 h(to) h(from) relation           reverse index, empty
//! edges     p 02 actor(16) n(8)                   overlay delta
//! edges     p 03 h(from)                          removals of all out-edges that still wait
//! ```
//!
//! `p` is the partition id, `h` a memory's hash, `v` a vector id; integers are big-endian, so that
//! the order of bytes is the order of numbers. Tags and widths are frozen.

mod value;

use crate::storage::prefix_end;
use crate::types::{
    ActorId, ClientId, EdgeKey, MarkId, MemoryHash, OverlayDot, PartitionId, Relation,
};

pub use value::{BadRecord, decode, encode};

/// First byte of every key of the program itself in the metadata family; 01 is a group's.
const PROGRAM: u8 = 0x00;
/// First byte of every partition key in the metadata family.
const PARTITION: u8 = 0x02;

const STATE: u8 = 0x00;
const GENERATION: u8 = 0x01;
const DEATH: u8 = 0x02;
const CLIENT: u8 = 0x03;
const REQUEST: u8 = 0x04;
const MARK: u8 = 0x05;
const ADOPTED: u8 = 0x06;
const INSTALLING: u8 = 0x07;
const CONFLICT: u8 = 0x08;
const PURGES: u8 = 0x09;

const EDGE: u8 = 0x00;
const REVERSE: u8 = 0x01;
const OVERLAY: u8 = 0x02;
const SOURCE_REMOVALS: u8 = 0x03;

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Vec<u8>,
    pub end: Vec<u8>,
}

impl KeyRange {
    #[must_use]
    pub fn of_prefix(prefix: Vec<u8>) -> Self {
        Self {
            end: prefix_end(&prefix),
            start: prefix,
        }
    }

    /// The part of the range behind `key`.
    #[must_use]
    pub fn after(self, key: &[u8]) -> Self {
        let mut start = key.to_vec();
        start.push(0);
        Self {
            start: start.max(self.start),
            end: self.end,
        }
    }

    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn metadata(partition: PartitionId, tag: u8, rest: &[&[u8]]) -> Vec<u8> {
    let mut key = join(&[&[PARTITION], &partition.0.to_be_bytes(), &[tag]]);
    rest.iter().for_each(|part| key.extend_from_slice(part));
    key
}

fn edges(partition: PartitionId, tag: u8, rest: &[&[u8]]) -> Vec<u8> {
    let mut key = join(&[&partition.0.to_be_bytes(), &[tag]]);
    rest.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// A record of the program itself.
#[must_use]
pub fn program(name: &str) -> Vec<u8> {
    join(&[&[PROGRAM], name.as_bytes()])
}

/// The program's records whose names begin with `prefix`.
#[must_use]
pub fn programs(prefix: &str) -> KeyRange {
    KeyRange::of_prefix(program(prefix))
}

/// The partition's state record.
#[must_use]
pub fn state(partition: PartitionId) -> Vec<u8> {
    metadata(partition, STATE, &[])
}

/// All metadata of all partitions of a store.
#[must_use]
pub fn all_partitions() -> KeyRange {
    KeyRange::of_prefix(vec![PARTITION])
}

/// The partition that a metadata key belongs to, if it belongs to one.
#[must_use]
pub fn parse_partition(key: &[u8]) -> Option<PartitionId> {
    let (id, _) = key.strip_prefix(&[PARTITION])?.split_first_chunk::<8>()?;
    Some(PartitionId(u64::from_be_bytes(*id)))
}

/// All metadata of one partition.
#[must_use]
pub fn partition_metadata(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(join(&[&[PARTITION], &partition.0.to_be_bytes()]))
}

#[must_use]
pub fn generation(partition: PartitionId, number: u64) -> Vec<u8> {
    metadata(partition, GENERATION, &[&number.to_be_bytes()])
}

#[must_use]
pub fn generations(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, GENERATION, &[]))
}

/// The purges that the log has asked for.
#[must_use]
pub fn purges(partition: PartitionId) -> Vec<u8> {
    metadata(partition, PURGES, &[])
}

#[must_use]
pub fn death(partition: PartitionId, vector: u64) -> Vec<u8> {
    metadata(partition, DEATH, &[&vector.to_be_bytes()])
}

#[must_use]
pub fn deaths(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, DEATH, &[]))
}

#[must_use]
pub fn client(partition: PartitionId, client: ClientId) -> Vec<u8> {
    metadata(partition, CLIENT, &[&client.0])
}

#[must_use]
pub fn clients(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, CLIENT, &[]))
}

#[must_use]
pub fn request(partition: PartitionId, client: ClientId, counter: u64) -> Vec<u8> {
    metadata(partition, REQUEST, &[&client.0, &counter.to_be_bytes()])
}

#[must_use]
pub fn requests(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, REQUEST, &[]))
}

#[must_use]
pub fn requests_of(partition: PartitionId, client: ClientId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, REQUEST, &[&client.0]))
}

#[must_use]
pub fn mark(partition: PartitionId, mark: MarkId) -> Vec<u8> {
    metadata(partition, MARK, &[&mark.0.to_be_bytes()])
}

#[must_use]
pub fn marks(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, MARK, &[]))
}

/// The overlay dots that the log has adopted.
#[must_use]
pub fn adopted(partition: PartitionId) -> Vec<u8> {
    metadata(partition, ADOPTED, &[])
}

/// Present while a snapshot is being installed.
#[must_use]
pub fn installing(partition: PartitionId) -> Vec<u8> {
    metadata(partition, INSTALLING, &[])
}

/// Conflicts are numbered from 1 in the order of the log.
#[must_use]
pub fn conflict(partition: PartitionId, number: u64) -> Vec<u8> {
    metadata(partition, CONFLICT, &[&number.to_be_bytes()])
}

#[must_use]
pub fn conflicts(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(metadata(partition, CONFLICT, &[]))
}

#[must_use]
pub fn memory(partition: PartitionId, hash: MemoryHash) -> Vec<u8> {
    join(&[&partition.0.to_be_bytes(), &hash.0])
}

/// All memories, or all vectors, or all edge records of a partition: one range in each family.
#[must_use]
pub fn partition_records(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(partition.0.to_be_bytes().to_vec())
}

#[must_use]
pub fn vector(partition: PartitionId, vector: u64) -> Vec<u8> {
    join(&[&partition.0.to_be_bytes(), &vector.to_be_bytes()])
}

#[must_use]
pub fn edge(partition: PartitionId, key: &EdgeKey) -> Vec<u8> {
    edges(
        partition,
        EDGE,
        &[&key.from.0, &key.to.0, key.relation.as_str().as_bytes()],
    )
}

#[must_use]
pub fn all_edges(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(edges(partition, EDGE, &[]))
}

#[must_use]
pub fn out_edges(partition: PartitionId, from: MemoryHash) -> KeyRange {
    KeyRange::of_prefix(edges(partition, EDGE, &[&from.0]))
}

#[must_use]
pub fn reverse_edge(partition: PartitionId, key: &EdgeKey) -> Vec<u8> {
    edges(
        partition,
        REVERSE,
        &[&key.to.0, &key.from.0, key.relation.as_str().as_bytes()],
    )
}

#[must_use]
pub fn in_edges(partition: PartitionId, to: MemoryHash) -> KeyRange {
    KeyRange::of_prefix(edges(partition, REVERSE, &[&to.0]))
}

#[must_use]
pub fn all_reverse_edges(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(edges(partition, REVERSE, &[]))
}

#[must_use]
pub fn overlay(partition: PartitionId, dot: OverlayDot) -> Vec<u8> {
    edges(partition, OVERLAY, &[&dot.actor.0, &dot.n.to_be_bytes()])
}

#[must_use]
pub fn overlays(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(edges(partition, OVERLAY, &[]))
}

/// Removals of all out-edges of a memory that name overlay dots which the log has not yet.
#[must_use]
pub fn source_removals(partition: PartitionId, from: MemoryHash) -> Vec<u8> {
    edges(partition, SOURCE_REMOVALS, &[&from.0])
}

#[must_use]
pub fn all_source_removals(partition: PartitionId) -> KeyRange {
    KeyRange::of_prefix(edges(partition, SOURCE_REMOVALS, &[]))
}

/// The last eight bytes of a key as a number: a vector id, a generation, a mark, a counter, a conflict.
#[must_use]
pub fn parse_number(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>()
        .map(|bytes| u64::from_be_bytes(*bytes))
}

/// The memory hash that ends a memory's key, or that of waiting removals.
#[must_use]
pub fn parse_hash(key: &[u8]) -> Option<MemoryHash> {
    key.last_chunk::<16>().map(|bytes| MemoryHash(*bytes))
}

#[must_use]
pub fn parse_client(key: &[u8]) -> Option<ClientId> {
    key.last_chunk::<16>().map(|bytes| ClientId(*bytes))
}

/// The client of a request's key.
#[must_use]
pub fn parse_request(key: &[u8]) -> Option<ClientId> {
    let (rest, _counter) = key.split_last_chunk::<8>()?;
    rest.last_chunk::<16>().map(|bytes| ClientId(*bytes))
}

#[must_use]
pub fn parse_overlay(key: &[u8]) -> Option<OverlayDot> {
    let (rest, n) = key.split_last_chunk::<8>()?;
    let actor = ActorId(*rest.last_chunk::<16>()?);
    Some(OverlayDot {
        actor,
        n: u64::from_be_bytes(*n),
    })
}

fn parse_pair(key: &[u8], tag: u8) -> Option<(MemoryHash, MemoryHash, Relation)> {
    let (_, rest) = key.split_first_chunk::<8>()?;
    let rest = rest.strip_prefix(&[tag])?;
    let (first, rest) = rest.split_first_chunk::<16>()?;
    let (second, relation) = rest.split_first_chunk::<16>()?;
    let relation = Relation::new(std::str::from_utf8(relation).ok()?)?;
    Some((MemoryHash(*first), MemoryHash(*second), relation))
}

#[must_use]
pub fn parse_edge(key: &[u8]) -> Option<EdgeKey> {
    let (from, to, relation) = parse_pair(key, EDGE)?;
    Some(EdgeKey { from, to, relation })
}

#[must_use]
pub fn parse_reverse_edge(key: &[u8]) -> Option<EdgeKey> {
    let (to, from, relation) = parse_pair(key, REVERSE)?;
    Some(EdgeKey { from, to, relation })
}

#[cfg(test)]
mod tests;
