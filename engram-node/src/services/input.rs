//! From what a client sent to what is proposed and asked: every check of a request's form happens
//! here, before anything is done. What depends on state is decided where it is applied.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::command::{Associate, Dissociate, Expected, Forget, Op, OutEdge, Remember};
use engram_core::filter::Filter;
use engram_core::limits;
use engram_core::types::{
    ClientId, EdgeContext, Embedding, MemoryId, Metric, PropertyValue, Relation, RequestId,
    Sequence, SpaceConfig, Unit, check_parts,
};
use engram_proto::convert::decode_chunk;
use engram_proto::v1;

use super::failure::InputError;
use crate::routing::CHUNK_RECORDS_MAX;

/// Longest time that a client's id may lie in the future: ids order clients by age, and one from
/// far ahead would, once forgotten, shut out those who come after it.
const CLIENT_AHEAD_MAX_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// Who asks for a mutation, and in which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    pub client: ClientId,
    pub counter: u64,
    pub retried: bool,
}

impl Requester {
    #[must_use]
    pub fn request_id(self, index: u32) -> RequestId {
        RequestId {
            client: self.client,
            counter: self.counter,
            index,
        }
    }

    /// From a client's request id.
    pub fn from_client(id: &v1::RequestId, now_millis: u64) -> Result<Self, InputError> {
        let bytes: [u8; 16] = id
            .client
            .as_ref()
            .try_into()
            .map_err(|_| InputError::RequestId("the client must be a UUIDv7 of 16 bytes"))?;
        if uuid::Uuid::from_bytes(bytes).get_version_num() != 7 {
            return Err(InputError::RequestId("the client must be a UUIDv7"));
        }
        let made = bytes[..6]
            .iter()
            .fold(0, |millis, byte| millis << 8 | u64::from(*byte));
        if made > now_millis.saturating_add(CLIENT_AHEAD_MAX_MILLIS) {
            return Err(InputError::RequestId(
                "the client's UUIDv7 is of a time in the future",
            ));
        }
        if id.counter == 0 {
            return Err(InputError::RequestId("the counter begins at 1"));
        }
        Ok(Self {
            client: ClientId(bytes),
            counter: id.counter,
            retried: id.retried,
        })
    }
}

pub fn memory_id(what: &'static str, id: &str) -> Result<MemoryId, InputError> {
    MemoryId::new(id).map_err(|why| InputError::MemoryId { what, why })
}

pub fn relation(name: &str) -> Result<Relation, InputError> {
    Relation::new(name).ok_or_else(|| InputError::Relation(name.to_owned()))
}

/// A number in [0, 1]; absent means 1.
pub fn unit(what: &'static str, value: Option<f64>) -> Result<Unit, InputError> {
    unit_or(what, value, Unit::ONE)
}

pub fn unit_or(what: &'static str, value: Option<f64>, absent: Unit) -> Result<Unit, InputError> {
    let given = value.map(Unit::from_f64).transpose();
    Ok(given
        .map_err(|why| InputError::Unit { what, why })?
        .unwrap_or(absent))
}

pub fn at_most(
    what: &'static str,
    unit: &'static str,
    actual: usize,
    max: usize,
) -> Result<(), InputError> {
    if actual <= max {
        Ok(())
    } else {
        Err(InputError::TooMany {
            what,
            actual,
            max,
            unit,
        })
    }
}

/// 0 expects that there is none.
#[must_use]
pub fn expected(version: Option<u64>) -> Expected {
    match version {
        None => Expected::Anything,
        Some(0) => Expected::Absent,
        Some(version) => Expected::Version(Sequence(version)),
    }
}

/// Checks that a filter can be read where it will be evaluated.
pub fn filter(text: &str) -> Result<(), InputError> {
    if text.is_empty() {
        return Ok(());
    }
    Filter::parse(text)?;
    Ok(())
}

/// The operation that stores a memory. Without an id it gets one derived from its request.
pub fn remember(
    config: &SpaceConfig,
    request: RequestId,
    memory: v1::Memory,
    edges: &[v1::OutEdge],
    expected: Expected,
) -> Result<Remember, InputError> {
    let id = if memory.id.is_empty() {
        request.derived_memory_id()
    } else {
        memory.id
    };
    let id = memory_id("the memory's id", &id)?;
    at_most("labels", "labels", memory.labels.len(), limits::LABELS_MAX)?;
    at_most(
        "edges",
        "edges",
        edges.len(),
        limits::EDGES_PER_REMEMBER_MAX,
    )?;
    let labels: BTreeSet<String> = memory.labels.into_iter().collect();
    let property = |(key, value): (String, v1::PropertyValue)| {
        Ok::<_, InputError>((key, PropertyValue::try_from(value)?))
    };
    let properties: BTreeMap<String, PropertyValue> = memory
        .properties
        .into_iter()
        .map(property)
        .collect::<Result<_, _>>()?;
    check_parts(&memory.content, &labels, &properties)?;
    let embedding = match memory.embedding.is_empty() {
        true => None,
        false => Some(config.embedding(memory.embedding, &memory.embedding_model)?),
    };
    let edges: Vec<OutEdge> = edges.iter().map(out_edge).collect::<Result<_, _>>()?;
    // All of them share one request id, under which an edge counts one contribution.
    let mut named = BTreeSet::new();
    if let Some(twice) = edges
        .iter()
        .find(|edge| !named.insert((&edge.to, &edge.relation)))
    {
        let (to, relation) = (twice.to.to_string(), twice.relation.to_string());
        return Err(InputError::EdgeTwice { to, relation });
    }
    Ok(Remember {
        id,
        content: memory.content,
        embedding,
        embedding_model: memory.embedding_model,
        labels,
        properties,
        confidence: unit("the memory's confidence", memory.confidence)?,
        edges,
        expected,
    })
}

fn out_edge(edge: &v1::OutEdge) -> Result<OutEdge, InputError> {
    Ok(OutEdge {
        to: memory_id("the edge's target", &edge.to)?,
        relation: relation(&edge.relation)?,
        weight: unit("the edge's weight", edge.weight)?,
        confidence: unit("the edge's confidence", edge.confidence)?,
    })
}

/// An observation of an edge.
pub fn associate(
    edge: Option<&v1::EdgeRef>,
    weight: Option<f64>,
    confidence: Option<f64>,
) -> Result<Associate, InputError> {
    let (from, to, relation) = edge_ref(edge)?;
    Ok(Associate {
        from,
        to,
        relation,
        weight: unit("the weight", weight)?,
        confidence: unit("the confidence", confidence)?,
    })
}

/// A removal; its context is filled in where it is proposed or accepted.
pub fn dissociate(edge: Option<&v1::EdgeRef>) -> Result<Dissociate, InputError> {
    let (from, to, relation) = edge_ref(edge)?;
    Ok(Dissociate {
        from,
        to,
        relation,
        context: EdgeContext::default(),
    })
}

fn edge_ref(edge: Option<&v1::EdgeRef>) -> Result<(MemoryId, MemoryId, Relation), InputError> {
    let edge = edge.ok_or(InputError::Missing("the edge"))?;
    let from = memory_id("the edge's source", &edge.from)?;
    Ok((
        from,
        memory_id("the edge's target", &edge.to)?,
        relation(&edge.relation)?,
    ))
}

/// A forgetting; its context is filled in where it is proposed.
pub fn forget(id: &str, version: Option<u64>, purge: bool) -> Result<Forget, InputError> {
    Ok(Forget {
        id: memory_id("the memory's id", id)?,
        expected: expected(version),
        context: EdgeContext::default(),
        purge,
    })
}

/// The operations that restore a chunk of a backup.
pub fn restore(config: &SpaceConfig, chunk: &[u8]) -> Result<Vec<Op>, InputError> {
    let ops = decode_chunk(chunk, CHUNK_RECORDS_MAX)?;
    for op in &ops {
        if let Op::RestoreMemory(restore) = op {
            let memory = &restore.memory;
            at_most("labels", "labels", memory.labels.len(), limits::LABELS_MAX)?;
            check_parts(&memory.content, &memory.labels, &memory.properties)?;
            if let Some(row) = &memory.embedding {
                let row = config.embedding(row.components().to_vec(), &memory.embedding_model)?;
                check_direction(config, &row)?;
            }
        }
    }
    Ok(ops)
}

/// What is compared by cosine is stored with length 1, and restored as it was stored.
fn check_direction(config: &SpaceConfig, row: &Embedding) -> Result<(), InputError> {
    let square: f64 = row
        .components()
        .iter()
        .map(|component| f64::from(*component).powi(2))
        .sum();
    if config.metric != Metric::Cosine || (square - 1.0).abs() < 1e-3 {
        return Ok(());
    }
    Err(InputError::OutOfRange {
        what: "the length of a restored embedding",
        actual: square.sqrt(),
        min: 1.0,
        max: 1.0,
    })
}

/// The memory whose partition takes the operation.
#[must_use]
pub fn home(op: &Op) -> &MemoryId {
    match op {
        Op::Remember(remember) => &remember.id,
        Op::Forget(forget) => &forget.id,
        Op::Associate(edge) => &edge.from,
        Op::Dissociate(edge) => &edge.from,
        Op::RestoreMemory(restore) => &restore.memory.id,
        Op::RestoreEdge(restore) => &restore.from,
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{
        Decay, EmbeddingError, IndexParameters, MemoryError, Metric, SpaceId,
    };

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn config() -> SpaceConfig {
        SpaceConfig {
            space: SpaceId(1),
            name: "words".into(),
            dimension: 2,
            metric: Metric::Cosine,
            index: IndexParameters::new(1),
            embedding_model: "m1".into(),
            decay: Decay::None,
        }
    }

    fn client_id(millis: u64) -> Vec<u8> {
        let mut bytes = millis.to_be_bytes()[2..].to_vec();
        bytes.extend([0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 1]);
        bytes
    }

    fn requester(client: Vec<u8>, counter: u64) -> Result<Requester, InputError> {
        let id = v1::RequestId {
            client: client.into(),
            counter,
            retried: false,
        };
        Requester::from_client(&id, NOW)
    }

    fn check(memory: v1::Memory, edges: &[v1::OutEdge]) -> Result<Remember, InputError> {
        let request = requester(client_id(NOW), 3).unwrap().request_id(0);
        remember(&config(), request, memory, edges, Expected::Anything)
    }

    fn memory() -> v1::Memory {
        v1::Memory {
            id: "a".into(),
            embedding: vec![1.0, 0.0],
            ..Default::default()
        }
    }

    #[test]
    fn a_request_id_is_a_uuid_v7_and_a_counter() {
        assert!(requester(client_id(NOW), 1).is_ok());
        assert!(requester(client_id(NOW), 0).is_err());
        assert!(requester(vec![0; 15], 1).is_err());
        assert!(requester(vec![0; 16], 1).is_err(), "not of version 7");
        assert!(requester(client_id(NOW + 2 * CLIENT_AHEAD_MAX_MILLIS), 1).is_err());
    }

    #[test]
    fn an_edge_named_twice_is_refused() {
        let to = |to: &str| v1::OutEdge {
            to: to.into(),
            relation: "near".into(),
            ..Default::default()
        };
        assert!(check(memory(), &[to("b"), to("c")]).is_ok());
        let twice = check(memory(), &[to("b"), to("c"), to("b")]);
        assert!(matches!(twice, Err(InputError::EdgeTwice { .. })));
    }

    #[test]
    fn a_memory_without_an_id_gets_that_of_its_request() {
        let nameless = || v1::Memory {
            id: String::new(),
            ..memory()
        };
        let one = check(nameless(), &[]).unwrap();
        assert_eq!(one.id, check(nameless(), &[]).unwrap().id);
        assert!(one.id.as_str().ends_with("-3-0"), "{}", one.id);
    }

    #[test]
    fn unusable_embeddings_are_refused() {
        let with = |embedding: Vec<f32>, model: &str| {
            let embedding_model = model.to_owned();
            check(
                v1::Memory {
                    embedding,
                    embedding_model,
                    ..memory()
                },
                &[],
            )
            .unwrap_err()
        };
        let wrong = |error| {
            matches!(
                error,
                InputError::Embedding(EmbeddingError::WrongDimension { .. })
            )
        };
        assert!(wrong(with(vec![1.0], "")));
        let infinite = with(vec![1.0, f32::INFINITY], "m1");
        assert!(matches!(
            infinite,
            InputError::Embedding(EmbeddingError::NotFinite { .. })
        ));
        assert_eq!(
            with(vec![0.0, 0.0], "m1"),
            InputError::Embedding(EmbeddingError::ZeroVector)
        );
        let model = with(vec![1.0, 0.0], "m2");
        assert!(matches!(
            model,
            InputError::Embedding(EmbeddingError::WrongModel { .. })
        ));
    }

    #[test]
    fn numbers_outside_the_unit_interval_are_refused() {
        for bad in [-0.1, 1.1, f64::NAN] {
            let confident = v1::Memory {
                confidence: Some(bad),
                ..memory()
            };
            assert!(
                matches!(check(confident, &[]), Err(InputError::Unit { .. })),
                "{bad}"
            );
            let edge = v1::OutEdge {
                to: "b".into(),
                relation: "r".into(),
                weight: Some(bad),
                confidence: None,
            };
            assert!(
                matches!(check(memory(), &[edge]), Err(InputError::Unit { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn ids_and_relations_are_bounded() {
        let long = v1::Memory {
            id: "x".repeat(513),
            ..memory()
        };
        assert!(matches!(check(long, &[]), Err(InputError::MemoryId { .. })));
        let edge = |from: &str, to: &str, relation: &str| {
            let edge = v1::EdgeRef {
                from: from.into(),
                to: to.into(),
                relation: relation.into(),
            };
            dissociate(Some(&edge)).map(drop)
        };
        assert!(edge("a", "b", "r").is_ok());
        assert!(matches!(
            edge("", "b", "r"),
            Err(InputError::MemoryId { .. })
        ));
        assert!(matches!(
            edge("a", "", "r"),
            Err(InputError::MemoryId { .. })
        ));
        assert!(matches!(edge("a", "b", ""), Err(InputError::Relation(_))));
        assert!(matches!(
            edge("a", "b", &"r".repeat(129)),
            Err(InputError::Relation(_))
        ));
        assert_eq!(
            associate(None, None, None),
            Err(InputError::Missing("the edge"))
        );
    }

    #[test]
    fn parts_are_bounded() {
        let labels = (0..=limits::LABELS_MAX).map(|n| n.to_string()).collect();
        let many = v1::Memory { labels, ..memory() };
        assert!(matches!(check(many, &[]), Err(InputError::TooMany { .. })));
        let content = "x".repeat(limits::CONTENT_BYTES_MAX + 1);
        let long = v1::Memory {
            content,
            ..memory()
        };
        assert!(matches!(
            check(long, &[]),
            Err(InputError::Memory(MemoryError::TooLarge { .. }))
        ));
        let value = v1::PropertyValue {
            value: Some(v1::property_value::Value::Number(f64::NAN)),
        };
        let nan = v1::Memory {
            properties: [("p".into(), value)].into(),
            ..memory()
        };
        assert!(check(nan, &[]).is_err());
    }

    #[test]
    fn filters_are_read_before_they_travel() {
        assert!(filter("").is_ok());
        assert!(matches!(filter("((("), Err(InputError::Filter(_))));
    }
}
