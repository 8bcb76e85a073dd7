//! Replicas that can only catch up by a snapshot.

use engram_core::storage::{Batch, Durability, Family, Storage as _};
use engram_core::types::NodeId;

use super::GROUP;
use super::cluster::Cluster;
use crate::consensus::ConsensusConfig;

/// Bytes of the key of a log record: group, tag, index.
const LOG_RECORD_KEY_BYTES: usize = 17;

fn snapshot_often(config: &mut ConsensusConfig) {
    config.snapshot_every_entries = 50;
    config.keep_entries = 5;
}

async fn write_beyond_a_purge(cluster: &Cluster, leader: NodeId) {
    for key in 0..200 {
        cluster
            .put(leader, &format!("k{key}"), &key.to_string())
            .await
            .unwrap();
    }
    cluster
        .eventually("the log was purged", || cluster.log_records(leader) < 150)
        .await;
}

fn has_all(cluster: &Cluster, node: NodeId) -> bool {
    (0..200).all(|key| cluster.get(node, &format!("k{key}")) == Some(key.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_replica_catches_up_after_a_purge() {
    let cluster = Cluster::start_with(3, snapshot_often).await;
    let leader = cluster.leader().await;
    let late = cluster.others(leader)[0];
    cluster.put(leader, "before", "1").await.unwrap();
    cluster
        .eventually("it is there", || cluster.get(late, "before").is_some())
        .await;
    cluster.kill(late).await;
    write_beyond_a_purge(&cluster, leader).await;
    cluster.restart(late).await;
    cluster
        .eventually("the late replica has all", || has_all(&cluster, late))
        .await;
    // What came by snapshot survives the next crash like everything else.
    let leader = cluster.leader().await;
    cluster.put(leader, "after", "1").await.unwrap();
    cluster
        .eventually("it follows again", || cluster.get(late, "after").is_some())
        .await;
    cluster.kill(late).await;
    cluster.restart(late).await;
    cluster
        .eventually("it is all there again", || {
            has_all(&cluster, late) && cluster.get(late, "after").is_some()
        })
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_begins_with_a_snapshot() {
    let cluster = Cluster::start_with(3, snapshot_often).await;
    let leader = cluster.leader().await;
    write_beyond_a_purge(&cluster, leader).await;
    let fresh = NodeId(4);
    let address = cluster.add_node(fresh).await;
    let consensus = cluster.consensus(leader);
    consensus
        .add_member(GROUP, fresh, address.clone(), true)
        .await
        .unwrap();
    consensus
        .add_member(GROUP, fresh, address, true)
        .await
        .unwrap();
    cluster
        .eventually("the new member has all", || has_all(&cluster, fresh))
        .await;
    // It counts: with one of the four gone there is still a majority of three.
    let gone = cluster.others(leader)[0];
    cluster.kill(gone).await;
    cluster.put(leader, "after", "1").await.unwrap();
    cluster
        .eventually("it follows", || cluster.get(fresh, "after").is_some())
        .await;
    cluster.shutdown().await;
}

/// Deletes the last `count` records of a node's log, as a crash does that came after their entries
/// were applied and before they were written.
fn lose_log_records(cluster: &Cluster, node: NodeId, count: usize) {
    let storage = cluster.storage(node);
    let mut records = storage.keys_on_disk(Family::Log);
    records.retain(|key| key.len() == LOG_RECORD_KEY_BYTES);
    assert!(records.len() > count, "the log is short already");
    let mut batch = Batch::new();
    for key in records.split_off(records.len() - count) {
        batch.delete(Family::Log, key);
    }
    storage.write(batch, Durability::Sync).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_state_got_to_the_disk_before_its_log_goes_on() {
    let cluster = Cluster::start_with(1, snapshot_often).await;
    let node = cluster.leader().await;
    write_beyond_a_purge(&cluster, node).await;
    for round in 0..2 {
        cluster.kill(node).await;
        lose_log_records(&cluster, node, 1);
        cluster.restart(node).await;
        let leader = cluster.leader().await;
        assert!(has_all(&cluster, node));
        for key in 0..3 {
            let key = format!("after{round}-{key}");
            cluster.put(leader, &key, "1").await.unwrap();
        }
    }
    // What is left of the log and the new snapshot are enough for a replica that has nothing.
    let fresh = NodeId(2);
    let address = cluster.add_node(fresh).await;
    let consensus = cluster.consensus(node);
    consensus
        .add_member(GROUP, fresh, address, false)
        .await
        .unwrap();
    cluster
        .eventually("the new member has all", || {
            has_all(&cluster, fresh) && cluster.get(fresh, "after1-2").is_some()
        })
        .await;
    cluster.shutdown().await;
}

fn snapshot_slowly(config: &mut ConsensusConfig) {
    snapshot_often(config);
    config.snapshot_bytes_per_second = 4 << 20;
}

fn snapshot_very_slowly(config: &mut ConsensusConfig) {
    snapshot_often(config);
    config.snapshot_bytes_per_second = 1 << 20;
}

/// Bytes of a value, so that a snapshot of the keys takes several chunks.
const LARGE: usize = 64 << 10;

async fn put_large(cluster: &Cluster, leader: NodeId, keys: std::ops::Range<u32>) {
    for key in keys {
        let value = key.to_string().repeat(LARGE / 8);
        cluster
            .put(leader, &format!("k{key}"), &value)
            .await
            .unwrap();
    }
}

/// A cluster whose leader is sending a late replica a snapshot, with a part of it on its way.
async fn sending() -> (Cluster, NodeId, NodeId) {
    sending_with(snapshot_slowly, 3 << 20).await
}

async fn sending_with(configure: fn(&mut ConsensusConfig), part: u64) -> (Cluster, NodeId, NodeId) {
    let cluster = Cluster::start_with(3, configure).await;
    let leader = cluster.leader().await;
    let late = cluster.others(leader)[0];
    cluster.kill(late).await;
    put_large(&cluster, leader, 0..200).await;
    cluster
        .eventually("the log was purged", || cluster.log_records(leader) < 150)
        .await;
    cluster.restart(late).await;
    let consensus = cluster.consensus(leader);
    cluster
        .eventually("a part was sent", || {
            consensus.snapshot_bytes_sent(GROUP, late) >= part
        })
        .await;
    (cluster, leader, late)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_where_its_stream_broke() {
    let (cluster, leader, late) = sending().await;
    cluster.cut_off(late);
    let consensus = cluster.consensus(leader);
    cluster
        .eventually("the transfer was given up", || {
            consensus.snapshot_bytes_sent(GROUP, late) == 0
        })
        .await;
    cluster.reconnect(late);
    cluster
        .eventually("the late replica has all", || {
            (0..200).all(|key| cluster.get(late, &format!("k{key}")).is_some())
        })
        .await;
    let counts = consensus.transfer_counts();
    assert!(counts.resumed_bytes >= 1 << 20, "{counts:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_kept_for_a_snapshot_that_is_being_sent() {
    let (cluster, leader, late) = sending_with(snapshot_very_slowly, 1 << 20).await;
    let consensus = cluster.consensus(leader);
    // Far more than is kept in the log otherwise. Once the transfer has ended, the log may be cut.
    let mut seen_kept = 0;
    for key in 200..400 {
        put_large(&cluster, leader, key..key + 1).await;
        let records = cluster.log_records(leader);
        let under_way = consensus.snapshot_bytes_sent(GROUP, late) > 0;
        if under_way && consensus.transfer_counts().begun == 1 {
            seen_kept = key as usize - 199;
            assert!(records >= seen_kept, "{records} of {seen_kept} entries");
        }
    }
    assert!(seen_kept > 0, "the transfer ended before the first write");
    cluster
        .eventually("the late replica has all", || {
            (0..400).all(|key| cluster.get(late, &format!("k{key}")).is_some())
        })
        .await;
    cluster
        .eventually("the log is cut again", || cluster.log_records(leader) < 150)
        .await;
    cluster.shutdown().await;
}
