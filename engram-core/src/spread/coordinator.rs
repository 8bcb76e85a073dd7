//! The coordinator of one attempt of an `exact` spread: starts out, reports in, one answer.
//!
//! It keeps no clock: deadlines, lost participants and the next attempt are the caller's.

use std::collections::BTreeMap;

use super::outcome::{Activated, SpreadOutcome, Trace, add_hops, edges_followed, most_activated};
use super::parameters::SpreadParameters;
use super::wire::{
    ParticipantPlan, PlanError, QueryId, Report, ReportEnd, Seed, SlotTable, SpreadStart,
    check_participants,
};
use crate::limits::SEEDS_MAX;
use crate::types::{EdgeContext, MemoryHash, MemoryId, NodeId, PartitionId};

/// Everything that is decided before the first message of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadPlan {
    pub query: QueryId,
    pub attempt: u32,
    pub coordinator: NodeId,
    pub participants: Vec<ParticipantPlan>,
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
    over: bool,
}

/// The answer of a finished attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// [`ReportEnd::TooManyActivated`]: `outcome` holds the hops that are complete.
    pub end: ReportEnd,
    pub outcome: SpreadOutcome,
    /// What was read, by partition.
    pub pinned: Vec<(PartitionId, EdgeContext)>,
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
        plan.parameters.check()?;
        check_participants(&plan.participants)?;
        if plan.seeds.len() > SEEDS_MAX {
            return Err(PlanError::TooManySeeds {
                actual: plan.seeds.len(),
            });
        }
        let slots = SlotTable::new(&plan.participants)?;
        Ok(Self {
            plan,
            slots,
            reports: BTreeMap::new(),
            over: false,
        })
    }

    /// One start per participant, in the order of the plan.
    #[must_use]
    pub fn starts(&self) -> Vec<(NodeId, SpreadStart)> {
        let participants = self.plan.participants.iter().enumerate();
        participants
            .map(|(index, plan)| (plan.node, self.start(index)))
            .collect()
    }

    fn start(&self, participant: usize) -> SpreadStart {
        let plan = &self.plan;
        let own = |seed: &&Seed| self.slots.place(seed.slot).0 == participant;
        SpreadStart {
            query: plan.query,
            attempt: plan.attempt,
            coordinator: plan.coordinator,
            participants: plan.participants.clone(),
            parameters: plan.parameters.clone(),
            filter: plan.filter.clone(),
            now_millis: plan.now_millis,
            seeds: plan.seeds.iter().filter(own).copied().collect(),
        }
    }

    /// Participants that have not reported yet.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> {
        let nodes = self
            .plan
            .participants
            .iter()
            .map(|participant| participant.node);
        nodes.filter(|node| !self.reports.contains_key(node))
    }

    /// Takes a report, in any order; doubled ones and those of other attempts change nothing.
    /// The answer comes with the last one, once.
    ///
    /// # Errors
    /// When the report is of a stranger, or the reports do not fit together.
    pub fn on_report(&mut self, report: Report) -> Result<Option<Finished>, CoordinatorError> {
        let is_other = (report.query, report.attempt) != (self.plan.query, self.plan.attempt);
        if self.over || is_other || self.reports.contains_key(&report.source) {
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

    fn assemble(&mut self) -> Result<Finished, CoordinatorError> {
        let reports: Vec<Report> = std::mem::take(&mut self.reports).into_values().collect();
        let end = agree(&reports)?;
        let mut outcome = SpreadOutcome::default();
        let (mut pinned, mut trace, mut names) = (Vec::new(), Trace::default(), BTreeMap::new());
        let mut totals = Vec::new();
        for report in reports {
            add_hops(&mut outcome.hops, &report.hops);
            outcome.activated_total = outcome
                .activated_total
                .saturating_add(report.activated_total);
            outcome.missing_seeds.extend(report.missing_seeds);
            totals.extend(report.activated);
            pinned.extend(report.pinned);
            trace.extend(report.trace);
            names.extend(report.names);
        }
        pinned.sort_unstable_by_key(|(partition, _)| *partition);
        outcome.missing_seeds.sort_unstable();
        outcome.edges_followed = edges_followed(&outcome.hops);
        for (memory, total) in most_activated(totals, self.plan.parameters.limit) {
            outcome
                .activated
                .push(activated(memory, total, &trace, &names)?);
        }
        Ok(Finished {
            end,
            outcome,
            pinned,
        })
    }
}

fn activated(
    memory: MemoryHash,
    total: u64,
    trace: &Trace,
    names: &BTreeMap<MemoryHash, MemoryId>,
) -> Result<Activated, CoordinatorError> {
    let name = |memory: MemoryHash| {
        names
            .get(&memory)
            .cloned()
            .ok_or(CoordinatorError::Unnamed(memory))
    };
    let mut path = Vec::new();
    for step in trace.path(memory) {
        let id = name(step.memory)?;
        path.push(step.named(id));
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
