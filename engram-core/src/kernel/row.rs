//! A vector in memory: zero-padded to whole blocks of 64 lanes and aligned to cache lines.
//!
//! Cloning shares the storage: generations of an index hold the same rows.
#![allow(
    unsafe_code,
    reason = "views blocks as their floats, and prefetches; each use is argued"
)]

use std::ops::Deref;
use std::sync::Arc;

use super::LANES;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block([f32; LANES]);

/// Cache lines of a row that are fetched ahead: all of them up to dimension 768. Half of a row of
/// 384 made a search 1.6 times slower.
#[cfg(target_arch = "x86_64")]
const LINES_AHEAD: usize = 48;

/// A padded, aligned, shared vector.
#[derive(Clone)]
pub struct Row(Arc<[Block]>);

impl Row {
    #[must_use]
    pub fn new(components: &[f32]) -> Self {
        let block = |part: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..part.len()].copy_from_slice(part);
            Block(lanes)
        };
        Self(components.chunks(LANES).map(block).collect())
    }

    /// Starts to load the row, so that a kernel that runs a little later does not wait for it.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let lines = (self.0.len() * size_of::<Block>() / 64).min(LINES_AHEAD);
            let start = self.0.as_ptr().cast::<i8>();
            for line in 0..lines {
                // SAFETY: the address is inside the row, and a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(line * 64)) };
            }
        }
    }
}

impl Deref for Row {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        // SAFETY: `Block` is `repr(C)` around `[f32; 64]`, whose 256 bytes are a multiple of its
        // alignment, so there is no padding and the blocks are one run of initialised floats.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }
}

const _: () = assert!(size_of::<Block>() == LANES * size_of::<f32>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_aligned() {
        for length in [1, 63, 64, 65, 384, 1000] {
            let components: Vec<f32> = (0..length).map(|n| n as f32 + 1.0).collect();
            let row = Row::new(&components);
            assert_eq!(row.len(), crate::kernel::padded_len(length));
            assert_eq!(row[..length], components);
            assert!(row[length..].iter().all(|lane| lane.to_bits() == 0));
            assert_eq!(row.as_ptr() as usize % 64, 0);
            row.prefetch();
        }
    }
}
