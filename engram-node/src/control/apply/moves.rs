//! Applying the commands of placement: states of nodes, moves of groups, numbers of replicas.
//!
//! A move is recorded when it starts and when it has ended; what lies between is between the group's
//! leader and Raft, and can be found out again by whoever leads next. What must hold: a group has
//! one move at a time; a node that may be a member of a group is among its hosts; ending or calling
//! off a move that is not there changes nothing.

use std::collections::BTreeSet;

use engram_core::limits::REPLICAS_MAX;
use engram_core::types::{GroupId, NodeId};

use super::{take, takes_replicas};
use crate::control::command::{ControlOutcome, ControlRefusal, NewMove};
use crate::control::map::{ClusterMap, GroupRecord, MoveId, MoveRecord, NodeState};

type Outcome = Result<ControlOutcome, ControlRefusal>;

fn not_possible(reason: impl Into<String>) -> Outcome {
    Err(ControlRefusal::NotPossible {
        reason: reason.into(),
    })
}

fn group_of(map: &mut ClusterMap, group: GroupId) -> Result<&mut GroupRecord, ControlRefusal> {
    map.groups.get_mut(&group).ok_or(ControlRefusal::Conflict {
        reason: format!("group {group} is gone"),
    })
}

pub fn set_state(map: &mut ClusterMap, node: NodeId, state: NodeState) -> Outcome {
    let record = map
        .nodes
        .get_mut(&node)
        .ok_or(ControlRefusal::UnknownNode { node })?;
    record.state = state;
    Ok(ControlOutcome::Done)
}

pub fn remove_node(map: &mut ClusterMap, node: NodeId) -> Outcome {
    if map.left.contains_key(&node) {
        return Ok(ControlOutcome::Done);
    }
    let record = map.nodes.get(&node);
    let record = record.ok_or(ControlRefusal::UnknownNode { node })?;
    if record.state != NodeState::Leaving {
        return not_possible(format!("node {node} is not leaving"));
    }
    if let Some(group) = map.groups.values().find(|it| it.hosts().contains(&node)) {
        let group = group.id;
        return not_possible(format!("node {node} has a replica of group {group}"));
    }
    if map.nodes.len() == 1 {
        return not_possible("the last node stays");
    }
    map.left.insert(node, record.identity);
    map.nodes.remove(&node);
    Ok(ControlOutcome::Done)
}

pub fn start(map: &mut ClusterMap, new: &NewMove) -> Outcome {
    let conflict = |reason: String| Err(ControlRefusal::Conflict { reason });
    let group = group_of(map, new.group)?.clone();
    if let Some(running) = &group.change {
        if running.goal == new.goal && !running.cancelled {
            // The proposer did not hear the answer and asks again.
            return Ok(ControlOutcome::MoveStarted { id: running.id });
        }
        let (id, move_id) = (group.id, running.id);
        return conflict(format!(
            "group {id} is being moved already (move {move_id})"
        ));
    }
    if group.replicas != new.expected {
        let id = group.id;
        return conflict(format!("the replicas of group {id} are elsewhere by now"));
    }
    check_goal(map, &group, &new.goal)?;
    let id = MoveId(take(&mut map.next_move));
    let nodes = group.replicas.iter().chain(&new.goal);
    let change = MoveRecord {
        id,
        goal: new.goal.clone(),
        touched: nodes.copied().collect(),
        cause: new.cause,
        started_millis: new.now_millis,
        cancelled: false,
    };
    group_of(map, new.group)?.change = Some(change);
    Ok(ControlOutcome::MoveStarted { id })
}

fn check_goal(
    map: &ClusterMap,
    group: &GroupRecord,
    goal: &[NodeId],
) -> Result<(), ControlRefusal> {
    let refused = |reason: String| Err(ControlRefusal::InvalidPlacement { reason });
    let wanted: BTreeSet<NodeId> = goal.iter().copied().collect();
    let existing: BTreeSet<NodeId> = group.replicas.iter().copied().collect();
    if goal.is_empty() || goal.len() > REPLICAS_MAX as usize {
        return refused(format!("a group has 1 to {REPLICAS_MAX} replicas"));
    }
    if wanted.len() != goal.len() {
        return refused("two replicas of a partition on one node".into());
    }
    if wanted == existing {
        return refused("the replicas are there already".into());
    }
    let mut added = wanted.difference(&existing);
    if let Some(node) = added.find(|node| !takes_replicas(map, **node)) {
        return refused(format!("node {node} takes no replicas"));
    }
    Ok(())
}

/// Turns a move back. A move back is a move of its own: who still carries out the first one cannot
/// end the second.
pub fn cancel(map: &mut ClusterMap, group: GroupId, id: MoveId) -> ControlOutcome {
    let next = MoveId(map.next_move);
    let Some(group) = map.groups.get_mut(&group) else {
        return ControlOutcome::Done;
    };
    let replicas = group.replicas.clone();
    if let Some(change) = &mut group.change
        && change.id == id
        && !change.cancelled
    {
        change.id = next;
        change.goal = replicas;
        change.cancelled = true;
        map.next_move += 1;
    }
    ControlOutcome::Done
}

pub fn finish(map: &mut ClusterMap, group: GroupId, id: MoveId) -> ControlOutcome {
    if let Some(group) = map.groups.get_mut(&group)
        && let Some(change) = group.change.take_if(|change| change.id == id)
    {
        group.replicas = change.goal;
    }
    ControlOutcome::Done
}

pub fn prefer(map: &mut ClusterMap, group: GroupId, node: NodeId) -> Outcome {
    if !takes_replicas(map, node) {
        return not_possible(format!("node {node} takes no leadership now"));
    }
    let group = group_of(map, group)?;
    if !group.settled().contains(&node) {
        let id = group.id;
        return not_possible(format!("node {node} has no replica of group {id}"));
    }
    let mut orders = vec![&mut group.replicas];
    orders.extend(group.change.as_mut().map(|change| &mut change.goal));
    for order in orders {
        if let Some(at) = order.iter().position(|it| *it == node) {
            order[..=at].rotate_right(1);
        }
    }
    Ok(ControlOutcome::Done)
}

/// The moves that bring the new number about are planned by the control plane's leader.
pub fn alter_space(map: &mut ClusterMap, name: &str, replicas: u32) -> Outcome {
    let nodes = map.nodes.len();
    let mut spaces = map.spaces.values_mut();
    let Some(space) = spaces.find(|space| space.config.name == name) else {
        let name = name.to_owned();
        return Err(ControlRefusal::UnknownSpace { name });
    };
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        let reason = format!("replicas is {replicas}, allowed are 1 to {REPLICAS_MAX}");
        return Err(ControlRefusal::InvalidConfig { reason });
    }
    if replicas > space.replicas && replicas as usize > nodes {
        return not_possible(format!(
            "{replicas} replicas need {replicas} nodes, not {nodes}"
        ));
    }
    space.replicas = replicas;
    Ok(ControlOutcome::Done)
}
