//! When a failed attempt is worth another, and how long to wait before it.
//!
//! Pure decisions; the loop that acts on them is in `call`. What must hold: an attempt is repeated
//! only when repeating cannot apply a change twice, and the retries of all calls together stay
//! within a budget, so that clients do not drown a cluster that is short of nodes.

use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Outcome};

/// Retries that may be open at once before calls fail instead, unless the builder says otherwise.
pub(crate) const BUDGET_RETRIES: u32 = 256;
/// Retries earned by a success.
const BUDGET_PER_SUCCESS: f64 = 0.5;
/// Wait before the second attempt; doubled for each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(15);
/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(400);

/// What may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Changes nothing.
    Read,
    /// Carries a request id, or is idempotent by nature.
    Repeatable,
    /// Only when it is certain that the attempt changed nothing.
    Once,
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GiveUp,
    /// Another node was named: ask it at once.
    Follow,
    Wait(Duration),
}

/// `attempt` counts from 0; `followed` says whether the failed attempt had followed a hint, so that
/// two nodes which name each other are not asked in a tight loop.
pub(crate) fn next(error: &Error, safety: Safety, attempt: u32, followed: bool) -> Next {
    let repeatable = match safety {
        Safety::Read | Safety::Repeatable => true,
        Safety::Once => error.outcome == Outcome::NotApplied,
    };
    if !error.retryable || !repeatable {
        return Next::GiveUp;
    }
    if error.leader_hint.is_some() && !followed {
        return Next::Follow;
    }
    Next::Wait(backoff(attempt))
}

/// Wait after attempt `attempt`, before jitter.
pub(crate) fn backoff(attempt: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(1 << attempt.min(10))
        .min(BACKOFF_MAX)
}

/// The outcome of a whole call whose last attempt failed with `last`.
///
/// An earlier attempt of unknown outcome makes the whole unknown, unless the last answer came from
/// the log itself: a duplicate is answered with what was recorded for it.
pub(crate) fn outcome(last: &Error, earlier_unknown: bool, safety: Safety) -> Outcome {
    if safety == Safety::Read {
        return Outcome::NotApplied;
    }
    let decided = matches!(last.kind, ErrorKind::Invalid | ErrorKind::Conflict);
    if earlier_unknown && !decided {
        Outcome::Unknown
    } else {
        last.outcome
    }
}

/// A bucket of retries: successes fill it, retries empty it.
pub(crate) struct Budget {
    most: u32,
    left: Mutex<f64>,
}

impl Budget {
    pub(crate) fn full(most: u32) -> Self {
        Self {
            most,
            left: Mutex::new(f64::from(most)),
        }
    }

    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    pub(crate) fn succeeded(&self) {
        let mut left = self.left.lock();
        *left = (*left + BUDGET_PER_SUCCESS).min(f64::from(self.most));
    }

    /// Takes one retry; false when there is none left.
    pub(crate) fn take(&self) -> bool {
        let mut left = self.left.lock();
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(retryable: bool, outcome: Outcome) -> Error {
        let mut error = Error::new(ErrorKind::Unavailable, "X", "x");
        error.retryable = retryable;
        error.outcome = outcome;
        error
    }

    #[test]
    fn only_what_cannot_apply_twice_is_repeated() {
        let unknown = failed(true, Outcome::Unknown);
        assert!(matches!(
            next(&unknown, Safety::Repeatable, 0, false),
            Next::Wait(_)
        ));
        assert_eq!(next(&unknown, Safety::Once, 0, false), Next::GiveUp);
        let refused = failed(true, Outcome::NotApplied);
        assert!(matches!(
            next(&refused, Safety::Once, 0, false),
            Next::Wait(_)
        ));
        assert_eq!(
            next(&failed(false, Outcome::NotApplied), Safety::Read, 0, false),
            Next::GiveUp
        );
    }

    #[test]
    fn a_hint_is_followed_once_without_waiting() {
        let mut error = failed(true, Outcome::NotApplied);
        error.leader_hint = Some("n2".into());
        assert_eq!(next(&error, Safety::Read, 0, false), Next::Follow);
        assert!(matches!(next(&error, Safety::Read, 1, true), Next::Wait(_)));
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let waits: Vec<Duration> = (0..40).map(backoff).collect();
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[39], BACKOFF_MAX);
    }

    #[test]
    fn an_earlier_unknown_attempt_taints_the_call() {
        let refused = failed(true, Outcome::NotApplied);
        assert_eq!(
            outcome(&refused, true, Safety::Repeatable),
            Outcome::Unknown
        );
        assert_eq!(
            outcome(&refused, false, Safety::Repeatable),
            Outcome::NotApplied
        );
        assert_eq!(outcome(&refused, true, Safety::Read), Outcome::NotApplied);
        let mut recorded = failed(false, Outcome::NotApplied);
        recorded.kind = ErrorKind::Conflict;
        assert_eq!(
            outcome(&recorded, true, Safety::Repeatable),
            Outcome::NotApplied
        );
    }

    #[test]
    fn the_budget_runs_out_and_refills() {
        let budget = Budget::full(BUDGET_RETRIES);
        while budget.take() {}
        assert!(!budget.take());
        budget.succeeded();
        budget.succeeded();
        assert!(budget.take());
    }

    #[test]
    fn a_budget_of_none_stays_so() {
        let budget = Budget::full(0);
        budget.succeeded();
        budget.succeeded();
        assert!(!budget.take());
    }
}
