//! Fixed-point numbers of the unit interval: the only way weights and confidences are stored.

use serde::{Deserialize, Serialize};

/// A number in [0, 1] as a multiple of 2^-32; `ONE` is 1.0. Products fit `u128`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Unit(u64);

/// A number that is not in [0, 1], or not a number.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is not in [0, 1]")]
pub struct OutOfUnit(pub f64);

impl Unit {
    pub const ZERO: Self = Self(0);
    pub const ONE: Self = Self(1 << 32);

    /// The nearest multiple of 2^-32.
    ///
    /// # Errors
    /// When `value` is not a number in [0, 1].
    pub fn from_f64(value: f64) -> Result<Self, OutOfUnit> {
        if (0.0..=1.0).contains(&value) {
            // Exact scaling by a power of two, then one correctly rounded conversion.
            Ok(Self((value * 4_294_967_296.0 + 0.5).floor() as u64))
        } else {
            Err(OutOfUnit(value))
        }
    }

    /// From a multiple of 2^-32; `None` above 1.0.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits <= Self::ONE.0).then_some(Self(bits))
    }

    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / 4_294_967_296.0
    }

    /// The product, rounded down.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        Self(((u128::from(self.0) * u128::from(other.0)) >> 32) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_unit_interval_is_accepted() {
        for bad in [-0.1, 1.0001, f64::NAN, f64::INFINITY] {
            assert!(Unit::from_f64(bad).is_err(), "{bad}");
        }
        assert_eq!(Unit::from_f64(1.0), Ok(Unit::ONE));
        assert_eq!(Unit::from_f64(0.0), Ok(Unit::ZERO));
        assert_eq!(Unit::from_f64(0.5).map(Unit::bits), Ok(1 << 31));
        assert_eq!(Unit::from_bits((1 << 32) + 1), None);
    }

    #[test]
    fn products_round_down() {
        let tiny = Unit(1);
        assert_eq!(tiny.times(Unit(u64::from(u32::MAX))), Unit::ZERO);
        assert_eq!(Unit::ONE.times(tiny), tiny);
    }
}
