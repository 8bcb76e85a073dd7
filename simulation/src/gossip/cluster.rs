//! The nodes of a run, and the driver around their protocols: what `membership::driver` and
//! `overlay::runner` do with sockets and tasks is done here with arrivals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::EdgeChange;
use engram_core::partition::{LocalChange, Partition, delta_bytes};
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage as _};
use engram_core::types::{
    ActorId, ClientId, Decay, Hlc, IndexParameters, MemoryId, Metric, NodeId, PartitionId,
    Relation, RequestId, SlotRange, SpaceConfig, SpaceId, Unit,
};
use engram_node::membership::swim::{Event as SwimEvent, Member, Swim};
use engram_node::membership::{Liveness, SwimTiming};
use engram_node::overlay::{Effect, Event, Place, Places, Protocol, Rumour};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::Shape;
use super::network::{Network, Traffic, Wire};

const CLUSTER: [u8; 16] = [7; 16];
/// How often nodes greet those that they do not see alive, as the production driver does.
const GREETING_PERIOD: Duration = Duration::from_millis(1_000);
const PORT: u16 = 7_000;
/// As in production: nothing is folded in so short a run.
const FOLD_AFTER: Duration = Duration::from_secs(15);

struct Node {
    swim: Swim,
    protocol: Protocol,
    places: Places,
    greet_at: Duration,
    /// When the exchange has something to do.
    exchange_at: Duration,
    /// The earliest timer that is on its way to the node.
    timer: Option<Duration>,
}

/// A cluster in virtual time.
pub struct Cluster {
    now: Duration,
    nodes: BTreeMap<NodeId, Node>,
    network: Network,
    rng: StdRng,
    shape: Shape,
    changes: u64,
    change_bytes: u64,
}

fn address(node: NodeId) -> SocketAddr {
    let [.., high, low] = node.0.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), PORT)
}

fn node_at(address: SocketAddr) -> NodeId {
    match address.ip() {
        IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            NodeId(u64::from(u16::from_be_bytes([high, low])))
        }
        IpAddr::V6(_) => panic!("no node has such an address"),
    }
}

/// The nodes of a partition: spread evenly, and not always the same together.
fn homes(shape: &Shape, partition: u64) -> Vec<NodeId> {
    let step = 1 + partition / shape.nodes % (shape.nodes / shape.replicas).max(1);
    (0..shape.replicas.min(shape.nodes))
        .map(|replica| NodeId(1 + (partition + replica * step) % shape.nodes))
        .collect()
}

fn replica(id: PartitionId) -> Arc<Partition> {
    let storage = Arc::new(MemoryStorage::new());
    let mut batch = Batch::new();
    let config = SpaceConfig {
        space: SpaceId(1),
        name: "gossip".into(),
        dimension: 1,
        metric: Metric::L2,
        index: IndexParameters::new(1),
        embedding_model: String::new(),
        decay: Decay::None,
    };
    let partition = Partition::create(storage.clone(), id, config, SlotRange::ALL, &mut batch);
    let written = storage.write(batch, Durability::Sync);
    assert!(written.is_ok(), "memory takes it: {written:?}");
    partition
}

impl Cluster {
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let mut rng = StdRng::seed_from_u64(shape.seed);
        let mut places: BTreeMap<NodeId, Places> = BTreeMap::new();
        for partition in 0..shape.partitions {
            let (id, homes) = (PartitionId(partition + 1), homes(&shape, partition));
            for node in &homes {
                let place = Place {
                    partition: replica(id),
                    others: homes
                        .iter()
                        .copied()
                        .filter(|other| other != node)
                        .collect(),
                    leads: false,
                };
                places.entry(*node).or_default().insert(id, place);
            }
        }
        let node = |n: u64| {
            let id = NodeId(n);
            let member = Member {
                node: id,
                address: address(id),
                incarnation: 1,
            };
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            let mut swim = Swim::new(member, SwimTiming::default(), seed);
            let places = places.remove(&id).unwrap_or_default();
            let here: BTreeSet<PartitionId> = places.keys().copied().collect();
            let _ = swim.step(Duration::ZERO, SwimEvent::Replicas(here));
            let node = Node {
                swim,
                protocol: Protocol::new(id, CLUSTER, 1 << 32, FOLD_AFTER),
                places,
                greet_at: Duration::from_millis(rng.random_range(0..1_000)),
                exchange_at: Duration::ZERO,
                timer: None,
            };
            (id, node)
        };
        let nodes: BTreeMap<NodeId, Node> = (1..=shape.nodes).map(node).collect();
        let mut cluster = Self {
            now: Duration::ZERO,
            network: Network::new(shape.nodes, shape.lost_per_mille),
            nodes,
            rng,
            shape,
            changes: 0,
            change_bytes: 0,
        };
        let ids: Vec<NodeId> = cluster.nodes.keys().copied().collect();
        for id in ids {
            // Nodes do not start in the same instant.
            let start = Duration::from_millis(cluster.rng.random_range(0..1_000));
            cluster.network.arrive(start, id, Wire::Timer);
        }
        cluster
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    #[must_use]
    pub fn traffic(&self) -> Vec<Traffic> {
        self.network.traffic()
    }

    #[must_use]
    pub fn change_bytes(&self) -> u64 {
        self.change_bytes
    }

    /// The first half of the nodes does not reach the others.
    pub fn split(&mut self) {
        self.network.cut(Some(NodeId(self.shape.nodes / 2)));
    }

    pub fn heal(&mut self) {
        self.network.cut(None);
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, to, wire)) = self.network.next(until) {
            self.now = at;
            self.arrived(to, wire);
            self.set_timer(to);
        }
        self.now = until;
    }

    fn arrived(&mut self, to: NodeId, wire: Wire) {
        match wire {
            Wire::Datagram(bytes) => self.swim(to, SwimEvent::Received(bytes)),
            Wire::Question {
                from,
                request,
                given_up,
            } => {
                let Some(node) = self.nodes.get_mut(&to) else {
                    return;
                };
                let answer = node.protocol.serve(self.now, &node.places, request).ok();
                self.network
                    .answer(self.now, (to, from), (answer, given_up), &mut self.rng);
            }
            Wire::Answer { from: node, answer } => {
                self.overlay(to, Event::Answered { node, answer });
            }
            Wire::Nothing { from: node } => self.overlay(to, Event::Failed { node }),
            Wire::Timer => self.timer(to),
        }
    }

    fn timer(&mut self, at: NodeId) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        node.timer = None;
        let due = |next: Option<Duration>| next.is_some_and(|next| next <= self.now);
        let ticks = due(node.swim.next_timer());
        let greets = node.greet_at <= self.now;
        let exchanges = node.exchange_at <= self.now;
        if ticks {
            self.swim(at, SwimEvent::Tick);
        }
        if greets {
            self.greet(at);
        }
        if exchanges {
            self.overlay(at, Event::Tick);
        }
    }

    fn set_timer(&mut self, at: NodeId) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        let next = node
            .exchange_at
            .min(node.greet_at)
            .min(node.swim.next_timer().unwrap_or(Duration::MAX))
            .max(self.now);
        if node.timer.is_none_or(|set| next < set) {
            node.timer = Some(next);
            self.network.arrive(next, at, Wire::Timer);
        }
    }

    fn greet(&mut self, at: NodeId) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        node.greet_at = self.now + GREETING_PERIOD;
        let members = node.swim.members();
        let is_alive = |other: &NodeId| members.get(other) == Some(&Liveness::Alive);
        let absent: Vec<NodeId> = (1..=self.shape.nodes)
            .map(NodeId)
            .filter(|other| *other != at && !is_alive(other))
            .collect();
        for node in absent {
            let address = address(node);
            self.swim(at, SwimEvent::Announce { node, address });
        }
    }

    fn swim(&mut self, at: NodeId, event: SwimEvent) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        let effects = node.swim.step(self.now, event);
        for (target, bytes) in effects.send {
            self.network
                .datagram(self.now, (at, node_at(target)), bytes, &mut self.rng);
        }
        for rumour in effects.rumours {
            self.overlay(at, Event::Heard(rumour));
        }
    }

    fn overlay(&mut self, at: NodeId, event: Event) {
        let Some(node) = self.nodes.get_mut(&at) else {
            return;
        };
        let effects = node.protocol.step(self.now, &node.places, event);
        node.exchange_at = node.protocol.next_tick(self.now);
        for effect in effects {
            match effect {
                Effect::Call {
                    node,
                    request,
                    wait,
                } => {
                    let question = (request, wait);
                    self.network
                        .question(self.now, (at, node), question, &mut self.rng);
                }
                Effect::Announce(rumour) => self.tell(at, rumour),
                Effect::Propose { .. } => panic!("nobody leads here"),
            }
        }
    }

    fn tell(&mut self, at: NodeId, rumour: Rumour) {
        self.swim(at, SwimEvent::Tell(rumour));
    }

    /// Changes edges on both sides, evenly over the time.
    pub fn change_edges(&mut self, time: Duration) {
        let pause = time / u32::try_from(self.shape.changes).unwrap_or(u32::MAX);
        for _ in 0..self.shape.changes {
            self.change_edge();
            self.run_for(pause);
        }
    }

    fn change_edge(&mut self) {
        self.changes += 1;
        let partition = self.rng.random_range(0..self.shape.partitions);
        let homes = homes(&self.shape, partition);
        let at = homes[self.rng.random_range(0..homes.len())];
        let id = PartitionId(partition + 1);
        let change = self.change(self.changes);
        let Some(place) = self.nodes.get(&at).and_then(|node| node.places.get(&id)) else {
            panic!("node {at:?} has partition {id:?}");
        };
        let mut actor = [0; 16];
        actor[..8].copy_from_slice(&at.0.to_be_bytes());
        match place.partition.accept_local(ActorId(actor), &[change]) {
            Ok(deltas) => {
                self.change_bytes += deltas.iter().map(delta_bytes).sum::<usize>() as u64;
                let partition = id;
                self.overlay(at, Event::Accepted { partition, deltas });
                self.set_timer(at);
            }
            Err(error) => panic!("a change is accepted: {error}"),
        }
    }

    fn change(&self, counter: u64) -> LocalChange {
        let id = |text: String| MemoryId::new(text).unwrap_or_else(|why| panic!("an id: {why}"));
        LocalChange {
            request: RequestId {
                client: ClientId([3; 16]),
                counter,
                index: 0,
            },
            retried: false,
            stamp: Hlc::from_millis(1_790_000_000_000 + self.now.as_millis() as u64),
            from: id(format!("memory-{counter}")),
            to: id(format!("memory-{}", counter + 1)),
            relation: Relation::new("near").unwrap_or_else(|| panic!("a relation")),
            change: EdgeChange::Contribute {
                weight: Unit::ONE,
                confidence: Unit::ONE,
            },
        }
    }

    #[must_use]
    pub fn all_alive(&self) -> bool {
        self.nodes.iter().all(|(id, node)| {
            let members = node.swim.members();
            let alive = members
                .iter()
                .filter(|(other, liveness)| *other != id && **liveness == Liveness::Alive);
            alive.count() as u64 == self.shape.nodes - 1
        })
    }

    /// Whether all replicas of each partition have seen, and hold, the same.
    #[must_use]
    pub fn has_converged(&self) -> bool {
        let mut positions = BTreeMap::new();
        let places = self.nodes.values().flat_map(|node| &node.places);
        for (id, place) in places {
            let position = place.partition.position();
            if *positions.entry(*id).or_insert_with(|| position.clone()) != position {
                return false;
            }
        }
        true
    }

    /// Changes in all overlays.
    #[must_use]
    pub fn held(&self) -> u64 {
        let places = self.nodes.values().flat_map(|node| node.places.values());
        places
            .map(|place| place.partition.overlay_stats().deltas as u64)
            .sum()
    }
}
