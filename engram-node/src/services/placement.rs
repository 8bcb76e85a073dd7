//! What operators ask of placement: states of nodes, moves, transfers, rebalancing, other numbers of
//! replicas. Each call plans on this node's map, says what stands in the way by name, and proposes
//! commands to the control plane; the moves themselves go on without the caller.

use std::collections::BTreeMap;
use std::time::Duration;

use engram_core::limits::REPLICAS_MAX;
use engram_core::types::{GroupId, NodeId, PartitionId};
use engram_proto::v1;
use futures::future::join_all;

use super::Services;
use super::failure::{Failure, InputError};
use super::spaces::{api_space_of, in_range};
use crate::control::{
    ClusterMap, ControlCommand, ControlOutcome, ControlRefusal, GroupRecord, MoveCause, NewMove,
    NodeState, PartitionRecord,
};
use crate::placement::health::snapshot;
use crate::placement::manager::start;
use crate::placement::mover::active_moves;
use crate::placement::planner::{
    Blocked, Health, Healths, Plan, PlannedMove, Sizes, health_of, rebalance, required,
    stopping_blocks,
};
use crate::routing::Deadline;

/// How long the leader of a group may take to say how far a move is.
const PROGRESS_WAIT: Duration = Duration::from_millis(1_000);

impl Services {
    pub(super) async fn set_node_state(
        &self,
        request: v1::SetNodeStateRequest,
        deadline: Deadline,
    ) -> Result<v1::SetNodeStateResponse, Failure> {
        let (node, map) = (NodeId(request.node), self.router().map());
        let state = node_state(request.state())?;
        if !map.nodes.contains_key(&node) {
            return Err(ControlRefusal::UnknownNode { node }.into());
        }
        let (sizes, healths) = self.look_around(&map, deadline).await;
        let plan = plan_of_state(&map, &healths, &sizes, node, state);
        let led = |group: &&GroupRecord| self.router().believed_leader(group.id) == Some(node);
        let led: Vec<GroupId> = match state {
            NodeState::Active => Vec::new(),
            _ => map.groups.values().filter(led).map(|it| it.id).collect(),
        };
        let primaries = map
            .partitions()
            .filter(|(_, partition)| led.contains(&partition.group));
        let primaries = primaries.count() as u32;
        let stands = request.force || plan.blocked.is_empty();
        let done = stands && !request.dry_run;
        if done {
            let command = ControlCommand::SetNodeState { node, state };
            self.control(command, deadline).await?;
        }
        Ok(v1::SetNodeStateResponse {
            done,
            blocked: api_blocked(&map, &plan.blocked),
            moves: api_moves(&map, &sizes, &plan.moves),
            primaries,
        })
    }

    pub(super) async fn rebalance(
        &self,
        request: v1::RebalanceRequest,
        deadline: Deadline,
    ) -> Result<v1::RebalanceResponse, Failure> {
        let map = self.router().map();
        let (sizes, healths) = self.look_around(&map, deadline).await;
        let plan = rebalance(&map, &healths, &sizes);
        let mut answer = v1::RebalanceResponse {
            moves: api_moves(&map, &sizes, &plan.moves),
            transfers: api_transfers(&map, &plan.transfers),
            started: 0,
        };
        if request.dry_run {
            return Ok(answer);
        }
        for planned in plan.moves {
            let command = start(planned, self.router().seams().clock.wall_millis());
            match self.control(command, deadline).await {
                Ok(_) => answer.started += 1,
                // Something else moves it meanwhile.
                Err(Failure::Refused(ControlRefusal::Conflict { .. })) => {}
                Err(failure) => return Err(failure),
            }
        }
        for (group, node) in plan.transfers {
            let command = ControlCommand::PreferPrimary { group, node };
            self.control(command, deadline).await?;
        }
        Ok(answer)
    }

    pub(super) async fn move_replica(
        &self,
        request: v1::MoveReplicaRequest,
        deadline: Deadline,
    ) -> Result<v1::MoveReplicaResponse, Failure> {
        let map = self.router().map();
        let group = group_of(&map, request.partition)?;
        let (from, to) = (NodeId(request.from), NodeId(request.to));
        let (sizes, healths) = self.look_around(&map, deadline).await;
        check_move(&map, &healths, group, from, to)?;
        let swap = |node: &NodeId| if *node == from { to } else { *node };
        let planned = PlannedMove {
            group: group.id,
            from: group.replicas.clone(),
            goal: group.replicas.iter().map(swap).collect(),
            cause: MoveCause::Operator,
        };
        let shown = api_move(&map, &sizes, &planned);
        let mut id = 0;
        if !request.dry_run {
            let now_millis = self.router().seams().clock.wall_millis();
            let command = ControlCommand::StartMove(NewMove {
                group: planned.group,
                expected: planned.from,
                goal: planned.goal,
                cause: planned.cause,
                now_millis,
            });
            if let ControlOutcome::MoveStarted { id: started } =
                self.control(command, deadline).await?
            {
                id = started.0;
            }
        }
        Ok(v1::MoveReplicaResponse {
            r#move: id,
            planned: Some(shown),
        })
    }

    pub(super) async fn transfer_primary(
        &self,
        request: v1::TransferPrimaryRequest,
        deadline: Deadline,
    ) -> Result<v1::TransferPrimaryResponse, Failure> {
        let map = self.router().map();
        let group = group_of(&map, request.partition)?;
        let node = NodeId(request.to);
        if health_of(&self.healths(&map), node) >= Health::Dead {
            return Err(not_possible(format!("node {node} is dead")));
        }
        let from = self.router().believed_leader(group.id);
        let group = group.id;
        let command = ControlCommand::PreferPrimary { group, node };
        self.control(command, deadline).await?;
        Ok(v1::TransferPrimaryResponse {
            from: from.map_or(0, |node| node.0),
        })
    }

    pub(super) async fn alter_space(
        &self,
        request: v1::AlterSpaceRequest,
        deadline: Deadline,
    ) -> Result<v1::AlterSpaceResponse, Failure> {
        let space = self.space(&request.name, deadline).await?;
        let replicas = match request.replicas {
            0 => space.replicas,
            replicas => replicas,
        };
        in_range("replicas", replicas, 1, REPLICAS_MAX)?;
        let map = self.router().map();
        let mut wanted = ClusterMap::clone(&map);
        if let Some(space) = wanted.spaces.get_mut(&space.config.space) {
            space.replicas = replicas;
        }
        let (sizes, healths) = self.look_around(&map, deadline).await;
        let plan = required(&wanted, &healths, &sizes);
        let ours = |group: GroupId| space.partitions.iter().any(|it| it.group == group);
        let blocked: Vec<Blocked> = plan
            .blocked
            .into_iter()
            .filter(|it| ours(it.group))
            .collect();
        let moves: Vec<PlannedMove> = plan.moves.into_iter().filter(|it| ours(it.group)).collect();
        let mut altered = space.clone();
        if blocked.is_empty() && !request.dry_run && replicas != space.replicas {
            let name = request.name.clone();
            let command = ControlCommand::AlterSpace { name, replicas };
            self.control(command, deadline).await?;
            altered.replicas = replicas;
        }
        Ok(v1::AlterSpaceResponse {
            space: Some(api_space_of(&altered)),
            moves: api_moves(&map, &sizes, &moves),
            blocked: api_blocked(&map, &blocked),
        })
    }

    pub(super) async fn list_moves(
        &self,
        _request: v1::ListMovesRequest,
        deadline: Deadline,
    ) -> Result<v1::ListMovesResponse, Failure> {
        let map = self.router().map();
        let active = active_moves(&map);
        let (sizes, _) = self.look_around(&map, deadline).await;
        let changing = map.groups.values().filter(|group| group.change.is_some());
        let moves = changing.map(|group| {
            let queued = !active.contains(&group.id);
            self.describe_move(&map, group, queued, &sizes, deadline)
        });
        let moves = join_all(moves).await.into_iter().flatten().collect();
        Ok(v1::ListMovesResponse { moves })
    }

    async fn describe_move(
        &self,
        map: &ClusterMap,
        group: &GroupRecord,
        queued: bool,
        sizes: &Sizes,
        deadline: Deadline,
    ) -> Option<v1::Move> {
        use v1::r#move::{Cause, Phase};
        let change = group.change.as_ref()?;
        let before: Vec<NodeId> = match change.cancelled {
            // It goes back from where it was going.
            true => change.touched.iter().copied().collect(),
            false => group.replicas.clone(),
        };
        let gone = before.iter().filter(|node| !change.goal.contains(node));
        let new = change
            .goal
            .iter()
            .filter(|node| !group.replicas.contains(node));
        let (from, to): (Vec<u64>, Vec<u64>) = (
            gone.map(|node| node.0).collect(),
            new.map(|node| node.0).collect(),
        );
        let cause = match change.cause {
            MoveCause::Operator => Cause::Operator,
            MoveCause::Rebalance => Cause::Rebalance,
            MoveCause::Leaving => Cause::Leaving,
            MoveCause::Dead => Cause::Dead,
            MoveCause::Replicas => Cause::Replicas,
        };
        let mut described = v1::Move {
            id: change.id.0,
            group: group.id.0,
            partitions: names(map, group.id),
            bytes: sizes.get(&group.id).copied().unwrap_or(0) * to.len() as u64,
            from,
            to,
            cause: cause.into(),
            phase: Phase::Queued.into(),
            cancelled: change.cancelled,
            started_millis: change.started_millis as i64,
            bytes_sent: 0,
            entries_left: 0,
        };
        if !queued {
            self.add_progress(map, group, &mut described, deadline)
                .await;
        }
        Some(described)
    }

    async fn add_progress(
        &self,
        map: &ClusterMap,
        group: &GroupRecord,
        described: &mut v1::Move,
        deadline: Deadline,
    ) {
        use v1::r#move::Phase;
        described.set_phase(Phase::Unreachable);
        let wait = deadline.left(self.router().seams()).min(PROGRESS_WAIT);
        let Some((_, place)) = map.partitions_of(group.id).next() else {
            return;
        };
        let asked = group.hosts().into_iter().map(|node| async move {
            let answer = self.ask_status(node, place, wait).await.status();
            answer.filter(|(_, status)| status.leader == node.0)
        });
        let answers = join_all(asked).await.into_iter().flatten();
        let Some((_, leader)) = answers.max_by_key(|(_, status)| status.epoch) else {
            return;
        };
        let new = leader
            .catching_up
            .iter()
            .filter(|it| described.to.contains(&it.node));
        let new: Vec<_> = new.copied().collect();
        described.set_phase(match new.is_empty() {
            true => Phase::Switching,
            false => Phase::CatchingUp,
        });
        described.bytes_sent = new.iter().map(|it| it.snapshot_bytes_sent).sum();
        described.entries_left = new.iter().map(|it| it.entries_left).max().unwrap_or(0);
    }

    pub(super) async fn cancel_moves(
        &self,
        request: v1::CancelMovesRequest,
        deadline: Deadline,
    ) -> Result<v1::CancelMovesResponse, Failure> {
        let map = self.router().map();
        let asked = |group: GroupId| request.groups.is_empty() || request.groups.contains(&group.0);
        let mut cancelled = 0;
        for group in map.groups.values().filter(|group| asked(group.id)) {
            let Some(change) = group.change.as_ref().filter(|it| !it.cancelled) else {
                continue;
            };
            let (group, id) = (group.id, change.id);
            let command = ControlCommand::CancelMove { group, id };
            self.control(command, deadline).await?;
            cancelled += 1;
        }
        Ok(v1::CancelMovesResponse { cancelled })
    }

    /// Executes a command of the control plane.
    async fn control(
        &self,
        command: ControlCommand,
        deadline: Deadline,
    ) -> Result<ControlOutcome, Failure> {
        let wait = deadline.left(self.router().seams());
        Ok(self.inner.controls.execute(command, wait).await?.outcome?)
    }

    fn healths(&self, map: &ClusterMap) -> Healths {
        snapshot(map, &self.inner.membership.view())
    }

    /// Estimated bytes of each group, and the health of nodes, by asking all replicas. Membership
    /// notices a death after seconds only, and on each node at its own time: a node whose replicas
    /// do not answer now counts as dead.
    async fn look_around(&self, map: &ClusterMap, deadline: Deadline) -> (Sizes, Healths) {
        let places: Vec<_> = map.partitions().collect();
        let partitions = self.survey(&places, deadline).await;
        let mut sizes: BTreeMap<GroupId, u64> = BTreeMap::new();
        for partition in &partitions {
            let size = partition.replicas.iter().map(|replica| replica.bytes).max();
            *sizes.entry(GroupId(partition.group)).or_default() += size.unwrap_or(0);
        }
        let asked = partitions.iter().flat_map(|partition| &partition.replicas);
        let (answered, silent): (Vec<_>, Vec<_>) = asked.partition(|replica| replica.reachable);
        let mut healths = self.healths(map);
        for replica in silent {
            let elsewhere = answered.iter().any(|other| other.node == replica.node);
            if let Some(health) = healths.get_mut(&NodeId(replica.node))
                && !elsewhere
            {
                *health = (*health).max(Health::Dead);
            }
        }
        (sizes, healths)
    }
}

/// What setting a node's state leads to, and what stands in its way.
fn plan_of_state(
    map: &ClusterMap,
    healths: &Healths,
    sizes: &Sizes,
    node: NodeId,
    state: NodeState,
) -> Plan {
    match state {
        NodeState::Active => Plan::default(),
        NodeState::Draining | NodeState::Maintenance => Plan {
            blocked: stopping_blocks(map, healths, node),
            ..Plan::default()
        },
        NodeState::Leaving => {
            let mut leaving = map.clone();
            if let Some(record) = leaving.nodes.get_mut(&node) {
                record.state = state;
            }
            let concerned = |group: GroupId| map.replicas(group).contains(&node);
            let plan = required(&leaving, healths, sizes);
            Plan {
                moves: plan
                    .moves
                    .into_iter()
                    .filter(|it| concerned(it.group))
                    .collect(),
                blocked: plan
                    .blocked
                    .into_iter()
                    .filter(|it| concerned(it.group))
                    .collect(),
                transfers: Vec::new(),
            }
        }
    }
}

fn node_state(state: v1::NodeState) -> Result<NodeState, InputError> {
    match state {
        v1::NodeState::Active => Ok(NodeState::Active),
        v1::NodeState::Draining => Ok(NodeState::Draining),
        v1::NodeState::Maintenance => Ok(NodeState::Maintenance),
        v1::NodeState::Leaving => Ok(NodeState::Leaving),
        v1::NodeState::Unspecified => Err(InputError::Missing("the state")),
    }
}

/// A node's state as the API shows it.
pub fn api_state(state: NodeState) -> v1::NodeState {
    match state {
        NodeState::Active => v1::NodeState::Active,
        NodeState::Draining => v1::NodeState::Draining,
        NodeState::Maintenance => v1::NodeState::Maintenance,
        NodeState::Leaving => v1::NodeState::Leaving,
    }
}

fn not_possible(reason: String) -> Failure {
    ControlRefusal::NotPossible { reason }.into()
}

fn group_of(map: &ClusterMap, partition: u64) -> Result<&GroupRecord, Failure> {
    let found = map.partition(PartitionId(partition));
    let group = found.and_then(|(_, record): (_, PartitionRecord)| map.groups.get(&record.group));
    group.ok_or_else(|| not_possible(format!("there is no partition {partition}")))
}

fn check_move(
    map: &ClusterMap,
    healths: &Healths,
    group: &GroupRecord,
    from: NodeId,
    to: NodeId,
) -> Result<(), Failure> {
    if !group.replicas.contains(&from) {
        let id = group.id;
        return Err(not_possible(format!(
            "node {from} has no replica of group {id}"
        )));
    }
    if !map.nodes.contains_key(&to) {
        return Err(ControlRefusal::UnknownNode { node: to }.into());
    }
    if health_of(healths, to) >= Health::Dead {
        return Err(not_possible(format!("node {to} is dead")));
    }
    let alive = |node: &&NodeId| health_of(healths, **node) < Health::Dead;
    let living = group.replicas.iter().filter(alive).count();
    let replicas = group.replicas.len();
    if living * 2 <= replicas {
        let id = group.id;
        return Err(not_possible(format!(
            "{living} of {replicas} replicas of group {id} are alive, which is no majority"
        )));
    }
    Ok(())
}

fn names(map: &ClusterMap, group: GroupId) -> Vec<v1::PartitionName> {
    let partitions = map.partitions_of(group);
    let name =
        |(space, partition): (&crate::control::SpaceRecord, PartitionRecord)| v1::PartitionName {
            partition: partition.id.0,
            space: space.config.name.clone(),
        };
    partitions.map(name).collect()
}

fn api_blocked(map: &ClusterMap, blocked: &[Blocked]) -> Vec<v1::Blocked> {
    let shown = blocked.iter().map(|blocked| v1::Blocked {
        group: blocked.group.0,
        partitions: names(map, blocked.group),
        reason: blocked.reason.to_string(),
    });
    shown.collect()
}

fn api_move(map: &ClusterMap, sizes: &Sizes, planned: &PlannedMove) -> v1::PlannedMove {
    let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    v1::PlannedMove {
        group: planned.group.0,
        partitions: names(map, planned.group),
        to: ids(planned.added()),
        from: ids(planned.removed()),
        bytes: sizes.get(&planned.group).copied().unwrap_or(0),
    }
}

fn api_moves(map: &ClusterMap, sizes: &Sizes, moves: &[PlannedMove]) -> Vec<v1::PlannedMove> {
    moves.iter().map(|it| api_move(map, sizes, it)).collect()
}

fn api_transfers(map: &ClusterMap, transfers: &[(GroupId, NodeId)]) -> Vec<v1::PlannedTransfer> {
    let shown = transfers.iter().map(|(group, node)| v1::PlannedTransfer {
        group: group.0,
        partitions: names(map, *group),
        to: node.0,
    });
    shown.collect()
}
