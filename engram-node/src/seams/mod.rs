//! The seams between the node and the machine it runs on: clock, timers, tasks, randomness,
//! sockets, datagrams and disk. Production uses `os`; a simulation brings its own.
//!
//! What must hold: nothing else in this crate calls the wall clock, the system RNG, a socket, a
//! timer or `tokio::spawn` (clippy's `disallowed-methods` keeps it so).

#[cfg(feature = "rocksdb")]
pub mod os;
pub mod routes;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::storage::{Storage, StorageError};
use tokio::io::{AsyncRead, AsyncWrite};

/// A boxed future that may cross threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time. Monotonic time decides timers and timeouts; wall time only stamps data.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch. It may jump in both directions.
    fn wall_millis(&self) -> u64;
    /// Time since the process started. It never goes back.
    fn monotonic(&self) -> Duration;
    async fn sleep(&self, duration: Duration);
}

/// Where tasks run.
pub trait Tasks: Send + Sync {
    /// Runs a future in the background; `name` is for logs.
    fn spawn(&self, name: &'static str, future: BoxFuture<()>);
    /// Runs blocking work (storage, linking) off the async threads.
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>);
}

/// Random bytes, for identities and jitter.
pub trait Entropy: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

/// A byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A listening socket.
#[async_trait]
pub trait Listener: Send {
    fn local_addr(&self) -> std::io::Result<SocketAddr>;
    async fn accept(&mut self) -> std::io::Result<(Box<dyn Stream>, SocketAddr)>;
}

/// A datagram socket.
#[async_trait]
pub trait Datagrams: Send + Sync {
    fn local_addr(&self) -> std::io::Result<SocketAddr>;
    async fn send_to(&self, bytes: &[u8], target: SocketAddr) -> std::io::Result<()>;
    async fn receive_from(&self, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)>;
}

/// Sockets.
#[async_trait]
pub trait Net: Send + Sync {
    async fn listen(&self, address: &str) -> std::io::Result<Box<dyn Listener>>;
    /// `address` is `host:port`.
    async fn connect(&self, address: &str) -> std::io::Result<Box<dyn Stream>>;
    async fn datagrams(&self, address: &str) -> std::io::Result<Arc<dyn Datagrams>>;
    async fn resolve(&self, address: &str) -> std::io::Result<SocketAddr>;
}

/// Durable state: the ordered store, and whole files for index snapshots and staging.
pub trait Disk: Send + Sync {
    /// Opens or creates the store in `directory`.
    ///
    /// # Errors
    /// When the directory is unusable, in use, or its data is damaged.
    fn open_store(&self, directory: &Path) -> Result<Arc<dyn Storage>, StorageError>;
    /// # Errors
    /// When the file cannot be read.
    fn read_file(&self, path: &Path) -> std::io::Result<Vec<u8>>;
    /// Writes a file whole, durable on return, or not at all.
    ///
    /// # Errors
    /// When it cannot be written or synced.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()>;
    /// # Errors
    /// When the file exists but cannot be removed.
    fn remove_file(&self, path: &Path) -> std::io::Result<()>;
    /// Begins a file that is written piece by piece. Nothing is at `path` before
    /// [`FileWriter::finish`]; a writer dropped before that leaves nothing behind.
    ///
    /// # Errors
    /// When it cannot be created.
    fn create_file(&self, path: &Path) -> std::io::Result<Box<dyn FileWriter>>;
    /// # Errors
    /// When the file cannot be opened.
    fn open_file(&self, path: &Path) -> std::io::Result<Box<dyn std::io::Read + Send>>;
    /// Moves a file, replacing what is at `to`, durable on return.
    ///
    /// # Errors
    /// When it cannot be moved.
    fn rename_file(&self, from: &Path, to: &Path) -> std::io::Result<()>;
    /// Names of the files in a directory, in order; none when it does not exist.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn list_files(&self, directory: &Path) -> std::io::Result<Vec<String>>;
}

/// A file in the making.
pub trait FileWriter: std::io::Write + Send {
    /// Makes the file durable and visible under its path.
    ///
    /// # Errors
    /// When it cannot be synced or moved to its path; nothing is there then.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// All seams of one node. Cheap to clone.
#[derive(Clone)]
pub struct Seams {
    pub clock: Arc<dyn Clock>,
    pub tasks: Arc<dyn Tasks>,
    pub entropy: Arc<dyn Entropy>,
    pub net: Arc<dyn Net>,
    pub disk: Arc<dyn Disk>,
}

/// A duration passed before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out after {0:?}")]
pub struct TimedOut(pub Duration);

impl Seams {
    /// Runs `future` in the background.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(name, Box::pin(future));
    }

    /// Runs blocking `work` off the async threads and waits for its result.
    ///
    /// # Panics
    /// When `work` panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (done, result) = tokio::sync::oneshot::channel();
        self.tasks.spawn_blocking(Box::new(move || {
            // The receiver is gone only when the caller was cancelled: nobody wants the result.
            drop(done.send(work()));
        }));
        result
            .await
            .unwrap_or_else(|_| panic!("blocking work panicked"))
    }

    /// # Errors
    /// [`TimedOut`] when `limit` passes first; the future is dropped then.
    pub async fn timeout<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, TimedOut> {
        tokio::select! {
            biased;
            value = future => Ok(value),
            () = self.clock.sleep(limit) => Err(TimedOut(limit)),
        }
    }

    /// 16 random bytes.
    #[must_use]
    pub fn random_id(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes);
        bytes
    }
}
