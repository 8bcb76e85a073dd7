//! The one order in which slots are compared: by distance, then by slot.

use crate::kernel::Distance;

/// A slot with its distance, packed so that one integer comparison orders both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scored(u64);

impl Scored {
    #[inline]
    pub(super) fn new(distance: Distance, slot: u32) -> Self {
        Self(u64::from(distance.to_ordered()) << 32 | u64::from(slot))
    }

    #[inline]
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Distance in the high half, slot in the low one.
    #[inline]
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) fn slot(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(super) fn distance(self) -> Distance {
        Distance::from_ordered((self.0 >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_keeps_the_order(a: f32, b: f32, x: u32, y: u32) {
            let expected = a.total_cmp(&b).then(x.cmp(&y));
            let (a, b) = (Scored::new(Distance(a), x), Scored::new(Distance(b), y));
            prop_assert_eq!(a.cmp(&b), expected);
            prop_assert_eq!(a.slot(), x);
            prop_assert_eq!(Scored::new(a.distance(), x), a);
        }
    }
}
