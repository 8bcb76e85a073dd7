//! The process around a log: the log store of production, and seams whose disk waits for the world.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::storage::{MemoryStorage, Storage, StorageError};
use engram_core::types::GroupId;
use engram_node::consensus::Damages;
use engram_node::consensus::log::{LogStore, LogWriter, Marks};
use engram_node::seams::{
    BoxFuture, Clock, Datagrams, Disk, Entropy, FileWriter, Listener, Net, Seams, Stream, Tasks,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

pub const GROUP: GroupId = GroupId(3);
/// So few entries stay decoded that most reads go to the store.
const CACHE_BYTES: usize = 256;
/// One message takes any log.
const MESSAGE_BYTES: usize = 1 << 16;

type Work = Box<dyn FnOnce() + Send>;

/// Blocking work, and tasks, of one process.
#[derive(Default)]
struct Waiting {
    work: Mutex<VecDeque<Work>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks for Waiting {
    #[allow(clippy::disallowed_methods, reason = "this is where tasks run")]
    fn spawn(&self, _name: &'static str, future: BoxFuture<()>) {
        self.tasks.lock().push(tokio::spawn(future));
    }

    fn spawn_blocking(&self, work: Work) {
        self.work.lock().push_back(work);
    }
}

/// A process with one log.
pub struct Machine {
    pub log: LogStore,
    waiting: Arc<Waiting>,
}

impl Machine {
    /// # Errors
    /// When what the store holds is damaged.
    pub fn start(storage: &MemoryStorage) -> Result<Self, StorageError> {
        let waiting = Arc::<Waiting>::default();
        let seams = Seams {
            clock: Arc::new(Nothing),
            tasks: Arc::clone(&waiting) as Arc<dyn Tasks>,
            entropy: Arc::new(Nothing),
            net: Arc::new(Nothing),
            disk: Arc::new(Nothing),
        };
        let storage: Arc<dyn Storage> = Arc::new(storage.clone());
        let marks = Marks::open(&seams, Path::new(""), false);
        let writer = LogWriter::start(&seams, Arc::clone(&storage), marks);
        let sizes = (CACHE_BYTES, MESSAGE_BYTES);
        let log = LogStore::open(GROUP, &seams, storage, writer, sizes, Damages::default())?;
        Ok(Self { log, waiting })
    }

    /// The disk does what has waited longest. Whether there was anything.
    pub fn work(&self) -> bool {
        let work = self.waiting.work.lock().pop_front();
        work.map(|work| work()).is_some()
    }

    /// The process ends where it is.
    pub fn end(self) {
        for task in self.waiting.tasks.lock().drain(..) {
            task.abort();
        }
        self.waiting.work.lock().clear();
    }
}

/// What a log has no use for.
struct Nothing;

fn unused<T>() -> std::io::Result<T> {
    Err(Error::from(ErrorKind::Unsupported))
}

#[async_trait]
impl Clock for Nothing {
    fn wall_millis(&self) -> u64 {
        0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _duration: Duration) {
        std::future::pending().await
    }
}

impl Entropy for Nothing {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

#[async_trait]
impl Net for Nothing {
    async fn listen(&self, _address: &str) -> std::io::Result<Box<dyn Listener>> {
        unused()
    }

    async fn connect(&self, _address: &str) -> std::io::Result<Box<dyn Stream>> {
        unused()
    }

    async fn datagrams(&self, _address: &str) -> std::io::Result<Arc<dyn Datagrams>> {
        unused()
    }

    async fn resolve(&self, _address: &str) -> std::io::Result<std::net::SocketAddr> {
        unused()
    }
}

impl Disk for Nothing {
    fn open_store(&self, _directory: &Path) -> Result<Arc<dyn Storage>, StorageError> {
        Err(StorageError::Write {
            reason: "there is one already".into(),
        })
    }

    /// There is no file yet.
    fn read_file(&self, _path: &Path) -> std::io::Result<Vec<u8>> {
        Err(Error::from(ErrorKind::NotFound))
    }

    fn write_file(&self, _path: &Path, _bytes: &[u8]) -> std::io::Result<()> {
        unused()
    }

    fn remove_file(&self, _path: &Path) -> std::io::Result<()> {
        unused()
    }

    fn create_file(&self, _path: &Path) -> std::io::Result<Box<dyn FileWriter>> {
        unused()
    }

    fn open_file(&self, _path: &Path) -> std::io::Result<Box<dyn Read + Send>> {
        unused()
    }

    fn rename_file(&self, _from: &Path, _to: &Path) -> std::io::Result<()> {
        unused()
    }

    fn list_files(&self, _directory: &Path) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}
