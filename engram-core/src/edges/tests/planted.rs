//! Two well-known wrong merges, and the proof that the checker of [`super::history`] sees them.

use std::collections::BTreeMap;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::history::{Real, Subject, World, actions};
use super::log_dot;
use super::oracle::{Entry, Truth, as_contribution};
use crate::command::{EdgeChange, OverlayDelta};
use crate::edges::Contribution;
use crate::types::{ActorId, Dot, EdgeContext, Hlc, RequestId, Unit};

/// Averages two weights by their confidences at every meeting: not idempotent.
#[derive(Clone, Default)]
struct Average {
    weight: Mean,
}

#[derive(Clone, Copy, Default)]
struct Mean {
    wc: u128,
    c: u128,
    count: u64,
    newest: Hlc,
}

impl Mean {
    fn meet(&mut self, held: &Contribution) {
        self.wc += u128::from(held.wc.bits());
        self.c += u128::from(held.c.bits());
        self.count += 1;
        self.newest = self.newest.max(held.stamp);
    }

    fn meet_delta(&mut self, delta: &OverlayDelta) {
        match as_contribution(delta) {
            Some(held) => self.meet(&held),
            None => *self = Self::default(),
        }
    }
}

impl Subject for Average {
    fn apply(&mut self, _: u64, entry: &Entry) {
        match entry {
            Entry::Contribute(held) => self.weight.meet(held),
            Entry::Remove(_) => self.weight = Mean::default(),
            Entry::Adopt(deltas) => deltas
                .iter()
                .for_each(|delta| self.weight.meet_delta(delta)),
            Entry::Fold(_) | Entry::Other => {}
        }
    }

    fn read(&self, deliveries: &[OverlayDelta]) -> Truth {
        let mut mean = self.weight;
        deliveries.iter().for_each(|delta| mean.meet_delta(delta));
        Truth {
            sum_wc: mean.wc,
            sum_c: mean.c,
            contributions: mean.count,
            newest: mean.newest,
        }
    }
}

/// One cumulative cell per writer under its newest dot. It obeys every law of join, counts each
/// request and each dot once, and still brings back removed evidence: a removal that has not seen
/// the newest dot of a cell leaves the whole cell.
#[derive(Clone, Default)]
struct Cells {
    cells: BTreeMap<Option<ActorId>, Cell>,
    removals: Vec<EdgeContext>,
}

#[derive(Clone, Default)]
struct Cell {
    newest: Option<Dot>,
    held: BTreeMap<Dot, (RequestId, Unit, Unit, Hlc)>,
}

impl Cells {
    fn contribute(&mut self, writer: Option<ActorId>, dot: Dot, held: &Contribution) {
        if self.removals.iter().any(|context| context.covers(&dot)) {
            return;
        }
        let cell = self.cells.entry(writer).or_default();
        cell.newest = cell.newest.max(Some(dot));
        cell.held
            .insert(dot, (held.request, held.wc, held.c, held.stamp));
    }

    fn remove(&mut self, context: &EdgeContext) {
        self.cells
            .retain(|_, cell| !cell.newest.is_some_and(|dot| context.covers(&dot)));
        self.removals.push(context.clone());
    }

    fn delta(&mut self, delta: &OverlayDelta) {
        match (&delta.change, as_contribution(delta)) {
            (EdgeChange::Remove { context }, _) => self.remove(context),
            (_, Some(held)) => {
                self.contribute(Some(delta.dot.actor), Dot::Overlay(delta.dot), &held);
            }
            (_, None) => {}
        }
    }
}

impl Subject for Cells {
    fn apply(&mut self, sequence: u64, entry: &Entry) {
        match entry {
            Entry::Contribute(held) => self.contribute(None, log_dot(sequence), held),
            Entry::Remove(removal) => self.remove(&removal.context),
            Entry::Adopt(deltas) => deltas.iter().for_each(|delta| self.delta(delta)),
            Entry::Fold(_) | Entry::Other => {}
        }
    }

    fn read(&self, deliveries: &[OverlayDelta]) -> Truth {
        let mut all = self.clone();
        deliveries.iter().for_each(|delta| all.delta(delta));
        let mut dots: BTreeMap<Dot, (RequestId, Unit, Unit, Hlc)> = BTreeMap::new();
        all.cells
            .into_values()
            .for_each(|cell| dots.extend(cell.held));
        let mut truth = Truth::default();
        let mut requests = std::collections::BTreeSet::new();
        for (id, wc, c, stamp) in dots.into_values() {
            if requests.insert(id) {
                truth.sum_wc += u128::from(wc.bits());
                truth.sum_c += u128::from(c.bits());
                truth.contributions += 1;
                truth.newest = truth.newest.max(stamp);
            }
        }
        truth
    }
}

const HISTORIES: usize = 500;

/// Histories, of the same fixed list for every subject, that it does not survive.
fn failures<S: Subject>() -> usize {
    let mut runner = TestRunner::deterministic();
    let strategy = actions(false);
    let fails = |_: &usize| {
        let tree = strategy.new_tree(&mut runner).expect("a history");
        World::<S>::run(&tree.current()).is_err()
    };
    (0..HISTORIES).filter(fails).count()
}

#[test]
fn the_checker_passes_the_real_merge() {
    assert_eq!(failures::<Real>(), 0);
}

#[test]
fn the_checker_catches_averaging() {
    let caught = failures::<Average>();
    assert!(caught > HISTORIES / 2, "{caught} of {HISTORIES}");
}

#[test]
fn the_checker_catches_one_cell_per_writer() {
    let caught = failures::<Cells>();
    assert!(caught > HISTORIES / 20, "{caught} of {HISTORIES}");
    assert!(
        caught < HISTORIES,
        "it is right as long as nothing is removed concurrently"
    );
}
