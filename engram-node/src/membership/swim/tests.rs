//! Nodes in one thread, on a network and a clock made by hand.

use super::*;

const STEP: Duration = Duration::from_millis(10);
/// Simulated time after which a test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

struct Net {
    now: Duration,
    nodes: BTreeMap<SocketAddr, Swim>,
    /// Payloads on their way, with their arrival.
    flying: Vec<(SocketAddr, Vec<u8>)>,
    /// Rumours, and the nodes whose replicas got them.
    heard: Vec<(SocketAddr, Rumour)>,
}

fn address(n: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000 + n as u16))
}

fn swim(n: u64, incarnation: u64) -> Swim {
    let member = Member {
        node: NodeId(n),
        address: address(n),
        incarnation,
    };
    Swim::new(member, SwimTiming::default(), [n as u8; 32])
}

impl Net {
    fn of(count: u64) -> Self {
        let nodes = (1..=count).map(|n| (address(n), swim(n, 1))).collect();
        Self {
            now: Duration::ZERO,
            nodes,
            flying: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn event(&mut self, at: SocketAddr, event: Event) {
        if let Some(node) = self.nodes.get_mut(&at) {
            let effects = node.step(self.now, event);
            self.flying.extend(effects.send);
            let heard = effects.rumours.into_iter();
            self.heard.extend(heard.map(|rumour| (at, rumour)));
        }
    }

    fn greet(&mut self, from: u64, to: u64) {
        self.event(
            address(from),
            Event::Announce {
                node: NodeId(to),
                address: address(to),
            },
        );
    }

    fn run_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            assert!(self.now < PATIENCE, "{what}: not within {PATIENCE:?}");
            self.now += STEP;
            for (target, payload) in std::mem::take(&mut self.flying) {
                self.event(target, Event::Received(payload));
            }
            for at in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.event(at, Event::Tick);
            }
        }
    }

    fn sees(&self, from: u64, of: u64, liveness: Liveness) -> bool {
        self.nodes[&address(from)].members().get(&NodeId(of)) == Some(&liveness)
    }

    fn meet(count: u64) -> Self {
        let mut net = Self::of(count);
        // Everyone knows the first only; gossip does the rest.
        (2..=count).for_each(|n| net.greet(n, 1));
        net.run_until("all see all", |net| {
            let pairs = (1..=count).flat_map(|a| (1..=count).map(move |b| (a, b)));
            pairs
                .filter(|(a, b)| a != b)
                .all(|(a, b)| net.sees(a, b, Liveness::Alive))
        });
        net
    }
}

#[test]
fn nodes_that_greet_one_meet_all() {
    Net::meet(5);
}

#[test]
fn a_silent_node_is_declared_dead_and_welcome_again() {
    let mut net = Net::meet(3);
    net.nodes.remove(&address(3));
    net.run_until("3 is dead", |net| {
        (1..=2).all(|n| net.sees(n, 3, Liveness::Dead))
    });
    net.nodes.insert(address(3), swim(3, 2));
    net.greet(3, 1);
    net.run_until("3 is back", |net| {
        (1..=2).all(|n| net.sees(n, 3, Liveness::Alive) && net.sees(3, n, Liveness::Alive))
    });
}

/// The wall clock went back while the node was down: its incarnation is an old one.
#[test]
fn a_node_with_an_older_incarnation_is_told_and_comes_back() {
    let mut net = Net::meet(3);
    net.nodes.remove(&address(3));
    net.run_until("3 is dead", |net| {
        (1..=2).all(|n| net.sees(n, 3, Liveness::Dead))
    });
    net.nodes.insert(address(3), swim(3, 1));
    net.greet(3, 1);
    net.run_until("3 is back", |net| {
        (1..=2).all(|n| net.sees(n, 3, Liveness::Alive))
    });
}

#[test]
fn a_node_that_leaves_is_dead_at_once() {
    let mut net = Net::meet(3);
    let before = net.now;
    net.event(address(3), Event::Leave);
    net.nodes.remove(&address(3));
    net.run_until("3 has left", |net| {
        (1..=2).all(|n| net.sees(n, 3, Liveness::Dead))
    });
    assert!(net.now - before < SwimTiming::default().suspect_to_down);
}

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let mut net = Net::meet(2);
    let node = net.nodes.get_mut(&address(1)).expect("it runs");
    let before = node.members();
    for payload in [&b""[..], b"x", &[0xff; 100], &[0; DATAGRAM_BYTES_MAX]] {
        let effects = node.step(net.now, Event::Received(payload.to_vec()));
        assert_eq!(effects.refused, 1, "{payload:?}");
    }
    assert_eq!(node.members(), before);
}

fn seen(version: u64) -> Rumour {
    Rumour::Seen {
        partition: PartitionId(9),
        node: NodeId(1),
        version,
        seen_hash: version,
    }
}

#[test]
fn rumours_reach_the_replicas_once() {
    let mut net = Net::meet(6);
    // The other nodes pass it on, and are not bothered themselves.
    for n in [2, 5] {
        net.event(address(n), Event::Replicas([PartitionId(9)].into()));
    }
    net.event(address(1), Event::Tell(seen(1)));
    let reached = |net: &Net, n: u64, version: u64| {
        let told =
            |(at, rumour): &&(SocketAddr, Rumour)| *at == address(n) && *rumour == seen(version);
        net.heard.iter().filter(told).count()
    };
    net.run_until("both replicas know", |net| {
        reached(net, 2, 1) == 1 && reached(net, 5, 1) == 1
    });
    net.event(address(1), Event::Tell(seen(3)));
    // Older news after newer ones.
    net.event(address(1), Event::Tell(seen(2)));
    net.run_until("both replicas know the newer", |net| {
        reached(net, 2, 3) == 1 && reached(net, 5, 3) == 1
    });
    net.run_until("nobody has anything left to tell", |net| {
        net.nodes.values().all(|node| node.rumours_waiting() == 0)
    });
    assert_eq!(reached(&net, 2, 2) + reached(&net, 5, 2), 0);
    assert_eq!(
        net.heard.len(),
        4,
        "each once, and only where there is a replica"
    );
}
