//! One generation in memory: rows, deaths, windows and links, all of it in flat growing arrays.
//!
//! The applier alone pushes and kills; commits alone write links; anyone reads at any time. A slot
//! is published after everything about it was written; a link is stored after the slot it names
//! was published; a slot is the entry point only after its links were stored.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{OnceLock, Weak};

use parking_lot::Mutex;

use super::chunked::Chunked;
use super::level::level;
use super::order::Scored;
use super::{
    GENERATION_DEAD_PERCENT, GENERATION_SLOTS_MIN, Generation, IndexShape, SLOTS_MAX,
    TopologyDigest, VectorId, WINDOW_DIVISOR, WINDOW_SLOTS_MAX,
};
use crate::kernel::Row;
use crate::types::{MemoryHash, Sequence};

/// No slot: the entry point of a graph without links.
const NONE: u32 = u32::MAX;
/// Death of what lives. No command has sequence 0, so no vector dies at it.
const ALIVE: u64 = 0;

/// Beside a slot's level: it is a twin.
const TWIN: u8 = 1 << 7;

/// A run of slots that is linked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) seal: Sequence,
}

/// End of the window that begins after `sealed` slots.
pub(super) fn window_end(sealed: u32) -> u32 {
    sealed + (sealed / WINDOW_DIVISOR).clamp(1, WINDOW_SLOTS_MAX)
}

/// What commits change besides the links.
#[derive(Default)]
pub(super) struct Progress {
    /// Digest after each job that is done.
    pub(super) digests: Vec<TopologyDigest>,
    /// The linked slot with the greatest number.
    pub(super) last_linked: Option<u32>,
    /// Alive while a job of this generation is out.
    pub(super) lease: Weak<()>,
}

pub(super) struct Graph {
    pub(super) generation: Generation,
    pub(super) shape: IndexShape,
    rows: Chunked<OnceLock<Row>>,
    ids: Chunked<AtomicU64>,
    deaths: Chunked<AtomicU64>,
    levels: Chunked<AtomicU8>,
    /// First group of a slot in `upper`: its list on level 1; the others follow.
    upper_groups: Chunked<AtomicU32>,
    /// Lists of level 0 and of the levels above: a count, then neighbours.
    ground: Chunked<AtomicU32>,
    upper: Chunked<AtomicU32>,
    published: AtomicU32,
    dead: AtomicU32,
    /// Slots whose window was linked.
    linked: AtomicU32,
    entry: AtomicU32,
    /// The applier's: sealed windows, and the next free group of `upper`.
    windows: Mutex<Vec<Window>>,
    upper_next: AtomicU32,
    pub(super) progress: Mutex<Progress>,
}

impl Graph {
    pub(super) fn new(generation: Generation, shape: IndexShape) -> Self {
        let m = shape.parameters.m as usize;
        Self {
            generation,
            shape,
            rows: Chunked::new(1),
            ids: Chunked::new(1),
            deaths: Chunked::new(1),
            levels: Chunked::new(1),
            upper_groups: Chunked::new(1),
            ground: Chunked::new(1 + 2 * m),
            upper: Chunked::new(1 + m),
            published: AtomicU32::new(0),
            dead: AtomicU32::new(0),
            linked: AtomicU32::new(0),
            entry: AtomicU32::new(NONE),
            windows: Mutex::default(),
            upper_next: AtomicU32::new(0),
            progress: Mutex::default(),
        }
    }

    /// The same generation, windows and deaths, with no job done.
    pub(super) fn without_links(&self) -> Self {
        let bare = Self::new(self.generation.clone(), self.shape);
        let windows = self.windows.lock().clone();
        let mut seals = windows.iter();
        let mut window = seals.next();
        for slot in 0..self.published() {
            while window.is_some_and(|window| window.end <= slot) {
                window = seals.next();
            }
            let seal = window.map_or(Sequence(0), |window| window.seal);
            bare.push(
                self.id(slot),
                self.row(slot).clone(),
                self.level(slot),
                seal,
            );
            let death = self.deaths.at(slot).load(Ordering::Acquire);
            bare.deaths.at(slot).store(death, Ordering::Release);
        }
        bare.dead.store(self.dead(), Ordering::Release);
        bare
    }

    /// Level of a memory under this space's rules.
    pub(super) fn level_of(&self, owner: MemoryHash) -> u8 {
        level(
            owner,
            self.shape.parameters.level_seed,
            self.shape.parameters.m,
        )
    }

    /// Adds the next slot. `sequence` is that of the vector's command.
    pub(super) fn push(&self, id: VectorId, row: Row, level: u8, sequence: Sequence) {
        let slot = self.published();
        let expected = self.generation.slot_of(id);
        assert!(
            expected == Some(u64::from(slot)),
            "vector {id} of slot {expected:?} came for slot {slot}: vectors come in order of the log"
        );
        assert!(
            slot < SLOTS_MAX,
            "generation {} is full",
            self.generation.number
        );
        let fresh = self.rows.make(slot).set(row).is_ok();
        assert!(fresh, "slot {slot} was filled twice");
        self.ids.make(slot).store(id.0, Ordering::Relaxed);
        self.deaths.make(slot).store(ALIVE, Ordering::Relaxed);
        self.levels.make(slot).store(level, Ordering::Relaxed);
        self.ground.make_group(slot);
        let group = self
            .upper_next
            .fetch_add(u32::from(level), Ordering::Relaxed);
        self.upper_groups.make(slot).store(group, Ordering::Relaxed);
        for group in group..group + u32::from(level) {
            self.upper.make_group(group);
        }
        self.published.store(slot + 1, Ordering::Release);
        self.seal_up_to(slot + 1, sequence);
    }

    fn seal_up_to(&self, slots: u32, sequence: Sequence) {
        let in_base = u64::from(slots) <= self.generation.base_len();
        let seal = if in_base {
            self.generation.start
        } else {
            sequence
        };
        let mut windows = self.windows.lock();
        let start = windows.last().map_or(0, |window| window.end);
        let end = window_end(start);
        if end <= slots {
            windows.push(Window { start, end, seal });
        }
    }

    /// Marks a vector dead. One that has no slot here, or is dead already, stays as it is.
    pub(super) fn kill(&self, id: VectorId, at: Sequence) {
        let slot = self
            .generation
            .slot_of(id)
            .and_then(|slot| u32::try_from(slot).ok());
        let Some(slot) = slot.filter(|slot| *slot < self.published()) else {
            return;
        };
        let death = self.deaths.at(slot);
        if death
            .compare_exchange(ALIVE, at.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.dead.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether so many slots are dead that the log starts a new generation.
    pub(super) fn is_worn(&self) -> bool {
        let slots = self.published();
        slots >= GENERATION_SLOTS_MIN
            && u64::from(self.dead()) * 100 >= u64::from(slots) * u64::from(GENERATION_DEAD_PERCENT)
    }

    pub(super) fn published(&self) -> u32 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn dead(&self) -> u32 {
        self.dead.load(Ordering::Acquire)
    }

    pub(super) fn linked(&self) -> u32 {
        self.linked.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn row(&self, slot: u32) -> &Row {
        match self.rows.at(slot).get() {
            Some(row) => row,
            None => unreachable!("slot {slot} was read before it was published"),
        }
    }

    #[inline]
    pub(super) fn id(&self, slot: u32) -> VectorId {
        VectorId(self.ids.at(slot).load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn level(&self, slot: u32) -> u8 {
        self.levels.at(slot).load(Ordering::Relaxed) & !TWIN
    }

    /// Whether a linked slot's parent, the first of its neighbours if that came before it, is its
    /// copy. Links never choose a twin; see `link`.
    #[inline]
    pub(super) fn is_twin(&self, slot: u32) -> bool {
        self.levels.at(slot).load(Ordering::Relaxed) & TWIN != 0
    }

    /// Whether two slots hold the same vector.
    pub(super) fn are_copies(&self, a: u32, b: u32) -> bool {
        self.row(a)[..] == self.row(b)[..]
    }

    #[inline]
    pub(super) fn is_live(&self, slot: u32) -> bool {
        self.deaths.at(slot).load(Ordering::Acquire) == ALIVE
    }

    /// Whether a slot was alive after the command at `seal`.
    #[inline]
    pub(super) fn is_live_at(&self, slot: u32, seal: Sequence) -> bool {
        let death = self.deaths.at(slot).load(Ordering::Acquire);
        death == ALIVE || death > seal.0
    }

    /// Whether a slot whose window was linked got links: it was alive at the seal.
    pub(super) fn is_linked(&self, slot: u32) -> bool {
        let windows = self.windows.lock();
        let place = windows.partition_point(|window| window.end <= slot);
        windows
            .get(place)
            .is_some_and(|window| self.is_live_at(slot, window.seal))
    }

    #[inline]
    pub(super) fn score(&self, row: &[f32], slot: u32) -> Scored {
        let distance = self
            .shape
            .kernel
            .distance(self.shape.metric, row, self.row(slot));
        Scored::new(distance, slot)
    }

    pub(super) fn entry(&self) -> Option<u32> {
        Some(self.entry.load(Ordering::Acquire)).filter(|slot| *slot != NONE)
    }

    /// Longest list of a level.
    pub(super) fn links_max(&self, level: u8) -> usize {
        let m = self.shape.parameters.m as usize;
        if level == 0 { 2 * m } else { m }
    }

    #[inline]
    fn list(&self, slot: u32, level: u8) -> &[AtomicU32] {
        if level == 0 {
            return self.ground.group(slot);
        }
        debug_assert!(
            level <= self.level(slot),
            "slot {slot} has no level {level}"
        );
        let first = self.upper_groups.at(slot).load(Ordering::Relaxed);
        self.upper.group(first + u32::from(level) - 1)
    }

    /// Neighbours of a slot. While a commit rewrites the list, some of before and some of after.
    #[inline]
    pub(super) fn neighbours(&self, slot: u32, level: u8) -> impl Iterator<Item = u32> {
        let (count, links) = match self.list(slot, level) {
            [count, links @ ..] => (count.load(Ordering::Acquire) as usize, links),
            [] => (0, [].as_slice()),
        };
        links
            .iter()
            .take(count)
            .map(|link| link.load(Ordering::Acquire))
    }

    fn store_list(&self, slot: u32, level: u8, neighbours: &[u32]) {
        let list = self.list(slot, level);
        assert!(
            neighbours.len() < list.len(),
            "{} links of slot {slot}",
            neighbours.len()
        );
        for (link, neighbour) in list[1..].iter().zip(neighbours) {
            link.store(*neighbour, Ordering::Release);
        }
        list[0].store(neighbours.len() as u32, Ordering::Release);
    }

    pub(super) fn jobs_sealed(&self) -> usize {
        self.windows.lock().len()
    }

    pub(super) fn window(&self, job: usize) -> Option<Window> {
        self.windows.lock().get(job).copied()
    }

    pub(super) fn jobs_done(&self) -> usize {
        self.progress.lock().digests.len()
    }

    pub(super) fn is_caught_up(&self) -> bool {
        self.jobs_done() >= self.jobs_sealed()
    }

    /// Makes the links of the next job, whose slots end at `linked`, those of the graph. The caller
    /// holds `progress`.
    pub(super) fn publish_links<'a>(
        &self,
        lists: impl Iterator<Item = (u32, u8, &'a [u32])>,
        entry: Option<u32>,
        linked: u32,
    ) {
        let before = self.linked();
        for (slot, level, neighbours) in lists {
            let parent = neighbours.first().filter(|first| **first < slot);
            let is_new = slot >= before && level == 0;
            if is_new && parent.is_some_and(|parent| self.are_copies(slot, *parent)) {
                self.levels.at(slot).fetch_or(TWIN, Ordering::Relaxed);
            }
            self.store_list(slot, level, neighbours);
        }
        self.entry.store(entry.unwrap_or(NONE), Ordering::Release);
        self.linked.store(linked, Ordering::Release);
    }

    /// Sets the entry point that linking would have set: the first slot with the greatest level
    /// that is no twin.
    pub(super) fn restore_entry(&self) {
        let slots = (0..self.linked()).filter(|slot| self.is_linked(*slot) && !self.is_twin(*slot));
        let highest = slots.map(|slot| (self.level(slot), Reverse(slot))).max();
        let entry = highest.map_or(NONE, |(_, Reverse(slot))| slot);
        self.entry.store(entry, Ordering::Release);
    }

    /// Memory of links and of what belongs to slots, and of the rows.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let row = size_of::<f32>() * crate::kernel::padded_len(self.shape.dimension as usize);
        let flat = self.rows.bytes()
            + self.ids.bytes()
            + self.deaths.bytes()
            + self.levels.bytes()
            + self.upper_groups.bytes()
            + self.ground.bytes()
            + self.upper.bytes();
        (flat, row * self.published() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_with_the_graph() {
        let mut ends = vec![0];
        while ends[ends.len() - 1] < 100_000 {
            ends.push(window_end(ends[ends.len() - 1]));
        }
        assert_eq!(ends[..4], [0, 1, 2, 3]);
        assert!(ends.windows(2).all(|pair| {
            let size = pair[1] - pair[0];
            size == (pair[0] / 16).clamp(1, 256)
        }));
    }
}
