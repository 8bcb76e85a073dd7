//! A memory on its way in, built step by step.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Expected, OutEdge};
use crate::types::{
    MemoryError, MemoryId, MemoryIdError, OutOfUnit, PropertyValue, Relation, Unit,
};

/// A memory to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMemory {
    pub(super) id: Option<MemoryId>,
    pub(super) content: String,
    pub(super) embedding: Option<Vec<f32>>,
    pub(super) embedding_model: String,
    pub(super) labels: BTreeSet<String>,
    pub(super) properties: BTreeMap<String, PropertyValue>,
    pub(super) confidence: Unit,
    pub(super) edges: Vec<OutEdge>,
    pub(super) expected: Expected,
}

/// Why a memory or an edge cannot be stored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NewMemoryError {
    #[error(transparent)]
    Id(#[from] MemoryIdError),
    #[error(transparent)]
    Parts(#[from] MemoryError),
    #[error("a relation has 1 to {max} bytes", max = crate::limits::RELATION_BYTES_MAX)]
    Relation,
    #[error("weights and confidences are in [0, 1]: {0}")]
    OutOfUnit(#[from] OutOfUnit),
    #[error("{actual} edges, at most {max} are allowed", max = crate::limits::EDGES_PER_REMEMBER_MAX)]
    TooManyEdges { actual: usize },
}

/// A relation from its name.
pub(super) fn relation(name: &str) -> Result<Relation, NewMemoryError> {
    Relation::new(name).ok_or(NewMemoryError::Relation)
}

impl NewMemory {
    #[must_use]
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            id: None,
            content: content.into(),
            embedding: None,
            embedding_model: String::new(),
            labels: BTreeSet::new(),
            properties: BTreeMap::new(),
            confidence: Unit::ONE,
            edges: Vec::new(),
            expected: Expected::Anything,
        }
    }

    /// Without one, an id is made.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub fn id(mut self, id: impl Into<String>) -> Result<Self, NewMemoryError> {
        self.id = Some(MemoryId::new(id)?);
        Ok(self)
    }

    #[must_use]
    pub fn embedding(mut self, components: Vec<f32>) -> Self {
        self.embedding = Some(components);
        self
    }

    /// Name and version of the model that made the embedding.
    #[must_use]
    pub fn embedding_model(mut self, model: impl Into<String>) -> Self {
        self.embedding_model = model.into();
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.labels.insert(label.into());
        self
    }

    #[must_use]
    pub fn property(mut self, key: impl Into<String>, value: PropertyValue) -> Self {
        self.properties.insert(key.into(), value);
        self
    }

    /// # Errors
    /// When it is not in [0, 1].
    pub fn confidence(mut self, confidence: f64) -> Result<Self, NewMemoryError> {
        self.confidence = Unit::from_f64(confidence)?;
        Ok(self)
    }

    /// Evidence for an edge, stored in the same atomic step.
    ///
    /// # Errors
    /// When a part of it is out of its range.
    pub fn edge(
        mut self,
        to: &str,
        name: &str,
        weight: f64,
        confidence: f64,
    ) -> Result<Self, NewMemoryError> {
        let (to, relation) = (MemoryId::new(to)?, relation(name)?);
        let (weight, confidence) = (Unit::from_f64(weight)?, Unit::from_f64(confidence)?);
        self.edges.push(OutEdge {
            to,
            relation,
            weight,
            confidence,
        });
        Ok(self)
    }

    /// Stores only if the memory is as expected.
    #[must_use]
    pub fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }
}
