//! Keeps the control group's members in step with the map: every node of the map follows it, the
//! first 1, 3 or 5 vote in it.
//!
//! Runs on every node and acts on the leader. Each step is idempotent, so a new leader simply
//! compares again.

use std::collections::BTreeSet;
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use super::map::ClusterMap;
use super::plane::ControlPlane;
use crate::consensus::Consensus;
use crate::membership::{Liveness, LivenessView, Membership};
use crate::seams::Seams;

/// How often a leader compares when nothing has changed.
const PERIOD: Duration = Duration::from_millis(1_000);
/// Longest wait for one member to catch up before the next one has its turn.
const STEP_MAX: Duration = Duration::from_secs(10);

/// A membership that the control group should have, for one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub node: NodeId,
    pub address: String,
    pub voter: bool,
}

/// Who should be a member now: nodes that are alive, voters first. Nobody is promoted before all
/// voters to be are alive: a pair of voters is worse than one.
#[must_use]
pub fn wanted(map: &ClusterMap, liveness: &LivenessView) -> Vec<Member> {
    let alive = |node: &NodeId| liveness.get(node) != Some(&Liveness::Dead);
    let voters = map.control_voters();
    let promote = voters.iter().all(alive);
    let mut members: Vec<Member> = map
        .nodes
        .values()
        .filter(|node| alive(&node.id))
        .map(|node| Member {
            node: node.id,
            address: node.peer_address.clone(),
            voter: promote && voters.contains(&node.id),
        })
        .collect();
    members.sort_by_key(|member| (!member.voter, member.node));
    members
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
    let mut epoch = 0;
    let mut done = BTreeSet::new();
    loop {
        let leadership = consensus.leadership(GroupId::CONTROL);
        if leadership.epoch != epoch {
            epoch = leadership.epoch;
            done.clear();
        }
        if leadership.leader == Some(plane.local()) {
            let map = plane.map();
            for member in wanted(&map, &membership.view()) {
                if member.node == plane.local() || done.contains(&member) {
                    continue;
                }
                if add(&seams, &consensus, &member).await {
                    done.insert(member);
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = watch.changed() => if changed.is_err() { return },
            () = seams.clock.sleep(PERIOD) => {}
        }
    }
}

async fn add(seams: &Seams, consensus: &Consensus, member: &Member) -> bool {
    let Member {
        node,
        address,
        voter,
    } = member.clone();
    let adding = consensus.add_member(GroupId::CONTROL, node, address, voter);
    match seams.timeout(STEP_MAX, adding).await {
        Ok(Ok(())) => {
            tracing::info!(member = node.0, voter, "the control group has a member");
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(member = node.0, voter, %error, "control member not added yet");
            false
        }
        Err(error) => {
            tracing::debug!(member = node.0, voter, %error, "control member not added yet");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::{ControlCommand, samples};

    fn voters(nodes: u8, dead: &[u64]) -> (Vec<u64>, usize) {
        let mut map = ClusterMap::default();
        apply(&mut map, &samples::init()).outcome.expect("founded");
        for n in 2..=nodes {
            let command = ControlCommand::RegisterNode(samples::node(n));
            apply(&mut map, &command).outcome.expect("joined");
        }
        let view = dead
            .iter()
            .map(|node| (NodeId(*node), Liveness::Dead))
            .collect();
        let members = wanted(&map, &view);
        let voters = members
            .iter()
            .filter(|member| member.voter)
            .map(|member| member.node.0);
        (voters.collect(), members.len())
    }

    #[test]
    fn voters_come_in_odd_numbers_and_all_others_follow() {
        assert_eq!(voters(1, &[]), (vec![1], 1));
        assert_eq!(voters(2, &[]), (vec![1], 2));
        assert_eq!(voters(3, &[]), (vec![1, 2, 3], 3));
        assert_eq!(voters(7, &[]), (vec![1, 2, 3, 4, 5], 7));
    }

    #[test]
    fn nobody_is_promoted_while_a_voter_to_be_is_dead() {
        assert_eq!(voters(3, &[2]), (vec![], 2));
        assert_eq!(voters(7, &[7]), (vec![1, 2, 3, 4, 5], 6));
    }
}
