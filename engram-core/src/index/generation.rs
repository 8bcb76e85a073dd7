//! A generation as state: what fixes the slots of one graph, small enough to keep for ever.

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use super::VectorId;
use crate::types::Sequence;

/// Version byte of an encoded generation.
const VERSION: u8 = 1;

/// An index built from an ordered live set at a position fixed by the log.
///
/// Slot of `v` = its rank in `base` when `v < first`, else `|base| + v - first`.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// From 1, in order of the log.
    pub number: u64,
    /// The command after which the base was taken.
    pub start: Sequence,
    /// Vectors alive at the start.
    pub base: RoaringTreemap,
    /// The vector id that came next.
    pub first: VectorId,
}

/// Why bytes are no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("a generation record has version {found:?}, this binary reads {VERSION}")]
    Version { found: Option<u8> },
    #[error("a generation record cannot be decoded: {0}")]
    Malformed(String),
    #[error("a generation's base holds vector {id}, not below its first vector {first}")]
    BaseBeyondFirst { id: u64, first: u64 },
}

#[derive(Serialize, Deserialize)]
struct Record {
    number: u64,
    start: Sequence,
    first: VectorId,
    base: Vec<u8>,
}

impl Generation {
    /// The generation that every partition begins with.
    #[must_use]
    pub fn initial() -> Self {
        let base = RoaringTreemap::new();
        Self {
            number: 1,
            start: Sequence(0),
            base,
            first: VectorId(0),
        }
    }

    /// Slots that the base takes.
    #[must_use]
    pub fn base_len(&self) -> u64 {
        self.base.len()
    }

    /// The slot of a vector, if this generation has one for it.
    #[must_use]
    pub fn slot_of(&self, id: VectorId) -> Option<u64> {
        if id >= self.first {
            return Some(self.base.len() + (id.0 - self.first.0));
        }
        self.base.contains(id.0).then(|| self.base.rank(id.0) - 1)
    }

    /// The vector that takes a slot.
    #[must_use]
    pub fn vector_of(&self, slot: u64) -> Option<VectorId> {
        match slot.checked_sub(self.base.len()) {
            Some(after) => self.first.0.checked_add(after).map(VectorId),
            None => self.base.select(slot).map(VectorId),
        }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut base = Vec::with_capacity(self.base.serialized_size());
        let written = self.base.serialize_into(&mut base);
        assert!(written.is_ok(), "writing to memory failed: {written:?}");
        let (number, start, first) = (self.number, self.start, self.first);
        match postcard::to_extend(
            &Record {
                number,
                start,
                first,
                base,
            },
            vec![VERSION],
        ) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("writing integers and bytes to memory failed: {error}"),
        }
    }

    /// # Errors
    /// When the bytes were not made by [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, GenerationError> {
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(GenerationError::Version {
                found: bytes.first().copied(),
            });
        };
        let malformed =
            |error: &dyn std::fmt::Display| GenerationError::Malformed(error.to_string());
        let record: Record = postcard::from_bytes(body).map_err(|error| malformed(&error))?;
        let base = RoaringTreemap::deserialize_from(record.base.as_slice())
            .map_err(|error| malformed(&error))?;
        let Record {
            number,
            start,
            first,
            ..
        } = record;
        match base.max() {
            Some(id) if id >= first.0 => {
                Err(GenerationError::BaseBeyondFirst { id, first: first.0 })
            }
            _ => Ok(Self {
                number,
                start,
                base,
                first,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_round_trip(
            base in proptest::collection::btree_set(0_u64..5_000, 0..300),
            number: u64,
            start: u64,
            beyond in 0_u64..1_000,
        ) {
            let first = VectorId(base.last().map_or(0, |last| last + 1) + beyond);
            let base: RoaringTreemap = base.into_iter().collect();
            let generation = Generation { number, start: Sequence(start), base, first };
            let bytes = generation.encode();
            prop_assert_eq!(&Generation::decode(&bytes), &Ok(generation.clone()));
            for slot in 0..generation.base_len() + 5 {
                let id = generation.vector_of(slot).expect("a vector");
                prop_assert_eq!(generation.slot_of(id), Some(slot));
            }
            for cut in 0..bytes.len().min(64) {
                prop_assert!(Generation::decode(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            if let Ok(generation) = Generation::decode(&bytes) {
                prop_assert!(generation.base.max().is_none_or(|id| id < generation.first.0));
            }
        }
    }

    #[test]
    fn dead_vectors_of_the_past_have_no_slot() {
        let base: RoaringTreemap = [2, 5].into_iter().collect();
        let generation = Generation {
            number: 2,
            start: Sequence(9),
            base,
            first: VectorId(7),
        };
        let slots = [0, 2, 3, 5, 6, 7, 8].map(|id| generation.slot_of(VectorId(id)));
        assert_eq!(
            slots,
            [None, Some(0), None, Some(1), None, Some(2), Some(3)]
        );
    }

    #[test]
    fn the_format_is_frozen() {
        let base: RoaringTreemap = [1, 3].into_iter().collect();
        let generation = Generation {
            number: 2,
            start: Sequence(300),
            base,
            first: VectorId(4),
        };
        let hex: String = generation
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str =
        "0102ac0204200100000000000000000000003a30000001000000000001001000000001000300";
}
