//! The coordinator of one attempt of an `exact` spread: starts out, reports in, one answer.
//!
//! It keeps no clock: deadlines, lost participants and the next attempt are the caller's. A lost
//! participant can be excluded: the others then go on without it, and the answer says what it
//! lacks.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Accounting, Bound, Ledger};
use super::outcome::{Activated, SpreadOutcome, Trace, add_hops, edges_followed, most_activated};
use super::parameters::{Normalization, SpreadParameters};
use super::plan::{Place, PlanError, SlotTable, check_plan};
use super::ranking::{Rank, ranking};
use super::wire::{
    Control, ParticipantPlan, PartitionPlan, QueryId, Report, ReportEnd, Seed, SpreadMode,
    SpreadStart,
};
use crate::types::{EdgeContext, MemoryHash, MemoryId, NodeId, PartitionId, Unit};

/// Everything that is decided before the first message of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadPlan {
    pub query: QueryId,
    pub attempt: u32,
    pub coordinator: NodeId,
    pub participants: Vec<ParticipantPlan>,
    /// Partitions that nobody serves in this attempt.
    pub unreachable: Vec<PartitionPlan>,
    pub mode: SpreadMode,
    pub parameters: SpreadParameters,
    pub filter: String,
    pub now_millis: u64,
    pub seeds: Vec<Seed>,
}

/// Collects the reports of one attempt.
pub struct Coordinator {
    plan: SpreadPlan,
    slots: SlotTable,
    reports: BTreeMap<NodeId, Report>,
    exclusion: u32,
    excluded: BTreeSet<NodeId>,
    controls: BTreeMap<NodeId, u64>,
    over: bool,
}

/// What to do after a decision or a report.
#[derive(Debug, Default)]
#[must_use]
pub struct Directions {
    /// To send; sending twice does no harm.
    pub controls: Vec<(NodeId, Control)>,
    /// The answer, once.
    pub finished: Option<Finished>,
}

/// The answer of a finished attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// [`ReportEnd::TooManyActivated`]: `outcome` holds the hops that are complete.
    pub end: ReportEnd,
    pub outcome: SpreadOutcome,
    /// What was read, by partition.
    pub pinned: Vec<(PartitionId, EdgeContext)>,
    /// What the outcome lacks.
    pub accounting: Accounting,
    /// How certain the order of `outcome.activated` is, place by place.
    pub ranking: Vec<Rank>,
    /// Partitions that are not in the answer, or not whole.
    pub excluded: Vec<PartitionId>,
}

/// Why a report cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoordinatorError {
    /// The report is dropped.
    #[error("node {0} does not take part")]
    NotAParticipant(NodeId),
    /// The attempt is lost: participants of one query must agree on these.
    #[error("the reports of nodes {0} and {1} contradict each other")]
    Contradiction(NodeId, NodeId),
    /// The attempt is lost.
    #[error("no report names memory {0:?}")]
    Unnamed(MemoryHash),
}

impl Coordinator {
    /// # Errors
    /// When the plan makes no sense.
    pub fn new(plan: SpreadPlan) -> Result<Self, PlanError> {
        let slots = check_plan(&plan)?;
        Ok(Self {
            plan,
            slots,
            reports: BTreeMap::new(),
            exclusion: 0,
            excluded: BTreeSet::new(),
            controls: BTreeMap::new(),
            over: false,
        })
    }

    /// One start per participant, in the order of the plan.
    #[must_use]
    pub fn starts(&self) -> Vec<(NodeId, SpreadStart)> {
        starts_of(&self.plan, &self.slots, |_| 0)
    }

    /// Participants that have not reported yet and were not excluded.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> {
        let nodes = self
            .plan
            .participants
            .iter()
            .map(|participant| participant.node);
        nodes.filter(|node| !self.reports.contains_key(node) && !self.excluded.contains(node))
    }

    /// Takes a report, in any order; doubled ones and those of other attempts change nothing.
    /// The answer comes with the last one, once.
    ///
    /// # Errors
    /// When the report is of a stranger, or the reports do not fit together.
    pub fn on_report(&mut self, report: Report) -> Result<Option<Finished>, CoordinatorError> {
        let is_other = (report.query, report.attempt) != (self.plan.query, self.plan.attempt);
        let is_known = self.reports.contains_key(&report.source);
        if self.over || is_other || is_known || self.excluded.contains(&report.source) {
            return Ok(None);
        }
        if !self.outstanding().any(|node| node == report.source) {
            return Err(CoordinatorError::NotAParticipant(report.source));
        }
        self.reports.insert(report.source, report);
        if self.outstanding().next().is_some() {
            return Ok(None);
        }
        self.over = true;
        self.assemble().map(Some)
    }

    /// Goes on without these nodes, for good: what they have not reported is missing. Every other
    /// participant is to be told.
    ///
    /// # Errors
    /// When the reports that are there do not fit together.
    pub fn exclude(
        &mut self,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<Directions, CoordinatorError> {
        let mut directions = Directions::default();
        let takes_part = |node: &NodeId| {
            let mut participants = self.plan.participants.iter();
            participants.any(|participant| participant.node == *node)
        };
        let before = self.excluded.len();
        // Also those that have reported: the others may lack their last frames.
        let lost: Vec<NodeId> = nodes.into_iter().filter(takes_part).collect();
        self.excluded.extend(lost);
        if self.over || self.excluded.len() == before {
            return Ok(directions);
        }
        self.exclusion += 1;
        let participants = self.plan.participants.iter();
        let others: Vec<NodeId> = participants
            .map(|participant| participant.node)
            .filter(|node| !self.excluded.contains(node))
            .collect();
        for node in others {
            directions.controls.push((node, self.control(node, false)));
        }
        if self.outstanding().next().is_none() {
            self.over = true;
            directions.finished = Some(self.assemble()?);
        }
        Ok(directions)
    }

    /// Ends with the reports that are there.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn give_up(&mut self) -> Result<Directions, CoordinatorError> {
        let silent: Vec<NodeId> = self.outstanding().collect();
        self.exclude(silent)
    }

    /// What lets everybody forget the query, the excluded too: after the answer, or without one.
    pub fn farewell(&mut self) -> Vec<(NodeId, Control)> {
        self.over = true;
        let participants = self.plan.participants.iter();
        let nodes: Vec<NodeId> = participants.map(|participant| participant.node).collect();
        let control = |node| (node, self.control(node, true));
        nodes.into_iter().map(control).collect()
    }

    fn control(&mut self, node: NodeId, is_over: bool) -> Control {
        let number = self.controls.entry(node).or_default();
        *number += 1;
        Control {
            query: self.plan.query,
            attempt: self.plan.attempt,
            number: *number,
            credit: 0,
            exclusion: self.exclusion,
            excluded: self.excluded.iter().copied().collect(),
            is_over,
        }
    }

    fn assemble(&mut self) -> Result<Finished, CoordinatorError> {
        let reports: Vec<Report> = std::mem::take(&mut self.reports).into_values().collect();
        let end = self.end(&reports)?;
        let mut silent = self.excluded.clone();
        for report in &reports {
            silent.remove(&report.source);
        }
        let mut outcome = SpreadOutcome::default();
        let (mut pinned, mut trace, mut names) = (Vec::new(), Trace::default(), BTreeMap::new());
        let (mut totals, mut ledger) = (Vec::new(), Ledger::default());
        self.plan.inject_into(&mut ledger, &self.slots);
        for report in reports {
            add_hops(&mut outcome.hops, &report.hops);
            outcome.activated_total = outcome
                .activated_total
                .saturating_add(report.activated_total);
            ledger.report(&report.sent, &report.consumed, &report.rounding);
            outcome.missing_seeds.extend(report.missing_seeds);
            totals.extend(report.activated);
            pinned.extend(report.pinned);
            trace.extend(report.trace);
            names.extend(report.names);
        }
        pinned.sort_unstable_by_key(|(partition, _)| *partition);
        outcome.missing_seeds.sort_unstable();
        outcome.edges_followed = edges_followed(&outcome.hops);
        let accounting = self.account(&ledger, end);
        let limit = self.plan.parameters.limit;
        let mut best = most_activated(totals, limit.saturating_add(1));
        let next_total = best.get(limit).map_or(0, |(_, total)| *total);
        best.truncate(limit);
        let is_whole = self.excluded.is_empty();
        for (memory, total) in best {
            let one = activated(memory, total, &trace, &names, is_whole)?;
            outcome.activated.push(one);
        }
        let partition = |place: Place| self.plan.partition(place);
        let ranking = ranking(
            &outcome.activated,
            next_total,
            &accounting,
            &self.slots,
            partition,
        );
        Ok(Finished {
            end,
            outcome,
            pinned,
            accounting,
            ranking,
            excluded: self.plan.partitions_without(&silent),
        })
    }

    /// Where nothing is missing the outcome is the oracle's, rounding included.
    fn account(&self, ledger: &Ledger, end: ReportEnd) -> Accounting {
        let parameters = &self.plan.parameters;
        let mut accounting = ledger.close(parameters.decay, is_linear(parameters));
        if end == ReportEnd::Complete && accounting.missing.is_empty() {
            accounting.pruned.clear();
            accounting.bound = Some(Bound::default());
        }
        accounting
    }

    /// All ended alike, after the same hops; unless some were excluded, which the others learn at
    /// different times.
    fn end(&self, reports: &[Report]) -> Result<ReportEnd, CoordinatorError> {
        if self.excluded.is_empty() {
            return agree(reports);
        }
        let ends = reports.iter().map(|report| report.end);
        Ok(ends
            .clone()
            .find(|end| *end != ReportEnd::Complete)
            .unwrap_or(ReportEnd::Complete))
    }
}

/// Whether what travels is proportional to what arrives.
fn is_linear(parameters: &SpreadParameters) -> bool {
    parameters.normalization == Normalization::Fan
        && parameters.threshold == 0
        && parameters.revisit == Unit::ONE
        && parameters.refractory_hops == 0
        && parameters.fan_limit.is_none()
}

/// One start per participant, in the order of the plan.
pub(super) fn starts_of(
    plan: &SpreadPlan,
    slots: &SlotTable,
    credit: impl Fn(NodeId) -> u64,
) -> Vec<(NodeId, SpreadStart)> {
    let start = |index: usize, node: NodeId| {
        let is_own = |seed: &&Seed| matches!(slots.place(seed.slot), Place::At { node, .. } if node == index);
        SpreadStart {
            query: plan.query,
            attempt: plan.attempt,
            coordinator: plan.coordinator,
            participants: plan.participants.clone(),
            unreachable: plan.unreachable.clone(),
            mode: plan.mode,
            credit: credit(node),
            parameters: plan.parameters.clone(),
            filter: plan.filter.clone(),
            now_millis: plan.now_millis,
            seeds: plan.seeds.iter().filter(is_own).copied().collect(),
        }
    };
    let participants = plan.participants.iter().enumerate();
    participants
        .map(|(index, participant)| (participant.node, start(index, participant.node)))
        .collect()
}

/// Without excluded participants every memory on a path was named by its own.
fn activated(
    memory: MemoryHash,
    total: u64,
    trace: &Trace,
    names: &BTreeMap<MemoryHash, MemoryId>,
    is_whole: bool,
) -> Result<Activated, CoordinatorError> {
    let name = |memory: MemoryHash| {
        let name = names.get(&memory).cloned();
        name.ok_or(CoordinatorError::Unnamed(memory))
    };
    let mut path = Vec::new();
    for step in trace.path(memory) {
        match name(step.memory) {
            Ok(id) => path.push(step.named(id)),
            Err(error) if is_whole => return Err(error),
            // What lies before it went through a lost participant: the path begins behind.
            Err(_) => path.clear(),
        }
    }
    Ok(Activated {
        memory,
        id: name(memory)?,
        total,
        path,
    })
}

/// All ended alike, after the same hops.
fn agree(reports: &[Report]) -> Result<ReportEnd, CoordinatorError> {
    let Some((first, others)) = reports.split_first() else {
        return Ok(ReportEnd::Complete);
    };
    let hops =
        |report: &Report| -> Vec<u32> { report.hops.iter().map(|stats| stats.hop).collect() };
    match others
        .iter()
        .find(|report| report.end != first.end || hops(report) != hops(first))
    {
        Some(other) => Err(CoordinatorError::Contradiction(first.source, other.source)),
        None => Ok(first.end),
    }
}
