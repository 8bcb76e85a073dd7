//! What clients asked and what they were told.

use engram_client::{Error, Outcome};
use serde::Serialize;

/// What a client may conclude about its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Told {
    /// It is durable: it must be found.
    Acknowledged,
    /// It never happened: it must not be found.
    Refused,
    /// It may be found or not.
    Unknown,
}

impl Told {
    /// From the client library's answer.
    #[must_use]
    pub fn of<T>(answer: &Result<T, Error>) -> Self {
        match answer {
            Ok(_) => Self::Acknowledged,
            Err(error) => match error.outcome {
                // An error that says "applied" tells no less than an answer.
                Outcome::Applied => Self::Acknowledged,
                Outcome::NotApplied => Self::Refused,
                Outcome::Unknown => Self::Unknown,
            },
        }
    }
}

/// One write to a register: a memory whose content is the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    pub id: String,
    /// No two writes of a history write the same value.
    pub value: String,
    pub told: Told,
}
