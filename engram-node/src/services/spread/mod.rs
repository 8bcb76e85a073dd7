//! Spreading activation across nodes (`exact` and `async`, ADR 0005): [`coordinator`] runs a client's
//! query with a [`lead`] of its mode, [`hybrid`] begins it at the nearest of a vector, [`registry`]
//! holds this node's [`part`] in the queries that run, [`messages`] is what nodes send, [`answer`] what
//! the client gets, [`reinforce`] what the query leaves behind if it is asked to.
//!
//! The rules are engram-core's step machines; here are only transport, deadlines and attempts.
//! What must hold: everything kept for a query ends when its coordinator says so, which it does
//! however the query ends, and at its deadline at the latest; words that come before their start
//! wait, within a bound; a word delivered twice changes nothing.

mod answer;
mod coordinator;
mod hybrid;
mod lead;
mod messages;
mod parameters;
mod part;
mod registry;
mod reinforce;
#[cfg(test)]
mod tests;

pub use messages::SpreadService;
pub use registry::Registry;

/// Largest message of a spread, in bytes.
pub const SPREAD_MESSAGE_BYTES_MAX: usize = 64 << 20;
