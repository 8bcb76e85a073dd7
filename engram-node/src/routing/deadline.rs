//! Deadlines and pauses of a request, on the node's own clock.

use std::time::Duration;

use crate::seams::Seams;

/// Shortest and longest pause between two attempts of a request.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// When a request is over, in the node's monotonic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Duration);

impl Deadline {
    #[must_use]
    pub fn after(seams: &Seams, wait: Duration) -> Self {
        Self(seams.clock.monotonic().saturating_add(wait))
    }

    /// Zero when it has passed.
    #[must_use]
    pub fn left(self, seams: &Seams) -> Duration {
        self.0.saturating_sub(seams.clock.monotonic())
    }

    #[must_use]
    pub fn has_passed(self, seams: &Seams) -> bool {
        self.left(seams).is_zero()
    }
}

/// Growing pauses with jitter, so that those who failed together do not come back together.
#[derive(Debug, Default)]
pub struct Pauses {
    taken: u32,
}

impl Pauses {
    /// The next pause: half of it fixed, half of it drawn.
    pub fn next(&mut self, seams: &Seams) -> Duration {
        let full = PAUSE_MIN
            .saturating_mul(1 << self.taken.min(8))
            .min(PAUSE_MAX);
        self.taken = self.taken.saturating_add(1);
        let mut drawn = [0; 4];
        seams.entropy.fill(&mut drawn);
        let share = f64::from(u32::from_le_bytes(drawn)) / f64::from(u32::MAX);
        full.mul_f64(0.5 + share / 2.0)
    }

    /// Sleeps for the next pause, or to the deadline when that is nearer.
    pub async fn pause(&mut self, seams: &Seams, deadline: Deadline) {
        let pause = self.next(seams).min(deadline.left(seams));
        seams.clock.sleep(pause).await;
    }
}
