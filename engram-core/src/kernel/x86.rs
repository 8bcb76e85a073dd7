//! The kernels for AVX-512 and for AVX2 with FMA.
//!
//! Register `r` of width `w` holds lanes `r*w .. (r+1)*w`, so the halving tree first adds whole
//! registers and then the halves of one.
#![allow(unsafe_code, reason = "vector loads take pointers; each one is argued")]

use std::arch::x86_64::*;

use super::{Distance, LANES, ROWS_AHEAD, Rows, distance_of};
use crate::types::Metric;

/// Adds lanes 4..8 to 0..4, then 2..4 to 0..2, then 1 to 0.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn halve_8(lanes: __m256) -> f32 {
    let four = _mm_add_ps(
        _mm256_castps256_ps128(lanes),
        _mm256_extractf128_ps::<1>(lanes),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn halve_avx2(mut lanes: [__m256; 8]) -> f32 {
    for width in [4, 2, 1] {
        for register in 0..width {
            lanes[register] = _mm256_add_ps(lanes[register], lanes[register + width]);
        }
    }
    halve_8(lanes[0])
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn halve_avx512(mut lanes: [__m512; 4]) -> f32 {
    for width in [2, 1] {
        for register in 0..width {
            lanes[register] = _mm512_add_ps(lanes[register], lanes[register + width]);
        }
    }
    let low = _mm512_castps512_ps256(lanes[0]);
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes[0])));
    halve_8(_mm256_add_ps(low, high))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_8(block: &[f32; LANES], register: usize) -> __m256 {
    // SAFETY: `as_chunks` below bounds `register` by 8, so the 8 floats are inside the block.
    unsafe { _mm256_loadu_ps(block.as_chunks::<8>().0[register].as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn load_16(block: &[f32; LANES], register: usize) -> __m512 {
    // SAFETY: `as_chunks` below bounds `register` by 4, so the 16 floats are inside the block.
    unsafe { _mm512_loadu_ps(block.as_chunks::<16>().0[register].as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [_mm256_setzero_ps(); 8];
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        for (register, sum) in lanes.iter_mut().enumerate() {
            *sum = _mm256_fmadd_ps(load_8(a, register), load_8(b, register), *sum);
        }
    }
    halve_avx2(lanes)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn l2_squared_avx2(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [_mm256_setzero_ps(); 8];
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        for (register, sum) in lanes.iter_mut().enumerate() {
            let apart = _mm256_sub_ps(load_8(a, register), load_8(b, register));
            *sum = _mm256_fmadd_ps(apart, apart, *sum);
        }
    }
    halve_avx2(lanes)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [_mm512_setzero_ps(); 4];
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        for (register, sum) in lanes.iter_mut().enumerate() {
            *sum = _mm512_fmadd_ps(load_16(a, register), load_16(b, register), *sum);
        }
    }
    halve_avx512(lanes)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn l2_squared_avx512(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [_mm512_setzero_ps(); 4];
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        for (register, sum) in lanes.iter_mut().enumerate() {
            let apart = _mm512_sub_ps(load_16(a, register), load_16(b, register));
            *sum = _mm512_fmadd_ps(apart, apart, *sum);
        }
    }
    halve_avx512(lanes)
}

/// The loop over many rows, compiled for the features of a pair of kernels.
macro_rules! many {
    ($name:ident, $features:literal, $dot:ident, $l2_squared:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            metric: Metric,
            row: &[f32],
            rows: &Rows<f32>,
            numbers: &[u32],
            found: &mut Vec<Distance>,
        ) {
            found.clear();
            found.reserve(numbers.len());
            let ahead = numbers.len().min(ROWS_AHEAD);
            numbers[..ahead]
                .iter()
                .for_each(|number| rows.prefetch(*number));
            for (place, number) in numbers.iter().enumerate() {
                if let Some(later) = numbers.get(place + ROWS_AHEAD) {
                    rows.prefetch(*later);
                }
                let other = rows.row(*number);
                let sum = match metric {
                    Metric::Cosine | Metric::Dot => $dot(row, other),
                    Metric::L2 => $l2_squared(row, other),
                };
                found.push(distance_of(metric, sum));
            }
        }
    };
}

many!(distances_avx2, "avx2,fma", dot_avx2, l2_squared_avx2);
many!(
    distances_avx512,
    "avx512f,avx2,fma",
    dot_avx512,
    l2_squared_avx512
);
