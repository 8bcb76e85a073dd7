//! One partition's part of a spread, on arrays where the adjacency has them.

use super::Adjacency;
use super::board::{Board, BoardError};
use super::crew::Crew;
use super::engine::{Engine, Sent};
use super::outcome::{HopStats, most_activated};
use super::parameters::SpreadParameters;
use super::wire::{Arrival, TraceEntry};
use crate::types::MemoryHash;

pub(super) enum Workbench {
    Plain(Board),
    Arrays(Box<Engine>),
}

impl Workbench {
    /// Paths need every single share, which the arrays do not keep.
    pub(super) fn new<A: Adjacency>(adjacency: &A, parameters: &SpreadParameters) -> Self {
        match adjacency.projected() {
            Some(projected) if !parameters.explain => {
                Self::Arrays(Box::new(Engine::new(projected, parameters)))
            }
            _ => Self::Plain(Board::default()),
        }
    }

    /// Applies the rules to everything that arrived in `hop`: `arrivals`, complete and in any
    /// order, and what the hop before kept here.
    pub(super) fn process<A: Adjacency>(
        &mut self,
        adjacency: &A,
        parameters: &SpreadParameters,
        hop: u32,
        arrivals: Vec<Arrival>,
        crew: &dyn Crew,
    ) -> Result<(HopStats, Sent), BoardError<A::Error>> {
        match self {
            Self::Plain(board) => {
                let (stats, outgoing) = board.process(adjacency, parameters, hop, arrivals)?;
                let rounding = board.rounding();
                let sent = Sent {
                    outgoing,
                    kept: 0,
                    rounding,
                };
                Ok((stats, sent))
            }
            Self::Arrays(engine) => engine.process(adjacency, parameters, hop, arrivals, crew),
        }
    }

    pub(super) fn activated(&self) -> u64 {
        match self {
            Self::Plain(board) => board.activated(),
            Self::Arrays(engine) => engine.activated(),
        }
    }

    /// The most activated: greatest total, then least hash.
    pub(super) fn top(&self, limit: usize) -> Vec<(MemoryHash, u64)> {
        match self {
            Self::Plain(board) => most_activated(board.totals(), limit),
            Self::Arrays(engine) => engine.top(limit),
        }
    }

    /// What is to be explained; leaves none behind.
    pub(super) fn take_trace(&mut self) -> Vec<TraceEntry> {
        match self {
            Self::Plain(board) => board.take_trace(),
            Self::Arrays(_) => Vec::new(),
        }
    }
}
