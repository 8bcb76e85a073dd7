//! What tests with real processes share: a cluster with a space, writers, and the questions that are
//! asked of it after each fault.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use engram_client::{Client, types as v1};
use engram_core::storage::RocksOptions;
use engram_node::demo::ledger::{Ledger, Writers};
use engram_node::demo::processes::{Fate, LocalCluster};
use engram_node::demo::wait::until;
use engram_node::seams::{Seams, os};

pub const LIMIT: Duration = Duration::from_secs(120);
pub const SPACE: &str = "test";
pub const DIMENSION: usize = 8;
pub const PARTITIONS: u32 = 3;
/// Acknowledged writes per partition in each phase.
pub const WRITES: usize = 20;

pub struct Rig {
    /// Dropped before the directory: its processes have files open there.
    pub cluster: LocalCluster,
    pub seams: Seams,
    pub client: Client,
    pub directory: tempfile::TempDir,
}

/// A cluster with one space, and nothing in it yet.
pub async fn rig(nodes: usize, replicas: u32, options: &[&str]) -> Rig {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let binary = Path::new(env!("CARGO_BIN_EXE_engram"));
    let cluster = LocalCluster::new(
        binary,
        directory.path(),
        nodes,
        Fate::Bound,
        seams.clock.clone(),
    );
    let cluster = cluster.with_options(options);
    start(cluster, directory, seams, replicas).await
}

/// As [`rig`], of a cluster whose directories were prepared.
pub async fn start(
    mut cluster: LocalCluster,
    directory: tempfile::TempDir,
    seams: Seams,
    replicas: u32,
) -> Rig {
    let nodes = cluster.size();
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
    rig.alive(nodes).await;
    let request = v1::CreateSpaceRequest {
        name: SPACE.into(),
        dimension: DIMENSION as u32,
        partitions: PARTITIONS,
        replicas,
        if_not_exists: true,
        ..Default::default()
    };
    rig.client.create_space(request).await.expect("created");
    rig.whole(replicas as usize).await;
    rig
}

impl Rig {
    pub async fn wait(&self, what: &str, mut look: impl AsyncFnMut() -> Option<()>) {
        let waited = until(&*self.seams.clock, LIMIT, what, async || look().await).await;
        if waited.is_err() {
            let moves = self.client.moves().await;
            let nodes = self.client.nodes().await;
            let partitions = self.client.partitions(None).await;
            panic!("{waited:?}\nmoves {moves:#?}\nnodes {nodes:#?}\npartitions {partitions:#?}");
        }
    }

    pub async fn alive(&self, nodes: usize) {
        self.wait("not all nodes were alive", async || {
            let all = self.client.nodes().await.ok()?;
            let alive = |it: &&v1::Node| it.liveness() == v1::node::Liveness::Alive;
            (all.iter().filter(alive).count() == nodes && all.len() == nodes).then_some(())
        })
        .await;
    }

    pub async fn partitions(&self) -> Vec<v1::Partition> {
        self.client
            .partitions(Some(SPACE))
            .await
            .unwrap_or_default()
    }

    /// Every partition has a primary and its replicas, at one sequence, and nothing is being moved.
    pub async fn whole(&self, replicas: usize) {
        self.wait("the partitions were not whole", async || {
            if !self.client.moves().await.ok()?.is_empty() {
                return None;
            }
            let partitions = self.partitions().await;
            let whole = |it: &v1::Partition| {
                let first = it.replicas.first().map(|replica| replica.sequence);
                let level = |it: &v1::Replica| it.reachable && Some(it.sequence) == first;
                it.primary != 0 && it.replicas.len() == replicas && it.replicas.iter().all(level)
            };
            (partitions.len() == PARTITIONS as usize && partitions.iter().all(whole)).then_some(())
        })
        .await;
    }

    pub async fn no_moves(&self) {
        self.wait("moves did not end", async || {
            self.client.moves().await.ok()?.is_empty().then_some(())
        })
        .await;
    }

    pub async fn writers(&self) -> Writers {
        let partitions = self.partitions().await;
        Writers::start(&self.client, SPACE, DIMENSION, &partitions, &self.seams)
    }

    /// Writes that begin now are acknowledged on every partition.
    pub async fn writes_flow(&self, ledger: &Ledger) {
        let since = self.seams.clock.monotonic();
        let ids: Vec<u64> = self.partitions().await.iter().map(|it| it.id).collect();
        self.wait("writes did not flow on every partition", async || {
            let flows = |id: &u64| ledger.acknowledged_since(*id, since) >= WRITES;
            ids.iter().all(flows).then_some(())
        })
        .await;
    }

    pub async fn holds(&self, ledger: &Ledger) {
        let audit = ledger.check(&self.client.space(SPACE)).await;
        let audit = audit.expect("an answer");
        assert!(audit.holds(), "{audit:#?}");
        assert!(audit.acknowledged > 0);
    }

    pub async fn equal(&self, replicas: usize) {
        self.whole(replicas).await;
        let client = self.client.with_deadline(LIMIT);
        let answer = client.verify(SPACE, true).await.expect("digests");
        assert!(answer.equal, "{answer:#?}");
        let counts: BTreeSet<usize> = answer
            .partitions
            .iter()
            .map(|it| it.replicas.len())
            .collect();
        assert_eq!(counts, BTreeSet::from([replicas]));
    }

    pub async fn hosts(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for partition in self.partitions().await {
            for replica in partition.replicas {
                *counts.entry(replica.node).or_default() += 1;
            }
        }
        counts
    }

    pub async fn set(&self, node: u64, state: v1::NodeState) {
        let request = v1::SetNodeStateRequest {
            node,
            state: state.into(),
            ..Default::default()
        };
        let answer = self
            .client
            .set_node_state(request)
            .await
            .expect("an answer");
        assert!(answer.done, "{answer:#?}");
    }
}

/// Writers that were stopped without a single call that failed.
pub fn nothing_failed(ledger: &Ledger, audit: &engram_node::demo::ledger::Audit) {
    assert_eq!(audit.unknown, 0, "calls failed: {audit:#?}");
    assert!(ledger.acknowledged() > 0);
}
