//! A spread on one partition, without messages: the oracle, and the same on arrays.

use super::Adjacency;
use super::board::{Board, BoardError};
use super::crew::{Alone, Crew};
use super::outcome::{Activated, HopStats, SpreadOutcome, Trace, edges_followed};
use super::parameters::{SpreadParameters, SpreadParametersError};
use super::wire::Arrival;
use super::workbench::Workbench;
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
/// graph behind `adjacency`: the oracle, which reads it memory by memory.
///
/// # Errors
/// Parameters out of range, too many seeds or active memories, or a failing adjacency.
pub fn spread<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
) -> Result<SpreadOutcome, SpreadError<A::Error>> {
    let bench = Workbench::Plain(Board::default());
    drive(adjacency, parameters, seeds, bench, &Alone)
}

/// As [`spread`], bit by bit, on arrays where the adjacency has them and no paths are asked for.
///
/// # Errors
/// As [`spread`].
pub fn run<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
    crew: &dyn Crew,
) -> Result<SpreadOutcome, SpreadError<A::Error>> {
    let bench = Workbench::new(adjacency, parameters);
    drive(adjacency, parameters, seeds, bench, crew)
}

/// What a spread did, before anything has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activation {
    /// At most the query's limit: greatest total, then least hash.
    pub activated: Vec<(MemoryHash, u64)>,
    /// Memories activated in all.
    pub activated_total: u64,
    /// From hop 0; ends early when nothing was sent on.
    pub hops: Vec<HopStats>,
    /// More memories are active after this hop than may be; the hops up to it are complete.
    pub stopped_after: Option<u32>,
}

/// As [`run`], without reading a name, paths or missing seeds: what it takes to spread.
///
/// # Errors
/// As [`spread`], but that too many active memories are told in the answer.
pub fn activate<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
    crew: &dyn Crew,
) -> Result<Activation, SpreadError<A::Error>> {
    let mut bench = Workbench::new(adjacency, parameters);
    let (hops, stopped_after) = hop_by_hop(adjacency, parameters, seeds, &mut bench, crew)?;
    Ok(Activation {
        activated: bench.top(parameters.limit),
        activated_total: bench.activated(),
        hops,
        stopped_after,
    })
}

fn drive<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
    mut bench: Workbench,
    crew: &dyn Crew,
) -> Result<SpreadOutcome, SpreadError<A::Error>> {
    let (hops, stopped_after) = hop_by_hop(adjacency, parameters, seeds, &mut bench, crew)?;
    let mut outcome = SpreadOutcome {
        missing_seeds: missing(adjacency, seeds.iter().map(|(memory, _)| *memory))
            .map_err(SpreadError::Adjacency)?,
        hops,
        ..SpreadOutcome::default()
    };
    finish(adjacency, parameters, &mut bench, &mut outcome).map_err(SpreadError::Adjacency)?;
    match stopped_after {
        None => Ok(outcome),
        Some(hop) => Err(SpreadError::TooManyActivated {
            hop,
            complete: Box::new(outcome),
        }),
    }
}

/// What happened in each hop, and the one after which there were too many to go on.
type Hops = (Vec<HopStats>, Option<u32>);

fn hop_by_hop<A: Adjacency>(
    adjacency: &A,
    parameters: &SpreadParameters,
    seeds: &[(MemoryHash, u64)],
    bench: &mut Workbench,
    crew: &dyn Crew,
) -> Result<Hops, SpreadError<A::Error>> {
    parameters.check()?;
    if seeds.len() > limits::SEEDS_MAX {
        return Err(SpreadError::TooManySeeds {
            actual: seeds.len(),
        });
    }
    let inject = |(target, amount): &(MemoryHash, u64)| Arrival {
        target: *target,
        amount: *amount,
        best: None,
    };
    let mut arrivals: Vec<Arrival> = seeds.iter().map(inject).collect();
    let mut hops = Vec::with_capacity(parameters.hops as usize + 1);
    for hop in 0..=parameters.hops {
        let (stats, sent) = bench.process(adjacency, parameters, hop, arrivals, crew)?;
        hops.push(stats);
        if sent.outgoing.is_empty() && sent.kept == 0 {
            break;
        }
        if bench.activated() > parameters.activated_max as u64 {
            return Ok((hops, Some(hop)));
        }
        let outgoing = sent.outgoing.into_iter();
        arrivals = outgoing.map(|outgoing| outgoing.arrival).collect();
    }
    Ok((hops, None))
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
    bench: &mut Workbench,
    outcome: &mut SpreadOutcome,
) -> Result<(), A::Error> {
    let mut trace = Trace::default();
    trace.extend(bench.take_trace());
    outcome.activated_total = bench.activated();
    outcome.edges_followed = edges_followed(&outcome.hops);
    for (memory, total) in bench.top(parameters.limit) {
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
