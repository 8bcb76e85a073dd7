//! Replicas of one partition under everything that may happen to edges: both roads, exchanges of
//! any part in any order and doubled, adoption, folding, forgetting, crashes, snapshots, replicas
//! that are wiped, set back to an older disk or expelled and come back. All end with the same digests,
//! and every edge is worth what a list of the operations says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::support::*;
use crate::cases::cases;
use crate::command::{EdgeChange, Op, OverlayDelta, PartitionCommand, Write};
use crate::edges::Contribution;
use crate::partition::{
    Direction, FoldScan, LocalChange, Partition, PartitionOptions, ReplicaPosition,
};
use crate::storage::{Batch, Durability, MemoryStorage, Storage};
use crate::types::{
    ActorId, Dot, EdgeContext, EdgeKey, Hlc, MemoryHash, OverlayContext, OverlayDot, RequestId,
    Sequence, SlotRange, Unit,
};

const REPLICAS: usize = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Action {
    Associate {
        edge: u8,
        weight: u8,
    },
    Strengthen {
        replica: usize,
        edge: u8,
    },
    /// Proposed, and lost with its leader: only a retry brings it.
    Lose {
        edge: u8,
        weight: u8,
    },
    /// A marked second attempt of an earlier request, by the other road.
    Retry {
        replica: usize,
        back: usize,
    },
    Dissociate {
        edge: u8,
    },
    DissociateLocally {
        replica: usize,
        edge: u8,
    },
    Forget {
        name: u8,
    },
    Exchange {
        from: usize,
        to: usize,
        which: u64,
        bytes: usize,
    },
    Adopt {
        replica: usize,
        which: u64,
    },
    Apply {
        replica: usize,
        commands: usize,
    },
    Fold {
        adopt_first: bool,
    },
    Crash {
        replica: usize,
        kept: usize,
    },
    /// A snapshot of the one that is further replaces what the other has from the log.
    Transfer {
        from: usize,
        to: usize,
    },
    /// It comes back empty, as another life.
    Wipe {
        replica: usize,
    },
    /// Its disk is copied, as a backup of the machine does it.
    Save {
        replica: usize,
    },
    /// It goes on from the copy, as another life: what came since is known to others alone.
    Restore {
        replica: usize,
    },
    /// It is waited for no longer, or again.
    Expel {
        replica: usize,
    },
}

/// With `harsh`, also what may make folding choose, after which values are not compared.
fn actions(harsh: bool) -> impl Strategy<Value = Vec<Action>> {
    let replica = || 0..REPLICAS;
    let edge = || 0_u8..6;
    let on_edge = || (0..REPLICAS, 0_u8..6);
    let mild = prop_oneof![
        5 => (edge(), 0_u8..=4).prop_map(|(edge, weight)| Action::Associate { edge, weight }),
        6 => on_edge().prop_map(|(replica, edge)| Action::Strengthen { replica, edge }),
        2 => edge().prop_map(|edge| Action::Dissociate { edge }),
        2 => on_edge().prop_map(|(replica, edge)| Action::DissociateLocally { replica, edge }),
        1 => (0_u8..3).prop_map(|name| Action::Forget { name }),
        4 => (replica(), replica(), any::<u64>(), prop_oneof![Just(usize::MAX), 0_usize..400])
            .prop_map(|(from, to, which, bytes)| Action::Exchange { from, to, which, bytes }),
        3 => (replica(), any::<u64>())
            .prop_map(|(replica, which)| Action::Adopt { replica, which }),
        6 => (replica(), 1_usize..6)
            .prop_map(|(replica, commands)| Action::Apply { replica, commands }),
        3 => any::<bool>().prop_map(|adopt_first| Action::Fold { adopt_first }),
        1 => (replica(), 0_usize..6).prop_map(|(replica, kept)| Action::Crash { replica, kept }),
        1 => (replica(), replica()).prop_map(|(from, to)| Action::Transfer { from, to }),
    ];
    let rare = prop_oneof![
        (replica(), 1_usize..8).prop_map(|(replica, back)| Action::Retry { replica, back }),
        (edge(), 0_u8..=4).prop_map(|(edge, weight)| Action::Lose { edge, weight }),
        replica().prop_map(|replica| Action::Wipe { replica }),
        replica().prop_map(|replica| Action::Save { replica }),
        replica().prop_map(|replica| Action::Restore { replica }),
        replica().prop_map(|replica| Action::Expel { replica }),
    ];
    let rarity = if harsh { 0.15 } else { 0.0 };
    let action = (prop::bool::weighted(rarity), rare, mild)
        .prop_map(|(is_rare, rare, mild)| if is_rare { rare } else { mild });
    prop::collection::vec(action, 1..50)
}

struct Replica {
    storage: MemoryStorage,
    partition: Arc<Partition>,
    actor: ActorId,
    /// What it accepted and acknowledged, in this life.
    accepted: Vec<OverlayDelta>,
    /// Its disk at an earlier time.
    saved: Option<MemoryStorage>,
    expelled: bool,
}

struct Run {
    log: Vec<PartitionCommand>,
    replicas: Vec<Replica>,
    lives: u8,
    counter: u64,
    issued: Vec<(RequestId, u8, Unit)>,
    /// What every overlay dot marked, over all lives.
    marked: BTreeMap<OverlayDot, OverlayDelta>,
    /// Something happened after which folding may have had to choose.
    undecided: bool,
}

fn edge_ends(edge: u8) -> (&'static str, &'static str) {
    let from = usize::from(edge) % 3;
    let to = (from + 1 + usize::from(edge) / 3) % 3;
    (NAMES[from], NAMES[to])
}

fn key_of(from: &str, to: &str) -> EdgeKey {
    EdgeKey {
        from: id(from).hash(),
        to: id(to).hash(),
        relation: relation("r"),
    }
}

fn fresh() -> (MemoryStorage, Arc<Partition>) {
    let storage = MemoryStorage::new();
    let mut batch = Batch::new();
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let options = PartitionOptions::default();
    let partition =
        Partition::create_with(shared, P, config(), SlotRange::ALL, &mut batch, options);
    storage.write(batch, Durability::Sync).expect("writes");
    (storage, partition)
}

impl Replica {
    fn new(life: u8) -> Self {
        let (storage, partition) = fresh();
        Self {
            storage,
            partition,
            actor: ActorId([life; 16]),
            accepted: Vec::new(),
            saved: None,
            expelled: false,
        }
    }

    /// Commands of the log that it has applied; its creation is the first and not in the list.
    fn applied(&self) -> usize {
        (self.partition.sequence().0 - 1) as usize
    }

    fn held(&self) -> Vec<OverlayDelta> {
        let nothing = OverlayContext::default();
        self.partition.overlay_missing_from(&nothing, usize::MAX)
    }

    fn open(&mut self) {
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        self.partition = Partition::open(shared, P, None).expect("opens");
    }
}

impl Run {
    fn new() -> Self {
        let mut run = Self {
            log: Vec::new(),
            replicas: (0..REPLICAS).map(|n| Replica::new(200 - n as u8)).collect(),
            lives: 100,
            counter: 0,
            issued: Vec::new(),
            marked: BTreeMap::new(),
            undecided: false,
        };
        for name in NAMES {
            run.propose(Op::Remember(remember(name, None)));
        }
        run
    }

    fn propose(&mut self, op: Op) -> RequestId {
        self.counter += 1;
        self.log.push(write(self.counter, vec![op]));
        RequestId {
            client: CLIENT,
            counter: self.counter,
            index: 0,
        }
    }

    fn apply(&mut self, replica: usize, commands: usize) {
        let replica = &mut self.replicas[replica];
        let from = replica.applied();
        let until = from.saturating_add(commands).min(self.log.len());
        for command in &self.log[from..until] {
            replica
                .partition
                .apply(command, &bytes_of(command), Batch::new())
                .expect("applies");
        }
    }

    /// A replica that has the whole log, as a leader that may propose removals has.
    fn leader(&mut self) -> Arc<Partition> {
        self.apply(0, usize::MAX);
        Arc::clone(&self.replicas[0].partition)
    }

    fn accept(
        &mut self,
        replica: usize,
        request: RequestId,
        retried: bool,
        edge: u8,
        change: EdgeChange,
    ) {
        let (from, to) = edge_ends(edge);
        let change = LocalChange {
            request,
            retried,
            stamp: Hlc::from_millis(request.counter),
            from: id(from),
            to: id(to),
            relation: relation("r"),
            change,
        };
        let replica = &mut self.replicas[replica];
        let accepted = replica
            .partition
            .accept_local(replica.actor, &[change])
            .expect("accepts");
        for delta in accepted {
            let before = self.marked.insert(delta.dot, delta.clone());
            assert!(
                before.is_none_or(|before| before == delta),
                "a dot was used twice"
            );
            replica.accepted.push(delta);
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.counter += 1;
        RequestId {
            client: CLIENT,
            counter: self.counter,
            index: 0,
        }
    }

    fn pick(&self, replica: usize, which: u64) -> Vec<OverlayDelta> {
        let held = self.replicas[replica].held();
        let picked = |(place, delta): (usize, OverlayDelta)| {
            (which >> (place % 64) & 1 == 1).then_some(delta)
        };
        held.into_iter().enumerate().filter_map(picked).collect()
    }

    fn adopt(&mut self, deltas: Vec<OverlayDelta>) {
        if !deltas.is_empty() {
            self.log.push(PartitionCommand::Adopt { deltas });
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Associate { edge, weight } => {
                let (from, to) = edge_ends(edge);
                let weight = f64::from(weight) / 4.0;
                let request = self.propose(associate(from, to, weight));
                self.issued.push((request, edge, unit(weight)));
            }
            Action::Strengthen { replica, edge } => {
                let request = self.next_request();
                self.issued.push((request, edge, Unit::ONE));
                self.accept(replica, request, false, edge, evidence(Unit::ONE));
            }
            Action::Lose { edge, weight } => {
                let request = self.next_request();
                let weight = unit(f64::from(weight) / 4.0);
                self.issued.push((request, edge, weight));
            }
            Action::Retry { replica, back } => self.retry(replica, back),
            Action::Dissociate { edge } => {
                let (from, to) = edge_ends(edge);
                let context = self.leader().removal_context(&key_of(from, to));
                self.propose(dissociate(from, to, context));
            }
            Action::DissociateLocally { replica, edge } => {
                let request = self.next_request();
                let context = EdgeContext::default();
                self.accept(
                    replica,
                    request,
                    false,
                    edge,
                    EdgeChange::Remove { context },
                );
            }
            Action::Forget { name } => {
                let name = NAMES[usize::from(name)];
                let context = self.leader().forget_context(id(name).hash());
                self.propose(forget(name, context));
                self.propose(Op::Remember(remember(name, None)));
            }
            Action::Exchange {
                from,
                to,
                which,
                bytes,
            } => {
                let mut some = self.pick(from, which);
                let seen = self.replicas[to].partition.overlay_context();
                some.extend(
                    self.replicas[from]
                        .partition
                        .overlay_missing_from(&seen, bytes),
                );
                some.reverse();
                let received = self.replicas[to].partition.receive_overlay(&some);
                assert_eq!(received.expect("receives").conflicts, 0);
            }
            Action::Adopt { replica, which } => {
                let some = self.pick(replica, which);
                self.adopt(some);
            }
            Action::Apply { replica, commands } => self.apply(replica, commands),
            Action::Fold { adopt_first } => self.fold(adopt_first),
            Action::Crash { replica: n, kept } => {
                let replica = &mut self.replicas[n];
                let applied = replica.applied();
                replica.storage = replica.storage.crash(kept);
                self.lives += 1;
                replica.actor = ActorId([self.lives; 16]);
                replica.open();
                // It serves when it is where it was.
                let lost = applied - replica.applied();
                self.apply(n, lost);
            }
            Action::Transfer { from, to } => self.transfer(from, to),
            Action::Wipe { replica } => {
                self.lives += 1;
                // Removals that it issued may be on their way under an older context.
                self.undecided = true;
                self.replicas[replica] = Replica::new(self.lives);
            }
            Action::Save { replica } => self.save(replica),
            Action::Restore { replica } => self.restore(replica),
            Action::Expel { replica } => {
                let replica = &mut self.replicas[replica];
                replica.expelled = !replica.expelled;
                self.undecided = true;
            }
        }
    }

    /// All of it, so that the process may be taken for the one before.
    fn save(&mut self, n: usize) {
        let replica = &mut self.replicas[n];
        replica.saved = Some(replica.storage.crash(usize::MAX));
        replica.storage = replica.storage.crash(usize::MAX);
        replica.open();
    }

    /// What it had accepted since the copy may be nowhere else.
    fn restore(&mut self, n: usize) {
        let replica = &mut self.replicas[n];
        let Some(saved) = &replica.saved else {
            return;
        };
        replica.storage = saved.crash(usize::MAX);
        self.lives += 1;
        replica.actor = ActorId([self.lives; 16]);
        replica.open();
        let seen = replica.partition.overlay_context();
        replica.accepted.retain(|delta| seen.covers(delta.dot));
        self.undecided = true;
    }

    fn retry(&mut self, replica: usize, back: usize) {
        let Some(place) = self.issued.len().checked_sub(back) else {
            return;
        };
        let (request, edge, weight) = self.issued[place];
        self.undecided = true;
        if back.is_multiple_of(2) {
            self.accept(replica, request, true, edge, evidence(weight));
            return;
        }
        let (from, to) = edge_ends(edge);
        let command = write(request.counter, vec![associate(from, to, weight.to_f64())]);
        let PartitionCommand::Write(write) = command else {
            unreachable!("it is a write")
        };
        let retried = Write {
            retried: true,
            ..write
        };
        self.log.push(PartitionCommand::Write(retried));
    }

    /// As a primary decides it: under what all replicas have passed, once the log has all that they
    /// had seen.
    fn fold(&mut self, adopt_first: bool) {
        let current = self.replicas.iter().filter(|replica| !replica.expelled);
        let positions: Vec<ReplicaPosition> = current
            .map(|replica| replica.partition.position())
            .collect();
        let Some(passed) = positions.iter().map(|position| position.sequence).min() else {
            return;
        };
        if adopt_first {
            for replica in 0..REPLICAS {
                let all = self.pick(replica, u64::MAX);
                self.adopt(all);
            }
        }
        let leader = self.leader().view();
        let has_all =
            |position: &ReplicaPosition| leader.log_context().overlay.covers_all(&position.seen);
        if !positions.iter().all(has_all) {
            return;
        }
        let frontier = context_at(&self.log, passed);
        let scan = FoldScan {
            records_max: usize::MAX,
            contributions_min: 1,
        };
        let page = leader.foldable(&frontier, None, scan).expect("reads");
        let edges = page.edges;
        self.log.push(PartitionCommand::Fold { frontier, edges });
    }

    fn transfer(&mut self, from: usize, to: usize) {
        if self.replicas[from].applied() <= self.replicas[to].applied() {
            return;
        }
        let mut bytes = Vec::new();
        let snapshot = self.replicas[from].partition.snapshot().expect("saves");
        snapshot.write_to(&mut bytes).expect("writes");
        let to = &mut self.replicas[to];
        to.partition.retire();
        let shared: Arc<dyn Storage> = Arc::new(to.storage.clone());
        to.partition =
            Partition::install(shared, P, &mut bytes.as_slice(), Batch::new()).expect("installs");
    }

    fn check(&self) {
        for replica in &self.replicas {
            let log = &self.log[..replica.applied()];
            let conflicts = replica.partition.status().edge_conflicts;
            if self.undecided {
                continue;
            }
            assert_eq!(conflicts, 0, "a frontier that was not stable");
            let truth = Truth::of(log, &replica.held());
            for name in NAMES {
                let found = neighbors(&replica.partition, name, Direction::Out);
                let found: BTreeMap<String, (u64, u64)> = found
                    .edges
                    .iter()
                    .map(|edge| {
                        (
                            edge.to.to_string(),
                            (edge.weight.bits(), edge.contributions),
                        )
                    })
                    .collect();
                assert_eq!(found, truth.out(name), "out of {name}");
            }
        }
    }

    /// Everything is exchanged, adopted and applied.
    fn settle(&mut self) {
        for replica in 0..REPLICAS {
            let all = self.pick(replica, u64::MAX);
            self.adopt(all);
        }
        for replica in 0..REPLICAS {
            self.apply(replica, usize::MAX);
        }
        let first = self.replicas[0].partition.status();
        for replica in &self.replicas {
            let status = replica.partition.status();
            assert_eq!(status.edge_digest, first.edge_digest);
            assert_eq!(status.log_hash, first.log_hash);
            assert_eq!(status.edge_conflicts, first.edge_conflicts);
            assert_eq!(status.folded_edges, first.folded_edges);
            assert_eq!(status.overlay_deltas, 0);
            assert_eq!(
                replica.partition.position(),
                self.replicas[0].partition.position()
            );
            assert_eq!(replica.partition.position().held_digest, 0);
            let (found, view) = replica.partition.recompute_digests().expect("recomputes");
            assert_eq!(found, view.digests());
            let log = view.log_context();
            for delta in &replica.accepted {
                assert!(
                    log.overlay.covers(delta.dot),
                    "an acknowledged change is gone"
                );
            }
            let conflicts = view.conflicts(usize::MAX).expect("reads");
            assert_eq!(conflicts.len() as u64, status.edge_conflicts);
        }
        let range = crate::keys::all_source_removals(P);
        let storage = &self.replicas[0].storage;
        let waiting = crate::storage::Reader::scan(
            storage,
            crate::storage::Family::Edges,
            &range.start,
            &range.end,
            crate::storage::Order::Ascending,
        );
        let lives = BTreeSet::from([200, 199, 198]);
        if self
            .replicas
            .iter()
            .all(|replica| lives.contains(&replica.actor.0[0]))
        {
            assert_eq!(
                waiting.count(),
                0,
                "a removal has met all it named, and waits"
            );
        }
        self.check();
    }
}

fn evidence(weight: Unit) -> EdgeChange {
    EdgeChange::Contribute {
        weight,
        confidence: Unit::ONE,
    }
}

/// The log's context at a sequence.
fn context_at(log: &[PartitionCommand], sequence: Sequence) -> EdgeContext {
    let mut context = EdgeContext {
        sequence,
        ..EdgeContext::default()
    };
    // The creation is sequence 1, and not in the list.
    for command in &log[..(sequence.0 - 1) as usize] {
        if let PartitionCommand::Adopt { deltas } = command {
            deltas
                .iter()
                .for_each(|delta| context.overlay.insert(delta.dot));
        }
    }
    context
}

/// What edges must be worth: of all contributions those that no removal covers, each request once.
#[derive(Default)]
struct Truth {
    memories: BTreeSet<String>,
    contributions: BTreeMap<(EdgeKey, Dot), (String, Contribution)>,
    removals: Vec<(MemoryHash, Option<EdgeKey>, EdgeContext)>,
}

impl Truth {
    fn of(log: &[PartitionCommand], held: &[OverlayDelta]) -> Self {
        let mut truth = Self::default();
        for (index, command) in log.iter().enumerate() {
            match command {
                PartitionCommand::Write(write) => truth.write(index as u64 + 2, write),
                PartitionCommand::Adopt { deltas } => {
                    deltas.iter().for_each(|delta| truth.delta(delta));
                }
                _ => {}
            }
        }
        held.iter().for_each(|delta| truth.delta(delta));
        truth
    }

    fn write(&mut self, sequence: u64, write: &Write) {
        let dot = Dot::Log {
            partition: P,
            sequence: Sequence(sequence),
            index: 0,
        };
        for (index, op) in &write.ops {
            match op {
                Op::Associate(edge) => {
                    let key = key_of(edge.from.as_str(), edge.to.as_str());
                    let request = write.request_id(*index);
                    let held = Contribution::new(
                        edge.weight,
                        edge.confidence,
                        write.stamp,
                        request,
                        false,
                    );
                    let to = edge.to.to_string();
                    self.contributions.insert((key, dot), (to, held));
                }
                Op::Dissociate(edge) => {
                    let key = key_of(edge.from.as_str(), edge.to.as_str());
                    self.removals
                        .push((key.from, Some(key), edge.context.clone()));
                }
                Op::Forget(forget) => {
                    self.memories.remove(forget.id.as_str());
                    self.removals
                        .push((forget.id.hash(), None, forget.context.clone()));
                }
                Op::Remember(memory) => {
                    self.memories.insert(memory.id.to_string());
                }
                Op::RestoreMemory(_) | Op::RestoreEdge(_) => {}
            }
        }
    }

    fn delta(&mut self, delta: &OverlayDelta) {
        let key = key_of(delta.from.as_str(), delta.to.as_str());
        match &delta.change {
            EdgeChange::Remove { context } => {
                self.removals.push((key.from, Some(key), context.clone()));
            }
            EdgeChange::Contribute { weight, confidence } => {
                let held =
                    Contribution::new(*weight, *confidence, delta.stamp, delta.request, false);
                let dot = Dot::Overlay(delta.dot);
                self.contributions
                    .insert((key, dot), (delta.to.to_string(), held));
            }
        }
    }

    fn out(&self, name: &str) -> BTreeMap<String, (u64, u64)> {
        let from = id(name).hash();
        let mut requests = BTreeSet::new();
        let mut sums: BTreeMap<String, (u128, u128, u64)> = BTreeMap::new();
        for ((key, dot), (to, held)) in &self.contributions {
            let is_removed = self.removals.iter().any(|(of, edge, context)| {
                *of == key.from
                    && edge.as_ref().is_none_or(|edge| edge == key)
                    && context.covers(dot)
            });
            let is_hidden = !self.memories.contains(name) || !self.memories.contains(to);
            if key.from != from || is_hidden || is_removed || !requests.insert((key, held.request))
            {
                continue;
            }
            let sum = sums.entry(to.clone()).or_default();
            sum.0 += u128::from(held.wc.bits());
            sum.1 += u128::from(held.c.bits());
            sum.2 += 1;
        }
        let weigh = |(to, (wc, c, count)): (String, (u128, u128, u64))| {
            (to, (((wc << 32) / c) as u64, count))
        };
        sums.into_iter().map(weigh).collect()
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn edges_are_worth_what_the_operations_say(actions in actions(false)) {
        let mut run = Run::new();
        for action in &actions {
            run.act(action);
            run.check();
        }
        run.settle();
    }

    #[test]
    fn replicas_end_equal_whatever_became_of_them(actions in actions(true)) {
        let mut run = Run::new();
        for action in &actions {
            run.act(action);
            run.check();
        }
        run.settle();
    }
}
