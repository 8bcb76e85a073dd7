//! Dividing one memory's activation over its edges: exact, without a division per edge.
//!
//! `share = floor(x d w / (sum w 2^32))` under `fan`, `floor(x d w / 2^64)` under `none`, where x is
//! at most 2^64 - 1 and d and w are at most 2^32. [`share`] computes it as written: it is the
//! specification. [`Split`] computes the same numbers for many w of one memory.
//!
//! Under `fan` let `F = floor(x d 2^32 / sum w)`; then `x d w / (sum w 2^32)` lies in
//! `[F w / 2^64, (F + 1) w / 2^64)`. If the low 64 bits of `F w` leave room for another `w`, both
//! ends have the same floor, the high 64 bits. Else (once in 2^32 edges or so, and where the
//! division has no remainder) the exact quotient is told by one more multiplication. An estimate
//! of F that is too small by less than `slack` does as well as F.

use super::parameters::Normalization;
use crate::types::Unit;

/// One share, as the rules define it. `sum` is the sum of all followed weights.
pub(super) fn share(
    amount: u64,
    decay: Unit,
    weight: Unit,
    sum: u128,
    normalization: Normalization,
) -> u64 {
    let scaled = u128::from(decay.bits()) * u128::from(weight.bits());
    // Below 2^128: the amount is below 2^64, decay and weight are at most 2^32.
    let product = u128::from(amount) * scaled;
    let share = match normalization {
        Normalization::None => product >> 64,
        // A sum of at least 2^96 would need 2^64 edges.
        Normalization::Fan => product.checked_div(sum << 32).unwrap_or(0),
    };
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// The reciprocal of a sum of weights, in 64 bits: `floor(2^(64 + b) / sum)` rounded down to a
/// multiple of 64, where b + 1 is the bit length of the sum, which takes the low 6 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reciprocal(u64);

const LENGTH_BITS: u32 = 6;
/// A reciprocal is too small by less than this share of itself, so an estimate that is below 2^64
/// is too small by less than this (and by 2 more, for its own roundings).
const RECIPROCAL_SLACK: u64 = 1 << (LENGTH_BITS + 2);
const _: () = assert!(RECIPROCAL_SLACK <= 1 << 16, "2^16 x 2^32 leaves room");

impl Reciprocal {
    /// Of a sum of at least 1.
    pub(super) fn of(sum: u64) -> Self {
        let length = 63 - sum.leading_zeros();
        // For a power of two the quotient is 2^64, which rounds down to what fits.
        let quotient = (1_u128 << (64 + length)) / u128::from(sum);
        let bits = u64::try_from(quotient).unwrap_or(u64::MAX);
        Self((bits & !((1 << LENGTH_BITS) - 1)) | u64::from(length))
    }

    /// `floor(scaled 2^32 / sum)`, or less by less than the slack; `None` where that is not known
    /// to stay below 2^64.
    fn estimate(self, scaled: u64) -> Option<u64> {
        let length = (self.0 & ((1 << LENGTH_BITS) - 1)) as u32;
        let bits = self.0 & !((1 << LENGTH_BITS) - 1);
        let product = u128::from(scaled) * u128::from(bits);
        u64::try_from(product >> (32 + length)).ok()
    }
}

/// The shares of one memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    /// F.
    factor: u64,
    /// How much too small it may be: 1, or 0 where the high bits are the share.
    slack: u64,
    exact: Exact,
}

/// What it takes to compute a share without estimates.
#[derive(Clone, Copy, Debug)]
struct Exact {
    amount: u64,
    decay: Unit,
    sum: u128,
    normalization: Normalization,
    /// F does not fit: every share is computed in full.
    always: bool,
}

impl Split {
    /// `sum` is that of all followed weights.
    pub(super) fn new(amount: u64, decay: Unit, sum: u128, normalization: Normalization) -> Self {
        let scaled = u128::from(amount) * u128::from(decay.bits());
        let (factor, slack) = match normalization {
            Normalization::None => (u64::try_from(scaled).ok(), 0),
            Normalization::Fan => {
                // Below 2^128, because `scaled` is below 2^96.
                let factor = (scaled << 32).checked_div(sum).unwrap_or(0);
                (u64::try_from(factor).ok(), 1)
            }
        };
        Self {
            factor: factor.unwrap_or(0),
            slack,
            exact: Exact {
                amount,
                decay,
                sum,
                normalization,
                always: factor.is_none(),
            },
        }
    }

    /// The share of an edge.
    #[inline]
    pub(super) fn share_of(&self, weight: u64) -> u64 {
        let product = u128::from(self.factor) * u128::from(weight);
        let (_, doubt) = (product as u64).overflowing_add(self.slack * weight);
        if doubt || self.exact.always {
            return self.in_full(weight);
        }
        (product >> 64) as u64
    }

    #[cold]
    fn in_full(&self, weight: u64) -> u64 {
        let Exact {
            amount,
            decay,
            sum,
            normalization,
            ..
        } = self.exact;
        let weight = Unit::from_bits(weight).unwrap_or(Unit::ONE);
        share(amount, decay, weight, sum, normalization)
    }
}

/// The shares of one memory under `fan`, with the sum's reciprocal at hand: no division at all, and
/// nothing in the loop over the edges but one multiplication.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuickSplit {
    /// An estimate of F from below, too small by less than the slack.
    factor: u64,
    amount: u64,
    decay: Unit,
}

impl QuickSplit {
    /// `None` where the estimate is not known to fit.
    #[inline]
    pub(super) fn new(amount: u64, decay: Unit, reciprocal: Reciprocal) -> Option<Self> {
        let scaled = u128::from(amount) * u128::from(decay.bits());
        let factor = reciprocal.estimate(u64::try_from(scaled).ok()?)?;
        Some(Self {
            factor,
            amount,
            decay,
        })
    }

    /// The share of an edge; `None` where the estimate leaves doubt.
    #[inline]
    pub(super) fn share_of(&self, weight: u64) -> Option<u64> {
        let product = u128::from(self.factor) * u128::from(weight);
        let (_, doubt) = (product as u64).overflowing_add(RECIPROCAL_SLACK * weight);
        (!doubt).then_some((product >> 64) as u64)
    }

    #[cold]
    pub(super) fn in_full(&self, weight: u64, sum: u128) -> u64 {
        let weight = Unit::from_bits(weight).unwrap_or(Unit::ONE);
        share(self.amount, self.decay, weight, sum, Normalization::Fan)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quick(amount: u64, decay: Unit, weight: u64, sum: u64) -> Option<u64> {
        let split = QuickSplit::new(amount, decay, Reciprocal::of(sum))?;
        let share = split.share_of(weight);
        Some(share.unwrap_or_else(|| split.in_full(weight, u128::from(sum))))
    }

    fn unit() -> impl Strategy<Value = Unit> {
        let bits = prop_oneof![
            Just(0),
            Just(1),
            Just(1 << 31),
            Just(1 << 32),
            0..=1_u64 << 32
        ];
        bits.prop_map(|bits| Unit::from_bits(bits).expect("in range"))
    }

    fn amount() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            Just(1),
            Just(1 << 32),
            Just(u64::MAX),
            0..1_u64 << 33,
            any::<u64>()
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn splitting_gives_the_shares_of_the_rules(
            amount in amount(),
            decay in unit(),
            weights in prop::collection::vec(unit(), 1..6),
            fan in any::<bool>(),
        ) {
            let normalization = if fan { Normalization::Fan } else { Normalization::None };
            let sum: u128 = weights.iter().map(|weight| u128::from(weight.bits())).sum();
            let split = Split::new(amount, decay, sum, normalization);
            for weight in weights {
                let truth = share(amount, decay, weight, sum, normalization);
                prop_assert_eq!(split.share_of(weight.bits()), truth);
                if fan && sum > 0 {
                    let sum = u64::try_from(sum).expect("few edges");
                    let quick = quick(amount, decay, weight.bits(), sum);
                    prop_assert!(quick.is_none_or(|quick| quick == truth), "{quick:?}, {truth}");
                }
            }
        }

        /// Sums far above a single weight, as at a hub.
        #[test]
        fn reciprocals_of_great_sums_do_too(
            amount in amount(), decay in unit(), weight in unit(), others in any::<u64>(),
        ) {
            let sum = u128::from(others).max(u128::from(weight.bits())).max(1);
            let truth = share(amount, decay, weight, sum, Normalization::Fan);
            let quick = quick(amount, decay, weight.bits(), u64::try_from(sum).expect("it was one"));
            prop_assert!(quick.is_none_or(|quick| quick == truth), "{quick:?}, {truth}");
        }
    }

    /// Divisions without a remainder are where an estimate from below is one too small.
    #[test]
    fn even_splits_are_exact() {
        let weight = Unit::ONE;
        for edges in 1..200_u64 {
            let half = Unit::from_bits(1 << 31).expect("a half");
            let share = quick(edges << 20, half, weight.bits(), edges << 32);
            assert_eq!(share, Some(1 << 19), "{edges}");
        }
    }
}
