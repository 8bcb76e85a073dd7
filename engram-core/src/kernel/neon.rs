//! The kernels for NEON, which every 64-bit ARM has, fused multiply-add included.
#![allow(unsafe_code, reason = "vector loads take pointers; each one is argued")]

use std::arch::aarch64::*;

use super::{Distance, LANES, Rows, Signed, distance_of};
use crate::types::Metric;

const REGISTERS: usize = LANES / 4;

#[inline]
fn load(block: &[f32; LANES], register: usize) -> float32x4_t {
    // SAFETY: `as_chunks` bounds `register`, so the 4 floats are inside the block.
    unsafe { vld1q_f32(block.as_chunks::<4>().0[register].as_ptr()) }
}

/// Register `r` holds lanes `4r .. 4r + 4`: first whole registers are added, then the last one's
/// halves.
#[inline]
fn halve(mut lanes: [float32x4_t; REGISTERS]) -> f32 {
    // SAFETY: NEON is part of the aarch64 baseline.
    unsafe {
        for width in [8, 4, 2, 1] {
            for register in 0..width {
                lanes[register] = vaddq_f32(lanes[register], lanes[register + width]);
            }
        }
        let two = vadd_f32(vget_low_f32(lanes[0]), vget_high_f32(lanes[0]));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    }
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: NEON is part of the aarch64 baseline.
    unsafe {
        let mut lanes = [vdupq_n_f32(0.0); REGISTERS];
        for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
            for (register, sum) in lanes.iter_mut().enumerate() {
                *sum = vfmaq_f32(*sum, load(a, register), load(b, register));
            }
        }
        halve(lanes)
    }
}

pub(super) fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: NEON is part of the aarch64 baseline.
    unsafe {
        let mut lanes = [vdupq_n_f32(0.0); REGISTERS];
        for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
            for (register, sum) in lanes.iter_mut().enumerate() {
                let apart = vsubq_f32(load(a, register), load(b, register));
                *sum = vfmaq_f32(*sum, apart, apart);
            }
        }
        halve(lanes)
    }
}

pub(super) fn distances(
    metric: Metric,
    row: &[f32],
    rows: &Rows<f32>,
    numbers: &[u32],
    found: &mut Vec<Distance>,
) {
    found.clear();
    found.extend(numbers.iter().map(|number| {
        let other = rows.row(*number);
        distance_of(
            metric,
            match metric {
                Metric::Cosine | Metric::Dot => dot(row, other),
                Metric::L2 => l2_squared(row, other),
            },
        )
    }));
}

/// Bytes are widened to 16 bits, products to 32, so nothing saturates.
pub(super) fn dot_codes(a: &[i8], b: &[u8]) -> i32 {
    // SAFETY: NEON is part of the aarch64 baseline; each chunk is as long as its load.
    unsafe {
        let mut sum = vdupq_n_s32(0);
        for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
            let a = vmovl_s8(vld1_s8(a.as_ptr()));
            let b = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(b.as_ptr())));
            sum = vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b));
            sum = vmlal_s16(sum, vget_high_s16(a), vget_high_s16(b));
        }
        vaddvq_s32(sum)
    }
}

pub(super) fn dots_codes(a: Signed<'_>, rows: &Rows<u8>, numbers: &[u32], found: &mut Vec<i32>) {
    found.clear();
    let dot = |number: &u32| dot_codes(a.codes, &rows.row(*number)[..a.codes.len()]) - a.bias;
    found.extend(numbers.iter().map(dot));
}
