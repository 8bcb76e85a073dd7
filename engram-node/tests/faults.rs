//! Real processes under load: killed in turn, paused, restarted one by one, with a full disk. After
//! each: every acknowledged write is there once, replicas are at their number and equal.

mod rig;

use std::path::{Path, PathBuf};
use std::process::Command;

use engram_client::types as v1;
use engram_core::storage::RocksOptions;
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::seams::os;
use rig::{SPACE, nothing_failed, rig};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_is_killed_in_turn() {
    let mut rig = rig(3, 3, &[]).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    for index in 0..3 {
        rig.cluster.kill(index).expect("killed");
        rig.writes_flow(&ledger).await;
        rig.cluster
            .restart(index)
            .await
            .unwrap_or_else(|error| panic!("it comes back: {error}"));
        rig.alive(3).await;
        rig.writes_flow(&ledger).await;
    }
    let ledger = writers.stop().await;
    rig.holds(&ledger).await;
    rig.equal(3).await;
}

/// What a register of the partition that node `primary` leads holds, written through the others.
async fn write_register(rig: &rig::Rig, value: &str) {
    let memory = v1::Memory {
        id: "register".into(),
        content: value.into(),
        ..Default::default()
    };
    let space = rig.client.space(SPACE);
    rig.wait("the register was not written", async || {
        space.remember(memory.clone()).await.ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_primary_shows_nothing_stale_when_it_goes_on() {
    let rig = rig(3, 3, &[]).await;
    write_register(&rig, "before").await;
    let slot = engram_core::types::MemoryId::new("register")
        .expect("an id")
        .hash_slot();
    for round in 0..3 {
        let partitions = rig.partitions().await;
        let holds = |it: &&v1::Partition| (it.slot_start..it.slot_end).contains(&u32::from(slot.0));
        let old = partitions
            .iter()
            .find(holds)
            .expect("its partition")
            .clone();
        let index = rig.cluster.index_of(old.primary).expect("one of ours");
        // Its connections stay open; it believes to lead when it wakes up.
        let paused = rig.cluster.client_of(index).expect("an endpoint");
        paused.status().await.expect("an answer");
        rig.cluster.pause(index).expect("paused");
        rig.wait("nobody else became primary", async || {
            let partitions = rig.partitions().await;
            let now = partitions.iter().find(holds)?;
            (now.primary != 0 && now.primary != old.primary).then_some(())
        })
        .await;
        let value = format!("round {round}");
        write_register(&rig, &value).await;
        rig.cluster.resume(index).expect("resumed");
        // At once, and until it answers: every answer is the new value.
        let read = || v1::GetRequest {
            ids: vec!["register".into()],
            consistency: v1::Consistency::Linearizable.into(),
            ..Default::default()
        };
        rig.wait("the resumed node did not answer", async || {
            let answer = paused.space(SPACE).get_with(read()).await.ok()?;
            let content = answer.memories.first().map(|memory| memory.content.clone());
            assert_eq!(content.as_deref(), Some(value.as_str()), "a stale answer");
            Some(())
        })
        .await;
        rig.alive(3).await;
    }
    rig.equal(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() {
    let mut rig = rig(3, 3, &[]).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    for index in 0..3 {
        let node = rig.cluster.addresses(index).expect("started").node;
        rig.set(node, v1::NodeState::Maintenance).await;
        rig.wait("the node still led", async || {
            let nodes = rig.client.nodes().await.ok()?;
            let led = nodes.iter().find(|it| it.id == node)?.primaries;
            (led == 0).then_some(())
        })
        .await;
        rig.cluster
            .stop(index)
            .await
            .unwrap_or_else(|error| panic!("it stops: {error}"));
        rig.writes_flow(&ledger).await;
        rig.cluster
            .restart(index)
            .await
            .unwrap_or_else(|error| panic!("it comes back: {error}"));
        rig.alive(3).await;
        rig.set(node, v1::NodeState::Active).await;
        rig.writes_flow(&ledger).await;
    }
    let ledger = writers.stop().await;
    let audit = ledger.check(&rig.client.space(SPACE)).await;
    let audit = audit.expect("an answer");
    assert!(audit.holds(), "{audit:#?}");
    nothing_failed(&ledger, &audit);
    rig.equal(3).await;
}

/// A file system of its own, which is full soon.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, with the reason on standard error, where this process may not mount anything.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).expect("made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=160m", "tmpfs"])
            .arg(path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self {
                path: path.to_owned(),
            }),
            Ok(output) => {
                eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: no mount: {error}");
                None
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.ballast()).expect("made");
        let block = vec![1; 64 << 10];
        while file.write_all(&block).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.path).status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_one_node_loses_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let binary = Path::new(env!("CARGO_BIN_EXE_engram"));
    let clock = seams.clock.clone();
    let cluster = LocalCluster::new(binary, directory.path(), 3, Fate::Bound, clock);
    let Some(disk) = SmallDisk::mount(cluster.data_dir(2)) else {
        return;
    };
    let mut rig = rig::start(cluster, directory, seams, 3).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    let node = rig.cluster.addresses(2).expect("started").node;
    disk.fill();
    // Its replicas stop rather than acknowledge; the others go on. What its store had reserved takes
    // some more first.
    let (space, mut number) = (rig.client.space(SPACE), 0);
    rig.wait("the full node went on as if nothing was", async || {
        number += 1;
        let memory = v1::Memory {
            id: format!("large-{number}"),
            content: "x".repeat(1 << 20),
            ..Default::default()
        };
        space.remember(memory).await.ok()?;
        let partitions = rig.partitions().await;
        let stopped = |it: &v1::Partition| {
            let ours = it.replicas.iter().find(|replica| replica.node == node);
            ours.is_some_and(|it| !it.stopped.is_empty() || !it.reachable)
        };
        (!partitions.is_empty() && partitions.iter().all(stopped)).then_some(())
    })
    .await;
    rig.writes_flow(&ledger).await;
    disk.make_room();
    rig.cluster.kill(2).expect("killed");
    rig.cluster
        .restart(2)
        .await
        .unwrap_or_else(|error| panic!("it comes back: {error}"));
    rig.alive(3).await;
    rig.writes_flow(&ledger).await;
    let ledger = writers.stop().await;
    rig.holds(&ledger).await;
    rig.equal(3).await;
    drop(rig);
    drop(disk);
}
