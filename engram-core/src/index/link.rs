//! What a structural job computes: the links of one window.
//!
//! A member's candidates are the nearest slots of the graph as the job before left it, and the
//! members before it in its window. It chooses among them by diversity; each chosen one links back,
//! and chooses anew when its list is full. Nothing is written here: the result is committed later.
//!
//! Two rules make every linked slot reachable from every other on level 0, and keep crowds of
//! duplicates from shutting themselves or others off:
//! - the first of a slot's neighbours is its *parent*, the nearest candidate that had room for a
//!   child; neither the link to the parent nor the one from it is ever dropped, so that these links
//!   are a tree over all linked slots, walked in both directions;
//! - a member that is a copy of a candidate becomes a *twin*: it hangs below its copy in that tree,
//!   has no other link, and is never a candidate itself. To the links of others a crowd of
//!   duplicates is one vector.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::TopologyDigest;
use super::beam::{Bounds, Fate, Scratch, descend, walk, with_scratch};
use super::graph::{Graph, Window};
use super::order::Scored;
use crate::planted;

/// The linking of one window, to be run anywhere.
pub struct Job {
    pub(super) graph: Arc<Graph>,
    /// Jobs of the generation done before it.
    pub(super) number: usize,
    pub(super) window: Window,
    pub(super) last_linked: Option<u32>,
    pub(super) digest: TopologyDigest,
    pub(super) lease: Arc<()>,
}

impl Job {
    /// Generation that it belongs to.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.graph.generation.number
    }

    /// Slots that it links.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.window.end - self.window.start
    }
}

/// A slot's place among the lists: level 0 of all slots, then level 1, ...
type ListKey = (u8, u32);

/// The result of a job, to be committed.
pub struct LinkedWindow {
    pub(super) graph: Arc<Graph>,
    pub(super) number: usize,
    pub(super) end: u32,
    pub(super) lists: BTreeMap<ListKey, Vec<u32>>,
    pub(super) entry: Option<u32>,
    pub(super) last_linked: Option<u32>,
    pub(super) digest: TopologyDigest,
    /// Keeps the generation's next job back until this one is committed or dropped.
    pub(super) _lease: Arc<()>,
}

/// Computes the links of a job.
pub(super) fn link(job: &Job) -> LinkedWindow {
    let graph = &*job.graph;
    let mut linking = Linking {
        graph,
        window: job.window,
        lists: BTreeMap::new(),
        members: Vec::new(),
        twins: BTreeSet::new(),
        entry: graph.entry(),
        last_linked: job.last_linked,
    };
    with_scratch(|scratch| {
        for slot in job.window.start..job.window.end {
            if graph.is_live_at(slot, job.window.seal) {
                linking.link(slot, scratch);
            }
        }
    });
    let digest = linking.digest(job.digest);
    let Linking {
        lists,
        entry,
        last_linked,
        ..
    } = linking;
    LinkedWindow {
        graph: Arc::clone(&job.graph),
        number: job.number,
        end: job.window.end,
        lists,
        entry,
        last_linked,
        digest,
        _lease: Arc::clone(&job.lease),
    }
}

struct Linking<'a> {
    graph: &'a Graph,
    window: Window,
    /// Lists that this job sets, over those of the graph.
    lists: BTreeMap<ListKey, Vec<u32>>,
    /// Members linked so far that are no twins, and those that are.
    members: Vec<u32>,
    twins: BTreeSet<u32>,
    entry: Option<u32>,
    last_linked: Option<u32>,
}

impl Linking<'_> {
    fn link(&mut self, slot: u32, scratch: &mut Scratch) {
        let level = self.graph.level(slot);
        let candidates = self.candidates(slot, level, scratch);
        match self.copy_of(slot, &candidates[0]) {
            Some(copy) => self.link_twin(slot, level, copy),
            None => self.link_ordinary(slot, level, candidates),
        }
        self.last_linked = Some(slot);
        if self
            .parent_of(slot)
            .is_some_and(|parent| self.graph.are_copies(slot, parent))
        {
            self.twins.insert(slot);
            return;
        }
        self.members.push(slot);
        if self
            .entry
            .is_none_or(|entry| self.graph.level(entry) < level)
        {
            self.entry = Some(slot);
        }
    }

    fn is_twin(&self, slot: u32) -> bool {
        self.graph.is_twin(slot) || self.twins.contains(&slot)
    }

    /// A candidate that holds the same vector. Kernels are symmetric, so it is as far from the slot
    /// as the slot from itself.
    fn copy_of(&self, slot: u32, candidates: &[Scored]) -> Option<u32> {
        let own = self.graph.score(self.graph.row(slot), slot).distance();
        let mut equal = candidates.iter().filter(|found| found.distance() == own);
        equal
            .find(|found| self.graph.are_copies(slot, found.slot()))
            .map(|found| found.slot())
    }

    /// Hangs a twin below its copy, or below one of the twins there when the copy has enough.
    fn link_twin(&mut self, slot: u32, level: u8, copy: u32) {
        let (mut parent, mut path) = (copy, slot as usize);
        loop {
            let mut twins = self.children(parent);
            twins.retain(|child| self.is_twin(*child));
            if twins.len() < self.children_max() {
                break;
            }
            parent = twins[path % twins.len()];
            path /= twins.len();
        }
        self.lists
            .extend((1..=level).map(|level| ((level, slot), Vec::new())));
        self.lists.insert((0, slot), vec![parent]);
        self.link_back(parent, 0, slot);
    }

    fn link_ordinary(&mut self, slot: u32, level: u8, mut candidates: Vec<Vec<Scored>>) {
        if let Some(last) = self.last_linked.filter(|_| candidates[0].is_empty()) {
            // Everything linked is dead: the tree goes on through the dead.
            candidates[0].push(self.graph.score(self.graph.row(slot), last));
        }
        for (level, candidates) in (0..=level).zip(&candidates) {
            let parent = if level == 0 {
                self.parent(slot, candidates)
            } else {
                None
            };
            self.set_links(slot, level, candidates, parent);
        }
    }

    /// Per level from 0, live slots near to `slot`, nearest first.
    fn candidates(&self, slot: u32, level: u8, scratch: &mut Scratch) -> Vec<Vec<Scored>> {
        let (graph, row) = (self.graph, &**self.graph.row(slot));
        let mut found = vec![Vec::new(); usize::from(level) + 1];
        if let Some(entry) = graph.entry() {
            let mut entries = vec![descend(graph, row, entry, level)];
            for level in (0..=level.min(graph.level(entry))).rev() {
                let effort = graph.shape.parameters.ef_construction as usize;
                let bounds = Bounds {
                    level,
                    effort,
                    budget: usize::MAX,
                };
                let dead_by_now = |slot| planted!("topology-by-timing") && !graph.is_live(slot);
                let lives = |slot| graph.is_live_at(slot, self.window.seal) && !dead_by_now(slot);
                let mut judge = |slot| match lives(slot) {
                    _ if graph.is_twin(slot) => Fate::Skip,
                    true => Fate::Keep,
                    false => Fate::Through,
                };
                walk(graph, row, &entries, bounds, scratch, &mut judge);
                let results = scratch.results();
                if !results.is_empty() {
                    entries.clone_from(&results);
                }
                found[usize::from(level)] = results;
            }
        }
        for member in &self.members {
            let scored = graph.score(row, *member);
            let shared = usize::from(level.min(graph.level(*member)));
            found[..=shared]
                .iter_mut()
                .for_each(|found| found.push(scored));
        }
        found.iter_mut().for_each(|found| found.sort_unstable());
        found
    }

    /// Twins that a slot may have as children, and others.
    fn children_max(&self) -> usize {
        self.graph.shape.parameters.m as usize / 2
    }

    /// The nearest candidate with room for a child. The slot linked last has no child yet, so it
    /// always has room.
    fn parent(&self, slot: u32, candidates: &[Scored]) -> Option<Scored> {
        let has_room = |found: &Scored| {
            let children = self.children(found.slot());
            children
                .iter()
                .filter(|child| !self.is_twin(**child))
                .count()
                < self.children_max()
        };
        let last = || Some(self.graph.score(self.graph.row(slot), self.last_linked?));
        candidates.iter().copied().find(has_room).or_else(last)
    }

    fn parent_of(&self, slot: u32) -> Option<u32> {
        let first = match self.lists.get(&(0, slot)) {
            Some(list) => list.first().copied(),
            None => self.graph.neighbours(slot, 0).next(),
        };
        // The root has no parent; its first neighbour came after it.
        first.filter(|first| *first < slot)
    }

    fn children(&self, slot: u32) -> Vec<u32> {
        let mut list = self.list(slot, 0);
        list.retain(|other| self.parent_of(*other) == Some(slot));
        list
    }

    fn list(&self, slot: u32, level: u8) -> Vec<u32> {
        match self.lists.get(&(level, slot)) {
            Some(list) => list.clone(),
            None => self.graph.neighbours(slot, level).collect(),
        }
    }

    /// Chooses a new member's links, and links back to it.
    fn set_links(&mut self, slot: u32, level: u8, candidates: &[Scored], parent: Option<Scored>) {
        let mut candidates = candidates.to_vec();
        if let Some(parent) = parent {
            candidates.push(parent);
            candidates.sort_unstable();
            candidates.dedup();
        }
        let limit = self.graph.shape.parameters.m as usize;
        let bound = |other| parent.is_some_and(|parent| parent.slot() == other);
        let mut chosen = self.choose(&candidates, limit, bound);
        if let Some(parent) = parent {
            put_first(&mut chosen, parent.slot());
        }
        self.lists.insert((level, slot), chosen.clone());
        for neighbour in chosen {
            self.link_back(neighbour, level, slot);
        }
    }

    /// Adds `member` to the list of `slot`, which chooses anew when it is full.
    fn link_back(&mut self, slot: u32, level: u8, member: u32) {
        let mut list = self.list(slot, level);
        let limit = self.graph.links_max(level);
        list.push(member);
        if list.len() > limit {
            list = self.choose_again(slot, level, &list, limit);
        }
        self.lists.insert((level, slot), list);
    }

    fn choose_again(&self, slot: u32, level: u8, list: &[u32], limit: usize) -> Vec<u32> {
        let row = self.graph.row(slot);
        let parent = self.parent_of(slot).filter(|_| level == 0);
        let is_child = |other: &u32| level == 0 && self.parent_of(*other) == Some(slot);
        let is_bound = |other: &u32| Some(*other) == parent || is_child(other);
        let bound: Vec<u32> = list.iter().copied().filter(is_bound).collect();
        let mut candidates: Vec<Scored> = list
            .iter()
            .filter(|other| {
                bound.contains(other) || self.graph.is_live_at(**other, self.window.seal)
            })
            .map(|other| self.graph.score(row, *other))
            .collect();
        candidates.sort_unstable();
        let mut chosen = self.choose(&candidates, limit, |other| bound.contains(&other));
        if let Some(parent) = parent {
            put_first(&mut chosen, parent);
        }
        chosen
    }

    /// Keeps those that are bound, and of the others, nearest first, each that is not nearer to one
    /// chosen before than to the owner of the list. Ties are kept: all others are as near to a
    /// slot's copy as to itself.
    fn choose(
        &self,
        candidates: &[Scored],
        limit: usize,
        is_bound: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let graph = self.graph;
        let mut chosen: Vec<Scored> = Vec::with_capacity(limit);
        let mut free = limit
            - candidates
                .iter()
                .filter(|other| is_bound(other.slot()))
                .count()
                .min(limit);
        for candidate in candidates {
            if is_bound(candidate.slot()) {
                chosen.push(*candidate);
                continue;
            }
            if free == 0 {
                continue;
            }
            let row = graph.row(candidate.slot());
            let is_shadowed = |other: &Scored| {
                let between = graph.score(row, other.slot());
                between.distance() < candidate.distance()
            };
            if !chosen.iter().any(is_shadowed) {
                chosen.push(*candidate);
                free -= 1;
            }
        }
        chosen.into_iter().map(Scored::slot).collect()
    }

    /// The digest after this job: each list that it sets takes the place of what was there.
    fn digest(&self, before: TopologyDigest) -> TopologyDigest {
        let mut sum = u128::from_le_bytes(before.0);
        for ((level, slot), list) in &self.lists {
            if *slot < self.window.start {
                let old: Vec<u32> = self.graph.neighbours(*slot, *level).collect();
                sum = sum.wrapping_sub(list_hash(*slot, *level, &old));
            }
            sum = sum.wrapping_add(list_hash(*slot, *level, list));
        }
        TopologyDigest(sum.to_le_bytes())
    }
}

fn put_first(list: &mut [u32], slot: u32) {
    if let Some(place) = list.iter().position(|other| *other == slot) {
        list[..=place].rotate_right(1);
    }
}

/// The share of one list in a topology digest.
pub(super) fn list_hash(slot: u32, level: u8, neighbours: &[u32]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&slot.to_le_bytes())
        .update(&u32::from(level).to_le_bytes());
    for neighbour in neighbours {
        hasher.update(&neighbour.to_le_bytes());
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}
