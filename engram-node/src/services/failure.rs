//! Everything that can go wrong with a client's request, by kind. [`super::status`] gives each its
//! code; nobody else knows codes.

use engram_core::command::Rejection;
use engram_core::filter::FilterError;
use engram_core::spread::{NotLinear, SpreadParametersError};
use engram_core::types::{EmbeddingError, MemoryError, MemoryIdError, OutOfUnit, SpaceConfigError};
use engram_proto::convert::DecodeError;

use super::controls::ControlFailure;
use crate::control::ControlRefusal;
use crate::placement::planner::PlanError;
use crate::routing::{LocalWriteError, ReadError, WriteError};

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("no space is named {name:?}")]
    UnknownSpace { name: String },
    #[error("no memory has the id {id:?}")]
    UnknownMemory { id: String },
    #[error("memory {id:?} has no embedding, so nothing is near it")]
    NoEmbedding { id: String },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("neither a majority nor a single replica took the change: {majority}; {local}")]
    NowhereAccepted {
        majority: WriteError,
        local: LocalWriteError,
    },
    #[error(transparent)]
    LocalWrite(#[from] LocalWriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Control(#[from] ControlFailure),
    #[error(transparent)]
    Refused(#[from] ControlRefusal),
    #[error(transparent)]
    Placement(#[from] PlanError),
    #[error("{limit} {what} are under way on this node already")]
    Busy { what: &'static str, limit: usize },
    #[error(transparent)]
    Spread(#[from] SpreadFailure),
    #[error("the walk met more than {max} {what}; it is complete within {hops} hops")]
    WalkTooLarge {
        what: &'static str,
        max: usize,
        hops: u32,
    },
    /// Another node answered something that makes no sense.
    #[error("the answer of another node cannot be used: {0}")]
    Internal(String),
}

/// What a request says that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InputError {
    #[error("{what}: {why}")]
    MemoryId {
        what: &'static str,
        why: MemoryIdError,
    },
    #[error("relation {0:?}: 1 to 128 bytes are allowed")]
    Relation(String),
    #[error("the memory names the edge {relation:?} to {to:?} twice; add evidence by associate")]
    EdgeTwice { to: String, relation: String },
    #[error("{what}: {why}")]
    Unit { what: &'static str, why: OutOfUnit },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
    #[error("the request id is not usable: {0}")]
    RequestId(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what}: {actual} {unit}, at most {max} are allowed")]
    TooMany {
        what: &'static str,
        actual: usize,
        max: usize,
        unit: &'static str,
    },
    #[error("the filter cannot be read: {0}")]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Config(#[from] SpaceConfigError),
    #[error(transparent)]
    Spread(#[from] SpreadParametersError),
    #[error("{what} is {actual}, allowed are {min} to {max}")]
    OutOfRange {
        what: &'static str,
        actual: f64,
        min: f64,
        max: f64,
    },
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    NotLinear(#[from] NotLinear),
    #[error("a cut-off belongs to async mode; exact mode has a threshold")]
    CutOff,
    #[error("a reinforcement follows the strongest paths, which async mode does not record")]
    ReinforcedAsync,
}

/// Why a spread has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpreadFailure {
    #[error("the spread did not finish in time, {attempts} attempts were made: {cause}")]
    Lost { attempts: u32, cause: String },
    #[error("more than {max} memories were activated; hops 0 to {hop} are complete")]
    TooManyActivated { hop: u32, max: usize },
    /// What a participant ran out of.
    #[error("{0}")]
    Exhausted(String),
}
