//! Rows of one length side by side in memory: an array that only grows and is read while it grows.
//!
//! The index keeps its vectors in one, and its int8 codes in another. A row is published by its
//! number and never moves or changes again, so readers need no lock. Chunks double in size: an
//! address is two shifts away, and of a chunk that is not full only the pages that were written are
//! resident. Large chunks ask for huge pages: a search jumps between rows, and with pages of 4 KiB
//! each jump would also miss the TLB.
#![allow(
    unsafe_code,
    reason = "owns raw memory that is written once and then shared; each use is argued"
)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::slice;

use crate::sync::{AtomicPtr, AtomicU32, Mutex, Ordering};

/// Bytes of a cache line. Rows are whole lines and begin at one.
const LINE_BYTES: usize = 64;
/// Rows of the first chunk; each further one has twice as many.
const FIRST: usize = 64;
/// Chunks of an array: enough for 2^32 rows.
const CHUNKS: usize = 27;
/// Size and alignment of a huge page, in bytes.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Cache lines of a row that are fetched ahead: all of them up to dimension 768.
#[cfg(target_arch = "x86_64")]
const LINES_AHEAD: usize = 48;

/// What rows may be made of: plain numbers.
pub trait Lane: sealed::Sealed + Copy + Default + Send + Sync + 'static {}

impl Lane for f32 {}
impl Lane for i8 {}
impl Lane for u8 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i8 {}
    impl Sealed for u8 {}
}

/// An array of rows. It may have a *base*: its first rows, which are pushed at a time of their own.
pub struct Rows<T: Lane> {
    /// Rows of the base.
    split: u32,
    base: Part<T>,
    rest: Part<T>,
}

impl<T: Lane> Rows<T> {
    /// An empty array of rows of `lanes` elements, whose first `split` rows are its base.
    ///
    /// # Panics
    /// When a row is not at least one whole cache line.
    #[must_use]
    pub fn new(lanes: usize, split: u32) -> Self {
        Self {
            split,
            base: Part::new(lanes),
            rest: Part::new(lanes),
        }
    }

    /// Elements of a row.
    #[inline]
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.rest.lanes
    }

    /// Rows of the base that are there.
    #[must_use]
    pub fn base_len(&self) -> u32 {
        self.base.len()
    }

    /// Memory of the rows that are there.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.base.len() as usize + self.rest.len() as usize) * self.lanes() * size_of::<T>()
    }

    /// Adds a row after the base and all that were pushed; returns its number.
    ///
    /// # Panics
    /// When the row has the wrong length, or there are 2^32 - 1 already.
    pub fn push(&self, row: &[T]) -> u32 {
        let number = self.split.checked_add(self.rest.push(row));
        assert!(number.is_some(), "the array is full");
        number.unwrap_or_default()
    }

    /// Adds the next row of the base.
    ///
    /// # Panics
    /// When the row has the wrong length.
    pub fn push_base(&self, row: &[T]) {
        let number = self.base.push(row);
        assert!(number < self.split, "row {number} is beyond the base");
    }

    #[inline]
    fn locate(&self, number: u32) -> (&Part<T>, u32) {
        match number.checked_sub(self.split) {
            Some(after) => (&self.rest, after),
            None => (&self.base, number),
        }
    }

    /// # Panics
    /// When no such row was pushed.
    #[inline]
    #[must_use]
    pub fn row(&self, number: u32) -> &[T] {
        let (part, place) = self.locate(number);
        part.row(place)
    }

    /// Starts to load a row, so that a kernel that runs a little later does not wait for it.
    #[inline]
    pub fn prefetch(&self, number: u32) {
        let (part, place) = self.locate(number);
        part.prefetch(place);
    }
}

/// Rows that are pushed one after the other.
struct Part<T: Lane> {
    /// Elements of a row: whole cache lines.
    lanes: usize,
    /// Rows that were pushed. Each is initialised, and nobody writes to it any more.
    len: AtomicU32,
    /// Null where the chunk is not there yet.
    chunks: [AtomicPtr<T>; CHUNKS],
    /// Held while a row is written.
    pushing: Mutex<()>,
    elements: PhantomData<T>,
}

// SAFETY: the chunks are owned by this array alone and hold plain numbers. A row is written under
// `pushing` before `len` (release) covers it and is only read after `len` (acquire) did.
unsafe impl<T: Lane> Send for Part<T> {}
// SAFETY: as above.
unsafe impl<T: Lane> Sync for Part<T> {}

impl<T: Lane> Part<T> {
    fn new(lanes: usize) -> Self {
        let bytes = lanes * size_of::<T>();
        assert!(
            bytes > 0 && bytes.is_multiple_of(LINE_BYTES),
            "a row of {bytes} bytes is not made of cache lines"
        );
        Self {
            lanes,
            len: AtomicU32::new(0),
            chunks: [const { AtomicPtr::new(null_mut()) }; CHUNKS],
            pushing: Mutex::new(()),
            elements: PhantomData,
        }
    }

    #[inline]
    fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    fn push(&self, row: &[T]) -> u32 {
        assert!(
            row.len() == self.lanes,
            "a row of {} elements among rows of {}",
            row.len(),
            self.lanes
        );
        let _pushing = self.pushing.lock();
        let number = self.len.load(Ordering::Relaxed);
        assert!(number < u32::MAX, "the array is full");
        let (chunk, place) = locate(number);
        let mut start = self.chunks[chunk].load(Ordering::Relaxed);
        if start.is_null() {
            start = self.allocate(chunk);
            self.chunks[chunk].store(start, Ordering::Release);
        }
        // SAFETY: `place` is below the chunk's `FIRST << chunk` rows, so the row is inside of it;
        // `row` has that many elements. No reader looks at this row before `len` covers it, and
        // `pushing` keeps other writers out. `row` cannot overlap with it: it was read safely.
        unsafe {
            start
                .add(place * self.lanes)
                .copy_from_nonoverlapping(row.as_ptr(), self.lanes)
        };
        self.len.store(number + 1, Ordering::Release);
        number
    }

    fn layout(&self, chunk: usize) -> Layout {
        let bytes = (FIRST << chunk) * self.lanes * size_of::<T>();
        let align = if bytes < 2 * HUGE_PAGE_BYTES {
            LINE_BYTES
        } else {
            HUGE_PAGE_BYTES
        };
        match Layout::from_size_align(bytes, align) {
            Ok(layout) => layout,
            Err(_) => unreachable!("{bytes} bytes do not fit into the address space"),
        }
    }

    fn allocate(&self, chunk: usize) -> *mut T {
        let layout = self.layout(chunk);
        // SAFETY: the layout is of at least one cache line, not of size zero.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        advise_huge_pages(start, layout);
        start.cast()
    }

    /// Where a row is. Dangling, but not to be followed, where no such row was pushed.
    #[inline]
    fn address(&self, number: u32) -> *const T {
        let (chunk, place) = locate(number);
        // Acquire: whoever read the row's number in `len` sees the chunk anyway.
        let start = self.chunks[chunk].load(Ordering::Acquire);
        start.wrapping_add(place * self.lanes)
    }

    #[inline]
    fn row(&self, number: u32) -> &[T] {
        assert!(
            number < self.len(),
            "row {number} was read before it was pushed"
        );
        // SAFETY: `len` covers the row: it lies inside a chunk that is there, is initialised, and is
        // not written again while `self` lives. Chunks are freed by `drop` alone.
        unsafe { slice::from_raw_parts(self.address(number), self.lanes) }
    }

    #[inline]
    fn prefetch(&self, number: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let lines = (self.lanes * size_of::<T>() / LINE_BYTES).min(LINES_AHEAD);
            let start = self.address(number).cast::<i8>();
            for line in 0..lines {
                // SAFETY: a prefetch is a hint: it neither faults nor reads, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * LINE_BYTES)) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = number;
    }
}

/// Starts to load what is at `item`, up to a cache line.
#[inline]
pub fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it neither faults nor reads.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// Chunk of a row, and its place there.
#[inline]
fn locate(number: u32) -> (usize, usize) {
    let shifted = number as usize + FIRST;
    let log = shifted.ilog2();
    ((log - FIRST.ilog2()) as usize, shifted - (1 << log))
}

/// A hint, so its failure means nothing: the kernel then keeps small pages.
fn advise_huge_pages(start: *mut u8, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE_BYTES {
        // SAFETY: the range was just allocated here and is whole huge pages; the advice changes
        // how it is backed, not what it holds.
        unsafe { libc::madvise(start.cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, layout);
}

impl<T: Lane> Drop for Part<T> {
    fn drop(&mut self) {
        for chunk in 0..CHUNKS {
            let start = std::mem::replace(self.chunks[chunk].get_mut(), null_mut());
            if !start.is_null() {
                // SAFETY: `allocate` made it with this very layout, and nobody borrows from `self`.
                unsafe { dealloc(start.cast(), self.layout(chunk)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_keeps_its_place() {
        let rows = Rows::<f32>::new(64, 1_000);
        for number in 1_000..5_000_u32 {
            rows.prefetch(number);
            assert_eq!(rows.push(&[number as f32; 64]), number);
        }
        (0..1_000_u32).for_each(|number| rows.push_base(&[number as f32; 64]));
        for number in 0..5_000 {
            let row = rows.row(number);
            assert_eq!(row.as_ptr() as usize % LINE_BYTES, 0);
            assert!(row.iter().all(|lane| *lane == number as f32));
        }
        assert_eq!((rows.base_len(), rows.bytes()), (1_000, 5_000 * 256));
    }

    #[test]
    fn large_chunks_are_aligned_to_huge_pages() {
        let rows = Rows::<u8>::new(1 << 16, 0);
        for number in 0..300_u32 {
            rows.push(&vec![number as u8; 1 << 16]);
        }
        assert_eq!(rows.row(64).as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert!((0..300_u32).all(|number| rows.row(number)[77] == number as u8));
    }

    #[test]
    fn the_last_row_has_a_place() {
        let (chunk, place) = locate(u32::MAX);
        assert!(chunk < CHUNKS && place < FIRST << chunk);
    }

    #[test]
    #[should_panic(expected = "before it was pushed")]
    fn a_row_that_is_not_there_is_not_read() {
        let _ = Rows::<u8>::new(64, 0).row(0);
    }
}
