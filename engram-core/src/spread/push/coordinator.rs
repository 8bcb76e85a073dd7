//! The coordinator of one attempt of an `async` spread: reports in, grants and one answer out.
//!
//! It keeps no clock: deadlines, lost participants and the next attempt are the caller's.
//!
//! The reports of a participant are taken in the order in which it made them, whatever the order of
//! arrival: so what is known of it is always a state that it was in. A report names only those
//! memories that entered its source's most activated by it; behind one that is lost, a total could
//! count for a memory that nobody has named, and could not be answered.

use std::collections::{BTreeMap, BTreeSet};

use super::super::coordinator::{Directions, Finished, SpreadPlan, starts_of};
use super::super::ledger::Ledger;
use super::super::outcome::{Activated, SpreadOutcome, most_activated};
use super::super::plan::{PlanError, SlotTable, check_plan};
use super::super::ranking::ranking;
use super::super::wire::{Control, ReportEnd, SpreadStart};
use super::check_rules;
use super::wire::PushReport;
use crate::types::{EdgeContext, MemoryHash, MemoryId, NodeId, PartitionId};

/// Credit that each participant begins with.
pub const CREDIT_START: u64 = 1 << 60;
/// Credit that one grant adds.
const CREDIT_GRANT: u64 = 1 << 32;
/// Reports of one participant that wait for an earlier one.
const REPORTS_AHEAD_MAX: usize = 1_024;

/// Collects the step reports of one attempt.
pub struct PushCoordinator {
    plan: SpreadPlan,
    slots: SlotTable,
    /// All credit that was ever handed out, and what has come back, by node.
    granted: BTreeMap<NodeId, u128>,
    returned: BTreeMap<NodeId, u128>,
    peers: BTreeMap<NodeId, Peer>,
    exclusion: u32,
    excluded: BTreeSet<NodeId>,
    ledger: Ledger,
    totals: BTreeMap<MemoryHash, u64>,
    names: BTreeMap<MemoryHash, MemoryId>,
    pinned: BTreeMap<PartitionId, EdgeContext>,
    missing_seeds: BTreeSet<MemoryHash>,
    edges_followed: u64,
    is_exhausted: bool,
    is_over: bool,
    grant: u64,
}

#[derive(Default)]
struct Peer {
    /// Number of the latest report that was taken, and those that came before their turn.
    latest: u64,
    ahead: BTreeMap<u64, PushReport>,
    controls: u64,
    /// Of the latest report.
    exclusion: u32,
    credit_to_excluded: u128,
    credit_from_excluded: u128,
}

/// Why a report cannot be used: it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushReportError {
    #[error("node {0} does not take part")]
    NotAParticipant(NodeId),
    /// The query cannot end before its deadline any more.
    #[error("{REPORTS_AHEAD_MAX} reports of node {0} wait for an earlier one already")]
    TooManyAhead(NodeId),
}

impl Peer {
    /// The report whose turn it is, if it is here.
    fn next(&mut self) -> Option<PushReport> {
        let report = self.ahead.remove(&(self.latest + 1))?;
        self.latest = report.sequence;
        self.exclusion = report.exclusion;
        self.credit_to_excluded = report.credit_to_excluded;
        self.credit_from_excluded = report.credit_from_excluded;
        Some(report)
    }
}

impl PushCoordinator {
    /// # Errors
    /// When the plan makes no sense, or has rules that `async` cannot follow.
    pub fn new(plan: SpreadPlan) -> Result<Self, PlanError> {
        Self::with_credit(plan, CREDIT_START, CREDIT_GRANT)
    }

    /// With other amounts of credit than the usual, at least 1 each.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_credit(plan: SpreadPlan, start: u64, grant: u64) -> Result<Self, PlanError> {
        assert!(start > 0 && grant > 0, "a spread without credit");
        check_rules(&plan.parameters)?;
        let slots = check_plan(&plan)?;
        let nodes = plan.participants.iter().map(|participant| participant.node);
        let mut ledger = Ledger::default();
        plan.inject_into(&mut ledger, &slots);
        Ok(Self {
            granted: nodes
                .clone()
                .map(|node| (node, u128::from(start)))
                .collect(),
            returned: BTreeMap::new(),
            peers: nodes.map(|node| (node, Peer::default())).collect(),
            exclusion: 0,
            excluded: BTreeSet::new(),
            ledger,
            totals: BTreeMap::new(),
            names: BTreeMap::new(),
            pinned: BTreeMap::new(),
            missing_seeds: BTreeSet::new(),
            edges_followed: 0,
            is_exhausted: false,
            is_over: false,
            grant,
            slots,
            plan,
        })
    }

    /// One start per participant, in the order of the plan.
    #[must_use]
    pub fn starts(&self) -> Vec<(NodeId, SpreadStart)> {
        let credit = |node: NodeId| {
            let granted = self.granted.get(&node).copied().unwrap_or(0);
            u64::try_from(granted).unwrap_or(u64::MAX)
        };
        starts_of(&self.plan, &self.slots, credit)
    }

    /// Participants that may still have something to say.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> {
        let nodes = self.peers.keys().copied();
        nodes.filter(|node| !self.excluded.contains(node))
    }

    /// Takes a report, in any order; doubled ones, late ones, those of excluded nodes and of other
    /// attempts change nothing.
    ///
    /// # Errors
    /// When it is of a stranger, or of one of whom too many wait for an earlier one.
    pub fn on_report(&mut self, report: PushReport) -> Result<Directions, PushReportError> {
        let mut directions = Directions::default();
        let is_other = (report.query, report.attempt) != (self.plan.query, self.plan.attempt);
        if self.is_over || is_other || self.excluded.contains(&report.source) {
            return Ok(directions);
        }
        let node = report.source;
        let peer = self.peers.get_mut(&node);
        let peer = peer.ok_or(PushReportError::NotAParticipant(node))?;
        if report.sequence <= peer.latest || peer.ahead.contains_key(&report.sequence) {
            return Ok(directions);
        }
        if report.sequence > peer.latest + 1 && peer.ahead.len() >= REPORTS_AHEAD_MAX {
            return Err(PushReportError::TooManyAhead(node));
        }
        peer.ahead.insert(report.sequence, report);
        while let Some(report) = self.peers.get_mut(&node).and_then(Peer::next) {
            let wants_credit = report.wants_credit;
            self.take(report);
            if wants_credit {
                let credit = self.grant;
                // The total grows before anybody can give any of it back.
                *self.granted.entry(node).or_default() += u128::from(credit);
                directions
                    .controls
                    .push((node, self.control(node, credit, false)));
            }
        }
        if self.is_exhausted || self.totals.len() > self.plan.parameters.activated_max {
            self.is_exhausted = true;
            self.end(&mut directions);
        } else if self.all_credit_is_back() {
            self.end(&mut directions);
        }
        Ok(directions)
    }

    fn take(&mut self, report: PushReport) {
        *self.returned.entry(report.source).or_default() += u128::from(report.credit);
        self.ledger
            .report(&report.sent, &report.consumed, &report.pruned);
        for (memory, amount) in report.counted {
            let total = self.totals.entry(memory).or_default();
            *total = total.saturating_add(amount);
        }
        self.names.extend(report.names);
        self.pinned.extend(report.pinned);
        self.missing_seeds.extend(report.missing_seeds);
        self.edges_followed = self.edges_followed.saturating_add(report.edges_followed);
        self.is_exhausted |= report.is_exhausted;
    }

    /// What the excluded hold, or what was on its way to or from them, is lost: what was given to
    /// them, by the coordinator and by the others, less what came from them. It is known when all
    /// others have confirmed the exclusion, because they neither send to the excluded nor take
    /// anything from them any more.
    fn all_credit_is_back(&self) -> bool {
        let confirmed = |node: &NodeId| {
            self.peers
                .get(node)
                .is_some_and(|peer| peer.exclusion == self.exclusion)
        };
        let survivors: Vec<NodeId> = self.outstanding().collect();
        if !survivors.iter().all(confirmed) {
            return false;
        }
        let sum = |of: &BTreeMap<NodeId, u128>, excluded: bool| -> u128 {
            let chosen = of
                .iter()
                .filter(|(node, _)| self.excluded.contains(node) == excluded);
            chosen.map(|(_, credit)| *credit).sum()
        };
        let (mut into, mut out) = (sum(&self.granted, false), sum(&self.returned, false));
        for peer in survivors.iter().filter_map(|node| self.peers.get(node)) {
            into += peer.credit_from_excluded;
            out += peer.credit_to_excluded;
        }
        into == out
    }

    /// Goes on without these nodes, for good. Every other participant is to be told.
    pub fn exclude(&mut self, nodes: impl IntoIterator<Item = NodeId>) -> Directions {
        let mut directions = Directions::default();
        let before = self.excluded.len();
        let known = nodes
            .into_iter()
            .filter(|node| self.peers.contains_key(node));
        self.excluded.extend(known);
        if self.is_over || self.excluded.len() == before {
            return directions;
        }
        self.exclusion += 1;
        let survivors: Vec<NodeId> = self.outstanding().collect();
        for node in &survivors {
            directions
                .controls
                .push((*node, self.control(*node, 0, false)));
        }
        if survivors.is_empty() {
            self.end(&mut directions);
        }
        directions
    }

    /// Ends with what has been reported so far.
    pub fn give_up(&mut self) -> Directions {
        let mut directions = Directions::default();
        if !self.is_over {
            self.end(&mut directions);
        }
        directions
    }

    fn control(&mut self, node: NodeId, credit: u64, is_over: bool) -> Control {
        let peer = self.peers.entry(node).or_default();
        peer.controls += 1;
        Control {
            query: self.plan.query,
            attempt: self.plan.attempt,
            number: peer.controls,
            credit,
            exclusion: self.exclusion,
            excluded: self.excluded.iter().copied().collect(),
            is_over,
        }
    }

    fn end(&mut self, directions: &mut Directions) {
        self.is_over = true;
        directions.finished = Some(self.assemble());
    }

    /// What lets everybody forget the query, the excluded too: after the answer, or without one.
    pub fn farewell(&mut self) -> Vec<(NodeId, Control)> {
        self.is_over = true;
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        let control = |node| (node, self.control(node, 0, true));
        nodes.into_iter().map(control).collect()
    }

    fn assemble(&mut self) -> Finished {
        let totals = std::mem::take(&mut self.totals);
        let activated_total = totals.len() as u64;
        let limit = self.plan.parameters.limit;
        let mut best = most_activated(totals, limit.saturating_add(1));
        let next_total = best.get(limit).map_or(0, |(_, total)| *total);
        best.truncate(limit);
        // Each was named by its source in the report that counted it last, or before.
        let named = |(memory, total)| {
            let id = self.names.get(&memory)?.clone();
            let path = Vec::new();
            Some(Activated {
                memory,
                id,
                total,
                path,
            })
        };
        let activated: Vec<Activated> = best.into_iter().filter_map(named).collect();
        let accounting = self.ledger.close(self.plan.parameters.decay, true);
        let partition = |place| self.plan.partition(place);
        let ranking = ranking(&activated, next_total, &accounting, &self.slots, partition);
        let excluded = self.plan.partitions_without(&self.excluded);
        Finished {
            end: if self.is_exhausted {
                ReportEnd::TooManyActivated { hop: 0 }
            } else {
                ReportEnd::Complete
            },
            outcome: SpreadOutcome {
                activated,
                activated_total,
                hops: Vec::new(),
                edges_followed: self.edges_followed,
                missing_seeds: self.missing_seeds.iter().copied().collect(),
            },
            pinned: std::mem::take(&mut self.pinned).into_iter().collect(),
            accounting,
            ranking,
            excluded,
        }
    }

    /// All credit handed out, and all that came back, for tests that add it up.
    #[cfg(test)]
    pub(in crate::spread) fn credit(&self) -> (u128, u128) {
        let ahead = self.peers.values().flat_map(|peer| peer.ahead.values());
        let ahead: u128 = ahead.map(|report| u128::from(report.credit)).sum();
        let returned: u128 = self.returned.values().sum();
        (self.granted.values().sum(), returned + ahead)
    }
}
