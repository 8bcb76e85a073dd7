//! Random histories of one edge on several replicas, and the checker that runs a subject through
//! them: majority and local changes, retries on either road, deltas exchanged in any order and
//! doubled, adoption, folding, snapshots, restarts with a new actor.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::state::{Contribution, EdgeState, Removal};
use super::super::value::{EdgeValue, visible};
use super::super::{Conflict, EdgeRecord};
use super::oracle::{Entry, Truth, declared, folded};
use super::{fold_mark, log_dot, overlay_dot, request, stamp};
use crate::cases::cases;
use crate::command::{EdgeChange, OverlayDelta};
use crate::types::{EdgeContext, MemoryId, Relation, RequestId, Sequence, Unit};

pub(super) const REPLICAS: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(super) enum Road {
    Majority,
    Local,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Contribute {
        replica: usize,
        road: Road,
        weight: u64,
        confidence: u64,
    },
    /// A marked second attempt of an earlier contribution.
    Retry {
        replica: usize,
        road: Road,
        which: usize,
    },
    Remove {
        replica: usize,
        road: Road,
    },
    /// Some deltas of one replica reach another, perhaps not for the first time.
    Exchange {
        from: usize,
        to: usize,
        which: u64,
    },
    /// Some deltas of one replica are proposed, perhaps not for the first time.
    Adopt {
        replica: usize,
        which: u64,
    },
    Apply {
        replica: usize,
        entries: usize,
    },
    Fold,
    /// A snapshot of a replica that is further replaces the log state and leaves the overlay.
    Snapshot {
        from: usize,
        to: usize,
    },
    Restart {
        replica: usize,
    },
}

pub(super) fn actions(with_folds: bool) -> impl Strategy<Value = Vec<Action>> {
    let replica = 0..REPLICAS;
    let road = || prop_oneof![Just(Road::Majority), Just(Road::Local)];
    let units = || prop_oneof![Just(0), Just(1 << 32), 0..=1_u64 << 32];
    let action = prop_oneof![
        5 => (replica.clone(), road(), units(), units()).prop_map(
            |(replica, road, weight, confidence)| Action::Contribute { replica, road, weight, confidence }
        ),
        2 => (replica.clone(), road(), any::<usize>())
            .prop_map(|(replica, road, which)| Action::Retry { replica, road, which }),
        3 => (replica.clone(), road()).prop_map(|(replica, road)| Action::Remove { replica, road }),
        4 => (replica.clone(), replica.clone(), any::<u64>())
            .prop_map(|(from, to, which)| Action::Exchange { from, to, which }),
        3 => (replica.clone(), any::<u64>()).prop_map(|(replica, which)| Action::Adopt { replica, which }),
        5 => (replica.clone(), 1..4_usize).prop_map(|(replica, entries)| Action::Apply { replica, entries }),
        2 => Just(if with_folds { Action::Fold } else { Action::Restart { replica: 0 } }),
        1 => (replica.clone(), replica.clone()).prop_map(|(from, to)| Action::Snapshot { from, to }),
        1 => replica.prop_map(|replica| Action::Restart { replica }),
    ];
    prop::collection::vec(action, 1..60)
}

/// What is checked: the log-derived state of one edge on one replica, and its reading.
pub(super) trait Subject: Clone + Default {
    fn apply(&mut self, sequence: u64, entry: &Entry);
    /// `deliveries` are the overlay deltas in the order in which they came, doubles included.
    fn read(&self, deliveries: &[OverlayDelta]) -> Truth;
}

/// The real thing, through its record at every step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Real {
    pub(super) state: EdgeState,
    pub(super) context: EdgeContext,
    pub(super) conflicts: Vec<Conflict>,
}

impl Subject for Real {
    fn apply(&mut self, sequence: u64, entry: &Entry) {
        self.context.sequence = Sequence(sequence);
        let dot = log_dot(sequence);
        match entry {
            Entry::Contribute(held) => {
                let effect = self.state.apply_contribution(dot, *held);
                self.conflicts.extend(effect.conflict);
            }
            Entry::Remove(removal) => {
                let effect = self
                    .state
                    .apply_removal(dot, removal.clone(), &self.context);
                self.conflicts.extend(effect.conflict);
            }
            Entry::Adopt(deltas) => {
                for delta in deltas {
                    let before = self.state.clone();
                    let effect = self.state.adopt(delta, &self.context);
                    assert!(
                        effect.changed || self.state == before,
                        "a change was not told"
                    );
                    self.conflicts.extend(effect.conflict);
                    self.context.overlay.insert(delta.dot);
                }
            }
            Entry::Fold(frontier) => {
                let before = self.state.value();
                self.state.fold(fold_mark(sequence), frontier);
                assert_eq!(
                    sums(self.state.value()),
                    sums(before),
                    "folding changed the value"
                );
            }
            Entry::Other => {}
        }
        let to = MemoryId::new("to").expect("a valid id");
        let record = EdgeRecord {
            to,
            state: std::mem::take(&mut self.state),
        };
        self.state = EdgeRecord::decode(&record.encode())
            .expect("its own bytes")
            .state;
        assert_eq!(self.state, record.state);
    }

    fn read(&self, deliveries: &[OverlayDelta]) -> Truth {
        sums(visible(Some(&self.state), deliveries, &self.context))
    }
}

pub(super) fn sums(value: EdgeValue) -> Truth {
    let EdgeValue {
        sum_wc,
        sum_c,
        contributions,
        newest,
        ..
    } = value;
    Truth {
        sum_wc,
        sum_c,
        contributions,
        newest,
    }
}

pub(super) struct Replica<S> {
    pub(super) subject: S,
    applied: usize,
    pub(super) deliveries: Vec<OverlayDelta>,
    actor: u8,
    next: u64,
}

pub(super) struct World<S> {
    log: Vec<Entry>,
    pub(super) replicas: Vec<Replica<S>>,
    actors: u8,
    issued: Vec<(RequestId, Unit, Unit)>,
    /// What the partition's table of request ids refuses a second time.
    applied_requests: BTreeSet<RequestId>,
    clock: u64,
}

impl<S: Subject> World<S> {
    pub(super) fn new() -> Self {
        let replica = |index| Replica {
            subject: S::default(),
            applied: 0,
            deliveries: Vec::new(),
            // Descending, so that the order of actors is not that of replicas.
            actor: 200 - index as u8,
            next: 1,
        };
        Self {
            log: Vec::new(),
            replicas: (0..REPLICAS).map(replica).collect(),
            actors: 100,
            issued: Vec::new(),
            applied_requests: BTreeSet::new(),
            clock: 1_000,
        }
    }

    /// Runs a history; after each action every replica must read what the oracle says, and at
    /// the end, everything exchanged, adopted and applied, all must read the same.
    pub(super) fn run(actions: &[Action]) -> Result<Self, String> {
        let mut world = Self::new();
        for (step, action) in actions.iter().enumerate() {
            world.act(action);
            world
                .check()
                .map_err(|wrong| format!("after step {step}, {action:?}: {wrong}"))?;
        }
        world.settle();
        world
            .check()
            .map_err(|wrong| format!("after settling: {wrong}"))?;
        Ok(world)
    }

    fn settle(&mut self) {
        for replica in 0..REPLICAS {
            self.act(&Action::Adopt {
                replica,
                which: u64::MAX,
            });
        }
        for replica in 0..REPLICAS {
            self.act(&Action::Apply {
                replica,
                entries: usize::MAX,
            });
        }
    }

    fn check(&self) -> Result<(), String> {
        for (index, replica) in self.replicas.iter().enumerate() {
            let log = &self.log[..replica.applied];
            let (truth, had_to_choose) = folded(log, &replica.deliveries);
            let read = replica.subject.read(&replica.deliveries);
            if read != truth {
                return Err(format!(
                    "replica {index} reads {read:?}, the oracle says {truth:?}"
                ));
            }
            let mut declared = declared(log, &replica.deliveries);
            if log.iter().any(|entry| matches!(entry, Entry::Fold(_))) {
                // A base keeps the stamp of the twin that it swallowed.
                declared.newest = truth.newest;
            }
            if !had_to_choose && truth != declared {
                return Err(format!("replica {index}: folding changed what is true"));
            }
        }
        Ok(())
    }

    pub(super) fn act(&mut self, action: &Action) {
        self.clock += 7;
        match *action {
            Action::Contribute {
                replica,
                road,
                weight,
                confidence,
            } => {
                let unit = |bits| Unit::from_bits(bits).expect("in range");
                let id = request(self.issued.len() as u64 + 1);
                self.issued.push((id, unit(weight), unit(confidence)));
                self.contribute(replica, road, self.issued.len() - 1, false);
            }
            Action::Retry {
                replica,
                road,
                which,
            } => {
                if !self.issued.is_empty() {
                    self.contribute(replica, road, which % self.issued.len(), true);
                }
            }
            Action::Remove { replica, road } => self.remove(replica, road),
            Action::Exchange { from, to, which } => {
                let mut some = self.pick(from, which);
                some.reverse();
                self.replicas[to].deliveries.extend(some);
            }
            Action::Adopt { replica, which } => {
                let some = self.pick(replica, which);
                self.log.push(Entry::Adopt(some));
            }
            Action::Apply { replica, entries } => {
                let replica = &mut self.replicas[replica];
                let until = self.log.len().min(replica.applied.saturating_add(entries));
                for index in replica.applied..until {
                    replica.subject.apply(index as u64 + 1, &self.log[index]);
                }
                replica.applied = until;
            }
            Action::Fold => {
                let stable = self.replicas.iter().map(|replica| replica.applied).min();
                let frontier = self.context_at(stable.expect("there are replicas"));
                self.log.push(Entry::Fold(frontier));
            }
            Action::Snapshot { from, to } => {
                if self.replicas[from].applied > self.replicas[to].applied {
                    self.replicas[to].subject = self.replicas[from].subject.clone();
                    self.replicas[to].applied = self.replicas[from].applied;
                }
            }
            Action::Restart { replica } => {
                self.actors += 1;
                self.replicas[replica].actor = self.actors;
                self.replicas[replica].next = 1;
            }
        }
    }

    fn pick(&self, replica: usize, which: u64) -> Vec<OverlayDelta> {
        let deltas = self.replicas[replica].deliveries.iter().enumerate();
        deltas
            .filter(|(i, _)| which >> (i % 64) & 1 == 1)
            .map(|(_, delta)| delta.clone())
            .collect()
    }

    /// The log's context after so many entries.
    fn context_at(&self, applied: usize) -> EdgeContext {
        let mut context = EdgeContext {
            sequence: Sequence(applied as u64),
            ..EdgeContext::default()
        };
        for entry in &self.log[..applied] {
            if let Entry::Adopt(deltas) = entry {
                deltas
                    .iter()
                    .for_each(|delta| context.overlay.insert(delta.dot));
            }
        }
        context
    }

    fn contribute(&mut self, replica: usize, road: Road, issued: usize, retried: bool) {
        let (id, weight, confidence) = self.issued[issued];
        match road {
            Road::Majority => {
                let held = Contribution::new(weight, confidence, stamp(self.clock), id, retried);
                let is_new = self.applied_requests.insert(id);
                self.log.push(if is_new {
                    Entry::Contribute(held)
                } else {
                    Entry::Other
                });
            }
            Road::Local => {
                self.deliver(
                    replica,
                    id,
                    retried,
                    EdgeChange::Contribute { weight, confidence },
                );
            }
        }
    }

    fn remove(&mut self, replica: usize, road: Road) {
        let issuer = &self.replicas[replica];
        let mut context = self.context_at(issuer.applied);
        issuer
            .deliveries
            .iter()
            .for_each(|delta| context.overlay.insert(delta.dot));
        let id = request(1_000 + self.clock);
        match road {
            Road::Majority => {
                let removal = Removal {
                    context,
                    stamp: stamp(self.clock),
                    request: id,
                };
                self.log.push(Entry::Remove(removal));
            }
            Road::Local => self.deliver(replica, id, false, EdgeChange::Remove { context }),
        }
    }

    fn deliver(&mut self, replica: usize, id: RequestId, retried: bool, change: EdgeChange) {
        let end = |id: &str| MemoryId::new(id).expect("a valid id");
        let clock = self.clock;
        let replica = &mut self.replicas[replica];
        let dot = overlay_dot(replica.actor, replica.next);
        replica.next += 1;
        replica.deliveries.push(OverlayDelta {
            dot,
            request: id,
            from: end("from"),
            to: end("to"),
            relation: Relation::new("r").expect("a valid relation"),
            stamp: stamp(clock),
            retried,
            change,
        });
    }
}

impl World<Real> {
    /// What a replica sees, as one state in its context: the log state with the overlay on top.
    pub(super) fn view(&self, replica: usize) -> (EdgeState, EdgeContext) {
        let replica = &self.replicas[replica];
        let Real {
            mut state,
            mut context,
            ..
        } = replica.subject.clone();
        for delta in &replica.deliveries {
            let _ = state.adopt(delta, &context);
            context.overlay.insert(delta.dot);
        }
        (state, context)
    }

    /// All operations that any of these replicas has seen.
    pub(super) fn seen_by(&self, replicas: &[usize]) -> (Vec<Entry>, Vec<OverlayDelta>) {
        let applied = replicas
            .iter()
            .map(|index| self.replicas[*index].applied)
            .max();
        let deltas = replicas
            .iter()
            .flat_map(|index| &self.replicas[*index].deliveries);
        (
            self.log[..applied.unwrap_or(0)].to_vec(),
            deltas.cloned().collect(),
        )
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn values_are_the_oracles(actions in actions(false)) {
        let world = World::<Real>::run(&actions).map_err(TestCaseError::fail)?;
        prop_assert!(world.replicas.iter().all(|replica| replica.subject.conflicts.is_empty()));
    }

    #[test]
    fn values_are_the_oracles_with_folding(actions in actions(true)) {
        let world = World::<Real>::run(&actions).map_err(TestCaseError::fail)?;
        let [first, others @ ..] = world.replicas.as_slice() else { unreachable!() };
        for other in others {
            prop_assert_eq!(&first.subject.state, &other.subject.state);
            prop_assert_eq!(&first.subject.context, &other.subject.context);
        }
    }
}
