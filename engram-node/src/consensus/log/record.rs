//! One log record:
//!
//! ```text
//! version u8 | crc32c u32 | term u64 | index u64 | payload (postcard)
//! ```
//!
//! Integers are big-endian. The checksum covers its predecessor's checksum, the version and all
//! that follows it, so that a record lost or exchanged in the middle of the log is noticed.

use engram_core::planted;
use engram_core::storage::StorageError;

use crate::consensus::codec::{LogIdRecord, VERSION, corrupt, decode_payload, encode_payload};
use crate::consensus::runtime::Entry;

/// The checksum before a log's first record, when nothing was purged.
pub const CHAIN_START: u32 = 0;

const HEADER_BYTES: usize = 1 + 4 + 2 * 8;

/// An entry's bytes and its checksum, given the checksum of the record before it.
pub fn encode(previous: u32, entry: &Entry) -> (Vec<u8>, u32) {
    let payload = encode_payload(&entry.payload);
    let id = LogIdRecord::from(entry.log_id);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(VERSION);
    bytes.extend([0; 4]);
    for part in [id.term, id.index] {
        bytes.extend(part.to_be_bytes());
    }
    bytes.extend(payload);
    let chain = checksum(previous, &bytes);
    bytes[1..5].copy_from_slice(&chain.to_be_bytes());
    (bytes, chain)
}

/// The entry in `bytes` and its checksum.
///
/// # Errors
/// [`StorageError::Corrupt`] when the record does not chain to `previous`, or is not of `index`.
pub fn decode(previous: u32, index: u64, bytes: &[u8]) -> Result<(Entry, u32), StorageError> {
    let what = || format!("log record {index}");
    let header = Header::read(bytes).ok_or_else(|| corrupt(what(), "too short or unknown"))?;
    let computed = checksum(previous, bytes);
    if computed != header.chain && !planted!("log-chain-unchecked") {
        let reason = format!(
            "checksum {:08x} does not chain to {previous:08x}",
            header.chain
        );
        return Err(corrupt(what(), reason));
    }
    if header.id.index != index {
        return Err(corrupt(
            what(),
            format!("it says it is record {}", header.id.index),
        ));
    }
    let payload = decode_payload(&bytes[HEADER_BYTES..]).map_err(|why| corrupt(what(), why))?;
    Ok((
        Entry {
            log_id: header.id.into(),
            payload,
        },
        header.chain,
    ))
}

/// What a record says about itself, unverified.
pub struct Header {
    pub chain: u32,
    pub id: LogIdRecord,
}

impl Header {
    /// Checksum of a record's content and identity, without its predecessors.
    pub fn content_checksum(bytes: &[u8]) -> u32 {
        crc32c::crc32c(bytes.get(5..).unwrap_or_default())
    }

    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_BYTES || bytes[0] != VERSION {
            return None;
        }
        let chain = u32::from_be_bytes(bytes[1..5].try_into().ok()?);
        let part = |at: usize| {
            let bytes = bytes[at..at + 8].try_into().ok()?;
            Some(u64::from_be_bytes(bytes))
        };
        Some(Self {
            chain,
            id: LogIdRecord {
                term: part(5)?,
                index: part(13)?,
            },
        })
    }
}

fn checksum(previous: u32, bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&previous.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[..1]), &bytes[5..])
}
