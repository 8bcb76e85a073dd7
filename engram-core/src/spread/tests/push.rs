//! `async` spreads under any order, doubling, delay and death: credit adds up at every step,
//! nothing is lost without a fault, and the bound is never smaller than the true error.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::super::{
    Control, Directions, Finished, INJECTED_MAX, NotLinear, PlanError, Push, PushCoordinator,
    PushReport, PushReportError, Pusher, QueryId, ReportEnd, Seed, SpreadMode, SpreadParameters,
    SpreadPlan, SpreadStart, check_rules,
};
use super::arrays::Projecting;
use super::cluster::{Arrays, COORDINATOR, Dice, layout};
use super::graph::{Graph, graphs, hash, id, parameters, seeds};
use super::truth;
use crate::cases::cases;
use crate::types::{NodeId, Unit};

/// A wrong implementation, as its effect on what is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// A doubled push is taken for another one.
    DoubledPush,
    /// Reports are numbered as they arrive, so that a doubled one is taken for another one.
    DoubledReport,
    /// A push arrives without its activation, its credit intact.
    EmptiedPush,
    /// Activation grows on its way.
    GrownPush,
    /// A node that has sent something says that it has not: what it consumed is forgotten.
    SilentConsumption,
}

/// What goes wrong in a run besides order and doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    None,
    /// Nodes die in the middle of anything; some are excluded, some only missed at the end.
    Deaths,
}

#[derive(Clone)]
enum Message {
    Start(Vec<u8>),
    Push(Vec<u8>),
    Control(Vec<u8>),
    Report(Vec<u8>),
}

/// Credit on its way, by what carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Carrier {
    Start(NodeId),
    Push(NodeId, NodeId, u64),
    Control(NodeId, u64),
    Report(NodeId, u64),
}

struct World<'a> {
    graph: &'a Graph,
    arrays: Arrays,
    dice: Dice,
    bug: Bug,
    coordinator: PushCoordinator,
    nodes: BTreeMap<NodeId, Pusher<Projecting<'a>>>,
    dead: BTreeSet<NodeId>,
    network: Vec<(NodeId, NodeId, Message)>,
    flying: BTreeMap<Carrier, u64>,
    doubles_left: u32,
    fresh: u64,
    /// Reports that have arrived, by source.
    arrived: BTreeMap<NodeId, u64>,
    finished: Option<Finished>,
}

impl<'a> World<'a> {
    fn new(graph: &'a Graph, plan: SpreadPlan, schedule: u64, bug: Bug) -> Self {
        let mut dice = Dice(schedule);
        let arrays = match dice.below(2) {
            0 => Arrays::None,
            _ => Arrays::Aged(schedule),
        };
        // So little credit that steps run out of it again and again, or more than they need.
        let (start, grant) = match dice.below(3) {
            0 => (1, 1),
            1 => (3, 7),
            _ => (1 << 40, 1 << 20),
        };
        let coordinator = PushCoordinator::with_credit(plan, start, grant).expect("a sound plan");
        let mut world = Self {
            graph,
            arrays,
            dice,
            bug,
            nodes: BTreeMap::new(),
            dead: BTreeSet::new(),
            network: Vec::new(),
            flying: BTreeMap::new(),
            doubles_left: 300,
            fresh: 1 << 40,
            arrived: BTreeMap::new(),
            finished: None,
            coordinator,
        };
        for (node, start) in world.coordinator.starts() {
            world.flying.insert(Carrier::Start(node), start.credit);
            let bytes = start.encode();
            world
                .network
                .push((COORDINATOR, node, Message::Start(bytes)));
        }
        world
    }

    /// Until nothing moves any more, or the answer is there.
    fn run(mut self, faults: Faults) -> Result<Finished, String> {
        let mut deaths_left = if faults == Faults::Deaths {
            1 + self.dice.below(3)
        } else {
            0
        };
        for _ in 0..200_000 {
            self.check_credit()?;
            if let Some(finished) = self.finished.take() {
                self.farewell();
                return Ok(finished);
            }
            let busy: Vec<NodeId> = self
                .nodes
                .iter()
                .filter(|(_, node)| node.has_work())
                .map(|(node, _)| *node)
                .collect();
            if deaths_left > 0 && self.dice.below(12) == 0 {
                deaths_left -= 1;
                self.kill();
            } else if !self.dead.is_empty() && self.dice.below(25) == 0 {
                self.exclude_one();
            } else if !busy.is_empty() && (self.network.is_empty() || self.dice.below(3) == 0) {
                let node = busy[self.dice.below(busy.len())];
                let budget = 1 + self.dice.below(5);
                self.work(node, budget);
            } else if !self.network.is_empty() {
                self.deliver();
            } else if faults == Faults::None {
                return Err("nothing moves, and the query is not over".into());
            } else {
                // What a deadline does.
                let directions = self.coordinator.give_up();
                self.follow(directions);
            }
        }
        Err("it never ends".into())
    }

    fn work(&mut self, node: NodeId, budget: usize) {
        let pusher = self.nodes.get_mut(&node).expect("it has work");
        let step = pusher.work(budget).expect("the graph can be read");
        for (to, push) in step.pushes {
            let carrier = Carrier::Push(node, to, push.sequence);
            self.flying.insert(carrier, push.credit);
            self.network.push((node, to, Message::Push(push.encode())));
        }
        if let Some(mut report) = step.report {
            let carrier = Carrier::Report(node, report.sequence);
            self.flying.insert(carrier, report.credit);
            if self.bug == Bug::SilentConsumption && !report.sent.is_empty() {
                report.consumed.clear();
            }
            let bytes = report.encode();
            self.network
                .push((node, COORDINATOR, Message::Report(bytes)));
        }
    }

    fn deliver(&mut self) {
        let chosen = self.dice.below(self.network.len());
        let (from, to, message) = self.network.swap_remove(chosen);
        if self.dead.contains(&to) {
            return;
        }
        if self.doubles_left > 0 && self.dice.below(4) == 0 {
            self.doubles_left -= 1;
            self.network.push((from, to, message.clone()));
        }
        match message {
            Message::Start(bytes) => self.start(to, &bytes),
            Message::Report(bytes) => self.report(&bytes),
            Message::Control(bytes) => {
                // The node keeps what comes before the start.
                let Some(node) = self.nodes.get_mut(&to) else {
                    self.network.push((from, to, Message::Control(bytes)));
                    return;
                };
                let control = Control::decode(&bytes).expect("its own bytes");
                let _ = node.on_control(&control);
                self.flying.remove(&Carrier::Control(to, control.number));
            }
            Message::Push(bytes) => {
                if !self.nodes.contains_key(&to) {
                    self.network.push((from, to, Message::Push(bytes)));
                    return;
                }
                self.push(to, &bytes);
            }
        }
    }

    fn start(&mut self, to: NodeId, bytes: &[u8]) {
        let start = SpreadStart::decode(bytes).expect("its own bytes");
        let (graph, arrays) = (self.graph, self.arrays);
        let own = start.participants.iter().find(|plan| plan.node == to);
        let parts = own
            .expect("it takes part")
            .partitions
            .iter()
            .map(|plan| (plan.partition, arrays.of(graph, plan.slots)))
            .collect();
        let node = self
            .nodes
            .entry(to)
            .or_insert_with(|| Pusher::new(start, to, parts).expect("a sound start"));
        node.begin();
        self.flying.remove(&Carrier::Start(to));
    }

    fn push(&mut self, to: NodeId, bytes: &[u8]) {
        let mut push = Push::decode(bytes).expect("its own bytes");
        let carrier = Carrier::Push(push.source, to, push.sequence);
        match self.bug {
            Bug::EmptiedPush => push.sections.clear(),
            Bug::DoubledPush if !self.flying.contains_key(&carrier) => {
                self.fresh += 1;
                push.sequence = self.fresh;
            }
            Bug::GrownPush => {
                let arrivals = push.sections.iter_mut().flat_map(|one| &mut one.arrivals);
                arrivals.for_each(|(_, amount)| *amount += 1);
            }
            _ => {}
        }
        let node = self.nodes.get_mut(&to).expect("it has started");
        let credit = node.credit();
        let _ = node.on_push(&push).expect("a sound push");
        // An excluded source is not listened to any more: its credit is lost.
        if node.credit() > credit {
            self.flying.remove(&carrier);
        }
    }

    fn report(&mut self, bytes: &[u8]) {
        let mut report = PushReport::decode(bytes).expect("its own bytes");
        let carrier = Carrier::Report(report.source, report.sequence);
        if self.bug == Bug::DoubledReport {
            let arrived = self.arrived.entry(report.source).or_default();
            *arrived += 1;
            report.sequence = *arrived;
        }
        let before = self.coordinator.credit().1;
        let credit = u128::from(report.credit);
        let directions = self.coordinator.on_report(report).expect("a participant");
        if credit == 0 || self.coordinator.credit().1 > before {
            self.flying.remove(&carrier);
        }
        self.follow(directions);
    }

    fn follow(&mut self, directions: Directions) {
        for (node, control) in directions.controls {
            let carrier = Carrier::Control(node, control.number);
            self.flying.insert(carrier, control.credit);
            let bytes = control.encode();
            self.network
                .push((COORDINATOR, node, Message::Control(bytes)));
        }
        if let Some(finished) = directions.finished {
            assert!(self.finished.replace(finished).is_none(), "finished twice");
        }
    }

    /// A node stops; of what it sent, some is lost.
    fn kill(&mut self) {
        let nodes = self.coordinator.starts();
        let (node, _) = &nodes[self.dice.below(nodes.len())];
        self.dead.insert(*node);
        // Its credit is lost with it.
        self.nodes.remove(node).into_iter().for_each(|pusher| {
            self.fresh += 1;
            self.flying
                .insert(Carrier::Control(*node, self.fresh), pusher.credit());
        });
        let dice = &mut self.dice;
        self.network
            .retain(|(from, _, _)| from != node || dice.below(2) == 0);
    }

    fn exclude_one(&mut self) {
        let dead: Vec<NodeId> = self.dead.iter().copied().collect();
        let node = dead[self.dice.below(dead.len())];
        let directions = self.coordinator.exclude([node]);
        self.follow(directions);
    }

    /// After the farewell nobody has anything to do.
    fn farewell(&mut self) {
        for (node, control) in self.coordinator.farewell() {
            if let Some(pusher) = self.nodes.get_mut(&node) {
                let _ = pusher.on_control(&control);
                assert!(pusher.is_over() && !pusher.has_work());
            }
        }
    }

    fn check_credit(&self) -> Result<(), String> {
        let (granted, returned) = self.coordinator.credit();
        let held: u128 = self
            .nodes
            .values()
            .map(|node| u128::from(node.credit()))
            .sum();
        let flying: u128 = self.flying.values().map(|credit| u128::from(*credit)).sum();
        if granted == returned + held + flying {
            return Ok(());
        }
        Err(format!(
            "{granted} credit given, {returned} back, {held} held, {flying} on its way"
        ))
    }
}

fn linear(rules: SpreadParameters) -> SpreadParameters {
    SpreadParameters {
        hops: rules.hops,
        decay: rules.decay,
        relations: rules.relations,
        relation_factors: rules.relation_factors,
        limit: usize::MAX,
        ..SpreadParameters::default()
    }
}

fn plan(
    (partitions, nodes): (u32, u64),
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
    cut_off: u64,
) -> SpreadPlan {
    let seed = |(index, amount): &(usize, u64)| Seed {
        memory: hash(*index),
        slot: id(*index).hash_slot(),
        amount: *amount,
    };
    SpreadPlan {
        query: QueryId([7; 16]),
        attempt: 1,
        coordinator: COORDINATOR,
        participants: layout(partitions, nodes),
        unreachable: Vec::new(),
        mode: SpreadMode::Async { cut_off },
        parameters: rules.clone(),
        filter: String::new(),
        now_millis: 5,
        seeds: seeds.iter().map(seed).collect(),
    }
}

/// So that nothing saturates.
fn small(seeds: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
    let each = INJECTED_MAX / 8;
    seeds
        .into_iter()
        .map(|(seed, amount)| (seed, amount.min(each)))
        .collect()
}

#[derive(Clone, Debug)]
struct Case {
    graph: Graph,
    rules: SpreadParameters,
    seeds: Vec<(usize, u64)>,
    layout: (u32, u64),
    schedule: u64,
    cut_off: u64,
}

fn runs() -> impl Strategy<Value = Case> {
    let layouts = prop::sample::select(vec![(1, 1), (2, 2), (3, 3), (8, 3), (8, 8), (32, 5)]);
    let cut_off = prop_oneof![3 => Just(0), 1 => 1_u64..1 << 33];
    (
        graphs(),
        parameters(),
        seeds(),
        layouts,
        any::<u64>(),
        cut_off,
    )
        .prop_map(|(graph, rules, seeds, layout, schedule, cut_off)| Case {
            graph,
            rules: linear(rules),
            seeds: small(seeds),
            layout,
            schedule,
            cut_off,
        })
}

fn run(case: &Case, faults: Faults, bug: Bug) -> Result<Finished, String> {
    let plan = plan(case.layout, &case.rules, &case.seeds, case.cut_off);
    let participants = plan.participants.clone();
    let world = World::new(&case.graph, plan, case.schedule, bug);
    let finished = world.run(faults)?;
    let truth = truth::truth(&case.graph, &case.rules, &case.seeds);
    truth::check(&case.graph, &participants, &truth, &finished)?;
    Ok(finished)
}

fn check_faultless(case: &Case, bug: Bug) -> Result<(), String> {
    let finished = run(case, Faults::None, bug)?;
    let accounting = &finished.accounting;
    if !accounting.missing.is_empty() || accounting.lost_share() > 0.0 {
        return Err(format!("{:?} is missing", accounting.missing));
    }
    if finished.end != ReportEnd::Complete || !finished.excluded.is_empty() {
        return Err("not complete".into());
    }
    let partitions = case.layout.0 as usize;
    if finished.pinned.len() != partitions {
        return Err(format!("{} of {partitions} pinned", finished.pinned.len()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn without_faults_nothing_is_lost_but_rounding(case in runs()) {
        check_faultless(&case, Bug::None).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn the_bound_holds_when_nodes_die(case in runs()) {
        run(&case, Faults::Deaths, Bug::None).map_err(TestCaseError::fail)?;
    }
}

/// A report names only what no earlier one has named. Where an earlier one is lost, the later ones
/// must not count for memories without a name: the answer would lack them, and no bound say so.
#[test]
fn what_was_reported_behind_a_lost_report_is_missing() {
    // The first has the greatest effect; the others all lead to it.
    let edges: Vec<(usize, usize, &str, f64)> = (1..9).map(|other| (other, 0, "is", 1.0)).collect();
    let graph = Graph::new(9, &edges);
    let rules = SpreadParameters {
        hops: 1,
        decay: Unit::ONE,
        ..SpreadParameters::default()
    };
    let seeds: Vec<(usize, u64)> = std::iter::once((0, 130))
        .chain((1..9).map(|other| (other, 127)))
        .collect();
    let plan = plan((1, 1), &rules, &seeds, 0);
    let participants = plan.participants.clone();
    let mut coordinator = PushCoordinator::new(plan).expect("a sound plan");
    let (node, start) = coordinator.starts().remove(0);
    let slots = start.participants[0].partitions[0];
    let parts = vec![(slots.partition, Arrays::None.of(&graph, slots.slots))];
    let mut pusher = Pusher::new(start, node, parts).expect("a sound start");
    pusher.begin();
    let mut report = |pushes_max| {
        let step = pusher.work(pushes_max).expect("the graph can be read");
        step.report.expect("it did something")
    };
    let (lost, late) = (report(1), report(100));
    assert!(lost.names.contains_key(&hash(0)) && !late.names.contains_key(&hash(0)));
    assert!(late.counted.contains_key(&hash(0)));

    let directions = coordinator.on_report(late).expect("a participant");
    assert!(directions.finished.is_none());
    let finished = coordinator.give_up().finished.expect("it gave up");
    let truth = truth::truth(&graph, &rules, &seeds);
    truth::check(&graph, &participants, &truth, &finished).expect("the bound holds");
    assert_eq!(finished.accounting.missing_total(), 130 + 8 * 127);
}

#[test]
fn reports_that_wait_for_an_earlier_one_are_bounded() {
    let graph = Graph::new(1, &[]);
    let plan = plan((1, 1), &SpreadParameters::default(), &[(0, 1)], 0);
    let mut coordinator = PushCoordinator::new(plan).expect("a sound plan");
    let (node, start) = coordinator.starts().remove(0);
    let slots = start.participants[0].partitions[0];
    let parts = vec![(slots.partition, Arrays::None.of(&graph, slots.slots))];
    let mut pusher = Pusher::new(start, node, parts).expect("a sound start");
    pusher.begin();
    let step = pusher.work(1).expect("the graph can be read");
    let mut report = step.report.expect("it did something");
    let refused = (2..10_000).find_map(|sequence| {
        report.sequence = sequence;
        coordinator.on_report(report.clone()).err()
    });
    assert_eq!(refused, Some(PushReportError::TooManyAhead(node)));
    // The one that all wait for is taken all the same.
    report.sequence = 1;
    assert!(coordinator.on_report(report).is_ok());
}

/// Of a fixed list of runs, those where a bug shows.
fn caught(bug: Bug) -> usize {
    let mut runner = TestRunner::deterministic();
    let strategy = runs();
    let shows = |_: &u32| {
        let case = strategy.new_tree(&mut runner).expect("a case").current();
        check_faultless(&case, bug).is_err()
    };
    (0..400).filter(shows).count()
}

#[test]
fn the_checker_catches_planted_bugs() {
    assert_eq!(caught(Bug::None), 0);
    for bug in [
        Bug::DoubledPush,
        Bug::DoubledReport,
        Bug::EmptiedPush,
        Bug::GrownPush,
        Bug::SilentConsumption,
    ] {
        let caught = caught(bug);
        assert!(caught > 20, "{bug:?}: {caught}");
    }
}

#[test]
fn rules_that_are_not_linear_are_refused() {
    let plain = SpreadParameters::default;
    let refused = [
        SpreadParameters {
            threshold: 1,
            ..plain()
        },
        SpreadParameters {
            revisit: Unit::ZERO,
            ..plain()
        },
        SpreadParameters {
            refractory_hops: 1,
            ..plain()
        },
        SpreadParameters {
            fan_limit: Some(3),
            ..plain()
        },
        SpreadParameters {
            explain: true,
            ..plain()
        },
        SpreadParameters {
            normalization: super::super::Normalization::None,
            ..plain()
        },
    ];
    assert_eq!(check_rules(&plain()), Ok(()));
    for rules in refused {
        let NotLinear { rule } = check_rules(&rules).expect_err("not linear");
        let refused = PushCoordinator::new(plan((2, 2), &rules, &[(0, 1)], 0)).err();
        assert_eq!(refused, Some(PlanError::NotLinear(NotLinear { rule })));
    }
}
