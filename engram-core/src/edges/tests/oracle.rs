//! What the value of an edge must be, computed from the list of operations alone.
//!
//! [`declared`] knows no order: of all operations that a replica has seen, the contributions that
//! no removal covers count, each request once. [`folded`] walks the log and adds the rules of the
//! base; where no conflict arose it must agree with [`declared`].

use std::collections::{BTreeMap, BTreeSet};

use super::super::state::{Contribution, Removal, covers_context};
use super::log_dot;
use crate::command::{EdgeChange, OverlayDelta};
use crate::types::{Dot, EdgeContext, Hlc, RequestId};

/// An entry of the partition's log, as far as one edge is concerned.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Contribute(Contribution),
    Remove(Removal),
    Adopt(Vec<OverlayDelta>),
    Fold(EdgeContext),
    /// A command that was a duplicate, or about something else.
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Truth {
    pub(super) sum_wc: u128,
    pub(super) sum_c: u128,
    pub(super) contributions: u64,
    pub(super) newest: Hlc,
}

impl Truth {
    fn add(&mut self, contribution: &Contribution) {
        self.sum_wc += u128::from(contribution.wc.bits());
        self.sum_c += u128::from(contribution.c.bits());
        self.contributions += 1;
        self.newest = self.newest.max(contribution.stamp);
    }
}

pub(super) fn as_contribution(delta: &OverlayDelta) -> Option<Contribution> {
    match delta.change {
        EdgeChange::Contribute { weight, confidence } => Some(Contribution {
            wc: weight.times(confidence),
            c: confidence,
            stamp: delta.stamp,
            request: delta.request,
            retried: delta.retried,
        }),
        EdgeChange::Remove { .. } => None,
    }
}

pub(super) fn declared(log: &[Entry], overlay: &[OverlayDelta]) -> Truth {
    let mut contributions: BTreeMap<Dot, Contribution> = BTreeMap::new();
    let mut removals: Vec<&EdgeContext> = Vec::new();
    let mut deltas: Vec<&OverlayDelta> = overlay.iter().collect();
    for (index, entry) in log.iter().enumerate() {
        match entry {
            Entry::Contribute(held) => {
                contributions.insert(log_dot(index as u64 + 1), *held);
            }
            Entry::Remove(removal) => removals.push(&removal.context),
            Entry::Adopt(adopted) => deltas.extend(adopted),
            Entry::Fold(_) | Entry::Other => {}
        }
    }
    for delta in deltas {
        match &delta.change {
            EdgeChange::Remove { context } => removals.push(context),
            EdgeChange::Contribute { .. } => {
                let held = as_contribution(delta).expect("it contributes");
                contributions.insert(Dot::Overlay(delta.dot), held);
            }
        }
    }
    contributions.retain(|dot, _| !removals.iter().any(|context| context.covers(dot)));
    let mut truth = Truth::default();
    let mut requests = BTreeSet::new();
    for held in contributions.values() {
        if requests.insert(held.request) {
            truth.add(held);
        }
    }
    truth
}

/// The rules of the base, step by step along the log. Also says whether they had to choose.
pub(super) fn folded(log: &[Entry], overlay: &[OverlayDelta]) -> (Truth, bool) {
    let mut model = Model::default();
    for (index, entry) in log.iter().enumerate() {
        let dot = log_dot(index as u64 + 1);
        match entry {
            Entry::Contribute(held) => model.contribute(dot, *held),
            Entry::Remove(removal) => model.remove(&removal.context),
            Entry::Adopt(deltas) => deltas.iter().for_each(|delta| model.delta(delta)),
            Entry::Fold(frontier) => model.fold(frontier),
            Entry::Other => {}
        }
    }
    // Readers see overlay removals before they are ordered: all of them, then what they leave.
    let (removals, contributions): (Vec<&OverlayDelta>, Vec<&OverlayDelta>) = overlay
        .iter()
        .partition(|delta| matches!(delta.change, EdgeChange::Remove { .. }));
    removals
        .into_iter()
        .chain(contributions)
        .for_each(|delta| model.delta(delta));
    (model.truth(), model.had_to_choose)
}

#[derive(Default)]
struct Model {
    live: BTreeMap<Dot, Contribution>,
    removals: Vec<EdgeContext>,
    seen: BTreeSet<Dot>,
    base: Option<(Vec<Contribution>, EdgeContext, BTreeSet<RequestId>)>,
    had_to_choose: bool,
}

impl Model {
    fn contribute(&mut self, dot: Dot, held: Contribution) {
        if self.removals.iter().any(|context| context.covers(&dot)) {
            return;
        }
        self.had_to_choose |= self.base.is_some() && held.retried;
        self.live.insert(dot, held);
    }

    fn remove(&mut self, context: &EdgeContext) {
        self.live.retain(|dot, _| !context.covers(dot));
        self.removals.push(context.clone());
        match &self.base {
            Some((_, frontier, _)) if covers_context(context, frontier) => self.base = None,
            Some(_) => self.had_to_choose = true,
            None => {}
        }
    }

    fn delta(&mut self, delta: &OverlayDelta) {
        let dot = Dot::Overlay(delta.dot);
        if !self.seen.insert(dot) {
            return;
        }
        match &delta.change {
            EdgeChange::Remove { context } => self.remove(context),
            EdgeChange::Contribute { .. } => {
                self.contribute(dot, as_contribution(delta).expect("it contributes"));
            }
        }
    }

    fn fold(&mut self, frontier: &EdgeContext) {
        let covered: BTreeSet<RequestId> = self
            .live
            .iter()
            .filter(|(dot, _)| frontier.covers(dot))
            .map(|(_, held)| held.request)
            .collect();
        if covered.is_empty() {
            return;
        }
        let (mut swallowed, mut reach, mut marked) = self.base.take().unwrap_or_default();
        reach.join(frontier);
        for request in covered {
            let twins: Vec<(Dot, Contribution)> = self
                .live
                .iter()
                .filter(|(_, held)| held.request == request)
                .map(|(dot, held)| (*dot, *held))
                .collect();
            if !marked.contains(&request) {
                swallowed.push(twins[0].1);
            }
            let leaves_twin = twins.iter().any(|(dot, _)| !frontier.covers(dot));
            if leaves_twin || twins.iter().any(|(_, held)| held.retried) {
                marked.insert(request);
            }
        }
        self.live.retain(|dot, _| !frontier.covers(dot));
        self.base = Some((swallowed, reach, marked));
    }

    fn truth(&self) -> Truth {
        let mut truth = Truth::default();
        let mut requests = BTreeSet::new();
        if let Some((swallowed, _, marked)) = &self.base {
            swallowed.iter().for_each(|held| truth.add(held));
            requests.clone_from(marked);
        }
        for held in self.live.values() {
            if requests.insert(held.request) {
                truth.add(held);
            }
        }
        truth
    }
}
