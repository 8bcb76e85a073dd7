//! How much of an edge's weight is left after a time: fixed-point tables, the same on every CPU.
//!
//! `2^-x` is a product of four table entries, one for each byte of the fraction of `x`, shifted
//! by its integer part. The tables hold `2^-(b / 2^8k)` in Q64 and come from repeated integer
//! square roots at compile time. The power law is `2^-(exponent x log2(1 + age / scale))`, with
//! the logarithm by repeated squaring.
//!
//! Error: the exponential law is within 2^-31 of the true factor. The power law is within
//! 2^-31 + 2^-32 x exponent of it, where the exponent is in ones. Both never grow with age.

use crate::types::{Decay, Unit};

/// Entry `k - 1`: `2^-(2^-k)` in Q64, rounded down, for k = 1 to 32.
const ROOTS: [u64; 32] = {
    let mut roots = [0; 32];
    let mut square: u128 = 1 << 127;
    let mut k = 0;
    while k < 32 {
        let root = square.isqrt();
        roots[k] = root as u64;
        square = root << 64;
        k += 1;
    }
    roots
};

/// Entry `[t][b]`: `2^-(b x 2^-8(t + 1))` in Q64; entry 0 of each is a little below 1.0.
const TABLES: [[u64; 256]; 4] = {
    let mut tables = [[u64::MAX; 256]; 4];
    let mut table = 0;
    while table < 4 {
        let mut byte = 1;
        while byte < 256 {
            let mut bit = 0;
            while bit < 8 {
                if byte & (0x80 >> bit) != 0 {
                    let entry = tables[table][byte];
                    let root = ROOTS[table * 8 + bit];
                    tables[table][byte] = if entry == u64::MAX {
                        root
                    } else {
                        times(entry, root)
                    };
                }
                bit += 1;
            }
            byte += 1;
        }
        table += 1;
    }
    tables
};

const fn times(left: u64, right: u64) -> u64 {
    ((left as u128 * right as u128) >> 64) as u64
}

/// The factor that scales an edge's weight when its newest contribution is `age_millis` old.
/// 1.0 at age 0; a time constant of 0 forgets everything that is older than that.
#[must_use]
pub fn decay_factor(decay: &Decay, age_millis: u64) -> Unit {
    if age_millis == 0 {
        return Unit::ONE;
    }
    match *decay {
        Decay::None => Unit::ONE,
        Decay::Exponential { half_life_millis } => {
            let age = u128::from(age_millis) << 32;
            age.checked_div(u128::from(half_life_millis))
                .map_or(Unit::ZERO, power_of_half)
        }
        Decay::PowerLaw {
            scale_millis,
            exponent_thousandths,
        } => {
            let age = u128::from(age_millis) << 32;
            age.checked_div(u128::from(scale_millis))
                .map_or(Unit::ZERO, |ratio| {
                    let logarithm = log2((1 << 32) + ratio);
                    power_of_half(logarithm * u128::from(exponent_thousandths) / 1_000)
                })
        }
    }
}

/// `2^-x` for `x` in Q32, rounded down.
fn power_of_half(x: u128) -> Unit {
    if x == 0 {
        return Unit::ONE;
    }
    let whole = x >> 32;
    if whole > 32 {
        return Unit::ZERO;
    }
    let bytes = (x as u32).to_be_bytes();
    let fraction = bytes
        .iter()
        .zip(&TABLES)
        .filter(|(byte, _)| **byte != 0)
        .fold(u64::MAX, |product, (byte, table)| {
            let entry = table[usize::from(*byte)];
            if product == u64::MAX {
                entry
            } else {
                times(product, entry)
            }
        });
    // `u64::MAX` stands for 1.0 when the fraction is 0: then `whole` is at least 1.
    let q64 = if fraction == u64::MAX {
        1 << 64
    } else {
        u128::from(fraction)
    };
    Unit::from_bits((q64 >> (32 + whole)) as u64).unwrap_or(Unit::ONE)
}

/// `log2(y)` in Q32, rounded down up to the error of its own arithmetic, for `y` in Q32 and at
/// least 1.0. Squaring and truncating keep the order, so the result never falls as `y` grows.
fn log2(y: u128) -> u128 {
    assert!(y >= 1 << 32, "log2 of {y}, below 1.0");
    let top = y.ilog2();
    // The mantissa in Q63, in [1, 2).
    let mut mantissa = if top <= 63 {
        y << (63 - top)
    } else {
        y >> (top - 63)
    };
    let mut logarithm = u128::from(top - 32);
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = mantissa >> 64;
        mantissa >>= bit;
        logarithm = (logarithm << 1) | bit;
    }
    logarithm
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exponential(half_life_millis: u64) -> Decay {
        Decay::Exponential { half_life_millis }
    }

    #[test]
    fn golden_values() {
        let day = 86_400_000;
        assert_eq!(decay_factor(&Decay::None, u64::MAX), Unit::ONE);
        assert_eq!(decay_factor(&exponential(day), 0), Unit::ONE);
        assert_eq!(decay_factor(&exponential(day), day).bits(), 1 << 31);
        assert_eq!(decay_factor(&exponential(day), 32 * day).bits(), 1);
        assert_eq!(decay_factor(&exponential(day), 33 * day), Unit::ZERO);
        // floor(2^32 / sqrt(2)).
        assert_eq!(
            decay_factor(&exponential(2 * day), day).bits(),
            3_037_000_499
        );
        let law = Decay::PowerLaw {
            scale_millis: day,
            exponent_thousandths: 1_000,
        };
        assert_eq!(decay_factor(&law, day).bits(), 1 << 31);
        assert_eq!(decay_factor(&law, 3 * day).bits(), 1 << 30);
        let law = Decay::PowerLaw {
            scale_millis: day,
            exponent_thousandths: 500,
        };
        assert_eq!(decay_factor(&law, 3 * day).bits(), 1 << 31);
    }

    #[test]
    fn hostile_constants_stay_in_range() {
        for age in [0, 1, u64::MAX] {
            assert!(decay_factor(&exponential(0), age) <= Unit::ONE);
            for (scale_millis, exponent_thousandths) in [(0, 0), (1, u32::MAX), (u64::MAX, 1)] {
                let law = Decay::PowerLaw {
                    scale_millis,
                    exponent_thousandths,
                };
                assert!(decay_factor(&law, age) <= Unit::ONE);
            }
        }
    }

    proptest! {
        #[test]
        fn exponential_is_near_the_truth_and_falls(age in 0_u64..1 << 45, half in 1_u64..1 << 42) {
            let factor = decay_factor(&exponential(half), age).to_f64();
            let truth = (-(age as f64) / half as f64).exp2();
            prop_assert!((factor - truth).abs() < 2_f64.powi(-31), "{factor} {truth}");
            prop_assert!(decay_factor(&exponential(half), age + 1).to_f64() <= factor);
        }

        #[test]
        fn power_law_is_near_the_truth_and_falls(
            age in 0_u64..1 << 45, scale in 1_u64..1 << 42, thousandths in 0_u32..10_000,
        ) {
            let law = Decay::PowerLaw { scale_millis: scale, exponent_thousandths: thousandths };
            let factor = decay_factor(&law, age).to_f64();
            let exponent = f64::from(thousandths) / 1_000.0;
            let truth = (1.0 + age as f64 / scale as f64).powf(-exponent);
            prop_assert!((factor - truth).abs() < (2.0 + exponent) * 2_f64.powi(-32), "{factor} {truth}");
            prop_assert!(decay_factor(&law, age + 1).to_f64() <= factor);
        }

        /// Neighbours in the finest steps, where truncation could turn the order round.
        #[test]
        fn powers_of_half_never_grow(x in 0_u128..1 << 38) {
            prop_assert!(power_of_half(x + 1) <= power_of_half(x));
        }

        #[test]
        fn logarithms_never_fall(y in (1_u128 << 32)..1 << 97) {
            prop_assert!(log2(y + 1) >= log2(y));
        }
    }
}
