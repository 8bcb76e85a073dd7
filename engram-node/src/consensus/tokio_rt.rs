//! Where Raft's own tasks and timers run: on tokio, as openraft's own adapter has it, except for
//! the random numbers (election timeouts, jitter of ticks). Those can be seeded for a thread, so
//! that a simulation decides them.

use std::cell::Cell;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_tokio::TokioRuntime;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    /// State of this thread's seeds; none where they are the system's.
    static SEEDS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on Raft draws its random numbers on this thread from `seed`. For simulations.
pub fn seed_this_thread(seed: u64) {
    SEEDS.set(Some(seed));
}

/// openraft's tokio runtime with [`seed_this_thread`].
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

type Joined<T> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = Joined<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = StdRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> StdRng {
        let next = |state: &u64| SEEDS.set(Some(state.wrapping_add(1)));
        let seed = SEEDS.get().inspect(next);
        // The generator's own seeding spreads neighbouring seeds.
        StdRng::seed_from_u64(seed.unwrap_or_else(|| TokioRuntime::thread_rng().next_u64()))
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws() -> [u64; 3] {
        [(); 3].map(|()| Runtime::thread_rng().next_u64())
    }

    #[test]
    fn a_seeded_thread_draws_the_same_numbers_again() {
        assert_ne!(draws(), draws(), "by default they are the system's");
        seed_this_thread(7);
        let first = draws();
        assert_ne!(first, draws());
        seed_this_thread(7);
        assert_eq!(first, draws());
        SEEDS.set(None);
    }
}
