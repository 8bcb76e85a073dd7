//! Real processes: what is forgotten with a purge leaves every replica's store, that of a node which
//! slept through it too, and the space says so only then.

mod rig;

use std::sync::Arc;

use engram_client::types as v1;
use engram_core::storage::{Family, Order, RocksOptions, Storage};
use engram_node::seams::os;
use rig::{DIMENSION, PARTITIONS, Rig, SPACE, rig};

/// Memories that stay, and those that are purged: some in each partition.
const KEPT: usize = 60;
const PURGED: usize = 30;
/// Content of what is purged, as it must not be found in any record of any store.
const SECRET: &str = "only for purged eyes";
const PLAIN: &str = "for everybody's eyes";

fn direction(number: usize) -> Vec<f32> {
    let lane = |lane: usize| ((number * 7 + lane * 3) % 11) as f32 + 1.0;
    (0..DIMENSION).map(lane).collect()
}

async fn remember(rig: &Rig, kind: &str, number: usize, content: &str) {
    let memory = v1::Memory {
        id: format!("{kind}-{number}"),
        content: format!("{content}, {number}"),
        embedding: direction(number),
        ..Default::default()
    };
    let space = rig.client.space(SPACE);
    let request = v1::RememberRequest {
        memory: Some(memory),
        ..Default::default()
    };
    space.remember_with(request).await.expect("remembered");
}

async fn purge(rig: &Rig, number: usize) {
    let request = v1::ForgetRequest {
        id: format!("secret-{number}"),
        purge: true,
        ..Default::default()
    };
    let forgotten = rig.client.space(SPACE).forget_with(request).await;
    assert!(forgotten.expect("forgotten").existed);
}

async fn purging(rig: &Rig) -> Option<usize> {
    let described = rig.client.describe_space(SPACE).await.ok()?;
    Some(described.purging.len())
}

/// Every replica that answers has let go.
async fn cleared_by(rig: &Rig, replicas: usize) {
    rig.wait("purges were not done", async || {
        let cleared = |it: &v1::Replica| it.purge_last > 0 && it.purge_done == it.purge_last;
        let partitions = rig.partitions().await;
        let counts = partitions
            .iter()
            .map(|it| it.replicas.iter().filter(|it| cleared(it)).count());
        let is_done = counts.clone().count() == PARTITIONS as usize;
        (is_done && counts.min() == Some(replicas)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_leaves_every_store() {
    let mut rig = rig(3, 3, &[]).await;
    for number in 0..KEPT {
        remember(&rig, "plain", number, PLAIN).await;
    }
    for number in 0..PURGED {
        remember(&rig, "secret", number, SECRET).await;
    }
    rig.whole(3).await;
    assert_eq!(purging(&rig).await, Some(0));

    // One node sleeps through all of it.
    rig.cluster.kill(2).expect("killed");
    for number in 0..PURGED {
        purge(&rig, number).await;
    }
    let hits = nearest(&rig).await;
    assert_eq!(hits.len(), KEPT, "forgotten at once, and nothing else");
    assert!(hits.iter().all(|hit| hit.id.starts_with("plain")));
    cleared_by(&rig, 2).await;
    let left = purging(&rig).await;
    assert_eq!(left, Some(PARTITIONS as usize), "one node may hold it all");

    rig.cluster
        .restart(2)
        .await
        .unwrap_or_else(|error| panic!("it comes back: {error}"));
    rig.alive(3).await;
    cleared_by(&rig, 3).await;
    assert_eq!(purging(&rig).await, Some(0));
    assert_eq!(nearest(&rig).await.len(), KEPT);
    rig.equal(3).await;

    for node in 0..3 {
        rig.cluster
            .stop(node)
            .await
            .unwrap_or_else(|error| panic!("it stops: {error}"));
        look_into(&rig, node);
    }
}

async fn nearest(rig: &Rig) -> Vec<v1::Hit> {
    let request = v1::RecallRequest {
        query: Some(v1::recall_request::Query::Vector(v1::Vector {
            components: direction(3),
        })),
        limit: (KEPT + PURGED) as u32,
        ..Default::default()
    };
    let answer = rig.client.space(SPACE).recall(request).await;
    answer.expect("an answer").hits
}

/// Opens the store of a node that has ended: nothing of what was purged is in it, all else is.
fn look_into(rig: &Rig, node: usize) {
    let seams = os::seams(RocksOptions::default());
    let store = rig.cluster.data_dir(node).join("store");
    let store: Arc<dyn Storage> = seams.disk.open_store(&store).expect("opens");
    let holds = |family: Family, what: &str| {
        let records = store.scan(family, &[], &[u8::MAX; 64], Order::Ascending);
        let what = what.as_bytes();
        records
            .map(|record| record.expect("readable"))
            .filter(|(_, value)| value.windows(what.len()).any(|part| part == what))
            .count()
    };
    for family in Family::ALL {
        let name = family.name();
        assert_eq!(holds(family, SECRET), 0, "node {node} has it in {name}");
    }
    assert_eq!(holds(Family::Memories, PLAIN), KEPT);
    let vectors = store.scan(Family::Vectors, &[], &[u8::MAX; 64], Order::Ascending);
    assert_eq!(vectors.count(), KEPT, "vectors of node {node}");
}
