//! The state of the network, and the queue of what is on its way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::connection::{Connection, Listening};
use super::datagram::{Packet, Socket};
use super::links::{Links, Way};
use super::{End, Place};
use crate::plan::NetworkPlan;
use crate::world::seams::{Ledger, Life};

/// How often what waits for an open way tries it again.
pub const RETRY: Duration = Duration::from_millis(20);
/// First port of connections that a process makes.
const EPHEMERAL: u16 = 32_768;

pub struct State {
    pub now: Duration,
    pub tick: Duration,
    pub weather: NetworkPlan,
    pub generator: StdRng,
    pub links: Links,
    pub machines: BTreeMap<Place, Machine>,
    pub listening: BTreeMap<SocketAddr, Listening>,
    pub sockets: BTreeMap<SocketAddr, Socket>,
    pub connections: BTreeMap<u64, Connection>,
    pub next_connection: u64,
    queue: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// To be woken when the lock is released.
    pub woken: Vec<Waker>,
}

/// The kernel of one place.
#[derive(Default)]
pub struct Machine {
    /// It answers nothing.
    pub silent: bool,
    ports: u16,
}

/// What is on its way.
pub enum Event {
    /// The request to open a connection.
    Request(u64),
    /// The answer to it.
    Answer {
        connection: u64,
        accepted: bool,
    },
    /// The oldest bytes of a direction: those that end `from` has written.
    Bytes {
        connection: u64,
        from: usize,
    },
    /// Another attempt to deliver bytes that are held.
    Retry {
        connection: u64,
        from: usize,
    },
    Packet(Packet),
}

impl State {
    pub fn new(weather: NetworkPlan, tick: Duration, generator: StdRng) -> Self {
        Self {
            now: Duration::ZERO,
            tick,
            weather,
            generator,
            links: Links::default(),
            machines: BTreeMap::new(),
            listening: BTreeMap::new(),
            sockets: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            woken: Vec::new(),
        }
    }

    pub fn deliver(&mut self, ledger: &Ledger) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            match entry.remove() {
                Event::Request(connection) => self.request_arrives(connection, ledger),
                Event::Answer {
                    connection,
                    accepted,
                } => self.answer_arrives(connection, accepted),
                Event::Bytes { connection, from } => self.bytes_arrive(connection, from, ledger),
                Event::Retry { connection, from } => self.retry(connection, from, ledger),
                Event::Packet(packet) => self.packet_arrives(packet, ledger),
            }
        }
    }

    pub fn schedule(&mut self, at: Duration, event: Event) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), event);
    }

    /// A drawn time for a way, never within the tick.
    pub fn delay(&mut self) -> Duration {
        let (min, max) = (self.weather.delay_min, self.weather.delay_max);
        let (min, max) = (min.as_micros() as u64, max.as_micros() as u64);
        let drawn = self.generator.random_range(min..=max.max(min));
        Duration::from_micros(drawn).max(self.tick)
    }

    /// The way as packets find it: a machine that is off is as good as a cut.
    pub fn way(&self, from: Place, to: Place) -> Way {
        match self.links.way(from, to) {
            Way::Open if self.machines.get(&to).is_none_or(|machine| machine.silent) => Way::Cut,
            way => way,
        }
    }

    pub fn wake(&mut self, waker: Option<Waker>) {
        self.woken.extend(waker);
    }

    pub fn begin(&mut self, place: Place) {
        self.machines.entry(place).or_default().silent = false;
    }

    pub fn next_port(&mut self, place: Place) -> u16 {
        let machine = self.machines.entry(place).or_default();
        machine.ports = (machine.ports + 1) % (u16::MAX - EPHEMERAL);
        EPHEMERAL + machine.ports
    }

    pub fn end(&mut self, life: &Life, end: End) {
        let here = life.place.ip();
        self.listening.retain(|address, _| address.ip() != here);
        self.sockets.retain(|address, _| address.ip() != here);
        self.machines.entry(life.place).or_default().silent = end == End::Machine;
        for (connection, side) in self.ends_at(life.place) {
            match end {
                End::Process => self.close(connection, side, super::connection::Close::Reset),
                End::Machine => self.close(connection, side, super::connection::Close::Silent),
            }
        }
    }

    pub fn reset(&mut self, place: Place) -> usize {
        let ends = self.ends_at(place);
        for (connection, _) in &ends {
            for side in [0, 1] {
                self.break_end(*connection, side, std::io::ErrorKind::ConnectionReset);
            }
        }
        ends.len()
    }

    /// Open ends at a place.
    fn ends_at(&self, place: Place) -> Vec<(u64, usize)> {
        let ends = self.connections.iter().flat_map(|(number, connection)| {
            let sides = [0, 1].into_iter();
            sides
                .filter(|side| connection.ends[*side].is_open_at(place))
                .map(|side| (*number, side))
        });
        ends.collect()
    }
}
