//! Values: a version byte, then postcard. What must hold: decoding what was encoded gives it back,
//! and bytes that are no record of this version are an error, never a guess.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::storage::StorageError;

/// The only version so far.
const VERSION: u8 = 1;

/// Why bytes are not the record they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("the record is empty")]
    Empty,
    #[error("the record has format version {found}, this program knows {VERSION}")]
    Version { found: u8 },
    #[error("the record does not decode: {reason}")]
    Malformed { reason: String },
}

impl BadRecord {
    /// As a storage error that names the record.
    #[must_use]
    pub fn at(self, what: impl Into<String>) -> StorageError {
        StorageError::Corrupt {
            what: what.into(),
            reason: self.to_string(),
        }
    }
}

/// The bytes of a record.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let encoded = postcard::to_extend(record, vec![VERSION]);
    assert!(
        encoded.is_ok(),
        "a record of plain data encodes into a growing buffer"
    );
    encoded.unwrap_or_default()
}

/// The record of these bytes.
///
/// # Errors
/// When they are not exactly one record of a known version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    let (version, body) = bytes.split_first().ok_or(BadRecord::Empty)?;
    if *version != VERSION {
        return Err(BadRecord::Version { found: *version });
    }
    let malformed = |reason: String| BadRecord::Malformed { reason };
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Ok(record),
        Ok((_, rest)) => Err(malformed(format!("{} bytes follow its end", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}
