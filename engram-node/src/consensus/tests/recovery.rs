//! Logs that lost their end although it had been on disk.

use engram_core::storage::{Damage, Family};
use engram_core::types::NodeId;
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::{RaftLogId, RaftVote, RaftVoteRequest};

use super::GROUP;
use super::cluster::Cluster;
use crate::consensus::{ConsensusConfig, RepairError};
use crate::transport::RaftHandler as _;

fn marked(config: &mut ConsensusConfig) {
    config.marks_before_ack = true;
}

async fn put(cluster: &Cluster, leader: NodeId, keys: std::ops::Range<u32>) {
    for key in keys {
        let (name, value) = (format!("k{key}"), key.to_string());
        cluster.put(leader, &name, &value).await.unwrap();
    }
}

fn has(cluster: &Cluster, node: NodeId, keys: u32) -> bool {
    (0..keys).all(|key| cluster.get(node, &format!("k{key}")).is_some())
}

/// Whether `voter` would vote for a candidate of a far term whose log ends at `last`.
async fn votes_for(cluster: &Cluster, voter: NodeId, from: NodeId, last: (u64, u64)) -> bool {
    let (term, index) = last;
    let request = Body::PreVote(RaftVoteRequest {
        vote: Some(RaftVote {
            term: 1_000,
            node: from.0,
            committed: false,
        }),
        last: Some(RaftLogId { term, index }),
        // A lease that has not run out yet would refuse the others.
        leadership_transfer: true,
    });
    let consensus = cluster.consensus(voter);
    match consensus.inner().handle(from, GROUP, request).await {
        Body::VoteAnswer(answer) => answer.granted,
        other => panic!("not an answer to a vote: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_brings_a_short_log_back() {
    let cluster = Cluster::start_with(3, marked).await;
    let leader = cluster.leader().await;
    put(&cluster, leader, 0..20).await;
    let short = cluster.others(leader)[0];
    cluster
        .eventually("it follows", || has(&cluster, short, 20))
        .await;
    cluster.kill(short).await;
    cluster.lose_log_end(short, 8);
    cluster.restart(short).await;
    put(&cluster, leader, 20..30).await;
    cluster
        .eventually("it has all again", || {
            let consensus = cluster.consensus(short);
            let status = consensus.status().into_iter().next();
            has(&cluster, short, 30) && status.is_some_and(|it| it.applied_index >= 30)
        })
        .await;
    // It counts again: with the other one gone there is a majority.
    let other = cluster.others(leader)[1];
    cluster.kill(other).await;
    put(&cluster, leader, 30..35).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_log_does_not_elect_who_lacks_what_it_lost() {
    let cluster = Cluster::start_with(3, marked).await;
    let leader = cluster.leader().await;
    let [short, behind] = cluster.others(leader)[..] else {
        panic!("three nodes");
    };
    put(&cluster, leader, 0..10).await;
    cluster
        .eventually("all follow", || has(&cluster, behind, 10))
        .await;
    cluster.kill(behind).await;
    // Acknowledged by two, of which one loses them.
    put(&cluster, leader, 10..20).await;
    cluster
        .eventually("it follows", || has(&cluster, short, 20))
        .await;
    let end = cluster.consensus(leader).status()[0].last_log_index;
    let term = cluster.consensus(leader).status()[0].term;
    cluster.kill(leader).await;
    cluster.kill(short).await;
    cluster.lose_log_end(short, 10);
    cluster.restart(short).await;
    cluster.restart(behind).await;
    let lacking = (term, end - 10);
    assert!(!votes_for(&cluster, short, behind, lacking).await);
    let ahead = (term, end);
    assert!(
        !votes_for(&cluster, short, leader, ahead).await,
        "not before all have told"
    );
    cluster.restart(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, behind);
    for node in [leader, short, behind] {
        cluster
            .eventually("everybody has all", || has(&cluster, node, 20))
            .await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_all_have_lost_does_not_stop_the_group_for_ever() {
    let cluster = Cluster::start_with(3, marked).await;
    let leader = cluster.leader().await;
    put(&cluster, leader, 0..20).await;
    for node in cluster.nodes() {
        cluster
            .eventually("all follow", || has(&cluster, node, 20))
            .await;
    }
    for node in cluster.nodes() {
        cluster.kill(node).await;
        cluster.lose_log_end(node, 3);
    }
    for node in cluster.nodes() {
        cluster.restart(node).await;
    }
    let next = cluster.leader().await;
    put(&cluster, next, 20..25).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_begins_anew_once_a_leader_has_all() {
    let cluster = Cluster::start_with(3, marked).await;
    let leader = cluster.leader().await;
    let [damaged, other] = cluster.others(leader)[..] else {
        panic!("three nodes");
    };
    put(&cluster, leader, 0..20).await;
    cluster
        .eventually("all follow", || has(&cluster, damaged, 20))
        .await;
    cluster.kill(damaged).await;
    let keys = cluster.storage(damaged).keys_on_disk(Family::Log);
    let last = keys.iter().rev().find(|key| key.len() == 17).unwrap();
    let storage = cluster.storage(damaged);
    assert!(storage.damage(Family::Log, last, Damage::Unreadable));
    cluster.reopen(damaged).await;
    cluster.try_start_group(damaged, false).await.unwrap_err();
    let consensus = cluster.consensus(damaged);
    assert_eq!(consensus.damaged(), [GROUP]);

    // The others have no majority without each other: nothing may be deleted.
    cluster.kill(other).await;
    let refused = consensus.repair_group(&cluster.spec(false)).await;
    assert!(
        matches!(refused, Err(RepairError::NoLeader(_))),
        "{refused:?}"
    );
    assert!(cluster.storage(damaged).keys_on_disk(Family::Log).len() >= 20);

    cluster.restart(other).await;
    let leader = cluster.leader_among(&[leader, other]).await;
    put(&cluster, leader, 20..25).await;
    let spec = cluster.spec(false);
    consensus.repair_group(&spec).await.unwrap();
    assert!(consensus.damaged().is_empty());
    cluster
        .eventually("it has all again", || has(&cluster, damaged, 25))
        .await;
    // It votes again: with the other one gone there is a majority.
    cluster.kill(other).await;
    let next = cluster.leader_among(&[leader, damaged]).await;
    put(&cluster, next, 25..30).await;
    cluster.shutdown().await;
}
