//! What becomes of replicas, and of the ways between them.

use engram_core::types::{OverlayContext, OverlayDot};
use rand::{Rng as _, RngExt as _};

use super::node::Node;
use super::world::{NODES, World};

impl World {
    /// What a replica holds beside the log: on its disk, so that no crash and no snapshot takes it.
    fn held(&self, number: usize) -> Vec<OverlayDot> {
        let nothing = OverlayContext::default();
        let node = self.nodes.get(&number);
        let held = node.map(|node| node.partition.overlay_missing_from(&nothing, usize::MAX));
        let dots = held.into_iter().flatten().map(|delta| delta.dot);
        dots.collect()
    }

    fn check_held(&mut self, number: usize, held: &[OverlayDot], what: &str) {
        let Some(node) = self.nodes.get(&number) else {
            return;
        };
        let seen = node.partition.overlay_context();
        let lost: Vec<_> = held.iter().filter(|dot| !seen.covers(**dot)).collect();
        if !lost.is_empty() {
            self.violation(format!("{what} of node {number} has taken {lost:?}"));
        }
    }

    pub(super) fn crash(&mut self, number: usize) {
        let (life, held) = (self.next_life(), self.held(number));
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        let kept = self.rng.random_range(0..=node.storage.unsynced_batches());
        let storage = node.storage.crash(kept);
        let backup = match self.rng.random_bool(0.5) {
            true => Some(storage.crash(0)),
            false => node.backup.take(),
        };
        let storage = match &backup {
            // Copying the disk is a crash of its own.
            Some(_) => storage.crash(0),
            None => storage,
        };
        let node = Node {
            backup,
            ..Node::open(number, storage, life)
        };
        self.nodes.insert(number, node);
        self.check_held(number, &held, "a crash");
        self.report.crashed += 1;
    }

    /// A snapshot of the replica that is furthest replaces what this one has from the log.
    pub(super) fn install(&mut self, number: usize) {
        let others = self.members.iter().filter(|other| **other != number);
        let applied = |other: &&usize| self.nodes.get(other).map_or(0, Node::applied);
        let Some(source) = others.max_by_key(applied).copied() else {
            return;
        };
        let held = self.held(number);
        let applied = self.nodes.get(&number).map_or(0, Node::applied);
        let source = self.nodes.get(&source);
        let source = source.filter(|source| source.applied() > applied);
        let Some(snapshot) = source.and_then(Node::snapshot) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&number) {
            node.install(&snapshot);
            self.report.installed += 1;
        }
        self.check_held(number, &held, "a snapshot");
    }

    /// An empty disk; a snapshot of a member fills it.
    fn fill(&mut self, number: usize) -> bool {
        let others = self.members.iter().filter(|other| **other != number);
        let source = others.filter(|other| self.is_up(**other)).min();
        let source = source.and_then(|source| self.nodes.get(source));
        let Some(snapshot) = source.and_then(Node::snapshot) else {
            return false;
        };
        let life = self.next_life();
        self.nodes
            .insert(number, Node::filled(number, &snapshot, life));
        true
    }

    pub(super) fn wipe(&mut self, number: usize) {
        self.report.wiped += usize::from(self.fill(number));
    }

    /// An earlier copy of the disk: the node goes on from there, as another actor.
    pub(super) fn restore(&mut self, number: usize) {
        let backup = self.nodes.get(&number).and_then(|node| node.backup.clone());
        if let Some(backup) = backup {
            let life = self.next_life();
            let node = Node::open(number, backup.crash(0), life);
            self.nodes.insert(number, node);
            self.report.restored += 1;
        }
    }

    /// Another node takes the place of this member. One that moves hands over what it holds and is
    /// gone; one that is away keeps it until it returns.
    pub(super) fn change_members(&mut self, member: usize, hands_over: bool) {
        let free = (0..NODES).find(|number| !self.nodes.contains_key(number));
        let Some(free) = free else {
            return;
        };
        if !self.is_up(member) || !self.fill(free) {
            return;
        }
        self.members.retain(|other| *other != member);
        self.members.push(free);
        if hands_over {
            self.report.moved += 1;
            self.leave(member);
        } else {
            self.report.expelled += 1;
            if let Some(node) = self.nodes.get_mut(&member) {
                node.is_up = false;
            }
        }
    }

    pub(super) fn return_one(&mut self) {
        let away = self.nodes.iter().find(|(_, node)| !node.is_up);
        if let Some(number) = away.map(|(number, _)| *number) {
            self.report.returned += 1;
            self.leave(number);
        }
    }

    /// A replica that is off the map hands over what it holds, and goes only then.
    fn leave(&mut self, number: usize) {
        let Some(leaving) = self.nodes.get(&number) else {
            return;
        };
        leaving.partition.retire();
        let target = self.members.iter().find(|other| self.is_up(**other));
        let Some(to) = target.and_then(|target| self.nodes.get(target)) else {
            return;
        };
        let held = leaving
            .partition
            .overlay_missing_from(&to.partition.overlay_context(), usize::MAX);
        to.partition
            .receive_overlay(&held)
            .unwrap_or_else(|error| panic!("receive: {error}"));
        self.nodes.remove(&number);
    }

    pub(super) fn cut_links(&mut self) {
        self.report.cuts += 1;
        let both = self.rng.random_bool(0.7);
        let side: u32 = self.rng.next_u32();
        let is_here = |number: usize| side >> number & 1 == 1;
        for from in 0..NODES {
            for to in 0..NODES {
                if is_here(from) && !is_here(to) {
                    self.cut.insert((from, to));
                    if both {
                        self.cut.insert((to, from));
                    }
                }
            }
        }
    }
}
