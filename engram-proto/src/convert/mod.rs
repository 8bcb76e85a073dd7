//! Conversions between generated messages and core types. Decoding is strict: what the messages
//! allow and the types do not (an empty oneof, a wrong length, a number out of range) is a
//! [`DecodeError`] that names the part, never a default.

mod backup;
mod log;
mod v1;
mod walk;

use engram_core::types::{EmbeddingError, MemoryIdError};

pub use backup::{ChunkBuilder, decode_chunk};
pub use log::{decode_applied, decode_group_command, encode_applied, encode_group_command};
pub use v1::{decay_from_api, decay_to_api, memory_to_api, metric_from_api, quantization_from_api};
pub use walk::{ask_from_peer, expanded_from_peer, expanded_to_peer};

/// Why bytes or a message are not what they claim to be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed protobuf: {0}")]
    Malformed(String),
    /// A newer node may have written it; whoever must act on it whole has to stop.
    #[error("{0} is of a kind that this version does not know")]
    NotUnderstood(&'static str),
    #[error("{unknown} bytes belong to fields that this version does not know")]
    UnknownFields { unknown: usize },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} has {actual} bytes, it must have {expected}")]
    Length {
        what: &'static str,
        expected: usize,
        actual: usize,
    },
    #[error("{what} is {actual}, which is out of its range")]
    OutOfRange { what: &'static str, actual: u64 },
    #[error("{what}: {why}")]
    MemoryId {
        what: &'static str,
        why: MemoryIdError,
    },
    #[error("{0:?} is no relation: 1 to 128 bytes are allowed")]
    Relation(String),
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Exactly `N` bytes.
///
/// # Errors
/// [`DecodeError::Length`].
pub fn fixed<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Length {
        what,
        expected: N,
        actual: bytes.len(),
    })
}
