//! The thread on which a world runs: a fresh one for each, so that nothing thread-local is left
//! over from another.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

use crate::libc_seam;
use crate::probes::Probes;

/// A world's futures are big where they are not optimised.
const STACK_BYTES: usize = 64 << 20;

thread_local! {
    static PROBES: Probes = Probes::default();
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs `work` on a thread of its own whose clocks and random numbers `seed` decides.
///
/// # Panics
/// When `work` panics, or no thread can be had.
pub fn on_own_thread<T: Send + 'static>(seed: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    prepare_process();
    let inside = move || {
        libc_seam::enter(seed);
        engram_node::consensus::seed_this_thread(seed);
        PANICS.set(Some(Vec::new()));
        let probes = probes();
        let work = AssertUnwindSafe(|| metrics::with_local_recorder(&probes, work));
        panic::catch_unwind(work).unwrap_or_else(|payload| {
            for panic in take_panics() {
                eprintln!("{panic}");
            }
            panic::resume_unwind(payload)
        })
    };
    let thread = thread::Builder::new()
        .name(format!("world-{seed}"))
        .stack_size(STACK_BYTES)
        .spawn(inside)
        .unwrap_or_else(|error| panic!("no thread for a world: {error}"));
    thread
        .join()
        .unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// What the node has counted on this thread.
pub(crate) fn probes() -> Probes {
    PROBES.with(Clone::clone)
}

/// The panics on this thread since the last call, where and why. Those that a task's runtime catches
/// would go unnoticed otherwise.
pub(crate) fn take_panics() -> Vec<String> {
    PANICS.with_borrow_mut(|panics| panics.as_mut().map(std::mem::take).unwrap_or_default())
}

fn prepare_process() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It measures the speed of the CPU's clock, which never ends where time stands still.
        drop(engram_node::http::Metrics::install());
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = PANICS.with_borrow_mut(|panics| {
                panics
                    .as_mut()
                    .map(|panics| panics.push(info.to_string()))
                    .is_some()
            });
            if !noted {
                report(info);
            }
        }));
    });
}
