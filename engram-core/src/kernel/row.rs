//! A vector in memory by itself: zero-padded to whole blocks of 64 lanes and aligned to cache lines.
#![allow(
    unsafe_code,
    reason = "views blocks as their numbers; each use is argued"
)]

use std::ops::{Deref, DerefMut};

use super::{LANES, Lane};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block<T>([T; LANES]);

/// A padded, aligned vector, or the codes of one.
#[derive(Clone)]
pub struct Row<T: Lane = f32>(Vec<Block<T>>);

impl<T: Lane> Default for Row<T> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Lane> Row<T> {
    #[must_use]
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    #[must_use]
    pub fn new(components: &[T]) -> Self {
        let mut row = Self::default();
        row.set(components);
        row
    }

    /// Becomes another vector, in the memory it has.
    pub fn set(&mut self, components: &[T]) {
        self.0.clear();
        self.0.extend(components.chunks(LANES).map(|part| {
            let mut lanes = [T::default(); LANES];
            lanes[..part.len()].copy_from_slice(part);
            Block(lanes)
        }));
    }
}

impl<T: Lane> Row<T> {
    /// Becomes zeros, at least so many, in the memory it has.
    pub fn set_zero(&mut self, lanes: usize) {
        self.0.clear();
        self.0
            .resize(lanes.div_ceil(LANES), Block([T::default(); LANES]));
    }
}

impl<T: Lane> Deref for Row<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `Block` is `repr(C)` around 64 numbers, whose size is a multiple of its alignment,
        // so there is no padding and the blocks are one run of initialised numbers.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }
}

impl<T: Lane> DerefMut for Row<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; every bit pattern is a number, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

const _: () = assert!(size_of::<Block<f32>>() == LANES * size_of::<f32>());
const _: () = assert!(size_of::<Block<i8>>() == LANES * size_of::<i8>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_aligned() {
        let mut again = Row::new(&[7.0; 2000]);
        for length in [1, 63, 64, 65, 384, 1000] {
            let components: Vec<f32> = (0..length).map(|n| n as f32 + 1.0).collect();
            let row = Row::new(&components);
            assert_eq!(row.len(), crate::kernel::padded_len(length));
            assert_eq!(row[..length], components);
            assert!(row[length..].iter().all(|lane| lane.to_bits() == 0));
            assert_eq!(row.as_ptr() as usize % 64, 0);
            again.set(&components);
            assert_eq!(again[..], row[..]);
            again.set_zero(length);
            assert!(again.len() == row.len() && again.iter().all(|lane| lane.to_bits() == 0));
        }
    }
}
