//! Messages of an `async` spread. Encoded as the others: see [`super::super::wire`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::ledger::{ByRemaining, Cells};
use super::super::wire::{QueryId, coded};
use crate::limits;
use crate::types::{EdgeContext, MemoryHash, MemoryId, NodeId, PartitionId};

/// Activation from one participant to another, with a share of the query's credit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    pub query: QueryId,
    pub attempt: u32,
    pub source: NodeId,
    pub lamport: u64,
    /// Counts the pushes of the source to the receiver in this attempt, from 1.
    pub sequence: u64,
    /// At least 1.
    pub credit: u64,
    pub sections: Vec<PushSection>,
}

/// What one partition sends another, all with the same hops to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushSection {
    pub from: PartitionId,
    pub to: PartitionId,
    /// Hops that the arrivals may still travel.
    pub remaining: u32,
    /// Each target once.
    pub arrivals: Vec<(MemoryHash, u64)>,
}

/// One step of a participant, to the coordinator: everything that it did, at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReport {
    pub query: QueryId,
    pub attempt: u32,
    pub source: NodeId,
    pub lamport: u64,
    /// Counts the reports of the source in this attempt, from 1.
    pub sequence: u64,
    /// Credit that comes back.
    pub credit: u64,
    /// What waits at the source could not be sent without more credit.
    pub wants_credit: bool,
    /// The exclusion under which this step was made.
    pub exclusion: u32,
    /// Credit sent to nodes excluded so far, and received from them, since the beginning.
    pub credit_to_excluded: u128,
    pub credit_from_excluded: u128,
    pub sent: Cells,
    pub consumed: Cells,
    /// Cut off or rounded away.
    pub pruned: ByRemaining,
    /// What counted in this step, by memory.
    pub counted: BTreeMap<MemoryHash, u64>,
    /// Ids of those of `counted` that are among the most activated of the source.
    pub names: BTreeMap<MemoryHash, MemoryId>,
    /// In the first report.
    pub pinned: Vec<(PartitionId, EdgeContext)>,
    pub missing_seeds: Vec<MemoryHash>,
    pub edges_followed: u64,
    /// More memories are active than the query allows: the source has stopped.
    pub is_exhausted: bool,
}

coded!(Push, "spread push", limits::SPREAD_FRAME_BYTES_MAX);
coded!(PushReport, "step report", limits::SPREAD_FRAME_BYTES_MAX);

impl Push {
    fn check_form(&self) -> Result<(), String> {
        if self.credit == 0 {
            return Err("it carries no credit".into());
        }
        Ok(())
    }
}

impl PushReport {
    #[allow(clippy::unused_self, reason = "every message has a check of its form")]
    fn check_form(&self) -> Result<(), String> {
        Ok(())
    }
}
