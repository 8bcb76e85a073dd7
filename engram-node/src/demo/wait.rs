//! Waiting for a condition, never for a time.

use std::time::Duration;

use crate::seams::Clock;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(15);

/// A condition did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} within {limit:?}")]
pub struct Late {
    pub what: String,
    pub limit: Duration,
}

/// Looks until there is something, and answers with it. `what` says what did not happen.
///
/// # Errors
/// [`Late`] after `limit`.
pub async fn until<T>(
    clock: &dyn Clock,
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T, Late> {
    let end = clock.monotonic() + limit;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if clock.monotonic() >= end {
            return Err(Late {
                what: what.to_owned(),
                limit,
            });
        }
        clock.sleep(POLL).await;
    }
}
