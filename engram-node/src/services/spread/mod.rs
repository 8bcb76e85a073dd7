//! Spreading activation across nodes (`exact`, ADR 0005): [`coordinator`] runs a client's query,
//! [`registry`] holds this node's part in the queries that run, [`messages`] is what nodes send.
//!
//! The rules are engram-core's step machines; here are only transport, deadlines and attempts.
//! What must hold: everything kept for a query ends at its deadline at the latest; frames that
//! come before their start wait, within a bound; a frame delivered twice changes nothing.

mod coordinator;
mod messages;
mod parameters;
mod registry;
#[cfg(test)]
mod tests;

pub use messages::SpreadService;
pub use registry::Registry;

/// Largest message of a spread, in bytes.
pub const SPREAD_MESSAGE_BYTES_MAX: usize = 64 << 20;
