//! Nemesis: each node in turn is killed without warning and started again, while clients overwrite
//! registers. Checker: no acknowledged write is lost, and all replicas are equal at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use engram_client::{Client, types as v1};
use engram_core::storage::RocksOptions;
use engram_jepsen::binary;
use engram_jepsen::history::{Told, Write};
use engram_jepsen::lost::check;
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::{Seams, os};

const SPACE: &str = "registers";
const CLIENTS: usize = 4;
const REGISTERS: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);
/// Writes that must be answered between two acts of the nemesis.
const WRITES_BETWEEN: usize = 60;

async fn space(client: &Client, seams: &Seams) {
    let ready = async || (client.status().await.ok()?.nodes_alive == 3).then_some(());
    until(&*seams.clock, LIMIT, "not all nodes were alive", ready)
        .await
        .expect("alive");
    let request = v1::CreateSpaceRequest {
        name: SPACE.into(),
        dimension: 2,
        partitions: 3,
        replicas: 3,
        if_not_exists: true,
        ..Default::default()
    };
    client
        .create_space(request)
        .await
        .expect("the space is created");
}

/// Overwrites its own registers until told to stop; answers with its history.
async fn write(
    client: Client,
    number: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> Vec<Write> {
    let space = client.space(SPACE);
    let mut history = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("r-{number}-{}", round % REGISTERS);
        let value = format!("{number}:{round}");
        let memory = v1::Memory {
            id: id.clone(),
            content: value.clone(),
            embedding: vec![1.0, round as f32],
            ..Default::default()
        };
        let answer = space.remember(memory).await;
        history.push(Write {
            id,
            value,
            told: Told::of(&answer),
        });
        answered.fetch_add(1, Ordering::Relaxed);
    }
    history
}

async fn read_all(client: &Client) -> BTreeMap<String, String> {
    let each = |number| (0..REGISTERS).map(move |register| format!("r-{number}-{register}"));
    let ids = (0..CLIENTS).flat_map(each).collect();
    let request = v1::GetRequest {
        ids,
        ..Default::default()
    };
    let answer = client
        .space(SPACE)
        .get_with(request)
        .await
        .expect("an answer");
    answer
        .memories
        .into_iter()
        .map(|memory| (memory.id, memory.content))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_nodes_are_killed_in_turn() {
    let binary = match binary::find() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("SKIPPED, not passed: {error}");
            return;
        }
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let mut cluster = LocalCluster::new(
        &binary,
        directory.path(),
        3,
        Fate::Bound,
        seams.clock.clone(),
    );
    cluster
        .start()
        .await
        .unwrap_or_else(|error| panic!("the nodes start: {error}"));
    let client = cluster.client().expect("endpoints are known");
    space(&client, &seams).await;

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let (histories, mut collected) = tokio::sync::mpsc::channel(CLIENTS);
    for number in 0..CLIENTS {
        // A client of its own each: its own identity, its own order.
        let client = cluster.client().expect("endpoints are known");
        let (stop, answered, histories) = (stop.clone(), answered.clone(), histories.clone());
        seams.spawn("client", async move {
            let history = write(client, number, stop, answered).await;
            drop(histories.send(history).await);
        });
    }
    drop(histories);

    let progress = async |what: &str| {
        let goal = answered.load(Ordering::Relaxed) + WRITES_BETWEEN;
        let look = async || (answered.load(Ordering::Relaxed) >= goal).then_some(());
        until(&*seams.clock, LIMIT, what, look)
            .await
            .expect("writes go on");
    };
    progress("no writes at the start").await;
    for index in 0..cluster.size() {
        cluster.kill(index).expect("the process is killed");
        progress("no writes after a kill").await;
        cluster
            .restart(index)
            .await
            .unwrap_or_else(|error| panic!("it comes back: {error}"));
        progress("no writes after a restart").await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut history = Vec::new();
    while let Some(part) = collected.recv().await {
        history.extend(part);
    }
    let acknowledged = history
        .iter()
        .filter(|write| write.told == Told::Acknowledged)
        .count();
    assert!(
        acknowledged > WRITES_BETWEEN,
        "{acknowledged} of {}",
        history.len()
    );
    let anomalies = check(&history, &read_all(&client).await);
    assert!(
        anomalies.is_empty(),
        "{}",
        serde_json::to_string_pretty(&anomalies).expect("JSON")
    );

    let equal = async || {
        let answer = client
            .with_deadline(LIMIT)
            .verify(SPACE, false)
            .await
            .ok()?;
        // A replica that is still catching up gives no digests yet; one that differs is final.
        let differs = |replica: &v1::ReplicaDigests| !replica.agrees && replica.error.is_empty();
        assert!(
            !answer
                .partitions
                .iter()
                .flat_map(|p| &p.replicas)
                .any(differs),
            "{answer:#?}"
        );
        answer.equal.then_some(())
    };
    until(&*seams.clock, LIMIT, "the replicas were not equal", equal)
        .await
        .expect("equal");
}
