//! `async` spreading: residual push in the order of effect, nobody waits for anybody.
//!
//! A participant keeps what arrived as *residuals* by memory and remaining hops. A step
//! ([`Pusher::work`]) takes those with the greatest effect, counts them, splits them over their
//! edges, sends what belongs elsewhere and reports all of it at once. Only linear rules are
//! allowed ([`check_rules`]), so the order does not matter but for rounding, which is booked.
//!
//! *Credit* tells when the query is over: integers that the coordinator hands out with the starts,
//! that every message carries a share of, and that come back with the reports. All back: nothing is
//! on its way and nobody has anything to do. It says nothing about activation; the
//! [ledger](super::ledger) does.

mod coordinator;
mod participant;
mod residuals;
mod wire;

pub use coordinator::{CREDIT_START, PushCoordinator, PushReportError};
pub use participant::{PushStep, Pusher, PusherError};
pub use wire::{Push, PushReport, PushSection};

use super::parameters::{Normalization, SpreadParameters};
use crate::types::Unit;

/// Why `async` does not take these rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} is no linear rule: `async` cannot follow it, `exact` can")]
pub struct NotLinear {
    pub rule: &'static str,
}

/// # Errors
/// The first rule that is not linear, or needs whole hops.
pub fn check_rules(parameters: &SpreadParameters) -> Result<(), NotLinear> {
    let not = |rule| Err(NotLinear { rule });
    if parameters.normalization != Normalization::Fan {
        return not("spreading without normalization");
    }
    if parameters.threshold > 0 {
        return not("a threshold");
    }
    if parameters.revisit != Unit::ONE {
        return not("a revisit factor");
    }
    if parameters.refractory_hops > 0 {
        return not("a refractory time");
    }
    if parameters.fan_limit.is_some() {
        return not("a limit on the edges of a memory");
    }
    if parameters.explain {
        return not("telling paths");
    }
    Ok(())
}
