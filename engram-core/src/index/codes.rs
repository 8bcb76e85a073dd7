//! Vectors as codes of one byte for each component.
//!
//! A unit vector is turned by a fixed rotation, after which its components are of like size
//! whatever the model that made it, and cut off at a fixed bound. Nothing is learned from data:
//! what a code is does not depend on what came before. The rotation is additions, subtractions and
//! products of f32 in one order, so all CPUs agree on every code.
//!
//! A row of codes holds the components biased by 128 and, unless all vectors are of unit length, a
//! line with the two numbers that give it its length back.

use super::IndexShape;
use crate::kernel::{Distance, Kernel, LANES, Row, Rows, Signed, biased, padded_len, unbiased};
use crate::types::Metric;

/// Greatest component that a code can hold, in multiples of the mean one: of the components of a
/// turned vector about one in 15,000 is beyond it. Of bounds from 2.5 to 6 this one lost least on
/// text embeddings.
const BOUND: f32 = 4.0;
/// The code of the bound.
const CODE_MAX: f32 = 127.0;
/// Where the signs of the rotation come from: the fractional digits of the golden ratio.
const SIGN_SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// The rotation: signs, then a Hadamard transform of the first components; signs, then one of the
/// last. Each takes the greatest power of two of them, so together they reach all.
struct Rotation {
    signs: [Vec<f32>; 2],
    width: usize,
    /// Makes a transform keep lengths.
    scale: f32,
}

impl Rotation {
    fn new(dimension: usize) -> Self {
        let mut state = SIGN_SEED;
        let mut sign = || {
            // Splitmix64.
            state = state.wrapping_add(SIGN_SEED);
            let mut mixed = state;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            if (mixed ^ mixed >> 31) >> 63 == 0 {
                1.0
            } else {
                -1.0
            }
        };
        let width = 1 << dimension.ilog2();
        let mut signs = || (0..dimension).map(|_| sign()).collect();
        Self {
            signs: [signs(), signs()],
            width,
            scale: 1.0 / (width as f32).sqrt(),
        }
    }

    fn turn(&self, components: &mut [f32]) {
        let last = components.len() - self.width;
        for (signs, start) in self.signs.iter().zip([0, last]) {
            for (component, sign) in components.iter_mut().zip(signs) {
                *component *= sign;
            }
            let part = &mut components[start..start + self.width];
            transform(part);
            part.iter_mut()
                .for_each(|component| *component *= self.scale);
        }
    }
}

/// The Walsh-Hadamard transform, without a scale.
fn transform(part: &mut [f32]) {
    let mut half = 1;
    while half < part.len() {
        for pair in part.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        half *= 2;
    }
}

/// What a code stands for: components are `scale` times their codes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Terms {
    scale: f32,
    /// Square of the length of what the codes stand for.
    square: f32,
}

/// Where codes are made.
#[derive(Default)]
pub(super) struct CodeBuffer {
    unit: Row,
    codes: Row<i8>,
}

impl CodeBuffer {
    pub(super) const fn new() -> Self {
        Self {
            unit: Row::empty(),
            codes: Row::empty(),
        }
    }
}

/// Codes to compare with.
#[derive(Clone, Copy)]
pub(super) struct CodeProbe<'a> {
    codes: Signed<'a>,
    terms: Terms,
}

/// The codes of a generation's vectors, by slot.
pub(super) struct Codes {
    kernel: Kernel,
    metric: Metric,
    dimension: usize,
    rotation: Rotation,
    /// Of a component of a unit vector.
    step: f32,
    rows: Rows<u8>,
}

impl Codes {
    pub(super) fn new(shape: IndexShape, base: u32) -> Self {
        let dimension = shape.dimension as usize;
        let terms = match shape.metric {
            Metric::Cosine => 0,
            Metric::Dot | Metric::L2 => LANES,
        };
        Self {
            kernel: shape.kernel,
            metric: shape.metric,
            dimension,
            rotation: Rotation::new(dimension),
            step: BOUND / (CODE_MAX * (dimension as f32).sqrt()),
            rows: Rows::new(padded_len(dimension) + terms, base),
        }
    }

    /// The codes of a vector, in `buffer`, and what they stand for.
    fn encode(&self, row: &[f32], buffer: &mut CodeBuffer) -> Terms {
        let CodeBuffer { unit, codes } = buffer;
        unit.set(row);
        let length = match self.metric {
            Metric::Cosine => 1.0,
            Metric::Dot | Metric::L2 => self.kernel.dot(unit, unit).sqrt(),
        };
        // A vector without a direction keeps its zeros.
        let has_direction = unit.normalise();
        let components = &mut unit[..self.dimension];
        if has_direction {
            self.rotation.turn(components);
        }
        let inverse = 1.0 / self.step;
        codes.set_zero(self.dimension);
        for (code, component) in codes.iter_mut().zip(components) {
            let steps = (*component * inverse).round_ties_even();
            *code = steps.clamp(-CODE_MAX, CODE_MAX) as i8;
        }
        self.terms(length * self.step, codes)
    }

    fn terms(&self, scale: f32, codes: &[i8]) -> Terms {
        let squares: i32 = codes.iter().map(|code| i32::from(*code).pow(2)).sum();
        Terms {
            scale,
            square: squares as f32 * (scale * scale),
        }
    }

    fn store(&self, row: &[f32]) -> Vec<u8> {
        let mut buffer = CodeBuffer::default();
        let terms = self.encode(row, &mut buffer);
        let mut stored: Vec<u8> = buffer.codes.iter().map(|code| biased(*code)).collect();
        if stored.len() < self.rows.lanes() {
            stored.extend(terms.scale.to_le_bytes());
            stored.extend(terms.square.to_le_bytes());
            stored.resize(self.rows.lanes(), 0);
        }
        stored
    }

    pub(super) fn push(&self, row: &[f32]) {
        self.rows.push(&self.store(row));
    }

    pub(super) fn push_base(&self, row: &[f32]) {
        self.rows.push_base(&self.store(row));
    }

    /// Adds the next slot of the base, whose codes another generation has.
    pub(super) fn copy_base(&self, other: &Self, slot: u32) {
        self.rows.push_base(other.rows.row(slot));
    }

    /// A query, to be compared with slots; `buffer` holds its codes.
    pub(super) fn query<'a>(&self, row: &[f32], buffer: &'a mut CodeBuffer) -> CodeProbe<'a> {
        let terms = self.encode(row, buffer);
        CodeProbe {
            codes: Signed::new(&buffer.codes),
            terms,
        }
    }

    /// A slot, to be compared with others; `buffer` holds its codes.
    pub(super) fn probe<'a>(&self, slot: u32, buffer: &'a mut CodeBuffer) -> CodeProbe<'a> {
        let row = self.rows.row(slot);
        buffer.codes.set_zero(self.dimension);
        for (code, stored) in buffer.codes.iter_mut().zip(row) {
            *code = unbiased(*stored);
        }
        CodeProbe {
            codes: Signed::new(&buffer.codes),
            terms: self.terms_of(row),
        }
    }

    #[inline]
    fn terms_of(&self, row: &[u8]) -> Terms {
        let number = |at: usize| {
            let bytes = row.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            f32::from_le_bytes(bytes.unwrap_or_default())
        };
        match self.metric {
            Metric::Cosine => Terms {
                scale: self.step,
                square: 1.0,
            },
            Metric::Dot | Metric::L2 => {
                let end = padded_len(self.dimension);
                Terms {
                    scale: number(end),
                    square: number(end + 4),
                }
            }
        }
    }

    #[inline]
    fn distance(&self, probe: CodeProbe<'_>, slot: u32, dot: i32) -> Distance {
        let terms = match self.metric {
            Metric::Cosine => probe.terms,
            Metric::Dot | Metric::L2 => self.terms_of(self.rows.row(slot)),
        };
        let dot = dot as f32 * (probe.terms.scale * terms.scale);
        let distance = match self.metric {
            Metric::Cosine => 1.0 - dot,
            Metric::Dot => -dot,
            Metric::L2 => (probe.terms.square + terms.square) - 2.0 * dot,
        };
        Distance(if distance.is_nan() {
            f32::INFINITY
        } else {
            distance
        })
    }

    #[inline]
    pub(super) fn score(&self, probe: CodeProbe<'_>, slot: u32) -> Distance {
        let codes = &self.rows.row(slot)[..padded_len(self.dimension)];
        self.distance(probe, slot, self.kernel.dot_codes(probe.codes, codes))
    }

    /// Distances of many slots, in their order, in place of what `found` held.
    #[inline]
    pub(super) fn distances(
        &self,
        probe: CodeProbe<'_>,
        slots: &[u32],
        dots: &mut Vec<i32>,
        found: &mut Vec<Distance>,
    ) {
        self.kernel.dots_codes(probe.codes, &self.rows, slots, dots);
        found.clear();
        let each = slots.iter().zip(dots.iter());
        found.extend(each.map(|(slot, dot)| self.distance(probe, *slot, *dot)));
    }

    pub(super) fn prefetch(&self, slot: u32) {
        self.rows.prefetch(slot);
    }

    pub(super) fn are_copies(&self, a: u32, b: u32) -> bool {
        self.rows.row(a) == self.rows.row(b)
    }

    pub(super) fn base_len(&self) -> u32 {
        self.rows.base_len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IndexParameters;

    /// Numbers in [-1, 1) that any language can make again: a 32-bit xorshift.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 0x9E37_79B9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn codes(dimension: usize, metric: Metric) -> Codes {
        let shape = IndexShape::new(IndexParameters::new(1), dimension as u32, metric);
        Codes::new(shape, 0)
    }

    fn encoded(row: &[f32], metric: Metric) -> (Vec<i8>, Terms) {
        let mut buffer = CodeBuffer::default();
        let terms = codes(row.len(), metric).encode(&Row::new(row), &mut buffer);
        (buffer.codes.to_vec(), terms)
    }

    #[test]
    fn the_codes_are_frozen() {
        for (dimension, first, sum, squares) in GOLDEN {
            let (codes, _) = encoded(&numbers(dimension), Metric::Cosine);
            assert_eq!(codes[..8], first, "{dimension}");
            assert!(codes[dimension..].iter().all(|code| *code == 0));
            let codes = codes.iter().map(|code| i32::from(*code));
            assert_eq!(codes.clone().sum::<i32>(), sum);
            assert_eq!(codes.map(|code| code * code).sum::<i32>(), squares);
        }
    }

    /// A rotation keeps lengths and angles, of any dimension.
    #[test]
    fn turning_keeps_products() {
        for dimension in [1, 2, 3, 16, 63, 100, 384, 768] {
            let rotation = Rotation::new(dimension);
            let (mut a, mut b) = (numbers(dimension), numbers(dimension));
            b.reverse();
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter()
                    .zip(b)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum()
            };
            let before = (dot(&a, &a), dot(&a, &b));
            rotation.turn(&mut a);
            rotation.turn(&mut b);
            let scale = before.0 * 1e-5;
            assert!((dot(&a, &a) - before.0).abs() < scale, "{dimension}");
            assert!((dot(&a, &b) - before.1).abs() < scale, "{dimension}");
        }
    }

    /// One component holds it all: it is spread, not cut off.
    #[test]
    fn a_spike_fits() {
        let mut spike = vec![0.0; 384];
        spike[17] = 5.0;
        let (codes, terms) = encoded(&spike, Metric::L2);
        assert!(codes.iter().all(|code| code.abs() < 127));
        assert!((terms.square - 25.0).abs() < 0.2, "{}", terms.square);
    }

    #[test]
    fn stored_codes_are_read_back() {
        for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
            let codes = codes(100, metric);
            let row: Vec<f32> = numbers(100).iter().map(|lane| lane * 3.0).collect();
            codes.push(&Row::new(&row));
            let (mut stored, mut asked) = (CodeBuffer::default(), CodeBuffer::default());
            let stored = codes.probe(0, &mut stored);
            let asked = codes.query(&Row::new(&row), &mut asked);
            assert_eq!(codes.score(stored, 0), codes.score(asked, 0));
            if metric == Metric::L2 {
                assert_eq!(codes.score(asked, 0), Distance(0.0));
            }
        }
    }

    /// Dimension; of the codes of `numbers` the first, their sum and that of their squares;
    /// computed apart from this code.
    const GOLDEN: [(usize, [i8; 8], i32, i32); 3] = [
        (3, [18, -35, -38, 0, 0, 0, 0, 0], -55, 2_993),
        (100, [-3, 7, 52, 63, -39, -78, 21, -32], -41, 100_643),
        (384, [-23, -50, 26, 19, 40, 7, -23, -5], 115, 386_951),
    ];
}
