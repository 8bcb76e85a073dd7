//! The only place of this crate that touches the clock, timers and randomness.
//!
//! Timers are tokio's, which a test can pause. What else a client takes from the machine it runs on
//! is behind [`Machine`], so that a simulation can bring its own.
#![allow(
    clippy::disallowed_methods,
    reason = "the client runs inside other programs; they bring a tokio runtime, not seams"
)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// A byte stream to a node.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// An attempt to reach a node.
pub type Connecting =
    Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Connection>>> + Send + 'static>>;

/// The machine that a client runs on, where it is not the real one.
pub trait Machine: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn wall_millis(&self) -> u64;
    fn fill_random(&self, bytes: &mut [u8]);
    /// `address` is `host:port`.
    fn connect(&self, address: &str) -> Connecting;
}

/// Where ids, jitter and connections come from; the default is the real machine.
#[derive(Clone, Default)]
pub(crate) struct Source(Option<Arc<dyn Machine>>);

impl Source {
    pub(crate) fn of(machine: Arc<dyn Machine>) -> Self {
        Self(Some(machine))
    }

    /// What makes connections, where it is not the operating system.
    pub(crate) fn connector(&self) -> Option<Arc<dyn Machine>> {
        self.0.clone()
    }

    /// A UUIDv7: 16 bytes that order roughly by the time of their making.
    pub(crate) fn new_uuid(&self) -> uuid::Uuid {
        let Some(machine) = &self.0 else {
            return uuid::Uuid::now_v7();
        };
        let mut random = [0; 10];
        machine.fill_random(&mut random);
        uuid::Builder::from_unix_timestamp_millis(machine.wall_millis(), &random).into_uuid()
    }

    /// A random duration in the upper half of `0..=limit`, so that clients which failed together
    /// do not come back together.
    pub(crate) fn jittered(&self, limit: Duration) -> Duration {
        let share = match &self.0 {
            None => rand::random::<u32>(),
            Some(machine) => {
                let mut random = [0; 4];
                machine.fill_random(&mut random);
                u32::from_le_bytes(random)
            }
        };
        limit / 2 + (limit / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
    }
}

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
