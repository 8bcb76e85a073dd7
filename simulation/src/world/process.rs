//! One process: a runtime with a paused clock of its own, from its start to its end.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, RngSeed, Runtime};

/// A runtime that runs when it is told to, for as long as it is told to.
///
/// Dropping it ends every task wherever it waits: a crash.
pub struct Process(Runtime);

impl Process {
    pub fn new(seed: u64) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build();
        Self(runtime.unwrap_or_else(|error| panic!("no runtime for a process: {error}")))
    }

    pub fn handle(&self) -> &Handle {
        self.0.handle()
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(future);
    }

    /// Lets the process work for `length` of its time. Its clock jumps from timer to timer where
    /// there is nothing else to do.
    #[allow(clippy::disallowed_methods, reason = "this is the simulation's clock")]
    pub fn run(&self, length: Duration) {
        // Made inside: a timer belongs to the runtime in which it is made.
        self.0.block_on(async { tokio::time::sleep(length).await });
    }

    /// Time has passed in which the process did nothing: all its timers are late at once.
    pub fn skip(&self, length: Duration) {
        self.0.block_on(tokio::time::advance(length));
    }
}
