//! The seams of production: tokio, the operating system's sockets and clocks, and RocksDB.
#![allow(
    clippy::disallowed_methods,
    reason = "this is the one place behind the seams"
)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use engram_core::storage::{RocksOptions, RocksStorage, Storage, StorageError};
use rand::Rng as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket, lookup_host};

use super::{BoxFuture, Clock, Datagrams, Disk, Entropy, Listener, Net, Seams, Stream, Tasks};

/// The seams of a real process. Call inside a tokio runtime.
#[must_use]
pub fn seams(store: RocksOptions) -> Seams {
    Seams {
        clock: Arc::new(OsClock {
            start: Instant::now(),
        }),
        tasks: Arc::new(TokioTasks),
        entropy: Arc::new(OsEntropy),
        net: Arc::new(OsNet),
        disk: Arc::new(OsDisk { store }),
    }
}

struct OsClock {
    start: Instant,
}

#[async_trait]
impl Clock for OsClock {
    fn wall_millis(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        since.as_millis() as u64
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

struct TokioTasks;

impl Tasks for TokioTasks {
    fn spawn(&self, _name: &'static str, future: BoxFuture<()>) {
        tokio::spawn(future);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
}

struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}

struct OsNet;

#[async_trait]
impl Net for OsNet {
    async fn listen(&self, address: &str) -> std::io::Result<Box<dyn Listener>> {
        Ok(Box::new(OsListener(TcpListener::bind(address).await?)))
    }

    async fn connect(&self, address: &str) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn datagrams(&self, address: &str) -> std::io::Result<Arc<dyn Datagrams>> {
        Ok(Arc::new(OsDatagrams(UdpSocket::bind(address).await?)))
    }

    async fn resolve(&self, address: &str) -> std::io::Result<SocketAddr> {
        lookup_host(address).await?.next().ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("{address} has no address"),
            )
        })
    }
}

struct OsListener(TcpListener);

#[async_trait]
impl Listener for OsListener {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    async fn accept(&mut self) -> std::io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer))
    }
}

struct OsDatagrams(UdpSocket);

#[async_trait]
impl Datagrams for OsDatagrams {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    async fn send_to(&self, bytes: &[u8], target: SocketAddr) -> std::io::Result<()> {
        self.0.send_to(bytes, target).await.map(drop)
    }

    async fn receive_from(&self, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer).await
    }
}

struct OsDisk {
    store: RocksOptions,
}

impl Disk for OsDisk {
    fn open_store(&self, directory: &Path) -> Result<Arc<dyn Storage>, StorageError> {
        std::fs::create_dir_all(directory).map_err(|error| StorageError::Open {
            path: directory.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(RocksStorage::open(directory, self.store)?))
    }

    fn read_file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let staging = path.with_extension("staging");
        let mut file = std::fs::File::create(&staging)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&staging, path)?;
        std::fs::File::open(directory)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
