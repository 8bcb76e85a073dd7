//! Hybrid logical timestamps (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014).

use serde::{Deserialize, Serialize};

/// 48 bits of milliseconds since the Unix epoch, then 16 bits of logical counter. Metadata only
/// (decay, audit): no ordering decision and no safety property rests on it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hlc(pub u64);

impl Hlc {
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << 16)
    }

    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The stamp of a new event at physical time `now_millis`, greater than `self`. When the
    /// logical part overflows, the carry moves into the milliseconds, which keeps the order.
    #[must_use]
    pub fn tick(self, now_millis: u64) -> Self {
        Self(Self::from_millis(now_millis).0.max(self.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_never_go_back() {
        let first = Hlc::default().tick(1_000);
        let second = first.tick(900);
        assert!(second > first);
        assert_eq!(second.millis(), 1_000);
        assert_eq!(second.tick(2_000), Hlc::from_millis(2_000));
    }
}
