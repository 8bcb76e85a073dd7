//! Black-box fault injection against real Engram processes.
//!
//! Clients record what they asked and what they were told ([`history`]); a nemesis harms the
//! processes ([`split`] through the proxies of [`links`]); checkers judge the history against what is
//! found afterwards ([`lost`], [`edges`]). What counts as acknowledged, refused or unknown is fixed
//! in `history`, before any checker.

pub mod binary;
pub mod edges;
pub mod history;
pub mod links;
pub mod lost;
pub mod split;
