//! Associations as CRDTs: what one edge holds, how changes meet, and what it is worth (ADR 0003).
//!
//! The partition's state machine applies log changes to an [`EdgeState`] and keeps the log's
//! [`EdgeContext`](crate::types::EdgeContext); services read through [`visible`], which joins the
//! log state with the replica's overlay. The rules in full are in docs/protocols/edges.md.
//!
//! What must hold: an edge is a set of contributions, each under its own dot. A contribution is
//! gone exactly when a removal whose context covers its dot was seen. Twins (several dots of one
//! request) all stay in the set and one of them, the lowest dot, is counted, so that no order of
//! arrival changes the value. Nothing here knows a clock, a float or a random number.

mod decay;
mod record;
mod state;
mod value;

pub use decay::decay_factor;
pub use record::{EdgeRecord, RecordError, digest};
pub use state::{Base, Conflict, Contribution, EdgeState, Effect, FoldMark, Removal};
pub use value::{EdgeValue, visible};

#[cfg(test)]
mod tests;
