//! `engram.log.v1` <-> `engram_core::command`. Called by whoever proposes entries, by the replica
//! that applies them, and by the exchange of overlay deltas.
//!
//! What must hold: encode then decode is the identity, a command has one encoding, and an entry
//! with any part that this version does not know is refused whole, since replicas of two versions
//! that applied different parts of it would drift apart.

use bytes::Bytes;
use engram_core::command::{
    Applied, Associate, Dissociate, EdgeChange, EvidenceSums, Expected, Forget, Op, OpOutcome,
    OutEdge, OverlayDelta, PartitionCommand, Rejection, Remember, RestoreEdge, RestoreMemory,
    Write,
};
use engram_core::limits::HASH_SLOTS;
use engram_core::types::{
    ActorId, ClientId, Decay, EdgeContext, EdgeKey, Embedding, Hlc, IndexParameters, MarkId,
    MemoryHash, MemoryId, Metric, OverlayContext, OverlayDot, PartitionId, PropertyValue,
    Quantization, Relation, RequestId, Sequence, SlotRange, SpaceConfig, SpaceId, Unit,
};
use prost::Message as _;

use super::{DecodeError, fixed};
use crate::log as wire;

/// The bytes of a log entry.
#[must_use]
pub fn encode_group_command(partition: PartitionId, command: &PartitionCommand) -> Bytes {
    let command = Some(command.into());
    wire::GroupCommand {
        partition: partition.0,
        command,
    }
    .encode_to_vec()
    .into()
}

/// # Errors
/// When any part of the entry is malformed or not known to this version.
pub fn decode_group_command(bytes: &[u8]) -> Result<(PartitionId, PartitionCommand), DecodeError> {
    let message = wire::GroupCommand::decode(bytes)?;
    // prost drops fields it does not know; what it kept must account for every byte.
    match bytes.len().checked_sub(message.encoded_len()) {
        Some(0) => {}
        Some(unknown) => return Err(DecodeError::UnknownFields { unknown }),
        None => {
            return Err(DecodeError::Malformed(
                "an encoding shorter than its content".into(),
            ));
        }
    }
    let command = message.command.ok_or(DecodeError::Missing("command"))?;
    Ok((PartitionId(message.partition), command.try_into()?))
}

/// The bytes of an answer.
#[must_use]
pub fn encode_applied(applied: &Applied) -> Bytes {
    wire::Applied::from(applied).encode_to_vec().into()
}

/// # Errors
/// When the answer is malformed or an outcome is of an unknown kind.
pub fn decode_applied(bytes: &[u8]) -> Result<Applied, DecodeError> {
    wire::Applied::decode(bytes)?.try_into()
}

// ---- parts --------------------------------------------------------------------------------

fn unit(what: &'static str, bits: u64) -> Result<Unit, DecodeError> {
    Unit::from_bits(bits).ok_or(DecodeError::OutOfRange { what, actual: bits })
}

fn memory_id(what: &'static str, id: String) -> Result<MemoryId, DecodeError> {
    MemoryId::new(id).map_err(|why| DecodeError::MemoryId { what, why })
}

fn relation(name: String) -> Result<Relation, DecodeError> {
    Relation::new(&name).ok_or(DecodeError::Relation(name))
}

fn required<T>(what: &'static str, part: Option<T>) -> Result<T, DecodeError> {
    part.ok_or(DecodeError::Missing(what))
}

/// A part of a oneof: empty when the sender set a kind that this version does not know.
fn known<T>(what: &'static str, part: Option<T>) -> Result<T, DecodeError> {
    part.ok_or(DecodeError::NotUnderstood(what))
}

fn all<A, B: TryFrom<A, Error = DecodeError>>(items: Vec<A>) -> Result<Vec<B>, DecodeError> {
    items.into_iter().map(B::try_from).collect()
}

fn client(bytes: &[u8]) -> Result<ClientId, DecodeError> {
    fixed("client", bytes).map(ClientId)
}

fn floats_to_bytes(components: &[f32]) -> Bytes {
    components
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<u8>>()
        .into()
}

fn floats_from_bytes(bytes: &[u8]) -> Result<Vec<f32>, DecodeError> {
    let (components, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        let expected = components.len() * 4;
        return Err(DecodeError::Length {
            what: "embedding",
            expected,
            actual: bytes.len(),
        });
    }
    Ok(components
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect())
}

// ---- commands -----------------------------------------------------------------------------

impl From<&PartitionCommand> for wire::PartitionCommand {
    fn from(command: &PartitionCommand) -> Self {
        use wire::partition_command::Command;
        let command = match command {
            PartitionCommand::Create { config, slots } => Command::Create(wire::Create {
                config: Some(config.into()),
                slot_start: u32::from(slots.start),
                slot_end: u32::from(slots.end),
            }),
            PartitionCommand::Write(write) => Command::Write(write.into()),
            PartitionCommand::Adopt { deltas } => Command::Adopt(wire::Adopt {
                deltas: deltas.iter().map(Into::into).collect(),
            }),
            PartitionCommand::Fold { frontier, edges } => Command::Fold(wire::Fold {
                frontier: Some(frontier.into()),
                edges: edges.iter().map(Into::into).collect(),
            }),
            PartitionCommand::Mark { mark } => Command::Mark(wire::Mark { mark: mark.0 }),
            PartitionCommand::Renew => Command::Renew(wire::Renew {}),
            PartitionCommand::Drop => Command::Drop(wire::Drop {}),
        };
        Self {
            command: Some(command),
        }
    }
}

impl TryFrom<wire::PartitionCommand> for PartitionCommand {
    type Error = DecodeError;

    fn try_from(message: wire::PartitionCommand) -> Result<Self, DecodeError> {
        use wire::partition_command::Command;
        Ok(match known("a command", message.command)? {
            Command::Create(create) => Self::Create {
                config: required("config", create.config)?.try_into()?,
                slots: slot_range(create.slot_start, create.slot_end)?,
            },
            Command::Write(write) => Self::Write(write.try_into()?),
            Command::Adopt(adopt) => Self::Adopt {
                deltas: all(adopt.deltas)?,
            },
            Command::Fold(fold) => Self::Fold {
                frontier: required("frontier", fold.frontier)?.try_into()?,
                edges: all(fold.edges)?,
            },
            Command::Mark(mark) => Self::Mark {
                mark: MarkId(mark.mark),
            },
            Command::Renew(wire::Renew {}) => Self::Renew,
            Command::Drop(wire::Drop {}) => Self::Drop,
        })
    }
}

fn slot_range(start: u32, end: u32) -> Result<SlotRange, DecodeError> {
    let bound = |what, slot: u32| match u16::try_from(slot) {
        Ok(slot) if slot <= HASH_SLOTS => Ok(slot),
        _ => Err(DecodeError::OutOfRange {
            what,
            actual: u64::from(slot),
        }),
    };
    let range = SlotRange {
        start: bound("slot_start", start)?,
        end: bound("slot_end", end)?,
    };
    if range.start < range.end {
        Ok(range)
    } else {
        Err(DecodeError::OutOfRange {
            what: "slot_end",
            actual: u64::from(end),
        })
    }
}

impl From<&SpaceConfig> for wire::SpaceConfig {
    fn from(config: &SpaceConfig) -> Self {
        let metric = match config.metric {
            Metric::Cosine => wire::Metric::Cosine,
            Metric::Dot => wire::Metric::Dot,
            Metric::L2 => wire::Metric::L2,
        };
        Self {
            space: config.space.0,
            name: config.name.clone(),
            dimension: config.dimension,
            metric: metric.into(),
            index: Some(wire::IndexParameters {
                algorithm: config.index.algorithm,
                m: config.index.m,
                ef_construction: config.index.ef_construction,
                level_seed: config.index.level_seed,
                quantization: quantization_to_wire(config.index.quantization).into(),
            }),
            embedding_model: config.embedding_model.clone(),
            decay: decay_to_wire(config.decay),
        }
    }
}

impl TryFrom<wire::SpaceConfig> for SpaceConfig {
    type Error = DecodeError;

    fn try_from(message: wire::SpaceConfig) -> Result<Self, DecodeError> {
        let metric = match wire::Metric::try_from(message.metric) {
            Ok(wire::Metric::Cosine) => Metric::Cosine,
            Ok(wire::Metric::Dot) => Metric::Dot,
            Ok(wire::Metric::L2) => Metric::L2,
            Ok(wire::Metric::Unspecified) => return Err(DecodeError::Missing("metric")),
            Err(_) => return Err(DecodeError::NotUnderstood("a metric")),
        };
        let index = required("index parameters", message.index)?;
        Ok(Self {
            space: SpaceId(message.space),
            name: message.name,
            dimension: message.dimension,
            metric,
            index: IndexParameters {
                algorithm: index.algorithm,
                m: index.m,
                ef_construction: index.ef_construction,
                level_seed: index.level_seed,
                quantization: quantization_from_wire(index.quantization)?,
            },
            embedding_model: message.embedding_model,
            decay: decay_from_wire(message.decay)?,
        })
    }
}

fn quantization_to_wire(quantization: Quantization) -> wire::Quantization {
    match quantization {
        Quantization::None => wire::Quantization::Unspecified,
        Quantization::Int8 => wire::Quantization::Int8,
        Quantization::Int8OnDisk => wire::Quantization::Int8OnDisk,
    }
}

fn quantization_from_wire(quantization: i32) -> Result<Quantization, DecodeError> {
    match wire::Quantization::try_from(quantization) {
        Ok(wire::Quantization::Unspecified) => Ok(Quantization::None),
        Ok(wire::Quantization::Int8) => Ok(Quantization::Int8),
        Ok(wire::Quantization::Int8OnDisk) => Ok(Quantization::Int8OnDisk),
        Err(_) => Err(DecodeError::NotUnderstood("a quantization")),
    }
}

fn decay_to_wire(decay: Decay) -> Option<wire::Decay> {
    use wire::decay::{Exponential, Law, PowerLaw};
    let law = match decay {
        Decay::None => return None,
        Decay::Exponential { half_life_millis } => {
            Law::Exponential(Exponential { half_life_millis })
        }
        Decay::PowerLaw {
            scale_millis,
            exponent_thousandths,
        } => Law::PowerLaw(PowerLaw {
            scale_millis,
            exponent_thousandths,
        }),
    };
    Some(wire::Decay { law: Some(law) })
}

fn decay_from_wire(message: Option<wire::Decay>) -> Result<Decay, DecodeError> {
    use wire::decay::Law;
    let Some(message) = message else {
        return Ok(Decay::None);
    };
    Ok(match known("a decay law", message.law)? {
        Law::Exponential(law) => Decay::Exponential {
            half_life_millis: law.half_life_millis,
        },
        Law::PowerLaw(law) => Decay::PowerLaw {
            scale_millis: law.scale_millis,
            exponent_thousandths: law.exponent_thousandths,
        },
    })
}

impl From<&Write> for wire::Write {
    fn from(write: &Write) -> Self {
        let op = |(index, op): &(u32, Op)| wire::Op {
            index: *index,
            op: Some(op.into()),
        };
        Self {
            client: write.client.0.to_vec().into(),
            counter: write.counter,
            retried: write.retried,
            stamp: write.stamp.0,
            ops: write.ops.iter().map(op).collect(),
        }
    }
}

impl TryFrom<wire::Write> for Write {
    type Error = DecodeError;

    fn try_from(message: wire::Write) -> Result<Self, DecodeError> {
        let mut ops: Vec<(u32, Op)> = Vec::with_capacity(message.ops.len());
        for op in message.ops {
            if ops.last().is_some_and(|(last, _)| *last >= op.index) {
                let actual = u64::from(op.index);
                return Err(DecodeError::OutOfRange {
                    what: "operation index",
                    actual,
                });
            }
            ops.push((op.index, known("an operation", op.op)?.try_into()?));
        }
        Ok(Self {
            client: client(&message.client)?,
            counter: message.counter,
            retried: message.retried,
            stamp: Hlc(message.stamp),
            ops,
        })
    }
}

impl From<&Op> for wire::op::Op {
    fn from(op: &Op) -> Self {
        match op {
            Op::Remember(remember) => Self::Remember(remember.into()),
            Op::Forget(forget) => Self::Forget(wire::Forget {
                id: forget.id.as_str().to_owned(),
                expected: expected_to_wire(forget.expected),
                context: Some((&forget.context).into()),
                purge: forget.purge,
            }),
            Op::Associate(edge) => Self::Associate(wire::Associate {
                from: edge.from.as_str().to_owned(),
                to: edge.to.as_str().to_owned(),
                relation: edge.relation.as_str().to_owned(),
                weight: edge.weight.bits(),
                confidence: edge.confidence.bits(),
            }),
            Op::Dissociate(edge) => Self::Dissociate(wire::Dissociate {
                from: edge.from.as_str().to_owned(),
                to: edge.to.as_str().to_owned(),
                relation: edge.relation.as_str().to_owned(),
                context: Some((&edge.context).into()),
            }),
            Op::RestoreMemory(restore) => Self::RestoreMemory(wire::RestoreMemory {
                memory: Some((&restore.memory).into()),
                created: restore.created.0,
                updated: restore.updated.0,
            }),
            Op::RestoreEdge(restore) => Self::RestoreEdge(restore.into()),
        }
    }
}

impl TryFrom<wire::op::Op> for Op {
    type Error = DecodeError;

    fn try_from(op: wire::op::Op) -> Result<Self, DecodeError> {
        use wire::op::Op as Wire;
        Ok(match op {
            Wire::Remember(remember) => Self::Remember(remember.try_into()?),
            Wire::Forget(forget) => Self::Forget(Forget {
                id: memory_id("id", forget.id)?,
                expected: expected_from_wire(forget.expected)?,
                context: required("context", forget.context)?.try_into()?,
                purge: forget.purge,
            }),
            Wire::Associate(edge) => Self::Associate(Associate {
                from: memory_id("from", edge.from)?,
                to: memory_id("to", edge.to)?,
                relation: relation(edge.relation)?,
                weight: unit("weight", edge.weight)?,
                confidence: unit("confidence", edge.confidence)?,
            }),
            Wire::Dissociate(edge) => Self::Dissociate(Dissociate {
                from: memory_id("from", edge.from)?,
                to: memory_id("to", edge.to)?,
                relation: relation(edge.relation)?,
                context: required("context", edge.context)?.try_into()?,
            }),
            Wire::RestoreMemory(restore) => Self::RestoreMemory(RestoreMemory {
                memory: restored(required("memory", restore.memory)?.try_into()?)?,
                created: Hlc(restore.created),
                updated: Hlc(restore.updated),
            }),
            Wire::RestoreEdge(restore) => Self::RestoreEdge(restore.try_into()?),
        })
    }
}

/// A memory of a backup comes without edges, and where there is none.
fn restored(memory: Remember) -> Result<Remember, DecodeError> {
    if memory.edges.is_empty() && memory.expected == Expected::Absent {
        Ok(memory)
    } else {
        Err(DecodeError::NotUnderstood("a restored memory"))
    }
}

impl From<&RestoreEdge> for wire::RestoreEdge {
    fn from(restore: &RestoreEdge) -> Self {
        let evidence = &restore.evidence;
        Self {
            from: restore.from.as_str().to_owned(),
            to: restore.to.as_str().to_owned(),
            relation: restore.relation.as_str().to_owned(),
            sum_wc: evidence.sum_wc.to_le_bytes().to_vec().into(),
            sum_c: evidence.sum_c.to_le_bytes().to_vec().into(),
            count: evidence.count,
            newest: evidence.newest.0,
        }
    }
}

impl TryFrom<wire::RestoreEdge> for RestoreEdge {
    type Error = DecodeError;

    fn try_from(message: wire::RestoreEdge) -> Result<Self, DecodeError> {
        let sum = |what, bytes: &[u8]| fixed(what, bytes).map(u128::from_le_bytes);
        let evidence = EvidenceSums {
            sum_wc: sum("sum_wc", &message.sum_wc)?,
            sum_c: sum("sum_c", &message.sum_c)?,
            count: message.count,
            newest: Hlc(message.newest),
        };
        if !evidence.is_possible() {
            return Err(DecodeError::OutOfRange {
                what: "the evidence of a restored edge",
                actual: evidence.count,
            });
        }
        Ok(Self {
            from: memory_id("from", message.from)?,
            to: memory_id("to", message.to)?,
            relation: relation(message.relation)?,
            evidence,
        })
    }
}

impl From<&Remember> for wire::Remember {
    fn from(remember: &Remember) -> Self {
        let edge = |edge: &OutEdge| wire::OutEdge {
            to: edge.to.as_str().to_owned(),
            relation: edge.relation.as_str().to_owned(),
            weight: edge.weight.bits(),
            confidence: edge.confidence.bits(),
        };
        let property = |(key, value): (&String, &PropertyValue)| (key.clone(), value.into());
        Self {
            id: remember.id.as_str().to_owned(),
            content: remember.content.clone(),
            embedding: remember
                .embedding
                .as_ref()
                .map(|embedding| floats_to_bytes(embedding.components()))
                .unwrap_or_default(),
            embedding_model: remember.embedding_model.clone(),
            labels: remember.labels.iter().cloned().collect(),
            properties: remember.properties.iter().map(property).collect(),
            confidence: remember.confidence.bits(),
            edges: remember.edges.iter().map(edge).collect(),
            expected: expected_to_wire(remember.expected),
        }
    }
}

impl TryFrom<wire::Remember> for Remember {
    type Error = DecodeError;

    fn try_from(message: wire::Remember) -> Result<Self, DecodeError> {
        let embedding = match message.embedding.as_ref() {
            [] => None,
            bytes => Some(Embedding::from_log(floats_from_bytes(bytes)?)?),
        };
        let properties = message.properties.into_iter();
        Ok(Self {
            id: memory_id("id", message.id)?,
            content: message.content,
            embedding,
            embedding_model: message.embedding_model,
            labels: message.labels.into_iter().collect(),
            properties: properties
                .map(|(key, value)| Ok((key, value.try_into()?)))
                .collect::<Result<_, DecodeError>>()?,
            confidence: unit("confidence", message.confidence)?,
            edges: all(message.edges)?,
            expected: expected_from_wire(message.expected)?,
        })
    }
}

impl TryFrom<wire::OutEdge> for OutEdge {
    type Error = DecodeError;

    fn try_from(message: wire::OutEdge) -> Result<Self, DecodeError> {
        Ok(Self {
            to: memory_id("to", message.to)?,
            relation: relation(message.relation)?,
            weight: unit("weight", message.weight)?,
            confidence: unit("confidence", message.confidence)?,
        })
    }
}

impl From<&PropertyValue> for wire::PropertyValue {
    fn from(value: &PropertyValue) -> Self {
        use wire::property_value::Value;
        let value = match value {
            PropertyValue::Text(text) => Value::Text(text.clone()),
            PropertyValue::Number(number) => Value::Number(*number),
            PropertyValue::Boolean(boolean) => Value::Boolean(*boolean),
            PropertyValue::List(items) => Value::List(wire::TextList {
                items: items.clone(),
            }),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<wire::PropertyValue> for PropertyValue {
    type Error = DecodeError;

    fn try_from(message: wire::PropertyValue) -> Result<Self, DecodeError> {
        use wire::property_value::Value;
        Ok(match known("a property value", message.value)? {
            Value::Text(text) => Self::Text(text),
            Value::Number(number) => Self::Number(number),
            Value::Boolean(boolean) => Self::Boolean(boolean),
            Value::List(list) => Self::List(list.items),
        })
    }
}

fn expected_to_wire(expected: Expected) -> Option<wire::Expected> {
    use wire::expected::Expected as Kind;
    let kind = match expected {
        Expected::Anything => return None,
        Expected::Absent => Kind::Absent(wire::Nothing {}),
        Expected::Version(version) => Kind::Version(version.0),
    };
    Some(wire::Expected {
        expected: Some(kind),
    })
}

fn expected_from_wire(message: Option<wire::Expected>) -> Result<Expected, DecodeError> {
    use wire::expected::Expected as Kind;
    let Some(message) = message else {
        return Ok(Expected::Anything);
    };
    Ok(match known("an expectation", message.expected)? {
        Kind::Absent(wire::Nothing {}) => Expected::Absent,
        Kind::Version(version) => Expected::Version(Sequence(version)),
    })
}

// ---- edges --------------------------------------------------------------------------------

impl From<&EdgeKey> for wire::EdgeName {
    fn from(key: &EdgeKey) -> Self {
        Self {
            from: key.from.0.to_vec().into(),
            to: key.to.0.to_vec().into(),
            relation: key.relation.as_str().to_owned(),
        }
    }
}

impl TryFrom<wire::EdgeName> for EdgeKey {
    type Error = DecodeError;

    fn try_from(message: wire::EdgeName) -> Result<Self, DecodeError> {
        Ok(Self {
            from: MemoryHash(fixed("from", &message.from)?),
            to: MemoryHash(fixed("to", &message.to)?),
            relation: relation(message.relation)?,
        })
    }
}

impl From<OverlayDot> for wire::OverlayDot {
    fn from(dot: OverlayDot) -> Self {
        Self {
            actor: dot.actor.0.to_vec().into(),
            n: dot.n,
        }
    }
}

impl TryFrom<wire::OverlayDot> for OverlayDot {
    type Error = DecodeError;

    fn try_from(message: wire::OverlayDot) -> Result<Self, DecodeError> {
        if message.n == 0 {
            return Err(DecodeError::OutOfRange {
                what: "overlay dot",
                actual: 0,
            });
        }
        Ok(Self {
            actor: ActorId(fixed("actor", &message.actor)?),
            n: message.n,
        })
    }
}

impl From<&OverlayContext> for wire::OverlayContext {
    fn from(context: &OverlayContext) -> Self {
        let (floors, above) = context.parts();
        Self {
            floors: floors
                .map(|(actor, n)| OverlayDot { actor, n }.into())
                .collect(),
            above: above.map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::OverlayContext> for OverlayContext {
    type Error = DecodeError;

    fn try_from(message: wire::OverlayContext) -> Result<Self, DecodeError> {
        let floors: Vec<OverlayDot> = all(message.floors)?;
        let above: Vec<OverlayDot> = all(message.above)?;
        Ok(Self::from_parts(
            floors.into_iter().map(|dot| (dot.actor, dot.n)),
            above,
        ))
    }
}

impl From<&EdgeContext> for wire::EdgeContext {
    fn from(context: &EdgeContext) -> Self {
        let overlay = (!context.overlay.is_empty()).then(|| (&context.overlay).into());
        Self {
            sequence: context.sequence.0,
            overlay,
        }
    }
}

impl TryFrom<wire::EdgeContext> for EdgeContext {
    type Error = DecodeError;

    fn try_from(message: wire::EdgeContext) -> Result<Self, DecodeError> {
        let overlay = message.overlay.map(OverlayContext::try_from).transpose()?;
        Ok(Self {
            sequence: Sequence(message.sequence),
            overlay: overlay.unwrap_or_default(),
        })
    }
}

impl From<&OverlayDelta> for wire::OverlayDelta {
    fn from(delta: &OverlayDelta) -> Self {
        use wire::overlay_delta::Change;
        let change = match &delta.change {
            EdgeChange::Contribute { weight, confidence } => {
                Change::Contribute(wire::Contribution {
                    weight: weight.bits(),
                    confidence: confidence.bits(),
                })
            }
            EdgeChange::Remove { context } => Change::Remove(context.into()),
        };
        Self {
            dot: Some(delta.dot.into()),
            client: delta.request.client.0.to_vec().into(),
            counter: delta.request.counter,
            index: delta.request.index,
            from: delta.from.as_str().to_owned(),
            to: delta.to.as_str().to_owned(),
            relation: delta.relation.as_str().to_owned(),
            stamp: delta.stamp.0,
            retried: delta.retried,
            change: Some(change),
        }
    }
}

impl TryFrom<wire::OverlayDelta> for OverlayDelta {
    type Error = DecodeError;

    fn try_from(message: wire::OverlayDelta) -> Result<Self, DecodeError> {
        use wire::overlay_delta::Change;
        let change = match known("an edge change", message.change)? {
            Change::Contribute(contribution) => EdgeChange::Contribute {
                weight: unit("weight", contribution.weight)?,
                confidence: unit("confidence", contribution.confidence)?,
            },
            Change::Remove(context) => EdgeChange::Remove {
                context: context.try_into()?,
            },
        };
        Ok(Self {
            dot: required("dot", message.dot)?.try_into()?,
            request: RequestId {
                client: client(&message.client)?,
                counter: message.counter,
                index: message.index,
            },
            from: memory_id("from", message.from)?,
            to: memory_id("to", message.to)?,
            relation: relation(message.relation)?,
            stamp: Hlc(message.stamp),
            retried: message.retried,
            change,
        })
    }
}

// ---- answers ------------------------------------------------------------------------------

impl From<&Applied> for wire::Applied {
    fn from(applied: &Applied) -> Self {
        let outcome = |(index, outcome): &(u32, OpOutcome)| wire::Outcome {
            index: *index,
            outcome: Some(outcome.into()),
        };
        Self {
            sequence: applied.sequence.0,
            outcomes: applied.outcomes.iter().map(outcome).collect(),
        }
    }
}

impl TryFrom<wire::Applied> for Applied {
    type Error = DecodeError;

    fn try_from(message: wire::Applied) -> Result<Self, DecodeError> {
        let outcome = |outcome: wire::Outcome| -> Result<_, DecodeError> {
            Ok((
                outcome.index,
                known("an outcome", outcome.outcome)?.try_into()?,
            ))
        };
        Ok(Self {
            sequence: Sequence(message.sequence),
            outcomes: message
                .outcomes
                .into_iter()
                .map(outcome)
                .collect::<Result<_, DecodeError>>()?,
        })
    }
}

impl From<&OpOutcome> for wire::outcome::Outcome {
    fn from(outcome: &OpOutcome) -> Self {
        match outcome {
            OpOutcome::Remembered { version, created } => Self::Remembered(wire::Remembered {
                version: version.0,
                created: *created,
            }),
            OpOutcome::Forgotten { existed } => {
                Self::Forgotten(wire::Forgotten { existed: *existed })
            }
            OpOutcome::EdgeChanged => Self::EdgeChanged(wire::Nothing {}),
            OpOutcome::Rejected(rejection) => Self::Rejected(rejection.into()),
            OpOutcome::Restored { fresh } => Self::Restored(wire::Restored { fresh: *fresh }),
        }
    }
}

impl TryFrom<wire::outcome::Outcome> for OpOutcome {
    type Error = DecodeError;

    fn try_from(outcome: wire::outcome::Outcome) -> Result<Self, DecodeError> {
        use wire::outcome::Outcome;
        Ok(match outcome {
            Outcome::Remembered(remembered) => Self::Remembered {
                version: Sequence(remembered.version),
                created: remembered.created,
            },
            Outcome::Forgotten(forgotten) => Self::Forgotten {
                existed: forgotten.existed,
            },
            Outcome::EdgeChanged(wire::Nothing {}) => Self::EdgeChanged,
            Outcome::Rejected(rejection) => Self::Rejected(rejection.try_into()?),
            Outcome::Restored(restored) => Self::Restored {
                fresh: restored.fresh,
            },
        })
    }
}

impl From<&Rejection> for wire::Rejection {
    fn from(rejection: &Rejection) -> Self {
        use wire::rejection::Why;
        let why = match rejection {
            Rejection::VersionMismatch { expected, found } => {
                Why::VersionMismatch(wire::VersionMismatch {
                    expected: expected.clone(),
                    found: found.clone(),
                })
            }
            Rejection::RequestTooOld => Why::RequestTooOld(wire::Nothing {}),
            Rejection::NotInPartition => Why::NotInPartition(wire::Nothing {}),
            Rejection::WrongDimension { expected, actual } => {
                Why::WrongDimension(wire::WrongDimension {
                    expected: *expected,
                    actual: *actual,
                })
            }
            Rejection::HashCollision => Why::HashCollision(wire::Nothing {}),
        };
        Self { why: Some(why) }
    }
}

impl TryFrom<wire::Rejection> for Rejection {
    type Error = DecodeError;

    fn try_from(message: wire::Rejection) -> Result<Self, DecodeError> {
        use wire::rejection::Why;
        Ok(match known("a rejection", message.why)? {
            Why::VersionMismatch(mismatch) => Self::VersionMismatch {
                expected: mismatch.expected,
                found: mismatch.found,
            },
            Why::RequestTooOld(wire::Nothing {}) => Self::RequestTooOld,
            Why::NotInPartition(wire::Nothing {}) => Self::NotInPartition,
            Why::WrongDimension(wrong) => Self::WrongDimension {
                expected: wrong.expected,
                actual: wrong.actual,
            },
            Why::HashCollision(wire::Nothing {}) => Self::HashCollision,
        })
    }
}

#[cfg(test)]
mod tests;
