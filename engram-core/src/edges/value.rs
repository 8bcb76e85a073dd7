//! What an edge is worth to a reader: log state joined with the overlay, then one division.

use std::collections::{BTreeMap, BTreeSet};

use super::decay::decay_factor;
use super::state::{Base, Contribution, EdgeState, contribution_of};
use crate::command::{EdgeChange, OverlayDelta};
use crate::types::{Decay, Dot, EdgeContext, Hlc, Unit};

/// The sums over what is visible of an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeValue {
    pub sum_wc: u128,
    pub sum_c: u128,
    /// Timestamp of the newest live contribution.
    pub newest: Hlc,
    /// Contributions counted, folded ones included; each request once.
    pub contributions: u64,
    has_base: bool,
}

impl EdgeValue {
    /// Whether the edge is there at all. An edge whose evidence has weight 0 is.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.contributions > 0 || self.has_base
    }

    /// Weighted mean of the evidence, then decay by the age of the newest; both rounded down.
    /// 0 when the sum of confidences is 0.
    #[must_use]
    pub fn weight(&self, decay: &Decay, now_millis: u64) -> Unit {
        let age_millis = now_millis.saturating_sub(self.newest.millis());
        self.mean().times(decay_factor(decay, age_millis))
    }

    fn mean(&self) -> Unit {
        // Sums of at most 2^32 each stay far below 2^96, so the shift loses nothing.
        let bits = (self.sum_wc << 32).checked_div(self.sum_c).unwrap_or(0);
        u64::try_from(bits)
            .ok()
            .and_then(Unit::from_bits)
            .unwrap_or(Unit::ONE)
    }

    /// The sum of confidences in ones, for showing; nothing is computed from it.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        self.sum_c as f64 / 4_294_967_296.0
    }

    fn add(&mut self, contribution: &Contribution) {
        self.sum_wc = self
            .sum_wc
            .saturating_add(u128::from(contribution.wc.bits()));
        self.sum_c = self.sum_c.saturating_add(u128::from(contribution.c.bits()));
        self.newest = self.newest.max(contribution.stamp);
        self.contributions = self.contributions.saturating_add(1);
    }

    fn of_base(base: &Base) -> Self {
        Self {
            sum_wc: base.sum_wc,
            sum_c: base.sum_c,
            newest: base.newest,
            contributions: base.count,
            has_base: true,
        }
    }
}

impl EdgeState {
    /// What the log alone makes visible.
    #[must_use]
    pub fn value(&self) -> EdgeValue {
        visible(Some(self), &[], &EdgeContext::default())
    }
}

/// The edge as a reader of this replica sees it: `log` joined with the edge's `overlay` deltas
/// (any order, doubles allowed), each request counted once. Deltas that `log_context` covers are
/// in `log` already, or were removed there, and are passed over.
#[must_use]
pub fn visible(
    log: Option<&EdgeState>,
    overlay: &[OverlayDelta],
    log_context: &EdgeContext,
) -> EdgeValue {
    let log_base = log.and_then(EdgeState::base);
    if overlay.is_empty() {
        let empty = BTreeMap::new();
        return count_once(
            log.map_or(&empty, |log| &log.contributions).values(),
            log_base,
        );
    }
    let fresh = || {
        overlay
            .iter()
            .filter(|delta| !log_context.overlay.covers(delta.dot))
    };
    let removers: Vec<&EdgeContext> = fresh()
        .filter_map(|delta| match &delta.change {
            EdgeChange::Remove { context } => Some(context),
            EdgeChange::Contribute { .. } => None,
        })
        .collect();
    let removed = |dot: &Dot| removers.iter().any(|context| context.covers(dot));
    let removed_in_log = |dot: &Dot| {
        log.is_some_and(|log| {
            log.removals
                .values()
                .any(|removal| removal.context.covers(dot))
        })
    };
    let mut live: Vec<(Dot, Contribution)> = fresh()
        .filter_map(|delta| Some((Dot::Overlay(delta.dot), contribution_of(delta)?)))
        .filter(|(dot, _)| !removed(dot) && !removed_in_log(dot))
        .collect();
    if let Some(log) = log {
        live.extend(
            log.contributions
                .iter()
                .filter(|(dot, _)| !removed(dot))
                .map(|(d, c)| (*d, *c)),
        );
    }
    live.sort_unstable_by_key(|(dot, _)| *dot);
    let base = log_base.filter(|base| !removers.iter().any(|context| base.is_covered_by(context)));
    count_once(live.iter().map(|(_, contribution)| contribution), base)
}

/// Adds up contributions that come in the order of their dots; of the dots of one request the
/// first counts, unless the base is known to hold another of them.
fn count_once<'a>(
    live: impl ExactSizeIterator<Item = &'a Contribution>,
    base: Option<&Base>,
) -> EdgeValue {
    let mut value = base.map(EdgeValue::of_base).unwrap_or_default();
    let is_single = live.len() == 1;
    let mut counted = BTreeSet::new();
    for contribution in live {
        let request = contribution.request;
        let swallowed = base.is_some_and(|base| base.swallowed_marked.contains(&request));
        if !swallowed && (is_single || counted.insert(request)) {
            value.add(contribution);
        }
    }
    value
}
