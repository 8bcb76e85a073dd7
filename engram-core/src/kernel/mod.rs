//! Distance kernels: bit-identical on every CPU, chosen at run time.
//!
//! The index calls them for every decision that shapes its graph; the state machine calls
//! [`normalise`] before it stores a vector. What must hold: each kernel adds up in the one shape of
//! ADR 0004 (64 lanes of fused multiply-add, lane l taking the elements l mod 64, then a halving
//! tree), so all of them give the same bits; [`Kernel::PORTABLE`] is the specification. Only a NaN
//! may differ in its payload, which is why [`Kernel::distance`] never returns one.
#![allow(
    unsafe_code,
    reason = "calls functions compiled for CPU features that were detected"
)]

#[cfg(target_arch = "x86_64")]
mod codes_x86;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod row;
mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cmp::Ordering;
use std::sync::OnceLock;

pub use row::Row;
pub use rows::{Lane, Rows, prefetch};

use crate::types::Metric;

/// Rows that are being loaded ahead of the one that is compared.
#[cfg(target_arch = "x86_64")]
const ROWS_AHEAD: usize = 3;

/// Lanes that are summed side by side; rows are zero-padded to a multiple of it.
pub const LANES: usize = 64;

/// Length of a row that holds `dimension` components.
#[must_use]
pub const fn padded_len(dimension: usize) -> usize {
    dimension.next_multiple_of(LANES)
}

/// An implementation that this CPU can run. Only detection makes one, so calling it is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VNNI: other instructions for codes.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Kernel {
    /// Runs everywhere and defines the bits.
    pub const PORTABLE: Self = Self(Isa::Portable);

    /// The fastest one this CPU can run.
    #[must_use]
    pub fn detect() -> Self {
        static FASTEST: OnceLock<Kernel> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            let all = Self::all_available();
            all.last().copied().unwrap_or(Self::PORTABLE)
        })
    }

    /// All that this CPU can run, the fastest last.
    #[must_use]
    pub fn all_available() -> Vec<Self> {
        let mut kernels = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kernels.push(Self(Isa::Avx2));
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                kernels.push(Self(Isa::Avx512));
                if is_x86_feature_detected!("avx512vnni") {
                    kernels.push(Self(Isa::Avx512Vnni));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        kernels.push(Self(Isa::Neon));
        kernels
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// Dot product of two rows.
    ///
    /// # Panics
    /// When the rows differ in length or are not padded.
    #[inline]
    #[must_use]
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_rows(a, b);
        match self.0 {
            Isa::Portable => portable::dot(a, b),
            // SAFETY: this variant exists only where avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::dot_avx2(a, b) },
            // SAFETY: these variants exist only where avx512f, avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => unsafe { x86::dot_avx512(a, b) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::dot(a, b),
        }
    }

    /// Squared Euclidean distance of two rows.
    ///
    /// # Panics
    /// When the rows differ in length or are not padded.
    #[inline]
    #[must_use]
    pub fn l2_squared(self, a: &[f32], b: &[f32]) -> f32 {
        assert_rows(a, b);
        match self.0 {
            Isa::Portable => portable::l2_squared(a, b),
            // SAFETY: this variant exists only where avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::l2_squared_avx2(a, b) },
            // SAFETY: these variants exist only where avx512f, avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => unsafe { x86::l2_squared_avx512(a, b) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::l2_squared(a, b),
        }
    }

    /// Distance of two rows under a metric; under cosine both are of unit length. Sums that
    /// overflow to NaN count as infinitely far.
    ///
    /// # Panics
    /// When the rows differ in length or are not padded.
    #[inline]
    #[must_use]
    pub fn distance(self, metric: Metric, a: &[f32], b: &[f32]) -> Distance {
        distance_of(
            metric,
            match metric {
                Metric::Cosine | Metric::Dot => self.dot(a, b),
                Metric::L2 => self.l2_squared(a, b),
            },
        )
    }

    /// Distances of `row` to the rows of an array, in the order of `numbers`, in place of what
    /// `found` held. The rows ahead are being loaded while one is compared.
    ///
    /// # Panics
    /// When the rows differ in length, are not padded, or one is not there.
    #[inline]
    pub fn distances(
        self,
        metric: Metric,
        row: &[f32],
        rows: &Rows<f32>,
        numbers: &[u32],
        found: &mut Vec<Distance>,
    ) {
        assert_lanes(row.len(), rows.lanes());
        match self.0 {
            Isa::Portable => portable::distances(metric, row, rows, numbers, found),
            // SAFETY: this variant exists only where avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::distances_avx2(metric, row, rows, numbers, found) },
            // SAFETY: these variants exist only where avx512f, avx2 and fma were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => unsafe {
                x86::distances_avx512(metric, row, rows, numbers, found);
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::distances(metric, row, rows, numbers, found),
        }
    }

    /// Dot product of signed with biased codes: the sum of `a[i] * (b[i] - 128)`. Integers, so all
    /// kernels agree whatever their order.
    ///
    /// # Panics
    /// When the codes differ in length or are not padded.
    #[inline]
    #[must_use]
    pub fn dot_codes(self, a: Signed<'_>, b: &[u8]) -> i32 {
        assert_lanes(a.codes.len(), b.len());
        let biased = match self.0 {
            Isa::Portable => portable::dot_codes(a.codes, b),
            // SAFETY: this variant exists only where avx2 was detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { codes_x86::dot_avx2(a.codes, b) },
            // SAFETY: this variant exists only where avx512f and avx512bw were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { codes_x86::dot_avx512(a.codes, b) },
            // SAFETY: this variant exists only where avx512f and avx512vnni were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { codes_x86::dot_vnni(a.codes, b) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::dot_codes(a.codes, b),
        };
        biased - a.bias
    }

    /// As [`Self::dot_codes`] for rows of an array; see [`Self::distances`]. Only the first lanes
    /// of a row, as many as `a` has, are codes.
    ///
    /// # Panics
    /// When the codes are not padded, the rows are shorter, or one is not there.
    #[inline]
    pub fn dots_codes(self, a: Signed<'_>, rows: &Rows<u8>, numbers: &[u32], found: &mut Vec<i32>) {
        assert!(
            a.codes.len() <= rows.lanes() && a.codes.len().is_multiple_of(LANES),
            "{} codes against rows of {}",
            a.codes.len(),
            rows.lanes()
        );
        match self.0 {
            Isa::Portable => portable::dots_codes(a, rows, numbers, found),
            // SAFETY: this variant exists only where avx2 was detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { codes_x86::dots_avx2(a, rows, numbers, found) },
            // SAFETY: this variant exists only where avx512f and avx512bw were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { codes_x86::dots_avx512(a, rows, numbers, found) },
            // SAFETY: this variant exists only where avx512f and avx512vnni were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { codes_x86::dots_vnni(a, rows, numbers, found) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::dots_codes(a, rows, numbers, found),
        }
    }
}

/// Signed codes, -127 to 127, with what their product with biased codes has too much.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    codes: &'a [i8],
    /// 128 times the sum of the codes.
    bias: i32,
}

/// Takes the bias off stored codes.
#[must_use]
pub fn unbiased(code: u8) -> i8 {
    code.wrapping_sub(CODE_BIAS).cast_signed()
}

/// Adds the bias to signed codes, to store them.
#[must_use]
pub fn biased(code: i8) -> u8 {
    code.cast_unsigned().wrapping_add(CODE_BIAS)
}

/// What is added to a signed code to store it.
pub const CODE_BIAS: u8 = 128;

impl<'a> Signed<'a> {
    #[must_use]
    pub fn new(codes: &'a [i8]) -> Self {
        let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
        let bias = sum * i32::from(CODE_BIAS);
        Self { codes, bias }
    }
}

#[inline]
fn distance_of(metric: Metric, sum: f32) -> Distance {
    let distance = match metric {
        Metric::Cosine => 1.0 - sum,
        Metric::Dot => -sum,
        Metric::L2 => sum,
    };
    Distance(if distance.is_nan() {
        f32::INFINITY
    } else {
        distance
    })
}

#[inline]
fn assert_rows(a: &[f32], b: &[f32]) {
    assert_lanes(a.len(), b.len());
}

#[inline]
fn assert_lanes(a: usize, b: usize) {
    assert!(
        a == b && a.is_multiple_of(LANES),
        "rows of {a} and {b} lanes are not two rows of one space"
    );
}

/// A distance, totally ordered; smaller is nearer.
#[derive(Clone, Copy, Debug)]
pub struct Distance(pub f32);

impl Distance {
    const SIGN: u32 = 1 << 31;

    /// An integer with the same order.
    #[inline]
    #[must_use]
    pub fn to_ordered(self) -> u32 {
        let bits = self.0.to_bits();
        if bits & Self::SIGN == 0 {
            bits | Self::SIGN
        } else {
            !bits
        }
    }

    /// The inverse of [`Self::to_ordered`].
    #[inline]
    #[must_use]
    pub fn from_ordered(ordered: u32) -> Self {
        let positive = ordered & Self::SIGN != 0;
        Self(f32::from_bits(if positive {
            ordered & !Self::SIGN
        } else {
            !ordered
        }))
    }
}

impl Ord for Distance {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Distance {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Distance {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Distance {}

/// Squared lengths outside of this range lose bits or overflow, so the vector is scaled first.
const SAFE_SQUARES: std::ops::Range<f32> = 1e-30..1e30;

/// Scales a vector to unit length: components divided by the square root of the fixed-shape dot
/// product. A vector whose squares leave the range of f32 is first multiplied by a power of two,
/// which is exact. Returns false, and changes nothing, when the vector has no direction: all zero,
/// or not finite.
#[must_use]
pub fn normalise(components: &mut [f32]) -> bool {
    let mut row = Row::new(components);
    let has_direction = row.normalise();
    components.copy_from_slice(&row[..components.len()]);
    has_direction
}

impl Row<f32> {
    /// As [`normalise`], in place.
    #[must_use]
    pub fn normalise(&mut self) -> bool {
        let greatest = self
            .iter()
            .fold(0.0_f32, |greatest, value| greatest.max(value.abs()));
        if greatest == 0.0 || self.iter().any(|value| !value.is_finite()) {
            return false;
        }
        let kernel = Kernel::detect();
        let mut squares = kernel.dot(self, self);
        if !SAFE_SQUARES.contains(&squares) {
            scale_near_one(self, greatest);
            squares = kernel.dot(self, self);
        }
        let length = squares.sqrt();
        self.iter_mut().for_each(|value| *value /= length);
        true
    }
}

/// Multiplies by the power of two that brings `greatest` into [1, 2), in two steps, because that
/// power itself may be out of range.
fn scale_near_one(components: &mut [f32], greatest: f32) {
    const MANTISSA_BITS: i32 = 23;
    const BIAS: i32 = 127;
    let biased = (greatest.to_bits() >> MANTISSA_BITS) as i32;
    let exponent = if biased == 0 {
        // Subnormal: its value is its mantissa times 2^-149.
        31 - greatest.to_bits().leading_zeros() as i32 - (BIAS - 1 + MANTISSA_BITS)
    } else {
        biased - BIAS
    };
    let power = |exponent: i32| f32::from_bits(((exponent + BIAS) as u32) << MANTISSA_BITS);
    let (first, second) = (power(-exponent / 2), power(-exponent - -exponent / 2));
    components
        .iter_mut()
        .for_each(|value| *value = *value * first * second);
}

#[cfg(test)]
mod tests;
