//! The specification of the kernels. Slow where the target has no fused multiply-add (there
//! `mul_add` is a library call), never different.

use super::{Distance, LANES, Rows, Signed, distance_of};
use crate::types::Metric;

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

/// The sum of the products, the bias of `b` not taken off.
pub(super) fn dot_codes(a: &[i8], b: &[u8]) -> i32 {
    let product = |(a, b): (&i8, &u8)| i32::from(*a) * i32::from(*b);
    a.iter().zip(b).map(product).sum()
}

pub(super) fn dots_codes(a: Signed<'_>, rows: &Rows<u8>, numbers: &[u32], found: &mut Vec<i32>) {
    found.clear();
    let dot = |number: &u32| dot_codes(a.codes, &rows.row(*number)[..a.codes.len()]) - a.bias;
    found.extend(numbers.iter().map(dot));
}
