//! The state of a run, and its steps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::command::{OverlayDelta, PartitionCommand};
use engram_core::storage::Batch;
use engram_core::types::OverlayDot;
use engram_node::overlay::Event;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Report;
use super::mix::Mix;
use super::network::Letter;
use super::node::Node;

/// Nodes that may have a replica, and replicas on the map.
pub const NODES: usize = 5;
const REPLICAS: usize = 3;
/// Messages that arrive in a step, less one.
const ARRIVALS_MAX: usize = 8;

pub struct World {
    pub(super) rng: StdRng,
    pub(super) mix: Mix,
    pub(super) now: Duration,
    /// By number; those without a replica or remains of one are absent.
    pub(super) nodes: BTreeMap<usize, Node>,
    /// Replicas on the map; the first leads if it can.
    pub(super) members: Vec<usize>,
    pub(super) log: Vec<PartitionCommand>,
    /// Proposals whose clients have gone on: they may come into the log, or never.
    pub(super) late: Vec<PartitionCommand>,
    pub(super) letters: Vec<Letter>,
    /// Ways that are cut.
    pub(super) cut: BTreeSet<(usize, usize)>,
    lives: u64,
    pub(super) counter: u64,
    /// Accepted at one replica and acknowledged.
    pub(super) acknowledged: BTreeMap<OverlayDot, OverlayDelta>,
    pub(super) report: Report,
}

impl World {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mix = Mix::draw(&mut rng);
        let mut world = Self {
            rng,
            mix,
            now: Duration::from_secs(1),
            nodes: BTreeMap::new(),
            members: (0..REPLICAS).collect(),
            log: Vec::new(),
            late: Vec::new(),
            letters: Vec::new(),
            cut: BTreeSet::new(),
            lives: 0,
            counter: 0,
            acknowledged: BTreeMap::new(),
            report: Report {
                mild: mix.is_mild(),
                ..Report::default()
            },
        };
        for number in 0..REPLICAS {
            let node = Node::found(number, world.next_life());
            world.nodes.insert(number, node);
        }
        world.remember_ends();
        world
    }

    pub(super) fn next_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    pub(super) fn violation(&mut self, what: String) {
        self.report.violations.push(what);
    }

    pub fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..200));
        let member = self.members[self.rng.random_range(0..self.members.len())];
        let (mix, what) = (self.mix, self.rng.random_range(0..1_000));
        match what {
            0..250 => self.local_change(),
            250..400 => self.majority_change(),
            400..415 if mix.forgets => self.forget(),
            415..440 if mix.twins => self.unanswered_change(),
            440..455 if mix.twins => self.late_proposal(),
            700..715 if mix.crashes => self.crash(member),
            715..725 if mix.snapshots => self.install(member),
            725..730 if mix.disks => self.wipe(member),
            730..735 if mix.disks => self.restore(member),
            735..740 if mix.members => self.change_members(member, true),
            740..744 if mix.members => self.change_members(member, false),
            744..748 if mix.members => self.return_one(),
            748..754 if mix.cuts => self.cut_links(),
            754..760 => self.cut.clear(),
            _ => {
                let commands = self.rng.random_range(1..8);
                self.apply(member, commands);
            }
        }
        self.let_time_act();
    }

    /// Timers that are due fire sooner or later, and some of what is on its way arrives.
    fn let_time_act(&mut self) {
        for member in self.members.clone() {
            let due = self.nodes.get(&member).is_some_and(|node| {
                let next = node.protocol.next_tick(self.now);
                next <= self.now
            });
            if due && self.rng.random_bool(0.5) {
                self.node_step(member, Event::Tick);
            }
        }
        for _ in 0..self.rng.random_range(0..ARRIVALS_MAX) {
            self.deliver();
        }
    }

    // ---- the log ----------------------------------------------------------------------------

    /// A member that reaches a majority of the members both ways.
    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |number: &&usize| {
            let reached = self.members.iter().filter(|other| {
                *other == *number
                    || self.is_up(**other)
                        && self.reaches(**number, **other)
                        && self.reaches(**other, **number)
            });
            self.is_up(**number) && reached.count() * 2 > self.members.len()
        };
        self.members.iter().find(leads).copied()
    }

    pub(super) fn is_up(&self, number: usize) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.is_up)
    }

    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Whether this replica gets the log.
    fn hears_the_leader(&self, number: usize) -> bool {
        self.leader().is_some_and(|leader| {
            leader == number || self.reaches(leader, number) && self.reaches(number, leader)
        })
    }

    pub(super) fn apply(&mut self, number: usize, commands: usize) {
        let Some(node) = self.nodes.get(&number).filter(|node| node.is_up) else {
            return;
        };
        if node.partition.is_retired() || !self.hears_the_leader(number) {
            return;
        }
        let from = node.applied();
        let until = from.saturating_add(commands).min(self.log.len());
        for (index, command) in self.log.iter().enumerate().take(until).skip(from) {
            let bytes = (index as u64).to_le_bytes();
            node.partition
                .apply(command, &bytes, Batch::new())
                .unwrap_or_else(|error| panic!("apply: {error}"));
        }
    }
}
