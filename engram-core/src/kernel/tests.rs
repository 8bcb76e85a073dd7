//! The specification's bits, and that all kernels have them.

use proptest::prelude::*;

use super::*;

/// Numbers in [-1, 1) that any language can make again: a 32-bit xorshift.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

const X: u32 = 0x9E37_79B9;
const Y: u32 = 0x85EB_CA6B;

/// (dimension, bits of dot, bits of l2_squared) for `numbers(X, d)` and `numbers(Y, d)`;
/// computed apart from this code, in exact fractions rounded once per step.
const GOLDEN: [(usize, u32, u32); 6] = [
    (1, 0x3d8a0185, 0x3d0954d8),
    (63, 0xbecfb650, 0x42469d5a),
    (64, 0xbf27827c, 0x424a9f92),
    (65, 0xbf52944c, 0x424d9dd2),
    (384, 0xbe823f8c, 0x437ca3b6),
    (768, 0xc0ab5faa, 0x4402f50c),
];

#[test]
fn the_bits_are_frozen() {
    for (kernel, golden) in Kernel::all_available()
        .into_iter()
        .flat_map(|kernel| GOLDEN.map(|golden| (kernel, golden)))
    {
        let (dimension, ..) = golden;
        let (a, b) = (
            Row::new(&numbers(X, dimension)),
            Row::new(&numbers(Y, dimension)),
        );
        let bits = (
            dimension,
            kernel.dot(&a, &b).to_bits(),
            kernel.l2_squared(&a, &b).to_bits(),
        );
        assert_eq!(bits, golden, "{}", kernel.name());
    }
}

/// The order of evaluation shows: 2^24 swallows a 1 unless the 1s meet first.
#[test]
fn the_tree_has_its_shape() {
    let big = (1 << 24) as f32;
    for kernel in Kernel::all_available() {
        let ones = Row::new(&[1.0; 64]);
        let sum = |lanes: &[(usize, f32)]| {
            let mut row = vec![0.0; 64];
            lanes.iter().for_each(|(lane, value)| row[*lane] = *value);
            kernel.dot(&ones, &Row::new(&row))
        };
        // 1 and 33 meet first, then 2 joins: nothing is lost.
        assert_eq!(sum(&[(0, big), (1, 1.0), (33, 1.0)]), big + 2.0);
        // 0 and 32 meet first, then 16.
        assert_eq!(sum(&[(0, big), (32, 1.0), (16, 1.0)]), big);
        assert_eq!(sum(&[(0, big), (16, 1.0), (48, 1.0)]), big + 2.0);
        // Lanes 8 and 24, 4 and 12, 2 and 6, 1 and 3 meet before they meet lane 0.
        for (x, y) in [(8, 24), (4, 12), (2, 6), (1, 3)] {
            assert_eq!(
                sum(&[(0, big), (x, 1.0), (y, 1.0)]),
                big + 2.0,
                "{x} and {y}"
            );
        }
    }
}

/// A product that is rounded before it is added loses what this keeps.
#[test]
fn multiply_add_is_fused() {
    let (a, b) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON);
    for kernel in Kernel::all_available() {
        let mut x = vec![0.0; 128];
        let mut y = vec![0.0; 128];
        (x[0], y[0]) = (-1.0, 1.0);
        (x[64], y[64]) = (a, b);
        let fused = a.mul_add(b, -1.0);
        assert!(fused != 0.0 && a * b - 1.0 == 0.0);
        assert_eq!(
            kernel.dot(&Row::new(&x), &Row::new(&y)),
            fused,
            "{}",
            kernel.name()
        );
    }
}

#[test]
fn sums_that_overflow_are_far() {
    let a = Row::new(&[f32::MAX, f32::MAX]);
    let b = Row::new(&[f32::MAX, f32::MIN]);
    for kernel in Kernel::all_available() {
        assert!(kernel.dot(&a, &b).is_nan());
        for metric in [Metric::Dot, Metric::Cosine, Metric::L2] {
            assert_eq!(kernel.distance(metric, &a, &b), Distance(f32::INFINITY));
        }
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Any bits, and often the special ones.
fn component() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        (0_u32..1 << 23).prop_map(f32::from_bits),
        Just(-0.0),
        Just(0.0),
        Just(f32::MAX),
        Just(f32::MIN_POSITIVE),
        -1.0_f32..1.0,
    ]
}

/// Any code, and often the greatest.
fn code() -> impl Strategy<Value = i8> {
    prop_oneof![-127_i8..=127, Just(127), Just(-127), Just(0)]
}

fn rows() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let like = |make: fn() -> BoxedStrategy<f32>| {
        (1_usize..300).prop_flat_map(move |dimension| {
            let row = proptest::collection::vec(make(), dimension);
            (row.clone(), row)
        })
    };
    prop_oneof![
        like(|| component().boxed()),
        like(|| (-1.0_f32..1.0).boxed()),
        like(|| (0_u32..1 << 23).prop_map(f32::from_bits).boxed()),
        like(|| (-1e19_f32..1e19).boxed()),
    ]
}

proptest! {
    #[test]
    fn all_kernels_give_the_bits_of_the_specification((a, b) in rows()) {
        let (a, b) = (Row::new(&a), Row::new(&b));
        let portable = Kernel::PORTABLE;
        for kernel in Kernel::all_available() {
            let name = kernel.name();
            prop_assert!(same(kernel.dot(&a, &b), portable.dot(&a, &b)), "dot of {}", name);
            prop_assert!(same(kernel.dot(&a, &b), kernel.dot(&b, &a)), "symmetry of {}", name);
            prop_assert!(
                same(kernel.l2_squared(&a, &b), portable.l2_squared(&a, &b)), "l2 of {}", name
            );
            for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
                let distance = kernel.distance(metric, &a, &b);
                let expected = portable.distance(metric, &a, &b);
                prop_assert_eq!(distance.0.to_bits(), expected.0.to_bits());
            }
        }
    }

    #[test]
    fn many_distances_are_those_of_each((a, b) in rows(), count in 0_usize..20) {
        let query = Row::new(&a);
        let rows = Rows::new(query.len(), 2);
        for number in 0..count.max(2) {
            let mut row = Row::new(&b);
            row[number % b.len()] += 1.0;
            if number < 2 {
                rows.push_base(&row);
            } else {
                rows.push(&row);
            }
        }
        let numbers: Vec<u32> = (0..count as u32).rev().collect();
        let mut found = vec![Distance(7.0)];
        for kernel in Kernel::all_available() {
            for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
                kernel.distances(metric, &query, &rows, &numbers, &mut found);
                let each = numbers.iter().map(|number| {
                    Kernel::PORTABLE.distance(metric, &query, rows.row(*number))
                });
                prop_assert_eq!(&found, &each.collect::<Vec<_>>(), "{}", kernel.name());
            }
        }
    }

    #[test]
    fn codes_are_multiplied_exactly(
        (a, b) in (1_usize..5).prop_flat_map(|blocks| {
            let codes = || proptest::collection::vec(code(), blocks * LANES);
            (codes(), codes())
        }),
    ) {
        let expected: i64 = a.iter().zip(&b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
        let biased: Vec<u8> = b.iter().map(|code| code.cast_unsigned().wrapping_add(CODE_BIAS)).collect();
        // Beside the codes rows may hold something else.
        let rows = Rows::new(b.len() + LANES, 0);
        rows.push(&[&biased[..], &[77; LANES]].concat());
        rows.push(&[&[CODE_BIAS; LANES], &biased[..]].concat());
        let mut found = Vec::new();
        for kernel in Kernel::all_available() {
            let dot = kernel.dot_codes(Signed::new(&a), &biased);
            prop_assert_eq!(i64::from(dot), expected, "{}", kernel.name());
            kernel.dots_codes(Signed::new(&a), &rows, &[0, 1, 0], &mut found);
            let shifted = kernel.dot_codes(Signed::new(&a), &rows.row(1)[..a.len()]);
            prop_assert_eq!(&found, &vec![dot, shifted, dot], "{}", kernel.name());
        }
    }

    #[test]
    fn whatever_is_finite_and_not_zero_gets_unit_length(
        mut row in proptest::collection::vec(component(), 1..200),
    ) {
        row.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 1.0);
        let has_direction = row.iter().any(|value| *value != 0.0);
        prop_assert_eq!(normalise(&mut row), has_direction);
        if has_direction {
            let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
            prop_assert!((squares - 1.0).abs() < 1e-5, "{}", squares);
        }
    }

    #[test]
    fn ordered_integers_keep_the_order(a: f32, b: f32) {
        let (a, b) = (Distance(a), Distance(b));
        prop_assert_eq!(a.cmp(&b), a.to_ordered().cmp(&b.to_ordered()));
        prop_assert_eq!(Distance::from_ordered(a.to_ordered()).0.to_bits(), a.0.to_bits());
    }
}

/// In the ordinary range the record's rule holds to the letter: divided by the square root.
#[test]
fn ordinary_vectors_are_only_divided() {
    let raw = numbers(5, 384);
    let mut row = raw.clone();
    assert!(normalise(&mut row));
    let padded = Row::new(&raw);
    let length = Kernel::PORTABLE.dot(&padded, &padded).sqrt();
    assert!(
        row.iter()
            .zip(&raw)
            .all(|(unit, raw)| unit.to_bits() == (raw / length).to_bits())
    );
    assert!(!normalise(&mut [0.0, -0.0]) && !normalise(&mut [f32::NAN, 1.0]));
}

#[test]
#[should_panic(expected = "not two rows of one space")]
fn rows_of_two_spaces_are_not_compared() {
    let _ = Kernel::detect().dot(&Row::new(&[1.0; 64]), &Row::new(&[1.0; 65]));
}

/// The longest rows of the greatest codes: the sums still fit.
#[test]
fn the_greatest_codes_do_not_overflow() {
    let lanes = crate::limits::DIMENSION_MAX as usize;
    for (a, b) in [(127_i8, 127_i8), (-127, 127), (-127, -127)] {
        let signed = vec![a; lanes];
        let biased = vec![b.cast_unsigned().wrapping_add(CODE_BIAS); lanes];
        for kernel in Kernel::all_available() {
            let dot = kernel.dot_codes(Signed::new(&signed), &biased);
            assert_eq!(
                dot,
                i32::from(a) * i32::from(b) * lanes as i32,
                "{}",
                kernel.name()
            );
        }
    }
}

/// Rows are read while others are pushed.
#[test]
fn readers_see_whole_rows() {
    const ROWS: u32 = 20_000;
    let rows = Rows::<f32>::new(16, 1);
    let pushed = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=ROWS {
                rows.push(&[number as f32; 16]);
                pushed.store(number, std::sync::atomic::Ordering::Release);
            }
        });
        loop {
            let last = pushed.load(std::sync::atomic::Ordering::Acquire);
            if last > 0 {
                assert!(rows.row(last).iter().all(|lane| *lane == last as f32));
            }
            if last == ROWS {
                break;
            }
        }
    });
}
