//! Nodes in one thread: calls are answered at once, lost, or answered too late, as a test says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::command::{EdgeChange, OverlayDelta, PartitionCommand};
use engram_core::partition::{LocalChange, Partition};
use engram_core::storage::Batch;
use engram_core::types::{
    ActorId, ClientId, Hlc, MemoryId, NodeId, PartitionId, Relation, RequestId, Sequence,
    SlotRange, Unit,
};

use super::peers::{BACK_OFF_MAX, QUIET_PERIOD};
use super::protocol::Totals;
use super::*;
use crate::routing::fakes::partition;

const P: PartitionId = PartitionId(3);
const CLUSTER: [u8; 16] = [4; 16];
const STEP: Duration = Duration::from_millis(10);

struct Node {
    protocol: Protocol,
    places: Places,
    heard: Vec<Rumour>,
}

struct Net {
    now: Duration,
    nodes: BTreeMap<NodeId, Node>,
    /// Pairs that do not reach each other.
    cut: BTreeSet<(u64, u64)>,
    log: Vec<PartitionCommand>,
    calls: usize,
}

fn replica() -> Arc<Partition> {
    partition(P, SlotRange::ALL)
}

fn change(counter: u64, change: EdgeChange) -> LocalChange {
    LocalChange {
        request: RequestId {
            client: ClientId([1; 16]),
            counter,
            index: 0,
        },
        retried: false,
        stamp: Hlc::from_millis(counter),
        from: MemoryId::new("a").unwrap(),
        to: MemoryId::new("b").unwrap(),
        relation: Relation::new("r").unwrap(),
        change,
    }
}

fn evidence(counter: u64) -> LocalChange {
    let change_of = EdgeChange::Contribute {
        weight: Unit::ONE,
        confidence: Unit::ONE,
    };
    change(counter, change_of)
}

impl Net {
    /// Nodes 1 to `count`, each with a replica; the first leads.
    fn of(count: u64) -> Self {
        let node = |n: u64| {
            let place = Place {
                partition: replica(),
                others: (1..=count)
                    .filter(|other| *other != n)
                    .map(NodeId)
                    .collect(),
                leads: n == 1,
            };
            let node = Node {
                protocol: Protocol::new(NodeId(n), CLUSTER, n << 32, Duration::ZERO),
                places: BTreeMap::from([(P, place)]),
                heard: Vec::new(),
            };
            (NodeId(n), node)
        };
        Self {
            now: Duration::ZERO,
            nodes: (1..=count).map(node).collect(),
            cut: BTreeSet::new(),
            log: Vec::new(),
            calls: 0,
        }
    }

    fn partition(&self, n: u64) -> &Partition {
        &self.nodes[&NodeId(n)].places[&P].partition
    }

    fn accept(&mut self, n: u64, changes: &[LocalChange]) -> Vec<OverlayDelta> {
        let deltas = self
            .partition(n)
            .accept_local(ActorId([n as u8; 16]), changes)
            .unwrap();
        let event = Event::Accepted {
            partition: P,
            deltas: deltas.clone(),
        };
        self.event(NodeId(n), event);
        deltas
    }

    fn event(&mut self, at: NodeId, event: Event) {
        let node = self.nodes.get_mut(&at).unwrap();
        let effects = node.protocol.step(self.now, &node.places, event);
        for effect in effects {
            self.carry_out(at, effect);
        }
    }

    fn carry_out(&mut self, from: NodeId, effect: Effect) {
        match effect {
            Effect::Call { node, request, .. } => {
                self.calls += 1;
                let pair = (from.0.min(node.0), from.0.max(node.0));
                if self.cut.contains(&pair) {
                    return self.event(from, Event::Failed { node });
                }
                let asked = self.nodes.get_mut(&node).unwrap();
                let answer = asked.protocol.serve(self.now, &asked.places, request);
                let event = match answer {
                    Ok(answer) => Event::Answered { node, answer },
                    Err(_) => Event::Failed { node },
                };
                self.event(from, event);
            }
            Effect::Announce(rumour) => {
                self.nodes.get_mut(&from).unwrap().heard.push(rumour);
            }
            Effect::Propose {
                partition, command, ..
            } => {
                assert_eq!(from, NodeId(1), "only the leader proposes");
                self.apply(command);
                self.event(
                    from,
                    Event::Proposed {
                        partition,
                        applied: true,
                    },
                );
            }
        }
    }

    /// The log reaches every replica at once.
    fn apply(&mut self, command: PartitionCommand) {
        for node in self.nodes.values() {
            node.places[&P]
                .partition
                .apply(&command, b"command", Batch::new())
                .unwrap();
        }
        self.log.push(command);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            for at in self.nodes.keys().copied().collect::<Vec<_>>() {
                let next = self.nodes[&at].protocol.next_tick(self.now);
                if next <= self.now {
                    self.event(at, Event::Tick);
                }
            }
        }
    }

    fn totals(&self, n: u64) -> Totals {
        self.nodes[&NodeId(n)].protocol.totals()
    }

    fn leader(&mut self, leads: bool) {
        let first = self.nodes.get_mut(&NodeId(1)).unwrap();
        first.places.get_mut(&P).unwrap().leads = leads;
    }
}

#[test]
fn changes_reach_every_replica_and_the_log() {
    let mut net = Net::of(3);
    net.leader(false);
    net.run(Duration::from_millis(100));
    net.accept(2, &[evidence(1), evidence(2)]);
    net.accept(3, &[evidence(3)]);
    net.run(Duration::from_millis(100));
    for n in 1..=3 {
        assert_eq!(net.partition(n).status().overlay_deltas, 3, "node {n}");
        assert_eq!(
            net.partition(n).position().held_digest,
            net.partition(1).position().held_digest
        );
    }
    net.leader(true);
    net.run(Duration::from_secs(1));
    for n in 1..=3 {
        let status = net.partition(n).status();
        assert_eq!((status.overlay_deltas, status.edges), (0, 1));
    }
    let adopted = net.log.iter().map(|command| match command {
        PartitionCommand::Adopt { deltas } => deltas.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(adopted.sum::<usize>(), 3, "nothing is adopted twice");
    assert_eq!(net.totals(1).divergences, 0);
}

#[test]
fn a_way_around_a_cut_is_found_and_the_cut_heals_soon() {
    let mut net = Net::of(3);
    net.leader(false);
    net.cut.insert((1, 2));
    net.accept(2, &[evidence(1)]);
    net.run(Duration::from_millis(100));
    assert_eq!(
        net.partition(1).status().overlay_deltas,
        1,
        "through node 3"
    );

    net.cut.extend([(1, 3), (2, 3)]);
    let many: Vec<LocalChange> = (10..5_000).map(evidence).collect();
    net.accept(2, &many);
    net.run(Duration::from_secs(30));
    assert_eq!(net.partition(1).status().overlay_deltas, 1);
    net.cut.clear();
    net.run(BACK_OFF_MAX + Duration::from_millis(100));
    for n in 1..=3 {
        assert_eq!(net.partition(n).status().overlay_deltas, 4_991, "node {n}");
    }
}

#[test]
fn quiet_replicas_speak_seldom() {
    let mut net = Net::of(3);
    for node in 1..=3 {
        // A protocol knows when it is due only once it has seen the map.
        net.event(NodeId(node), Event::Tick);
    }
    net.run(Duration::from_secs(1));
    let before = net.calls;
    net.run(10 * QUIET_PERIOD);
    let calls = net.calls - before;
    assert!(
        (54..=66).contains(&calls),
        "{calls} calls of six pairs in ten periods"
    );
}

/// A change that the other side never takes must not be sent in a loop.
#[test]
fn what_is_refused_is_not_sent_in_a_loop() {
    let mut net = Net::of(2);
    net.leader(false);
    net.run(Duration::from_millis(100));
    // The same dot marks different changes on both sides.
    for (n, counter) in [(1, 1), (2, 2)] {
        let forged = net
            .partition(n)
            .accept_local(ActorId([9; 16]), &[evidence(counter)]);
        assert!(forged.is_ok());
    }
    net.accept(1, &[evidence(3)]);
    let before = net.calls;
    net.run(Duration::from_secs(10));
    assert!(net.calls - before < 200, "{} calls", net.calls - before);
    assert_eq!(net.partition(2).status().overlay_deltas, 2);
    assert!(
        net.totals(1).divergences + net.totals(2).divergences > 0,
        "an alarm"
    );
}

#[test]
fn rumours_bring_changes_and_calls() {
    let mut net = Net::of(2);
    net.leader(false);
    net.run(Duration::from_millis(100));
    net.cut.insert((1, 2));
    net.accept(2, &[evidence(1)]);
    net.run(Duration::from_secs(1));
    let told = std::mem::take(&mut net.nodes.get_mut(&NodeId(2)).unwrap().heard);
    assert!(told.iter().any(|rumour| matches!(
        rumour,
        Rumour::Seen {
            node: NodeId(2),
            ..
        }
    )));
    for rumour in told {
        net.event(NodeId(1), Event::Heard(rumour));
    }
    assert_eq!(
        net.partition(1).status().overlay_deltas,
        1,
        "the hint itself"
    );
    let elsewhere = Rumour::Seen {
        partition: PartitionId(99),
        node: NodeId(2),
        version: 1,
        seen_hash: 0,
    };
    net.event(NodeId(1), Event::Heard(elsewhere));
}

#[test]
fn nothing_is_told_to_another_cluster() {
    let mut net = Net::of(2);
    net.nodes.get_mut(&NodeId(2)).unwrap().protocol =
        Protocol::new(NodeId(2), [5; 16], 1, Duration::ZERO);
    net.accept(1, &[evidence(1)]);
    net.run(Duration::from_secs(1));
    assert_eq!(net.partition(2).status().overlay_deltas, 0);
    assert!(net.totals(1).failed > 0);
}

#[test]
fn what_all_have_passed_is_folded() {
    let mut net = Net::of(3);
    net.cut.insert((1, 3));
    for counter in 1..200 {
        net.accept(2, &[evidence(counter)]);
        net.run(STEP);
    }
    net.run(Duration::from_secs(30));
    let folds = |net: &Net| {
        let folds = net
            .log
            .iter()
            .filter(|c| matches!(c, PartitionCommand::Fold { .. }));
        folds.count()
    };
    assert_eq!(folds(&net), 0, "nobody knows where node 3 is");
    net.cut.clear();
    net.run(Duration::from_secs(30));
    assert!(folds(&net) > 0);
    let status = net.partition(2).status();
    assert_eq!((status.edges, status.folded_edges), (1, 1));
    // A removal issued anywhere now has seen the base.
    net.accept(
        3,
        &[change(
            900,
            EdgeChange::Remove {
                context: Default::default(),
            },
        )],
    );
    net.run(Duration::from_secs(1));
    for n in 1..=3 {
        let status = net.partition(n).status();
        assert_eq!((status.edges, status.edge_conflicts), (0, 0), "node {n}");
    }
    assert!(net.partition(1).sequence() > Sequence(64));
}

#[test]
fn changes_that_never_cease_do_not_put_folding_off() {
    let mut net = Net::of(3);
    for counter in 1..1_000 {
        // Whenever the leader looks, there is something to adopt.
        net.accept(1, &[evidence(counter)]);
        net.run(STEP);
    }
    let status = net.partition(1).status();
    assert_eq!((status.edges, status.folded_edges), (1, 1));
    assert_eq!(status.edge_conflicts, 0);
}
