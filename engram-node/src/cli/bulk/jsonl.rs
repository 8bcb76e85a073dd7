//! One memory or one association per line: the JSON that import reads and export writes.
//!
//! `{"id","content","embedding","embedding_model","labels","properties","confidence"}` and
//! `{"from","to","relation","weight","confidence"}`. An unknown field is an error, since it is most
//! often a misspelt one.

use std::collections::{BTreeMap, BTreeSet};

use engram_client::types as v1;
use engram_core::limits;
use engram_core::types::{
    EmbeddingError, MemoryError, MemoryId, Metric, Relation, Unit, check_parts,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A memory as a line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryLine {
    pub id: String,
    #[serde(default)]
    pub content: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embedding: Vec<f32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub embedding_model: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// An association as a line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeLine {
    pub from: String,
    pub to: String,
    pub relation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// What the embeddings of a space must be like.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings {
    pub dimension: u32,
    pub metric: Metric,
}

/// Why a line is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadLine {
    /// The code that the server would answer with.
    pub code: &'static str,
    pub reason: String,
}

fn bad(code: &'static str, reason: impl std::fmt::Display) -> BadLine {
    BadLine {
        code,
        reason: reason.to_string(),
    }
}

/// Reads a line as `T`; the reason of a failure names the column.
///
/// # Errors
/// When it is not the JSON of a `T`.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, BadLine> {
    serde_json::from_str(line).map_err(|error| {
        // Its own line number is always 1; the caller names the line of the file.
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        bad(
            "MALFORMED_LINE",
            format!("column {}: {reason}", error.column()),
        )
    })
}

impl MemoryLine {
    /// The memory, checked as the server would, so that a bad line is known before anything is
    /// sent. `row` is the line's row of the embeddings file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn into_memory(
        mut self,
        row: Option<Vec<f32>>,
        embeddings: Embeddings,
    ) -> Result<v1::Memory, BadLine> {
        MemoryId::new(self.id.as_str()).map_err(|error| bad("INVALID_MEMORY_ID", error))?;
        if let Some(row) = row {
            if !self.embedding.is_empty() {
                return Err(bad(
                    "TWO_EMBEDDINGS",
                    "it has an embedding, and so has the .npy file",
                ));
            }
            self.embedding = row;
        }
        check_embedding(&self.embedding, embeddings)?;
        check_unit("confidence", self.confidence)?;
        let mut properties = BTreeMap::new();
        for (key, value) in self.properties {
            properties.insert(key.clone(), property(&key, value)?);
        }
        let labels: BTreeSet<String> = self.labels.iter().cloned().collect();
        check_parts(&self.content, &labels, &core_properties(&properties))
            .map_err(|error| bad(code_of(&error), error))?;
        Ok(v1::Memory {
            id: self.id,
            content: self.content,
            embedding: self.embedding,
            embedding_model: self.embedding_model,
            labels: self.labels,
            properties: properties.into_iter().collect(),
            confidence: self.confidence,
            ..Default::default()
        })
    }

    /// The line that imports as this memory.
    #[must_use]
    pub fn of(memory: v1::Memory) -> Self {
        let properties = memory.properties.into_iter();
        Self {
            id: memory.id,
            content: memory.content,
            embedding: memory.embedding,
            embedding_model: memory.embedding_model,
            labels: memory.labels,
            properties: properties
                .map(|(key, value)| (key, property_json(value)))
                .collect(),
            confidence: memory.confidence,
        }
    }
}

fn check_embedding(components: &[f32], embeddings: Embeddings) -> Result<(), BadLine> {
    // A memory without an embedding is found by its id and its associations only.
    if components.is_empty() {
        return Ok(());
    }
    let Embeddings { dimension, metric } = embeddings;
    engram_core::types::Embedding::new(components.to_vec(), dimension, metric)
        .map(drop)
        .map_err(|error| bad(code_of(&MemoryError::from(error.clone())), error))
}

/// The code that the server has for it.
fn code_of(error: &MemoryError) -> &'static str {
    match error {
        MemoryError::TooLarge { .. } => "TOO_LARGE",
        MemoryError::EmptyLabel => "EMPTY_LABEL",
        MemoryError::PropertyNotFinite { .. } => "NOT_FINITE",
        MemoryError::Embedding(EmbeddingError::WrongDimension { .. }) => "WRONG_DIMENSION",
        MemoryError::Embedding(EmbeddingError::NotFinite { .. }) => "NOT_FINITE",
        MemoryError::Embedding(EmbeddingError::ZeroVector) => "ZERO_VECTOR",
        MemoryError::Embedding(EmbeddingError::WrongModel { .. }) => "WRONG_MODEL",
    }
}

fn check_unit(what: &str, value: Option<f64>) -> Result<(), BadLine> {
    match value.map(Unit::from_f64) {
        Some(Err(error)) => Err(bad("OUT_OF_RANGE", format!("{what}: {error}"))),
        _ => Ok(()),
    }
}

fn property(key: &str, value: Value) -> Result<v1::PropertyValue, BadLine> {
    use v1::property_value::Value as Wire;
    let kinds = "text, a number, a boolean or a list of texts";
    let unfit = || {
        bad(
            "INVALID_PROPERTY",
            format!("property {key:?} is not {kinds}"),
        )
    };
    let wire = match value {
        Value::String(text) => Wire::Text(text),
        Value::Bool(boolean) => Wire::Boolean(boolean),
        Value::Number(number) => Wire::Number(number.as_f64().ok_or_else(unfit)?),
        Value::Array(items) => {
            let texts = items.into_iter().map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(unfit()),
            });
            Wire::List(v1::TextList {
                items: texts.collect::<Result<_, _>>()?,
            })
        }
        Value::Null | Value::Object(_) => return Err(unfit()),
    };
    Ok(v1::PropertyValue { value: Some(wire) })
}

/// The value as JSON; a value of a newer server that is not known here is null.
#[must_use]
pub fn property_json(value: v1::PropertyValue) -> Value {
    use v1::property_value::Value as Wire;
    match value.value {
        Some(Wire::Text(text)) => text.into(),
        Some(Wire::Boolean(boolean)) => boolean.into(),
        Some(Wire::Number(number)) => number.into(),
        Some(Wire::List(list)) => list.items.into(),
        None => Value::Null,
    }
}

fn core_properties(
    properties: &BTreeMap<String, v1::PropertyValue>,
) -> BTreeMap<String, engram_core::types::PropertyValue> {
    use engram_core::types::PropertyValue as Core;
    use v1::property_value::Value as Wire;
    let known = properties.iter().filter_map(|(key, value)| {
        let core = match value.value.clone()? {
            Wire::Text(text) => Core::Text(text),
            Wire::Boolean(boolean) => Core::Boolean(boolean),
            Wire::Number(number) => Core::Number(number),
            Wire::List(list) => Core::List(list.items),
        };
        Some((key.clone(), core))
    });
    known.collect()
}

impl EdgeLine {
    /// The association, checked as the server would.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn into_edge(self) -> Result<v1::ImportEdge, BadLine> {
        for (what, id) in [("from", &self.from), ("to", &self.to)] {
            MemoryId::new(id.as_str())
                .map_err(|error| bad("INVALID_MEMORY_ID", format!("{what}: {error}")))?;
        }
        if Relation::new(&self.relation).is_none() {
            let max = limits::RELATION_BYTES_MAX;
            return Err(bad(
                "INVALID_RELATION",
                format!("a relation has 1 to {max} bytes"),
            ));
        }
        check_unit("weight", self.weight)?;
        check_unit("confidence", self.confidence)?;
        Ok(v1::ImportEdge {
            from: self.from,
            to: self.to,
            relation: self.relation,
            weight: self.weight,
            confidence: self.confidence,
        })
    }

    /// The lines that import as this association. A line carries a confidence of at most 1, so
    /// evidence beyond it goes into further lines of the same weight.
    #[must_use]
    pub fn of(edge: &v1::Edge) -> Vec<Self> {
        let mut lines = Vec::new();
        let mut evidence = edge.evidence;
        loop {
            lines.push(Self {
                from: edge.from.clone(),
                to: edge.to.clone(),
                relation: edge.relation.clone(),
                weight: Some(edge.weight.clamp(0.0, 1.0)),
                confidence: Some(evidence.clamp(0.0, 1.0)),
            });
            evidence -= 1.0;
            if evidence <= 0.0 || evidence.is_nan() {
                return lines;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: Embeddings = Embeddings {
        dimension: 2,
        metric: Metric::Cosine,
    };

    fn memory(line: &str) -> Result<v1::Memory, BadLine> {
        parse::<MemoryLine>(line)?.into_memory(None, TWO)
    }

    #[test]
    fn a_full_line_is_read() {
        let memory = memory(
            r#"{"id":"a","content":"c","embedding":[1,0.5],"labels":["x"],
                "properties":{"t":"s","n":2,"b":true,"l":["p","q"]},"confidence":0.5}"#,
        )
        .expect("valid");
        assert_eq!(memory.embedding, [1.0, 0.5]);
        assert_eq!(memory.properties.len(), 4);
        assert_eq!(memory.confidence, Some(0.5));
    }

    #[test]
    fn malformed_lines_name_what_is_wrong() {
        let code = |line| memory(line).err().map(|bad| bad.code);
        for line in [
            "",
            "{",
            "[]",
            "nonsense",
            r#"{"content":"no id"}"#,
            r#"{"id":"a","labls":[]}"#,
        ] {
            assert_eq!(code(line), Some("MALFORMED_LINE"), "{line}");
        }
        assert_eq!(code(r#"{"id":""}"#), Some("INVALID_MEMORY_ID"));
        assert_eq!(
            code(r#"{"id":"a","embedding":[1]}"#),
            Some("WRONG_DIMENSION")
        );
        assert_eq!(code(r#"{"id":"a","embedding":[0,0]}"#), Some("ZERO_VECTOR"));
        assert!(code(r#"{"id":"a","embedding":[1e39,0]}"#).is_some());
        assert_eq!(code(r#"{"id":"a","confidence":1.5}"#), Some("OUT_OF_RANGE"));
        assert_eq!(
            code(r#"{"id":"a","properties":{"p":null}}"#),
            Some("INVALID_PROPERTY")
        );
        assert_eq!(
            code(r#"{"id":"a","properties":{"p":[1]}}"#),
            Some("INVALID_PROPERTY")
        );
        assert_eq!(code(r#"{"id":"a","labels":[""]}"#), Some("EMPTY_LABEL"));
        let error = memory("{\"id\": 3}").expect_err("a number is no id");
        assert!(error.reason.contains("column"), "{error}");
    }

    #[test]
    fn one_embedding_is_enough() {
        let line: MemoryLine = parse(r#"{"id":"a","embedding":[1,0]}"#).expect("valid");
        let error = line
            .into_memory(Some(vec![1.0, 0.0]), TWO)
            .expect_err("two embeddings");
        assert_eq!(error.code, "TWO_EMBEDDINGS");
    }

    #[test]
    fn malformed_edges_name_what_is_wrong() {
        let code = |line| {
            parse::<EdgeLine>(line)
                .and_then(EdgeLine::into_edge)
                .err()
                .map(|e| e.code)
        };
        assert_eq!(code(r#"{"from":"a","to":"b","relation":"r"}"#), None);
        assert_eq!(code(r#"{"from":"a","to":"b"}"#), Some("MALFORMED_LINE"));
        assert_eq!(
            code(r#"{"from":"","to":"b","relation":"r"}"#),
            Some("INVALID_MEMORY_ID")
        );
        assert_eq!(
            code(r#"{"from":"a","to":"b","relation":""}"#),
            Some("INVALID_RELATION")
        );
        let heavy = r#"{"from":"a","to":"b","relation":"r","weight":-0.1}"#;
        assert_eq!(code(heavy), Some("OUT_OF_RANGE"));
    }

    #[test]
    fn evidence_beyond_one_is_kept_in_further_lines() {
        let edge = v1::Edge {
            weight: 0.25,
            evidence: 2.5,
            ..Default::default()
        };
        let confidences: Vec<Option<f64>> = EdgeLine::of(&edge)
            .into_iter()
            .map(|line| line.confidence)
            .collect();
        assert_eq!(confidences, [Some(1.0), Some(1.0), Some(0.5)]);
        let none = v1::Edge {
            evidence: 0.0,
            ..Default::default()
        };
        assert_eq!(EdgeLine::of(&none).len(), 1);
    }

    fn any_memory() -> impl Strategy<Value = v1::Memory> {
        let text = "[a-z\"\\\\\u{e9}\n ]{1,12}";
        let property = prop_oneof![
            text.prop_map(v1::property_value::Value::Text),
            any::<i32>().prop_map(|n| v1::property_value::Value::Number(f64::from(n) / 8.0)),
            any::<bool>().prop_map(v1::property_value::Value::Boolean),
            prop::collection::vec(text, 0..3)
                .prop_map(|items| v1::property_value::Value::List(v1::TextList { items })),
        ];
        let properties = prop::collection::hash_map(text, property, 0..4);
        let labels = prop::collection::vec(text, 0..3);
        (
            text,
            text,
            labels,
            properties,
            prop::option::of(0.0..=1.0),
            0.1f32..9.0,
        )
            .prop_map(
                |(id, content, labels, properties, confidence, x)| v1::Memory {
                    id,
                    content,
                    embedding: vec![x, -x],
                    labels,
                    properties: properties
                        .into_iter()
                        .map(|(key, value)| (key, v1::PropertyValue { value: Some(value) }))
                        .collect(),
                    confidence,
                    ..Default::default()
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_exported_is_imported_again(memory in any_memory()) {
            let line = serde_json::to_string(&MemoryLine::of(memory.clone())).expect("JSON");
            prop_assert!(!line.contains('\n'));
            let back = parse::<MemoryLine>(&line).and_then(|line| line.into_memory(None, TWO));
            prop_assert_eq!(back, Ok(memory));
        }
    }
}
