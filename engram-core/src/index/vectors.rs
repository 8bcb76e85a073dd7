//! The vectors of a generation, as they are or as codes, and how far they are from each other.

use super::IndexShape;
use super::codes::{CodeBuffer, CodeProbe, Codes};
use super::order::Scored;
use crate::kernel::{Distance, Kernel, Row, Rows, padded_len};
use crate::types::{Metric, Quantization};

/// The vectors, by slot. The graph is built and walked with codes where there are any.
pub(super) struct Vectors {
    kernel: Kernel,
    metric: Metric,
    codes: Option<Codes>,
    /// None where they are in storage alone.
    full: Option<Rows<f32>>,
}

/// What slots are compared with.
#[derive(Clone, Copy)]
pub(super) enum Probe<'a> {
    Full(&'a [f32]),
    Codes(CodeProbe<'a>),
}

/// Distances of a batch, and what they are made from.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) distances: Vec<Distance>,
    dots: Vec<i32>,
}

impl Measured {
    pub(super) const fn new() -> Self {
        Self {
            distances: Vec::new(),
            dots: Vec::new(),
        }
    }
}

impl Vectors {
    /// Without vectors; the first `base` slots get theirs at a time of their own.
    pub(super) fn new(shape: IndexShape, base: u32) -> Self {
        let codes = || Codes::new(shape, base);
        let full = || Rows::new(padded_len(shape.dimension as usize), base);
        let (codes, full) = match shape.parameters.quantization {
            Quantization::None => (None, Some(full())),
            Quantization::Int8 => (Some(codes()), Some(full())),
            Quantization::Int8OnDisk => (Some(codes()), None),
        };
        Self {
            kernel: shape.kernel,
            metric: shape.metric,
            codes,
            full,
        }
    }

    /// Adds the vector of the next slot after the base.
    pub(super) fn push(&self, row: &[f32]) {
        if let Some(codes) = &self.codes {
            codes.push(row);
        }
        if let Some(full) = &self.full {
            full.push(row);
        }
    }

    /// Adds the vector of the next slot of the base.
    pub(super) fn push_base(&self, row: &[f32]) {
        if let Some(codes) = &self.codes {
            codes.push_base(row);
        }
        if let Some(full) = &self.full {
            full.push_base(row);
        }
    }

    /// Adds the next slot of the base, whose vector another generation has.
    pub(super) fn copy_base(&self, other: &Self, slot: u32) {
        if let (Some(codes), Some(others)) = (&self.codes, &other.codes) {
            codes.copy_base(others, slot);
        }
        if let (Some(full), Some(others)) = (&self.full, &other.full) {
            full.push_base(others.row(slot));
        }
    }

    /// Slots of the base that have their vectors.
    pub(super) fn base_len(&self) -> u32 {
        let codes = self.codes.as_ref().map(Codes::base_len);
        let full = self.full.as_ref().map(Rows::base_len);
        full.or(codes).unwrap_or_default()
    }

    /// Whether walks go by codes, so that what they find has to be scored again.
    pub(super) fn are_coded(&self) -> bool {
        self.codes.is_some()
    }

    /// A query, in the form in which graphs are walked.
    pub(super) fn query<'a>(&self, row: &'a [f32], buffer: &'a mut CodeBuffer) -> Probe<'a> {
        match &self.codes {
            Some(codes) => Probe::Codes(codes.query(row, buffer)),
            None => Probe::Full(row),
        }
    }

    /// A query, to be compared with full vectors; none where they are in storage alone.
    pub(super) fn full_query<'a>(&self, row: &'a [f32]) -> Option<Probe<'a>> {
        self.full.as_ref().map(|_| Probe::Full(row))
    }

    /// Distance from a query to a full vector that storage gave.
    pub(super) fn distance(&self, row: &[f32], other: &[f32]) -> Distance {
        self.kernel.distance(self.metric, row, &Row::new(other))
    }

    /// A slot, to be compared with others.
    pub(super) fn probe<'a>(&'a self, slot: u32, buffer: &'a mut CodeBuffer) -> Probe<'a> {
        match &self.codes {
            Some(codes) => Probe::Codes(codes.probe(slot, buffer)),
            None => Probe::Full(self.full().row(slot)),
        }
    }

    #[inline]
    fn full(&self) -> &Rows<f32> {
        match &self.full {
            Some(full) => full,
            None => unreachable!("full vectors are compared where none are kept"),
        }
    }

    #[inline]
    fn codes(&self) -> &Codes {
        match &self.codes {
            Some(codes) => codes,
            None => unreachable!("codes are compared where none are kept"),
        }
    }

    #[inline]
    pub(super) fn score(&self, probe: Probe<'_>, slot: u32) -> Scored {
        let distance = match probe {
            Probe::Full(row) => {
                let other = self.full().row(slot);
                self.kernel.distance(self.metric, row, other)
            }
            Probe::Codes(codes) => self.codes().score(codes, slot),
        };
        Scored::new(distance, slot)
    }

    /// Distances of many slots, in their order, in place of what `found` held.
    #[inline]
    pub(super) fn measure(&self, probe: Probe<'_>, slots: &[u32], found: &mut Measured) {
        let Measured { distances, dots } = found;
        match probe {
            Probe::Full(row) => {
                self.kernel
                    .distances(self.metric, row, self.full(), slots, distances);
            }
            Probe::Codes(codes) => self.codes().distances(codes, slots, dots, distances),
        }
    }

    /// Starts to load what links are chosen by.
    #[inline]
    pub(super) fn prefetch(&self, slot: u32) {
        match &self.codes {
            Some(codes) => codes.prefetch(slot),
            None => self.full().prefetch(slot),
        }
    }

    /// Whether two slots are the same to the graph.
    pub(super) fn are_copies(&self, a: u32, b: u32) -> bool {
        match &self.codes {
            Some(codes) => codes.are_copies(a, b),
            None => self.full().row(a) == self.full().row(b),
        }
    }

    /// Memory of what walks go by, and of the full vectors beside it.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let codes = self.codes.as_ref().map_or(0, Codes::bytes);
        let full = self.full.as_ref().map_or(0, Rows::bytes);
        if self.are_coded() {
            (codes, full)
        } else {
            (full, 0)
        }
    }
}
