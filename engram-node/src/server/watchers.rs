//! Small tasks that keep a running node in step: addresses of the others, its own entry on the map,
//! lost leaderships, and what the HTTP port and the health service report.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_core::storage::Storage;
use engram_core::types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::consensus::Consensus;
use crate::control::{ControlCommand, ControlPlane, NodeDescription, NodeRecord};
use crate::http::Health;
use crate::liveness::{BEAT_PERIOD, Heartbeats};
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

/// Sees to it that the map says of this node what is true now.
pub async fn stay_registered(
    seams: Seams,
    plane: ControlPlane,
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
            Err(error) => tracing::debug!(%error, "addresses are not registered yet"),
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

/// Tells the heartbeats of every leadership and replica that this node loses, until `stop`.
pub async fn count_losses(
    seams: Seams,
    consensus: Consensus,
    local: NodeId,
    beats: Heartbeats,
    stop: CancellationToken,
) {
    let mut held: BTreeSet<GroupId> = BTreeSet::new();
    loop {
        let stopped: BTreeSet<GroupId> = consensus
            .stopped()
            .into_iter()
            .map(|(group, _)| group)
            .collect();
        let leads = |group: &GroupId| consensus.leadership(*group).leader == Some(local);
        let now: BTreeSet<GroupId> = consensus
            .groups()
            .into_iter()
            .filter(|group| leads(group) && !stopped.contains(group))
            .collect();
        for _ in held.difference(&now) {
            beats.count_lost_replica();
        }
        held = now;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = seams.clock.sleep(BEAT_PERIOD) => {}
        }
    }
}

/// How this node is, for `/readyz`, `/metrics` and the health service.
pub struct NodeHealth {
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub storage: Arc<dyn Storage>,
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
