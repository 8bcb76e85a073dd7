//! Runs the protocol: its calls over gRPC, its rumours over the membership, its proposals through
//! the log. Steps read and write storage, so they run where that may block.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::PartitionCommand;
use engram_core::types::{NodeId, PartitionId, Sequence};
use engram_proto::peer::OverlayExchange;
use engram_proto::peer::overlay_client::OverlayClient;
use engram_proto::peer::overlay_server::Overlay;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use tonic::{Request, Response, Status};

use super::protocol::{Effect, Event, Protocol, ServeError, Totals};
use super::rumour::Rumour;
use super::{Place, Places, measures};
use crate::membership::Membership;
use crate::routing::{Links, MESSAGE_BYTES_MAX, Router};

/// How long one proposal may take.
const PROPOSE_WAIT: Duration = Duration::from_millis(2_000);
/// How often the state of overlays is measured.
const MEASURE_PERIOD: Duration = Duration::from_millis(2_000);

/// The protocol, shared by the task that runs it and the service that answers others.
#[derive(Clone)]
struct Shared {
    router: Router,
    cluster: [u8; 16],
    protocol: Arc<Mutex<Protocol>>,
    /// Answering brought something to do.
    wake: Arc<Notify>,
}

/// The answering side.
#[derive(Clone)]
pub struct OverlayService {
    shared: Shared,
}

impl OverlayService {
    #[must_use]
    pub fn new(router: Router, cluster: [u8; 16], fold_after: Duration) -> Self {
        let version = router.seams().clock.wall_millis() << 16;
        let protocol = Protocol::new(router.local(), cluster, version, fold_after);
        Self {
            shared: Shared {
                router,
                cluster,
                protocol: Arc::new(Mutex::new(protocol)),
                wake: Arc::new(Notify::new()),
            },
        }
    }
}

impl OverlayService {
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.shared.router
    }

    #[must_use]
    pub fn cluster(&self) -> [u8; 16] {
        self.shared.cluster
    }
}

/// Runs the asking side until the process ends.
pub fn start(service: &OverlayService, links: Arc<dyn Links>, membership: Membership) {
    let shared = service.shared.clone();
    let seams = shared.router.seams().clone();
    let Some(rumours) = membership.rumours() else {
        tracing::error!("the rumours have another reader: overlays are exchanged without them");
        return;
    };
    let runner = Runner {
        shared,
        links,
        membership,
        calls: FuturesUnordered::new(),
        proposals: FuturesUnordered::new(),
        replicas: BTreeSet::new(),
        next_tick: Duration::ZERO,
        measured: Duration::ZERO,
        counted: Totals::default(),
    };
    seams.spawn("overlay exchange", runner.run(rumours));
}

type Answer = Result<OverlayExchange, String>;

struct Runner {
    shared: Shared,
    links: Arc<dyn Links>,
    membership: Membership,
    calls: FuturesUnordered<BoxFuture<'static, (NodeId, Answer)>>,
    proposals: FuturesUnordered<BoxFuture<'static, (PartitionId, bool)>>,
    /// Partitions with a replica here, as the membership knows them.
    replicas: BTreeSet<PartitionId>,
    next_tick: Duration,
    measured: Duration,
    counted: Totals,
}

impl Shared {
    /// The replicas of this node as they are now.
    fn places(&self) -> Places {
        let (router, map) = (&self.router, self.router.map());
        let local = router.local();
        let all = router.here().partitions().into_iter();
        let places = all.map(|(group, partition)| {
            let nodes = map.hosts(group).into_iter();
            let place = Place {
                others: nodes.filter(|node| *node != local).collect(),
                leads: router.here().leads(group),
                partition,
            };
            (place.partition.id(), place)
        });
        places
            .filter(|(_, place)| !place.partition.is_retired())
            .collect()
    }

    /// One step, where it may block on storage.
    async fn step(&self, event: Event) -> Stepped {
        let shared = self.clone();
        let now = self.router.seams().clock.monotonic();
        let step = move || {
            let mut protocol = shared.protocol.lock();
            Stepped {
                effects: protocol.step(now, &shared.places(), event),
                next_tick: protocol.next_tick(now),
            }
        };
        self.router.seams().blocking(step).await
    }
}

/// What a step leaves to do.
struct Stepped {
    effects: Vec<Effect>,
    /// When the next tick is due, as far as this step knows.
    next_tick: Duration,
}

impl Runner {
    async fn run(mut self, mut rumours: mpsc::Receiver<Rumour>) {
        loop {
            for event in self.next(&mut rumours).await {
                self.step(event).await;
            }
            // Events that keep coming must not keep the timers from running.
            if self.next_tick <= self.now() {
                self.step(Event::Tick).await;
            }
            self.measure().await;
        }
    }

    fn now(&self) -> Duration {
        self.shared.router.seams().clock.monotonic()
    }

    async fn step(&mut self, event: Event) {
        let Stepped { effects, next_tick } = self.shared.step(event).await;
        self.next_tick = next_tick;
        for effect in effects {
            self.carry_out(effect);
        }
    }

    /// Waits for what happens next.
    async fn next(&mut self, rumours: &mut mpsc::Receiver<Rumour>) -> Vec<Event> {
        let clock = Arc::clone(&self.shared.router.seams().clock);
        let pause = self.next_tick.saturating_sub(clock.monotonic());
        let accepted = self.shared.router.here().accepted().clone();
        tokio::select! {
            biased;
            Some((node, answer)) = self.calls.next() => vec![match answer {
                Ok(answer) => Event::Answered { node, answer },
                Err(reason) => {
                    tracing::debug!(%node, reason, "overlay exchange failed");
                    Event::Failed { node }
                }
            }],
            Some((partition, applied)) = self.proposals.next() => {
                vec![Event::Proposed { partition, applied }]
            }
            () = accepted.wait() => accepted
                .take()
                .into_iter()
                .map(|(partition, deltas)| Event::Accepted { partition, deltas })
                .collect(),
            Some(rumour) = rumours.recv() => vec![Event::Heard(rumour)],
            () = self.shared.wake.notified() => vec![Event::Tick],
            () = clock.sleep(pause) => vec![Event::Tick],
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Call {
                node,
                request,
                wait,
            } => self.call(node, request, wait),
            Effect::Announce(rumour) => self.membership.tell(rumour),
            Effect::Propose {
                partition,
                command,
                frontier,
            } => self.propose(partition, command, frontier),
        }
    }

    fn call(&mut self, node: NodeId, request: OverlayExchange, wait: Duration) {
        let (channel, seams) = (self.links.channel(node), self.shared.router.seams().clone());
        let (links, asked_at) = (Arc::clone(&self.links), self.now());
        let call = async move {
            let channel = channel.ok_or("its address is not known")?;
            let mut client = OverlayClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            count_bytes("sent", &request);
            let answer = seams.timeout(wait, client.exchange(request)).await;
            let answer = answer.map_err(|late| {
                links.dial_again(node, asked_at);
                late.to_string()
            })?;
            let answer = answer.map_err(|status| status.message().to_owned())?;
            let answer = answer.into_inner();
            count_bytes("received", &answer);
            Ok(answer)
        };
        self.calls.push(Box::pin(async move { (node, call.await) }));
    }

    fn propose(
        &mut self,
        partition: PartitionId,
        command: PartitionCommand,
        frontier: Option<Sequence>,
    ) {
        let here = self.shared.router.here().clone();
        let propose = async move {
            let is_free = |sequence| here.removals_have_seen(partition, sequence);
            if !frontier.is_none_or(is_free) {
                return (partition, false);
            }
            let proposed = here.propose(partition, command, PROPOSE_WAIT).await;
            if let Err(reason) = &proposed {
                // Nothing is lost: changes stay beside the log, edges unfolded.
                tracing::debug!(%partition, %reason, "edge changes not adopted or folded");
            }
            (partition, proposed.is_ok())
        };
        self.proposals.push(Box::pin(propose));
    }

    /// Tells the membership what is here, and the metrics how it is.
    async fn measure(&mut self) {
        let now = self.now();
        if now < self.measured + MEASURE_PERIOD && self.measured != Duration::ZERO {
            return;
        }
        self.measured = now;
        let (shared, seams) = (self.shared.clone(), self.shared.router.seams().clone());
        let wall = seams.clock.wall_millis();
        let look = move || {
            let places = shared.places();
            for (id, place) in &places {
                let unaccounted = shared.protocol.lock().unaccounted(*id, place);
                measures::gauge(*id, place, wall, unaccounted);
            }
            let here: BTreeSet<PartitionId> = places.keys().copied().collect();
            let totals = shared.protocol.lock().totals();
            (here, totals)
        };
        let (here, totals) = seams.blocking(look).await;
        measures::count(&self.counted, &totals);
        self.counted = totals;
        if here != self.replicas {
            self.replicas.clone_from(&here);
            self.membership.set_replicas(here).await;
        }
    }
}

fn count_bytes(direction: &'static str, message: &OverlayExchange) {
    metrics::counter!("engram_overlay_exchange_bytes_total", "direction" => direction)
        .increment(message.encoded_len() as u64);
}

#[tonic::async_trait]
impl Overlay for OverlayService {
    async fn exchange(
        &self,
        request: Request<OverlayExchange>,
    ) -> Result<Response<OverlayExchange>, Status> {
        let (shared, request) = (self.shared.clone(), request.into_inner());
        let seams = shared.router.seams().clone();
        let now = seams.clock.monotonic();
        let serve = move || {
            let answer = shared.protocol.lock().serve(now, &shared.places(), request);
            shared.wake.notify_one();
            answer
        };
        seams
            .blocking(serve)
            .await
            .map(Response::new)
            .map_err(|error| match error {
                ServeError::Cluster => Status::permission_denied(error.to_string()),
                ServeError::Malformed(_) => Status::invalid_argument(error.to_string()),
                ServeError::Local(_) => Status::unavailable(error.to_string()),
            })
    }
}
