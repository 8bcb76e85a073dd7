//! Several nodes' consensus in one process, over real loopback connections that can be cut.

mod cluster;
mod faults;
mod recovery;
mod snapshots;
mod toy;

use std::time::Duration;

use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};

use self::cluster::{Cluster, WAIT};
use super::{BarrierError, ProposeError};

const GROUP: GroupId = GroupId(7);

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_answers_and_a_follower_names_it() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let answer = cluster.put(leader, "a", "1").await.unwrap();
    assert_eq!(answer, Bytes::from_static(b"a=1"));
    cluster.barrier(leader).await.unwrap();

    let follower = cluster.others(leader)[0];
    let refused = cluster.put(follower, "b", "2").await.unwrap_err();
    assert_eq!(
        refused,
        ProposeError::NotLeader {
            group: GROUP,
            hint: Some(leader)
        }
    );
    let refused = cluster.barrier(follower).await.unwrap_err();
    assert_eq!(
        refused,
        BarrierError::NotLeader {
            group: GROUP,
            hint: Some(leader)
        }
    );
    for node in cluster.nodes() {
        cluster
            .eventually("the entry is everywhere", || {
                cluster.get(node, "a").is_some()
            })
            .await;
        assert_eq!(cluster.get(node, "b"), None);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_here_and_groups_not_here() {
    let cluster = Cluster::start(1).await;
    let node = NodeId(1);
    cluster.leader().await;
    let consensus = cluster.consensus(node);
    assert_eq!(consensus.groups(), [GROUP]);
    let unknown = GroupId(99);
    let refused = consensus
        .propose(unknown, Bytes::new(), WAIT)
        .await
        .unwrap_err();
    assert_eq!(refused, ProposeError::NoReplica { group: unknown });
    let refused = consensus.read_barrier(unknown, WAIT).await.unwrap_err();
    assert_eq!(refused, BarrierError::NoReplica { group: unknown });
    assert_eq!(
        consensus
            .wait_for_leader(unknown, Duration::from_millis(1))
            .await,
        None
    );

    cluster.put(node, "a", "1").await.unwrap();
    consensus.remove_group(GROUP).await.unwrap();
    consensus.remove_group(GROUP).await.unwrap();
    assert_eq!(consensus.groups(), []);
    assert_eq!(cluster.get(node, "a"), None);
    assert_eq!(cluster.log_records(node), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_too_big_is_refused() {
    let cluster = Cluster::start(1).await;
    let node = cluster.leader().await;
    let big = Bytes::from(vec![b'x'; 10 << 20]);
    let refused = cluster
        .consensus(node)
        .propose(GROUP, big, WAIT)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ProposeError::TooLarge { .. }),
        "{refused}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_hands_leadership_over() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.put(leader, "a", "1").await.unwrap();
    let other = cluster.others(leader)[0];
    cluster.consensus(leader).shutdown().await;
    cluster
        .eventually("another leads", || {
            let now = cluster.consensus(other).leadership(GROUP).leader;
            now.is_some_and(|now| now != leader)
        })
        .await;
    cluster.shutdown().await;
}

/// The toy machines, for the tests of other modules.
pub fn toys(storage: &std::sync::Arc<dyn engram_core::storage::Storage>) -> toy::Toys {
    toy::Toys(std::sync::Arc::clone(storage))
}
