//! How a group comes to have other members: one step at a time, as a pure function of what its
//! leader sees.
//!
//! ```text
//! add learners -> they catch up (snapshot, log, overlay) -> [hand leadership over, if the leader is
//! to go] -> joint change of the voters -> [drop left-over learners] -> done
//! ```
//!
//! Called by the mover for data groups and by the control group's keeper. Nothing is remembered
//! between two steps: whoever leads the group next asks again and goes on, so a step may be repeated
//! and a goal may change in the middle. What must hold: voters change only when all that are to vote
//! have what the leader has, but for a tail of [`TAIL_ENTRIES_MAX`]; a leader that is to go hands
//! over first, so the new members never wait for one that has gone.

use std::collections::BTreeSet;

use engram_core::types::NodeId;

use crate::consensus::Members;

/// A replica that lacks no more entries than this may vote: the rest comes with the next messages.
pub const TAIL_ENTRIES_MAX: u64 = 128;

/// What is known when a step is chosen.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub local: NodeId,
    pub members: &'a Members,
    /// Nodes that are believed to answer.
    pub alive: &'a BTreeSet<NodeId>,
    /// Nodes that may be given leadership; any, where none of them will do.
    pub may_lead: &'a BTreeSet<NodeId>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeStep {
    AddLearner(NodeId),
    /// These have not caught up, or an earlier change is not committed.
    Wait(BTreeSet<NodeId>),
    /// Give leadership to this voter; it goes on from there.
    HandOver(NodeId),
    /// Make exactly these the voters. The first set is to vote in the end, the second now.
    ChangeVoters(BTreeSet<NodeId>),
    DropLearners(BTreeSet<NodeId>),
    Done,
}

/// The step from the members there are to `goal`, the preferred primary first. `keep` are learners
/// that stay.
///
/// # Panics
/// When the goal is empty, which no map allows.
#[must_use]
pub fn next_step(view: &View<'_>, goal: &[NodeId], keep: &BTreeSet<NodeId>) -> ChangeStep {
    assert!(!goal.is_empty(), "a group has at least one member");
    let members = view.members;
    let wanted: BTreeSet<NodeId> = goal.iter().copied().collect();
    if members.voters == wanted && members.settled {
        let extra: BTreeSet<NodeId> = members.learners.difference(keep).copied().collect();
        return match extra.is_empty() {
            true => ChangeStep::Done,
            false => ChangeStep::DropLearners(extra),
        };
    }
    let missing =
        |node: &&NodeId| !members.voters.contains(node) && !members.learners.contains(node);
    if let Some(node) = goal.iter().find(missing) {
        return ChangeStep::AddLearner(*node);
    }
    let behind = |node: &&NodeId| **node != view.local && !has_caught_up(view, **node);
    let learners = wanted.difference(&members.voters);
    let late: BTreeSet<NodeId> = learners.filter(behind).copied().collect();
    if !late.is_empty() {
        return ChangeStep::Wait(late);
    }
    if wanted.contains(&view.local) {
        return ChangeStep::ChangeVoters(wanted);
    }
    leave_as_leader(view, goal, wanted)
}

fn has_caught_up(view: &View<'_>, node: NodeId) -> bool {
    let behind = view.members.behind.get(&node);
    behind.is_some_and(|entries| *entries <= TAIL_ENTRIES_MAX)
}

/// The leader is to go: another member of the goal takes over, and, where none votes yet, gets its
/// vote first.
fn leave_as_leader(view: &View<'_>, goal: &[NodeId], wanted: BTreeSet<NodeId>) -> ChangeStep {
    let voting = |node: &&NodeId| view.members.voters.contains(node);
    let ready = |node: &&NodeId| view.alive.contains(node) && has_caught_up(view, **node);
    let candidates = || goal.iter().filter(voting).filter(ready);
    let heir = candidates()
        .find(|node| view.may_lead.contains(node))
        .or_else(|| candidates().next());
    if let Some(node) = heir {
        return ChangeStep::HandOver(*node);
    }
    let united: BTreeSet<NodeId> = view.members.voters.union(&wanted).copied().collect();
    if united == view.members.voters {
        // Its heirs vote, but none of them could take over now.
        return ChangeStep::Wait(wanted);
    }
    ChangeStep::ChangeVoters(united)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// A group whose Raft does what it is told.
    #[derive(Clone, Debug)]
    struct Group {
        leader: NodeId,
        members: Members,
        alive: BTreeSet<NodeId>,
        /// Old voters of a joint configuration that was left half done.
        steps: usize,
    }

    impl Group {
        fn new(voters: &[u64]) -> Self {
            let voters = set(voters);
            let behind = voters.iter().map(|node| (*node, 0)).collect();
            Self {
                leader: *voters.first().expect("voters"),
                members: Members {
                    voters,
                    settled: true,
                    behind,
                    ..Members::default()
                },
                alive: (1..20).map(NodeId).collect(),
                steps: 0,
            }
        }

        fn next(&self, goal: &[NodeId]) -> ChangeStep {
            let view = View {
                local: self.leader,
                members: &self.members,
                alive: &self.alive,
                may_lead: &self.alive,
            };
            next_step(&view, goal, &BTreeSet::new())
        }

        fn take(&mut self, step: &ChangeStep) {
            self.steps += 1;
            match step {
                ChangeStep::AddLearner(node) => {
                    assert!(self.members.learners.insert(*node), "added twice");
                    self.members.behind.insert(*node, 10_000);
                }
                ChangeStep::Wait(nodes) => {
                    for node in nodes {
                        self.members.behind.insert(*node, 0);
                    }
                }
                ChangeStep::HandOver(node) => {
                    assert!(self.members.voters.contains(node), "only a voter may lead");
                    self.leader = *node;
                }
                ChangeStep::ChangeVoters(voters) => {
                    assert!(voters.contains(&self.leader), "a leader votes itself out");
                    for node in voters.difference(&self.members.voters) {
                        assert!(self.members.learners.remove(node), "no member before");
                        let behind = self.members.behind.get(node);
                        assert!(behind <= Some(&TAIL_ENTRIES_MAX), "it has not caught up");
                    }
                    self.members.voters = voters.clone();
                }
                ChangeStep::DropLearners(nodes) => {
                    self.members.learners.retain(|node| !nodes.contains(node));
                }
                ChangeStep::Done => {}
            }
        }

        fn run(&mut self, goal: &[NodeId]) -> Vec<ChangeStep> {
            let mut taken = Vec::new();
            loop {
                let step = self.next(goal);
                if step == ChangeStep::Done {
                    return taken;
                }
                assert!(taken.len() < 40, "it does not end: {taken:?}");
                self.take(&step);
                taken.push(step);
            }
        }
    }

    #[test]
    fn a_follower_is_replaced_in_one_joint_change() {
        let mut group = Group::new(&[1, 2, 3]);
        let steps = group.run(&nodes(&[1, 2, 4]));
        let expected = [
            ChangeStep::AddLearner(NodeId(4)),
            ChangeStep::Wait(set(&[4])),
            ChangeStep::ChangeVoters(set(&[1, 2, 4])),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        let mut group = Group::new(&[1, 2, 3]);
        let steps = group.run(&nodes(&[4, 2, 3]));
        let expected = [
            ChangeStep::AddLearner(NodeId(4)),
            ChangeStep::Wait(set(&[4])),
            ChangeStep::HandOver(NodeId(2)),
            ChangeStep::ChangeVoters(set(&[2, 3, 4])),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn the_only_replica_is_moved_through_two_voters() {
        let mut group = Group::new(&[1]);
        let steps = group.run(&nodes(&[4]));
        let expected = [
            ChangeStep::AddLearner(NodeId(4)),
            ChangeStep::Wait(set(&[4])),
            ChangeStep::ChangeVoters(set(&[1, 4])),
            ChangeStep::HandOver(NodeId(4)),
            ChangeStep::ChangeVoters(set(&[4])),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn growth_adds_all_replicas_before_the_first_of_them_votes() {
        let mut group = Group::new(&[1]);
        let steps = group.run(&nodes(&[1, 2, 3]));
        assert_eq!(
            steps.last(),
            Some(&ChangeStep::ChangeVoters(set(&[1, 2, 3])))
        );
        assert_eq!(steps.len(), 4, "{steps:?}");
    }

    #[test]
    fn a_move_that_was_called_off_leaves_no_learner_behind() {
        let mut group = Group::new(&[1, 2, 3]);
        for _ in 0..2 {
            let step = group.next(&nodes(&[1, 2, 4]));
            group.take(&step);
        }
        let steps = group.run(&nodes(&[1, 2, 3]));
        assert_eq!(steps, [ChangeStep::DropLearners(set(&[4]))]);
    }

    #[test]
    fn a_dead_heir_is_not_waited_for_when_another_lives() {
        let mut group = Group::new(&[1, 2, 3]);
        group.alive.remove(&NodeId(2));
        let step = group.next(&nodes(&[2, 3]));
        assert_eq!(step, ChangeStep::HandOver(NodeId(3)));
    }

    #[test]
    fn a_change_left_half_done_is_completed() {
        let mut group = Group::new(&[1, 2, 3, 4]);
        group.members.settled = false;
        let step = group.next(&nodes(&[1, 2, 3, 4]));
        assert_eq!(step, ChangeStep::ChangeVoters(set(&[1, 2, 3, 4])));
    }

    proptest! {
        /// Whatever the goal was before, and whoever takes over in the middle: the goal of the end
        /// is reached, by steps that Raft accepts, and then nothing more is done.
        #[test]
        fn every_goal_is_reached(
            first in prop::collection::btree_set(1..8u64, 1..5),
            goals in prop::collection::vec(prop::collection::btree_set(1..8u64, 1..5), 1..4),
            interrupted_after in 0..6usize,
        ) {
            let mut group = Group::new(&first.into_iter().collect::<Vec<_>>());
            let goals: Vec<Vec<NodeId>> = goals
                .iter()
                .map(|goal| goal.iter().copied().map(NodeId).collect())
                .collect();
            let (last, before) = goals.split_last().expect("goals");
            for goal in before {
                for _ in 0..interrupted_after {
                    let step = group.next(goal);
                    group.take(&step);
                }
                // Another voter leads now.
                group.leader = *group.members.voters.last().expect("voters");
            }
            group.run(last);
            let wanted: BTreeSet<NodeId> = last.iter().copied().collect();
            prop_assert_eq!(&group.members.voters, &wanted);
            prop_assert!(group.members.learners.is_empty());
            prop_assert_eq!(group.next(last), ChangeStep::Done);
            let behind: BTreeMap<NodeId, u64> = group.members.behind.clone();
            prop_assert!(wanted.iter().all(|node| behind[node] <= TAIL_ENTRIES_MAX));
        }
    }
}
