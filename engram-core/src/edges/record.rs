//! The stored record of an edge (ADR 0001) and its share in the partition's edge digest.
//!
//! Record: version byte, then postcard of (`to`, state). The key has hashes only; the target's id
//! is kept because its hash slot, which routes a spread, cannot be had from the hash.

use serde::{Deserialize, Serialize};

use super::state::EdgeState;
use crate::types::{EdgeKey, MemoryId, Unit};

const VERSION: u8 = 1;

/// An edge as stored under its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeRecord {
    pub to: MemoryId,
    pub state: EdgeState,
}

/// Why bytes are no edge record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("edge record of format version {found}, this build reads {VERSION}")]
    Version { found: u8 },
    #[error("edge record cannot be decoded: {reason}")]
    Malformed { reason: String },
}

impl EdgeRecord {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(self)
    }

    /// # Errors
    /// When the bytes are of another version, cut, too long, or hold impossible numbers.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed = |reason: String| RecordError::Malformed { reason };
        let Some((version, body)) = bytes.split_first() else {
            return Err(malformed("it is empty".into()));
        };
        if *version != VERSION {
            return Err(RecordError::Version { found: *version });
        }
        let (record, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes too many", rest.len())));
        }
        record
            .state
            .check()
            .map_err(|reason| malformed(reason.into()))?;
        Ok(record)
    }
}

impl EdgeState {
    /// What no sequence of changes can make false.
    fn check(&self) -> Result<(), &'static str> {
        let fits = |wc: Unit, c: Unit| wc <= c && c <= Unit::ONE;
        if !self
            .contributions
            .values()
            .all(|held| fits(held.wc, held.c))
        {
            return Err("a contribution is out of range");
        }
        if self
            .base
            .as_ref()
            .is_some_and(|base| base.sum_wc > base.sum_c)
        {
            return Err("the base weighs more than 1");
        }
        if self.base.as_ref().is_some_and(|base| !base.is_possible()) {
            return Err("the base is of nothing, or from the future");
        }
        let covered = |dot| {
            self.removals
                .values()
                .any(|removal| removal.context.covers(dot))
        };
        if self.contributions.keys().any(covered) {
            return Err("a removed contribution is still there");
        }
        Ok(())
    }
}

/// The additive digest of one edge: first 16 bytes, little-endian, of BLAKE3 over the canonical
/// encoding of key and state. A partition's edge digest is the sum, mod 2^128, over its edges;
/// an empty state has no record and adds nothing.
#[must_use]
pub fn digest(key: &EdgeKey, state: &EdgeState) -> u128 {
    let hash = blake3::hash(&encode_versioned(&(key, state)));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_le_bytes(bytes)
}

fn encode_versioned<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = postcard::to_extend(value, vec![VERSION]);
    assert!(encoded.is_ok(), "memory takes every edge record");
    encoded.unwrap_or_default()
}
