//! The network as one process sees it.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use engram_node::seams::{Datagrams, Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Network;
use super::connection::{Close, Listening};
use super::datagram::Socket;
use crate::world::seams::Life;

/// The sockets of one process.
#[derive(Clone)]
pub struct SimNet {
    network: Arc<Network>,
    life: Arc<Life>,
}

fn over() -> Error {
    Error::new(ErrorKind::NotConnected, "the process is over")
}

fn parse(address: &str) -> Result<SocketAddr> {
    address
        .parse()
        .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("no address: {address}")))
}

impl SimNet {
    pub fn new(network: Arc<Network>, life: Arc<Life>) -> Self {
        Self { network, life }
    }

    /// An address of this place on which nothing is bound yet.
    fn own(&self, address: &str) -> Result<SocketAddr> {
        let address = parse(address)?;
        if address.ip() != self.life.place.ip() || address.port() == 0 {
            let what = format!("{address} is no address of this machine");
            return Err(Error::new(ErrorKind::AddrNotAvailable, what));
        }
        Ok(address)
    }

    /// # Errors
    /// When nobody answers, or nobody listens.
    pub async fn connect_to(&self, address: &str) -> Result<SimStream> {
        let to = parse(address)?;
        if self.life.is_over() {
            return Err(over());
        }
        let requested = self
            .network
            .with(|state| state.request(self.life.place, to));
        let number = requested.ok_or_else(|| Error::from(ErrorKind::HostUnreachable))?;
        let stream = SimStream {
            network: Arc::clone(&self.network),
            life: Arc::clone(&self.life),
            number,
            side: 0,
        };
        let connected = poll_fn(|context| {
            self.network
                .with(|state| state.poll_connected(number, context))
        });
        connected.await?;
        Ok(stream)
    }
}

#[async_trait]
impl Net for SimNet {
    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        let address = self.own(address)?;
        let taken = self.network.with(|state| {
            let taken = state.listening.contains_key(&address);
            state.listening.entry(address).or_default();
            taken
        });
        if taken {
            return Err(Error::from(ErrorKind::AddrInUse));
        }
        Ok(Box::new(SimListener {
            net: self.clone(),
            address,
        }))
    }

    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>> {
        let stream = self.connect_to(address).await?;
        Ok(Box::new(stream))
    }

    async fn datagrams(&self, address: &str) -> Result<Arc<dyn Datagrams>> {
        let address = self.own(address)?;
        self.network.with(|state| {
            state.sockets.insert(address, Socket::default());
        });
        Ok(Arc::new(SimDatagrams {
            net: self.clone(),
            address,
        }))
    }

    async fn resolve(&self, address: &str) -> Result<SocketAddr> {
        parse(address)
    }
}

struct SimListener {
    net: SimNet,
    address: SocketAddr,
}

#[async_trait]
impl Listener for SimListener {
    fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.address)
    }

    async fn accept(&mut self) -> Result<(Box<dyn Stream>, SocketAddr)> {
        let accepted = poll_fn(|context| {
            self.net.network.with(|state| {
                let Some(listening) = state.listening.get_mut(&self.address) else {
                    return Poll::Ready(None);
                };
                let Some(number) = listening.backlog.pop_front() else {
                    listening.acceptor = Some(context.waker().clone());
                    return Poll::Pending;
                };
                let remote = state
                    .connections
                    .get(&number)
                    .map(|connection| connection.ends[0].address);
                Poll::Ready(Some((number, remote.unwrap_or(self.address))))
            })
        });
        let (number, remote) = accepted.await.ok_or_else(over)?;
        let stream = SimStream {
            network: Arc::clone(&self.net.network),
            life: Arc::clone(&self.net.life),
            number,
            side: 1,
        };
        Ok((Box::new(stream), remote))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if self.net.life.is_over() {
            // The port may be another process's by now.
            return;
        }
        self.net.network.with(|state| {
            let gone: Option<Listening> = state.listening.remove(&self.address);
            for number in gone.into_iter().flat_map(|listening| listening.backlog) {
                state.close(number, 1, Close::Reset);
            }
        });
    }
}

struct SimDatagrams {
    net: SimNet,
    address: SocketAddr,
}

#[async_trait]
impl Datagrams for SimDatagrams {
    fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.address)
    }

    async fn send_to(&self, bytes: &[u8], target: SocketAddr) -> Result<()> {
        if self.net.life.is_over() {
            return Err(over());
        }
        self.net
            .network
            .with(|state| state.send_packet(self.address, target, bytes));
        Ok(())
    }

    async fn receive_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr)> {
        let received = poll_fn(|context| {
            self.net
                .network
                .with(|state| state.poll_packet(self.address, context))
        });
        let (bytes, from) = received.await.ok_or_else(over)?;
        // What does not fit is cut off, as a socket does.
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Ok((length, from))
    }
}

impl Drop for SimDatagrams {
    fn drop(&mut self) {
        if !self.net.life.is_over() {
            self.net.network.with(|state| {
                state.sockets.remove(&self.address);
            });
        }
    }
}

/// One end of a connection.
pub struct SimStream {
    network: Arc<Network>,
    life: Arc<Life>,
    number: u64,
    side: usize,
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if self.life.is_over() {
            return Poll::Ready(Err(over()));
        }
        let polled = self
            .network
            .with(|state| state.poll_read(self.number, self.side, context, buffer));
        polled.map_err(Error::from)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        if self.life.is_over() {
            return Poll::Ready(Err(over()));
        }
        let polled = self
            .network
            .with(|state| state.poll_write(self.number, self.side, context, bytes));
        polled.map_err(Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        if !self.life.is_over() {
            self.network
                .with(|state| state.finish(self.number, self.side));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if !self.life.is_over() {
            self.network
                .with(|state| state.close(self.number, self.side, Close::Orderly));
        }
    }
}
