//! A node's part of an `async` spread, as a pure step: pushes in, pushes and one report out.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ledger::{ByRemaining, Cell, Cells, book, book_remaining};
use super::super::outcome::most_activated;
use super::super::parameters::SpreadParameters;
use super::super::participant::Received;
use super::super::plan::{Place, PlanError, SlotTable};
use super::super::reference::missing;
use super::super::seen::Seen;
use super::super::split::Split;
use super::super::wire::{Control, SpreadMode, SpreadStart};
use super::super::{Adjacency, OutEdge};
use super::check_rules;
use super::residuals::{Residual, Residuals};
use super::wire::{Push, PushReport, PushSection};
use crate::limits;
use crate::planted;
use crate::types::{MemoryHash, MemoryId, NodeId, PartitionId, Unit};

/// One node's partitions in one attempt of one query.
pub struct Pusher<A> {
    start: SpreadStart,
    me: usize,
    slots: SlotTable,
    /// In the order of the plan.
    partitions: Vec<Local<A>>,
    /// What waits to be sent, by the index of the receiving node.
    outbox: BTreeMap<usize, Outbox>,
    credit: u64,
    /// The coordinator was asked for more; nothing moves until it comes.
    is_starving: bool,
    phase: Phase,
    exclusion: u32,
    /// The exclusion that the last report was made under.
    confirmed: u32,
    excluded: BTreeSet<NodeId>,
    /// By node: pushes sent to it, pushes seen of it, and credit both ways.
    traffic: BTreeMap<NodeId, Traffic>,
    controls: Seen,
    reports: u64,
    lamport: u64,
}

struct Local<A> {
    partition: PartitionId,
    adjacency: A,
    residuals: Residuals,
    totals: BTreeMap<MemoryHash, u64>,
    named: BTreeSet<MemoryHash>,
}

type Outbox = BTreeMap<(PartitionId, PartitionId, u32), BTreeMap<MemoryHash, u64>>;

#[derive(Default)]
struct Traffic {
    sent: u64,
    seen: Seen,
    credit_to: u128,
    credit_from: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Over,
}

/// What to do after a step.
#[derive(Debug, Default)]
#[must_use]
pub struct PushStep {
    /// To send; sending twice does no harm.
    pub pushes: Vec<(NodeId, Push)>,
    /// To send to the coordinator; sending twice does no harm.
    pub report: Option<PushReport>,
}

/// Why a step failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PusherError<E> {
    /// Nothing was changed.
    #[error("the push of node {source_node} makes no sense: {reason}")]
    BadPush {
        source_node: NodeId,
        reason: &'static str,
    },
    /// The participant is lost; the coordinator must be told. What the step did is not reported.
    #[error("reading the graph failed")]
    Adjacency(E),
}

/// What a step did, for its report.
#[derive(Default)]
struct Done {
    sent: Cells,
    consumed: Cells,
    pruned: ByRemaining,
    counted: BTreeMap<MemoryHash, u64>,
    edges_followed: u64,
}

impl<A: Adjacency> Pusher<A> {
    /// `partitions` are those that the plan gives to `node`, in any order.
    ///
    /// # Errors
    /// When the start makes no sense, is not of an `async` spread, or does not fit the node and its
    /// partitions.
    pub fn new(
        start: SpreadStart,
        node: NodeId,
        partitions: Vec<(PartitionId, A)>,
    ) -> Result<Self, PlanError> {
        start.check()?;
        check_rules(&start.parameters)?;
        let (me, slots, ordered) = start.seat(node, partitions)?;
        let local = |(partition, adjacency)| Local {
            partition,
            adjacency,
            residuals: Residuals::new(start.parameters.decay),
            totals: BTreeMap::new(),
            named: BTreeSet::new(),
        };
        Ok(Self {
            me,
            slots,
            partitions: ordered.into_iter().map(local).collect(),
            outbox: BTreeMap::new(),
            credit: 0,
            is_starving: false,
            phase: Phase::Created,
            exclusion: 0,
            confirmed: 0,
            excluded: BTreeSet::new(),
            traffic: BTreeMap::new(),
            controls: Seen::default(),
            reports: 0,
            lamport: 0,
            start,
        })
    }

    fn node(&self) -> NodeId {
        self.start.participants[self.me].node
    }

    /// Takes in seeds and credit of the start. Later calls do nothing.
    pub fn begin(&mut self) {
        if self.phase != Phase::Created {
            return;
        }
        self.phase = Phase::Running;
        self.credit = self.credit.saturating_add(self.start.credit);
        for seed in &self.start.seeds {
            if let Place::At { partition, .. } = self.slots.place(seed.slot) {
                let hops = self.start.parameters.hops;
                let residuals = &mut self.partitions[partition].residuals;
                residuals.add(None, seed.memory, hops, seed.amount);
            }
        }
    }

    /// Takes in a push, in any order, doubled or late.
    ///
    /// # Errors
    /// [`PusherError::BadPush`]: nothing was changed.
    pub fn on_push(&mut self, push: &Push) -> Result<Received, PusherError<A::Error>> {
        if (push.query, push.attempt) != (self.start.query, self.start.attempt) {
            return Ok(Received::Foreign);
        }
        if self.phase == Phase::Over || self.excluded.contains(&push.source) {
            return Ok(Received::Repeated);
        }
        let targets = self.check(push).map_err(|reason| PusherError::BadPush {
            source_node: push.source,
            reason,
        })?;
        let traffic = self.traffic.entry(push.source).or_default();
        if !traffic.seen.insert(push.sequence) && !planted!("spread-push-doubled") {
            return Ok(Received::Repeated);
        }
        traffic.credit_from += u128::from(push.credit);
        self.lamport = self.lamport.max(push.lamport).saturating_add(1);
        self.credit = self.credit.saturating_add(push.credit);
        for (section, local) in push.sections.iter().zip(targets) {
            let residuals = &mut self.partitions[local].residuals;
            for (memory, amount) in &section.arrivals {
                residuals.add(Some(section.from), *memory, section.remaining, *amount);
            }
        }
        Ok(Received::Accepted)
    }

    /// The index of each section's target here.
    fn check(&self, push: &Push) -> Result<Vec<usize>, &'static str> {
        let mut participants = self.start.participants.iter();
        let source = participants
            .find(|participant| participant.node == push.source)
            .filter(|participant| participant.node != self.node())
            .ok_or("its source does not take part")?;
        if push.credit == 0 {
            return Err("it carries no credit");
        }
        let target = |section: &PushSection| {
            if section.remaining >= self.start.parameters.hops {
                return Err("it has more hops to go than the query has");
            }
            let mut theirs = source.partitions.iter().map(|plan| plan.partition);
            if !theirs.any(|partition| partition == section.from) {
                return Err("it comes from a partition of another node");
            }
            let mut mine = self.partitions.iter();
            mine.position(|local| local.partition == section.to)
                .ok_or("it goes to a partition of another node")
        };
        push.sections.iter().map(target).collect()
    }

    /// Takes in a word of the coordinator, in any order, doubled or late.
    pub fn on_control(&mut self, control: &Control) -> Received {
        if (control.query, control.attempt) != (self.start.query, self.start.attempt) {
            return Received::Foreign;
        }
        if self.phase == Phase::Over || !self.controls.insert(control.number) {
            return Received::Repeated;
        }
        if control.is_over {
            self.phase = Phase::Over;
            return Received::Accepted;
        }
        if control.credit > 0 {
            self.credit = self.credit.saturating_add(control.credit);
            self.is_starving = false;
        }
        if control.exclusion > self.exclusion {
            self.exclude(control);
        }
        Received::Accepted
    }

    /// Keeps what was consumed and drops the rest. What waits for an excluded node was reported as
    /// sent and is missing now.
    fn exclude(&mut self, control: &Control) {
        self.exclusion = control.exclusion;
        self.excluded.extend(&control.excluded);
        let mut partitions = BTreeSet::new();
        for (index, participant) in self.start.participants.iter().enumerate() {
            if self.excluded.contains(&participant.node) {
                self.outbox.remove(&index);
                partitions.extend(participant.partitions.iter().map(|plan| plan.partition));
            }
        }
        for local in &mut self.partitions {
            local.residuals.drop_from(&partitions);
        }
    }

    /// Whether [`Self::work`] has anything to do or to say.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let says = self.credit > 0 || self.must_confirm();
        self.phase == Phase::Running && !self.is_starving && says
    }

    /// An exclusion is confirmed by the next report, if by one without anything else in it.
    fn must_confirm(&self) -> bool {
        self.exclusion > self.confirmed
    }

    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// One step: pushes at most `pushes_max` residuals, sends what is due and reports.
    ///
    /// # Errors
    /// When the graph cannot be read: the participant is lost then.
    pub fn work(&mut self, pushes_max: usize) -> Result<PushStep, PusherError<A::Error>> {
        let mut step = PushStep::default();
        if !self.has_work() {
            return Ok(step);
        }
        let mut done = Done::default();
        if let Err(error) = self.push_all(pushes_max, &mut done) {
            self.phase = Phase::Over;
            return Err(PusherError::Adjacency(error));
        }
        self.lamport = self.lamport.saturating_add(1);
        let returned = self.pay(&mut step);
        match self.report(done, returned) {
            Ok(report) => {
                if report.is_exhausted {
                    self.phase = Phase::Over;
                }
                step.report = Some(report);
                Ok(step)
            }
            Err(error) => {
                self.phase = Phase::Over;
                Err(PusherError::Adjacency(error))
            }
        }
    }

    fn push_all(&mut self, pushes_max: usize, done: &mut Done) -> Result<(), A::Error> {
        let mut edges = Vec::new();
        let mut left = pushes_max;
        // What a partition sends to another of this node is pushed in the same step.
        while left > 0 {
            let before = left;
            for index in 0..self.partitions.len() {
                if left == 0 {
                    break;
                }
                if let Some(residual) = self.partitions[index].residuals.pop() {
                    left -= 1;
                    self.push_one(index, residual, &mut edges, done)?;
                }
            }
            if left == before {
                break;
            }
        }
        Ok(())
    }

    fn push_one(
        &mut self,
        index: usize,
        residual: Residual,
        edges: &mut Vec<OutEdge>,
        done: &mut Done,
    ) -> Result<(), A::Error> {
        let Residual {
            memory,
            remaining,
            amount,
            origins,
        } = residual;
        let local = &mut self.partitions[index];
        let to = local.partition;
        for (from, amount) in origins {
            let cell = Cell {
                from,
                to,
                remaining,
            };
            book(&mut done.consumed, cell, u128::from(amount));
        }
        if !local.adjacency.resolve(memory)? {
            return Ok(());
        }
        let total = local.totals.entry(memory).or_default();
        *total = total.saturating_add(amount);
        let counted = done.counted.entry(memory).or_default();
        *counted = counted.saturating_add(amount);
        let Some(remaining) = remaining.checked_sub(1) else {
            return Ok(());
        };
        let decay = self.start.parameters.decay;
        let travels = u128::from(amount) * u128::from(decay.bits());
        let travels = travels.div_ceil(u128::from(Unit::ONE.bits()));
        if let SpreadMode::Async { cut_off } = self.start.mode
            && u128::from(amount) < u128::from(cut_off)
        {
            book_remaining(&mut done.pruned, remaining, travels);
            return Ok(());
        }
        edges.clear();
        local.adjacency.out_edges(memory, edges)?;
        let Some(sent) = self.split(to, amount, remaining, edges, done) else {
            return Ok(());
        };
        book_remaining(&mut done.pruned, remaining, travels.saturating_sub(sent));
        Ok(())
    }

    /// Sends the shares of one memory and gives their sum; `None` where nothing is followed.
    fn split(
        &mut self,
        from: PartitionId,
        amount: u64,
        remaining: u32,
        edges: &[OutEdge],
        done: &mut Done,
    ) -> Option<u128> {
        let parameters: &SpreadParameters = &self.start.parameters;
        let weighted = edges.iter().filter_map(|edge| {
            let weight = parameters.effective_weight(&edge.relation, edge.weight)?;
            Some((edge, weight.bits()))
        });
        let weighted: Vec<(&OutEdge, u64)> = weighted.collect();
        let sum: u128 = weighted.iter().map(|(_, weight)| u128::from(*weight)).sum();
        if sum == 0 {
            return None;
        }
        let split = Split::new(amount, parameters.decay, sum, parameters.normalization);
        let mut sent = 0;
        for (edge, weight) in weighted {
            let share = split.share_of(weight);
            if share > 0 {
                sent += u128::from(share);
                done.edges_followed += 1;
                self.route(from, edge, remaining, share, done);
            }
        }
        Some(sent)
    }

    fn route(
        &mut self,
        from: PartitionId,
        edge: &OutEdge,
        remaining: u32,
        share: u64,
        done: &mut Done,
    ) {
        let to = match self.slots.place(edge.slot) {
            Place::At { node, partition } if node == self.me => {
                let local = &mut self.partitions[partition];
                local.residuals.add(Some(from), edge.to, remaining, share);
                local.partition
            }
            Place::At { node, partition } => {
                let participant = &self.start.participants[node];
                let to = participant.partitions[partition].partition;
                if !self.excluded.contains(&participant.node) {
                    let outbox = self.outbox.entry(node).or_default();
                    let arrivals = outbox.entry((from, to, remaining)).or_default();
                    let held = arrivals.entry(edge.to).or_default();
                    *held = held.saturating_add(share);
                }
                to
            }
            // Nobody serves it: the account will miss it.
            Place::Unreachable(to) => to,
        };
        let from = Some(from);
        book(
            &mut done.sent,
            Cell {
                from,
                to,
                remaining,
            },
            u128::from(share),
        );
    }

    /// Splits the credit over what is to be sent and gives back the rest, but for a share while there
    /// is more to do. At least 1 goes back with every report, so that all credit is not back before
    /// all reports are. Asks for more where it does not suffice: nothing more is done then before the
    /// coordinator has this report.
    fn pay(&mut self, step: &mut PushStep) -> u64 {
        let is_busy = self
            .partitions
            .iter()
            .any(|local| !local.residuals.is_empty());
        if self.credit == 0 {
            return 0;
        }
        let messages = self.outbox.len() as u64;
        let kept_back = 1 + u64::from(is_busy);
        if self.credit < messages + kept_back {
            self.is_starving = true;
            return 0;
        }
        // What is spared is at least one for each message.
        let share = ((self.credit - kept_back) / (messages + 1)).max(1);
        for (index, outbox) in std::mem::take(&mut self.outbox) {
            let node = self.start.participants[index].node;
            self.credit -= share;
            let traffic = self.traffic.entry(node).or_default();
            traffic.sent += 1;
            traffic.credit_to += u128::from(share);
            let section = |((from, to, remaining), arrivals): (_, BTreeMap<_, _>)| PushSection {
                from,
                to,
                remaining,
                arrivals: arrivals.into_iter().collect(),
            };
            step.pushes.push((
                node,
                Push {
                    query: self.start.query,
                    attempt: self.start.attempt,
                    source: self.start.participants[self.me].node,
                    lamport: self.lamport,
                    sequence: traffic.sent,
                    credit: share,
                    sections: outbox.into_iter().map(section).collect(),
                },
            ));
        }
        let returned = if is_busy { 1 } else { self.credit };
        self.credit -= returned;
        returned
    }

    fn report(&mut self, done: Done, credit: u64) -> Result<PushReport, A::Error> {
        self.reports += 1;
        let node = self.node();
        self.confirmed = self.exclusion;
        let excluded = |part: fn(&Traffic) -> u128| -> u128 {
            let of = |node| self.traffic.get(node).map_or(0, part);
            self.excluded.iter().map(of).sum()
        };
        let (credit_to_excluded, credit_from_excluded) = (
            excluded(|traffic| traffic.credit_to),
            excluded(|traffic| traffic.credit_from),
        );
        let mut report = PushReport {
            query: self.start.query,
            attempt: self.start.attempt,
            source: node,
            lamport: self.lamport,
            sequence: self.reports,
            credit,
            wants_credit: self.is_starving,
            exclusion: self.exclusion,
            credit_to_excluded,
            credit_from_excluded,
            sent: done.sent,
            consumed: done.consumed,
            pruned: done.pruned,
            names: self.names(&done.counted)?,
            counted: done.counted,
            pinned: Vec::new(),
            missing_seeds: Vec::new(),
            edges_followed: done.edges_followed,
            is_exhausted: false,
        };
        let activated: usize = self.partitions.iter().map(|local| local.totals.len()).sum();
        report.is_exhausted = activated
            > self
                .start
                .parameters
                .activated_max
                .min(limits::ACTIVATED_MAX);
        if self.reports == 1 {
            self.introduce(&mut report)?;
        }
        Ok(report)
    }

    fn introduce(&self, report: &mut PushReport) -> Result<(), A::Error> {
        for (index, local) in self.partitions.iter().enumerate() {
            let pinned = local.adjacency.pinned();
            report.pinned.push((local.partition, pinned));
            let own = |slot| matches!(self.slots.place(slot), Place::At { partition, .. } if partition == index);
            let seeds = self.start.seeds.iter().filter(|seed| own(seed.slot));
            let absent = missing(&local.adjacency, seeds.map(|seed| seed.memory))?;
            report.missing_seeds.extend(absent);
        }
        Ok(())
    }

    /// A memory that ends among the most activated was among those of its node when it last
    /// counted, because totals only grow: so naming these suffices.
    fn names(
        &mut self,
        counted: &BTreeMap<MemoryHash, u64>,
    ) -> Result<BTreeMap<MemoryHash, MemoryId>, A::Error> {
        let limit = self.start.parameters.limit;
        let mut names = BTreeMap::new();
        for local in &mut self.partitions {
            let totals = local.totals.iter().map(|(memory, total)| (*memory, *total));
            for (memory, _) in most_activated(totals, limit) {
                if counted.contains_key(&memory) && local.named.insert(memory) {
                    names.insert(memory, local.adjacency.id(memory)?);
                }
            }
        }
        Ok(names)
    }

    /// Credit that is here, for tests that add it up.
    #[cfg(test)]
    pub(in crate::spread) fn credit(&self) -> u64 {
        self.credit
    }
}
