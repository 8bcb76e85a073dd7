//! The planner: pure functions from the cluster map, the health of nodes and the sizes of groups to
//! what is to be done.
//!
//! [`plan_space`] places a new space, [`required`] says what must move (away from nodes that leave
//! or are dead, and to the number of replicas that a space asks for), [`rebalance`] what should move.
//! Nobody acts here: the manager and the services propose what comes out.
//!
//! What must hold: no node gets two replicas of a group; no plan leaves a group without a living
//! majority, and none is made for a group that has none; the same input gives the same plan; once a
//! plan is carried out, planning again finds nothing to do.

mod balance;
mod layout;
mod repair;
mod space;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use engram_core::types::{GroupId, NodeId};

pub use balance::rebalance;
pub use repair::required;
pub use space::{PlanError, plan_space};

use crate::control::{ClusterMap, GroupRecord, MoveCause};

/// How a node is, for planning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Alive,
    /// Not heard of yet, or not lately.
    Suspect,
    /// Declared down, but not for long enough to give up on it.
    Dead,
    /// Down for longer than the grace period: its replicas are to be created elsewhere.
    Gone,
}

/// The health of nodes; one that is not in it is suspect.
pub type Healths = BTreeMap<NodeId, Health>;

/// Estimated bytes of a group's replica; a group that is not in it has none.
pub type Sizes = BTreeMap<GroupId, u64>;

#[must_use]
pub fn health_of(healths: &Healths, node: NodeId) -> Health {
    healths.get(&node).copied().unwrap_or(Health::Suspect)
}

/// A move to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    pub group: GroupId,
    pub from: Vec<NodeId>,
    /// The preferred primary first.
    pub goal: Vec<NodeId>,
    pub cause: MoveCause,
}

impl PlannedMove {
    /// Nodes that get a replica.
    #[must_use]
    pub fn added(&self) -> Vec<NodeId> {
        let new = |node: &&NodeId| !self.from.contains(node);
        self.goal.iter().filter(new).copied().collect()
    }

    /// Nodes that give theirs up.
    #[must_use]
    pub fn removed(&self) -> Vec<NodeId> {
        let gone = |node: &&NodeId| !self.goal.contains(node);
        self.from.iter().filter(gone).copied().collect()
    }
}

/// Something that should be done and cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub group: GroupId,
    pub reason: BlockReason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockReason {
    /// Now, or where the replicas would be.
    #[error(
        "{alive} of {replicas} replicas are alive, which is no majority: nothing can be changed"
    )]
    NoMajority { alive: usize, replicas: usize },
    #[error("{wanted} replicas need {wanted} usable nodes, there are {usable}")]
    TooFewNodes { wanted: usize, usable: usize },
    #[error(
        "without node {node}, {alive} of its {replicas} replicas would be alive, which is no majority"
    )]
    WouldLoseMajority {
        node: NodeId,
        alive: usize,
        replicas: usize,
    },
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub moves: Vec<PlannedMove>,
    /// Groups that are to be led by another of their replicas.
    pub transfers: Vec<(GroupId, NodeId)>,
    pub blocked: Vec<Blocked>,
}

/// Replicas of a group that are not known to be down.
fn alive(nodes: &[NodeId], healths: &Healths) -> usize {
    let lives = |node: &&NodeId| health_of(healths, **node) <= Health::Suspect;
    nodes.iter().filter(lives).count()
}

fn is_majority(part: usize, whole: usize) -> bool {
    part * 2 > whole
}

/// The groups that would not have a living majority if `node` was down.
#[must_use]
pub fn stopping_blocks(map: &ClusterMap, healths: &Healths, node: NodeId) -> Vec<Blocked> {
    let blocks = |group: &GroupRecord| {
        if !group.replicas.contains(&node) {
            return None;
        }
        let replicas = group.replicas.len();
        let others: Vec<NodeId> = group
            .replicas
            .iter()
            .copied()
            .filter(|it| *it != node)
            .collect();
        let alive = alive(&others, healths);
        (!is_majority(alive, replicas)).then_some(Blocked {
            group: group.id,
            reason: BlockReason::WouldLoseMajority {
                node,
                alive,
                replicas,
            },
        })
    };
    map.groups.values().filter_map(blocks).collect()
}
