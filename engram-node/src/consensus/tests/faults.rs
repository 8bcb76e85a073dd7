//! Killed, isolated and broken nodes.

use std::time::Duration;

use bytes::Bytes;
use engram_core::storage::{Damage, Family};
use engram_core::types::NodeId;

use super::GROUP;
use super::cluster::Cluster;
use crate::consensus::{BarrierError, ProposeError};

/// Puts `keys` at the leader and returns once all are acknowledged.
async fn put_all(cluster: &Cluster, leader: NodeId, keys: std::ops::Range<u32>) {
    for key in keys {
        cluster
            .put(leader, &format!("k{key}"), &key.to_string())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_after_the_leader_was_killed() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_all(&cluster, leader, 0..20).await;
    cluster.kill(leader).await;
    let survivors = cluster.others(leader);
    for survivor in &survivors {
        cluster.consensus(*survivor).on_node_lost(leader);
    }
    let next = cluster.leader_among(&survivors).await;
    assert_ne!(next, leader);
    put_all(&cluster, next, 20..40).await;
    for key in 0..40 {
        assert_eq!(cluster.get(next, &format!("k{key}")), Some(key.to_string()));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_all_nodes_keeps_what_was_acknowledged() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_all(&cluster, leader, 0..50).await;
    for node in cluster.nodes() {
        cluster.kill(node).await;
    }
    for node in cluster.nodes() {
        cluster.restart(node).await;
    }
    let leader = cluster.leader().await;
    for key in 0..50 {
        assert_eq!(
            cluster.get(leader, &format!("k{key}")),
            Some(key.to_string())
        );
    }
    cluster.put(leader, "after", "1").await.unwrap();
    for node in cluster.nodes() {
        cluster
            .eventually("all caught up", || cluster.get(node, "after").is_some())
            .await;
        assert_eq!(cluster.get(node, "k49"), Some("49".into()));
    }
    cluster.shutdown().await;
}

/// Else leadership is given to it, for its log may lack little, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_is_not_counted_on() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_all(&cluster, leader, 0..3).await;
    let consensus = cluster.consensus(leader);
    let heard = |node: &NodeId| {
        let members = consensus.members(GROUP);
        members.is_some_and(|members| members.behind.contains_key(node))
    };
    let stopped = cluster.others(leader)[0];
    cluster
        .eventually("both are heard of", || {
            cluster.others(leader).iter().all(heard)
        })
        .await;
    cluster.consensus(stopped).stop_groups_for_test().await;
    let other = cluster.others(leader)[1];
    cluster
        .eventually("one is not any more", || !heard(&stopped) && heard(&other))
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_confirms_nothing() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    put_all(&cluster, old, 0..5).await;
    cluster.cut_off(old);
    let wait = Duration::from_secs(2);
    let refused = cluster
        .consensus(old)
        .read_barrier(GROUP, wait)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            BarrierError::NoQuorum { .. } | BarrierError::NotLeader { .. }
        ),
        "{refused}"
    );
    let entry = Bytes::from_static(b"lost=1");
    let refused = cluster
        .consensus(old)
        .propose(GROUP, entry, wait)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            ProposeError::Unknown { .. } | ProposeError::NotLeader { .. }
        ),
        "{refused}"
    );

    let next = cluster.leader_among(&cluster.others(old)).await;
    cluster.put(next, "new", "1").await.unwrap();
    cluster.reconnect(old);
    cluster
        .eventually("the old leader follows", || {
            cluster.get(old, "new").is_some()
        })
        .await;
    cluster
        .eventually("and knows the new one", || {
            cluster
                .consensus(old)
                .leadership(GROUP)
                .leader
                .is_some_and(|leader| leader != old)
        })
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_log_write_stops_the_replica_and_is_not_retried() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_all(&cluster, leader, 0..5).await;
    let broken = cluster.others(leader)[0];
    cluster.storage(broken).fail_next_write();
    put_all(&cluster, leader, 5..10).await;
    cluster
        .eventually("the replica has stopped", || {
            !cluster.consensus(broken).stopped().is_empty()
        })
        .await;
    let refused = cluster.put(broken, "x", "1").await.unwrap_err();
    assert!(matches!(refused, ProposeError::Stopped { .. }), "{refused}");
    put_all(&cluster, leader, 10..15).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_understood_stops_the_replica() {
    let cluster = Cluster::start(1).await;
    let leader = cluster.leader().await;
    let entry = Bytes::from_static(b"no such command");
    let consensus = cluster.consensus(leader);
    let answer = consensus
        .propose(GROUP, entry, Duration::from_secs(5))
        .await
        .unwrap_err();
    assert!(matches!(answer, ProposeError::Unknown { .. }), "{answer}");
    cluster
        .eventually("stopped", || !consensus.stopped().is_empty())
        .await;
    let (_, reason) = consensus.stopped().remove(0);
    assert!(reason.contains("not understood"), "{reason}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_failed_is_known_until_it_is_done() {
    let cluster = Cluster::start(1).await;
    let node = cluster.leader().await;
    put_all(&cluster, node, 0..5).await;
    assert!(cluster.consensus(node).remains().is_empty());
    cluster.storage(node).fail_next_write();
    cluster
        .consensus(node)
        .remove_group(GROUP)
        .await
        .unwrap_err();
    assert_eq!(cluster.consensus(node).remains(), [GROUP]);
    cluster.kill(node).await;

    // As of a group that was dropped while the node was down.
    cluster.reopen(node).await;
    assert_eq!(cluster.consensus(node).remains(), [GROUP]);
    cluster.consensus(node).remove_group(GROUP).await.unwrap();
    assert!(cluster.consensus(node).remains().is_empty());
    assert_eq!(cluster.log_records(node), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_stops_the_replica_and_says_so() {
    let cluster = Cluster::start(1).await;
    let node = cluster.leader().await;
    put_all(&cluster, node, 0..5).await;
    cluster.kill(node).await;
    let last = cluster.storage(node).keys_on_disk(Family::Log);
    let last = last.iter().rev().find(|key| key.len() == 17).unwrap();
    assert!(
        cluster
            .storage(node)
            .damage(Family::Log, last, Damage::Unreadable)
    );
    cluster.reopen(node).await;
    let refused = cluster.try_start_group(node, true).await.unwrap_err();
    assert!(refused.to_string().contains("corrupt"), "{refused}");
    let why = cluster.consensus(node).why_stopped(GROUP).unwrap();
    assert!(why.contains("corrupt"), "{why}");
    assert_eq!(cluster.consensus(node).stopped(), [(GROUP, why)]);
    cluster.shutdown().await;
}
