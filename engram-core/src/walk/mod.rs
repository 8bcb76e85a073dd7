//! Walks along associations: what lies around memories, and paths between two.
//!
//! [`Walk`] is the search as a step machine. It says what it has to read, by partition and round
//! ([`Ask`]); the caller brings the answers of a round ([`Expanded`], which `PartitionAdjacency`
//! gives) and asks for the next, until there is none. Everything is decided here, from whole rounds
//! and in a fixed order, so the outcome is the same on every layout.
//!
//! A memory is walked through only if it exists and passes the filter of the query, which is known
//! when its partition has been asked; edges of weight 0 are not followed. What must hold: every
//! memory is read once, and no more memories and edges are held than the parameters allow.

mod search;
mod strength;
#[cfg(test)]
mod tests;

pub use search::Walk;
pub use strength::Strength;

use crate::types::{HashSlot, MemoryHash, MemoryId, PartitionId, Relation, SlotRange, Unit};

/// Which edges are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalkDirection {
    /// From source to target.
    #[default]
    Out,
    /// From target to source.
    In,
    Both,
}

impl WalkDirection {
    fn is_out(self) -> bool {
        self != Self::In
    }

    fn is_in(self) -> bool {
        self != Self::Out
    }
}

/// Which path is the best one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathBy {
    /// The fewest hops; of these the strongest.
    #[default]
    Hops,
    /// The greatest product of weights; of equals the fewest hops.
    Strength,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Everything within the hops.
    Around,
    /// One path to this memory.
    Path { to: Start, by: PathBy },
}

/// A memory and the slot of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub memory: MemoryHash,
    pub slot: HashSlot,
}

/// Bounds and direction of one walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkParameters {
    pub direction: WalkDirection,
    pub hops_max: u32,
    /// Memories met, above which the walk ends.
    pub memories_max: usize,
    /// Edges read, above which it ends.
    pub edges_max: usize,
}

/// What one partition is asked in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub partition: PartitionId,
    /// Its own memories, ascending: whether they are there, and their names.
    pub own: Vec<MemoryHash>,
    /// The edges out of those that are there, too.
    pub out_edges: bool,
    /// Memories, of any partition, to which edges may lead from here; ascending.
    pub into: Vec<MemoryHash>,
    /// Edges in the answer, at most.
    pub edges_max: usize,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// For each of `own`, its id if it exists and passes the filter.
    pub ids: Vec<Option<MemoryId>>,
    /// In any order.
    pub edges: Vec<WalkEdge>,
    /// There are more edges than were allowed.
    pub is_cut: bool,
}

/// An edge at one of the memories that were asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkEdge {
    /// The memory that was asked about.
    pub at: MemoryHash,
    /// Its other end.
    pub other: MemoryHash,
    pub heading: Heading,
    pub relation: Relation,
    /// After decay.
    pub weight: Unit,
}

/// Which way an edge runs, seen from the memory that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heading {
    /// Away from it. The slot is that of the other end's id.
    Out(HashSlot),
    /// Towards it, from a memory of the partition that answers.
    In,
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// Nothing is left to be read.
    Complete,
    /// There were more memories than allowed: everything within so many hops is complete.
    TooManyMemories { hops: u32 },
    /// There were more edges than allowed.
    TooManyEdges { hops: u32 },
}

/// A memory that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    pub memory: MemoryHash,
    pub id: MemoryId,
    /// The fewest hops in which it is reached.
    pub hops: u32,
}

/// One memory on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkStep {
    pub id: MemoryId,
    /// The edge that led here; `None` for the first.
    pub by: Option<StepEdge>,
}

/// An edge of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepEdge {
    pub relation: Relation,
    pub weight: Unit,
    /// It was followed from its target to its source.
    pub is_reversed: bool,
}

/// A path and the product of its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPath {
    pub steps: Vec<WalkStep>,
    pub strength: Strength,
}

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkOutcome {
    pub end: WalkEnd,
    /// Starts, or the end of the path, that do not exist or do not pass the filter.
    pub missing: Vec<MemoryHash>,
    /// Around: nearest first, then by id.
    pub reached: Vec<Reached>,
    pub path: Option<FoundPath>,
    /// How far it went.
    pub hops: u32,
    pub edges_read: usize,
}

/// Why the answers of a round cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    #[error("partition {0} was not asked, or has not answered what it was asked")]
    Unfit(PartitionId),
    #[error("no partition owns slot {0:?}")]
    NoPartition(HashSlot),
}

/// Which partition owns which slots.
#[derive(Clone, Debug)]
pub struct Homes(pub Vec<(SlotRange, PartitionId)>);

impl Homes {
    fn of(&self, slot: HashSlot) -> Result<PartitionId, WalkError> {
        let mut homes = self.0.iter();
        let home = homes.find(|(slots, _)| slots.contains(slot));
        home.map(|(_, partition)| *partition)
            .ok_or(WalkError::NoPartition(slot))
    }
}
