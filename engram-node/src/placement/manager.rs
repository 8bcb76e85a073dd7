//! What the control plane's leader does about placement: starts the moves that are due, calls off
//! those that cannot come about, and lets nodes go that have nothing left.
//!
//! [`due`] is pure; [`Manager`] runs on every node and acts where the control group is led. Nothing
//! is remembered but since when nodes are down: a new leader finds the rest in the map.

use std::collections::BTreeSet;
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use super::health::Downtimes;
use super::planner::{Health, Healths, PlannedMove, Sizes, health_of, required};
use crate::consensus::Consensus;
use crate::control::{
    ClusterMap, ControlCommand, ControlPlane, GroupRecord, MoveRecord, NewMove, NodeState,
};
use crate::membership::Membership;
use crate::seams::Seams;

/// How often the leader looks.
const PERIOD: Duration = Duration::from_millis(500);
/// Moves that one look starts; the next one starts more.
const STARTS_MAX: usize = 32;
/// Longest wait for a command.
const COMMAND_WAIT: Duration = Duration::from_secs(5);

/// The commands that are due. `control` are the members of the control group that vote.
#[must_use]
pub fn due(
    map: &ClusterMap,
    healths: &Healths,
    control: &BTreeSet<NodeId>,
    now_millis: u64,
) -> Vec<ControlCommand> {
    let mut commands: Vec<ControlCommand> = Vec::new();
    for group in map.groups.values() {
        if let Some(change) = group
            .change
            .as_ref()
            .filter(|it| is_hopeless(map, healths, group, it))
        {
            commands.push(ControlCommand::CancelMove {
                group: group.id,
                id: change.id,
            });
        }
    }
    let plan = required(map, healths, &Sizes::new());
    let starts = plan.moves.into_iter().take(STARTS_MAX);
    commands.extend(starts.map(|planned| start(planned, now_millis)));
    let gone = map.nodes.values().filter(|node| {
        node.state == NodeState::Leaving && !control.contains(&node.id) && is_empty(map, node.id)
    });
    commands.extend(gone.map(|node| ControlCommand::RemoveNode { node: node.id }));
    commands
}

/// The command that starts a planned move.
#[must_use]
pub fn start(planned: PlannedMove, now_millis: u64) -> ControlCommand {
    ControlCommand::StartMove(NewMove {
        group: planned.group,
        expected: planned.from,
        goal: planned.goal,
        cause: planned.cause,
        now_millis,
    })
}

/// Whether a node that is to get a replica will not be able to: it is gone, or leaving itself.
fn is_hopeless(
    map: &ClusterMap,
    healths: &Healths,
    group: &GroupRecord,
    change: &MoveRecord,
) -> bool {
    let lost = |node: &NodeId| {
        let state = map.nodes.get(node).map(|record| record.state);
        state == Some(NodeState::Leaving) || health_of(healths, *node) == Health::Gone
    };
    let mut added = change
        .goal
        .iter()
        .filter(|node| !group.replicas.contains(node));
    !change.cancelled && added.any(lost)
}

/// Whether a node holds no replica and is not about to.
#[must_use]
pub fn is_empty(map: &ClusterMap, node: NodeId) -> bool {
    map.groups
        .values()
        .all(|group| !group.hosts().contains(&node))
}

/// The manager of one node.
pub struct Manager {
    pub seams: Seams,
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub membership: Membership,
    /// How long a node may be down before its replicas are created elsewhere.
    pub grace: Duration,
}

impl Manager {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut downtimes = Downtimes::default();
        let mut watch = self.plane.watch();
        loop {
            let map = watch.borrow_and_update().clone();
            match self.consensus.members(GroupId::CONTROL) {
                Some(members) => {
                    let now = self.seams.clock.monotonic();
                    let view = self.membership.view();
                    let healths = downtimes.observe(&map, &view, now, self.grace);
                    let wall = self.seams.clock.wall_millis();
                    for command in due(&map, &healths, &members.voters, wall) {
                        self.execute(command).await;
                    }
                }
                // Whoever leads next measures anew.
                None => downtimes = Downtimes::default(),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.seams.clock.sleep(PERIOD) => {}
            }
        }
    }

    async fn execute(&self, command: ControlCommand) {
        let what = format!("{command:?}");
        match self
            .plane
            .execute(command, COMMAND_WAIT)
            .await
            .map(|reply| reply.outcome)
        {
            Ok(Ok(_)) => tracing::info!(what, "placement changes"),
            // The map has changed in between: the next look sees how.
            Ok(Err(refusal)) => tracing::debug!(what, %refusal, "placement command refused"),
            Err(error) => tracing::debug!(what, %error, "placement command not answered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::{ControlOutcome, samples};

    fn run(map: &mut ClusterMap, command: &ControlCommand) -> ControlOutcome {
        let outcome = apply(map, command).outcome.expect("accepted");
        map.validate();
        outcome
    }

    /// Four nodes; group 1 is on 1, 2 and 3.
    fn map() -> ClusterMap {
        let mut map = ClusterMap::default();
        run(&mut map, &samples::init());
        for n in 2..=4 {
            run(&mut map, &ControlCommand::RegisterNode(samples::node(n)));
        }
        let space = samples::space("words", &[&[1, 2, 3]]);
        run(&mut map, &ControlCommand::CreateSpace(space));
        map
    }

    fn alive(map: &ClusterMap) -> Healths {
        map.nodes
            .keys()
            .map(|node| (*node, Health::Alive))
            .collect()
    }

    fn leave(node: u64) -> ControlCommand {
        ControlCommand::SetNodeState {
            node: NodeId(node),
            state: NodeState::Leaving,
        }
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_leaving_node_is_emptied_and_then_let_go() {
        let mut map = map();
        let healths = alive(&map);
        assert_eq!(due(&map, &healths, &voters(&[1, 2, 3]), 7), []);
        run(&mut map, &leave(2));
        let commands = due(&map, &healths, &voters(&[1, 2, 3]), 7);
        let [ControlCommand::StartMove(new)] = commands.as_slice() else {
            panic!("one move: {commands:?}");
        };
        assert_eq!(new.goal, [1, 3, 4].map(NodeId));
        run(&mut map, &commands[0]);
        assert_eq!(
            due(&map, &healths, &voters(&[1, 2, 3]), 7),
            [],
            "it is under way"
        );
        let group = GroupId(1);
        let id = map.groups[&group].change.as_ref().expect("a move").id;
        run(&mut map, &ControlCommand::FinishMove { group, id });
        assert_eq!(
            due(&map, &healths, &voters(&[1, 2, 3]), 7),
            [],
            "it still votes in the control group"
        );
        let remove = ControlCommand::RemoveNode { node: NodeId(2) };
        assert_eq!(
            due(&map, &healths, &voters(&[1, 3, 4]), 7),
            std::slice::from_ref(&remove)
        );
        run(&mut map, &remove);
        assert_eq!(due(&map, &healths, &voters(&[1, 3, 4]), 7), []);
    }

    #[test]
    fn a_move_to_a_lost_node_is_called_off_once_and_planned_anew() {
        let mut map = map();
        let mut healths = alive(&map);
        run(&mut map, &samples::start_move(1, &[1, 2, 3], &[1, 2, 4]));
        healths.insert(NodeId(4), Health::Gone);
        let commands = due(&map, &healths, &voters(&[1, 2, 3]), 7);
        let [cancel @ ControlCommand::CancelMove { .. }] = commands.as_slice() else {
            panic!("called off: {commands:?}");
        };
        run(&mut map, cancel);
        assert_eq!(due(&map, &healths, &voters(&[1, 2, 3]), 7), []);
        let group = GroupId(1);
        let id = map.groups[&group].change.as_ref().expect("a move back").id;
        run(&mut map, &ControlCommand::FinishMove { group, id });
        assert_eq!(map.replicas(group), [1, 2, 3].map(NodeId));
    }

    #[test]
    fn a_dead_replica_is_replaced_when_its_time_is_over() {
        let mut map = map();
        let mut healths = alive(&map);
        healths.insert(NodeId(3), Health::Dead);
        assert_eq!(due(&map, &healths, &voters(&[1, 2, 3]), 7), []);
        healths.insert(NodeId(3), Health::Gone);
        let commands = due(&map, &healths, &voters(&[1, 2, 3]), 7);
        let [ControlCommand::StartMove(new)] = commands.as_slice() else {
            panic!("one move: {commands:?}");
        };
        assert_eq!(new.goal, [1, 2, 4].map(NodeId));
        run(&mut map, &commands[0]);
    }
}
