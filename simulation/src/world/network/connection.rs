//! Connections: two ends, and two directions of bytes.
//!
//! ```text
//! requested --accepted--> open --finish from both ends, or a break--> gone
//!     |                     |
//!     +--refused, too long--+--bytes that nothing takes for too long--> broken at the sender
//! ```

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

use super::Place;
use super::links::Way;
use super::state::{Event, RETRY, State};
use crate::world::seams::Ledger;
use crate::world::trace::digest;

/// Bytes that were written and not read yet, in one direction.
const WINDOW_BYTES: usize = 1 << 20;
/// Connections that wait for their acceptance.
const BACKLOG_MAX: usize = 1_024;
/// A request for a connection is repeated at this interval.
const REQUEST_RETRY: Duration = Duration::from_secs(1);
/// Bytes, or a request, that nothing takes for so long end a connection.
const GIVE_UP: Duration = Duration::from_secs(15);

/// A port that takes connections.
#[derive(Default)]
pub struct Listening {
    pub backlog: VecDeque<u64>,
    pub acceptor: Option<Waker>,
}

pub struct Connection {
    begun: Duration,
    handshake: Handshake,
    /// The one that asked, then the one that accepts.
    pub ends: [ConnectionEnd; 2],
    /// What each end has written.
    flows: [Flow; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handshake {
    Requested,
    Accepted,
    Failed(ErrorKind),
}

pub struct ConnectionEnd {
    place: Place,
    pub address: SocketAddr,
    /// A process holds it.
    open: bool,
    broken: Option<ErrorKind>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl ConnectionEnd {
    pub fn is_open_at(&self, place: Place) -> bool {
        self.open && self.place == place
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    transit: VecDeque<InTransit>,
    last_due: Duration,
    /// An attempt to deliver what is held is scheduled.
    retrying: bool,
    /// Pieces that arrive together since nothing arrived for a while, as TCP begins again slowly; 0:
    /// all that are due.
    burst: usize,
    inbox: VecDeque<Bytes>,
    /// Bytes in transit and in the inbox.
    held: usize,
    finish_sent: bool,
    finish_arrived: bool,
}

struct InTransit {
    due: Duration,
    sent: Duration,
    piece: Piece,
}

enum Piece {
    Data(Bytes),
    /// Nothing comes after it.
    Finish,
    Reset,
}

/// How an end is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// In order; as a break when there are bytes that nobody will read.
    Orderly,
    Reset,
    Silent,
}

impl State {
    /// Asks for a connection; its number.
    pub fn request(&mut self, from: Place, to: SocketAddr) -> Option<u64> {
        let target = Place::of(to.ip())?;
        let port = self.next_port(from);
        let end = |place: Place, address, open| ConnectionEnd {
            place,
            address,
            open,
            broken: None,
            reader: None,
            writer: None,
        };
        let connection = Connection {
            begun: self.now,
            handshake: Handshake::Requested,
            ends: [
                end(from, SocketAddr::new(from.ip(), port), true),
                end(target, to, false),
            ],
            flows: Default::default(),
        };
        self.next_connection += 1;
        let number = self.next_connection;
        self.connections.insert(number, connection);
        let at = self.now + self.delay();
        self.schedule(at, Event::Request(number));
        Some(number)
    }

    pub fn request_arrives(&mut self, number: u64, ledger: &Ledger) {
        let Some(connection) = self.connections.get(&number) else {
            return;
        };
        if !connection.ends[0].open {
            self.connections.remove(&number);
            return;
        }
        let (begun, address) = (connection.begun, connection.ends[1].address);
        let (from, to) = (connection.ends[0].place, connection.ends[1].place);
        match self.way(from, to) {
            Way::Clogged => return self.schedule(self.now + RETRY, Event::Request(number)),
            Way::Cut if self.now - begun >= GIVE_UP => {
                return self.fail_request(number, ErrorKind::TimedOut);
            }
            Way::Cut => {
                return self.schedule(self.now + REQUEST_RETRY, Event::Request(number));
            }
            Way::Open => {}
        }
        let accepted = match self.listening.get_mut(&address) {
            Some(listening) if listening.backlog.len() < BACKLOG_MAX => {
                listening.backlog.push_back(number);
                let acceptor = listening.acceptor.take();
                self.wake(acceptor);
                true
            }
            _ => false,
        };
        ledger.event(format_args!(
            "connect #{number} {} {}: {accepted}",
            from.0, to.0
        ));
        let answered = self.now + self.delay();
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.ends[1].open = accepted;
            // The other direction's first bytes come no earlier than the answer.
            connection.flows[1].last_due = answered;
        }
        self.schedule(
            answered,
            Event::Answer {
                connection: number,
                accepted,
            },
        );
    }

    pub fn answer_arrives(&mut self, number: u64, accepted: bool) {
        let Some(connection) = self.connections.get(&number) else {
            return;
        };
        let (from, to) = (connection.ends[1].place, connection.ends[0].place);
        let late = self.now - connection.begun >= GIVE_UP;
        match self.way(from, to) {
            Way::Open if accepted => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.handshake = Handshake::Accepted;
                    let waiting = connection.ends[0].reader.take();
                    self.wake(waiting);
                    self.sweep(number);
                }
            }
            Way::Open => self.fail_request(number, ErrorKind::ConnectionRefused),
            Way::Cut if late => self.fail_request(number, ErrorKind::TimedOut),
            Way::Cut | Way::Clogged => {
                let again = Event::Answer {
                    connection: number,
                    accepted,
                };
                self.schedule(self.now + RETRY, again);
            }
        }
    }

    fn fail_request(&mut self, number: u64, why: ErrorKind) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.handshake = Handshake::Failed(why);
            let waiting = connection.ends[0].reader.take();
            self.wake(waiting);
            self.sweep(number);
        }
    }

    /// Forgets a connection that no process holds and no handshake will look for.
    fn sweep(&mut self, number: u64) {
        let gone = self.connections.get(&number).is_some_and(|connection| {
            let held = connection.ends.iter().any(|end| end.open);
            !held && connection.handshake != Handshake::Requested
        });
        if gone {
            self.connections.remove(&number);
        }
    }

    pub fn poll_connected(
        &mut self,
        number: u64,
        context: &Context<'_>,
    ) -> Poll<Result<(), ErrorKind>> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Poll::Ready(Err(ErrorKind::NotConnected));
        };
        let end = &mut connection.ends[0];
        match (connection.handshake, end.broken) {
            (Handshake::Failed(why), _) | (_, Some(why)) => Poll::Ready(Err(why)),
            (Handshake::Accepted, None) => Poll::Ready(Ok(())),
            (Handshake::Requested, None) => {
                end.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub fn poll_read(
        &mut self,
        number: u64,
        side: usize,
        context: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ErrorKind>> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Poll::Ready(Err(ErrorKind::NotConnected));
        };
        if let Some(why) = connection.ends[side].broken {
            return Poll::Ready(Err(why));
        }
        let flow = &mut connection.flows[1 - side];
        let before = buffer.filled().len();
        while buffer.remaining() > 0
            && let Some(piece) = flow.inbox.front_mut()
        {
            let taken = piece.len().min(buffer.remaining());
            buffer.put_slice(&piece[..taken]);
            piece.advance(taken);
            if piece.is_empty() {
                flow.inbox.pop_front();
            }
        }
        let taken = buffer.filled().len() - before;
        flow.held -= taken;
        if taken > 0 {
            let writer = connection.ends[1 - side].writer.take();
            self.wake(writer);
            return Poll::Ready(Ok(()));
        }
        if flow.finish_arrived {
            return Poll::Ready(Ok(()));
        }
        connection.ends[side].reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub fn poll_write(
        &mut self,
        number: u64,
        side: usize,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, ErrorKind>> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Poll::Ready(Err(ErrorKind::NotConnected));
        };
        if let Some(why) = connection.ends[side].broken {
            return Poll::Ready(Err(why));
        }
        let flow = &mut connection.flows[side];
        if flow.finish_sent || !connection.ends[side].open {
            return Poll::Ready(Err(ErrorKind::BrokenPipe));
        }
        let taken = bytes.len().min(WINDOW_BYTES.saturating_sub(flow.held));
        if taken == 0 && !bytes.is_empty() {
            connection.ends[side].writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        flow.held += taken;
        self.send(
            number,
            side,
            Piece::Data(Bytes::copy_from_slice(&bytes[..taken])),
        );
        Poll::Ready(Ok(taken))
    }

    /// Ends the direction in order.
    pub fn finish(&mut self, number: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if !std::mem::replace(&mut connection.flows[side].finish_sent, true) {
            self.send(number, side, Piece::Finish);
        }
    }

    fn send(&mut self, number: u64, side: usize, piece: Piece) {
        let at = self.now + self.delay();
        let sent = self.now;
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let flow = &mut connection.flows[side];
        let due = at.max(flow.last_due);
        flow.last_due = due;
        flow.transit.push_back(InTransit { due, sent, piece });
        self.schedule(
            due,
            Event::Bytes {
                connection: number,
                from: side,
            },
        );
    }

    pub fn retry(&mut self, number: u64, from: usize, ledger: &Ledger) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.flows[from].retrying = false;
            self.bytes_arrive(number, from, ledger);
        }
    }

    /// Delivers what is due of a direction, or tries again later.
    pub fn bytes_arrive(&mut self, number: u64, from: usize, ledger: &Ledger) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let places = [connection.ends[from].place, connection.ends[1 - from].place];
        let flow = &connection.flows[from];
        if flow.retrying {
            // What is held before it goes first.
            return;
        }
        let Some(first) = flow.transit.front().filter(|first| first.due <= self.now) else {
            return;
        };
        let waited = self.now - first.sent;
        match self.way(places[0], places[1]) {
            Way::Open => {}
            Way::Cut if waited >= GIVE_UP => {
                return self.break_end(number, from, ErrorKind::TimedOut);
            }
            Way::Cut | Way::Clogged => return self.hold(number, from),
        }
        let burst = self.burst(number, from);
        for _ in 0..burst.unwrap_or(usize::MAX) {
            let Some(piece) = self.next_piece(number, from) else {
                break;
            };
            self.piece_arrives(number, from, piece, ledger);
        }
        if burst.is_some() {
            self.go_on_slowly(number, from);
        }
    }

    /// How many pieces may arrive together, where there is a limit.
    fn burst(&self, number: u64, from: usize) -> Option<usize> {
        let burst = self.connections.get(&number)?.flows[from].burst;
        (burst > 0).then_some(burst)
    }

    /// What is left of the pieces that were held comes later, twice as many at a time.
    fn go_on_slowly(&mut self, number: u64, from: usize) {
        let (now, again) = (self.now, self.now + self.delay());
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let flow = &mut connection.flows[from];
        if flow.transit.front().is_none_or(|first| first.due > now) {
            flow.burst = 0;
        } else if !std::mem::replace(&mut flow.retrying, true) {
            flow.burst *= 2;
            let retry = Event::Retry {
                connection: number,
                from,
            };
            self.schedule(again, retry);
        }
    }

    fn next_piece(&mut self, number: u64, from: usize) -> Option<Piece> {
        let now = self.now;
        let transit = &mut self.connections.get_mut(&number)?.flows[from].transit;
        let due = transit.front().is_some_and(|first| first.due <= now);
        due.then(|| transit.pop_front())?.map(|first| first.piece)
    }

    /// One attempt later is enough for all that waits.
    fn hold(&mut self, number: u64, from: usize) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        connection.flows[from].burst = 1;
        if !std::mem::replace(&mut connection.flows[from].retrying, true) {
            let again = Event::Retry {
                connection: number,
                from,
            };
            self.schedule(self.now + RETRY, again);
        }
    }

    fn piece_arrives(&mut self, number: u64, from: usize, piece: Piece, ledger: &Ledger) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let to = 1 - from;
        let places = (connection.ends[from].place.0, connection.ends[to].place.0);
        if matches!(piece, Piece::Reset) {
            ledger.event(format_args!("reset #{number} {} {}", places.0, places.1));
            return self.break_end(number, to, ErrorKind::ConnectionReset);
        }
        if !connection.ends[to].open {
            // Nobody is there: the machine says so.
            if connection.ends[from].open {
                self.send(number, to, Piece::Reset);
            }
            return;
        }
        let flow = &mut connection.flows[from];
        match piece {
            Piece::Data(bytes) => {
                let (length, hash) = (bytes.len(), digest(&bytes));
                ledger.event(format_args!(
                    "bytes #{number} {} {} {length} {hash:016x}",
                    places.0, places.1
                ));
                ledger.count("messages", 1);
                ledger.count("message bytes", length as u64);
                flow.inbox.push_back(bytes);
            }
            Piece::Finish => {
                ledger.event(format_args!("finish #{number} {} {}", places.0, places.1));
                flow.finish_arrived = true;
            }
            Piece::Reset => {}
        }
        let reader = connection.ends[to].reader.take();
        self.wake(reader);
    }

    /// An end learns that the connection is broken.
    pub fn break_end(&mut self, number: u64, side: usize, why: ErrorKind) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let end = &mut connection.ends[side];
        end.broken.get_or_insert(why);
        let (reader, writer) = (end.reader.take(), end.writer.take());
        connection.flows[side].transit.clear();
        self.wake(reader);
        self.wake(writer);
    }

    /// The process lets go of an end.
    pub fn close(&mut self, number: u64, side: usize, how: Close) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let end = &mut connection.ends[side];
        if !std::mem::replace(&mut end.open, false) {
            return;
        }
        let broken = end.broken.is_some();
        (end.reader, end.writer) = (None, None);
        let unread = !connection.flows[1 - side].inbox.is_empty();
        connection.flows[1 - side].inbox.clear();
        match how {
            Close::Silent => {}
            _ if broken => {}
            Close::Reset => self.send(number, side, Piece::Reset),
            Close::Orderly if unread => self.send(number, side, Piece::Reset),
            Close::Orderly => self.finish(number, side),
        }
        self.sweep(number);
    }
}
