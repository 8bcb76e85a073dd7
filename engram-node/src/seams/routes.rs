//! Other ways to some addresses: what one node dials instead of what another advertises.
//!
//! For nodes behind a translation of addresses, where each side knows the other by a name of its
//! own; and for tests that put a proxy into every link between real processes. Streams and
//! datagrams take the same way. An address without a route is dialled as it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Datagrams, Listener, Net, Stream};

/// `host:port` as advertised, to `host:port` as dialled.
pub type Routes = BTreeMap<String, String>;

/// Sockets that take these routes.
pub struct Routed {
    inner: Arc<dyn Net>,
    routes: Routes,
}

impl Routed {
    #[must_use]
    pub fn new(inner: Arc<dyn Net>, routes: Routes) -> Self {
        Self { inner, routes }
    }
}

#[async_trait]
impl Net for Routed {
    async fn listen(&self, address: &str) -> std::io::Result<Box<dyn Listener>> {
        self.inner.listen(address).await
    }

    async fn connect(&self, address: &str) -> std::io::Result<Box<dyn Stream>> {
        let dialled = self.routes.get(address).map_or(address, String::as_str);
        self.inner.connect(dialled).await
    }

    /// Members name each other by resolved addresses, so routes are resolved once, here.
    async fn datagrams(&self, address: &str) -> std::io::Result<Arc<dyn Datagrams>> {
        let inner = self.inner.datagrams(address).await?;
        let mut routes = BTreeMap::new();
        for (advertised, dialled) in &self.routes {
            let advertised = self.inner.resolve(advertised).await?;
            routes.insert(advertised, self.inner.resolve(dialled).await?);
        }
        Ok(Arc::new(RoutedDatagrams { inner, routes }))
    }

    async fn resolve(&self, address: &str) -> std::io::Result<SocketAddr> {
        self.inner.resolve(address).await
    }
}

struct RoutedDatagrams {
    inner: Arc<dyn Datagrams>,
    routes: BTreeMap<SocketAddr, SocketAddr>,
}

#[async_trait]
impl Datagrams for RoutedDatagrams {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    async fn send_to(&self, bytes: &[u8], target: SocketAddr) -> std::io::Result<()> {
        let dialled = self.routes.get(&target).copied().unwrap_or(target);
        self.inner.send_to(bytes, dialled).await
    }

    async fn receive_from(&self, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
        self.inner.receive_from(buffer).await
    }
}

#[cfg(all(test, feature = "rocksdb"))]
mod tests {
    use engram_core::storage::RocksOptions;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::os;
    use super::*;

    #[tokio::test]
    async fn streams_and_datagrams_take_the_route_and_others_go_straight() {
        let net = os::seams(RocksOptions::default()).net;
        let (mut real, mut other) = (
            net.listen("127.0.0.1:0").await.unwrap(),
            net.listen("127.0.0.1:0").await.unwrap(),
        );
        let dialled = real.local_addr().unwrap();
        let straight = other.local_addr().unwrap();
        let advertised: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let routes = Routes::from([(advertised.to_string(), dialled.to_string())]);
        let routed = Routed::new(Arc::clone(&net), routes);

        let mut stream = routed.connect(&advertised.to_string()).await.unwrap();
        let (mut accepted, _) = real.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        let _direct = routed.connect(&straight.to_string()).await.unwrap();
        other.accept().await.unwrap();

        let receiver = net.datagrams(&dialled.to_string()).await.unwrap();
        let sender = routed.datagrams("127.0.0.1:0").await.unwrap();
        sender.send_to(b"y", advertised).await.unwrap();
        let mut buffer = [0; 8];
        let (length, from) = receiver.receive_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"y");
        assert_eq!(from, sender.local_addr().unwrap());
    }
}
