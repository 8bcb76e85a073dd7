//! The specification of the kernels. Slow where the target has no fused multiply-add (there
//! `mul_add` is a library call), never different.

use super::LANES;

/// lane i += lane i + 32, then 16, 8, 4, 2, 1.
fn halve(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    halve(lanes)
}

pub(super) fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for lane in 0..LANES {
            let apart = a[lane] - b[lane];
            lanes[lane] = apart.mul_add(apart, lanes[lane]);
        }
    }
    halve(lanes)
}
