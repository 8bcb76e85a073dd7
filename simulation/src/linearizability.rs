//! An independent linearizability checker for registers, after Wing and Gong with Lowe's memory of
//! configurations: it searches for one order of all operations that respects real time and in which
//! each read sees the last write.
//!
//! It knows nothing of versions and sequences, so it cannot be fooled by a witness that lies; the
//! main checker ([`crate::invariant::linearizable`]) is faster and does use them. Registers are
//! independent of each other, so each is checked alone. The search is exponential in the worst
//! case: it stops after a number of steps and says that it does not know.

use std::collections::{BTreeMap, BTreeSet};

/// Steps after which a register's search gives up.
const STEPS_MAX: usize = 2_000_000;

/// The value of a register: a number per distinct value, or nothing.
pub type Value = Option<u32>;

/// What an operation does to its register and saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(u32),
    Remove,
    /// Compare-and-set that succeeded.
    Swap {
        from: Value,
        to: u32,
    },
    /// Compare-and-set that was refused: the register held something else.
    Unequal {
        from: Value,
    },
    Read(Value),
}

impl Action {
    /// The register afterwards; `None` when the action cannot happen in this state.
    fn apply(self, state: Value) -> Option<Value> {
        match self {
            Self::Write(value) => Some(Some(value)),
            Self::Remove => Some(None),
            Self::Swap { from, to } => (state == from).then_some(Some(to)),
            Self::Unequal { from } => (state != from).then_some(state),
            Self::Read(seen) => (state == seen).then_some(state),
        }
    }
}

/// One operation on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub action: Action,
    pub invoked: u64,
    /// `None`: of unknown outcome. It may happen at any time after its invocation, or never.
    pub completed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order exists.
    Impossible,
    /// The search was given up.
    Undecided,
}

/// Checks each register; the verdicts by register.
#[must_use]
pub fn check_all<K: Ord>(registers: BTreeMap<K, Vec<Event>>) -> BTreeMap<K, Verdict> {
    registers
        .into_iter()
        .map(|(key, events)| (key, check(&events)))
        .collect()
}

/// Checks one register, which holds nothing at first.
#[must_use]
pub fn check(events: &[Event]) -> Verdict {
    check_within(events, STEPS_MAX)
}

fn check_within(events: &[Event], steps_max: usize) -> Verdict {
    let mut search = Search::new(events);
    for _ in 0..steps_max {
        if search.unplaced == 0 {
            return Verdict::Linearizable;
        }
        if !search.step() {
            return Verdict::Impossible;
        }
    }
    Verdict::Undecided
}

/// A call or a return in the list of what is not placed yet.
#[derive(Clone, Copy)]
enum Node {
    Head,
    Call(usize),
    Return,
    End,
}

struct Search<'a> {
    events: &'a [Event],
    /// Head, calls and returns in order of time, end; linked, so that placed ones are lifted out.
    nodes: Vec<Node>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each event, the node of its return.
    returns: Vec<Option<usize>>,
    /// Completed operations that have no place in the order yet.
    unplaced: usize,
    state: Value,
    placed: Vec<u64>,
    /// Operations in the order so far: their call node, and the state before.
    order: Vec<(usize, Value)>,
    seen: BTreeSet<(Vec<u64>, Value)>,
    at: usize,
}

impl<'a> Search<'a> {
    fn new(events: &'a [Event]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (number, event) in events.iter().enumerate() {
            times.push((event.invoked, false, number));
            if let Some(completed) = event.completed {
                times.push((completed, true, number));
            }
        }
        times.sort_unstable();
        let mut nodes = vec![Node::Head];
        let mut returns = vec![None; events.len()];
        for (_, is_return, number) in times {
            if is_return {
                returns[number] = Some(nodes.len());
                nodes.push(Node::Return);
            } else {
                nodes.push(Node::Call(number));
            }
        }
        nodes.push(Node::End);
        let last = nodes.len() - 1;
        Self {
            events,
            next: (0..nodes.len()).map(|node| (node + 1).min(last)).collect(),
            previous: (0..nodes.len())
                .map(|node| node.saturating_sub(1))
                .collect(),
            nodes,
            returns,
            unplaced: events
                .iter()
                .filter(|event| event.completed.is_some())
                .count(),
            state: None,
            placed: vec![0; events.len().div_ceil(64)],
            order: Vec::new(),
            seen: BTreeSet::new(),
            at: 1,
        }
    }

    /// Tries the operation at hand as the next of the order, or goes on to another, or takes the
    /// last one back. False when there is nothing left to try.
    fn step(&mut self) -> bool {
        match self.nodes[self.at] {
            Node::Call(number) => {
                if !self.place(number) {
                    self.at = self.next[self.at];
                }
                true
            }
            // What has returned must be in the order before anything later: so must one of those
            // before it.
            Node::Return | Node::End => self.take_back(),
            Node::Head => {
                self.at = self.next[self.at];
                true
            }
        }
    }

    fn place(&mut self, number: usize) -> bool {
        let Some(after) = self.events[number].action.apply(self.state) else {
            return false;
        };
        self.placed[number / 64] |= 1 << (number % 64);
        if !self.seen.insert((self.placed.clone(), after)) {
            self.placed[number / 64] &= !(1 << (number % 64));
            return false;
        }
        self.order.push((self.at, self.state));
        self.state = after;
        self.lift(self.at);
        if let Some(node) = self.returns[number] {
            self.lift(node);
            self.unplaced -= 1;
        }
        self.at = self.next[0];
        true
    }

    fn take_back(&mut self) -> bool {
        let Some((call, before)) = self.order.pop() else {
            return false;
        };
        let Node::Call(number) = self.nodes[call] else {
            unreachable!("only calls are placed");
        };
        self.state = before;
        self.placed[number / 64] &= !(1 << (number % 64));
        if let Some(node) = self.returns[number] {
            self.put_back(node);
            self.unplaced += 1;
        }
        self.put_back(call);
        self.at = self.next[call];
        true
    }

    fn lift(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn put_back(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = node;
        self.previous[after] = node;
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn event(action: Action, invoked: u64, completed: u64) -> Event {
        Event {
            action,
            invoked,
            completed: Some(completed),
        }
    }

    fn unknown(action: Action, invoked: u64) -> Event {
        Event {
            action,
            invoked,
            completed: None,
        }
    }

    #[test]
    fn reads_see_the_last_write() {
        let write = |value, from| event(Action::Write(value), from, from + 1);
        let read = |value, from| event(Action::Read(value), from, from + 1);
        assert_eq!(
            check(&[
                read(None, 1),
                write(1, 3),
                read(Some(1), 5),
                write(2, 7),
                read(Some(2), 9)
            ]),
            Verdict::Linearizable
        );
        assert_eq!(
            check(&[write(1, 1), write(2, 3), read(Some(1), 5)]),
            Verdict::Impossible
        );
        assert_eq!(check(&[write(1, 1), read(None, 3)]), Verdict::Impossible);
        assert_eq!(check(&[read(Some(9), 1)]), Verdict::Impossible);
    }

    #[test]
    fn overlapping_operations_may_take_either_order() {
        let both = [
            event(Action::Write(1), 1, 10),
            event(Action::Write(2), 2, 9),
        ];
        for last in [1, 2] {
            let mut events = both.to_vec();
            events.push(event(Action::Read(Some(last)), 11, 12));
            assert_eq!(check(&events), Verdict::Linearizable);
            // But not one after the other.
            events.push(event(Action::Read(Some(3 - last)), 13, 14));
            assert_eq!(check(&events), Verdict::Impossible);
        }
    }

    #[test]
    fn a_new_value_is_not_unseen() {
        let events = [
            event(Action::Write(1), 1, 100),
            event(Action::Read(Some(1)), 2, 3),
            event(Action::Read(None), 4, 5),
        ];
        assert_eq!(check(&events), Verdict::Impossible);
    }

    #[test]
    fn an_unknown_write_happens_late_or_never() {
        let lost = unknown(Action::Write(1), 1);
        let read = |value, from| event(Action::Read(value), from, from + 1);
        assert_eq!(check(&[lost, read(None, 5)]), Verdict::Linearizable);
        assert_eq!(
            check(&[lost, read(None, 5), read(Some(1), 9)]),
            Verdict::Linearizable
        );
        assert_eq!(
            check(&[lost, read(Some(1), 5), read(None, 9)]),
            Verdict::Impossible
        );
        // It cannot happen before it was asked for.
        assert_eq!(
            check(&[read(Some(1), 1), unknown(Action::Write(1), 5)]),
            Verdict::Impossible
        );
    }

    #[test]
    fn compare_and_set_compares() {
        let swap = |from, to, at| event(Action::Swap { from, to }, at, at + 1);
        assert_eq!(
            check(&[swap(None, 1, 1), swap(Some(1), 2, 3)]),
            Verdict::Linearizable
        );
        assert_eq!(
            check(&[swap(None, 1, 1), swap(None, 2, 3)]),
            Verdict::Impossible
        );
        let two = [
            event(Action::Write(1), 1, 2),
            event(
                Action::Swap {
                    from: Some(1),
                    to: 2,
                },
                3,
                9,
            ),
            event(
                Action::Swap {
                    from: Some(1),
                    to: 3,
                },
                4,
                8,
            ),
        ];
        assert_eq!(check(&two), Verdict::Impossible, "both cannot have won");
        let refused = event(Action::Unequal { from: Some(1) }, 3, 4);
        assert_eq!(
            check(&[event(Action::Write(1), 1, 2), refused]),
            Verdict::Impossible
        );
        assert_eq!(
            check(&[
                event(Action::Write(1), 1, 2),
                event(Action::Remove, 3, 9),
                refused
            ]),
            Verdict::Linearizable
        );
    }

    /// A history that a real register produced; the point of each operation lies within it.
    fn real(rng: &mut StdRng, operations: usize) -> Vec<Event> {
        let mut state = None;
        let mut events = Vec::new();
        for number in 0..operations as u64 {
            let point = number * 100 + 50;
            let before = rng.random_range(0..250);
            let after = rng.random_range(1..250);
            let action = match rng.random_range(0..4) {
                0 => Action::Write(number as u32),
                1 => Action::Swap {
                    from: state,
                    to: number as u32,
                },
                _ => Action::Read(state),
            };
            state = action.apply(state).unwrap_or(state);
            events.push(Event {
                action,
                invoked: point + 1_000 - before,
                completed: (rng.random_range(0..20) != 0).then_some(point + 1_000 + after),
            });
        }
        events
    }

    #[test]
    fn histories_of_a_real_register_pass_and_forged_ones_do_not() {
        let mut rng = StdRng::seed_from_u64(5);
        for _ in 0..30 {
            let mut events = real(&mut rng, 120);
            assert_eq!(check(&events), Verdict::Linearizable);
            events.push(event(Action::Read(Some(1_000_000)), 7_000, 7_001));
            assert_eq!(check(&events), Verdict::Impossible);
        }
    }

    #[test]
    fn a_search_without_end_is_given_up() {
        let mut events: Vec<Event> = (0..40).map(|n| event(Action::Write(n), 1, 1_000)).collect();
        events.push(event(Action::Read(None), 2_000, 2_001));
        assert_eq!(check_within(&events, 1_000), Verdict::Undecided);
    }

    #[test]
    fn registers_are_checked_one_by_one() {
        let verdicts = check_all(BTreeMap::from([
            ("good", vec![event(Action::Read(None), 1, 2)]),
            ("bad", vec![event(Action::Read(Some(1)), 1, 2)]),
        ]));
        assert_eq!(verdicts["good"], Verdict::Linearizable);
        assert_eq!(verdicts["bad"], Verdict::Impossible);
    }
}
