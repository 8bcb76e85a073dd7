//! What must be there before the workloads begin: memories that edges join.

use std::time::Duration;

use engram_client::types as v1;

use super::{Actor, ONE, Remember, counter, edges, set, spread};
use crate::invariant::confidence;
use crate::plan::{SpacePlan, WorkloadKind};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// How a space is asked for.
#[must_use]
pub fn request_of(space: &SpacePlan) -> v1::CreateSpaceRequest {
    v1::CreateSpaceRequest {
        name: space.name.clone(),
        dimension: space.dimension,
        metric: v1::Metric::Cosine.into(),
        partitions: space.partitions,
        replicas: space.replicas,
        if_not_exists: true,
        ..Default::default()
    }
}

/// Writes what a workload begins with. Returns when all of it is acknowledged.
pub async fn prepare(mut actor: Actor, space: &str, kind: WorkloadKind) {
    let ids: Vec<String> = match kind {
        WorkloadKind::Set => vec![set::ANCHOR.into()],
        WorkloadKind::Counter => (0..counter::COUNTERS)
            .map(counter::counter)
            .chain([counter::TARGET.into()])
            .collect(),
        WorkloadKind::Edges => (0..edges::ENDS).map(edges::end).collect(),
        WorkloadKind::Spread => (0..spread::MEMORIES).map(spread::memory).collect(),
        WorkloadKind::Register | WorkloadKind::Recall | WorkloadKind::Spaces => Vec::new(),
    };
    for id in ids {
        loop {
            let wanted = Remember {
                id: id.clone(),
                value: actor.fresh_value(),
                ..Remember::default()
            };
            if actor.remember(space, wanted).await.is_some() {
                break;
            }
            actor.clock.sleep(PAUSE).await;
        }
    }
    if kind == WorkloadKind::Spread {
        join(&mut actor, space).await;
    }
}

/// A graph with cycles, hubs and memories that nothing leads to.
async fn join(actor: &mut Actor, space: &str) {
    for from in 0..spread::MEMORIES {
        for step in 1..=spread::OUT_EDGES {
            let to = (from * 7 + step * step * 5) % (spread::MEMORIES * 3 / 4);
            let (from, to) = (spread::memory(from), spread::memory(to));
            let weight = ONE / u64::from(step);
            loop {
                let (edge, number) = actor.shared.next_contribution(space, &from, &to, "to");
                let amount = (weight, confidence(number));
                if actor.contribute(space, edge, amount, false).await {
                    break;
                }
                actor.clock.sleep(PAUSE).await;
            }
        }
    }
}
