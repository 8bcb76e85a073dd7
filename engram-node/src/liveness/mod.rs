//! Liveness of node pairs: a heartbeat of about 200 ms over the shared connection, for all groups
//! at once, so that a dead primary is noticed long before SWIM declares its node down.
//!
//! [`Watch`] decides, as a pure step; [`Heartbeats`] beats. What must hold: a loss is reported once
//! per loss, and never decides anything but that the groups concerned campaign.

mod clocks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engram_core::types::NodeId;
use engram_proto::peer::liveness_client::LivenessClient;
use engram_proto::peer::liveness_server::{Liveness, LivenessServer};
use engram_proto::peer::{BeatRequest, BeatResponse, NodeVitals};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::consensus::Consensus;
use crate::control::service::check_cluster;
use crate::control::{ClusterId, ControlPlane};
use crate::seams::Seams;
use crate::transport::Peers;

pub use clocks::{Clocks, TOO_LATE, time_left};

/// Between two beats to the same node.
pub const BEAT_PERIOD: Duration = Duration::from_millis(200);
/// A node that has not answered for this long counts as lost.
pub const LOSS_AFTER: Duration = Duration::from_millis(800);

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Drawn at each process start.
    pub incarnation: u64,
    /// Replicas there that stopped or lost leadership since then.
    pub lost_replicas: u64,
    /// Its time since then.
    pub monotonic_millis: u64,
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Steady,
    /// It answers again, or for the first time.
    Found,
    /// It is silent, or another process answers in its place.
    Lost(Loss),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Silent,
    Restarted,
    /// The node lives, but replicas there stopped or lost leadership.
    Replicas,
}

/// What is known of one other node.
#[derive(Clone, Debug)]
pub struct Watch {
    last_answer: Duration,
    vitals: Option<Vitals>,
    silent: bool,
}

impl Watch {
    /// Of a node that was not heard of yet: until it answers, its silence is no loss.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            last_answer: now,
            vitals: None,
            silent: false,
        }
    }

    pub fn answered(&mut self, now: Duration, vitals: Vitals) -> Verdict {
        self.last_answer = now;
        let was_silent = std::mem::take(&mut self.silent);
        match self.vitals.replace(vitals) {
            None => Verdict::Found,
            Some(before) if before.incarnation != vitals.incarnation => {
                Verdict::Lost(Loss::Restarted)
            }
            Some(before) if before.lost_replicas != vitals.lost_replicas => {
                Verdict::Lost(Loss::Replicas)
            }
            Some(_) if was_silent => Verdict::Found,
            Some(_) => Verdict::Steady,
        }
    }

    pub fn passed(&mut self, now: Duration) -> Verdict {
        let overdue = now.saturating_sub(self.last_answer) >= LOSS_AFTER;
        if overdue && !self.silent {
            self.silent = true;
            // Also of a node that never answered: this process may have started after its death.
            return Verdict::Lost(Loss::Silent);
        }
        Verdict::Steady
    }

    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.vitals.is_some() && !self.silent
    }
}

/// The heartbeats of this node. Cheap to clone.
#[derive(Clone)]
pub struct Heartbeats {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    plane: ControlPlane,
    peers: Peers,
    consensus: Consensus,
    incarnation: u64,
    lost_replicas: AtomicU64,
    watches: Mutex<BTreeMap<NodeId, Watch>>,
}

impl Heartbeats {
    #[must_use]
    pub fn new(seams: Seams, plane: ControlPlane, peers: Peers, consensus: Consensus) -> Self {
        let mut bytes = [0; 8];
        seams.entropy.fill(&mut bytes);
        let incarnation = u64::from_le_bytes(bytes);
        let (lost_replicas, watches) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
        let shared = Shared {
            seams,
            plane,
            peers,
            consensus,
            incarnation,
            lost_replicas,
            watches,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A replica here stopped or lost leadership: the others learn it with the next beat.
    pub fn count_lost_replica(&self) {
        self.shared.lost_replicas.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the node answered lately.
    #[must_use]
    pub fn is_alive(&self, node: NodeId) -> bool {
        node == self.shared.plane.local()
            || self
                .shared
                .watches
                .lock()
                .get(&node)
                .is_some_and(Watch::is_alive)
    }

    fn vitals(&self) -> NodeVitals {
        NodeVitals {
            incarnation: self.shared.incarnation,
            lost_replicas: self.shared.lost_replicas.load(Ordering::Relaxed),
            monotonic_millis: self.shared.seams.clock.monotonic().as_millis() as u64,
        }
    }

    /// The service that answers the others' beats.
    #[must_use]
    pub fn server(&self) -> LivenessServer<BeatService> {
        LivenessServer::new(BeatService {
            beats: self.clone(),
        })
    }

    /// Beats to all nodes of the map until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let local = self.shared.plane.local();
        let mut beating: BTreeMap<NodeId, CancellationToken> = BTreeMap::new();
        let mut watch = self.shared.plane.watch();
        loop {
            let map = watch.borrow_and_update().clone();
            beating.retain(|node, pair| {
                let stays = map.nodes.contains_key(node);
                if !stays {
                    pair.cancel();
                    self.shared.watches.lock().remove(node);
                }
                stays
            });
            for node in map.nodes.keys().copied().filter(|node| *node != local) {
                beating.entry(node).or_insert_with(|| {
                    let pair = stop.child_token();
                    let beats = self.clone().beat_to(node, pair.clone());
                    self.shared.seams.spawn("heartbeat", beats);
                    pair
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = watch.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn beat_to(self, node: NodeId, stop: CancellationToken) {
        let clock = &self.shared.seams.clock;
        let start = Watch::new(clock.monotonic());
        self.shared.watches.lock().insert(node, start);
        while !stop.is_cancelled() {
            let begun = clock.monotonic();
            let answer = self.beat(node).await;
            let now = clock.monotonic();
            let verdict = match self.shared.watches.lock().get_mut(&node) {
                Some(watch) => match answer {
                    Some(vitals) => watch.answered(now, vitals),
                    None => watch.passed(now),
                },
                None => return,
            };
            self.report(node, verdict);
            let rest = BEAT_PERIOD.saturating_sub(now.saturating_sub(begun));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = clock.sleep(rest) => {}
            }
        }
    }

    fn report(&self, node: NodeId, verdict: Verdict) {
        match verdict {
            Verdict::Steady => {}
            Verdict::Found => tracing::info!(peer = node.0, "heartbeat found"),
            Verdict::Lost(loss) => {
                metrics::counter!("engram_heartbeat_losses_total").increment(1);
                tracing::warn!(peer = node.0, ?loss, "heartbeat lost");
                self.shared.consensus.on_node_lost(node);
            }
        }
    }

    async fn beat(&self, node: NodeId) -> Option<Vitals> {
        let channel = self.shared.peers.channel(node).ok()?;
        let request = BeatRequest {
            cluster: Bytes::copy_from_slice(&self.shared.plane.cluster().0),
            node: self.shared.plane.local().0,
            vitals: Some(self.vitals()),
        };
        let mut client = LivenessClient::new(channel);
        let answer = self
            .shared
            .seams
            .timeout(LOSS_AFTER, client.beat(request))
            .await;
        let response = match answer {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                tracing::debug!(peer = node.0, code = ?status.code(), "heartbeat failed");
                return None;
            }
            Err(_) => return None,
        };
        // Another node may listen now where this one did.
        if response.node != node.0 || response.cluster[..] != self.shared.plane.cluster().0 {
            return None;
        }
        let vitals = response.vitals?;
        Some(Vitals {
            incarnation: vitals.incarnation,
            lost_replicas: vitals.lost_replicas,
            monotonic_millis: vitals.monotonic_millis,
        })
    }
}

/// Answers beats.
pub struct BeatService {
    beats: Heartbeats,
}

#[tonic::async_trait]
impl Liveness for BeatService {
    async fn beat(&self, request: Request<BeatRequest>) -> Result<Response<BeatResponse>, Status> {
        let cluster: ClusterId = self.beats.shared.plane.cluster();
        check_cluster(cluster, &request.get_ref().cluster)?;
        Ok(Response::new(BeatResponse {
            cluster: Bytes::copy_from_slice(&cluster.0),
            node: self.beats.shared.plane.local().0,
            vitals: Some(self.beats.vitals()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn vitals(incarnation: u64, lost_replicas: u64) -> Vitals {
        Vitals {
            incarnation,
            lost_replicas,
            monotonic_millis: 0,
        }
    }

    #[test]
    fn silence_is_a_loss_once() {
        let mut watch = Watch::new(at(0));
        assert_eq!(watch.answered(at(100), vitals(1, 0)), Verdict::Found);
        assert_eq!(watch.answered(at(300), vitals(1, 0)), Verdict::Steady);
        assert_eq!(watch.passed(at(1_099)), Verdict::Steady);
        assert!(watch.is_alive());
        assert_eq!(watch.passed(at(1_100)), Verdict::Lost(Loss::Silent));
        assert_eq!(watch.passed(at(1_300)), Verdict::Steady);
        assert!(!watch.is_alive());
        assert_eq!(watch.answered(at(1_500), vitals(1, 0)), Verdict::Found);
        assert_eq!(watch.passed(at(2_300)), Verdict::Lost(Loss::Silent));
    }

    #[test]
    fn a_node_that_never_answers_is_lost_too() {
        let mut watch = Watch::new(at(0));
        assert_eq!(watch.passed(at(799)), Verdict::Steady);
        assert_eq!(watch.passed(at(800)), Verdict::Lost(Loss::Silent));
        assert!(!watch.is_alive());
    }

    #[test]
    fn a_restart_between_two_beats_is_a_loss() {
        let mut watch = Watch::new(at(0));
        watch.answered(at(100), vitals(1, 5));
        assert_eq!(
            watch.answered(at(300), vitals(2, 0)),
            Verdict::Lost(Loss::Restarted)
        );
        assert_eq!(watch.answered(at(500), vitals(2, 0)), Verdict::Steady);
        assert_eq!(
            watch.answered(at(700), vitals(2, 1)),
            Verdict::Lost(Loss::Replicas)
        );
    }
}
