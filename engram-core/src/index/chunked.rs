//! An array that only grows and is read while it grows: no lock, no item ever moves.
//!
//! Chunks grow with the array, four to a doubling, so a small partition pays little, at most a
//! fifth of a large array is spare, and an address is a few shifts away.

use std::sync::OnceLock;

/// Groups of items before the first doubling, in chunks of a quarter of it.
const FIRST: usize = 64;
/// Chunks in a doubling.
const QUARTERS: usize = 4;
const QUARTERS_LOG: u32 = QUARTERS.ilog2();
/// Chunks of an array: enough for 2^32 groups.
const CHUNKS: usize = 27 * QUARTERS;

/// Groups of `stride` items each, addressed by the number of the group.
pub(super) struct Chunked<T> {
    stride: usize,
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default> Chunked<T> {
    pub(super) fn new(stride: usize) -> Self {
        let chunks = std::iter::repeat_with(OnceLock::new).take(CHUNKS);
        Self {
            stride,
            chunks: chunks.collect(),
        }
    }

    /// Chunk of a group, and its place there.
    #[inline]
    fn locate(group: u32) -> (usize, usize) {
        let shifted = group as usize + FIRST;
        let log = shifted.ilog2();
        let quarter = log - QUARTERS_LOG;
        let chunk = (log - FIRST.ilog2()) as usize * QUARTERS + (shifted >> quarter) % QUARTERS;
        (chunk, shifted & ((1 << quarter) - 1))
    }

    /// Groups of a chunk.
    fn groups(chunk: usize) -> usize {
        (FIRST / QUARTERS) << (chunk / QUARTERS)
    }

    /// The items of a group, created if its chunk is not there yet.
    pub(super) fn make_group(&self, group: u32) -> &[T] {
        let (chunk, place) = Self::locate(group);
        let items = self.chunks[chunk].get_or_init(|| {
            let items = Self::groups(chunk) * self.stride;
            std::iter::repeat_with(T::default).take(items).collect()
        });
        &items[place * self.stride..][..self.stride]
    }

    /// The items of a group that was made before.
    #[inline]
    pub(super) fn group(&self, group: u32) -> &[T] {
        let (chunk, place) = Self::locate(group);
        match self.chunks[chunk].get() {
            Some(items) => &items[place * self.stride..][..self.stride],
            None => unreachable!("group {group} was read before it was made"),
        }
    }

    pub(super) fn make(&self, item: u32) -> &T {
        &self.make_group(item)[0]
    }

    #[inline]
    pub(super) fn at(&self, item: u32) -> &T {
        &self.group(item)[0]
    }

    /// Memory of the chunks that are there.
    pub(super) fn bytes(&self) -> usize {
        self.chunks
            .iter()
            .filter_map(OnceLock::get)
            .map(|items| size_of_val(&**items))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn every_group_has_a_place_of_its_own() {
        let array = Chunked::<AtomicU32>::new(3);
        for group in 0..5_000 {
            for item in array.make_group(group) {
                item.store(group, Ordering::Relaxed);
            }
        }
        for group in 0..5_000 {
            let items = array.group(group);
            assert_eq!(items.len(), 3);
            assert!(
                items
                    .iter()
                    .all(|item| item.load(Ordering::Relaxed) == group)
            );
        }
        assert!(array.bytes() >= 5_000 * 3 * 4 && array.bytes() < 5_000 * 3 * 4 * 5 / 4);
    }

    #[test]
    fn chunks_follow_each_other() {
        let mut expected = (0, 0);
        for group in 0..100_000 {
            assert_eq!(Chunked::<u8>::locate(group), expected);
            expected.1 += 1;
            if expected.1 == Chunked::<u8>::groups(expected.0) {
                expected = (expected.0 + 1, 0);
            }
        }
    }

    #[test]
    fn the_last_group_fits() {
        let (chunk, place) = Chunked::<u8>::locate(u32::MAX);
        assert!(chunk < CHUNKS && place < Chunked::<u8>::groups(chunk));
    }
}
