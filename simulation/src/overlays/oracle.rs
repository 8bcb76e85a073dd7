//! What edges must be worth, from the list of the log's commands alone: of all contributions those
//! that no removal covers, each request once. What is adopted under a request that the log has applied
//! is the same change, also where that was removed since.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::command::{EdgeChange, Op, OverlayDelta, PartitionCommand};
use engram_core::edges::Contribution;
use engram_core::types::{
    Dot, EdgeContext, EdgeKey, MemoryHash, MemoryId, OverlayContext, PartitionId, Relation,
    RequestId, Sequence,
};

/// The weight in units of 2^-32, and the pieces of evidence.
pub type Worth = (u64, u64);

#[derive(Default)]
struct Edge {
    contributions: BTreeMap<Dot, Contribution>,
    removals: Vec<EdgeContext>,
}

pub fn key(from: &MemoryId, to: &MemoryId, relation: &Relation) -> EdgeKey {
    EdgeKey {
        from: from.hash(),
        to: to.hash(),
        relation: relation.clone(),
    }
}

/// Of every edge with live evidence. The first command of a partition's log is its creation, which
/// the list does not have.
pub fn worth(partition: PartitionId, log: &[PartitionCommand]) -> BTreeMap<EdgeKey, Worth> {
    let mut edges: BTreeMap<EdgeKey, Edge> = BTreeMap::new();
    // Forgettings: they take what they cover of all edges out of a memory, also of those to come.
    let mut forgotten: BTreeMap<MemoryHash, Vec<EdgeContext>> = BTreeMap::new();
    let mut adopted = OverlayContext::default();
    let mut applied = BTreeSet::new();
    for (index, command) in log.iter().enumerate() {
        let dot = Dot::Log {
            partition,
            sequence: Sequence(index as u64 + 2),
            index: 0,
        };
        match command {
            PartitionCommand::Write(write) => {
                for (index, op) in &write.ops {
                    match op {
                        Op::Associate(edge) => {
                            let key = key(&edge.from, &edge.to, &edge.relation);
                            let request = write.request_id(*index);
                            let (weight, confidence) = (edge.weight, edge.confidence);
                            applied.insert(request);
                            let held = Contribution::new(
                                weight,
                                confidence,
                                write.stamp,
                                request,
                                write.retried,
                            );
                            let edge = edges.entry(key).or_default();
                            edge.contributions.insert(dot, held);
                        }
                        Op::Dissociate(edge) => {
                            let key = key(&edge.from, &edge.to, &edge.relation);
                            let edge_state = edges.entry(key).or_default();
                            edge_state.removals.push(edge.context.clone());
                        }
                        Op::Forget(memory) => {
                            let of_source = forgotten.entry(memory.id.hash()).or_default();
                            of_source.push(memory.context.clone());
                        }
                        Op::Remember(_) | Op::RestoreMemory(_) | Op::RestoreEdge(_) => {}
                    }
                }
            }
            PartitionCommand::Adopt { deltas } => {
                for delta in deltas {
                    if !adopted.covers(delta.dot) {
                        adopted.insert(delta.dot);
                        adopt(&mut edges, delta, &applied);
                    }
                }
            }
            _ => {}
        }
    }
    let worth = |(key, mut edge): (EdgeKey, Edge)| {
        let of_source = forgotten.get(&key.from).into_iter().flatten();
        edge.removals.extend(of_source.cloned());
        Some((key, edge.worth()?))
    };
    edges.into_iter().filter_map(worth).collect()
}

fn adopt(edges: &mut BTreeMap<EdgeKey, Edge>, delta: &OverlayDelta, applied: &BTreeSet<RequestId>) {
    let key = key(&delta.from, &delta.to, &delta.relation);
    let edge = edges.entry(key).or_default();
    match &delta.change {
        EdgeChange::Remove { context } => edge.removals.push(context.clone()),
        EdgeChange::Contribute { .. } if applied.contains(&delta.request) => {}
        EdgeChange::Contribute { weight, confidence } => {
            let held = Contribution::new(
                *weight,
                *confidence,
                delta.stamp,
                delta.request,
                delta.retried,
            );
            edge.contributions.insert(Dot::Overlay(delta.dot), held);
        }
    }
}

impl Edge {
    fn worth(&self) -> Option<Worth> {
        let removed = |dot: &Dot| self.removals.iter().any(|context| context.covers(dot));
        let live = self.contributions.iter().filter(|(dot, _)| !removed(dot));
        let (mut sum_wc, mut sum_c, mut count) = (0_u128, 0_u128, 0);
        let mut requests = BTreeSet::new();
        for (_, held) in live {
            if requests.insert(held.request) {
                sum_wc += u128::from(held.wc.bits());
                sum_c += u128::from(held.c.bits());
                count += 1;
            }
        }
        (count > 0).then(|| ((sum_wc << 32).checked_div(sum_c).unwrap_or(0) as u64, count))
    }
}
