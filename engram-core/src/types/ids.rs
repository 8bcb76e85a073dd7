//! Identities. None of them is ever reused.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{HASH_SLOTS, MEMORY_ID_BYTES_MAX};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// One `engram` process, numbered by the control plane; 1 is the founder.
    NodeId
);
number!(
    /// A Raft group: the unit of replication and placement. 0 is the control plane.
    GroupId
);
number!(
    /// A range of hash slots of one space, with its own index and edges.
    PartitionId
);
number!(
    /// A memory space.
    SpaceId
);
number!(
    /// A partition's own count of applied commands; 0 is the empty partition.
    Sequence
);
number!(
    /// A verification mark: the point of the log at which replicas are compared.
    MarkId
);

impl GroupId {
    /// The control plane's group.
    pub const CONTROL: Self = Self(0);
}

impl Sequence {
    /// The sequence of the next command.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A memory's id: the caller's UTF-8 string of 1 to 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryId(Box<str>);

/// Why a string is no memory id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryIdError {
    #[error("a memory id must not be empty")]
    Empty,
    #[error("a memory id has {bytes} bytes, at most {MEMORY_ID_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
}

impl MemoryId {
    /// # Errors
    /// When `id` is empty or longer than [`MEMORY_ID_BYTES_MAX`].
    pub fn new(id: impl Into<String>) -> Result<Self, MemoryIdError> {
        let id: String = id.into();
        match id.len() {
            0 => Err(MemoryIdError::Empty),
            bytes if bytes > MEMORY_ID_BYTES_MAX => Err(MemoryIdError::TooLong { bytes }),
            _ => Ok(Self(id.into_boxed_str())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this memory on the wire and in keys.
    #[must_use]
    pub fn hash(&self) -> MemoryHash {
        let digest = blake3::hash(self.0.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        MemoryHash(bytes)
    }

    /// The hash slot that decides the partition. If the id holds a non-empty `{tag}`, the first
    /// such tag alone is hashed, so that memories which belong together share a partition.
    #[must_use]
    pub fn hash_slot(&self) -> HashSlot {
        let hashed = tag_of(&self.0).unwrap_or(&self.0);
        HashSlot((seahash::hash(hashed.as_bytes()) >> 50) as u16)
    }
}

/// The text between the first `{` and the first `}` after it, if there is any.
fn tag_of(id: &str) -> Option<&str> {
    let (_, after) = id.split_once('{')?;
    let (tag, _) = after.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

impl TryFrom<String> for MemoryId {
    type Error = MemoryIdError;
    fn try_from(id: String) -> Result<Self, MemoryIdError> {
        Self::new(id)
    }
}

impl From<MemoryId> for String {
    fn from(id: MemoryId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// First 128 bits of the BLAKE3 hash of a memory's id: its name in keys and in spread frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemoryHash(pub [u8; 16]);

impl fmt::Debug for MemoryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One of the [`HASH_SLOTS`] slots of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HashSlot(pub u16);

/// A half-open range of hash slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    pub start: u16,
    pub end: u16,
}

impl SlotRange {
    /// All slots: the range of a space's only partition.
    pub const ALL: Self = Self {
        start: 0,
        end: HASH_SLOTS,
    };

    #[must_use]
    pub fn contains(self, slot: HashSlot) -> bool {
        (self.start..self.end).contains(&slot.0)
    }

    /// `parts` ranges that cover all slots, in order, their sizes differing by at most one.
    #[must_use]
    pub fn split_evenly(parts: u32) -> Vec<Self> {
        assert!(
            (1..=u32::from(HASH_SLOTS)).contains(&parts),
            "{parts} parts of a slot space"
        );
        let cut = |part: u32| (part * u32::from(HASH_SLOTS) / parts) as u16;
        (0..parts)
            .map(|part| Self {
                start: cut(part),
                end: cut(part + 1),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MemoryId {
        MemoryId::new(text).expect("a valid id")
    }

    #[test]
    fn ids_are_bounded() {
        assert_eq!(MemoryId::new(""), Err(MemoryIdError::Empty));
        assert_eq!(
            MemoryId::new("x".repeat(513)),
            Err(MemoryIdError::TooLong { bytes: 513 })
        );
        assert!(MemoryId::new("x".repeat(512)).is_ok());
    }

    #[test]
    fn a_tag_alone_decides_the_slot() {
        assert_eq!(id("{user-1}a").hash_slot(), id("b{user-1}").hash_slot());
        assert_eq!(id("{user-1}a").hash_slot(), id("user-1").hash_slot());
        assert_ne!(id("{}a").hash_slot(), id("{}b").hash_slot());
    }

    /// Golden values: a change here would scatter every stored memory.
    #[test]
    fn slots_and_hashes_are_frozen() {
        let slots = ["a", "dog.n.02084071", "{user-1}x"].map(|text| id(text).hash_slot().0);
        assert_eq!(slots, [2673, 13646, 2651]);
        assert_eq!(
            format!("{:?}", id("a").hash()),
            "17762fddd969a453925d65717ac3eea2"
        );
    }

    #[test]
    fn even_split_covers_all_slots() {
        for parts in [1, 2, 3, 7, 16, 256] {
            let ranges = SlotRange::split_evenly(parts);
            assert_eq!(ranges[0].start, 0);
            assert_eq!(ranges[ranges.len() - 1].end, HASH_SLOTS);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
