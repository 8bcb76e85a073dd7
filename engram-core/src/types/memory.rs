//! A memory and what makes one acceptable.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Hlc, MemoryId, Metric, Sequence, SpaceConfig, Unit};
use crate::limits;

/// A vertex of the memory graph, as stored. The embedding lives beside it, under its vector id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub id: MemoryId,
    pub content: String,
    /// Model name and version that made the embedding; empty when there is none or none was named.
    pub embedding_model: String,
    pub labels: BTreeSet<String>,
    pub properties: BTreeMap<String, PropertyValue>,
    pub confidence: Unit,
    /// Sequence of the last write of this memory.
    pub version: Sequence,
    pub created: Hlc,
    pub updated: Hlc,
}

/// The value of a property. Numbers keep their bits; they are compared as IEEE 754 doubles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PropertyValue {
    Text(String),
    Number(f64),
    Boolean(bool),
    List(Vec<String>),
}

impl PropertyValue {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Number(_) => 8,
            Self::Boolean(_) => 1,
            Self::List(items) => items.iter().map(String::len).sum(),
        }
    }
}

/// An embedding with finite components only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embedding(Box<[f32]>);

/// Why a vector is no embedding of a space.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EmbeddingError {
    #[error("the embedding has {actual} components, the space has dimension {expected}")]
    WrongDimension { expected: u32, actual: usize },
    #[error("component {position} of the embedding is {value}, not a finite number")]
    NotFinite { position: usize, value: f32 },
    #[error("a zero vector has no direction, so it cannot be compared by cosine")]
    ZeroVector,
    #[error("the embedding was made by model {actual:?}, the space holds {expected:?}")]
    WrongModel { expected: String, actual: String },
}

impl Embedding {
    /// # Errors
    /// When the dimension differs, a component is not finite, or the metric is cosine and all
    /// components are zero.
    pub fn new(
        components: Vec<f32>,
        dimension: u32,
        metric: Metric,
    ) -> Result<Self, EmbeddingError> {
        if components.len() != dimension as usize {
            let actual = components.len();
            return Err(EmbeddingError::WrongDimension {
                expected: dimension,
                actual,
            });
        }
        if let Some(position) = components.iter().position(|value| !value.is_finite()) {
            let value = components[position];
            return Err(EmbeddingError::NotFinite { position, value });
        }
        if metric == Metric::Cosine && components.iter().all(|value| *value == 0.0) {
            return Err(EmbeddingError::ZeroVector);
        }
        Ok(Self(components.into_boxed_slice()))
    }

    /// An embedding as a log entry holds it: its dimension and direction were checked against the
    /// space when it was proposed, and the dimension is checked again when it is applied.
    ///
    /// # Errors
    /// When a component is not finite.
    pub fn from_log(components: Vec<f32>) -> Result<Self, EmbeddingError> {
        match components.iter().position(|value| !value.is_finite()) {
            Some(position) => Err(EmbeddingError::NotFinite {
                position,
                value: components[position],
            }),
            None => Ok(Self(components.into_boxed_slice())),
        }
    }

    #[must_use]
    pub fn components(&self) -> &[f32] {
        &self.0
    }
}

/// Why a memory is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MemoryError {
    #[error("the {what} has {actual} {unit}, at most {limit} are allowed")]
    TooLarge {
        what: &'static str,
        actual: usize,
        limit: usize,
        unit: &'static str,
    },
    #[error("a label must not be empty")]
    EmptyLabel,
    #[error("property {key:?} is not a finite number")]
    PropertyNotFinite { key: String },
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
}

fn at_most(
    what: &'static str,
    unit: &'static str,
    actual: usize,
    limit: usize,
) -> Result<(), MemoryError> {
    if actual <= limit {
        Ok(())
    } else {
        Err(MemoryError::TooLarge {
            what,
            actual,
            limit,
            unit,
        })
    }
}

/// Checks the parts of a memory that are bounded by [`limits`].
///
/// # Errors
/// The first bound that does not hold.
pub fn check_parts(
    content: &str,
    labels: &BTreeSet<String>,
    properties: &BTreeMap<String, PropertyValue>,
) -> Result<(), MemoryError> {
    at_most("content", "bytes", content.len(), limits::CONTENT_BYTES_MAX)?;
    at_most("label list", "labels", labels.len(), limits::LABELS_MAX)?;
    for label in labels {
        if label.is_empty() {
            return Err(MemoryError::EmptyLabel);
        }
        at_most("label", "bytes", label.len(), limits::LABEL_BYTES_MAX)?;
    }
    at_most(
        "property list",
        "properties",
        properties.len(),
        limits::PROPERTIES_MAX,
    )?;
    let bytes = properties
        .iter()
        .map(|(key, value)| key.len() + value.bytes())
        .sum();
    at_most(
        "property list",
        "bytes",
        bytes,
        limits::PROPERTIES_BYTES_MAX,
    )?;
    for (key, value) in properties {
        if matches!(value, PropertyValue::Number(number) if !number.is_finite()) {
            return Err(MemoryError::PropertyNotFinite { key: key.clone() });
        }
    }
    Ok(())
}

impl SpaceConfig {
    /// The embedding of a memory of this space, from raw components.
    ///
    /// # Errors
    /// When it does not fit the space: dimension, finiteness, zero under cosine, model.
    pub fn embedding(
        &self,
        components: Vec<f32>,
        model: &str,
    ) -> Result<Embedding, EmbeddingError> {
        if !self.embedding_model.is_empty() && !model.is_empty() && model != self.embedding_model {
            return Err(EmbeddingError::WrongModel {
                expected: self.embedding_model.clone(),
                actual: model.to_owned(),
            });
        }
        Embedding::new(components, self.dimension, self.metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_embeddings_are_refused() {
        let make = |components: Vec<f32>| Embedding::new(components, 2, Metric::Cosine);
        assert!(matches!(
            make(vec![1.0]),
            Err(EmbeddingError::WrongDimension { actual: 1, .. })
        ));
        assert!(matches!(
            make(vec![1.0, f32::NAN]),
            Err(EmbeddingError::NotFinite { position: 1, .. })
        ));
        assert_eq!(make(vec![0.0, -0.0]), Err(EmbeddingError::ZeroVector));
        assert!(Embedding::new(vec![0.0, 0.0], 2, Metric::L2).is_ok());
    }

    #[test]
    fn parts_are_bounded() {
        let many: BTreeSet<String> = (0..65).map(|n| n.to_string()).collect();
        assert!(check_parts("", &many, &BTreeMap::new()).is_err());
        let empty = BTreeSet::from([String::new()]);
        assert_eq!(
            check_parts("", &empty, &BTreeMap::new()),
            Err(MemoryError::EmptyLabel)
        );
    }
}
