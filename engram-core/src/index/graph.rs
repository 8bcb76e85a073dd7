//! One generation in memory: vectors, deaths, windows and links, all of it in flat growing arrays.
//!
//! The applier alone pushes and kills; commits alone write links; anyone reads at any time. A slot
//! is published after everything about it was written; a link is stored after the slot it names
//! was published; a slot is the entry point only after its links were stored.

use std::cmp::Reverse;
use std::sync::{Arc, Weak};

use super::chunked::Chunked;
use super::level::level;
use super::vectors::Vectors;
use super::{
    GENERATION_DEAD_PERCENT, GENERATION_SLOTS_MIN, Generation, IndexShape, SLOTS_MAX,
    TopologyDigest, VectorId, WINDOW_DIVISOR, WINDOW_SLOTS_MAX,
};
use crate::kernel::prefetch;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::types::{MemoryHash, Sequence};

/// No slot: the end of a list, and the entry point of a graph without links.
const NONE: u32 = u32::MAX;
/// Death of what lives. No command has sequence 0, so no vector dies at it.
const ALIVE: u64 = 0;

/// Beside a slot's level: it is a twin; it is dead.
const TWIN: u8 = 1 << 7;
const DEAD: u8 = 1 << 6;
const LEVEL: u8 = DEAD - 1;

const _: () = assert!(super::level::LEVEL_MAX <= LEVEL);

/// Links in a cache line.
const LINE_LINKS: usize = 16;

/// A cache line of links. Lists are whole lines; what a list does not use holds `NONE`.
#[repr(C, align(64))]
pub(super) struct Line([AtomicU32; LINE_LINKS]);

impl Default for Line {
    fn default() -> Self {
        Self([const { AtomicU32::new(NONE) }; LINE_LINKS])
    }
}

/// The slots in a list, in its order. While a commit rewrites the list, some of before and some of
/// after.
#[inline]
pub(super) fn each_link(list: &[Line], mut visit: impl FnMut(u32)) {
    for line in list {
        for link in &line.0 {
            let slot = link.load(Ordering::Acquire);
            if slot == NONE {
                return;
            }
            visit(slot);
        }
    }
}

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
    pub(super) vectors: Arc<Vectors>,
    /// Of the slots of the base; those of later ones follow from their slots.
    base_ids: Chunked<AtomicU64>,
    deaths: Chunked<AtomicU64>,
    /// Level, and whether it is a twin or dead: what a walk asks of a slot, in one byte.
    flags: Chunked<AtomicU8>,
    /// Children that are no twins; see `link`.
    children: Chunked<AtomicU8>,
    /// First group of a slot in `upper`: its list on level 1; the others follow.
    upper_groups: Chunked<AtomicU32>,
    /// Lists of level 0 and of the levels above.
    ground: Chunked<Line>,
    upper: Chunked<Line>,
    published: AtomicU32,
    dead: AtomicU32,
    /// Slots whose window was linked.
    linked: AtomicU32,
    entry: AtomicU32,
    /// The applier's: sealed windows, and the next free group of `upper`.
    windows: Mutex<Vec<Window>>,
    upper_next: AtomicU32,
    /// Where the vectors of the base come from, until all of them are here.
    source: Mutex<Option<Arc<Graph>>>,
    pub(super) progress: Mutex<Progress>,
}

impl Graph {
    pub(super) fn new(generation: Generation, shape: IndexShape) -> Self {
        let base = u32::try_from(generation.base_len()).unwrap_or(u32::MAX);
        assert!(
            base < SLOTS_MAX,
            "a base of {} vectors",
            generation.base_len()
        );
        let vectors = Arc::new(Vectors::new(shape, base));
        Self::with_vectors(generation, shape, vectors)
    }

    fn with_vectors(generation: Generation, shape: IndexShape, vectors: Arc<Vectors>) -> Self {
        let m = shape.parameters.m as usize;
        Self {
            vectors,
            generation,
            shape,
            base_ids: Chunked::new(1),
            deaths: Chunked::new(1),
            flags: Chunked::new(1),
            children: Chunked::new(1),
            upper_groups: Chunked::new(1),
            ground: Chunked::new((2 * m).div_ceil(LINE_LINKS)),
            upper: Chunked::new(m.div_ceil(LINE_LINKS)),
            published: AtomicU32::new(0),
            dead: AtomicU32::new(0),
            linked: AtomicU32::new(0),
            entry: AtomicU32::new(NONE),
            windows: Mutex::default(),
            upper_next: AtomicU32::new(0),
            source: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    /// A generation whose base lives in an older one, which has all its vectors: it serves, so the
    /// jobs of its own base are done. They are copied window by window, by the jobs that link them.
    ///
    /// # Panics
    /// When the base is not what lives there.
    pub(super) fn begin(generation: Generation, older: &Arc<Self>) -> Self {
        let graph = Self::new(generation, older.shape);
        let start = graph.generation.start;
        for slot in 0..older.published() {
            let id = older.id(slot);
            if graph.generation.base.contains(id.0) {
                graph.publish(id, older.level(slot), start);
            }
        }
        let (held, base) = (graph.published(), graph.generation.base_len());
        assert!(
            u64::from(held) == base,
            "the base has {base} vectors, {held} of them are here"
        );
        *graph.source.lock() = Some(Arc::clone(older)).filter(|_| base > 0);
        graph
    }

    /// Brings in the vectors of the base up to slot `end`, and with the last window that lies in
    /// the base whole, those that no window of it takes.
    pub(super) fn fill_base(&self, end: u32) {
        let mut source = self.source.lock();
        let Some(older) = source.as_ref() else { return };
        let base = self.generation.base_len() as u32;
        let end = if window_end(end) > base { base } else { end };
        for slot in self.vectors.base_len()..end {
            let id = self.id(slot);
            match older.generation.slot_of(id) {
                Some(slot) => self.vectors.copy_base(&older.vectors, slot as u32),
                None => unreachable!("a base holds vector {id}, the generation before does not"),
            }
        }
        if self.vectors.base_len() == base {
            *source = None;
        }
    }

    /// The same generation, windows and deaths, with no job done.
    pub(super) fn without_links(&self) -> Self {
        let vectors = Arc::clone(&self.vectors);
        let bare = Self::with_vectors(self.generation.clone(), self.shape, vectors);
        let windows = self.windows.lock().clone();
        let mut seals = windows.iter();
        let mut window = seals.next();
        for slot in 0..self.published() {
            while window.is_some_and(|window| window.end <= slot) {
                window = seals.next();
            }
            let seal = window.map_or(Sequence(0), |window| window.seal);
            let id = self.id(slot);
            bare.publish(id, self.level(slot), seal);
            let death = self.deaths.at(slot).load(Ordering::Acquire);
            if death != ALIVE {
                bare.kill(id, Sequence(death));
            }
        }
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

    /// Adds the next slot with its vector. `sequence` is that of the vector's command.
    pub(super) fn push(&self, id: VectorId, row: &[f32], level: u8, sequence: Sequence) {
        match u64::from(self.published()) < self.generation.base_len() {
            true => self.vectors.push_base(row),
            false => self.vectors.push(row),
        }
        self.publish(id, level, sequence);
    }

    /// Adds the next slot, whose vector is here or will be before it is linked.
    fn publish(&self, id: VectorId, level: u8, sequence: Sequence) {
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
        if u64::from(slot) < self.generation.base_len() {
            self.base_ids.make(slot).store(id.0, Ordering::Relaxed);
        }
        self.deaths.make(slot).store(ALIVE, Ordering::Relaxed);
        self.flags.make(slot).store(level, Ordering::Relaxed);
        self.children.make(slot);
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
            self.flags.at(slot).fetch_or(DEAD, Ordering::AcqRel);
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
    pub(super) fn id(&self, slot: u32) -> VectorId {
        match u64::from(slot).checked_sub(self.generation.base_len()) {
            Some(after) => VectorId(self.generation.first.0 + after),
            None => VectorId(self.base_ids.at(slot).load(Ordering::Relaxed)),
        }
    }

    #[inline]
    pub(super) fn level(&self, slot: u32) -> u8 {
        self.flags.at(slot).load(Ordering::Relaxed) & LEVEL
    }

    /// Whether a linked slot's parent, the first of its neighbours if that came before it, is its
    /// copy. Links never choose a twin; see `link`.
    #[inline]
    pub(super) fn is_twin(&self, slot: u32) -> bool {
        self.flags.at(slot).load(Ordering::Relaxed) & TWIN != 0
    }

    /// Children of a linked slot that are no twins.
    pub(super) fn children(&self, slot: u32) -> u8 {
        self.children.at(slot).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn is_live(&self, slot: u32) -> bool {
        self.flags.at(slot).load(Ordering::Acquire) & DEAD == 0
    }

    /// Whether a slot was alive after the command at `seal`.
    #[inline]
    pub(super) fn is_live_at(&self, slot: u32, seal: Sequence) -> bool {
        if self.is_live(slot) {
            // A death at the seal or before was entered before the window was offered.
            return true;
        }
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

    pub(super) fn entry(&self) -> Option<u32> {
        Some(self.entry.load(Ordering::Acquire)).filter(|slot| *slot != NONE)
    }

    /// Longest list of a level.
    pub(super) fn links_max(&self, level: u8) -> usize {
        let m = self.shape.parameters.m as usize;
        if level == 0 { 2 * m } else { m }
    }

    #[inline]
    pub(super) fn list(&self, slot: u32, level: u8) -> &[Line] {
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

    /// Neighbours of a slot; see [`each_link`].
    pub(super) fn neighbours(&self, slot: u32, level: u8) -> Vec<u32> {
        let mut neighbours = Vec::with_capacity(self.links_max(level));
        each_link(self.list(slot, level), |slot| neighbours.push(slot));
        neighbours
    }

    /// The first neighbour of a slot on level 0.
    pub(super) fn first_neighbour(&self, slot: u32) -> Option<u32> {
        let first = self.ground.group(slot)[0].0[0].load(Ordering::Acquire);
        Some(first).filter(|slot| *slot != NONE)
    }

    /// Starts to load a slot's list on level 0.
    #[inline]
    pub(super) fn prefetch_list(&self, slot: u32) {
        self.ground.group(slot).iter().for_each(prefetch);
    }

    fn store_list(&self, slot: u32, level: u8, neighbours: &[u32]) {
        let list = self.list(slot, level);
        assert!(
            neighbours.len() <= self.links_max(level),
            "{} links of slot {slot}",
            neighbours.len()
        );
        let links = list.iter().flat_map(|line| &line.0);
        let ended = neighbours.iter().copied().chain(std::iter::repeat(NONE));
        for (link, neighbour) in links.zip(ended) {
            link.store(neighbour, Ordering::Release);
        }
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
            if let Some(parent) = parent.filter(|_| slot >= before && level == 0) {
                self.note_parent(slot, *parent);
            }
            self.store_list(slot, level, neighbours);
        }
        self.entry.store(entry.unwrap_or(NONE), Ordering::Release);
        self.linked.store(linked, Ordering::Release);
    }

    fn note_parent(&self, slot: u32, parent: u32) {
        if self.vectors.are_copies(slot, parent) {
            self.flags.at(slot).fetch_or(TWIN, Ordering::Relaxed);
        } else {
            self.children.at(parent).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sets the entry point that linking would have set: the first slot with the greatest level
    /// that is no twin.
    pub(super) fn restore_entry(&self) {
        let slots = (0..self.linked()).filter(|slot| self.is_linked(*slot) && !self.is_twin(*slot));
        let highest = slots.map(|slot| (self.level(slot), Reverse(slot))).max();
        let entry = highest.map_or(NONE, |(_, Reverse(slot))| slot);
        self.entry.store(entry, Ordering::Release);
    }

    /// Memory of what walks touch: links, what else belongs to slots, and the vectors or their
    /// codes; and of the full vectors beside codes.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let (walked, full) = self.vectors.bytes();
        let walked = walked
            + self.base_ids.bytes()
            + self.deaths.bytes()
            + self.flags.bytes()
            + self.children.bytes()
            + self.upper_groups.bytes()
            + self.ground.bytes()
            + self.upper.bytes();
        (walked, full)
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
