//! Real processes: backups under load, incremental ones, and their restoration into clusters of
//! another size, with the command line that an operator uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use engram_client::{Client, types as v1};
use engram_core::storage::RocksOptions;
use engram_node::demo::ledger::Writers;
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::{Seams, os};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const SPACE: &str = "notes";
const DIMENSION: usize = 8;
const MEMORIES: u64 = 600;

struct Rig {
    /// Dropped before the directory: its processes have files open there.
    cluster: LocalCluster,
    seams: Seams,
    client: Client,
    directory: tempfile::TempDir,
}

async fn rig(nodes: usize) -> Rig {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let binary = Path::new(env!("CARGO_BIN_EXE_engram"));
    let clock = seams.clock.clone();
    let mut cluster = LocalCluster::new(binary, directory.path(), nodes, Fate::Bound, clock);
    cluster
        .start()
        .await
        .unwrap_or_else(|error| panic!("the nodes start: {error}"));
    let client = cluster.client().expect("endpoints are known");
    let rig = Rig {
        cluster,
        seams,
        client,
        directory,
    };
    rig.wait("not all nodes were alive", async || {
        let status = rig.client.status().await.ok()?;
        (status.nodes_alive as usize == nodes).then_some(())
    })
    .await;
    rig
}

impl Rig {
    async fn wait<T>(&self, what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
        let found = until(&*self.seams.clock, LIMIT, what, look).await;
        found.unwrap_or_else(|late| panic!("{late}"))
    }

    fn repository(&self) -> PathBuf {
        self.directory.path().join("backups")
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_engram"))
            .args(arguments)
            .args(["--endpoint", &self.cluster.endpoints().join(",")])
            .args(["--output", "json", "--deadline", "60s"])
            .output();
        output.expect("the command runs")
    }

    /// Runs a command that must succeed; what it printed.
    fn run(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn exit_of(&self, arguments: &[&str]) -> Option<i32> {
        self.command(arguments).status.code()
    }

    /// Answers with the partitions, once all have a primary.
    async fn create(&self, partitions: u32, replicas: u32) -> Vec<v1::Partition> {
        let request = v1::CreateSpaceRequest {
            name: SPACE.into(),
            dimension: DIMENSION as u32,
            partitions,
            replicas,
            if_not_exists: true,
            local_fallback: v1::LocalFallback::Refused.into(),
            ..Default::default()
        };
        self.client.create_space(request).await.expect("created");
        self.wait("not every partition had a primary", async || {
            let all = self.client.partitions(Some(SPACE)).await.ok()?;
            let led = all.iter().all(|partition| partition.primary != 0);
            (all.len() == partitions as usize && led).then_some(all)
        })
        .await
    }

    async fn fill(&self) {
        let space = self.client.space(SPACE);
        let mut importer = space.importer();
        let row = |n: u64| {
            let unit = |k: u64| ((n * 31 + k * 17) % 23) as f32 - 11.5;
            (0..DIMENSION as u64).map(unit).collect::<Vec<_>>()
        };
        let memories = (0..MEMORIES).map(|n| v1::Memory {
            id: format!("m{n}"),
            content: format!("content {n}").repeat((n % 50) as usize),
            embedding: if n.is_multiple_of(7) {
                Vec::new()
            } else {
                row(n)
            },
            labels: vec![format!("l{}", n % 3)],
            properties: [("n".to_owned(), number(n as f64))].into(),
            confidence: Some(0.5),
            ..Default::default()
        });
        let edges = (0..MEMORIES).map(|n| v1::ImportEdge {
            from: format!("m{n}"),
            to: format!("m{}", (n * 7 + 1) % MEMORIES),
            relation: "next".into(),
            weight: Some((n % 10) as f64 / 10.0),
            confidence: Some(0.3),
        });
        let (memories, edges) = (memories.collect(), edges.collect());
        importer.send(memories, edges).await.expect("sent");
        let reports = importer.finish().await.expect("answered");
        assert!(reports.iter().all(|report| report.rejected.is_empty()));
        // Evidence twice, an edge beside the log, one to nowhere, and a memory that is gone.
        for edge in [("m1", "m8"), ("m1", "absent")] {
            let request = v1::AssociateRequest {
                edge: Some(edge_ref(edge)),
                weight: Some(1.0),
                confidence: Some(0.7),
                ..Default::default()
            };
            space.associate(request).await.expect("associated");
        }
        space.forget("m5").await.expect("forgotten");
    }

    /// All that readers see of a space: memories but for versions, associations with all digits.
    async fn content(&self, space: &str) -> (BTreeMap<String, v1::Memory>, Vec<String>) {
        let request = v1::ExportRequest {
            memories: true,
            embeddings: true,
            edges: true,
            ..Default::default()
        };
        let mut stream = self
            .client
            .space(space)
            .export(request)
            .await
            .expect("begun");
        let (mut memories, mut edges) = (BTreeMap::new(), Vec::new());
        while let Some(batch) = stream.next().await.expect("a batch") {
            for mut memory in batch.memories {
                memory.version = 0;
                memories.insert(memory.id.clone(), memory);
            }
            edges.extend(batch.edges.iter().map(|edge| format!("{edge:?}")));
        }
        edges.sort();
        (memories, edges)
    }
}

fn number(value: f64) -> v1::PropertyValue {
    v1::PropertyValue {
        value: Some(v1::property_value::Value::Number(value)),
    }
}

fn edge_ref((from, to): (&str, &str)) -> v1::EdgeRef {
    v1::EdgeRef {
        from: from.into(),
        to: to.into(),
        relation: "next".into(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_comes_back_on_a_cluster_of_another_size() {
    let source = rig(3).await;
    source.create(3, 3).await;
    source.fill().await;
    let before = source.content(SPACE).await;
    assert_eq!(before.0.len() as u64, MEMORIES - 1);
    let directory = source.repository();
    let directory = text(&directory);

    let first = source.run(&["backup", "create", directory, "--id", "first"]);
    assert_eq!(first["spaces"][0]["memories"], MEMORIES - 1, "{first}");
    assert_eq!(first["bytes"], first["new_bytes"], "{first}");
    // Nothing has changed: nothing is stored again.
    let second = source.run(&["backup", "create", directory, "--id", "second"]);
    assert_eq!(second["new_bytes"], 0, "{second}");
    assert_eq!(second["bytes"], first["bytes"]);
    assert_eq!(
        source.exit_of(&["backup", "create", directory, "--id", "second"]),
        Some(4)
    );
    let listed = source.run(&["backup", "list", directory]);
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(2));
    let verified = source.run(&["backup", "verify", directory]);
    assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0));

    // Under the same name beside the original: refused; under another one, in more partitions.
    assert_eq!(source.exit_of(&["restore", directory]), Some(4));
    let beside = [
        "restore",
        directory,
        "--space",
        SPACE,
        "--as",
        "copy",
        "--partitions",
        "5",
    ];
    let restored = source.run(&beside);
    assert_eq!(restored["restored"][0]["rejected"], 0, "{restored}");
    assert_eq!(source.content("copy").await, before);
    let described = source.client.describe_space("copy").await;
    let copy = described.expect("described").space.expect("a space");
    assert_eq!(copy.local_fallback(), v1::LocalFallback::Refused);
    // Again: all of it is there.
    let resumed = source.run(&[&beside[..], &["--resume"]].concat());
    assert_eq!(resumed["restored"][0]["memories"], 0, "{resumed}");
    assert_eq!(source.content("copy").await, before);

    // On one node, in one partition; the damaged chunk is found before anything is made.
    let target = rig(1).await;
    let small = ["restore", directory, "--partitions", "1", "--replicas", "1"];
    let dry = target.run(&[&small[..], &["--dry-run"]].concat());
    assert_eq!(dry["would_restore"][0]["partitions"], 1, "{dry}");
    let chunk = some_chunk(Path::new(directory));
    let whole = std::fs::read(&chunk).expect("readable");
    std::fs::write(&chunk, &whole[..whole.len() - 1]).expect("writable");
    assert_eq!(target.exit_of(&small), Some(4));
    assert!(
        target
            .client
            .list_spaces()
            .await
            .expect("listed")
            .is_empty()
    );
    assert_eq!(target.exit_of(&["backup", "verify", directory]), Some(1));
    std::fs::write(&chunk, &whole).expect("writable");
    target.run(&small);
    assert_eq!(target.content(SPACE).await, before);
    let answer = target.client.verify(SPACE, true).await.expect("digests");
    assert!(answer.equal, "{answer:#?}");

    source.run(&["backup", "remove", directory, "first"]);
    let verified = source.run(&["backup", "verify", directory, "second"]);
    assert_eq!(
        verified["damage"].as_array().map(Vec::len),
        Some(0),
        "{verified}"
    );
}

fn some_chunk(repository: &Path) -> PathBuf {
    let prefixes = std::fs::read_dir(repository.join("chunks")).expect("readable");
    let mut files = prefixes.flat_map(|prefix| {
        let files = std::fs::read_dir(prefix.expect("an entry").path()).expect("readable");
        files.map(|file| file.expect("an entry").path())
    });
    files.next().expect("a chunk")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_outlives_the_kill_of_a_primary() {
    let mut rig = rig(3).await;
    let partitions = rig.create(3, 3).await;
    rig.fill().await;
    let writers = Writers::start(&rig.client, SPACE, DIMENSION, &partitions, &rig.seams);
    let flows = async |rig: &Rig| {
        let since = rig.seams.clock.monotonic();
        rig.wait("writes did not flow", async || {
            let count = |it: &v1::Partition| writers.ledger.acknowledged_since(it.id, since);
            partitions.iter().all(|it| count(it) >= 20).then_some(())
        })
        .await;
    };
    flows(&rig).await;
    // What was acknowledged before the backup begins is in it.
    let ids: Vec<String> = writers.ledger.ids();
    let directory = rig.repository();
    let (endpoints, target) = (rig.cluster.endpoints().join(","), directory.clone());
    let backup = Command::new(env!("CARGO_BIN_EXE_engram"))
        .args(["backup", "create", text(&target), "--endpoint", &endpoints])
        .args(["--output", "json", "--deadline", "60s"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("begun");
    let victim = partitions[0].primary;
    let victim = rig.cluster.index_of(victim).expect("a node of ours");
    rig.cluster.kill(victim).expect("killed");
    let output = backup.wait_with_output().expect("ended");
    assert!(output.status.success(), "the backup goes on elsewhere");
    flows(&rig).await;
    rig.cluster.restart(victim).await.expect("back");
    let ledger = writers.stop().await;
    assert!(
        ledger
            .check(&rig.client.space(SPACE))
            .await
            .expect("an answer")
            .holds()
    );

    rig.run(&[
        "restore",
        text(&directory),
        "--space",
        SPACE,
        "--as",
        "copy",
        "--partitions",
        "2",
    ]);
    let (memories, _) = rig.content("copy").await;
    let lost: Vec<&String> = ids
        .iter()
        .filter(|id| !memories.contains_key(*id))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}
