//! `exact` spreads whose nodes die: the others end, and the answer says what it lacks.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{
    Control, Coordinator, Directions, Finished, Frame, INJECTED_MAX, Participant, Report,
    SpreadParameters, SpreadPlan, SpreadStart, Step,
};
use super::arrays::Projecting;
use super::cluster::{Arrays, COORDINATOR, Dice, layout, participant, plan};
use super::graph::{Graph, graphs, parameters, seeds};
use super::truth;
use crate::cases::cases;
use crate::types::NodeId;

#[derive(Clone)]
enum Message {
    Start(Vec<u8>),
    Frame(Vec<u8>),
    Control(Vec<u8>),
    Report(Vec<u8>),
}

struct World<'a> {
    graph: &'a Graph,
    dice: Dice,
    arrays: Arrays,
    coordinator: Coordinator,
    nodes: BTreeMap<NodeId, Participant<Projecting<'a>>>,
    dead: BTreeSet<NodeId>,
    network: Vec<(NodeId, NodeId, Message)>,
    finished: Option<Finished>,
}

impl<'a> World<'a> {
    fn new(graph: &'a Graph, plan: SpreadPlan, schedule: u64) -> Self {
        let mut dice = Dice(schedule);
        let arrays = match dice.below(2) {
            0 => Arrays::None,
            _ => Arrays::Aged(schedule),
        };
        let coordinator = Coordinator::new(plan).expect("a sound plan");
        let starts = coordinator.starts().into_iter();
        Self {
            graph,
            dice,
            arrays,
            network: starts
                .map(|(node, start)| (COORDINATOR, node, Message::Start(start.encode())))
                .collect(),
            coordinator,
            nodes: BTreeMap::new(),
            dead: BTreeSet::new(),
            finished: None,
        }
    }

    fn run(mut self, deaths: usize, gives_up: bool) -> Result<Finished, String> {
        let (mut deaths_left, mut doubles_left) = (deaths, 200);
        for _ in 0..100_000 {
            if let Some(finished) = self.finished.take() {
                return Ok(finished);
            }
            if deaths_left > 0 && self.dice.below(10) == 0 {
                deaths_left -= 1;
                self.kill();
            } else if self.network.is_empty() || !gives_up && self.dice.below(15) == 0 {
                let idle = self.network.is_empty();
                let directions = if idle && gives_up {
                    self.coordinator.give_up()
                } else {
                    // All that are dead by now; when nothing moves there is nobody else to wait for.
                    let dead: Vec<NodeId> = self.dead.iter().copied().collect();
                    self.coordinator.exclude(dead)
                };
                let directions = directions.map_err(|error| error.to_string())?;
                let moved = !directions.controls.is_empty() || directions.finished.is_some();
                if idle && !moved {
                    return Err(format!("nothing moves, {:?} are dead", self.dead));
                }
                self.follow(directions);
            } else {
                self.deliver(&mut doubles_left)?;
            }
        }
        Err("it never ends".into())
    }

    fn deliver(&mut self, doubles_left: &mut u32) -> Result<(), String> {
        let chosen = self.dice.below(self.network.len());
        let (from, to, message) = self.network.swap_remove(chosen);
        if self.dead.contains(&to) {
            return Ok(());
        }
        if *doubles_left > 0 && self.dice.below(4) == 0 {
            *doubles_left -= 1;
            self.network.push((from, to, message.clone()));
        }
        let (graph, arrays) = (self.graph, self.arrays);
        let step = match message {
            Message::Start(bytes) => {
                let start = SpreadStart::decode(&bytes).expect("its own bytes");
                let node = self.nodes.entry(to);
                let node = node.or_insert_with(|| participant(graph, start, to, arrays));
                node.begin()
            }
            Message::Report(bytes) => {
                let report = Report::decode(&bytes).expect("its own bytes");
                let finished = self.coordinator.on_report(report);
                let finished = finished.map_err(|error| error.to_string())?;
                self.finished = finished.or(self.finished.take());
                return Ok(());
            }
            Message::Frame(bytes) => match self.nodes.get_mut(&to) {
                None => {
                    self.network.push((from, to, Message::Frame(bytes)));
                    return Ok(());
                }
                Some(node) => node.on_frame(Frame::decode(&bytes).expect("its own bytes")),
            },
            Message::Control(bytes) => match self.nodes.get_mut(&to) {
                None => {
                    self.network.push((from, to, Message::Control(bytes)));
                    return Ok(());
                }
                Some(node) => node.on_control(&Control::decode(&bytes).expect("its own bytes")),
            },
        };
        self.send(to, step.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn send(&mut self, from: NodeId, step: Step) {
        let frames = step.frames.into_iter();
        self.network
            .extend(frames.map(|(to, frame)| (from, to, Message::Frame(frame.encode()))));
        if let Some(report) = step.report {
            let bytes = report.encode();
            self.network
                .push((from, COORDINATOR, Message::Report(bytes)));
        }
    }

    fn follow(&mut self, directions: Directions) {
        for (node, control) in directions.controls {
            let bytes = control.encode();
            self.network
                .push((COORDINATOR, node, Message::Control(bytes)));
        }
        self.finished = directions.finished.or(self.finished.take());
    }

    fn kill(&mut self) {
        let nodes: Vec<NodeId> = self
            .coordinator
            .starts()
            .iter()
            .map(|(node, _)| *node)
            .collect();
        let node = nodes[self.dice.below(nodes.len())];
        self.dead.insert(node);
        self.nodes.remove(&node);
        let dice = &mut self.dice;
        self.network
            .retain(|(from, _, _)| *from != node || dice.below(2) == 0);
    }
}

const LAYOUTS: [(u32, u64); 6] = [(1, 1), (2, 2), (3, 3), (8, 3), (8, 8), (32, 5)];

fn check(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
    layout_of: usize,
    schedule: u64,
) -> Result<(), String> {
    let (partitions, nodes) = LAYOUTS[layout_of];
    let plan = plan(layout(partitions, nodes), rules.clone(), seeds);
    let world = World::new(graph, plan, schedule);
    let finished = world.run(1 + schedule as usize % 2, schedule.is_multiple_of(3))?;
    let accounting = &finished.accounting;
    if accounting.bound.is_none() {
        return Ok(());
    }
    let truth = truth::truth(graph, rules, seeds);
    truth::check(graph, &layout(partitions, nodes), &truth, &finished)?;
    if accounting.missing.is_empty() {
        let lacks = accounting
            .bound
            .as_ref()
            .is_none_or(|bound| bound.total > 0);
        let same = finished.outcome.activated.len() == truth.len();
        if lacks || !same {
            return Err("nothing is missing, and yet it is not the truth".into());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_500))]

    /// Linear rules: with a bound that holds.
    #[test]
    fn the_bound_holds_when_nodes_die(
        graph in graphs(), rules in parameters(), seeds in seeds(), layout in 0..LAYOUTS.len(), schedule in any::<u64>(),
    ) {
        let rules = SpreadParameters {
            hops: rules.hops,
            decay: rules.decay,
            relations: rules.relations,
            relation_factors: rules.relation_factors,
            limit: usize::MAX,
            ..SpreadParameters::default()
        };
        let each = INJECTED_MAX / 8;
        let seeds: Vec<_> = seeds.into_iter().map(|(seed, amount)| (seed, amount.min(each))).collect();
        check(&graph, &rules, &seeds, layout, schedule).map_err(TestCaseError::fail)?;
    }

    /// Any rules: it ends, and gives no bound where it cannot.
    #[test]
    fn whatever_the_rules_it_ends(
        graph in graphs(), rules in parameters(), seeds in seeds(), layout in 0..LAYOUTS.len(), schedule in any::<u64>(),
    ) {
        let (partitions, nodes) = LAYOUTS[layout];
        let plan = plan(super::cluster::layout(partitions, nodes), rules, &seeds);
        let finished = World::new(&graph, plan, schedule).run(2, schedule.is_multiple_of(2));
        prop_assert!(finished.is_ok(), "{finished:?}");
    }
}
