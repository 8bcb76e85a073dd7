//! Leaderships go where they belong: to the preferred primary of each group, and away from nodes
//! that are drained, in maintenance or leaving.
//!
//! Runs on every node for the groups that it leads. What must hold: leadership goes only to a voter
//! that is alive and has what this leader has, so a transfer costs one round trip and no election;
//! a node that has just come back gets its leaderships after [`SETTLED_AFTER`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use super::change::TAIL_ENTRIES_MAX;
use crate::consensus::{Consensus, Members};
use crate::control::{ClusterMap, ControlPlane};
use crate::membership::{Liveness, Membership};
use crate::seams::Seams;

/// How often the leaderships are looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a node has to be alive before leadership goes back to it by itself.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Leaderships that go in one round.
const TRANSFERS_MAX: usize = 16;
/// Longest wait for leadership to go.
const TRANSFER_WAIT: Duration = Duration::from_secs(2);

/// Who should take a group over that `local` leads; `None` when it stays. `settled` are nodes that
/// have been alive for a while, `alive` all that are alive.
#[must_use]
pub fn heir(
    map: &ClusterMap,
    local: NodeId,
    group: GroupId,
    members: &Members,
    alive: &BTreeSet<NodeId>,
    settled: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let active = |node: &NodeId| map.nodes.get(node).is_some_and(|it| it.state.is_active());
    let ready = |node: &NodeId| {
        let behind = members.behind.get(node).copied();
        let level = behind.is_some_and(|entries| entries <= TAIL_ENTRIES_MAX);
        *node != local && members.voters.contains(node) && level && active(node)
    };
    let record = map.groups.get(&group);
    let control = map.control_voters();
    let order = record.map_or(&control, |record| &record.replicas);
    if !active(&local) {
        return order
            .iter()
            .copied()
            .find(|node| ready(node) && alive.contains(node));
    }
    // The control plane may be led from anywhere; and while a group moves, its mover decides.
    if record?.change.is_some() {
        return None;
    }
    let preferred = order.iter().copied().find(active)?;
    (preferred != local && ready(&preferred) && settled.contains(&preferred)).then_some(preferred)
}

/// The keeper of one node's leaderships.
pub struct Leaders {
    pub seams: Seams,
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub membership: Membership,
}

impl Leaders {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut alive_since: BTreeMap<NodeId, Duration> = BTreeMap::new();
        loop {
            self.observe(&mut alive_since);
            for (group, to) in self.due(&alive_since) {
                match self.consensus.transfer_to(group, to, TRANSFER_WAIT).await {
                    Ok(()) => tracing::info!(group = group.0, to = to.0, "leadership given away"),
                    Err(error) => tracing::debug!(group = group.0, to = to.0, %error, "not given"),
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.seams.clock.sleep(PERIOD) => {}
            }
        }
    }

    fn observe(&self, alive_since: &mut BTreeMap<NodeId, Duration>) {
        let now = self.seams.clock.monotonic();
        let view = self.membership.view();
        let lives = |node: &NodeId| view.get(node) == Some(&Liveness::Alive);
        alive_since.retain(|node, _| lives(node));
        for node in view.keys().filter(|node| lives(node)) {
            alive_since.entry(*node).or_insert(now);
        }
    }

    fn due(&self, alive_since: &BTreeMap<NodeId, Duration>) -> Vec<(GroupId, NodeId)> {
        let (map, now) = (self.plane.map(), self.seams.clock.monotonic());
        let alive: BTreeSet<NodeId> = alive_since.keys().copied().collect();
        let since = alive_since.iter();
        let settled = since.filter(|(_, since)| now.saturating_sub(**since) >= SETTLED_AFTER);
        let settled: BTreeSet<NodeId> = settled.map(|(node, _)| *node).collect();
        let led = self.consensus.groups().into_iter();
        let led = led.filter_map(|group| Some((group, self.consensus.members(group)?)));
        let heirs = led.filter_map(|(group, members)| {
            let to = heir(&map, self.plane.local(), group, &members, &alive, &settled)?;
            Some((group, to))
        });
        heirs.take(TRANSFERS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::{ControlCommand, NodeState, samples};

    const GROUP: GroupId = GroupId(1);

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Group 1 on nodes 1 (preferred), 2 and 3, whose states are given.
    fn map(states: &[(u64, NodeState)]) -> ClusterMap {
        let mut map = ClusterMap::default();
        let mut commands: Vec<ControlCommand> = samples::commands().into_iter().take(3).collect();
        let space = samples::space("words", &[&[1, 2, 3]]);
        commands.push(ControlCommand::CreateSpace(space));
        commands.extend(states.iter().map(|(node, state)| {
            let (node, state) = (NodeId(*node), *state);
            ControlCommand::SetNodeState { node, state }
        }));
        for command in commands {
            apply(&mut map, &command).outcome.expect("accepted");
        }
        map
    }

    fn members(behind: &[(u64, u64)]) -> Members {
        Members {
            voters: set(&[1, 2, 3]),
            settled: true,
            behind: behind
                .iter()
                .map(|(node, it)| (NodeId(*node), *it))
                .collect(),
            ..Members::default()
        }
    }

    #[test]
    fn the_preferred_primary_gets_it_back_when_it_has_caught_up_and_settled() {
        let map = map(&[]);
        let all = set(&[1, 2, 3]);
        let ask = |members: &Members, settled: &BTreeSet<NodeId>| {
            heir(&map, NodeId(2), GROUP, members, &all, settled).map(|node| node.0)
        };
        let level = members(&[(1, 0), (2, 0), (3, 0)]);
        assert_eq!(ask(&level, &all), Some(1));
        assert_eq!(ask(&level, &set(&[2, 3])), None);
        assert_eq!(ask(&members(&[(1, 5_000), (3, 0)]), &all), None);
        assert_eq!(heir(&map, NodeId(1), GROUP, &level, &all, &all), None);
    }

    #[test]
    fn a_drained_leader_gives_away_at_once() {
        let map = map(&[(1, NodeState::Draining), (2, NodeState::Maintenance)]);
        let level = members(&[(2, 0), (3, 0)]);
        let none = BTreeSet::new();
        let to = heir(&map, NodeId(1), GROUP, &level, &set(&[1, 2, 3]), &none);
        assert_eq!(to, Some(NodeId(3)));
        let to = heir(&map, NodeId(1), GROUP, &level, &set(&[1, 2]), &none);
        assert_eq!(to, None, "nobody may take it");
        let to = heir(
            &map,
            NodeId(3),
            GROUP,
            &level,
            &set(&[1, 2, 3]),
            &set(&[1, 2, 3]),
        );
        assert_eq!(to, None, "it does not go back to a drained one");
    }

    #[test]
    fn the_control_plane_leaves_a_drained_node_too() {
        let map = map(&[(1, NodeState::Draining)]);
        let level = members(&[(2, 0), (3, 0)]);
        let all = set(&[1, 2, 3]);
        let to = heir(&map, NodeId(1), GroupId::CONTROL, &level, &all, &all);
        assert_eq!(to, Some(NodeId(2)));
        assert_eq!(
            heir(&map, NodeId(3), GroupId::CONTROL, &level, &all, &all),
            None
        );
    }
}
