//! Several seeds at the same time, each in a thread of its own.

#![allow(
    clippy::disallowed_methods,
    reason = "how long it takes is told to whoever waits; nothing simulated sees it"
)]

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What came of one piece of work.
pub struct Done<I, T> {
    pub item: I,
    /// Or the words of a panic: a defect of the simulation.
    pub result: Result<T, String>,
}

/// A watch.
#[derive(Clone, Copy)]
pub struct Began(Instant);

impl Began {
    pub fn now() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Works through `items` with `jobs` threads. `take` gets the results as they come and says whether
/// to go on.
pub fn each<I: Copy + Send, T: Send>(
    items: impl Iterator<Item = I> + Send,
    jobs: usize,
    work: impl Fn(I) -> T + Sync,
    mut take: impl FnMut(Done<I, T>) -> bool,
) {
    let items = Mutex::new(Some(items));
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (items, work, sender) = (&items, &work, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = {
                        let mut items = items.lock().unwrap_or_else(|held| held.into_inner());
                        items.as_mut().and_then(Iterator::next)
                    };
                    let Some(item) = next else {
                        return;
                    };
                    let result = panic::catch_unwind(AssertUnwindSafe(|| work(item)));
                    let done = Done {
                        item,
                        result: result.map_err(|payload| words(payload.as_ref())),
                    };
                    if sender.send(done).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut go_on = true;
        for done in results {
            if go_on && !take(done) {
                go_on = false;
                *items.lock().unwrap_or_else(|held| held.into_inner()) = None;
            }
        }
    });
}

/// What a panic said.
pub fn words(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_panics_are_told() {
        let mut done = Vec::new();
        each(
            0..20_u64,
            3,
            |seed| {
                assert!(seed != 7, "seven");
                seed * 2
            },
            |one| {
                done.push((one.item, one.result));
                true
            },
        );
        done.sort();
        assert_eq!(done.len(), 20);
        assert_eq!(done[3], (3, Ok(6)));
        assert_eq!(done[7], (7, Err("seven".into())));
    }

    #[test]
    fn it_stops_when_told_to() {
        let mut taken = 0;
        each(
            0..1_000_000_u64,
            2,
            |seed| seed,
            |_| {
                taken += 1;
                taken < 3
            },
        );
        assert_eq!(taken, 3);
    }
}
