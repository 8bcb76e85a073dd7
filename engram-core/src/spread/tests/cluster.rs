//! Participants and a coordinator joined by a hostile network: any order, doubles, late starts.
//! Every message goes through its bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{
    Coordinator, Finished, Frame, Participant, ParticipantPlan, PartitionPlan, QueryId, Received,
    Report, Seed, SpreadMode, SpreadParameters, SpreadPlan, SpreadStart,
};
use super::arrays::{Projecting, Shuffled};
use super::graph::{Graph, hash, id};
use crate::types::{NodeId, PartitionId, SlotRange};

pub(super) const COORDINATOR: NodeId = NodeId(99);

/// A wrong implementation, as its effect on what is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// A doubled frame is counted twice.
    DoubledFrame,
    /// A frame arrives without what it should carry.
    EmptiedFrame,
    /// Every arrival is one unit short, as from a remainder that was rounded twice.
    OffByOne,
}

/// What participants read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrays {
    None,
    /// Arrays that are behind by what the number says, and pieces in an order it gives.
    Aged(u64),
}

impl Arrays {
    pub(super) fn of(self, graph: &Graph, slots: SlotRange) -> Projecting<'_> {
        match self {
            Self::None => Projecting::plain(graph, slots),
            Self::Aged(aged) => Projecting::new(graph, slots, aged),
        }
    }
}

#[derive(Clone)]
enum Message {
    Start(Vec<u8>),
    Frame(Vec<u8>),
    Report(Vec<u8>),
}

/// SplitMix64: the schedule is a function of its seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// `partitions` over `nodes` in turn, so that a node's slots are not in one piece.
pub(super) fn layout(partitions: u32, nodes: u64) -> Vec<ParticipantPlan> {
    let mut participants: Vec<ParticipantPlan> = (0..nodes.min(u64::from(partitions)))
        .map(|node| ParticipantPlan {
            node: NodeId(node + 1),
            partitions: Vec::new(),
        })
        .collect();
    let count = participants.len();
    for (index, slots) in SlotRange::split_evenly(partitions).into_iter().enumerate() {
        // Ids that descend, so that their order is not that of slots.
        let partition = PartitionId(1_000 - index as u64);
        participants[index % count]
            .partitions
            .push(PartitionPlan { partition, slots });
    }
    participants
}

pub(super) fn plan(
    participants: Vec<ParticipantPlan>,
    parameters: SpreadParameters,
    seeds: &[(usize, u64)],
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
        participants,
        unreachable: Vec::new(),
        mode: SpreadMode::Exact,
        parameters,
        filter: "label = 'x'".into(),
        now_millis: 5,
        seeds: seeds.iter().map(seed).collect(),
    }
}

pub(super) fn participant<'a>(
    graph: &'a Graph,
    start: SpreadStart,
    node: NodeId,
    arrays: Arrays,
) -> Participant<Projecting<'a>> {
    let own = start
        .participants
        .iter()
        .find(|plan| plan.node == node)
        .expect("it takes part");
    // In another order than the plan's.
    let parts = own
        .partitions
        .iter()
        .rev()
        .map(|plan| (plan.partition, arrays.of(graph, plan.slots)));
    let parts = parts.collect();
    let mut participant = Participant::new(start, node, parts).expect("a sound start");
    if let Arrays::Aged(order) = arrays {
        participant.set_crew(Arc::new(Shuffled(order)));
    }
    participant
}

/// Runs one query to its end under one schedule.
pub(super) fn run(graph: &Graph, plan: SpreadPlan, schedule: u64, bug: Bug) -> Finished {
    let mut dice = Dice(schedule);
    let arrays = match dice.below(3) {
        0 => Arrays::None,
        1 => Arrays::Aged(0),
        _ => Arrays::Aged(schedule),
    };
    let mut coordinator = Coordinator::new(plan).expect("a sound plan");
    let mut nodes: BTreeMap<NodeId, Participant<Projecting<'_>>> = BTreeMap::new();
    let starts = coordinator.starts().into_iter();
    let mut network: Vec<(NodeId, Message)> = starts
        .map(|(node, start)| (node, Message::Start(start.encode())))
        .collect();
    let mut doubles_left = 200;
    let mut finished = None;
    while !network.is_empty() {
        let chosen = dice.below(network.len());
        let (to, message) = network.swap_remove(chosen);
        if doubles_left > 0 && dice.below(4) == 0 {
            doubles_left -= 1;
            network.push((to, message.clone()));
        }
        match message {
            Message::Start(bytes) => {
                let start = SpreadStart::decode(&bytes).expect("its own bytes");
                let node = nodes
                    .entry(to)
                    .or_insert_with(|| participant(graph, start, to, arrays));
                let step = node.begin().expect("the graph can be read");
                send(&mut network, step);
            }
            Message::Frame(bytes) => match nodes.get_mut(&to) {
                // The node keeps what comes before the start.
                None => network.push((to, Message::Frame(bytes))),
                Some(node) => {
                    let mut frame = Frame::decode(&bytes).expect("its own bytes");
                    tamper(&mut frame, bug);
                    let step = node.on_frame(frame).expect("a sound frame");
                    assert_ne!(step.received, Received::Foreign);
                    send(&mut network, step);
                }
            },
            Message::Report(bytes) => {
                let report = Report::decode(&bytes).expect("its own bytes");
                if let Some(done) = coordinator.on_report(report).expect("a sound report") {
                    assert!(finished.replace(done).is_none(), "finished twice");
                }
            }
        }
    }
    assert!(
        nodes.values().all(Participant::is_over),
        "a participant still waits"
    );
    finished.expect("all reports came")
}

fn send(network: &mut Vec<(NodeId, Message)>, step: super::super::Step) {
    network.extend(
        step.frames
            .into_iter()
            .map(|(to, frame)| (to, Message::Frame(frame.encode()))),
    );
    network.extend(
        step.report
            .map(|report| (COORDINATOR, Message::Report(report.encode()))),
    );
}

fn tamper(frame: &mut Frame, bug: Bug) {
    for section in &mut frame.sections {
        match bug {
            Bug::None => {}
            Bug::DoubledFrame => section.arrivals.extend(section.arrivals.clone()),
            Bug::EmptiedFrame => section.arrivals.clear(),
            Bug::OffByOne => section
                .arrivals
                .iter_mut()
                .for_each(|arrival| arrival.amount -= 1),
        }
    }
}
