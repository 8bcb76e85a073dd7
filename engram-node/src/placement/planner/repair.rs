//! What must move: away from nodes that leave or are gone, and to the number of replicas that the
//! spaces ask for.

use std::collections::BTreeSet;

use engram_core::types::NodeId;

use super::layout::Layout;
use super::{
    BlockReason, Blocked, Health, Healths, Plan, PlannedMove, Sizes, alive, health_of, is_majority,
};
use crate::control::{ClusterMap, GroupRecord, MoveCause, NodeState};

/// The moves that are due, at most one per group; groups that are being moved have to wait.
#[must_use]
pub fn required(map: &ClusterMap, healths: &Healths, sizes: &Sizes) -> Plan {
    let mut layout = Layout::new(map, healths, sizes);
    let mut plan = Plan::default();
    for group in map.groups.values().filter(|group| group.change.is_none()) {
        let Some((mut goal, cause)) = goal_of(map, healths, &layout, group) else {
            continue;
        };
        let mut block = |reason| {
            plan.blocked.push(Blocked {
                group: group.id,
                reason,
            });
        };
        let replicas = group.replicas.len();
        let living = alive(&group.replicas, healths);
        if !is_majority(living, replicas) {
            block(BlockReason::NoMajority {
                alive: living,
                replicas,
            });
            continue;
        }
        let wanted = map.wanted_replicas(group);
        if goal.iter().any(|node| !stays(map, healths, *node)) || goal.len() < wanted {
            // As much as there are nodes for is done all the same.
            let usable = layout.usable.len();
            block(BlockReason::TooFewNodes { wanted, usable });
        }
        let same = |goal: &[NodeId]| {
            goal.len() == replicas && goal.iter().all(|node| group.replicas.contains(node))
        };
        if same(&goal) {
            continue;
        }
        let living = alive(&goal, healths);
        if !is_majority(living, goal.len()) {
            block(BlockReason::NoMajority {
                alive: living,
                replicas: goal.len(),
            });
            continue;
        }
        lead_by_the_idlest(&layout, group, &mut goal);
        layout.place(group.id, goal.clone());
        plan.moves.push(PlannedMove {
            group: group.id,
            from: group.replicas.clone(),
            goal,
            cause,
        });
    }
    plan
}

/// Whether a replica on the node may stay there.
fn stays(map: &ClusterMap, healths: &Healths, node: NodeId) -> bool {
    let state = map.nodes.get(&node).map(|record| record.state);
    let kept = match state {
        None | Some(NodeState::Leaving) => false,
        Some(NodeState::Active | NodeState::Draining | NodeState::Maintenance) => true,
    };
    kept && health_of(healths, node) != Health::Gone
}

/// Where the replicas of a group should be, and why; `None` when all is well.
fn goal_of(
    map: &ClusterMap,
    healths: &Healths,
    layout: &Layout<'_>,
    group: &GroupRecord,
) -> Option<(Vec<NodeId>, MoveCause)> {
    let wanted = map.wanted_replicas(group);
    let (mut kept, mut lost): (Vec<NodeId>, Vec<NodeId>) = group
        .replicas
        .iter()
        .partition(|node| stays(map, healths, **node));
    if lost.is_empty() && kept.len() == wanted {
        return None;
    }
    let leaving = |node: &NodeId| {
        map.nodes
            .get(node)
            .is_some_and(|it| it.state == NodeState::Leaving)
    };
    let cause = match lost.as_slice() {
        [] => MoveCause::Replicas,
        lost if lost.iter().any(leaving) => MoveCause::Leaving,
        _ => MoveCause::Dead,
    };
    while kept.len() > wanted {
        let surplus = most_dispensable(layout, healths, &kept);
        kept.remove(surplus);
    }
    let excluded: BTreeSet<NodeId> = lost.iter().copied().collect();
    while kept.len() < wanted {
        let Some(node) = layout.best_for(&kept, &excluded) else {
            break;
        };
        kept.push(node);
    }
    // A replica on a node that cannot be replaced is better than none: it may come back.
    lost.sort_by_key(|node| (health_of(healths, *node), *node));
    for node in lost {
        if kept.len() < wanted && map.nodes.contains_key(&node) {
            kept.push(node);
        }
    }
    Some((kept, cause))
}

/// Position of the replica to give up first: dead, beside another one in its zone, on a full node.
fn most_dispensable(layout: &Layout<'_>, healths: &Healths, nodes: &[NodeId]) -> usize {
    let key = |at: &usize| {
        let node = nodes[*at];
        let zone = layout.zone(node);
        let doubled = nodes.iter().filter(|it| layout.zone(**it) == zone).count() > 1;
        let load = layout.load(node);
        let usable = layout.usable.contains(&node);
        let health = health_of(healths, node);
        // The preferred primary last, all else being equal: keeping it costs no transfer.
        (health, !usable, doubled, load.replicas, load.bytes, *at)
    };
    (0..nodes.len()).max_by_key(key).unwrap_or(0)
}

/// Keeps the preferred primary if it stays and may lead, else takes the replica whose node leads
/// least.
fn lead_by_the_idlest(layout: &Layout<'_>, group: &GroupRecord, goal: &mut [NodeId]) {
    let first = group.replicas.first();
    let keeps = |node: &NodeId| layout.usable.contains(node) && Some(node) == first;
    let best = (0..goal.len()).min_by_key(|at| {
        let node = goal[*at];
        let existing = group.replicas.contains(&node);
        let usable = layout.usable.contains(&node);
        // A replica that is there already leads without waiting for the move.
        (
            !keeps(&node),
            !usable,
            !existing,
            layout.load(node).primaries,
            node,
        )
    });
    if let Some(at) = best {
        goal[..=at].rotate_right(1);
    }
}
