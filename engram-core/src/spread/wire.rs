//! What travels between the nodes of a spread (ADR 0005): plain values and their bytes.
//!
//! Encoded as a version byte and postcard. Decoding is bounded by the caller's bytes, allocates
//! no more than they justify, and answers hostile input with a [`WireError`].

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ledger::{ByRemaining, Cell, Cells};
use super::outcome::HopStats;
use super::parameters::SpreadParameters;
use crate::limits;
use crate::types::{
    EdgeContext, HashSlot, MemoryHash, MemoryId, NodeId, PartitionId, Relation, SlotRange,
};

const VERSION: u8 = 3;

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

/// How a spread runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpreadMode {
    /// Hop by hop, the same bits on every layout.
    #[default]
    Exact,
    /// Residual push, with a bound on what it lacks.
    Async {
        /// Amounts below it count and do not travel on.
        cut_off: u64,
    },
}

/// From the coordinator to each participant, at the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpreadStart {
    pub query: QueryId,
    pub attempt: u32,
    pub coordinator: NodeId,
    /// All participants; every slot belongs to exactly one partition of one of them.
    pub participants: Vec<ParticipantPlan>,
    pub parameters: SpreadParameters,
    /// Partitions that nobody serves: what goes to them is missing.
    pub unreachable: Vec<PartitionPlan>,
    pub mode: SpreadMode,
    /// Credit of the receiver in `async`.
    pub credit: u64,
    /// For the adjacency: the filter as the caller wrote it; empty: none.
    pub filter: String,
    /// For the adjacency: the time at which decay is read.
    pub now_millis: u64,
    /// Those of the receiver's partitions.
    pub seeds: Vec<Seed>,
}

/// From the coordinator to a participant, while the query runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    pub query: QueryId,
    pub attempt: u32,
    /// Counts the controls to the receiver in this attempt, from 1.
    pub number: u64,
    /// Credit that was asked for; 0: none.
    pub credit: u64,
    /// How many exclusions there have been.
    pub exclusion: u32,
    /// All nodes that no longer take part.
    pub excluded: Vec<NodeId>,
    /// The query is over: it may be forgotten.
    pub is_over: bool,
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
    /// What the source did in the hop before.
    pub stats: HopStats,
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
    /// Activation sent to other partitions and consumed from others and from seeds, complete when
    /// the end is.
    pub sent: Cells,
    pub consumed: Cells,
    /// What rounding can have taken, at most.
    pub rounding: ByRemaining,
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

/// Encoding and bounded decoding of a message.
macro_rules! coded {
    ($name:ident, $what:literal, $max:expr) => {
        impl $name {
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                $crate::spread::wire::encode(self)
            }

            /// # Errors
            /// When the bytes are too many, of another version, cut or malformed.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::spread::WireError> {
                let value: Self = $crate::spread::wire::decode($what, bytes, $max)?;
                value
                    .check_form()
                    .map_err(|reason| $crate::spread::WireError::Malformed {
                        what: $what,
                        reason,
                    })?;
                Ok(value)
            }
        }
    };
}

pub(in crate::spread) use coded;

coded!(SpreadStart, "spread start", limits::SPREAD_START_BYTES_MAX);
coded!(Control, "spread control", limits::SPREAD_START_BYTES_MAX);
coded!(Frame, "spread frame", limits::SPREAD_FRAME_BYTES_MAX);
coded!(Report, "spread report", limits::SPREAD_FRAME_BYTES_MAX);

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = postcard::to_extend(value, vec![VERSION]);
    assert!(encoded.is_ok(), "memory takes every message");
    encoded.unwrap_or_default()
}

pub(super) fn decode<T: DeserializeOwned>(
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
}

impl Control {
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "every message has a check of its form"
    )]
    fn check_form(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Section {
    pub(super) fn cell(&self, remaining: u32) -> Cell {
        Cell {
            from: Some(self.from),
            to: self.to,
            remaining,
        }
    }

    /// What it carries.
    pub(super) fn sum(&self) -> u128 {
        self.arrivals
            .iter()
            .map(|arrival| u128::from(arrival.amount))
            .sum()
    }
}

impl Frame {
    /// It says that there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.emitted == 0
            && self
                .sections
                .iter()
                .all(|section| section.arrivals.is_empty())
    }

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
