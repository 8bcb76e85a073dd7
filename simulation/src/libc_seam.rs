//! The clock and the random bytes of the C library, replaced on threads that run a world.
//!
//! Engram's own code takes both from its seams. Its dependencies do not: the keys of the standard
//! library's hash maps, the clocks of h2 and hyper. All of them end at the two functions here, which
//! take precedence over the C library's because they are part of the program. On threads that did
//! not [`enter`], they hand on to the kernel.
//!
//! What must hold: what a world's thread reads here is decided by its seed and its world's time.
#![allow(
    unsafe_code,
    reason = "functions of the C library are defined and called in their own terms; each block says \
              why it is sound"
)]

use std::cell::Cell;
use std::time::Duration;

/// What the monotonic clock says when a world begins: worlds may look back a while.
const MONOTONIC_START: Duration = Duration::from_secs(1_000_000);
/// What the wall clock says when a world begins: 2026-01-01, in time since the Unix epoch.
pub const WALL_START: Duration = Duration::from_secs(1_767_225_600);

#[derive(Clone, Copy)]
struct Seam {
    /// Since the world began.
    now: Duration,
    /// State of the random bytes.
    random: u64,
}

thread_local! {
    // No destructor and a constant start: reading it allocates nothing and is allowed at any
    // moment of a thread's life.
    static SEAM: Cell<Option<Seam>> = const { Cell::new(None) };
}

/// From now on this thread's clock stands still at a world's beginning, and its random bytes come
/// from `seed`.
pub fn enter(seed: u64) {
    SEAM.set(Some(Seam {
        now: Duration::ZERO,
        random: seed,
    }));
}

/// Sets this thread's clock to `now` after the beginning of its world.
pub fn set_time(now: Duration) {
    if let Some(seam) = SEAM.get() {
        SEAM.set(Some(Seam { now, ..seam }));
    }
}

/// The next number of the SplitMix64 sequence.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `clock_gettime(2)`: the world's time for the clocks that tell time, the kernel's answer for
/// those that count a thread's or process's work.
///
/// # Safety
/// As the C function: `out` must be valid for a write of one `timespec`.
// SAFETY of the name: it replaces the C library's function of this name with the same signature and
// the same contract.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    out: *mut libc::timespec,
) -> libc::c_int {
    let start = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(WALL_START),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => Some(MONOTONIC_START),
        _ => None,
    };
    let (Some(start), Some(seam)) = (start, SEAM.get()) else {
        // SAFETY: the same arguments as the caller's, for the system call of this name. It sets
        // errno and returns -1 on failure, as the C function does.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) } as libc::c_int;
    };
    let now = start + seam.now;
    let time = libc::timespec {
        tv_sec: now.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(now.subsec_nanos()),
    };
    // SAFETY: the caller says that `out` may be written.
    unsafe { out.write(time) };
    0
}

/// `getrandom(2)`: bytes of the world's own sequence.
///
/// # Safety
/// As the C function: `buffer` must be valid for writes of `length` bytes.
// SAFETY of the name: as for `clock_gettime`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let Some(mut seam) = SEAM.get() else {
        // SAFETY: the same arguments as the caller's, for the system call of this name. It sets
        // errno and returns -1 on failure, as the C function does.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) }
            as libc::ssize_t;
    };
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller says that so many bytes may be written, and nobody else has them while
    // this runs; bytes need no alignment. They are written before they are read.
    let bytes = unsafe {
        buffer.cast::<u8>().write_bytes(0, length);
        std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
    };
    for chunk in bytes.chunks_mut(8) {
        let word = next(&mut seam.random).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    SEAM.set(Some(seam));
    length as libc::ssize_t
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::thread::on_own_thread;

    /// The order of a map, the time and a random number, as the standard library and rand have them.
    #[allow(clippy::disallowed_methods, reason = "they are what is tested")]
    fn observe() -> (Vec<u32>, Duration, u64) {
        let map: HashMap<u32, ()> = (0..100).map(|key| (key, ())).collect();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after");
        (map.into_keys().collect(), wall, rand::random())
    }

    #[test]
    fn a_thread_of_a_world_sees_what_its_seed_says() {
        let [first, again, other] = [7, 7, 8].map(|seed| on_own_thread(seed, observe));
        assert_eq!(first, again);
        assert_ne!(first.0, other.0, "the order of a map");
        assert_ne!(first.2, other.2, "a random number");
        assert_eq!(first.1, WALL_START);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "they are what is tested")]
    fn time_stands_still_until_it_is_set() {
        on_own_thread(1, || {
            let begun = Instant::now();
            assert_eq!(begun.elapsed(), Duration::ZERO);
            set_time(Duration::from_millis(1_500));
            assert_eq!(begun.elapsed(), Duration::from_millis(1_500));
        });
    }

    #[test]
    fn other_threads_are_left_alone() {
        let wall = observe().1;
        assert_ne!(wall, WALL_START);
        assert_ne!(observe().2, observe().2);
    }
}
