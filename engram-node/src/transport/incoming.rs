//! Accepted connections, in the form in which tonic's servers take them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::seams::{Listener, Stream};

/// One accepted connection.
pub struct Incoming {
    stream: Box<dyn Stream>,
    info: TcpConnectInfo,
}

/// The connections of a listener, for `serve_with_incoming`. A failed accept does not end it.
pub fn incoming(
    listener: Box<dyn Listener>,
) -> impl futures::Stream<Item = io::Result<Incoming>> + Send {
    let local_addr = listener.local_addr().ok();
    futures::stream::unfold(listener, move |mut listener| async move {
        let accepted = listener.accept().await.map(|(stream, remote)| Incoming {
            stream,
            info: TcpConnectInfo {
                local_addr,
                remote_addr: Some(remote),
            },
        });
        Some((accepted, listener))
    })
}

impl Incoming {
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.info.remote_addr
    }
}

impl Connected for Incoming {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
