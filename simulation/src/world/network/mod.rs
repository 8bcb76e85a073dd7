//! The simulated network: connections as byte pipes, datagrams, and what goes wrong with them.
//!
//! ```text
//! write -> in transit (delay; held while cut or clogged) -> inbox -> read
//!   ^                                                                 |
//!   +-------------------- room in the window ------------------------+
//! ```
//!
//! A process writes through its [`SimNet`] at any moment; the world delivers at the beginning of a
//! tick what is due. What must hold: nothing arrives in the tick in which it was sent; bytes of one
//! direction arrive in their order or not at all; what a process sent after its end never arrives.
//!
//! Left out: bandwidth, and the acknowledgements of the other direction (a one-way cut does not stop
//! the sender of the direction that works).

mod connection;
mod datagram;
mod links;
mod seam;
mod state;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;

pub use links::Fault;
pub use seam::SimNet;
use state::State;

use super::seams::{Ledger, Life};
use crate::plan::NetworkPlan;

/// A machine on the network: nodes from 0, clients from [`Place::CLIENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u16);

impl Place {
    pub const CLIENTS: u16 = 1_000;

    pub fn ip(self) -> IpAddr {
        let [high, low] = self.0.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 7, high, low))
    }

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => match ip.octets() {
                [10, 7, high, low] => Some(Self(u16::from_be_bytes([high, low]))),
                _ => None,
            },
            IpAddr::V6(_) => None,
        }
    }
}

/// How a process ends, as the network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine lives and resets the process's connections.
    Process,
    /// The machine answers nothing until a process is started on it again.
    Machine,
}

/// The network of one world.
pub struct Network {
    state: Mutex<State>,
    ledger: Arc<Ledger>,
}

impl Network {
    pub fn new(plan: NetworkPlan, tick: Duration, generator: StdRng, ledger: Arc<Ledger>) -> Self {
        Self {
            state: Mutex::new(State::new(plan, tick, generator)),
            ledger,
        }
    }

    /// Works on the state and afterwards wakes whom that concerns: a waker that is the last to hold
    /// a task may drop connections, which lock the state.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let (result, woken) = {
            let mut state = self.state.lock();
            state.now = self.ledger.now();
            let result = work(&mut state);
            (result, std::mem::take(&mut state.woken))
        };
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// Delivers everything that is due.
    pub fn deliver(&self) {
        self.with(|state| state.deliver(&self.ledger));
    }

    /// A process has started at its place.
    pub fn begin(&self, life: &Life) {
        self.with(|state| state.begin(life.place));
    }

    /// The process is over: its sockets are gone.
    pub fn end(&self, life: &Life, end: End) {
        self.with(|state| state.end(life, end));
    }

    /// Breaks all connections of a place; how many.
    pub fn reset(&self, place: Place) -> usize {
        self.with(|state| state.reset(place))
    }

    /// Begins a fault of links; the number ends it.
    pub fn begin_fault(&self, fault: Fault) -> u64 {
        self.with(|state| state.links.begin(fault))
    }

    pub fn end_fault(&self, number: u64) {
        self.with(|state| state.links.end(number));
    }

    pub fn end_all_faults(&self) {
        self.with(|state| state.links.end_all());
    }

    pub fn set_weather(&self, plan: NetworkPlan) {
        self.with(|state| state.weather = plan);
    }
}
