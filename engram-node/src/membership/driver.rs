//! Drives [`Swim`] with datagrams and timers.
//!
//! One task owns the protocol's state; another finds the addresses of nodes that are on the map but
//! not alive here, so that a slow name lookup never delays a probe.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::NodeId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::seal::ClusterKey;
use super::swim::{DATAGRAM_BYTES_MAX, Effects, Event, Member, Swim};
use super::{Liveness, LivenessView, Membership, SwimTiming};
use crate::control::ClusterMap;
use crate::overlay::rumour::Rumour;
use crate::seams::{Datagrams, Seams};

/// How often nodes on the map that are not alive here are greeted.
const GREETING_PERIOD: Duration = Duration::from_millis(1_000);
/// Greetings and rumours that wait for the protocol's task.
const GREETINGS_MAX: usize = 256;
/// Rumours that wait for the replicas here.
const RUMOURS_MAX: usize = 256;
/// Wait after a failing socket, so that it cannot spin.
const SOCKET_PAUSE: Duration = Duration::from_millis(50);

/// What membership needs to start.
pub struct MembershipOptions {
    pub local: NodeId,
    /// Where others reach this node's datagram socket.
    pub address: SocketAddr,
    pub incarnation: u64,
    pub key: ClusterKey,
    pub timing: SwimTiming,
}

impl Membership {
    /// Starts the protocol; it ends with `stop`, after telling the others.
    #[must_use]
    pub fn start(
        options: MembershipOptions,
        seams: &Seams,
        socket: Arc<dyn Datagrams>,
        map: watch::Receiver<Arc<ClusterMap>>,
        stop: CancellationToken,
    ) -> Self {
        let (publish, view) = watch::channel(Arc::new(LivenessView::new()));
        let (greet, greetings) = mpsc::channel(GREETINGS_MAX);
        let (hear, heard) = mpsc::channel(RUMOURS_MAX);
        let membership = Self {
            local: options.local,
            view,
            tell: greet.clone(),
            rumours: Arc::new(Mutex::new(Some(heard))),
        };
        seams.spawn(
            "membership-greeter",
            greeter(membership.clone(), seams.clone(), map, greet, stop.clone()),
        );
        let mut seed = [0; 32];
        seams.entropy.fill(&mut seed);
        let local = Member {
            node: options.local,
            address: options.address,
            incarnation: options.incarnation,
        };
        let driver = Driver {
            swim: Swim::new(local, options.timing, seed),
            key: options.key,
            seams: seams.clone(),
            socket,
            publish,
            hear,
        };
        seams.spawn("membership", driver.run(greetings, stop));
        membership
    }
}

struct Driver {
    swim: Swim,
    key: ClusterKey,
    seams: Seams,
    socket: Arc<dyn Datagrams>,
    publish: watch::Sender<Arc<LivenessView>>,
    hear: mpsc::Sender<Rumour>,
}

impl Driver {
    async fn run(mut self, mut greetings: mpsc::Receiver<Event>, stop: CancellationToken) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
        loop {
            let now = self.seams.clock.monotonic();
            let until_timer = self
                .swim
                .next_timer()
                .map_or(GREETING_PERIOD, |at| at.saturating_sub(now));
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.seams.clock.sleep(until_timer) => Some(Event::Tick),
                Some(event) = greetings.recv() => Some(event),
                received = self.socket.receive_from(&mut buffer) => match received {
                    Ok((length, from)) => self.open(&buffer[..length], from),
                    Err(error) => {
                        // An unreachable peer may surface here as an error of its own.
                        tracing::debug!(%error, "membership socket");
                        self.seams.clock.sleep(SOCKET_PAUSE).await;
                        None
                    }
                },
            };
            if let Some(event) = event {
                self.step(event).await;
            }
        }
        self.step(Event::Leave).await;
    }

    fn open(&self, datagram: &[u8], from: SocketAddr) -> Option<Event> {
        metrics::counter!("engram_membership_bytes_total", "direction" => "received")
            .increment(datagram.len() as u64);
        match self.key.open(datagram) {
            Ok(payload) => Some(Event::Received(payload.to_vec())),
            Err(error) => {
                metrics::counter!("engram_membership_datagrams_refused_total", "why" => error.label())
                    .increment(1);
                tracing::debug!(%from, %error, "membership datagram dropped");
                None
            }
        }
    }

    async fn step(&mut self, event: Event) {
        let Effects {
            send,
            changed: _,
            rumours,
            refused,
        } = self.swim.step(self.seams.clock.monotonic(), event);
        if refused > 0 {
            metrics::counter!("engram_membership_datagrams_refused_total", "why" => "malformed")
                .increment(refused);
        }
        for rumour in rumours {
            // Nothing rests on one: a full queue may lose it.
            if self.hear.try_send(rumour).is_err() {
                metrics::counter!("engram_rumours_dropped_total").increment(1);
            }
        }
        // Before sending: whoever waits for the view must not wait for the network.
        self.publish();
        for (target, payload) in send {
            let sealed = self.key.seal(&payload);
            metrics::counter!("engram_membership_bytes_total", "direction" => "sent")
                .increment(sealed.len() as u64);
            if let Err(error) = self.socket.send_to(&sealed, target).await {
                tracing::debug!(%target, %error, "membership datagram not sent");
            }
        }
    }

    fn publish(&self) {
        let members = self.swim.members();
        let alive = members
            .values()
            .filter(|liveness| **liveness == Liveness::Alive)
            .count()
            + 1;
        let changed = self.publish.send_if_modified(|view| {
            let differs = **view != members;
            if differs {
                *view = Arc::new(members);
            }
            differs
        });
        if changed {
            metrics::gauge!("engram_membership_nodes_alive").set(alive as f64);
        }
    }
}

/// Greets nodes of the map that are not alive here, until `stop`.
async fn greeter(
    membership: Membership,
    seams: Seams,
    map: watch::Receiver<Arc<ClusterMap>>,
    greet: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    loop {
        let current = map.borrow().clone();
        for node in current.nodes.values() {
            if membership.liveness(node.id) == Liveness::Alive {
                continue;
            }
            match seams.net.resolve(&node.peer_address).await {
                Ok(address) => {
                    if greet
                        .send(Event::Announce {
                            node: node.id,
                            address,
                        })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = node.id.0, %error, "no address for a member");
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = seams.clock.sleep(GREETING_PERIOD) => {}
        }
    }
}

#[cfg(test)]
mod tests;
