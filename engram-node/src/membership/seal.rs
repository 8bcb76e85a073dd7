//! Authentication of SWIM datagrams: `version(1) mac(16) payload`.
//!
//! The MAC is BLAKE3, keyed by a key that only nodes of the cluster can derive, over the payload.
//! What must hold: nothing of a datagram is looked at before its MAC was found right.

use subtle::ConstantTimeEq as _;

use crate::control::ClusterId;

const VERSION: u8 = 1;
const MAC_BYTES: usize = 16;
/// What a seal adds to a payload.
pub const SEAL_BYTES: usize = 1 + MAC_BYTES;
const KEY_CONTEXT: &str = "engram 2026-11-21 membership datagrams v1";

/// The key of a cluster's datagrams.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("too short")]
    Short,
    #[error("of another version")]
    Version,
    #[error("not from this cluster")]
    Forged,
}

impl SealError {
    /// Label of the metric that counts these.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Version => "version",
            Self::Forged => "forged",
        }
    }
}

impl ClusterKey {
    /// From the cluster id and, where one is configured, the operator's secret. Without a secret
    /// the key keeps clusters apart; it does not keep out who knows the cluster id.
    #[must_use]
    pub fn derive(cluster: ClusterId, secret: Option<&[u8]>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(&cluster.0);
        hasher.update(secret.unwrap_or_default());
        Self(*hasher.finalize().as_bytes())
    }

    fn mac(&self, payload: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&blake3::keyed_hash(&self.0, payload).as_bytes()[..MAC_BYTES]);
        mac
    }

    #[must_use]
    pub fn seal(&self, payload: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(SEAL_BYTES + payload.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.mac(payload));
        sealed.extend_from_slice(payload);
        sealed
    }

    /// The payload.
    ///
    /// # Errors
    /// When it was not sealed with this key.
    pub fn open<'a>(&self, datagram: &'a [u8]) -> Result<&'a [u8], SealError> {
        let (version, rest) = datagram.split_first().ok_or(SealError::Short)?;
        if *version != VERSION {
            return Err(SealError::Version);
        }
        let (mac, payload) = rest.split_at_checked(MAC_BYTES).ok_or(SealError::Short)?;
        let right: bool = self.mac(payload).ct_eq(mac).into();
        if right {
            Ok(payload)
        } else {
            Err(SealError::Forged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens() {
        let cluster = ClusterId([1; 16]);
        let key = ClusterKey::derive(cluster, Some(b"secret"));
        let sealed = key.seal(b"hello");
        assert_eq!(key.open(&sealed), Ok(&b"hello"[..]));
        let others = [
            ClusterKey::derive(cluster, None),
            ClusterKey::derive(cluster, Some(b"Secret")),
            ClusterKey::derive(ClusterId([2; 16]), Some(b"secret")),
        ];
        for other in others {
            assert_eq!(other.open(&sealed), Err(SealError::Forged));
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        let key = ClusterKey::derive(ClusterId([1; 16]), None);
        let sealed = key.seal(b"hello");
        for position in 0..sealed.len() {
            for bit in 0..8 {
                let mut forged = sealed.clone();
                forged[position] ^= 1 << bit;
                assert!(key.open(&forged).is_err());
            }
        }
        for length in 0..SEAL_BYTES {
            assert!(key.open(&sealed[..length]).is_err());
        }
    }
}
