//! A space's configuration: everything that shapes state, so it travels in the log.

use serde::{Deserialize, Serialize};

use super::SpaceId;
use crate::limits;

/// How two embeddings are compared. Smaller distance is nearer for all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Metric {
    /// Distance 1 - cosine; vectors are normalised when they are stored.
    Cosine,
    /// Distance -dot product.
    Dot,
    /// Squared Euclidean distance.
    L2,
}

/// What decides the topology of the index, besides the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IndexParameters {
    /// Version of the rules by which links are chosen; a change starts a generation.
    pub algorithm: u32,
    /// Links of a memory on upper levels; level 0 has twice as many.
    pub m: u32,
    pub ef_construction: u32,
    /// Hashed with the id into a memory's level, independent of the slot hash.
    pub level_seed: u64,
    pub quantization: Quantization,
}

/// In which form the index compares vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantization {
    /// As they are.
    #[default]
    None,
    /// As codes of one byte for each component, which the graph is built from and walked with; what
    /// is found is scored again with the full vectors.
    Int8,
    /// As `Int8`, with the full vectors in storage alone.
    Int8OnDisk,
}

/// How much an association's weight fades with the age of its newest contribution, at read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decay {
    #[default]
    None,
    /// Halves every `half_life_millis`.
    Exponential { half_life_millis: u64 },
    /// (1 + age / scale)^-(exponent_thousandths / 1000), after Wixted and Ebbesen (1991).
    PowerLaw {
        scale_millis: u64,
        exponent_thousandths: u32,
    },
}

/// Configuration of a space as its partitions know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceConfig {
    pub space: SpaceId,
    pub name: String,
    pub dimension: u32,
    pub metric: Metric,
    pub index: IndexParameters,
    /// Model that all embeddings must name; empty accepts any, unnamed.
    pub embedding_model: String,
    pub decay: Decay,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceConfigError {
    #[error("a space name has 1 to {max} bytes of a-z, A-Z, 0-9, '_', '-', '.', '/', not starting with '.'", max = limits::SPACE_NAME_BYTES_MAX)]
    Name,
    #[error("{what} is {actual}, allowed are {min} to {max}")]
    OutOfRange {
        what: &'static str,
        actual: u64,
        min: u64,
        max: u64,
    },
}

impl IndexParameters {
    /// The newest algorithm, M 16, ef_construction 200.
    #[must_use]
    pub fn new(level_seed: u64) -> Self {
        Self {
            algorithm: 1,
            m: 16,
            ef_construction: 200,
            level_seed,
            quantization: Quantization::None,
        }
    }
}

fn in_range(what: &'static str, actual: u32, min: u32, max: u32) -> Result<(), SpaceConfigError> {
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    let [actual, min, max] = [actual, min, max].map(u64::from);
    Err(SpaceConfigError::OutOfRange {
        what,
        actual,
        min,
        max,
    })
}

impl SpaceConfig {
    /// # Errors
    /// The first part that is out of its range.
    pub fn check(&self) -> Result<(), SpaceConfigError> {
        let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        let name_fits = (1..=limits::SPACE_NAME_BYTES_MAX).contains(&self.name.len());
        if !name_fits || self.name.starts_with('.') || !self.name.bytes().all(name_byte) {
            return Err(SpaceConfigError::Name);
        }
        in_range(
            "dimension",
            self.dimension,
            limits::DIMENSION_MIN,
            limits::DIMENSION_MAX,
        )?;
        in_range("m", self.index.m, 4, 64)?;
        in_range("ef_construction", self.index.ef_construction, 8, 2_000)?;
        in_range("index algorithm", self.index.algorithm, 1, 1)
    }
}
