//! The oracle: a spread on one partition, without messages.

use super::Adjacency;
use super::board::{Board, BoardError};
use super::outcome::{Activated, SpreadOutcome, Trace, edges_followed, most_activated};
use super::parameters::{SpreadParameters, SpreadParametersError};
use super::wire::Arrival;
use crate::limits;
use crate::types::MemoryHash;

/// Why a spread failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpreadError<E> {
    #[error(transparent)]
    Parameters(#[from] SpreadParametersError),
    #[error("{actual} seeds, at most {max} are allowed", max = limits::SEEDS_MAX)]
    TooManySeeds { actual: usize },
    /// RESOURCE_EXHAUSTED: what was complete is in `complete`.
    #[error("more memories are active after hop {hop} than a spread may activate")]
    TooManyActivated {
        hop: u32,
        complete: Box<SpreadOutcome>,
    },
    #[error("one hop reaches more than {max} memories", max = limits::SPREAD_TARGETS_MAX)]
    TooManyTargets,
    #[error("reading the graph failed")]
    Adjacency(E),
}

impl<E> From<BoardError<E>> for SpreadError<E> {
    fn from(error: BoardError<E>) -> Self {
        match error {
            BoardError::Adjacency(error) => Self::Adjacency(error),
            BoardError::TooManyTargets => Self::TooManyTargets,
        }
    }
}

/// Spreads from `seeds` (amounts of [`super::ONE`] per 1.0; repeated seeds add up) over the whole
/// graph behind `adjacency`.
///
/// # Errors
/// Parameters out of range, too many seeds or active memories, or a failing adjacency.
pub fn spread<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
) -> Result<SpreadOutcome, SpreadError<A::Error>> {
    parameters.check()?;
    if seeds.len() > limits::SEEDS_MAX {
        return Err(SpreadError::TooManySeeds {
            actual: seeds.len(),
        });
    }
    let mut board = Board::default();
    let mut outcome = SpreadOutcome {
        missing_seeds: missing(adjacency, seeds.iter().map(|(memory, _)| *memory))
            .map_err(SpreadError::Adjacency)?,
        ..SpreadOutcome::default()
    };
    let inject = |(target, amount): &(MemoryHash, u64)| Arrival {
        target: *target,
        amount: *amount,
        best: None,
    };
    let mut arrivals: Vec<Arrival> = seeds.iter().map(inject).collect();
    for hop in 0..=parameters.hops {
        let (stats, outgoing) = board.process(adjacency, parameters, hop, arrivals)?;
        outcome.hops.push(stats);
        if outgoing.is_empty() {
            break;
        }
        if board.activated() > parameters.activated_max as u64 {
            finish(adjacency, parameters, &mut board, &mut outcome)
                .map_err(SpreadError::Adjacency)?;
            return Err(SpreadError::TooManyActivated {
                hop,
                complete: Box::new(outcome),
            });
        }
        arrivals = outgoing
            .into_iter()
            .map(|outgoing| outgoing.arrival)
            .collect();
    }
    finish(adjacency, parameters, &mut board, &mut outcome).map_err(SpreadError::Adjacency)?;
    Ok(outcome)
}

/// Those that do not resolve, once each, by hash.
pub(super) fn missing<A: Adjacency>(
    adjacency: &A,
    seeds: impl Iterator<Item = MemoryHash>,
) -> Result<Vec<MemoryHash>, A::Error> {
    let mut missing = Vec::new();
    for memory in seeds {
        if !adjacency.resolve(memory)? {
            missing.push(memory);
        }
    }
    missing.sort_unstable();
    missing.dedup();
    Ok(missing)
}

fn finish<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    board: &mut Board,
    outcome: &mut SpreadOutcome,
) -> Result<(), A::Error> {
    let mut trace = Trace::default();
    trace.extend(board.take_trace());
    outcome.activated_total = board.activated();
    outcome.edges_followed = edges_followed(&outcome.hops);
    for (memory, total) in most_activated(board.totals(), parameters.limit) {
        let mut path = Vec::new();
        for step in trace.path(memory) {
            let id = adjacency.id(step.memory)?;
            path.push(step.named(id));
        }
        outcome.activated.push(Activated {
            memory,
            id: adjacency.id(memory)?,
            total,
            path,
        });
    }
    Ok(())
}
