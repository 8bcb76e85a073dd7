//! Time on the processor and memory, as Linux tells them: a machine that does other work at the same
//! time disturbs these less than the clock.

use std::fs::read_to_string;

/// Nanoseconds in a second.
const NANOS: f64 = 1e9;
/// Ticks a second in `/proc/self/stat`: fixed at 100 for what user space sees.
const TICKS: f64 = 100.0;
/// Bytes of a page on the architectures that are measured.
const PAGE_BYTES: u64 = 4096;

/// Seconds that the calling thread was on the processor.
#[must_use]
pub fn thread_seconds() -> Option<f64> {
    let text = read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanos / NANOS)
}

/// Seconds that all threads of this process were on the processor, those that ended too, in
/// hundredths.
#[must_use]
pub fn process_seconds() -> Option<f64> {
    let text = read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold spaces; user and system time are fields 14 and 15.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

/// Resident memory of this process, in bytes.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let text = read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        let before = thread_seconds().expect("a thread");
        let sum: u64 = (0..2_000_000_u64).map(std::hint::black_box).sum();
        assert!(sum > 0 && thread_seconds().expect("a thread") > before);
        assert!(process_seconds().is_some_and(|seconds| seconds >= 0.0));
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000));
    }
}
