//! The identity of an association.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::MemoryHash;
use crate::limits::RELATION_BYTES_MAX;

/// The type of an association: 1 to 128 bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Relation(Box<str>);

impl Relation {
    /// `None` when the name is empty or too long.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (1..=RELATION_BYTES_MAX)
            .contains(&name.len())
            .then(|| Self(name.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directed, typed association. The order of keys is the canonical order of edges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EdgeKey {
    pub from: MemoryHash,
    pub to: MemoryHash,
    pub relation: Relation,
}
