//! The stamps of changes that enter at this node: hybrid logical times that never go back, not even
//! over a restart, and that a jump of the wall clock does not carry along.
//!
//! A pure step. Stamps are metadata (decay, audit); no ordering rests on them. What must hold: a
//! stamp is greater than every one given before, by this process or an earlier one, as long as
//! [`Stamps::next`] is told the bound that was kept and its own bounds are kept before they are used.

use std::time::Duration;

use engram_core::types::Hlc;

/// How far the wall clock may be from what the monotonic clock makes of its past.
const DRIFT_MAX: Duration = Duration::from_millis(500);
/// How far ahead of the stamps the kept bound lies: one write for so much time.
const AHEAD: Duration = Duration::from_secs(5);
/// A clamped clock is followed by this part of the time that passes, in case the new time is right.
const SLEW_PART: u32 = 8;

/// What the clocks of the machine say.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub wall_millis: u64,
    pub monotonic: Duration,
}

/// Why a stamp is not what the wall clock says: an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// The wall clock jumped forward, by more than it may; the stamp stays behind it.
    Ahead { millis: u64 },
    /// The wall clock is behind stamps that were given; the stamp is ahead of it.
    Behind { millis: u64 },
}

impl Drift {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ahead { .. } => "ahead",
            Self::Behind { .. } => "behind",
        }
    }
}

/// A stamp and what is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    pub stamp: Hlc,
    pub drift: Option<Drift>,
    /// To be kept durably before the stamp is used.
    pub keep: Option<Hlc>,
}

/// The clock of stamps.
#[derive(Debug)]
pub struct Stamps {
    last: Hlc,
    /// Stamps below it are known not to be given again after a restart.
    kept: Hlc,
    anchor: Option<Reading>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Stamps {
    /// `kept` is the bound that an earlier process kept last, if there was one.
    #[must_use]
    pub fn new(kept: Option<Hlc>) -> Self {
        let last = kept.unwrap_or_default();
        Self {
            last,
            kept: last,
            anchor: None,
        }
    }

    pub fn next(&mut self, now: Reading) -> Given {
        let (millis_now, ahead) = self.clamp(now);
        let stamp = self.last.tick(millis_now);
        let behind = stamp.millis().saturating_sub(millis_now);
        let behind = (behind > millis(DRIFT_MAX)).then_some(Drift::Behind { millis: behind });
        self.last = stamp;
        let keep = (stamp >= self.kept).then(|| {
            self.kept = Hlc::from_millis(stamp.millis().saturating_add(millis(AHEAD)));
            self.kept
        });
        Given {
            stamp,
            drift: ahead.or(behind),
            keep,
        }
    }

    /// The bound could not be kept: it is asked for again.
    pub fn not_kept(&mut self) {
        self.kept = Hlc::default();
    }

    /// The wall time, unless it is too far ahead of its own past.
    fn clamp(&mut self, now: Reading) -> (u64, Option<Drift>) {
        let Some(anchor) = self.anchor else {
            self.anchor = Some(now);
            return (now.wall_millis, None);
        };
        let passed = now.monotonic.saturating_sub(anchor.monotonic);
        let expected = anchor.wall_millis.saturating_add(millis(passed));
        let allowed = expected.saturating_add(millis(DRIFT_MAX));
        if now.wall_millis <= allowed {
            self.anchor = Some(now);
            return (now.wall_millis, None);
        }
        self.anchor = Some(Reading {
            wall_millis: expected.saturating_add(millis(passed / SLEW_PART)),
            monotonic: now.monotonic,
        });
        let drift = Drift::Ahead {
            millis: now.wall_millis - expected,
        };
        (allowed, Some(drift))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(wall_millis: u64, monotonic_millis: u64) -> Reading {
        Reading {
            wall_millis,
            monotonic: Duration::from_millis(monotonic_millis),
        }
    }

    #[test]
    fn a_jump_forward_is_clamped_and_slowly_followed() {
        let mut stamps = Stamps::new(None);
        assert_eq!(stamps.next(at(1_000_000, 0)).stamp.millis(), 1_000_000);
        let jumped = stamps.next(at(9_000_000, 10));
        assert_eq!(jumped.stamp.millis(), 1_000_510);
        assert_eq!(jumped.drift, Some(Drift::Ahead { millis: 7_999_990 }));
        let later = stamps.next(at(9_080_000, 80_010));
        assert!(later.drift.is_some());
        assert_eq!(later.stamp.millis(), 1_000_000 + 10 + 1 + 80_000 + 500);
        let followed = stamps.next(at(9_080_010, 80_020));
        assert_eq!(
            followed.stamp.millis(),
            1_000_011 + 80_000 + 10_000 + 10 + 500
        );
        // The clock is set right again.
        assert_eq!(stamps.next(at(1_090_100, 80_100)).drift, None);
    }

    #[test]
    fn a_jump_back_does_not_take_stamps_back() {
        let mut stamps = Stamps::new(None);
        let first = stamps.next(at(10_000_000, 0)).stamp;
        let back = stamps.next(at(5_000_000, 10));
        assert!(back.stamp > first);
        assert_eq!(back.drift, Some(Drift::Behind { millis: 5_000_000 }));
    }

    #[test]
    fn a_restart_does_not_take_stamps_back() {
        let mut stamps = Stamps::new(None);
        let given = stamps.next(at(10_000_000, 0));
        let kept = given.keep.expect("the first stamp asks for a bound");
        assert!(kept > given.stamp);
        assert_eq!(
            stamps.next(at(10_000_001, 1)).keep,
            None,
            "one write for many stamps"
        );
        let mut again = Stamps::new(Some(kept));
        assert!(again.next(at(1_000, 0)).stamp > kept);
    }

    proptest! {
        #[test]
        fn stamps_only_grow_whatever_the_clocks_do(
            steps in prop::collection::vec((any::<u32>(), 0_u64..100_000, any::<bool>()), 1..60),
        ) {
            let (mut kept, mut monotonic) = (None, 0);
            let mut stamps = Stamps::new(None);
            let mut last = Hlc::default();
            for (wall, passed, restart) in steps {
                if restart {
                    stamps = Stamps::new(kept);
                    monotonic = 0;
                }
                monotonic += passed;
                let given = stamps.next(at(u64::from(wall), monotonic));
                kept = given.keep.or(kept);
                prop_assert!(given.stamp > last);
                prop_assert!(kept.is_some_and(|kept| given.stamp < kept));
                last = given.stamp;
            }
        }
    }
}
