//! What travels between the nodes of a spread (ADR 0005): plain values and their bytes.
//!
//! Encoded as a version byte and postcard. Decoding is bounded by the caller's bytes, allocates
//! no more than they justify, and answers hostile input with a [`WireError`].

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::outcome::HopStats;
use super::parameters::{SpreadParameters, SpreadParametersError};
use crate::limits;
use crate::types::{
    EdgeContext, HashSlot, MemoryHash, MemoryId, NodeId, PartitionId, Relation, SlotRange,
};

const VERSION: u8 = 1;

/// 128 random bits that name a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueryId(pub [u8; 16]);

/// A partition that takes part, with the slots whose memories it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionPlan {
    pub partition: PartitionId,
    pub slots: SlotRange,
}

/// A node that takes part, with the partitions it answers for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticipantPlan {
    pub node: NodeId,
    pub partitions: Vec<PartitionPlan>,
}

/// Activation injected at hop 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    pub memory: MemoryHash,
    pub slot: HashSlot,
    pub amount: u64,
}

/// From the coordinator to each participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpreadStart {
    pub query: QueryId,
    pub attempt: u32,
    pub coordinator: NodeId,
    /// All participants; every slot belongs to exactly one partition of one of them.
    pub participants: Vec<ParticipantPlan>,
    pub parameters: SpreadParameters,
    /// For the adjacency: the filter as the caller wrote it; empty: none.
    pub filter: String,
    /// For the adjacency: the time at which decay is read.
    pub now_millis: u64,
    /// Those of the receiver's partitions.
    pub seeds: Vec<Seed>,
}

/// The best single share of an amount: greatest share, then least source, then least relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Best {
    pub share: u64,
    pub source: MemoryHash,
    pub relation: Relation,
}

/// Activation for one memory in one hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    pub target: MemoryHash,
    pub amount: u64,
    /// With `explain`.
    pub best: Option<Best>,
}

/// What one partition sends another in one hop; empty when that is nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub from: PartitionId,
    pub to: PartitionId,
    pub arrivals: Vec<Arrival>,
}

/// From one participant to another, one per hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub query: QueryId,
    pub attempt: u32,
    pub source: NodeId,
    /// The hop at which the activations arrive; the first frames are of hop 1.
    pub hop: u32,
    pub lamport: u64,
    /// Counts the frames of the source in this attempt, from 1.
    pub sequence: u64,
    /// Unused in `exact`.
    pub credit: u64,
    /// Distinct memories activated at the source up to the hop before.
    pub activated: u64,
    /// Arrivals that the source sends to all participants for this hop; all 0 = finished.
    pub emitted: u64,
    /// One per (source partition, target partition), in the order of the plan.
    pub sections: Vec<Section>,
}

/// With `explain`: one (memory, hop) that counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEntry {
    pub memory: MemoryHash,
    pub hop: u32,
    /// What counted, after the rules.
    pub amount: u64,
    /// `None` for a seed.
    pub best: Option<Best>,
}

/// How a participant ended. Equal at all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportEnd {
    Complete,
    /// More than `activated_max` memories were active after `hop`, which is complete; no further
    /// hop was processed.
    TooManyActivated {
        hop: u32,
    },
}

/// From a participant to the coordinator, at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub query: QueryId,
    pub attempt: u32,
    pub source: NodeId,
    pub lamport: u64,
    pub end: ReportEnd,
    pub hops: Vec<HopStats>,
    /// Pinned state of each of its partitions.
    pub pinned: Vec<(PartitionId, EdgeContext)>,
    /// The most activated, at most the query's limit: greatest total, then least hash.
    pub activated: Vec<(MemoryHash, u64)>,
    /// Activated in all.
    pub activated_total: u64,
    pub missing_seeds: Vec<MemoryHash>,
    /// With `explain`.
    pub trace: Vec<TraceEntry>,
    /// Ids of `activated`, and with `explain` of the memories in `trace`.
    pub names: BTreeMap<MemoryHash, MemoryId>,
}

/// Why bytes are no message of a spread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{what} of {bytes} bytes, at most {max} are read")]
    TooLong {
        what: &'static str,
        bytes: usize,
        max: usize,
    },
    #[error("{what} of format version {found}, this build reads {VERSION}")]
    Version { what: &'static str, found: u8 },
    #[error("{what} cannot be decoded: {reason}")]
    Malformed { what: &'static str, reason: String },
}

/// Why a start or a plan makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Parameters(#[from] SpreadParametersError),
    #[error("node {0} takes part twice")]
    NodeTwice(NodeId),
    #[error("node {0} takes part without a partition")]
    NoPartition(NodeId),
    #[error("partition {0} takes part twice")]
    PartitionTwice(PartitionId),
    #[error("the partitions do not cover every hash slot exactly once, see slot {slot}")]
    Slots { slot: u16 },
    #[error("node {0} does not take part")]
    NotAParticipant(NodeId),
    #[error("a seed belongs to a partition of another node")]
    ForeignSeed,
    #[error("{actual} seeds, at most {max} are allowed", max = limits::SEEDS_MAX)]
    TooManySeeds { actual: usize },
    #[error("the caller's partitions are not those of the plan")]
    WrongPartitions,
}

macro_rules! coded {
    ($name:ident, $what:literal, $max:expr) => {
        impl $name {
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                encode(self)
            }

            /// # Errors
            /// When the bytes are too many, of another version, cut or malformed.
            pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
                let value: Self = decode($what, bytes, $max)?;
                value.check_form().map_err(|reason| WireError::Malformed {
                    what: $what,
                    reason,
                })?;
                Ok(value)
            }
        }
    };
}

coded!(SpreadStart, "spread start", limits::SPREAD_START_BYTES_MAX);
coded!(Frame, "spread frame", limits::SPREAD_FRAME_BYTES_MAX);
coded!(Report, "spread report", limits::SPREAD_FRAME_BYTES_MAX);

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = postcard::to_extend(value, vec![VERSION]);
    assert!(encoded.is_ok(), "memory takes every message");
    encoded.unwrap_or_default()
}

fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLong {
            what,
            bytes: bytes.len(),
            max,
        });
    }
    let malformed = |reason: String| WireError::Malformed { what, reason };
    let Some((version, body)) = bytes.split_first() else {
        return Err(malformed("it is empty".into()));
    };
    if *version != VERSION {
        return Err(WireError::Version {
            what,
            found: *version,
        });
    }
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(malformed(format!("{} bytes too many", rest.len())))
    }
}

fn check_relation(relation: &Relation) -> Result<(), String> {
    Relation::new(relation.as_str())
        .map(|_| ())
        .ok_or_else(|| "a relation is too long or empty".into())
}

impl SpreadStart {
    fn check_form(&self) -> Result<(), String> {
        self.parameters.check().map_err(|error| error.to_string())?;
        if self.filter.len() > limits::FILTER_BYTES_MAX {
            return Err("the filter is too long".into());
        }
        self.check().map_err(|error| error.to_string())
    }

    /// # Errors
    /// What makes no sense in it: partitions or nodes named twice, slots not covered once, too
    /// many seeds, parameters out of range.
    pub fn check(&self) -> Result<(), PlanError> {
        self.parameters.check()?;
        check_participants(&self.participants)?;
        if self.seeds.len() > limits::SEEDS_MAX {
            return Err(PlanError::TooManySeeds {
                actual: self.seeds.len(),
            });
        }
        Ok(())
    }
}

impl Frame {
    fn check_form(&self) -> Result<(), String> {
        let arrivals = self.sections.iter().flat_map(|section| &section.arrivals);
        arrivals
            .filter_map(|arrival| arrival.best.as_ref())
            .try_for_each(|best| check_relation(&best.relation))
    }
}

impl Report {
    fn check_form(&self) -> Result<(), String> {
        let bests = self.trace.iter().filter_map(|entry| entry.best.as_ref());
        bests
            .map(|best| &best.relation)
            .try_for_each(check_relation)
    }
}

/// Every slot in exactly one partition, nodes and partitions named once.
pub(super) fn check_participants(participants: &[ParticipantPlan]) -> Result<(), PlanError> {
    let mut nodes = BTreeSet::new();
    let mut partitions = BTreeSet::new();
    for participant in participants {
        if !nodes.insert(participant.node) {
            return Err(PlanError::NodeTwice(participant.node));
        }
        if participant.partitions.is_empty() {
            return Err(PlanError::NoPartition(participant.node));
        }
        for plan in &participant.partitions {
            if !partitions.insert(plan.partition) {
                return Err(PlanError::PartitionTwice(plan.partition));
            }
        }
    }
    SlotTable::new(participants).map(|_| ())
}

/// Which partition of which participant holds a slot.
#[derive(Clone, Debug)]
pub(super) struct SlotTable {
    /// (first slot, index of the participant, index of its partition), ascending.
    starts: Vec<(u16, usize, usize)>,
}

impl SlotTable {
    pub(super) fn new(participants: &[ParticipantPlan]) -> Result<Self, PlanError> {
        let mut ranges = Vec::new();
        for (node, participant) in participants.iter().enumerate() {
            for (index, plan) in participant.partitions.iter().enumerate() {
                ranges.push((plan.slots.start, plan.slots.end, node, index));
            }
        }
        ranges.sort_unstable();
        let mut covered = 0;
        for (start, end, ..) in &ranges {
            if *start != covered || end <= start {
                return Err(PlanError::Slots { slot: covered });
            }
            covered = *end;
        }
        if covered != limits::HASH_SLOTS {
            return Err(PlanError::Slots { slot: covered });
        }
        Ok(Self {
            starts: ranges
                .into_iter()
                .map(|(start, _, node, index)| (start, node, index))
                .collect(),
        })
    }

    /// (index of the participant, index of its partition).
    pub(super) fn place(&self, slot: HashSlot) -> (usize, usize) {
        let after = self.starts.partition_point(|(start, ..)| *start <= slot.0);
        let (_, node, index) = self.starts[after.saturating_sub(1)];
        (node, index)
    }
}
