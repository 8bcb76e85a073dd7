//! Clock, tasks and random bytes of one process, and what all seams of a process share: its life.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engram_node::seams::{BoxFuture, Clock, Entropy, Tasks};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::coverage::Coverage;
use super::network::Place;
use super::trace::Trace;
use crate::libc_seam::WALL_START;
use crate::plan::DiskPlan;

/// A generator of its own for each use, so that one more draw here changes nothing there.
pub fn generator(seed: u64, what: &str, number: u64) -> StdRng {
    let mut hash = blake3::Hasher::new();
    hash.update(&seed.to_le_bytes());
    hash.update(what.as_bytes());
    hash.update(&number.to_le_bytes());
    StdRng::from_seed(*hash.finalize().as_bytes())
}

/// What all parts of a world share.
pub struct Ledger {
    trace: Mutex<Trace>,
    coverage: Mutex<Coverage>,
    now_micros: AtomicU64,
}

impl Ledger {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            trace: Mutex::new(Trace::new()),
            coverage: Mutex::default(),
            now_micros: AtomicU64::new(0),
        })
    }

    pub fn now(&self) -> Duration {
        Duration::from_micros(self.now_micros.load(Ordering::Relaxed))
    }

    pub fn set_now(&self, now: Duration) {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.now_micros.store(micros, Ordering::Relaxed);
    }

    pub fn event(&self, what: std::fmt::Arguments<'_>) {
        self.trace.lock().event(self.now(), what);
    }

    pub fn count(&self, name: &'static str, count: u64) {
        self.coverage.lock().add(name, count);
    }

    pub fn trace(&self) -> parking_lot::MutexGuard<'_, Trace> {
        self.trace.lock()
    }

    pub fn coverage(&self) -> Coverage {
        self.coverage.lock().clone()
    }
}

/// A process from its start to its end. Whatever belongs to one that is over does nothing more.
#[derive(Debug)]
pub struct Life {
    pub place: Place,
    /// Counts the starts at this place, from 1.
    pub number: u64,
    over: AtomicBool,
}

impl Life {
    pub fn begin(place: Place, number: u64) -> Arc<Self> {
        Arc::new(Self {
            place,
            number,
            over: AtomicBool::new(false),
        })
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A process's clocks: tokio's paused time, and a wall clock that is off by so much.
pub struct SimClock {
    begun: Instant,
    /// Of the process since the world began.
    begun_at: Duration,
    offset_millis: Arc<AtomicI64>,
}

impl SimClock {
    pub fn new(begun_at: Duration, offset_millis: Arc<AtomicI64>) -> Self {
        Self {
            begun: Instant::now(),
            begun_at,
            offset_millis,
        }
    }

    /// Since the world began.
    pub fn now(&self) -> Duration {
        self.begun_at + self.begun.elapsed()
    }
}

#[async_trait]
impl Clock for SimClock {
    fn wall_millis(&self) -> u64 {
        let right = (WALL_START + self.now()).as_millis() as u64;
        right.saturating_add_signed(self.offset_millis.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.begun.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "this is the simulation's clock")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

pub struct SimEntropy(Mutex<StdRng>);

impl SimEntropy {
    pub fn new(generator: StdRng) -> Self {
        Self(Mutex::new(generator))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }
}

/// Tasks on the process's own runtime. Blocking work is a task that waits as long as the work may
/// take and then does it at once: whoever waits for it really waits.
pub struct SimTasks {
    runtime: Handle,
    life: Arc<Life>,
    disk: DiskPlan,
    /// How many times as long blocking work takes now.
    slowness: Arc<AtomicU32>,
    generator: Mutex<StdRng>,
}

/// Blocking work that is slow by chance takes so many times as long.
const SLOW_FACTOR: u32 = 10;

impl SimTasks {
    pub fn new(
        runtime: Handle,
        life: Arc<Life>,
        disk: DiskPlan,
        slowness: Arc<AtomicU32>,
        generator: StdRng,
    ) -> Self {
        Self {
            runtime,
            life,
            disk,
            slowness,
            generator: Mutex::new(generator),
        }
    }

    fn draw(&self) -> Duration {
        let mut generator = self.generator.lock();
        let (min, max) = (self.disk.sync_min, self.disk.sync_max);
        let micros = generator.random_range(min.as_micros()..=max.as_micros().max(min.as_micros()));
        let by_chance = if generator.random_bool(self.disk.slow) {
            SLOW_FACTOR
        } else {
            1
        };
        let factor = by_chance * self.slowness.load(Ordering::Relaxed);
        Duration::from_micros(micros as u64) * factor
    }
}

impl Tasks for SimTasks {
    fn spawn(&self, _name: &'static str, future: BoxFuture<()>) {
        self.runtime.spawn(future);
    }

    #[allow(clippy::disallowed_methods, reason = "this is the simulation's clock")]
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let (wait, life) = (self.draw(), Arc::clone(&self.life));
        self.runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            if !life.is_over() {
                work();
            }
        });
    }
}
