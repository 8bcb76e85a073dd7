//! Dot products of int8 codes for AVX-512 VNNI, AVX-512 and AVX2: integers, exact in any order.
//!
//! One side is signed and one biased by 128, because VNNI multiplies signed by unsigned bytes. Codes
//! lie in -127 ..= 127 and rows have at most 4,096 of them, so no 32-bit sum overflows.
#![allow(unsafe_code, reason = "vector loads take pointers; each one is argued")]

use std::arch::x86_64::*;

use super::{LANES, ROWS_AHEAD, Rows, Signed};

#[inline]
#[target_feature(enable = "avx512f")]
fn load_signed(block: &[i8; LANES]) -> __m512i {
    // SAFETY: the block is 64 bytes long, as many as are loaded.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_biased(block: &[u8; LANES]) -> __m512i {
    // SAFETY: the block is 64 bytes long, as many as are loaded.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot_vnni(a: &[i8], b: &[u8]) -> i32 {
    let mut sums = [_mm512_setzero_si512(); 2];
    for (place, (a, b)) in a.as_chunks().0.iter().zip(b.as_chunks().0).enumerate() {
        let sum = &mut sums[place % 2];
        *sum = _mm512_dpbusd_epi32(*sum, load_biased(b), load_signed(a));
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
}

/// Without VNNI: bytes are widened to 16 bits, so that no sum of two products saturates.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn dot_avx512(a: &[i8], b: &[u8]) -> i32 {
    let mut sum = _mm512_setzero_si512();
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        let (a, b) = (load_signed(a), load_biased(b));
        let low = _mm512_madd_epi16(
            _mm512_cvtepi8_epi16(_mm512_castsi512_si256(a)),
            _mm512_cvtepu8_epi16(_mm512_castsi512_si256(b)),
        );
        let high = _mm512_madd_epi16(
            _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64::<1>(a)),
            _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(b)),
        );
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(low, high));
    }
    _mm512_reduce_add_epi32(sum)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn dot_avx2(a: &[i8], b: &[u8]) -> i32 {
    let mut sum = _mm256_setzero_si256();
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        // SAFETY: each chunk is 16 bytes long, as many as are loaded.
        let (a, b) = unsafe {
            (
                _mm_loadu_si128(a.as_ptr().cast()),
                _mm_loadu_si128(b.as_ptr().cast()),
            )
        };
        let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(a), _mm256_cvtepu8_epi16(b));
        sum = _mm256_add_epi32(sum, products);
    }
    let four = _mm_add_epi32(
        _mm256_castsi256_si128(sum),
        _mm256_extracti128_si256::<1>(sum),
    );
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

/// The loop over many rows, compiled for the features of a kernel.
macro_rules! many {
    ($name:ident, $features:literal, $dot:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(a: Signed<'_>, rows: &Rows<u8>, numbers: &[u32], found: &mut Vec<i32>) {
            found.clear();
            found.reserve(numbers.len());
            let ahead = numbers.len().min(CODES_AHEAD);
            numbers[..ahead]
                .iter()
                .for_each(|number| rows.prefetch(*number));
            for (place, number) in numbers.iter().enumerate() {
                if let Some(later) = numbers.get(place + CODES_AHEAD) {
                    rows.prefetch(*later);
                }
                let other = &rows.row(*number)[..a.codes.len()];
                found.push($dot(a.codes, other) - a.bias);
            }
        }
    };
}

/// Codes are a quarter as long as vectors, so more rows are on their way at once.
const CODES_AHEAD: usize = 4 * ROWS_AHEAD;

many!(dots_vnni, "avx512f,avx512vnni", dot_vnni);
many!(dots_avx512, "avx512f,avx512bw", dot_avx512);
many!(dots_avx2, "avx2", dot_avx2);
