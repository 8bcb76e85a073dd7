//! Keeps the control group's members in step with the map: every node of the map follows it, the
//! first 1, 3 or 5 that stay vote in it, and nodes that left are let go.
//!
//! Runs on every node and acts on the leader. Nothing is remembered that matters, so a new leader
//! simply compares again.

use std::collections::BTreeSet;
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use super::map::ClusterMap;
use super::plane::ControlPlane;
use crate::consensus::{ChangeError, Consensus, Members};
use crate::membership::{Liveness, LivenessView, Membership};
use crate::placement::change::{ChangeStep, View, next_step};
use crate::seams::Seams;

/// How often a leader compares when nothing has changed.
const PERIOD: Duration = Duration::from_millis(1_000);
/// How often it compares while a member catches up.
const CATCH_UP_PERIOD: Duration = Duration::from_millis(100);
/// Longest wait for one step.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for leadership to go.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);

/// The next step towards the members that the control group should have. Voters are changed only
/// while all voters to be are alive: a pair of voters is worse than one. `told` are nodes that know
/// that they left.
#[must_use]
pub fn step(
    map: &ClusterMap,
    liveness: &LivenessView,
    local: NodeId,
    members: &Members,
    told: &BTreeSet<NodeId>,
) -> ChangeStep {
    let alive = |node: &NodeId| *node == local || liveness.get(node) != Some(&Liveness::Dead);
    let alive: BTreeSet<NodeId> = map.nodes.keys().copied().filter(alive).collect();
    let member = |node: &NodeId| members.voters.contains(node) || members.learners.contains(node);
    if let Some(node) = alive.iter().find(|node| !member(node)) {
        return ChangeStep::AddLearner(*node);
    }
    let goal = map.control_voters();
    let wanted: BTreeSet<NodeId> = goal.iter().copied().collect();
    let complete = members.voters == wanted && members.settled;
    let unfit: BTreeSet<NodeId> = wanted.difference(&alive).copied().collect();
    if !complete && members.settled && !unfit.is_empty() {
        return ChangeStep::Wait(unfit);
    }
    // A learner that left is told so by the log before it is let go.
    let untold = members.learners.difference(told).copied();
    let keep: BTreeSet<NodeId> = map.nodes.keys().copied().chain(untold).collect();
    let view = View {
        local,
        members,
        alive: &alive,
        may_lead: &wanted,
    };
    next_step(&view, &goal, &keep)
}

/// Learners that left the map and have its newest entry, or do not answer.
fn told(map: &ClusterMap, liveness: &LivenessView, members: &Members) -> BTreeSet<NodeId> {
    let left = members.learners.iter().copied();
    left.filter(|node| !map.nodes.contains_key(node))
        .filter(|node| {
            members.behind.get(node) == Some(&0) || liveness.get(node) != Some(&Liveness::Alive)
        })
        .collect()
}

/// Runs until `stop`.
pub async fn keep_in_step(
    seams: Seams,
    plane: ControlPlane,
    consensus: Consensus,
    membership: Membership,
    stop: CancellationToken,
) {
    let mut watch = plane.watch();
    let mut told_before = BTreeSet::new();
    loop {
        let map = watch.borrow_and_update().clone();
        let mut pause = PERIOD;
        if let Some(members) = consensus.members(GroupId::CONTROL) {
            let view = membership.view();
            let step = step(&map, &view, plane.local(), &members, &told_before);
            // A round later, so that it has applied what it has.
            told_before = told(&map, &view, &members);
            match take(&consensus, &map, &step).await {
                Ok(()) => {
                    pause = match step {
                        ChangeStep::Done => PERIOD,
                        ChangeStep::Wait(_) => CATCH_UP_PERIOD,
                        _ => {
                            tracing::info!(?step, "the control group has other members");
                            Duration::ZERO
                        }
                    };
                }
                Err(error) => {
                    tracing::debug!(?step, error, "control members not changed yet");
                    pause = CATCH_UP_PERIOD;
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = watch.changed() => if changed.is_err() { return },
            () = seams.clock.sleep(pause) => {}
        }
    }
}

async fn take(consensus: &Consensus, map: &ClusterMap, step: &ChangeStep) -> Result<(), String> {
    let group = GroupId::CONTROL;
    let changed: Result<(), ChangeError> = match step {
        ChangeStep::Done | ChangeStep::Wait(_) => Ok(()),
        ChangeStep::AddLearner(node) => {
            let record = map.nodes.get(node).ok_or("it is not on the map")?;
            let address = record.peer_address.clone();
            consensus
                .add_learner(group, *node, address, STEP_WAIT)
                .await
        }
        ChangeStep::ChangeVoters(voters) => consensus.change_voters(group, voters, STEP_WAIT).await,
        ChangeStep::HandOver(node) => consensus.transfer_to(group, *node, HAND_OVER_WAIT).await,
        ChangeStep::DropLearners(nodes) => consensus.drop_learners(group, nodes, STEP_WAIT).await,
    };
    changed.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::{ControlCommand, NodeState, samples};

    fn map(nodes: u8) -> ClusterMap {
        let mut map = ClusterMap::default();
        apply(&mut map, &samples::init()).outcome.expect("founded");
        for n in 2..=nodes {
            let command = ControlCommand::RegisterNode(samples::node(n));
            apply(&mut map, &command).outcome.expect("joined");
        }
        map
    }

    /// All steps from a control group of node 1 alone, done at once; and who votes then.
    fn settle(map: &ClusterMap, dead: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let view: LivenessView = dead
            .iter()
            .map(|id| (NodeId(*id), Liveness::Dead))
            .collect();
        let mut members = Members {
            voters: BTreeSet::from([NodeId(1)]),
            settled: true,
            ..Members::default()
        };
        for _ in 0..30 {
            match step(map, &view, NodeId(1), &members, &BTreeSet::new()) {
                ChangeStep::AddLearner(node) => {
                    members.learners.insert(node);
                    members.behind.insert(node, 0);
                }
                ChangeStep::ChangeVoters(voters) => {
                    members.learners.retain(|node| !voters.contains(node));
                    members.voters = voters;
                }
                _ => break,
            }
        }
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
        (ids(&members.voters), ids(&members.learners))
    }

    #[test]
    fn voters_come_in_odd_numbers_and_all_others_follow() {
        assert_eq!(settle(&map(1), &[]), (vec![1], vec![]));
        assert_eq!(settle(&map(2), &[]), (vec![1], vec![2]));
        assert_eq!(settle(&map(3), &[]), (vec![1, 2, 3], vec![]));
        assert_eq!(settle(&map(7), &[]), (vec![1, 2, 3, 4, 5], vec![6, 7]));
    }

    #[test]
    fn nobody_is_promoted_while_a_voter_to_be_is_dead() {
        assert_eq!(settle(&map(3), &[2]), (vec![1], vec![3]));
        assert_eq!(settle(&map(7), &[7]), (vec![1, 2, 3, 4, 5], vec![6]));
    }

    #[test]
    fn a_leaving_voter_is_replaced_and_one_that_left_is_let_go_when_it_knows() {
        let mut map = map(4);
        let leave = ControlCommand::SetNodeState {
            node: NodeId(2),
            state: NodeState::Leaving,
        };
        apply(&mut map, &leave).outcome.expect("leaves");
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let mut members = Members {
            voters: ids(&[1, 2, 3]),
            learners: ids(&[4]),
            settled: true,
            behind: [(NodeId(2), 0), (NodeId(3), 0), (NodeId(4), 0)].into(),
        };
        let view = LivenessView::new();
        let next = |map: &ClusterMap, members: &Members, told: &BTreeSet<NodeId>| {
            step(map, &view, NodeId(1), members, told)
        };
        let none = BTreeSet::new();
        assert_eq!(
            next(&map, &members, &none),
            ChangeStep::ChangeVoters(ids(&[1, 3, 4]))
        );
        members.voters = ids(&[1, 3, 4]);
        members.learners = none.clone();
        // It is still on the map, so it goes on following.
        assert_eq!(
            next(&map, &members, &none),
            ChangeStep::AddLearner(NodeId(2))
        );
        members.learners = ids(&[2]);
        let remove = ControlCommand::RemoveNode { node: NodeId(2) };
        apply(&mut map, &remove).outcome.expect("left");
        assert_eq!(next(&map, &members, &none), ChangeStep::Done);
        assert_eq!(
            next(&map, &members, &ids(&[2])),
            ChangeStep::DropLearners(ids(&[2]))
        );
    }
}
