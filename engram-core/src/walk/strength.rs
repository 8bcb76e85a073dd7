//! A product of weights: an integer with an exponent, so that long paths of weak edges keep their
//! order. Every product is rounded down to 64 bits, which is monotone: a stronger path stays at
//! least as strong when both go on along the same edge.

use crate::types::Unit;

/// A number in (0, 1]: `mantissa x 2^(exponent - 64)`, the mantissa's highest bit being set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strength {
    // Ordered by the exponent first.
    exponent: i32,
    mantissa: u64,
}

impl Strength {
    /// Of a path without an edge.
    pub const ONE: Self = Self {
        exponent: 1,
        mantissa: 1 << 63,
    };

    /// With one more edge; `None` for one of weight 0.
    #[must_use]
    pub fn times(self, weight: Unit) -> Option<Self> {
        let product = u128::from(self.mantissa) * u128::from(weight.bits());
        if product == 0 {
            return None;
        }
        let shift = product.leading_zeros();
        Some(Self {
            // 2^32 is the weight 1.
            exponent: self
                .exponent
                .saturating_add(32)
                .saturating_sub(shift as i32),
            mantissa: ((product << shift) >> 64) as u64,
        })
    }

    /// For people: 0 where it is below what an f64 holds.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        let exponent = i64::from(self.exponent) - 64 + 1023;
        match u64::try_from(exponent) {
            Ok(exponent) if exponent > 0 => self.mantissa as f64 * f64::from_bits(exponent << 52),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weight(bits: u64) -> Unit {
        Unit::from_bits(bits).expect("in range")
    }

    #[test]
    fn products_are_those_of_the_weights() {
        let half = weight(1 << 31);
        let quarter = Strength::ONE.times(half).and_then(|one| one.times(half));
        assert_eq!(quarter.map(Strength::to_f64), Some(0.25));
        assert_eq!(Strength::ONE.times(Unit::ONE), Some(Strength::ONE));
        assert_eq!(Strength::ONE.times(Unit::ZERO), None);
        let mut long = Strength::ONE;
        for _ in 0..1_000 {
            long = long.times(weight(1)).expect("above 0");
        }
        assert!(long < Strength::ONE && long.to_f64() == 0.0);
    }

    proptest! {
        #[test]
        fn the_order_of_paths_survives_another_edge(
            one in prop::collection::vec(1..=1_u64 << 32, 0..20),
            other in prop::collection::vec(1..=1_u64 << 32, 0..20),
            next in 1..=1_u64 << 32,
        ) {
            let along = |weights: &[u64]| weights.iter().fold(Strength::ONE, |strength, bits| {
                strength.times(weight(*bits)).expect("above 0")
            });
            let (one, other) = (along(&one), along(&other));
            let go_on = |strength: Strength| strength.times(weight(next)).expect("above 0");
            prop_assert!(go_on(one) <= one);
            if one <= other {
                prop_assert!(go_on(one) <= go_on(other));
            }
        }
    }
}
