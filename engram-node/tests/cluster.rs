//! Three real processes: what is acknowledged survives the kill of the node that leads most.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_client::{Client, SpaceClient, types as v1};
use engram_core::storage::RocksOptions;
use engram_node::demo::ledger::{Ledger, Writers};
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::{Seams, os};

const LIMIT: Duration = Duration::from_secs(60);
const SPACE: &str = "test";
const DIMENSION: usize = 8;
/// Acknowledged writes per partition in each phase.
const WRITES: usize = 30;

struct Setup {
    /// Dropped before the directory: its processes have files open there.
    cluster: LocalCluster,
    seams: Seams,
    client: Client,
    partitions: Vec<v1::Partition>,
    _directory: tempfile::TempDir,
}

async fn three_nodes() -> Setup {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let binary = Path::new(env!("CARGO_BIN_EXE_engram"));
    let mut cluster = LocalCluster::new(
        binary,
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
    all_alive(&client, &seams).await;
    let request = v1::CreateSpaceRequest {
        name: SPACE.into(),
        dimension: DIMENSION as u32,
        partitions: 3,
        replicas: 3,
        if_not_exists: true,
        ..Default::default()
    };
    client
        .create_space(request)
        .await
        .expect("the space is created");
    let partitions = with_primaries(&client, &seams).await;
    Setup {
        cluster,
        seams,
        client,
        partitions,
        _directory: directory,
    }
}

async fn all_alive(client: &Client, seams: &Seams) {
    let look = async || {
        let status = client.status().await.ok()?;
        (status.nodes_alive == 3).then_some(())
    };
    until(&*seams.clock, LIMIT, "not all nodes were alive", look)
        .await
        .expect("alive");
}

async fn with_primaries(client: &Client, seams: &Seams) -> Vec<v1::Partition> {
    let look = async || {
        let partitions = client.partitions(Some(SPACE)).await.ok()?;
        let whole = partitions.len() == 3 && partitions.iter().all(|p| p.primary != 0);
        whole.then_some(partitions)
    };
    until(
        &*seams.clock,
        LIMIT,
        "not every partition had a primary",
        look,
    )
    .await
    .expect("primaries")
}

async fn writes_flow(setup: &Setup, ledger: &Ledger, since: Duration) {
    let look = async || {
        let flows = |p: &v1::Partition| ledger.acknowledged_since(p.id, since) >= WRITES;
        setup.partitions.iter().all(flows).then_some(())
    };
    let clock = &*setup.seams.clock;
    until(clock, LIMIT, "writes did not flow on every partition", look)
        .await
        .expect("writes");
}

async fn level(setup: &Setup) {
    let look = async || {
        let partitions = setup.client.partitions(Some(SPACE)).await.ok()?;
        let is_level = |partition: &v1::Partition| {
            let first = partition.replicas.first().map(|replica| replica.sequence);
            partition.primary != 0
                && partition.replicas.len() == 3
                && partition
                    .replicas
                    .iter()
                    .all(|r| r.reachable && Some(r.sequence) == first)
        };
        partitions.iter().all(is_level).then_some(())
    };
    let clock = &*setup.seams.clock;
    until(clock, LIMIT, "the replicas were not level", look)
        .await
        .expect("level replicas");
}

async fn verified_equal(client: &Client) {
    let answer = client
        .with_deadline(LIMIT)
        .verify(SPACE, false)
        .await
        .expect("digests");
    assert!(answer.equal, "{answer:#?}");
    assert_eq!(answer.partitions.len(), 3);
    assert!(
        answer.partitions.iter().all(|p| p.replicas.len() == 3),
        "{answer:#?}"
    );
}

fn busiest(partitions: &[v1::Partition]) -> u64 {
    let led = |node: u64| partitions.iter().filter(|p| p.primary == node).count();
    partitions
        .iter()
        .map(|p| p.primary)
        .max_by_key(|node| led(*node))
        .expect("partitions")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_the_kill_of_the_busiest_primary() {
    let mut setup = three_nodes().await;
    let writers = Writers::start(
        &setup.client,
        SPACE,
        DIMENSION,
        &setup.partitions,
        &setup.seams,
    );
    let ledger: Arc<Ledger> = writers.ledger.clone();
    writes_flow(&setup, &ledger, Duration::ZERO).await;

    let victim = setup
        .cluster
        .index_of(busiest(&setup.partitions))
        .expect("one of ours");
    let killed = setup.seams.clock.monotonic();
    setup.cluster.kill(victim).expect("the process is killed");
    writes_flow(&setup, &ledger, killed).await;
    let ledger = writers.stop().await;

    // Through every survivor alone.
    for index in (0..3).filter(|index| *index != victim) {
        let reader = setup
            .cluster
            .client_of(index)
            .expect("an endpoint")
            .space(SPACE);
        let audit = ledger.check(&reader).await.expect("an answer");
        assert!(audit.holds(), "read through node {index}: {audit:#?}");
        assert!(audit.acknowledged >= 6 * WRITES, "{audit:#?}");
    }

    setup
        .cluster
        .restart(victim)
        .await
        .unwrap_or_else(|error| panic!("it comes back: {error}"));
    level(&setup).await;
    let reader = setup
        .cluster
        .client_of(victim)
        .expect("an endpoint")
        .space(SPACE);
    let audit = ledger.check(&reader).await.expect("an answer");
    assert!(audit.holds(), "read through the restarted node: {audit:#?}");
    verified_equal(&setup.client).await;
}

fn memory(id: &str, first: f32) -> v1::Memory {
    let mut embedding = vec![0.25; DIMENSION];
    embedding[0] = first;
    v1::Memory {
        id: id.into(),
        content: format!("content of {id}"),
        embedding,
        ..Default::default()
    }
}

async fn associate(space: &SpaceClient, from: &str, to: &str) {
    let edge = v1::EdgeRef {
        from: from.into(),
        to: to.into(),
        relation: "next".into(),
    };
    let request = v1::AssociateRequest {
        edge: Some(edge),
        weight: Some(0.5),
        ..Default::default()
    };
    space.associate(request).await.expect("associated");
}

/// Written through one node, read through each of the others; refusals are typed and change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_answers_for_all() {
    let setup = three_nodes().await;
    let nodes: Vec<SpaceClient> = (0..3)
        .map(|n| {
            setup
                .cluster
                .client_of(n)
                .expect("an endpoint")
                .space(SPACE)
        })
        .collect();
    for (number, id) in ["a", "b", "c", "d", "e", "f"].iter().enumerate() {
        nodes[0]
            .remember(memory(id, number as f32))
            .await
            .expect("remembered");
    }
    associate(&nodes[0], "a", "b").await;
    associate(&nodes[0], "b", "c").await;
    let mut spreads = Vec::new();
    for node in &nodes {
        for id in ["a", "b", "c", "d", "e", "f"] {
            let found = node.get(id).await.expect("an answer").expect("the memory");
            assert_eq!(found.content, format!("content of {id}"));
        }
        let query = v1::recall_request::Query::Like("a".into());
        let request = v1::RecallRequest {
            query: Some(query),
            limit: 5,
            ..Default::default()
        };
        let hits = node.recall(request).await.expect("an answer").hits;
        assert_eq!(
            hits.first().map(|hit| hit.id.as_str()),
            Some("b"),
            "{hits:?}"
        );
        assert_eq!(hits.len(), 5);
        let seeds = vec![v1::Seed {
            id: "a".into(),
            activation: None,
        }];
        let request = v1::SpreadRequest {
            seeds,
            hops: 2,
            explain: true,
            ..Default::default()
        };
        spreads.push(
            node.spread(request)
                .await
                .expect("an answer")
                .result
                .activated,
        );
    }
    assert!(
        spreads[0].iter().any(|activated| activated.id == "c"),
        "{:?}",
        spreads[0]
    );
    assert!(
        spreads.iter().all(|spread| *spread == spreads[0]),
        "one answer from every node"
    );

    hybrid_recalls(&nodes).await;
    walks(&nodes).await;
    refusals(&nodes[1]).await;
    assert!(nodes[2].forget("f").await.expect("an answer").existed);
    assert!(nodes[0].get("f").await.expect("an answer").is_none());
    verified_equal(&setup.client).await;
}

/// One call that finds the nearest and spreads from them: the same from every node.
async fn hybrid_recalls(nodes: &[SpaceClient]) {
    let request = |like: &str| v1::SpreadRequest {
        nearest: Some(v1::NearestSeeds {
            query: Some(v1::nearest_seeds::Query::Like(like.into())),
            count: 2,
            similarity_weight: Some(0.25),
            activation_weight: Some(0.75),
            ..Default::default()
        }),
        hops: 1,
        with_content: true,
        ..Default::default()
    };
    let mut answers = Vec::new();
    for node in nodes {
        let answer = node.spread(request("a")).await.expect("an answer");
        answers.push(answer.result);
    }
    let first = &answers[0];
    let hybrid = first.hybrid.as_ref().expect("it states its weights");
    assert_eq!(
        (hybrid.similarity_weight, hybrid.activation_weight),
        (0.25, 0.75)
    );
    assert_eq!(hybrid.seeds.len(), 2, "{hybrid:?}");
    assert_eq!(hybrid.seeds[0].id, "b");
    // b leads to c.
    let found = first.activated.iter().find(|one| one.id == "c");
    let found = found.expect("what the nearest lead to is found");
    assert!(found.similarity.is_some() && found.combined.is_some());
    let content = found.memory.as_ref().map(|memory| memory.content.as_str());
    assert_eq!(content, Some("content of c"));
    let combined: Vec<f64> = first
        .activated
        .iter()
        .filter_map(|one| one.combined)
        .collect();
    assert!(
        combined.is_sorted_by(|one, other| one >= other),
        "{combined:?}"
    );
    for other in &answers {
        assert_eq!(
            other.activated, first.activated,
            "one answer from every node"
        );
    }
    let nobody = nodes[0].spread(request("nobody")).await;
    assert!(nobody.is_err(), "there is no such memory");
}

/// a -> b -> c, in three partitions or fewer.
async fn walks(nodes: &[SpaceClient]) {
    use v1::neighbors_request::Direction;
    for node in nodes {
        let path = |from: &str, to: &str, direction: Direction| v1::FindPathRequest {
            from: from.into(),
            to: to.into(),
            direction: direction.into(),
            ..Default::default()
        };
        let ids = |answer: v1::FindPathResponse| -> Vec<String> {
            answer.steps.into_iter().map(|step| step.id).collect()
        };
        let found = node.find_path(path("a", "c", Direction::Out)).await;
        let found = found.expect("an answer");
        assert!((found.strength - 0.25).abs() < 1e-9, "{found:?}");
        assert_eq!(ids(found), ["a", "b", "c"]);
        let none = node.find_path(path("c", "a", Direction::Out)).await;
        assert!(none.expect("an answer").steps.is_empty());
        let back = node.find_path(path("c", "a", Direction::In)).await;
        assert_eq!(ids(back.expect("an answer")), ["c", "b", "a"]);
        let missing = node.find_path(path("a", "nobody", Direction::Both)).await;
        assert_eq!(missing.expect("an answer").missing, ["nobody"]);

        let around = v1::NeighborhoodRequest {
            ids: vec!["b".into()],
            direction: Direction::Both.into(),
            ..Default::default()
        };
        let component = node.neighborhood(around).await.expect("an answer");
        let members: Vec<(&str, u32)> = component
            .members
            .iter()
            .map(|member| (member.id.as_str(), member.hops))
            .collect();
        assert_eq!(members, [("b", 0), ("a", 1), ("c", 1)]);
        assert!(!component.truncated);
    }
}

async fn refusals(space: &SpaceClient) {
    use engram_client::{ErrorKind, Outcome};
    let refused = async |memory: v1::Memory| {
        let error = space.remember(memory).await.expect_err("refused");
        assert_eq!(
            (error.kind, error.outcome),
            (ErrorKind::Invalid, Outcome::NotApplied),
            "{error}"
        );
        assert!(!error.retryable, "{error}");
    };
    refused(v1::Memory {
        embedding: vec![1.0; 3],
        ..memory("short", 0.0)
    })
    .await;
    refused(memory("nan", f32::NAN)).await;
    refused(v1::Memory {
        embedding: vec![0.0; DIMENSION],
        ..memory("zero", 0.0)
    })
    .await;
    refused(v1::Memory {
        confidence: Some(1.5),
        ..memory("sure", 0.0)
    })
    .await;
    refused(memory(&"x".repeat(513), 0.0)).await;
    for id in ["short", "nan", "zero", "sure"] {
        assert!(space.get(id).await.expect("an answer").is_none(), "{id}");
    }
}
