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
use std::sync::Arc;

use super::Adjacency;
use super::board::{BoardError, Outgoing};
use super::crew::{Alone, Crew};
use super::engine::Sent;
use super::ledger::{ByRemaining, Cell, Cells, book, book_remaining};
use super::outcome::{HopStats, add_hops, most_activated};
use super::plan::{Place, PlanError, SlotTable};
use super::reference::missing;
use super::seen::Seen;
use super::wire::{Arrival, Control, Frame, Report, ReportEnd, Section, SpreadMode, SpreadStart};
use super::workbench::Workbench;
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
    crew: Arc<dyn Crew + Send>,
    excluded: BTreeSet<NodeId>,
    controls: Seen,
    /// The last hop for which frames were sent.
    emitted_hop: u32,
    /// Between partitions; what stays in one is neither.
    sent: Cells,
    consumed: Cells,
    rounding: ByRemaining,
}

struct Local<A> {
    partition: PartitionId,
    adjacency: A,
    bench: Workbench,
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
    /// Hops that are complete everywhere, as far as this participant learned it in this step. The
    /// last one is known from the reports alone.
    pub hops: Vec<HopStats>,
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
        let (me, slots, ordered) = start.seat(node, partitions)?;
        if start.mode != SpreadMode::Exact {
            return Err(PlanError::WrongMode);
        }
        let local = |(partition, adjacency)| Local {
            partition,
            bench: Workbench::new(&adjacency, &start.parameters),
            adjacency,
        };
        let partitions = ordered.into_iter().map(local).collect();
        Ok(Self {
            start,
            me,
            slots,
            partitions,
            phase: Phase::Created,
            inbox: BTreeMap::new(),
            hops: Vec::new(),
            lamport: 0,
            sequence: 0,
            crew: Arc::new(Alone),
            excluded: BTreeSet::new(),
            controls: Seen::default(),
            emitted_hop: 0,
            sent: Cells::new(),
            consumed: Cells::new(),
            rounding: ByRemaining::new(),
        })
    }

    /// The threads that work on its hops; without this, the calling one alone.
    pub fn set_crew(&mut self, crew: Arc<dyn Crew + Send>) {
        self.crew = crew;
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
            let Place::At { partition, .. } = self.slots.place(seed.slot) else {
                continue;
            };
            let cell = Cell {
                from: None,
                to: self.partitions[partition].partition,
                remaining: self.start.parameters.hops,
            };
            book(&mut self.consumed, cell, u128::from(seed.amount));
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

    /// Takes a word of the coordinator, in any order, doubled or late. After an exclusion the rest
    /// goes on without the excluded: what was not consumed of them is dropped, and every hop is
    /// processed, because not all may know what the excluded sent last.
    ///
    /// # Errors
    /// When a hop cannot be processed; the participant is lost then.
    pub fn on_control(&mut self, control: &Control) -> Result<Step, ParticipantError<A::Error>> {
        let mut step = Step::default();
        if (control.query, control.attempt) != (self.start.query, self.start.attempt) {
            step.received = Received::Foreign;
            return Ok(step);
        }
        if !self.controls.insert(control.number) {
            step.received = Received::Repeated;
            return Ok(step);
        }
        if control.is_over {
            self.phase = Phase::Failed;
            self.inbox.clear();
            return Ok(step);
        }
        self.excluded.extend(&control.excluded);
        for frames in self.inbox.values_mut() {
            frames.retain(|node, _| !self.excluded.contains(node));
        }
        if self.phase == Phase::Done {
            // Those that go on need its frames, even if there is nothing in them.
            for hop in self.emitted_hop + 1..=self.start.parameters.hops {
                let nothing = self.partitions.iter().map(|_| Sent::default()).collect();
                self.emit(hop, nothing, &mut step);
            }
            self.inbox.clear();
            return Ok(step);
        }
        self.guarded(|this| {
            this.advance(&mut step)?;
            Ok(step)
        })
    }

    /// Whether it has reported or is lost: frames do not move it any more. Until its coordinator
    /// says that the query is over it may have to answer an exclusion.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }

    /// Whether nothing can be wanted of it any more: it is lost, or its coordinator said so.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.phase == Phase::Failed
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
        if frame.hop < awaited || self.excluded.contains(&frame.source) {
            return Ok(Received::Repeated);
        }
        // One that has ended says so for all hops that are left, when some were excluded.
        let is_ahead = frame.hop > awaited + 1 && !frame.is_empty();
        if frame.hop > self.start.parameters.hops || is_ahead {
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
            if had + self.excluded.len() < self.start.participants.len() {
                return Ok(());
            }
            let frames = self.inbox.remove(&hop).unwrap_or_default();
            let sum =
                |part: fn(&Frame) -> u64| frames.values().map(part).fold(0, u64::saturating_add);
            if self.excluded.is_empty() {
                step.hops.push(HopStats {
                    hop: hop - 1,
                    active: sum(|frame| frame.stats.active),
                    edges_followed: sum(|frame| frame.stats.edges_followed),
                });
            }
            if self.excluded.is_empty() && sum(|frame| frame.emitted) == 0 {
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
    fn sort_out(&mut self, frames: BTreeMap<NodeId, Frame>) -> Vec<Vec<Arrival>> {
        let mut arrivals: Vec<Vec<Arrival>> = self.partitions.iter().map(|_| Vec::new()).collect();
        for frame in frames.into_values() {
            let remaining = self.start.parameters.hops - frame.hop;
            for (index, section) in frame.sections.into_iter().enumerate() {
                book(&mut self.consumed, section.cell(remaining), section.sum());
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
            let (stats, sent) = local.bench.process(
                &local.adjacency,
                &self.start.parameters,
                hop,
                arrivals,
                &*self.crew,
            )?;
            add_hops(&mut self.hops, &[stats]);
            let remaining = self.start.parameters.hops.saturating_sub(hop + 1);
            book_remaining(&mut self.rounding, remaining, u128::from(sent.rounding));
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
    fn emit(&mut self, hop: u32, outgoing: Vec<Sent>, step: &mut Step) {
        let emitted = outgoing
            .iter()
            .map(|sent| sent.outgoing.len() as u64 + sent.kept)
            .sum();
        let activated = self
            .partitions
            .iter()
            .map(|local| local.bench.activated())
            .sum();
        let stats = self.hops.last().copied().unwrap_or_default();
        self.lamport = self.lamport.saturating_add(1);
        self.emitted_hop = hop;
        let remaining = self.start.parameters.hops - hop;
        for (node, sections) in self.sections(outgoing, remaining) {
            for section in &sections {
                book(&mut self.sent, section.cell(remaining), section.sum());
            }
            if self.excluded.contains(&node) {
                continue;
            }
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
                stats,
                sections,
            };
            if node == self.node() {
                self.inbox.entry(hop).or_default().insert(node, frame);
            } else {
                step.frames.push((node, frame));
            }
        }
    }

    /// For each participant its sections, empty ones included. What goes to nobody is booked.
    fn sections(&mut self, outgoing: Vec<Sent>, remaining: u32) -> Vec<(NodeId, Vec<Section>)> {
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
            for Outgoing { slot, arrival } in sent.outgoing {
                match self.slots.place(slot) {
                    Place::At { node, partition } => {
                        let section = &mut frames[node].1[first[node] + partition];
                        section.arrivals.push(arrival);
                    }
                    Place::Unreachable(to) => {
                        let from = Some(local.partition);
                        let cell = Cell {
                            from,
                            to,
                            remaining,
                        };
                        book(&mut self.sent, cell, u128::from(arrival.amount));
                    }
                }
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
            sent: std::mem::take(&mut self.sent),
            consumed: std::mem::take(&mut self.consumed),
            rounding: std::mem::take(&mut self.rounding),
            trace: Vec::new(),
            names: BTreeMap::new(),
        };
        // One more than is answered: it tells how certain the last place is.
        let limit = self.start.parameters.limit.saturating_add(1);
        for (index, local) in self.partitions.iter_mut().enumerate() {
            report
                .pinned
                .push((local.partition, local.adjacency.pinned()));
            report.activated_total += local.bench.activated();
            let activated = local.bench.top(limit);
            let trace = local.bench.take_trace();
            let traced = trace.iter().map(|entry| entry.memory);
            let named: BTreeSet<_> = activated
                .iter()
                .map(|(memory, _)| *memory)
                .chain(traced)
                .collect();
            for memory in named {
                report.names.insert(memory, local.adjacency.id(memory)?);
            }
            let seeds = self.start.seeds.iter().filter(|seed| {
                let place = self.slots.place(seed.slot);
                matches!(place, Place::At { partition, .. } if partition == index)
            });
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
