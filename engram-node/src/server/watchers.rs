//! Small tasks that keep a running node in step: addresses of the others, its own entry on the map,
//! lost leaderships, and what the HTTP port and the health service report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::storage::Storage;
use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::consensus::Consensus;
use crate::control::join::refresh;
use crate::control::{ControlCommand, ControlPlane, NodeDescription, NodeRecord};
use crate::http::Health;
use crate::liveness::{BEAT_PERIOD, Heartbeats};
use crate::replica::Replicas;
use crate::seams::Seams;
use crate::transport::Peers;

/// Longest wait for the control plane to note this node's addresses, before the next attempt.
const REGISTER_WAIT: Duration = Duration::from_secs(5);
/// Pause between attempts to be noted.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);
/// How often the health service is told how the node is.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);

/// Gives [`Peers`] the addresses that the map says, until `stop`.
pub async fn follow_addresses(plane: ControlPlane, peers: Peers, stop: CancellationToken) {
    let mut watch = plane.watch();
    loop {
        let map = watch.borrow_and_update().clone();
        for node in map.nodes.values() {
            peers.set_address(node.id, node.peer_address.clone());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = watch.changed() => if changed.is_err() { return },
        }
    }
}

/// Sees to it that the map says of this node what is true now. `targets` are asked when the control
/// plane is not where it was.
pub async fn stay_registered(
    seams: Seams,
    plane: ControlPlane,
    peers: Peers,
    targets: Vec<String>,
    description: NodeDescription,
    stop: CancellationToken,
) {
    while !is_registered(&plane, &description) {
        let command = ControlCommand::RegisterNode(description.clone());
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            outcome = plane.execute(command, REGISTER_WAIT) => outcome,
        };
        match outcome.map(|reply| reply.outcome) {
            Ok(Ok(_)) => {
                tracing::info!(
                    peer_address = description.peer_address,
                    "addresses are registered"
                );
                return;
            }
            Ok(Err(refusal)) => tracing::error!(%refusal, "the control plane refuses this node"),
            Err(error) => {
                tracing::debug!(%error, "addresses are not registered yet");
                refresh(&seams, &peers, &targets, &description, plane.cluster()).await;
            }
        }
        seams.clock.sleep(REGISTER_PAUSE).await;
    }
}

fn is_registered(plane: &ControlPlane, description: &NodeDescription) -> bool {
    let said = |record: &NodeRecord| NodeDescription {
        identity: record.identity,
        client_address: record.client_address.clone(),
        peer_address: record.peer_address.clone(),
        http_address: record.http_address.clone(),
        zone: record.zone.clone(),
        version: record.version.clone(),
    };
    plane.map().nodes.get(&plane.local()).map(said).as_ref() == Some(description)
}

/// Tells the heartbeats of every leadership and replica that this node loses, and the log of every
/// leadership that comes or goes, until `stop`.
pub async fn count_losses(
    seams: Seams,
    plane: ControlPlane,
    consensus: Consensus,
    beats: Heartbeats,
    stop: CancellationToken,
) {
    let mut held: BTreeMap<GroupId, u64> = BTreeMap::new();
    loop {
        let now = led(&consensus, plane.local());
        for (group, epoch) in &now {
            if held.get(group) != Some(epoch) {
                log_leadership(&plane, *group, *epoch, "primary here");
            }
        }
        for (group, epoch) in held.iter().filter(|(group, _)| !now.contains_key(group)) {
            beats.count_lost_replica();
            log_leadership(&plane, *group, *epoch, "no longer primary here");
        }
        held = now;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = seams.clock.sleep(BEAT_PERIOD) => {}
        }
    }
}

/// The groups that `local` leads, with their terms; those that have stopped lead nothing.
fn led(consensus: &Consensus, local: NodeId) -> BTreeMap<GroupId, u64> {
    let stopped: BTreeSet<GroupId> = consensus
        .stopped()
        .into_iter()
        .map(|(group, _)| group)
        .collect();
    let running = consensus
        .groups()
        .into_iter()
        .filter(|group| !stopped.contains(group));
    running
        .map(|group| (group, consensus.leadership(group)))
        .filter(|(_, leadership)| leadership.leader == Some(local))
        .map(|(group, leadership)| (group, leadership.epoch))
        .collect()
}

fn log_leadership(plane: &ControlPlane, group: GroupId, epoch: u64, what: &'static str) {
    if group == GroupId::CONTROL {
        tracing::info!(epoch, "control plane: {what}");
    }
    for (space, partition) in plane.map().partitions_of(group) {
        let (space, partition) = (space.config.name.as_str(), partition.id.0);
        tracing::info!(space, partition, epoch, "{what}");
    }
}

/// How this node is, for `/readyz`, `/metrics` and the health service.
pub struct NodeHealth {
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub storage: Arc<dyn Storage>,
    pub replicas: Arc<Replicas>,
}

impl NodeHealth {
    /// Memory of the vector indexes here, by space, and how each partition's is doing.
    fn observe_indexes(&self) {
        let map = self.plane.map();
        let mut of_space: BTreeMap<&str, u64> = BTreeMap::new();
        // A space without a replica here any more goes back to nothing.
        for space in map.spaces.values() {
            of_space.insert(space.config.name.as_str(), 0);
        }
        for (_, partition) in self.replicas.partitions() {
            let index = partition.status().index;
            let id = partition.id();
            if let Some((space, _)) = map.partition(id) {
                *of_space.entry(space.config.name.as_str()).or_default() += index.bytes;
            }
            let set = |name: &'static str, value: f64| {
                metrics::gauge!(name, "partition" => id.to_string()).set(value);
            };
            set("engram_index_tail", f64::from(index.tail));
            set("engram_index_jobs_waiting", index.jobs_waiting as f64);
            set("engram_index_generations", f64::from(index.generations));
        }
        for (space, bytes) in of_space {
            metrics::gauge!("engram_index_bytes", "space" => space.to_owned()).set(bytes as f64);
        }
    }
}

impl Health for NodeHealth {
    fn ready(&self) -> Result<(), String> {
        let (map, local) = (self.plane.map(), self.plane.local());
        if !map.nodes.contains_key(&local) {
            return Err("the cluster map is not known yet".into());
        }
        if let Some((group, reason)) = self.consensus.stopped().into_iter().next() {
            return Err(format!(
                "the replica of group {group} has stopped: {reason}"
            ));
        }
        let running = self.consensus.groups();
        let here = map
            .groups
            .values()
            .filter(|group| group.replicas.contains(&local));
        for group in here.map(|group| group.id).chain([GroupId::CONTROL]) {
            if !running.contains(&group) {
                return Err(format!("the replica of group {group} is not started yet"));
            }
            if self.consensus.leadership(group).leader.is_none() {
                return Err(format!("group {group} has no known leader"));
            }
        }
        Ok(())
    }

    fn observe(&self) {
        let (map, local) = (self.plane.map(), self.plane.local());
        let groups = self.consensus.groups();
        let led = groups
            .iter()
            .filter(|group| self.consensus.leadership(**group).leader == Some(local));
        metrics::gauge!("engram_groups_led").set(led.count() as f64);
        metrics::gauge!("engram_groups_stopped").set(self.consensus.stopped().len() as f64);
        metrics::gauge!("engram_cluster_nodes").set(map.nodes.len() as f64);
        metrics::gauge!("engram_cluster_spaces").set(map.spaces.len() as f64);
        metrics::gauge!("engram_cluster_partitions").set(map.partitions().count() as f64);
        metrics::gauge!("engram_control_index").set(map.index as f64);
        metrics::gauge!("engram_store_bytes").set(self.storage.bytes_on_disk() as f64);
        self.observe_indexes();
        metrics::gauge!("engram_ready").set(f64::from(u8::from(self.ready().is_ok())));
    }
}

/// Keeps the gRPC health service in step with readiness, until `stop`.
pub async fn report_health(
    seams: Seams,
    health: Arc<NodeHealth>,
    reporter: HealthReporter,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let status = match health.ready() {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        reporter.set_service_status("", status).await;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = seams.clock.sleep(HEALTH_PERIOD) => {}
        }
    }
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
}
