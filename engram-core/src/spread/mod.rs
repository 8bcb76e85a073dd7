//! Spreading activation: the reference semantics on one partition, and the same across many.
//!
//! [`spread`] is the oracle: one adjacency, no messages; [`run`] does the same on a [`Projection`],
//! the graph as arrays. [`Participant`] and [`Coordinator`] are
//! the `exact` protocol as pure steps (ADR 0005): the node feeds them frames and reports, in any
//! order and any number of times, and carries what they emit. Integers only, every rounding is
//! floor, sums commute: both give the same bits on every layout. The rules in full, with their
//! order, are in docs/protocols/spread.md.
//!
//! Nothing here does I/O except through [`Adjacency`], which the caller pins to one state of its
//! partition for the length of the query.

mod board;
mod coordinator;
mod crew;
mod engine;
mod ledger;
mod outcome;
mod parameters;
mod participant;
mod plan;
mod projection;
mod push;
mod ranking;
mod reference;
mod scratch;
mod seen;
mod split;
mod wire;
mod workbench;

pub use coordinator::{Coordinator, CoordinatorError, Directions, Finished, SpreadPlan};
pub use crew::{Alone, Crew};
pub use ledger::{Accounting, Bound, ByRemaining, Cell, Cells, INJECTED_MAX};
pub use outcome::{Activated, HopStats, PathStep, SpreadOutcome};
pub use parameters::{Normalization, SpreadParameters, SpreadParametersError};
pub use participant::{Participant, ParticipantError, Received, Step};
pub use plan::PlanError;
pub use projection::{
    ChangedVertices, PROJECTION_MAX, Projected, ProjectedEdge, Projection, ProjectionBuilder,
    ProjectionBytes, ProjectionError,
};
pub use push::{
    CREDIT_START, NotLinear, Push, PushCoordinator, PushReport, PushReportError, PushSection,
    PushStep, Pusher, PusherError, check_rules,
};
pub use ranking::Rank;
pub use reference::{Activation, SpreadError, activate, run, spread};
pub use wire::{
    Arrival, Best, Control, Frame, ParticipantPlan, PartitionPlan, QueryId, Report, ReportEnd,
    Section, Seed, SpreadMode, SpreadStart, TraceEntry, WireError,
};

use std::sync::Arc;

use crate::types::{EdgeContext, HashSlot, MemoryHash, MemoryId, Relation, Unit};

/// Activation that a seed of 1.0 injects.
pub const ONE: u64 = 1 << 32;

/// The graph of one partition as one query sees it: live edges at one pinned state, weights after
/// decay at the query's `now`, memories after its filter.
pub trait Adjacency {
    type Error;

    /// Whether the memory exists here and passes the query's filter.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn resolve(&self, memory: MemoryHash) -> Result<bool, Self::Error>;

    /// Appends the memory's live out-edges, in any order, whether or not their targets exist.
    /// Called for memories that resolved only.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), Self::Error>;

    /// The id of a memory that resolved.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn id(&self, memory: MemoryHash) -> Result<MemoryId, Self::Error>;

    /// What this query reads: the pinned sequence and overlay context.
    fn pinned(&self) -> EdgeContext;

    /// The same graph as arrays, where there are any.
    fn projected(&self) -> Option<&Arc<Projected>> {
        None
    }
}

/// A live edge as spreading needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutEdge {
    pub to: MemoryHash,
    /// Hash slot of the target's id, which cannot be had from its hash.
    pub slot: HashSlot,
    pub relation: Relation,
    /// After decay; the relation's factor is applied by spreading.
    pub weight: Unit,
}

#[cfg(test)]
mod tests;
