//! The nodes, the map, the log and the network of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::{
    Associate, Dissociate, EdgeChange, Expected, Op, OverlayDelta, PartitionCommand, Remember,
    Write,
};
use engram_core::partition::{Direction, LocalChange, NeighborsQuery, Partition};
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{
    ActorId, ClientId, Decay, Hlc, IndexParameters, MemoryId, Metric, NodeId, OverlayDot,
    PartitionId, Relation, RequestId, SlotRange, SpaceConfig, SpaceId, Unit,
};
use engram_node::overlay::{Effect, Event, Place, Places, Protocol, Rumour};
use engram_proto::peer::OverlayExchange;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::{Report, oracle};

const PARTITION: PartitionId = PartitionId(3);
const CLUSTER: [u8; 16] = [5; 16];
const NODES: usize = 5;
const REPLICAS: usize = 3;
const ENDS: usize = 4;
/// Rounds after the faults in which everything must have met.
const SETTLING_MAX: usize = 400;
/// Messages on their way; the oldest is lost beyond it.
const MESSAGES_MAX: usize = 64;

/// A node that has a replica, or what is left of one.
struct Node {
    storage: MemoryStorage,
    partition: Arc<Partition>,
    protocol: Protocol,
    actor: ActorId,
    /// A copy of its disk from an earlier time.
    backup: Option<MemoryStorage>,
    is_up: bool,
}

/// What is between two nodes.
#[derive(Clone)]
enum Message {
    Question(OverlayExchange),
    Answer(OverlayExchange),
    Silence,
    Rumour(Rumour),
}

#[derive(Clone)]
struct Letter {
    from: usize,
    to: usize,
    message: Message,
}

pub struct World {
    rng: StdRng,
    now: Duration,
    /// By number; those without a replica or remains of one are absent.
    nodes: BTreeMap<usize, Node>,
    /// Replicas on the map; the first leads if it can.
    members: Vec<usize>,
    log: Vec<PartitionCommand>,
    letters: Vec<Letter>,
    /// Ways that are cut.
    cut: BTreeSet<(usize, usize)>,
    lives: u64,
    counter: u64,
    /// Accepted at one replica and acknowledged.
    acknowledged: BTreeMap<OverlayDot, OverlayDelta>,
    report: Report,
}

fn end(number: usize) -> MemoryId {
    let id = MemoryId::new(format!("end-{number}"));
    id.unwrap_or_else(|error| panic!("a valid id: {error}"))
}

fn relation() -> Relation {
    Relation::new("near").unwrap_or_else(|| panic!("a valid relation"))
}

fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "overlays".into(),
        dimension: 1,
        metric: Metric::L2,
        index: IndexParameters::new(1),
        embedding_model: String::new(),
        decay: Decay::None,
    }
}

fn node_id(number: usize) -> NodeId {
    NodeId(number as u64 + 1)
}

impl Node {
    fn new(number: usize, storage: MemoryStorage, partition: Arc<Partition>, life: u64) -> Self {
        let mut actor = [0; 16];
        actor[..8].copy_from_slice(&life.to_be_bytes());
        Self {
            storage,
            partition,
            protocol: Protocol::new(node_id(number), CLUSTER, life << 32),
            actor: ActorId(actor),
            backup: None,
            is_up: true,
        }
    }

    fn applied(&self) -> usize {
        (self.partition.sequence().0 - 1) as usize
    }
}

impl World {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::from_secs(1),
            nodes: BTreeMap::new(),
            members: (0..REPLICAS).collect(),
            log: Vec::new(),
            letters: Vec::new(),
            cut: BTreeSet::new(),
            lives: 0,
            counter: 0,
            acknowledged: BTreeMap::new(),
            report: Report::default(),
        };
        for number in 0..REPLICAS {
            let storage = MemoryStorage::new();
            let mut batch = Batch::new();
            let shared: Arc<dyn Storage> = Arc::new(storage.clone());
            let partition =
                Partition::create(shared, PARTITION, config(), SlotRange::ALL, &mut batch);
            storage
                .write(batch, Durability::Sync)
                .unwrap_or_else(|error| panic!("create: {error}"));
            let node = Node::new(number, storage, partition, world.next_life());
            world.nodes.insert(number, node);
        }
        for number in 0..ENDS {
            let op = Op::Remember(Remember {
                id: end(number),
                content: String::new(),
                embedding: None,
                embedding_model: String::new(),
                labels: BTreeSet::new(),
                properties: BTreeMap::new(),
                confidence: Unit::ONE,
                edges: Vec::new(),
                expected: Expected::Anything,
            });
            world.propose(op);
        }
        world
    }

    fn next_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    // ---- the log ----------------------------------------------------------------------------

    /// A member that reaches a majority of the members both ways and has applied the whole log.
    fn leader(&self) -> Option<usize> {
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

    fn is_up(&self, number: usize) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.is_up)
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    fn stamp(&mut self) -> Hlc {
        // Clocks jump by years; nothing but decay and audit rests on them.
        let jump = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(0..1_u64 << 40),
            _ => 1_700_000_000_000,
        };
        Hlc::from_millis(jump + self.counter)
    }

    fn propose(&mut self, op: Op) {
        self.counter += 1;
        let stamp = self.stamp();
        self.log.push(PartitionCommand::Write(Write {
            client: ClientId([1; 16]),
            counter: self.counter,
            retried: false,
            stamp,
            ops: vec![(0, op)],
        }));
    }

    fn apply(&mut self, number: usize, commands: usize) {
        let Some(node) = self.nodes.get(&number).filter(|node| node.is_up) else {
            return;
        };
        if node.partition.is_retired() {
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

    // ---- clients ------------------------------------------------------------------------------

    fn edge(&mut self) -> (MemoryId, MemoryId) {
        let from = self.rng.random_range(0..ENDS);
        (
            end(from),
            end((from + 1 + self.rng.random_range(0..2)) % ENDS),
        )
    }

    fn unit(&mut self) -> Unit {
        Unit::from_bits(self.rng.random_range(0_u64..=4) << 30).unwrap_or(Unit::ONE)
    }

    fn majority_change(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let (from, to) = self.edge();
        let op = if self.rng.random_range(0..4) == 0 {
            // A removal is issued after a barrier.
            self.apply(leader, usize::MAX);
            let key = oracle::key(&from, &to, &relation());
            let context = self.nodes[&leader].partition.removal_context(&key);
            Op::Dissociate(Dissociate {
                from,
                to,
                relation: relation(),
                context,
            })
        } else {
            Op::Associate(Associate {
                from,
                to,
                relation: relation(),
                weight: self.unit(),
                confidence: Unit::ONE,
            })
        };
        self.propose(op);
    }

    fn local_change(&mut self) {
        let number = self.members[self.rng.random_range(0..self.members.len())];
        if !self.is_up(number) {
            return;
        }
        self.counter += 1;
        let (from, to) = self.edge();
        let change = if self.rng.random_range(0..4) == 0 {
            EdgeChange::Remove {
                context: Default::default(),
            }
        } else {
            EdgeChange::Contribute {
                weight: self.unit(),
                confidence: Unit::ONE,
            }
        };
        let change = LocalChange {
            request: RequestId {
                client: ClientId([2; 16]),
                counter: self.counter,
                index: 0,
            },
            retried: false,
            stamp: self.stamp(),
            from,
            to,
            relation: relation(),
            change,
        };
        let node = &self.nodes[&number];
        let accepted = node.partition.accept_local(node.actor, &[change]);
        let Ok(deltas) = accepted else {
            return;
        };
        self.report.local_changes += 1;
        for delta in &deltas {
            let before = self.acknowledged.insert(delta.dot, delta.clone());
            if before.is_some_and(|before| before != *delta) {
                let violation = format!("the dot {:?} was given twice", delta.dot);
                self.report.violations.push(violation);
            }
        }
        let partition = PARTITION;
        self.node_step(number, Event::Accepted { partition, deltas });
    }

    // ---- the protocol -------------------------------------------------------------------------

    fn places(&self, number: usize) -> Places {
        let mut places = Places::new();
        let node = &self.nodes[&number];
        if self.members.contains(&number) && !node.partition.is_retired() {
            let others = self.members.iter().filter(|other| **other != number);
            let place = Place {
                partition: Arc::clone(&node.partition),
                others: others.map(|other| node_id(*other)).collect(),
                leads: self.leader() == Some(number),
            };
            places.insert(PARTITION, place);
        }
        places
    }

    fn node_step(&mut self, number: usize, event: Event) {
        if !self.is_up(number) {
            return;
        }
        let (places, now) = (self.places(number), self.now);
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        for effect in node.protocol.step(now, &places, event) {
            self.carry_out(number, effect);
        }
    }

    fn carry_out(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::Call { node, request } => {
                self.post(number, node.0 as usize - 1, Message::Question(request));
            }
            Effect::Announce(rumour) => {
                for other in self.members.clone() {
                    if other != number {
                        self.post(number, other, Message::Rumour(rumour.clone()));
                    }
                }
            }
            Effect::Propose {
                partition, command, ..
            } => {
                let applied = self.leader() == Some(number);
                if applied {
                    if let PartitionCommand::Fold { edges, .. } = &command {
                        self.report.folded_edges += edges.len() as u64;
                    }
                    self.log.push(command);
                }
                self.node_step(number, Event::Proposed { partition, applied });
            }
        }
    }

    fn post(&mut self, from: usize, to: usize, message: Message) {
        self.letters.push(Letter { from, to, message });
        if self.letters.len() > MESSAGES_MAX {
            let lost = self.letters.remove(0);
            self.lose(lost);
        }
    }

    /// A question without an answer is given up in the end.
    fn lose(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        let node = |number| Event::Failed {
            node: node_id(number),
        };
        match message {
            Message::Question(_) => self.node_step(from, node(to)),
            Message::Answer(_) | Message::Silence => self.node_step(to, node(from)),
            Message::Rumour(_) => {}
        }
    }

    fn deliver(&mut self) {
        if self.letters.is_empty() {
            return;
        }
        let chosen = self.rng.random_range(0..self.letters.len());
        let letter = self.letters.swap_remove(chosen);
        let is_lost = self.rng.random_range(0..20) == 0;
        if is_lost || !self.reaches(letter.from, letter.to) || !self.is_up(letter.to) {
            self.lose(letter);
            return;
        }
        if matches!(letter.message, Message::Rumour(_)) && self.rng.random_range(0..10) == 0 {
            self.letters.push(letter.clone());
        }
        let Letter { from, to, message } = letter;
        match message {
            Message::Question(request) => {
                let (places, now) = (self.places(to), self.now);
                let Some(node) = self.nodes.get_mut(&to) else {
                    return;
                };
                let answer = node.protocol.serve(now, &places, request);
                let answer = answer.map_or(Message::Silence, Message::Answer);
                self.post(to, from, answer);
            }
            Message::Answer(answer) => {
                let node = node_id(from);
                self.node_step(to, Event::Answered { node, answer });
            }
            Message::Silence => {
                let node = node_id(from);
                self.node_step(to, Event::Failed { node });
            }
            Message::Rumour(rumour) => self.node_step(to, Event::Heard(rumour)),
        }
    }

    // ---- faults -------------------------------------------------------------------------------

    pub fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..200));
        let member = self.members[self.rng.random_range(0..self.members.len())];
        match self.rng.random_range(0..1_000) {
            0..150 => self.local_change(),
            150..250 => self.majority_change(),
            250..400 => {
                let commands = self.rng.random_range(1..8);
                self.apply(member, commands);
            }
            400..600 => self.node_step(member, Event::Tick),
            600..940 => self.deliver(),
            940..955 => self.crash(member),
            955..965 => self.install(member),
            965..970 => self.wipe(member),
            970..975 => self.restore(member),
            975..980 => self.change_members(member, true),
            980..984 => self.change_members(member, false),
            984..988 => self.return_one(),
            988..994 => self.cut_links(),
            _ => self.cut.clear(),
        }
    }

    fn crash(&mut self, number: usize) {
        let life = self.next_life();
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
        self.open(number, storage, life);
        if let Some(node) = self.nodes.get_mut(&number) {
            node.backup = backup;
        }
    }

    /// Starts a replica from a disk.
    fn open(&mut self, number: usize, storage: MemoryStorage, life: u64) {
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::open(shared, PARTITION, None)
            .unwrap_or_else(|error| panic!("open: {error}"));
        let node = Node::new(number, storage, partition, life);
        self.nodes.insert(number, node);
    }

    /// A snapshot of the replica that is furthest replaces what this one has from the log.
    fn install(&mut self, number: usize) {
        let others = self.members.iter().filter(|other| **other != number);
        let applied = |other: &&usize| self.nodes.get(other).map_or(0, Node::applied);
        let Some(source) = others.max_by_key(applied).copied() else {
            return;
        };
        let (Some(from), Some(to)) = (self.nodes.get(&source), self.nodes.get(&number)) else {
            return;
        };
        if from.partition.is_retired() || from.applied() <= to.applied() {
            return;
        }
        let bytes = snapshot(&from.partition);
        let shared: Arc<dyn Storage> = Arc::new(to.storage.clone());
        let partition = Partition::install(shared, PARTITION, &mut &bytes[..], Batch::new())
            .unwrap_or_else(|error| panic!("install: {error}"));
        if let Some(node) = self.nodes.get_mut(&number) {
            node.partition = partition;
        }
    }

    /// An empty disk; a snapshot of a member fills it.
    fn fill(&mut self, number: usize) -> bool {
        let others = self.members.iter().filter(|other| **other != number);
        let source = others.filter(|other| self.is_up(**other)).min();
        let Some(from) = source.and_then(|source| self.nodes.get(source)) else {
            return false;
        };
        if from.partition.is_retired() {
            return false;
        }
        let bytes = snapshot(&from.partition);
        let storage = MemoryStorage::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::install(shared, PARTITION, &mut &bytes[..], Batch::new())
            .unwrap_or_else(|error| panic!("install: {error}"));
        let life = self.next_life();
        let node = Node::new(number, storage, partition, life);
        self.nodes.insert(number, node);
        true
    }

    fn wipe(&mut self, number: usize) {
        self.report.wiped += usize::from(self.fill(number));
    }

    /// An earlier copy of the disk: the node goes on from there, as another actor.
    fn restore(&mut self, number: usize) {
        let backup = self.nodes.get(&number).and_then(|node| node.backup.clone());
        if let Some(backup) = backup {
            let life = self.next_life();
            self.open(number, backup.crash(0), life);
            self.report.restored += 1;
        }
    }

    /// Another node takes the place of this member. One that moves hands over what it holds and is
    /// gone; one that is away keeps it until it returns.
    fn change_members(&mut self, member: usize, hands_over: bool) {
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

    fn return_one(&mut self) {
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

    fn cut_links(&mut self) {
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

    // ---- the end ------------------------------------------------------------------------------

    #[must_use]
    pub fn end(mut self) -> Report {
        self.cut.clear();
        while self.nodes.values().any(|node| !node.is_up) {
            self.return_one();
        }
        self.count_destroyed();
        for _ in 0..SETTLING_MAX {
            self.now += Duration::from_millis(500);
            for member in self.members.clone() {
                self.apply(member, usize::MAX);
                self.node_step(member, Event::Tick);
            }
            while !self.letters.is_empty() {
                self.deliver();
            }
            if self.is_settled() {
                break;
            }
        }
        if !self.is_settled() {
            let violation = "the replicas did not meet".to_owned();
            self.report.violations.push(violation);
        }
        self.judge();
        self.report.entries = self.log.len();
        self.report
    }

    /// Changes that nobody has any more; letters may still bring some of them back.
    fn count_destroyed(&mut self) {
        let nodes = self.nodes.values();
        let seen: Vec<_> = nodes.map(|node| node.partition.overlay_context()).collect();
        let is_there = |dot: &OverlayDot| seen.iter().any(|context| context.covers(*dot));
        let mut destroyed = 0;
        let adopted = self.adopted();
        self.acknowledged.retain(|dot, _| {
            let stays = is_there(dot) || adopted.contains(dot);
            destroyed += usize::from(!stays);
            stays
        });
        self.report.destroyed = destroyed;
    }

    fn adopted(&self) -> BTreeSet<OverlayDot> {
        let deltas = self.log.iter().filter_map(|command| match command {
            PartitionCommand::Adopt { deltas } => Some(deltas),
            _ => None,
        });
        deltas.flatten().map(|delta| delta.dot).collect()
    }

    fn is_settled(&self) -> bool {
        self.members.iter().all(|member| {
            let node = &self.nodes[member];
            node.applied() == self.log.len() && node.partition.overlay_stats().deltas == 0
        })
    }

    fn judge(&mut self) {
        let mut violations = Vec::new();
        let adopted = self.adopted();
        for (dot, delta) in &self.acknowledged {
            if !adopted.contains(dot) {
                violations.push(format!("lost: {delta:?}"));
            }
        }
        let first = &self.nodes[&self.members[0]].partition;
        let expected = oracle::worth(PARTITION, &self.log);
        let conflicts = first.status().edge_conflicts;
        for member in &self.members {
            let partition = &self.nodes[member].partition;
            let (from_records, view) = partition
                .recompute_digests()
                .unwrap_or_else(|error| panic!("recompute: {error}"));
            if from_records != view.digests()
                || partition.status().edge_digest != first.status().edge_digest
            {
                violations.push(format!(
                    "node {member}: its digests are not those of the others"
                ));
            }
            let found = shown(partition);
            if conflicts == 0 && found != expected {
                violations.push(format!(
                    "node {member} shows {found:?}, the operations say {expected:?}"
                ));
            }
        }
        self.report.conflicts = conflicts;
        self.report.violations.extend(violations);
    }
}

fn snapshot(partition: &Partition) -> Vec<u8> {
    let mut bytes = Vec::new();
    partition
        .snapshot()
        .unwrap_or_else(|error| panic!("snapshot: {error}"))
        .write_to(&mut bytes)
        .unwrap_or_else(|error| panic!("snapshot: {error}"));
    bytes
}

/// The edges as a reader of this replica sees them.
fn shown(partition: &Partition) -> BTreeMap<engram_core::types::EdgeKey, oracle::Worth> {
    let mut shown = BTreeMap::new();
    for number in 0..ENDS {
        let found = partition
            .neighbors(&NeighborsQuery {
                id: &end(number),
                direction: Direction::Out,
                relations: &BTreeSet::new(),
                now_millis: 0,
                limit: usize::MAX,
            })
            .unwrap_or_else(|error| panic!("neighbours: {error}"));
        for edge in found.edges {
            let key = oracle::key(&edge.from, &edge.to, &edge.relation);
            shown.insert(key, (edge.weight.bits(), edge.contributions));
        }
    }
    shown
}
