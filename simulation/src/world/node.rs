//! One node: its disk, which lasts, and its processes, which come and go.
//!
//! ```text
//! down --start--> starting --served--> up --crash, died at a write--> down
//!                     |                 |--pause--> paused --resume--> up
//!                     +--refused--> failed --stop--> stopping --done, overdue--> down
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use engram_node::config::{Config, Limits, LogFormat, LogMarks, RaftOptions};
use engram_node::replica::INDEX_TAIL_MAX_DEFAULT;
use engram_node::seams::Seams;
use engram_node::server::{self, Server};
use parking_lot::Mutex;

use super::disk::{Platter, SimDisk};
use super::network::{End, Network, Place, SimNet};
use super::process::Process;
use super::seams::{Ledger, Life, SimClock, SimEntropy, SimTasks, generator};
use crate::plan::{DiskPlan, Host, NodePlan};

/// An orderly stop is cut short after this.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longer than a client tries; much shorter than in production, so that folding happens in a run.
const FOLD_AFTER: Duration = Duration::from_secs(8);
const CLIENT_PORT: u16 = 7_400;
const PEER_PORT: u16 = 7_401;
const HTTP_PORT: u16 = 7_402;

pub struct Node {
    pub host: Host,
    pub platter: Platter,
    clock_offset: Arc<AtomicI64>,
    slowness: Arc<AtomicU32>,
    /// Processes so far.
    lives: u64,
    running: Option<Running>,
    /// Why the last process ended by itself.
    pub failure: Option<String>,
}

struct Running {
    // Dropped in this order: what the world holds of the node, then the tasks.
    slot: Arc<Mutex<Slot>>,
    process: Process,
    life: Arc<Life>,
    /// Since when it stands still.
    paused: Option<Duration>,
    /// When a stop under way is cut short.
    stop_by: Option<Duration>,
}

/// What has become of the server in a process.
enum Slot {
    Starting,
    Serving(Box<Server>),
    Failed(String),
    Stopping,
    Stopped,
}

/// What all nodes of a world are made with.
pub struct Surroundings {
    pub seed: u64,
    pub tick: Duration,
    pub disk: DiskPlan,
    pub options: NodePlan,
    pub spread_attempt_wait: Duration,
    pub network: Arc<Network>,
    pub ledger: Arc<Ledger>,
}

pub fn client_address(host: Host) -> String {
    address(host, CLIENT_PORT)
}

fn address(host: Host, port: u16) -> String {
    format!("{}:{port}", place(host).ip())
}

pub fn place(host: Host) -> Place {
    assert!(host.0 < usize::from(Place::CLIENTS), "too many nodes");
    Place(host.0 as u16)
}

/// The node's configuration; the first of `peers` founds the cluster.
fn config(host: Host, peers: usize, around: &Surroundings) -> Config {
    let options = around.options;
    let others = (0..peers.max(1)).map(Host).filter(|other| *other != host);
    let join = match host {
        Host(0) => Vec::new(),
        _ => others.map(|other| address(other, PEER_PORT)).collect(),
    };
    Config {
        data_dir: format!("/node-{}", host.0).into(),
        listen: address(host, CLIENT_PORT),
        peer_listen: address(host, PEER_PORT),
        http_listen: address(host, HTTP_PORT),
        join,
        advertise_host: None,
        peer_routes: Default::default(),
        zone: String::new(),
        insecure: true,
        tls_dir: None,
        token_file: None,
        cluster_key_file: None,
        log_format: LogFormat::Text,
        log_level: "info".into(),
        replace_after: options.replace_after,
        fold_after: FOLD_AFTER,
        snapshot_bytes_per_second: 128 << 20,
        log_marks: match options.marks_before_ack {
            true => LogMarks::BeforeAck,
            false => LogMarks::Lazy,
        },
        index_tail_max: INDEX_TAIL_MAX_DEFAULT,
        limits: Limits::default(),
        raft: RaftOptions {
            snapshot_every_entries: options.snapshot_every,
            keep_entries: options.keep,
            heartbeat: options.heartbeat,
            // Few entries: most are read from the store, with their checksums.
            cache_bytes_max: 2 << 10,
        },
        spread_attempt_wait: around.spread_attempt_wait,
    }
}

impl Node {
    pub fn new(host: Host, clock_offset: i64) -> Self {
        Self {
            host,
            platter: Platter::default(),
            clock_offset: Arc::new(AtomicI64::new(clock_offset)),
            slowness: Arc::new(AtomicU32::new(1)),
            lives: 0,
            running: None,
            failure: None,
        }
    }

    /// Starts a process. Nothing happens where one runs.
    pub fn start(&mut self, around: &Surroundings, peers: usize) {
        if self.running.is_some() {
            return;
        }
        self.lives += 1;
        let place = place(self.host);
        let life = Life::begin(place, self.lives);
        around
            .ledger
            .event(format_args!("start {} {}", place.0, life.number));
        around.network.begin(&life);
        let number = u64::from(place.0) << 32 | life.number;
        let mut seeds = generator(around.seed, "process", number);
        let process = Process::new(rand::Rng::next_u64(&mut seeds));
        let seams = self.seams(around, &process, &life);
        let slot = Arc::new(Mutex::new(Slot::Starting));
        let (started, config) = (Arc::clone(&slot), config(self.host, peers, around));
        process.spawn(async move {
            let server = Box::pin(server::start(config, seams)).await;
            *started.lock() = match server {
                Ok(server) => Slot::Serving(Box::new(server)),
                Err(error) => Slot::Failed(error.to_string()),
            };
        });
        self.failure = None;
        self.running = Some(Running {
            slot,
            process,
            life,
            paused: None,
            stop_by: None,
        });
    }

    fn seams(&self, around: &Surroundings, process: &Process, life: &Arc<Life>) -> Seams {
        let number = u64::from(life.place.0) << 32 | life.number;
        let _inside = process.handle().enter();
        let clock = SimClock::new(around.ledger.now(), Arc::clone(&self.clock_offset));
        let tasks = SimTasks::new(
            process.handle().clone(),
            Arc::clone(life),
            around.disk,
            Arc::clone(&self.slowness),
            generator(around.seed, "disk", number),
        );
        Seams {
            clock: Arc::new(clock),
            tasks: Arc::new(tasks),
            entropy: Arc::new(SimEntropy::new(generator(around.seed, "entropy", number))),
            net: Arc::new(SimNet::new(Arc::clone(&around.network), Arc::clone(life))),
            disk: Arc::new(SimDisk::new(
                self.platter.clone(),
                Arc::clone(life),
                Arc::clone(&around.ledger),
            )),
        }
    }

    /// Lets the process work for a tick, and sees to it when it has come to an end. Whether the
    /// machine died at a write.
    pub fn run(&mut self, around: &Surroundings) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        if running.paused.is_some() {
            return false;
        }
        let _speaking = tracing::info_span!("node", host = self.host.0).entered();
        running.process.run(around.tick);
        if running.life.is_over() {
            self.crash(around, End::Machine);
            return true;
        }
        let ended = match &*running.slot.lock() {
            Slot::Failed(reason) => Some(Some(reason.clone())),
            Slot::Stopped => Some(None),
            Slot::Stopping if running.stop_by.is_some_and(|by| by <= around.ledger.now()) => {
                around.ledger.count("stops cut short", 1);
                Some(None)
            }
            Slot::Stopping | Slot::Starting | Slot::Serving(_) => None,
        };
        if let Some(failure) = ended {
            around.ledger.event(format_args!(
                "end {} {}",
                self.host.0,
                failure.as_deref().unwrap_or("in order")
            ));
            self.failure = failure;
            self.let_go(around, End::Process);
            self.platter.close();
        }
        false
    }

    /// The process dies where it stands, and with it what was not synced.
    pub fn crash(&mut self, around: &Surroundings, end: End) {
        let Some(running) = &self.running else {
            return;
        };
        let number = u64::from(running.life.place.0) << 32 | running.life.number;
        self.let_go(around, end);
        let lost = self
            .platter
            .crash(&mut generator(around.seed, "crash", number));
        around
            .ledger
            .event(format_args!("crash {} {end:?} {lost}", self.host.0));
        around.ledger.count("crashes", 1);
        around.ledger.count("batches lost", lost as u64);
    }

    fn let_go(&mut self, around: &Surroundings, end: End) {
        if let Some(running) = self.running.take() {
            // First the network and the disk, so that nothing that ends says so.
            running.life.end();
            around.network.end(&running.life, end);
            drop(running);
        }
    }

    /// Begins an orderly stop; whether there was something to stop.
    pub fn stop(&mut self, now: Duration) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        let mut slot = running.slot.lock();
        match std::mem::replace(&mut *slot, Slot::Stopping) {
            Slot::Serving(server) => {
                let stopped = Arc::clone(&running.slot);
                running.process.spawn(async move {
                    Box::pin(server.stop()).await;
                    *stopped.lock() = Slot::Stopped;
                });
            }
            // A process that does not serve yet ends at once.
            Slot::Starting => *slot = Slot::Stopped,
            other @ (Slot::Failed(_) | Slot::Stopping | Slot::Stopped) => *slot = other,
        }
        running.stop_by = Some(now + STOP_LIMIT);
        true
    }

    pub fn pause(&mut self, now: Duration) -> bool {
        match &mut self.running {
            Some(running) if running.paused.is_none() => {
                running.paused = Some(now);
                true
            }
            _ => false,
        }
    }

    pub fn resume(&mut self, now: Duration) {
        if let Some(running) = &mut self.running
            && let Some(since) = running.paused.take()
        {
            running.process.skip(now.saturating_sub(since));
        }
    }

    pub fn jump_clock(&self, millis: i64) {
        self.clock_offset.fetch_add(millis, Ordering::Relaxed);
    }

    pub fn set_slowness(&self, factor: u32) {
        self.slowness.store(factor.max(1), Ordering::Relaxed);
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn is_paused(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.paused.is_some())
    }

    /// Whether the node serves clients.
    pub fn is_serving(&self) -> bool {
        self.with_server(|_| ()).is_some()
    }

    /// Processes so far.
    pub fn lives(&self) -> u64 {
        self.lives
    }

    /// Looks at the server, when there is one.
    pub fn with_server<R>(&self, look: impl FnOnce(&Server) -> R) -> Option<R> {
        let running = self.running.as_ref()?;
        match &*running.slot.lock() {
            Slot::Serving(server) => Some(look(server)),
            _ => None,
        }
    }

    /// Runs something in the node's process.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(running) = &self.running {
            running.process.spawn(future);
        }
    }
}
