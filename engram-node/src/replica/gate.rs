//! Writers wait here while linking lags, so that the tail which every search scans stays short.
//!
//! [`routing`](crate::routing) passes a write with embeddings through before it is proposed, on the
//! partition's primary; [`jobs`](super::jobs) opens the gate after each window. Readers never wait.
//! What must hold: a bound is never below a few windows, because a tail without a sealed window is
//! not linked and would hold writers for ever. Writes that passed together may go beyond the bound
//! by what is under way. Metrics: `engram_index_writers_held_total`,
//! `engram_index_writers_refused_total`, `engram_index_writer_wait_seconds`.

use std::pin::pin;
use std::time::Duration;

use engram_core::index::WINDOW_SLOTS_MAX;
use engram_core::partition::Partition;
use tokio::sync::Notify;

use crate::seams::Seams;

/// Embeddings that may wait for their links in one partition, when no option says otherwise: a
/// search that scans so many of 384 dimensions takes about a millisecond.
pub const INDEX_TAIL_MAX_DEFAULT: u32 = 16_384;
/// Least bound.
pub const INDEX_TAIL_MAX_LEAST: u32 = 4 * WINDOW_SLOTS_MAX;

/// A writer that waits tries again somewhere else at least so often: leadership may have moved.
const HELD_MAX: Duration = Duration::from_secs(2);

/// The gate of all partitions of this node.
pub struct LinkGate {
    tail_max: u32,
    linked: Notify,
}

/// Linking did not catch up in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "linking lags: {tail} embeddings wait for their links, the bound is {tail_max} (--index-tail-max)"
)]
pub struct LinkingLags {
    pub tail: u32,
    pub tail_max: u32,
}

impl LinkGate {
    #[must_use]
    pub fn new(tail_max: u32) -> Self {
        Self {
            tail_max: tail_max.max(INDEX_TAIL_MAX_LEAST),
            linked: Notify::new(),
        }
    }

    /// A window was linked.
    pub fn open(&self) {
        self.linked.notify_waiters();
    }

    /// Waits until the partition's tail is within the bound.
    ///
    /// # Errors
    /// When it is not after `wait`, or after two seconds.
    pub async fn pass(
        &self,
        seams: &Seams,
        partition: &Partition,
        wait: Duration,
    ) -> Result<(), LinkingLags> {
        if partition.index_tail() <= self.tail_max {
            return Ok(());
        }
        metrics::counter!("engram_index_writers_held_total").increment(1);
        let began = seams.clock.monotonic();
        let wait = wait.min(HELD_MAX);
        let passed = loop {
            let mut linked = pin!(self.linked.notified());
            // From here on no opening is missed.
            linked.as_mut().enable();
            let tail = partition.index_tail();
            if tail <= self.tail_max {
                break Ok(());
            }
            let waited = seams.clock.monotonic().saturating_sub(began);
            let left = wait.saturating_sub(waited);
            if left.is_zero() || seams.timeout(left, linked).await.is_err() {
                metrics::counter!("engram_index_writers_refused_total").increment(1);
                let tail_max = self.tail_max;
                break Err(LinkingLags { tail, tail_max });
            }
        };
        let waited = seams.clock.monotonic().saturating_sub(began);
        metrics::histogram!("engram_index_writer_wait_seconds").record(waited.as_secs_f64());
        passed
    }
}
