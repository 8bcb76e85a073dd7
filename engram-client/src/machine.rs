//! The only place of this crate that touches the clock, timers and randomness.
#![allow(
    clippy::disallowed_methods,
    reason = "the client runs inside other programs; they bring a tokio runtime, not seams"
)]

use std::future::Future;
use std::time::{Duration, Instant};

/// A fixed point in time by which a call must be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn passed(self) -> bool {
        self.remaining().is_zero()
    }
}

pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// `None` when `limit` passes first; the future is dropped then.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}

/// A UUIDv7: 16 bytes that order roughly by the time of their making.
pub(crate) fn new_uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// A random duration in the upper half of `0..=limit`, so that clients which failed together do
/// not come back together.
pub(crate) fn jittered(limit: Duration) -> Duration {
    let share = rand::random::<u32>();
    limit / 2 + (limit / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
}
