//! The state of one edge and the changes to it.
//!
//! [`EdgeState`] is a dot store: a change is identified by its dot and a context says which dots
//! were seen. The context belongs to the partition, not to the edge, so it is passed in.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::command::{EdgeChange, EvidenceSums, OverlayDelta};
use crate::planted;
use crate::types::{Dot, EdgeContext, Hlc, PartitionId, RequestId, Sequence, Unit};

/// One observation of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contribution {
    /// Weight x confidence, rounded down, a multiple of 2^-32; never above `c`.
    pub wc: Unit,
    /// Confidence, a multiple of 2^-32.
    pub c: Unit,
    pub stamp: Hlc,
    pub request: RequestId,
    /// A second or later attempt of its request: it may have a twin.
    pub retried: bool,
}

impl Contribution {
    #[must_use]
    pub fn new(
        weight: Unit,
        confidence: Unit,
        stamp: Hlc,
        request: RequestId,
        retried: bool,
    ) -> Self {
        Self {
            wc: weight.times(confidence),
            c: confidence,
            stamp,
            request,
            retried,
        }
    }

    /// The well-known wrong merge, which only a planted bug makes: sums under one dot.
    fn absorb(&mut self, other: &Self) {
        let sum = |a: Unit, b: Unit| Unit::from_bits(a.bits() + b.bits()).unwrap_or(Unit::ONE);
        (self.wc, self.c) = (sum(self.wc, other.wc), sum(self.c, other.c));
        self.stamp = self.stamp.max(other.stamp);
    }
}

/// What its issuer had seen and no longer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub context: EdgeContext,
    pub stamp: Hlc,
    pub request: RequestId,
}

/// Contributions that were folded into sums by a logged command.
///
/// The frontier is kept as a sequence: the context of a removal is the log's context at its
/// issuer, perhaps with dots of its edge on top, so one that has reached the sequence has seen all
/// that was in the log by then. With it a base takes less than 40 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// With `folded`, the mark of the folding command: the identity of this base when states are
    /// joined.
    partition: PartitionId,
    folded: Sequence,
    /// How far the frontier was behind the folding command; 0 for a restoring one.
    lag: u64,
    pub sum_wc: u128,
    pub sum_c: u128,
    /// Contributions counted in the sums.
    pub count: u64,
    pub newest: Hlc,
    /// Swallowed requests of which a second attempt is known: a later twin of theirs is not
    /// counted.
    pub swallowed_marked: BTreeSet<RequestId>,
}

/// The place of a folding, or restoring, command in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldMark {
    pub partition: PartitionId,
    pub sequence: Sequence,
}

/// What the state keeps of one edge. Equal states have equal encodings, whatever led to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeState {
    pub(super) contributions: BTreeMap<Dot, Contribution>,
    /// Removals whose context the log's context does not cover yet: what they cover may still
    /// come.
    pub(super) removals: BTreeMap<Dot, Removal>,
    pub(super) base: Option<Base>,
}

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effect {
    /// The state differs from before, so its record must be written.
    pub changed: bool,
    pub conflict: Option<Conflict>,
}

/// What a base makes undecidable. The change is applied add-wins; someone should look at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conflict {
    /// The removal does not cover everything that was folded: the base stays whole.
    RemovalMissesBase { removal: Dot, request: RequestId },
    /// A repeated attempt reached an edge with a base. `counted` is false when the base is known
    /// to hold its twin; when true, an unmarked first attempt may be in the base too.
    RetryMeetsBase {
        contribution: Dot,
        request: RequestId,
        counted: bool,
    },
    /// A delta came under the dot of another one: never merged. Something reuses dots.
    DotReused { dot: Dot },
}

/// Whether everything in `part` is in `whole`.
pub(super) fn covers_context(whole: &EdgeContext, part: &EdgeContext) -> bool {
    part.sequence <= whole.sequence && whole.overlay.covers_all(&part.overlay)
}

impl EdgeState {
    /// Nothing is left: the record is to be deleted, and no digest counted for it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contributions.is_empty() && self.removals.is_empty() && self.base.is_none()
    }

    /// Contributions in the canonical order, twins included.
    pub fn contributions(&self) -> impl Iterator<Item = (&Dot, &Contribution)> {
        self.contributions.iter()
    }

    /// Removals that may still meet what they cover.
    pub fn pending_removals(&self) -> impl Iterator<Item = (&Dot, &Removal)> {
        self.removals.iter()
    }

    #[must_use]
    pub fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// Applies a contribution at the log. Twins are kept; which of them counts is decided at read.
    pub fn apply_contribution(&mut self, dot: Dot, contribution: Contribution) -> Effect {
        let removed = self
            .removals
            .values()
            .any(|removal| removal.context.covers(&dot));
        if removed || self.contributions.contains_key(&dot) {
            return Effect::default();
        }
        let conflict = self.retry_meets_base(dot, &contribution);
        if planted!("edges-averaged")
            && let Some(mut newest) = self.contributions.last_entry()
        {
            newest.get_mut().absorb(&contribution);
        } else {
            self.contributions.insert(dot, contribution);
        }
        Effect {
            changed: true,
            conflict,
        }
    }

    fn retry_meets_base(&self, dot: Dot, contribution: &Contribution) -> Option<Conflict> {
        let base = self.base.as_ref()?;
        let request = contribution.request;
        let swallowed = base.swallowed_marked.contains(&request);
        let has_twin = self
            .contributions
            .values()
            .any(|other| other.request == request);
        (contribution.retried && !has_twin).then_some(Conflict::RetryMeetsBase {
            contribution: dot,
            request,
            counted: !swallowed,
        })
    }

    /// Applies a removal at the log. It removes what its context covers and nothing else, and is
    /// kept while `log_context` does not cover that context.
    pub fn apply_removal(
        &mut self,
        dot: Dot,
        removal: Removal,
        log_context: &EdgeContext,
    ) -> Effect {
        if self.removals.contains_key(&dot) {
            return Effect::default();
        }
        let before = self.contributions.len();
        self.contributions.retain(|held, _| {
            !removal.context.covers(held) && !planted!("removal-ignores-context")
        });
        let mut effect = Effect {
            changed: self.contributions.len() < before,
            ..Effect::default()
        };
        if let Some(base) = &self.base {
            if base.is_covered_by(&removal.context) {
                self.base = None;
                effect.changed = true;
            } else {
                let request = removal.request;
                effect.conflict = Some(Conflict::RemovalMissesBase {
                    removal: dot,
                    request,
                });
            }
        }
        if !covers_context(log_context, &removal.context) {
            self.removals.insert(dot, removal);
            effect.changed = true;
        }
        effect
    }

    /// Brings an overlay delta into the log state under its own dot. `log_context` is the log's
    /// context before; the caller puts the dot into it afterwards, whatever the effect was. A dot
    /// that the context covers already changes nothing.
    pub fn adopt(&mut self, delta: &OverlayDelta, log_context: &EdgeContext) -> Effect {
        let dot = Dot::Overlay(delta.dot);
        if log_context.covers(&dot) {
            return self.met_again(dot, delta);
        }
        let mut effect = match &delta.change {
            EdgeChange::Contribute { .. } => contribution_of(delta)
                .map_or_else(Effect::default, |contribution| {
                    self.apply_contribution(dot, contribution)
                }),
            EdgeChange::Remove { context } => {
                let (stamp, request) = (delta.stamp, delta.request);
                let removal = Removal {
                    context: context.clone(),
                    stamp,
                    request,
                };
                self.apply_removal(dot, removal, log_context)
            }
        };
        if !self.removals.is_empty() {
            let mut grown = log_context.clone();
            grown.overlay.insert(delta.dot);
            effect.changed |= self.prune(&grown);
        }
        effect
    }

    /// A dot that the log has already. What it marked may be gone; if it is here, it is the same.
    fn met_again(&self, dot: Dot, delta: &OverlayDelta) -> Effect {
        let held = self.contributions.get(&dot);
        let reused = held.is_some_and(|held| contribution_of(delta).as_ref() != Some(held));
        Effect {
            changed: false,
            conflict: reused.then_some(Conflict::DotReused { dot }),
        }
    }

    /// Drops removals that have met all they cover; true when there was one.
    pub fn prune(&mut self, log_context: &EdgeContext) -> bool {
        let before = self.removals.len();
        self.removals
            .retain(|_, removal| !covers_context(log_context, &removal.context));
        self.removals.len() < before
    }

    /// The least state that holds what both hold, each seen in its context: commutative,
    /// associative, idempotent. Both belong to one edge and one log; a base is one dot among
    /// others here, and only the log decides whether a removal covers it.
    pub fn join(&mut self, context: &EdgeContext, other: &Self, other_context: &EdgeContext) {
        // What one side has seen and no longer holds was removed or folded there.
        self.contributions
            .retain(|dot, _| other.contributions.contains_key(dot) || !other_context.covers(dot));
        for (dot, contribution) in &other.contributions {
            if !context.covers(dot) {
                self.contributions.insert(*dot, *contribution);
            }
        }
        self.join_base(context, other, other_context);
        for (dot, removal) in &other.removals {
            self.removals.entry(*dot).or_insert_with(|| removal.clone());
        }
        for removal in self.removals.values() {
            self.contributions
                .retain(|dot, _| !removal.context.covers(dot));
        }
        let mut joined = context.clone();
        joined.join(other_context);
        self.prune(&joined);
    }

    fn join_base(&mut self, context: &EdgeContext, other: &Self, other_context: &EdgeContext) {
        let other_dot = other.base.as_ref().map(Base::dot);
        if let Some(base) = &self.base
            && other_dot != Some(base.dot())
            && other_context.covers(&base.dot())
        {
            self.base = None;
        }
        if let Some(base) = &other.base
            && !context.covers(&base.dot())
        {
            self.base = Some(base.clone());
        }
    }

    /// Takes the sums of a backup as the base of an edge of which nothing is known; true when it did.
    pub fn restore(&mut self, mark: FoldMark, sums: &EvidenceSums) -> bool {
        if !self.is_empty() {
            return false;
        }
        let EvidenceSums {
            sum_wc,
            sum_c,
            count,
            newest,
        } = *sums;
        self.base = Some(Base {
            // Who has seen the restoring command has seen all of it.
            lag: 0,
            sum_wc,
            sum_c,
            count,
            newest,
            ..Base::empty(mark)
        });
        true
    }

    /// How many contributions folding under this frontier would take in, twins included.
    #[must_use]
    pub fn foldable(&self, frontier: &EdgeContext) -> usize {
        let dots = self.contributions.keys();
        dots.filter(|held| frontier.covers(held)).count()
    }

    /// Folds the contributions that a stable frontier covers into the base. The value is the same
    /// before and after. True when there was anything to fold; a base keeps its frontier when there
    /// was not.
    ///
    /// The frontier is the log's context at a sequence that every current replica has passed.
    ///
    /// # Panics
    /// When the frontier is not behind the folding command.
    pub fn fold(&mut self, mark: FoldMark, frontier: &EdgeContext) -> bool {
        assert!(
            frontier.sequence < mark.sequence,
            "a frontier lies behind the command that folds under it"
        );
        if self.foldable(frontier) == 0 {
            return false;
        }
        let mut base = self.base.take().unwrap_or_else(|| Base::empty(mark));
        base.advance(mark, frontier.sequence);
        let before = std::mem::take(&mut self.contributions);
        // Requests to fold, each with whether a second attempt of it is known.
        let mut folded: BTreeMap<RequestId, bool> = BTreeMap::new();
        for (_, contribution) in before.iter().filter(|(held, _)| frontier.covers(held)) {
            *folded.entry(contribution.request).or_default() |= contribution.retried;
        }
        let mut counted = BTreeSet::new();
        for (held, contribution) in before {
            let request = contribution.request;
            let Some(marked) = folded.get_mut(&request) else {
                self.contributions.insert(held, contribution);
                continue;
            };
            // In the order of dots: the first of twins is the one that was counted so far.
            if counted.insert(request) && !base.swallowed_marked.contains(&request) {
                base.add(&contribution);
            }
            if !frontier.covers(&held) {
                // A twin that stays outside must not begin to count now.
                *marked = true;
                self.contributions.insert(held, contribution);
            }
        }
        let marked = folded
            .into_iter()
            .filter_map(|(request, marked)| marked.then_some(request));
        base.swallowed_marked.extend(marked);
        self.base = Some(base);
        true
    }
}

impl Base {
    fn empty(mark: FoldMark) -> Self {
        Self {
            partition: mark.partition,
            folded: mark.sequence,
            lag: mark.sequence.0,
            sum_wc: 0,
            sum_c: 0,
            count: 0,
            newest: Hlc::default(),
            swallowed_marked: BTreeSet::new(),
        }
    }

    /// Under the mark of another command and, if it lies further, its frontier.
    fn advance(&mut self, mark: FoldMark, frontier: Sequence) {
        let frontier = self.frontier().max(frontier);
        self.partition = mark.partition;
        self.folded = mark.sequence;
        self.lag = mark.sequence.0.saturating_sub(frontier.0);
    }

    /// The mark of the last folding command.
    #[must_use]
    pub fn dot(&self) -> Dot {
        Dot::Log {
            partition: self.partition,
            sequence: self.folded,
            index: 0,
        }
    }

    /// Every swallowed contribution was in the log at this sequence.
    #[must_use]
    pub fn frontier(&self) -> Sequence {
        Sequence(self.folded.0.saturating_sub(self.lag))
    }

    /// What no folding can make false.
    pub(super) fn is_possible(&self) -> bool {
        self.count > 0 && self.lag <= self.folded.0
    }

    /// Whether a removal with this context removes the base.
    #[must_use]
    pub fn is_covered_by(&self, context: &EdgeContext) -> bool {
        context.sequence >= self.frontier()
    }

    fn add(&mut self, contribution: &Contribution) {
        self.sum_wc = self
            .sum_wc
            .saturating_add(u128::from(contribution.wc.bits()));
        self.sum_c = self.sum_c.saturating_add(u128::from(contribution.c.bits()));
        self.count = self.count.saturating_add(1);
        self.newest = self.newest.max(contribution.stamp);
    }
}

/// The contribution that an overlay delta carries, if it carries one.
pub(super) fn contribution_of(delta: &OverlayDelta) -> Option<Contribution> {
    match delta.change {
        EdgeChange::Contribute { weight, confidence } => Some(Contribution::new(
            weight,
            confidence,
            delta.stamp,
            delta.request,
            delta.retried,
        )),
        EdgeChange::Remove { .. } => None,
    }
}
