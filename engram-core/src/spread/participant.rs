//! A node's part of an `exact` spread, as a pure step: frames in, frames and one report out.
//!
//! ```text
//! new ── begin: hop 0 ──▶ waiting for hop h ── all frames of hop h ──▶ process h, send h + 1 ─┐
//!            │                    ▲                     │                                     │
//!            │                    └─────────────────────┼─────────────────────────────────────┘
//!            └── nothing to follow ──▶ done: report ◀───┘ last hop, nothing sent, or too many
//! ```
//!
//! Its own frame is handed over inside. A peer can be at most one hop ahead, because it needs
//! this participant's frame for each hop; frames of two hops are kept, no more.

use std::collections::{BTreeMap, BTreeSet};

use super::Adjacency;
use super::board::{Board, BoardError, Outgoing};
use super::outcome::{HopStats, add_hops, most_activated};
use super::reference::missing;
use super::wire::{Arrival, Frame, PlanError, Report, ReportEnd, Section, SlotTable, SpreadStart};
use crate::limits;
use crate::planted;
use crate::types::{NodeId, PartitionId};

/// One node's partitions in one attempt of one query.
pub struct Participant<A> {
    start: SpreadStart,
    /// Index of this node among the participants.
    me: usize,
    slots: SlotTable,
    /// In the order of the plan.
    partitions: Vec<Local<A>>,
    phase: Phase,
    /// Frames of the awaited hop and of the one after it, by source.
    inbox: BTreeMap<u32, BTreeMap<NodeId, Frame>>,
    hops: Vec<HopStats>,
    lamport: u64,
    sequence: u64,
}

struct Local<A> {
    partition: PartitionId,
    adjacency: A,
    board: Board,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Awaiting { hop: u32 },
    Done,
    Failed,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Received {
    #[default]
    Accepted,
    /// Had already, or no longer needed.
    Repeated,
    /// Of another query or attempt.
    Foreign,
}

/// What to do after a step.
#[derive(Debug, Default)]
#[must_use]
pub struct Step {
    pub received: Received,
    /// To send, one per other participant and hop. Sending twice does no harm.
    pub frames: Vec<(NodeId, Frame)>,
    /// To send to the coordinator: this participant is done.
    pub report: Option<Report>,
}

/// Why a step failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParticipantError<E> {
    /// Nothing was changed.
    #[error("the frame of node {source_node} makes no sense: {reason}")]
    BadFrame {
        source_node: NodeId,
        reason: &'static str,
    },
    /// The participant is lost; the coordinator must be told.
    #[error("one hop reaches more than {max} memories", max = limits::SPREAD_TARGETS_MAX)]
    TooManyTargets,
    /// The participant is lost; the coordinator must be told.
    #[error("reading the graph failed")]
    Adjacency(E),
}

impl<E> From<BoardError<E>> for ParticipantError<E> {
    fn from(error: BoardError<E>) -> Self {
        match error {
            BoardError::Adjacency(error) => Self::Adjacency(error),
            BoardError::TooManyTargets => Self::TooManyTargets,
        }
    }
}

impl<A: Adjacency> Participant<A> {
    /// `partitions` are those that the plan gives to `node`, in any order.
    ///
    /// # Errors
    /// When the start makes no sense, or does not fit the node and its partitions.
    pub fn new(
        start: SpreadStart,
        node: NodeId,
        partitions: Vec<(PartitionId, A)>,
    ) -> Result<Self, PlanError> {
        start.check()?;
        let slots = SlotTable::new(&start.participants)?;
        let me = start
            .participants
            .iter()
            .position(|participant| participant.node == node)
            .ok_or(PlanError::NotAParticipant(node))?;
        if start
            .seeds
            .iter()
            .any(|seed| slots.place(seed.slot).0 != me)
        {
            return Err(PlanError::ForeignSeed);
        }
        let mut given: BTreeMap<PartitionId, A> = BTreeMap::new();
        for (partition, adjacency) in partitions {
            if given.insert(partition, adjacency).is_some() {
                return Err(PlanError::PartitionTwice(partition));
            }
        }
        let mut ordered = Vec::new();
        for plan in &start.participants[me].partitions {
            let partition = plan.partition;
            let adjacency = given.remove(&partition).ok_or(PlanError::WrongPartitions)?;
            ordered.push(Local {
                partition,
                adjacency,
                board: Board::default(),
            });
        }
        if !given.is_empty() {
            return Err(PlanError::WrongPartitions);
        }
        Ok(Self {
            start,
            me,
            slots,
            partitions: ordered,
            phase: Phase::Created,
            inbox: BTreeMap::new(),
            hops: Vec::new(),
            lamport: 0,
            sequence: 0,
        })
    }

    /// Injects the seeds and processes hop 0, and more if frames are there already. Later calls
    /// do nothing.
    ///
    /// # Errors
    /// When a hop cannot be processed; the participant is lost then.
    pub fn begin(&mut self) -> Result<Step, ParticipantError<A::Error>> {
        let mut step = Step::default();
        if self.phase != Phase::Created {
            return Ok(step);
        }
        let mut arrivals: Vec<Vec<Arrival>> = self.partitions.iter().map(|_| Vec::new()).collect();
        for seed in &self.start.seeds {
            let (_, partition) = self.slots.place(seed.slot);
            let arrival = Arrival {
                target: seed.memory,
                amount: seed.amount,
                best: None,
            };
            arrivals[partition].push(arrival);
        }
        self.guarded(|this| {
            this.process(0, arrivals, &mut step)?;
            this.advance(&mut step)?;
            Ok(step)
        })
    }

    /// Takes a frame, in any order, doubled or late, and goes on as far as the frames reach.
    ///
    /// # Errors
    /// [`ParticipantError::BadFrame`] changes nothing; after the others the participant is lost.
    pub fn on_frame(&mut self, frame: Frame) -> Result<Step, ParticipantError<A::Error>> {
        let mut step = Step {
            received: self.judge(&frame)?,
            ..Step::default()
        };
        if step.received != Received::Accepted {
            if planted!("spread-frame-doubled") {
                self.double(frame);
            }
            return Ok(step);
        }
        self.lamport = self.lamport.max(frame.lamport).saturating_add(1);
        self.inbox
            .entry(frame.hop)
            .or_default()
            .insert(frame.source, frame);
        self.guarded(|this| {
            this.advance(&mut step)?;
            Ok(step)
        })
    }

    /// What must never happen, and only a planted bug does.
    fn double(&mut self, frame: Frame) {
        let frames = self.inbox.get_mut(&frame.hop);
        if let Some(held) = frames.and_then(|frames| frames.get_mut(&frame.source)) {
            for (into, from) in held.sections.iter_mut().zip(frame.sections) {
                into.arrivals.extend(from.arrivals);
            }
        }
    }

    /// Whether it has reported or is lost: nothing more will come of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }

    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, ParticipantError<A::Error>>,
    ) -> Result<T, ParticipantError<A::Error>> {
        let result = work(self);
        if result.is_err() {
            self.phase = Phase::Failed;
            self.inbox.clear();
        }
        result
    }

    fn judge(&self, frame: &Frame) -> Result<Received, ParticipantError<A::Error>> {
        if (frame.query, frame.attempt) != (self.start.query, self.start.attempt) {
            return Ok(Received::Foreign);
        }
        let bad = |reason| ParticipantError::BadFrame {
            source_node: frame.source,
            reason,
        };
        let awaited = match self.phase {
            Phase::Created => 1,
            Phase::Awaiting { hop } => hop,
            Phase::Done | Phase::Failed => return Ok(Received::Repeated),
        };
        if frame.source == self.node() {
            return Err(bad("its source is the receiver"));
        }
        if frame.hop < awaited {
            return Ok(Received::Repeated);
        }
        if frame.hop > self.start.parameters.hops || frame.hop > awaited + 1 {
            return Err(bad("it is of a hop that nobody can have reached"));
        }
        if self
            .inbox
            .get(&frame.hop)
            .is_some_and(|frames| frames.contains_key(&frame.source))
        {
            return Ok(Received::Repeated);
        }
        self.check_sections(frame).map_err(bad)?;
        Ok(Received::Accepted)
    }

    /// Exactly one section for each pair of a partition there and one here, in the plan's order.
    fn check_sections(&self, frame: &Frame) -> Result<(), &'static str> {
        let mut participants = self.start.participants.iter();
        let source = participants
            .find(|participant| participant.node == frame.source)
            .ok_or("its source does not take part")?;
        let pairs = source.partitions.iter().flat_map(|from| {
            self.partitions
                .iter()
                .map(move |to| (from.partition, to.partition))
        });
        if !pairs.eq(frame
            .sections
            .iter()
            .map(|section| (section.from, section.to)))
        {
            return Err("its partition pairs are not those of the plan");
        }
        let explain = self.start.parameters.explain;
        let mut arrivals = frame.sections.iter().flat_map(|section| &section.arrivals);
        if !arrivals.all(|arrival| arrival.best.is_some() == explain) {
            return Err("its predecessors do not fit the query");
        }
        Ok(())
    }

    fn node(&self) -> NodeId {
        self.start.participants[self.me].node
    }

    /// Processes every hop whose frames are all there.
    fn advance(&mut self, step: &mut Step) -> Result<(), ParticipantError<A::Error>> {
        while let Phase::Awaiting { hop } = self.phase {
            let had = self.inbox.get(&hop).map_or(0, BTreeMap::len);
            if had < self.start.participants.len() {
                return Ok(());
            }
            let frames = self.inbox.remove(&hop).unwrap_or_default();
            let sum =
                |part: fn(&Frame) -> u64| frames.values().map(part).fold(0, u64::saturating_add);
            if sum(|frame| frame.emitted) == 0 {
                self.finish(ReportEnd::Complete, step)?;
            } else if sum(|frame| frame.activated) > self.start.parameters.activated_max as u64 {
                self.finish(ReportEnd::TooManyActivated { hop: hop - 1 }, step)?;
            } else {
                let arrivals = self.sort_out(frames);
                self.process(hop, arrivals, step)?;
            }
        }
        Ok(())
    }

    /// What arrived, for each of this node's partitions.
    fn sort_out(&self, frames: BTreeMap<NodeId, Frame>) -> Vec<Vec<Arrival>> {
        let mut arrivals: Vec<Vec<Arrival>> = self.partitions.iter().map(|_| Vec::new()).collect();
        for frame in frames.into_values() {
            for (index, section) in frame.sections.into_iter().enumerate() {
                // Sections of a frame go through this node's partitions again and again.
                arrivals[index % self.partitions.len()].extend(section.arrivals);
            }
        }
        arrivals
    }

    /// One hop at all partitions of this node; then frames for the next one, or the end.
    fn process(
        &mut self,
        hop: u32,
        arrivals: Vec<Vec<Arrival>>,
        step: &mut Step,
    ) -> Result<(), ParticipantError<A::Error>> {
        let mut outgoing = Vec::new();
        for (local, arrivals) in self.partitions.iter_mut().zip(arrivals) {
            let (stats, sent) =
                local
                    .board
                    .process(&local.adjacency, &self.start.parameters, hop, arrivals)?;
            add_hops(&mut self.hops, &[stats]);
            outgoing.push(sent);
        }
        if hop == self.start.parameters.hops {
            return self.finish(ReportEnd::Complete, step);
        }
        self.phase = Phase::Awaiting { hop: hop + 1 };
        self.emit(hop + 1, outgoing, step);
        Ok(())
    }

    /// One frame per participant; the own one goes straight into the inbox.
    fn emit(&mut self, hop: u32, outgoing: Vec<Vec<Outgoing>>, step: &mut Step) {
        let emitted = outgoing.iter().map(|sent| sent.len() as u64).sum();
        let activated = self
            .partitions
            .iter()
            .map(|local| local.board.activated())
            .sum();
        self.lamport = self.lamport.saturating_add(1);
        for (node, sections) in self.sections(outgoing) {
            self.sequence += 1;
            let frame = Frame {
                query: self.start.query,
                attempt: self.start.attempt,
                source: self.node(),
                hop,
                lamport: self.lamport,
                sequence: self.sequence,
                credit: 0,
                activated,
                emitted,
                sections,
            };
            if node == self.node() {
                self.inbox.entry(hop).or_default().insert(node, frame);
            } else {
                step.frames.push((node, frame));
            }
        }
    }

    /// For each participant its sections, empty ones included.
    fn sections(&self, outgoing: Vec<Vec<Outgoing>>) -> Vec<(NodeId, Vec<Section>)> {
        let participants = &self.start.participants;
        let mut frames: Vec<(NodeId, Vec<Section>)> = participants
            .iter()
            .map(|participant| (participant.node, Vec::new()))
            .collect();
        for (local, sent) in self.partitions.iter().zip(outgoing) {
            let first: Vec<usize> = frames.iter().map(|(_, sections)| sections.len()).collect();
            for ((_, sections), participant) in frames.iter_mut().zip(participants) {
                sections.extend(participant.partitions.iter().map(|to| Section {
                    from: local.partition,
                    to: to.partition,
                    arrivals: Vec::new(),
                }));
            }
            for Outgoing { slot, arrival } in sent {
                let (node, partition) = self.slots.place(slot);
                frames[node].1[first[node] + partition]
                    .arrivals
                    .push(arrival);
            }
        }
        frames
    }

    fn finish(
        &mut self,
        end: ReportEnd,
        step: &mut Step,
    ) -> Result<(), ParticipantError<A::Error>> {
        let report = self.report(end).map_err(ParticipantError::Adjacency)?;
        self.phase = Phase::Done;
        self.inbox.clear();
        step.report = Some(report);
        Ok(())
    }

    fn report(&mut self, end: ReportEnd) -> Result<Report, A::Error> {
        self.lamport = self.lamport.saturating_add(1);
        let mut report = Report {
            query: self.start.query,
            attempt: self.start.attempt,
            source: self.node(),
            lamport: self.lamport,
            end,
            hops: std::mem::take(&mut self.hops),
            pinned: Vec::new(),
            activated: Vec::new(),
            activated_total: 0,
            missing_seeds: Vec::new(),
            trace: Vec::new(),
            names: BTreeMap::new(),
        };
        let limit = self.start.parameters.limit;
        for (index, local) in self.partitions.iter_mut().enumerate() {
            report
                .pinned
                .push((local.partition, local.adjacency.pinned()));
            report.activated_total += local.board.activated();
            let activated = most_activated(local.board.totals(), limit);
            let trace = local.board.take_trace();
            let traced = trace.iter().map(|entry| entry.memory);
            let named: BTreeSet<_> = activated
                .iter()
                .map(|(memory, _)| *memory)
                .chain(traced)
                .collect();
            for memory in named {
                report.names.insert(memory, local.adjacency.id(memory)?);
            }
            let seeds = self
                .start
                .seeds
                .iter()
                .filter(|seed| self.slots.place(seed.slot).1 == index);
            report
                .missing_seeds
                .extend(missing(&local.adjacency, seeds.map(|seed| seed.memory))?);
            report.activated.extend(activated);
            report.trace.extend(trace);
        }
        report.activated = most_activated(std::mem::take(&mut report.activated), limit);
        Ok(report)
    }
}
