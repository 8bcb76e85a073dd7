//! What should move, so that zones, replicas, primaries and bytes are spread evenly.
//!
//! In this order, each step without harm to the ones before: replicas of a group into different
//! zones; as many replicas on one node as on another; as many bytes; as many primaries. Each step
//! makes a sum of squares smaller, so planning ends, and what it ended with it leaves alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engram_core::types::{GroupId, NodeId};

use super::layout::Layout;
use super::{Healths, Plan, PlannedMove, Sizes, alive, is_majority};
use crate::control::{ClusterMap, MoveCause};

/// Nodes are left alone whose bytes differ by less than this share of an average node's.
const BYTES_TOLERANCE_PERCENT: u64 = 20;

/// And by less than this, whatever the share: no replica moves for a few bytes.
const BYTES_TOLERANCE_MIN: u64 = 1 << 20;

/// Moves and transfers for the groups that are not being moved and have a living majority.
#[must_use]
pub fn rebalance(map: &ClusterMap, healths: &Healths, sizes: &Sizes) -> Plan {
    let movable = map.groups.values().filter(|group| {
        let living = alive(&group.replicas, healths);
        group.change.is_none() && is_majority(living, group.replicas.len())
    });
    let mut balance = Balance {
        movable: movable.map(|group| group.id).collect(),
        layout: Layout::new(map, healths, sizes),
    };
    balance.spread_zones();
    balance.even_replicas();
    while balance.exchange_bytes() {
        // What could not move for its zone may be able to now.
        balance.even_replicas();
    }
    balance.even_primaries();
    balance.plan(map)
}

struct Balance<'a> {
    layout: Layout<'a>,
    movable: BTreeSet<GroupId>,
}

impl Balance<'_> {
    fn nodes(&self, group: GroupId) -> &[NodeId] {
        self.layout.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    /// The group with one replica elsewhere.
    fn swapped(&self, group: GroupId, from: NodeId, to: NodeId) -> Vec<NodeId> {
        let swap = |node: &NodeId| if *node == from { to } else { *node };
        self.nodes(group).iter().map(swap).collect()
    }

    fn may_swap(&self, group: GroupId, from: NodeId, to: NodeId) -> bool {
        let nodes = self.nodes(group);
        if !self.movable.contains(&group) || !nodes.contains(&from) || nodes.contains(&to) {
            return false;
        }
        self.layout.zones(&self.swapped(group, from, to)) >= self.layout.zones(nodes)
    }

    /// Each group into as many zones as there are, moving doubled replicas only.
    fn spread_zones(&mut self) {
        for group in self.movable.clone() {
            while let Some((from, to)) = self.better_zone(group) {
                let nodes = self.swapped(group, from, to);
                self.layout.place(group, nodes);
            }
        }
    }

    fn better_zone(&self, group: GroupId) -> Option<(NodeId, NodeId)> {
        let nodes = self.nodes(group);
        let now = self.layout.zones(nodes);
        let fullest_first = |node: &&NodeId| {
            let load = self.layout.load(**node);
            (load.replicas, load.bytes, **node)
        };
        let mut sources: Vec<&NodeId> = nodes.iter().collect();
        sources.sort_by_key(|node| std::cmp::Reverse(fullest_first(node)));
        for from in sources {
            let others: Vec<NodeId> = nodes.iter().copied().filter(|node| node != from).collect();
            let excluded = BTreeSet::from([*from]);
            if let Some(to) = self.layout.best_for(&others, &excluded)
                && self.layout.zones(&self.swapped(group, *from, to)) > now
            {
                return Some((*from, to));
            }
        }
        None
    }

    /// Replicas go from nodes with many to nodes with at least two fewer.
    fn even_replicas(&mut self) {
        while let Some((group, from, to)) = self.fairer_replica() {
            let nodes = self.swapped(group, from, to);
            self.layout.place(group, nodes);
        }
    }

    fn fairer_replica(&self) -> Option<(GroupId, NodeId, NodeId)> {
        let count = |node: NodeId| self.layout.load(node).replicas;
        let mut pairs: Vec<(NodeId, NodeId)> = Vec::new();
        for from in &self.layout.usable {
            let fewer = |to: &&NodeId| count(*from) >= count(**to) + 2;
            pairs.extend(
                self.layout
                    .usable
                    .iter()
                    .filter(fewer)
                    .map(|to| (*from, *to)),
            );
        }
        // The greatest difference first, so that nothing is moved twice.
        pairs.sort_by_key(|(from, to)| (std::cmp::Reverse(count(*from) - count(*to)), *from, *to));
        pairs.into_iter().find_map(|(from, to)| {
            let group = self.best_group(from, to)?;
            Some((group, from, to))
        })
    }

    /// Of the groups that may go from one node to the other, the one that leaves their bytes
    /// closest.
    fn best_group(&self, from: NodeId, to: NodeId) -> Option<GroupId> {
        let (much, little) = (self.layout.load(from).bytes, self.layout.load(to).bytes);
        let candidates = self.movable.iter().copied();
        let candidates = candidates.filter(|group| self.may_swap(*group, from, to));
        candidates.min_by_key(|group| {
            let size = self.layout.size(*group);
            ((much - size).abs_diff(little + size), *group)
        })
    }

    /// A large replica of a full node changes places with a small one of an empty node; false when
    /// that is of no use.
    fn exchange_bytes(&mut self) -> bool {
        let Some((large, small, from, to)) = self.fairer_exchange() else {
            return false;
        };
        let nodes = self.swapped(large, from, to);
        self.layout.place(large, nodes);
        let nodes = self.swapped(small, to, from);
        self.layout.place(small, nodes);
        true
    }

    fn fairer_exchange(&self) -> Option<(GroupId, GroupId, NodeId, NodeId)> {
        let bytes = |node: &NodeId| self.layout.load(*node).bytes;
        let usable = &self.layout.usable;
        let mean = usable.iter().map(bytes).sum::<u64>() / (usable.len() as u64).max(1);
        let share = mean.saturating_mul(BYTES_TOLERANCE_PERCENT) / 100;
        let tolerated = share.max(BYTES_TOLERANCE_MIN);
        let from = usable
            .iter()
            .copied()
            .max_by_key(|node| (bytes(node), *node))?;
        let mut targets: Vec<NodeId> = usable.iter().copied().collect();
        targets.sort_by_key(|node| (bytes(node), *node));
        for to in targets {
            let gap = bytes(&from) - bytes(&to);
            if gap <= tolerated {
                return None;
            }
            if let Some((large, small)) = self.best_exchange(from, to, gap, tolerated) {
                return Some((large, small, from, to));
            }
        }
        None
    }

    /// The exchange that moves closest to half the gap, if it is worth two transfers.
    fn best_exchange(
        &self,
        from: NodeId,
        to: NodeId,
        gap: u64,
        tolerated: u64,
    ) -> Option<(GroupId, GroupId)> {
        let movable = || self.movable.iter().copied();
        let large: Vec<GroupId> = movable()
            .filter(|it| self.may_swap(*it, from, to))
            .collect();
        let small: Vec<GroupId> = movable()
            .filter(|it| self.may_swap(*it, to, from))
            .collect();
        let size = |group: GroupId| self.layout.size(group);
        let pairs = large
            .iter()
            .flat_map(|large| small.iter().map(|small| (*large, *small)));
        let worth = pairs.filter(|(large, small)| {
            let moved = size(*large).saturating_sub(size(*small));
            // Less than the gap too: nodes that merely changed roles would do so for ever.
            moved >= tolerated && moved + tolerated <= gap
        });
        worth.min_by_key(|(large, small)| {
            let moved = size(*large) - size(*small);
            ((moved * 2).abs_diff(gap), *large, *small)
        })
    }

    /// Leaderships go along chains of groups from a node that leads many to one that leads at least
    /// two fewer.
    fn even_primaries(&mut self) {
        while let Some(chain) = self.fairer_chain() {
            for (group, to) in chain {
                let mut nodes = self.nodes(group).to_vec();
                if let Some(at) = nodes.iter().position(|node| *node == to) {
                    nodes.swap(0, at);
                }
                self.layout.place(group, nodes);
            }
        }
    }

    fn fairer_chain(&self) -> Option<Vec<(GroupId, NodeId)>> {
        let led = |node: NodeId| self.layout.load(node).primaries;
        let mut sources: Vec<NodeId> = self
            .layout
            .groups
            .keys()
            .filter_map(|group| {
                self.movable
                    .contains(group)
                    .then(|| self.nodes(*group).first().copied())?
            })
            .collect();
        sources.sort_by_key(|node| {
            // A node that may not lead gives everything away.
            (
                self.layout.usable.contains(node),
                std::cmp::Reverse(led(*node)),
                *node,
            )
        });
        sources.dedup();
        sources.into_iter().find_map(|from| {
            let usable = self.layout.usable.contains(&from);
            let most = if usable {
                led(from).checked_sub(2)?
            } else {
                usize::MAX
            };
            self.chain(from, |node| led(node) <= most)
        })
    }

    /// The shortest chain of transfers that begins at a group that `from` leads and ends at a node
    /// that is `wanted`.
    fn chain(
        &self,
        from: NodeId,
        wanted: impl Fn(NodeId) -> bool,
    ) -> Option<Vec<(GroupId, NodeId)>> {
        let mut reached: BTreeMap<NodeId, (NodeId, GroupId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for (group, nodes) in &self.layout.groups {
                if !self.movable.contains(group) || nodes.first() != Some(&node) {
                    continue;
                }
                for next in nodes.iter().skip(1) {
                    let known = *next == from || reached.contains_key(next);
                    if known || !self.layout.usable.contains(next) {
                        continue;
                    }
                    reached.insert(*next, (node, *group));
                    if wanted(*next) {
                        return Some(path(&reached, from, *next));
                    }
                    queue.push_back(*next);
                }
            }
        }
        None
    }

    fn plan(self, map: &ClusterMap) -> Plan {
        let mut plan = Plan::default();
        for group in map
            .groups
            .values()
            .filter(|group| self.movable.contains(&group.id))
        {
            let goal = self.nodes(group.id);
            if goal.iter().any(|node| !group.replicas.contains(node)) {
                plan.moves.push(PlannedMove {
                    group: group.id,
                    from: group.replicas.clone(),
                    goal: goal.to_vec(),
                    cause: MoveCause::Rebalance,
                });
            } else if let Some(first) = goal.first()
                && group.replicas.first() != Some(first)
            {
                plan.transfers.push((group.id, *first));
            }
        }
        plan
    }
}

fn path(
    reached: &BTreeMap<NodeId, (NodeId, GroupId)>,
    from: NodeId,
    to: NodeId,
) -> Vec<(GroupId, NodeId)> {
    let (mut chain, mut at) = (Vec::new(), to);
    while at != from
        && let Some((before, group)) = reached.get(&at)
    {
        chain.push((*group, at));
        at = *before;
    }
    chain
}
