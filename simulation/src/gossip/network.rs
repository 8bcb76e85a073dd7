//! What is on its way between nodes, in the order in which it arrives.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use engram_core::types::NodeId;
use engram_node::membership::seal::SEAL_BYTES;
use engram_proto::peer::OverlayExchange;
use prost::Message as _;
use rand::RngExt as _;
use rand::rngs::StdRng;

/// Latency of a datagram or of one way of a call.
const LATENCY_MIN_MICROS: u64 = 200;
const LATENCY_MAX_MICROS: u64 = 2_000;
/// A lost segment of a call is sent again after this.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// How fast a node sends what calls carry.
const BYTES_PER_MILLI: u64 = 12_500;
/// IP and UDP headers of a datagram.
const DATAGRAM_HEADER_BYTES: u64 = 28;
/// Headers of a message of a call: IP, TCP, TLS record, HTTP/2 frames, compressed header fields.
const CALL_HEADER_BYTES: u64 = 150;

/// What arrives somewhere.
#[derive(Debug)]
pub enum Wire {
    Datagram(Vec<u8>),
    Question {
        from: NodeId,
        request: OverlayExchange,
        /// When its sender waits no longer.
        given_up: Duration,
    },
    Answer {
        from: NodeId,
        answer: OverlayExchange,
    },
    /// The call to this node was given up.
    Nothing {
        from: NodeId,
    },
    /// A timer of the node itself.
    Timer,
}

/// What one node has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub datagrams: u64,
    pub datagram_bytes: u64,
    pub calls: u64,
    pub call_bytes: u64,
}

impl Traffic {
    #[must_use]
    pub fn sum(all: &[Self]) -> Self {
        all.iter().fold(Self::default(), |sum, one| Self {
            datagrams: sum.datagrams + one.datagrams,
            datagram_bytes: sum.datagram_bytes + one.datagram_bytes,
            calls: sum.calls + one.calls,
            call_bytes: sum.call_bytes + one.call_bytes,
        })
    }

    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            datagrams: self.datagrams - before.datagrams,
            datagram_bytes: self.datagram_bytes - before.datagram_bytes,
            calls: self.calls - before.calls,
            call_bytes: self.call_bytes - before.call_bytes,
        }
    }
}

/// An arrival; ordered by its time, then by the order of sending.
struct Arrival {
    at: Duration,
    number: u64,
    to: NodeId,
    wire: Wire,
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Arrival {}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The network of a cluster, and its timers.
pub struct Network {
    arrivals: BinaryHeap<Reverse<Arrival>>,
    sent: u64,
    lost_per_mille: u32,
    /// Nodes up to this one do not reach those above it.
    cut_after: Option<NodeId>,
    traffic: Vec<Traffic>,
}

impl Network {
    pub fn new(nodes: u64, lost_per_mille: u32) -> Self {
        Self {
            arrivals: BinaryHeap::new(),
            sent: 0,
            lost_per_mille,
            cut_after: None,
            traffic: vec![Traffic::default(); nodes as usize],
        }
    }

    pub fn cut(&mut self, after: Option<NodeId>) {
        self.cut_after = after;
    }

    pub fn traffic(&self) -> Vec<Traffic> {
        self.traffic.clone()
    }

    fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        self.cut_after
            .is_none_or(|last| (from <= last) == (to <= last))
    }

    fn latency(rng: &mut StdRng) -> Duration {
        Duration::from_micros(rng.random_range(LATENCY_MIN_MICROS..LATENCY_MAX_MICROS))
    }

    fn is_lost(&self, rng: &mut StdRng) -> bool {
        rng.random_range(0..1_000) < self.lost_per_mille
    }

    fn count(&mut self, from: NodeId) -> &mut Traffic {
        &mut self.traffic[(from.0 - 1) as usize]
    }

    pub fn arrive(&mut self, at: Duration, to: NodeId, wire: Wire) {
        self.sent += 1;
        let number = self.sent;
        self.arrivals.push(Reverse(Arrival {
            at,
            number,
            to,
            wire,
        }));
    }

    /// The seal of a datagram is not made here, but it counts.
    pub fn datagram(
        &mut self,
        now: Duration,
        (from, to): (NodeId, NodeId),
        bytes: Vec<u8>,
        rng: &mut StdRng,
    ) {
        let size = (bytes.len() + SEAL_BYTES) as u64 + DATAGRAM_HEADER_BYTES;
        let traffic = self.count(from);
        traffic.datagrams += 1;
        traffic.datagram_bytes += size;
        if !self.is_lost(rng) && self.reaches(from, to) {
            self.arrive(now + Self::latency(rng), to, Wire::Datagram(bytes));
        }
    }

    /// One way of a call: loss is a delay, and how long it takes depends on its size.
    fn way(&mut self, from: NodeId, message: &OverlayExchange, rng: &mut StdRng) -> Duration {
        let bytes = message.encoded_len() as u64 + CALL_HEADER_BYTES;
        self.count(from).call_bytes += bytes;
        let mut delay = Self::latency(rng) + Duration::from_millis(bytes / BYTES_PER_MILLI);
        if self.is_lost(rng) {
            delay += RETRANSMISSION;
        }
        delay
    }

    pub fn question(
        &mut self,
        now: Duration,
        (from, to): (NodeId, NodeId),
        (request, wait): (OverlayExchange, Duration),
        rng: &mut StdRng,
    ) {
        self.count(from).calls += 1;
        let delay = self.way(from, &request, rng);
        let given_up = now + wait;
        if self.reaches(from, to) {
            let question = Wire::Question {
                from,
                request,
                given_up,
            };
            self.arrive(now + delay, to, question);
        } else {
            self.arrive(given_up, from, Wire::Nothing { from: to });
        }
    }

    pub fn answer(
        &mut self,
        now: Duration,
        (from, to): (NodeId, NodeId),
        (answer, given_up): (Option<OverlayExchange>, Duration),
        rng: &mut StdRng,
    ) {
        let Some(answer) = answer else {
            self.arrive(now + Self::latency(rng), to, Wire::Nothing { from });
            return;
        };
        let delay = self.way(from, &answer, rng);
        if self.reaches(from, to) && now + delay < given_up {
            self.arrive(now + delay, to, Wire::Answer { from, answer });
        } else {
            self.arrive(given_up, to, Wire::Nothing { from });
        }
    }

    /// The next arrival, if it comes by `until`.
    pub fn next(&mut self, until: Duration) -> Option<(Duration, NodeId, Wire)> {
        if self.arrivals.peek()?.0.at > until {
            return None;
        }
        let Reverse(arrival) = self.arrivals.pop()?;
        Some((arrival.at, arrival.to, arrival.wire))
    }
}
