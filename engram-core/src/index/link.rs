//! What a structural job computes: the links of one window.
//!
//! A member's candidates are the nearest slots of the graph as the job before left it, and the
//! members before it in its window. It chooses among them by diversity; each chosen one links back,
//! and chooses anew when its list is too long. Nothing is written here: the result is committed
//! later.
//!
//! The steps, of which all but the third are shared by a crew, member by member or list by list:
//!
//! 1. *search*: the candidates of each member;
//! 2. *choose*: the links of each member, once it is known who is a twin;
//! 3. *settle*, in slot order: twins, parents, the entry point, who links back to whom;
//! 4. *relink*: the lists that got back links, and the hashes of all lists that changed.
//!
//! Each piece depends on the frozen graph and on the steps before it alone, so the number of threads
//! and their order do not show.
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
use super::beam::{Bounds, Fate, descend, walk};
use super::codes::CodeBuffer;
use super::crew::{Crew, gather};
use super::graph::{Graph, Window};
use super::order::Scored;
use super::scratch::{Scratch, with_scratch};
use super::vectors::{Measured, Probe};
use crate::planted;

/// Members that a thread searches for, and lists that it chooses anew, before it takes more.
const MEMBERS_PER_PIECE: usize = 4;
const LISTS_PER_PIECE: usize = 64;

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

/// The result of a job, to be committed.
pub struct LinkedWindow {
    pub(super) graph: Arc<Graph>,
    pub(super) number: usize,
    pub(super) end: u32,
    pub(super) lists: Vec<List>,
    pub(super) entry: Option<u32>,
    pub(super) last_linked: Option<u32>,
    pub(super) digest: TopologyDigest,
    /// Keeps the generation's next job back until this one is committed or dropped.
    pub(super) _lease: Arc<()>,
}

/// A list that a job sets.
pub(super) struct List {
    pub(super) level: u8,
    pub(super) slot: u32,
    pub(super) neighbours: Vec<u32>,
}

/// Computes the links of a job.
pub(super) fn link(job: &Job, crew: &dyn Crew) -> LinkedWindow {
    job.graph.fill_base(job.window.end);
    let linking = Linking::new(job);
    let count = linking.members.len();
    let mut found = gather(crew, count, MEMBERS_PER_PIECE, &|member| {
        linking.search(member)
    });
    let twins: BTreeSet<u32> = (linking.members.iter().zip(&found))
        .filter_map(|(slot, found)| found.copy.map(|_| *slot))
        .collect();
    let chosen = gather(crew, count, MEMBERS_PER_PIECE, &|member| {
        linking.choose_links(member, &found[member], &twins)
    });
    for (found, chosen) in found.iter_mut().zip(chosen) {
        found.candidates = chosen.candidates;
        found.chosen = chosen.chosen;
    }
    let mut settling = Settling::new(&linking, twins, job.last_linked);
    for (member, found) in found.into_iter().enumerate() {
        settling.settle(member, found);
    }
    let settled = settling.finish();
    let relinked = gather(crew, settled.changes.len(), LISTS_PER_PIECE, &|change| {
        linking.relink(&settled, &settled.changes[change])
    });
    let mut digest = u128::from_le_bytes(job.digest.0);
    let mut lists = Vec::with_capacity(relinked.len());
    for (list, change) in relinked {
        digest = digest.wrapping_add(change);
        lists.push(list);
    }
    LinkedWindow {
        graph: Arc::clone(&job.graph),
        number: job.number,
        end: job.window.end,
        lists,
        entry: settled.entry,
        last_linked: settled.last_linked,
        digest: TopologyDigest(digest.to_le_bytes()),
        _lease: Arc::clone(&job.lease),
    }
}

/// What all steps look at: the graph as it is, and the window's members that were alive at the seal.
struct Linking<'a> {
    graph: &'a Graph,
    window: Window,
    members: Vec<u32>,
}

/// What was found for one member, per level from 0.
#[derive(Default)]
struct Found {
    /// Nearest first, once the links are chosen.
    candidates: Vec<Vec<Scored>>,
    /// The nearest candidate that holds the same vector.
    copy: Option<u32>,
    chosen: Vec<Vec<u32>>,
}

impl<'a> Linking<'a> {
    fn new(job: &'a Job) -> Self {
        let (graph, window) = (&*job.graph, job.window);
        let slots = window.start..window.end;
        Self {
            graph,
            window,
            members: slots
                .filter(|slot| graph.is_live_at(*slot, window.seal))
                .collect(),
        }
    }

    fn m(&self) -> usize {
        self.graph.shape.parameters.m as usize
    }

    /// The candidates of a member: those of the graph on each level, and the members before it,
    /// twins among them.
    fn search(&self, member: usize) -> Found {
        let slot = self.members[member];
        let mut candidates = vec![Vec::new(); usize::from(self.graph.level(slot)) + 1];
        let copy = with_scratch(|scratch| {
            let mut codes = std::mem::take(&mut scratch.codes);
            let probe = self.graph.vectors.probe(slot, &mut codes);
            self.search_graph(slot, probe, &mut candidates, scratch);
            self.search_members(member, probe, &mut candidates, scratch);
            let copy = self.copy_of(slot, probe, &candidates[0]);
            scratch.codes = codes;
            copy
        });
        Found {
            copy,
            candidates,
            chosen: Vec::new(),
        }
    }

    fn search_graph(
        &self,
        slot: u32,
        probe: Probe<'_>,
        found: &mut [Vec<Scored>],
        scratch: &mut Scratch,
    ) {
        let (graph, seal) = (self.graph, self.window.seal);
        let Some(entry) = graph.entry() else { return };
        let level = graph.level(slot);
        let mut entries = vec![descend(graph, probe, entry, level, scratch)];
        for level in (0..=level.min(graph.level(entry))).rev() {
            let effort = graph.shape.parameters.ef_construction as usize;
            let bounds = Bounds {
                level,
                effort,
                budget: usize::MAX,
            };
            let dead_by_now = |slot| planted!("topology-by-timing") && !graph.is_live(slot);
            walk(graph, probe, &entries, bounds, scratch, |slot| {
                match graph.is_live_at(slot, seal) && !dead_by_now(slot) {
                    _ if graph.is_twin(slot) => Fate::Skip,
                    true => Fate::Keep,
                    false => Fate::Through,
                }
            });
            let results: Vec<Scored> = scratch.pool.results().collect();
            if !results.is_empty() {
                entries.clone_from(&results);
            }
            found[usize::from(level)] = results;
        }
    }

    fn search_members(
        &self,
        member: usize,
        probe: Probe<'_>,
        found: &mut [Vec<Scored>],
        scratch: &mut Scratch,
    ) {
        let (graph, before) = (self.graph, &self.members[..member]);
        let level = graph.level(self.members[member]);
        graph.vectors.measure(probe, before, &mut scratch.measured);
        for (other, distance) in before.iter().zip(&scratch.measured.distances) {
            let shared = usize::from(level.min(graph.level(*other)));
            let scored = Scored::new(*distance, *other);
            found[..=shared]
                .iter_mut()
                .for_each(|found| found.push(scored));
        }
    }

    /// The nearest candidate that holds the same vector. Kernels are symmetric, so it is as far
    /// from the slot as the slot from itself.
    fn copy_of(&self, slot: u32, probe: Probe<'_>, candidates: &[Scored]) -> Option<u32> {
        let vectors = &self.graph.vectors;
        let own = vectors.score(probe, slot).distance();
        let equal = candidates.iter().filter(|found| found.distance() == own);
        let copies = equal.filter(|found| vectors.are_copies(slot, found.slot()));
        copies.min().map(|found| found.slot())
    }

    /// Sorts the candidates of a member that is no twin, without those that are, and chooses its
    /// links.
    fn choose_links(&self, member: usize, found: &Found, twins: &BTreeSet<u32>) -> Found {
        if twins.contains(&self.members[member]) {
            return Found::default();
        }
        let nearest = |candidates: &Vec<Scored>| {
            let mut nearest: Vec<Scored> = candidates
                .iter()
                .filter(|candidate| !twins.contains(&candidate.slot()))
                .copied()
                .collect();
            nearest.sort_unstable();
            nearest.truncate(self.graph.shape.parameters.ef_construction as usize);
            nearest
        };
        let candidates: Vec<Vec<Scored>> = found.candidates.iter().map(nearest).collect();
        let chosen = candidates
            .iter()
            .map(|candidates| self.choose(candidates, self.m(), |_| false))
            .collect();
        Found {
            candidates,
            copy: None,
            chosen,
        }
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
        let vectors = &self.graph.vectors;
        let bound = candidates
            .iter()
            .filter(|other| is_bound(other.slot()))
            .count();
        let mut left = bound;
        let mut free = limit - bound.min(limit);
        let mut chosen: Vec<u32> = Vec::with_capacity(limit);
        let mut codes = CodeBuffer::default();
        for (place, candidate) in candidates.iter().enumerate() {
            if free == 0 && left == 0 {
                break;
            }
            if let Some(later) = candidates.get(place + 1) {
                vectors.prefetch(later.slot());
            }
            if is_bound(candidate.slot()) {
                chosen.push(candidate.slot());
                left -= 1;
                continue;
            }
            if free == 0 {
                continue;
            }
            let probe = vectors.probe(candidate.slot(), &mut codes);
            let is_shadowed = |other: &u32| {
                let between = vectors.score(probe, *other);
                between.distance() < candidate.distance()
            };
            if !chosen.iter().any(is_shadowed) {
                chosen.push(candidate.slot());
                free -= 1;
            }
        }
        chosen
    }

    /// The parent of a linked slot of the graph. The root has none; its first neighbour came after
    /// it.
    fn parent_in_graph(&self, slot: u32) -> Option<u32> {
        let first = self.graph.first_neighbour(slot);
        first.filter(|first| *first < slot)
    }

    /// The list that a change makes, and what that adds to the digest.
    fn relink(&self, settled: &Settled, change: &Change) -> (List, u128) {
        let (slot, level) = (change.slot, change.level);
        let mut hash = 0_u128;
        let mut neighbours = match &change.own {
            Some(own) => own.clone(),
            None => {
                let old = self.graph.neighbours(slot, level);
                hash = hash.wrapping_sub(list_hash(slot, level, &old));
                old
            }
        };
        neighbours.extend(&change.added);
        let limit = self.graph.links_max(level);
        if neighbours.len() > limit {
            neighbours = self.choose_again(settled, slot, level, &neighbours);
        }
        hash = hash.wrapping_add(list_hash(slot, level, &neighbours));
        let list = List {
            level,
            slot,
            neighbours,
        };
        (list, hash)
    }

    fn choose_again(&self, settled: &Settled, slot: u32, level: u8, list: &[u32]) -> Vec<u32> {
        let vectors = &self.graph.vectors;
        let parent_of = |slot: u32| {
            if slot < self.window.start {
                return self.parent_in_graph(slot);
            }
            settled.parents.get(&slot).copied().flatten()
        };
        let parent = parent_of(slot).filter(|_| level == 0);
        let is_bound =
            |other: u32| level == 0 && (Some(other) == parent || parent_of(other) == Some(slot));
        let bound: Vec<u32> = list
            .iter()
            .copied()
            .filter(|other| is_bound(*other))
            .collect();
        let keeps =
            |other: &u32| bound.contains(other) || self.graph.is_live_at(*other, self.window.seal);
        let kept: Vec<u32> = list.iter().copied().filter(keeps).collect();
        let (mut measured, mut codes) = (Measured::default(), CodeBuffer::default());
        vectors.measure(vectors.probe(slot, &mut codes), &kept, &mut measured);
        let mut candidates: Vec<Scored> = kept
            .iter()
            .zip(&measured.distances)
            .map(|(other, distance)| Scored::new(*distance, *other))
            .collect();
        candidates.sort_unstable();
        let limit = self.graph.links_max(level);
        let mut chosen = self.choose(&candidates, limit, |other| bound.contains(&other));
        if let Some(parent) = parent {
            put_first(&mut chosen, parent);
        }
        chosen
    }
}

/// A list that changes: the links that a member chose, or what the graph has, and those that link
/// back.
struct Change {
    level: u8,
    slot: u32,
    own: Option<Vec<u32>>,
    added: Vec<u32>,
}

/// The outcome of the third step.
struct Settled {
    /// Parents of members.
    parents: BTreeMap<u32, Option<u32>>,
    /// By level, then slot.
    changes: Vec<Change>,
    entry: Option<u32>,
    last_linked: Option<u32>,
}

/// Gives members their places in the tree, one after the other.
struct Settling<'a> {
    linking: &'a Linking<'a>,
    twins: BTreeSet<u32>,
    parents: BTreeMap<u32, Option<u32>>,
    /// Children that slots got in this window; of twins, those that were there before, too.
    children: BTreeMap<u32, usize>,
    twins_below: BTreeMap<u32, Vec<u32>>,
    own: BTreeMap<(u8, u32), Vec<u32>>,
    /// Level and slot of a list, and who is added to it.
    back: Vec<(u8, u32, u32)>,
    entry: Option<u32>,
    last_linked: Option<u32>,
}

impl<'a> Settling<'a> {
    fn new(linking: &'a Linking<'a>, twins: BTreeSet<u32>, last_linked: Option<u32>) -> Self {
        Self {
            entry: linking.graph.entry(),
            linking,
            twins,
            parents: BTreeMap::new(),
            children: BTreeMap::new(),
            twins_below: BTreeMap::new(),
            own: BTreeMap::new(),
            back: Vec::new(),
            last_linked,
        }
    }

    fn settle(&mut self, member: usize, found: Found) {
        let graph = self.linking.graph;
        let slot = self.linking.members[member];
        let level = graph.level(slot);
        let parent = match found.copy {
            Some(copy) => Some(self.hang_twin(slot, level, copy)),
            None => self.hang_ordinary(slot, found),
        };
        self.last_linked = Some(slot);
        self.parents.insert(slot, parent);
        if let Some(parent) = parent {
            // Found as a copy or not: whoever hangs below its copy is a twin from now on.
            if graph.vectors.are_copies(slot, parent) {
                self.twins.insert(slot);
                self.twins_below(parent).push(slot);
                return;
            }
            *self.children.entry(parent).or_default() += 1;
        }
        if self.entry.is_none_or(|entry| graph.level(entry) < level) {
            self.entry = Some(slot);
        }
    }

    /// Children that a slot may have of each kind: twins, and others.
    fn children_max(&self) -> usize {
        self.linking.m() / 2
    }

    fn twins_below(&mut self, slot: u32) -> &mut Vec<u32> {
        let (graph, linking) = (self.linking.graph, self.linking);
        self.twins_below.entry(slot).or_insert_with(|| {
            if slot >= linking.window.start {
                return Vec::new();
            }
            let mut list = graph.neighbours(slot, 0);
            list.retain(|other| {
                graph.is_twin(*other) && linking.parent_in_graph(*other) == Some(slot)
            });
            list
        })
    }

    /// Hangs a twin below its copy, or below one of the twins there when the copy has enough.
    fn hang_twin(&mut self, slot: u32, level: u8, copy: u32) -> u32 {
        let (mut parent, mut path) = (copy, slot as usize);
        let max = self.children_max();
        loop {
            let twins = self.twins_below(parent);
            if twins.len() < max {
                break;
            }
            let count = twins.len();
            parent = twins[path % count];
            path /= count;
        }
        self.own
            .extend((1..=level).map(|level| ((level, slot), Vec::new())));
        self.own.insert((0, slot), vec![parent]);
        self.back.push((0, parent, slot));
        parent
    }

    fn hang_ordinary(&mut self, slot: u32, found: Found) -> Option<u32> {
        let Found {
            candidates,
            mut chosen,
            ..
        } = found;
        // If everything linked is dead there is no candidate: the tree goes on through the dead.
        let near = candidates[0].iter().map(|found| found.slot());
        let parent = near
            .into_iter()
            .find(|slot| self.has_room(*slot))
            .or(self.last_linked);
        if let Some(parent) = parent {
            let links = &mut chosen[0];
            if !links.contains(&parent) {
                links.truncate(self.linking.m() - 1);
                links.push(parent);
            }
            put_first(links, parent);
        }
        for (level, links) in (0..).zip(chosen) {
            let back = links.iter().map(|other| (level, *other, slot));
            self.back.extend(back);
            self.own.insert((level, slot), links);
        }
        parent
    }

    /// Whether a slot may have one more child that is no twin. The slot linked last has none yet.
    fn has_room(&self, slot: u32) -> bool {
        let before = if slot < self.linking.window.start {
            usize::from(self.linking.graph.children(slot))
        } else {
            0
        };
        let since = self.children.get(&slot).copied().unwrap_or_default();
        before + since < self.children_max()
    }

    /// Brings together what changes in each list.
    fn finish(mut self) -> Settled {
        self.back.sort_unstable();
        let mut changes: Vec<Change> = Vec::new();
        let mut own = std::mem::take(&mut self.own);
        for added in self.back.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (level, slot, _) = added[0];
            changes.push(Change {
                level,
                slot,
                own: own.remove(&(level, slot)),
                added: added.iter().map(|(_, _, member)| *member).collect(),
            });
        }
        changes.extend(own.into_iter().map(|((level, slot), links)| Change {
            level,
            slot,
            own: Some(links),
            added: Vec::new(),
        }));
        changes.sort_unstable_by_key(|change| (change.level, change.slot));
        Settled {
            parents: self.parents,
            changes,
            entry: self.entry,
            last_linked: self.last_linked,
        }
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
