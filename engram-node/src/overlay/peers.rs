//! When to call which node: one call at a time to each, soon after a change, with a growing pause
//! after failures that never exceeds [`BACK_OFF_MAX`], whatever the membership believes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::types::{OverlayContext, PartitionId};

use super::parts::Asked;

/// A change waits this long for others to go with it.
pub const COALESCE: Duration = Duration::from_millis(20);
/// Pause between calls while one of the shared partitions holds changes beside the log.
pub const BUSY_PERIOD: Duration = Duration::from_millis(500);
/// Pause between calls while nothing goes on: how soon a silent divergence shows.
pub const QUIET_PERIOD: Duration = Duration::from_millis(2_000);
/// How long a call may take; shorter where the one before failed and only hashes go there and back.
pub const CALL_WAIT: Duration = Duration::from_millis(1_000);
pub const PROBE_WAIT: Duration = Duration::from_millis(500);
/// Pauses after failed calls. With [`PROBE_WAIT`], the longest of them is how late a heal may be seen.
pub const BACK_OFF_MIN: Duration = Duration::from_millis(50);
pub const BACK_OFF_MAX: Duration = Duration::from_millis(250);

/// What one other node is to this one.
#[derive(Debug, Default)]
pub struct Peer {
    /// When it is called next.
    due: Duration,
    /// What was asked in the call that has no answer yet.
    asked: Option<Asked>,
    /// A change came up during the call.
    hurry: bool,
    failures: u32,
    /// Partitions in which one side may have what the other lacks.
    pub open: BTreeSet<PartitionId>,
    /// What it had seen when it last said so: a hint of what it need not be sent.
    pub seen: BTreeMap<PartitionId, OverlayContext>,
}

/// What an answer leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One side has more for the other.
    Again,
    Busy,
    Quiet,
}

impl Peer {
    #[must_use]
    pub fn due_at(&self) -> Option<Duration> {
        self.asked.is_none().then_some(self.due)
    }

    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        self.due_at().is_some_and(|due| due <= now)
    }

    pub fn called(&mut self, asked: Asked) {
        assert!(self.asked.is_none(), "one call at a time");
        self.hurry = false;
        self.asked = Some(asked);
    }

    /// There is news for this peer, or of it.
    pub fn urge(&mut self, now: Duration, partition: PartitionId) {
        self.open.insert(partition);
        self.hurry = true;
        if self.failures == 0 {
            self.due = self.due.min(now + COALESCE);
        }
    }

    pub fn answered(&mut self) -> Option<Asked> {
        self.failures = 0;
        self.asked.take()
    }

    pub fn pause(&mut self, now: Duration, next: Next) {
        let pause = match next {
            Next::Again => Duration::ZERO,
            _ if self.hurry => COALESCE,
            Next::Busy => BUSY_PERIOD,
            Next::Quiet => QUIET_PERIOD,
        };
        self.due = now + pause;
    }

    /// Gives back what was asked: whether it arrived is not known.
    pub fn failed(&mut self, now: Duration) -> Option<Asked> {
        self.due = now + back_off(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.asked.take()
    }

    /// Whether the last call failed: the next one only asks whether anybody is there.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.failures > 0
    }
}

fn back_off(failures: u32) -> Duration {
    let factor = 1_u32 << failures.min(8);
    (BACK_OFF_MIN * factor).min(BACK_OFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn pauses_after_failures_grow_to_their_bound() {
        let mut peer = Peer::default();
        let mut now = millis(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(peer.is_due(now));
            peer.called(Asked::default());
            assert_eq!(peer.due_at(), None, "one call at a time");
            assert!(peer.failed(now).is_some());
            let due = peer.due_at().expect("it is called again");
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [50, 100, 200, 250, 250, 250, 250]);
        peer.called(Asked::default());
        assert!(peer.answered().is_some());
        assert!(!peer.is_probed());
    }

    #[test]
    fn news_come_soon_and_do_not_break_the_pause_after_failures() {
        let mut peer = Peer::default();
        peer.called(Asked::default());
        peer.urge(millis(5), P);
        let _ = peer.answered();
        peer.pause(millis(10), Next::Quiet);
        assert_eq!(
            peer.due_at(),
            Some(millis(10) + COALESCE),
            "news during the call"
        );
        peer.called(Asked::default());
        let _ = peer.answered();
        peer.pause(millis(100), Next::Quiet);
        assert_eq!(peer.due_at(), Some(millis(100) + QUIET_PERIOD));
        peer.urge(millis(150), P);
        assert_eq!(peer.due_at(), Some(millis(150) + COALESCE));
        peer.called(Asked::default());
        let _ = peer.failed(millis(300));
        peer.urge(millis(301), P);
        assert_eq!(peer.due_at(), Some(millis(300) + BACK_OFF_MIN));
    }
}
