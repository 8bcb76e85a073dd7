//! The end of a run: everything heals and meets, and is compared with what the operations say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::command::PartitionCommand;
use engram_core::partition::{Direction, NeighborsQuery, Partition};
use engram_core::types::{EdgeKey, OverlayDot};
use engram_node::overlay::Event;

use super::clients::{ENDS, end};
use super::node::PARTITION;
use super::world::World;
use super::{Report, oracle};

/// Rounds after the faults in which everything must have met.
const SETTLING_MAX: usize = 400;
/// Changes during the last split.
const LAST_CHANGES: usize = 6;

impl World {
    #[must_use]
    pub fn end(mut self) -> Report {
        self.split_at_last();
        self.cut.clear();
        while self.nodes.values().any(|node| !node.is_up) {
            self.return_one();
        }
        self.count_destroyed();
        for _ in 0..SETTLING_MAX {
            self.now += Duration::from_millis(500);
            for member in self.members.clone() {
                self.apply(member, usize::MAX);
                self.node_step(member, Event::Tick);
            }
            while !self.letters.is_empty() {
                self.deliver();
            }
            if self.is_settled() {
                break;
            }
        }
        if !self.is_settled() {
            self.violation("the replicas did not meet".to_owned());
        }
        self.judge();
        self.report.entries = self.log.len();
        self.report
    }

    /// A last split, during which edges change; nobody changes anything after it, so that only looking
    /// again and again can bring together what it kept apart.
    fn split_at_last(&mut self) {
        if !self.mix.cuts {
            return;
        }
        self.cut_links();
        for _ in 0..LAST_CHANGES {
            self.local_change();
            self.now += Duration::from_millis(100);
            for member in self.members.clone() {
                self.node_step(member, Event::Tick);
            }
            while !self.letters.is_empty() {
                self.deliver();
            }
        }
    }

    /// Changes that nobody has any more; letters may still bring some of them back.
    fn count_destroyed(&mut self) {
        let nodes = self.nodes.values();
        let seen: Vec<_> = nodes.map(|node| node.partition.overlay_context()).collect();
        let is_there = |dot: &OverlayDot| seen.iter().any(|context| context.covers(*dot));
        let adopted = self.adopted();
        let before = self.acknowledged.len();
        self.acknowledged
            .retain(|dot, _| is_there(dot) || adopted.contains(dot));
        self.report.destroyed = before - self.acknowledged.len();
        if self.report.destroyed > 0 && !self.mix.disks {
            let destroyed = self.report.destroyed;
            self.violation(format!("{destroyed} changes are gone, and no disk was"));
        }
    }

    fn adopted(&self) -> BTreeSet<OverlayDot> {
        let deltas = self.log.iter().filter_map(|command| match command {
            PartitionCommand::Adopt { deltas } => Some(deltas),
            _ => None,
        });
        deltas.flatten().map(|delta| delta.dot).collect()
    }

    fn is_settled(&self) -> bool {
        self.members.iter().all(|member| {
            let node = &self.nodes[member];
            node.applied() == self.log.len() && node.partition.overlay_stats().deltas == 0
        })
    }

    fn judge(&mut self) {
        let mut violations = Vec::new();
        let adopted = self.adopted();
        for (dot, delta) in &self.acknowledged {
            if !adopted.contains(dot) {
                violations.push(format!("lost: {delta:?}"));
            }
        }
        let first = &self.nodes[&self.members[0]].partition;
        let expected = oracle::worth(PARTITION, &self.log);
        let conflicts = first.status().edge_conflicts;
        for member in &self.members {
            let partition = &self.nodes[member].partition;
            let (from_records, view) = partition
                .recompute_digests()
                .unwrap_or_else(|error| panic!("recompute: {error}"));
            if from_records != view.digests()
                || partition.status().edge_digest != first.status().edge_digest
            {
                violations.push(format!(
                    "node {member}: its digests are not those of the others"
                ));
            }
            let found = shown(partition);
            if conflicts == 0 && found != expected {
                violations.push(format!(
                    "node {member} shows {found:?}, the operations say {expected:?}"
                ));
            }
        }
        if conflicts > 0 && self.mix.is_mild() {
            violations.push(format!(
                "folding had to choose {conflicts} times, although all replicas stayed"
            ));
        }
        self.report.conflicts = conflicts;
        self.report.violations.extend(violations);
    }
}

/// The edges as a reader of this replica sees them.
fn shown(partition: &Partition) -> BTreeMap<EdgeKey, oracle::Worth> {
    let mut shown = BTreeMap::new();
    for number in 0..ENDS {
        let found = partition
            .neighbors(&NeighborsQuery {
                id: &end(number),
                direction: Direction::Out,
                relations: &BTreeSet::new(),
                now_millis: 0,
                limit: usize::MAX,
            })
            .unwrap_or_else(|error| panic!("neighbours: {error}"));
        for edge in found.edges {
            let key = oracle::key(&edge.from, &edge.to, &edge.relation);
            shown.insert(key, (edge.weight.bits(), edge.contributions));
        }
    }
    shown
}
