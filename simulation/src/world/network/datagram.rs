//! Datagrams: they are lost, doubled, late and out of order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use rand::RngExt as _;

use super::Place;
use super::links::Way;
use super::state::{Event, RETRY, State};
use crate::world::seams::Ledger;
use crate::world::trace::digest;

/// Datagrams that wait to be read; more are lost.
const WAITING_MAX: usize = 1_024;
/// One that is overtaken takes up to so many times as long.
const OVERTAKEN_FACTOR: u32 = 10;

/// A socket's queue.
#[derive(Default)]
pub struct Socket {
    waiting: VecDeque<(Bytes, SocketAddr)>,
    reader: Option<Waker>,
}

#[derive(Clone)]
pub struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Bytes,
}

impl State {
    pub fn send_packet(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let copies = match self.generator.random::<f64>() {
            drawn if drawn < self.weather.loss => 0,
            drawn if drawn < self.weather.loss + self.weather.duplicates => 2,
            _ => 1,
        };
        let packet = Packet {
            from,
            to,
            bytes: Bytes::copy_from_slice(bytes),
        };
        for _ in 0..copies {
            let mut delay = self.delay();
            if self.generator.random_bool(self.weather.reordered) {
                delay *= self.generator.random_range(1..=OVERTAKEN_FACTOR);
            }
            self.schedule(self.now + delay, Event::Packet(packet.clone()));
        }
    }

    pub fn packet_arrives(&mut self, packet: Packet, ledger: &Ledger) {
        let (Some(from), Some(to)) = (Place::of(packet.from.ip()), Place::of(packet.to.ip()))
        else {
            return;
        };
        match self.way(from, to) {
            Way::Open => {}
            Way::Clogged => return self.schedule(self.now + RETRY, Event::Packet(packet)),
            Way::Cut => return,
        }
        let Some(socket) = self.sockets.get_mut(&packet.to) else {
            return;
        };
        if socket.waiting.len() >= WAITING_MAX {
            return;
        }
        let (length, hash) = (packet.bytes.len(), digest(&packet.bytes));
        ledger.event(format_args!(
            "packet {} {} {length} {hash:016x}",
            from.0, to.0
        ));
        ledger.count("datagrams", 1);
        socket.waiting.push_back((packet.bytes, packet.from));
        let reader = socket.reader.take();
        self.wake(reader);
    }

    pub fn poll_packet(
        &mut self,
        at: SocketAddr,
        context: &Context<'_>,
    ) -> Poll<Option<(Bytes, SocketAddr)>> {
        let Some(socket) = self.sockets.get_mut(&at) else {
            return Poll::Ready(None);
        };
        if let Some(packet) = socket.waiting.pop_front() {
            return Poll::Ready(Some(packet));
        }
        socket.reader = Some(context.waker().clone());
        Poll::Pending
    }
}
