//! Black-box fault injection against real Engram processes.
//!
//! Clients record what they asked and what they were told ([`history`]); a nemesis harms the
//! processes; checkers judge the history against what is found afterwards ([`lost`]). What counts
//! as acknowledged, refused or unknown is fixed in `history`, before any checker.

pub mod binary;
pub mod history;
pub mod lost;
