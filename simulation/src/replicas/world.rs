//! Replicas of one partition around one given log.

use std::sync::Arc;

use engram_core::command::PartitionCommand;
use engram_core::partition::Partition;
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{
    Decay, IndexParameters, MarkId, Metric, PartitionId, Sequence, SlotRange, SpaceConfig, SpaceId,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::workload::{self, DIMENSION};

const PARTITION: PartitionId = PartitionId(7);

/// A bug that the world commits on purpose, to prove that its invariants can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// A restarted replica takes the log up one entry too late.
    SkipsEntryAfterCrash,
    /// A restarted replica applies its last entry again.
    AppliesTwiceAfterCrash,
}

/// What a run was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub seed: u64,
    pub replicas: usize,
    pub steps: usize,
    pub planted: Planted,
}

impl Setup {
    /// The run of a seed: three replicas, long enough for crashes and snapshots.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            replicas: 3,
            steps: 1_500,
            planted: Planted::Nothing,
        }
    }
}

/// How a run went. Equal for equal setups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// BLAKE3 of every event, hexadecimal.
    pub trace: String,
    pub entries: usize,
    pub crashes: usize,
    pub installs: usize,
    /// One line per replica that differs from the first.
    pub differences: Vec<String>,
}

struct Replica {
    storage: MemoryStorage,
    partition: Arc<Partition>,
    /// Position in the log of the next entry to apply.
    next: usize,
}

struct World {
    setup: Setup,
    rng: StdRng,
    log: Vec<(PartitionCommand, Vec<u8>)>,
    replicas: Vec<Replica>,
    trace: blake3::Hasher,
    crashes: usize,
    installs: usize,
}

fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "simulated".into(),
        dimension: DIMENSION,
        metric: Metric::Cosine,
        index: IndexParameters {
            m: 4,
            ef_construction: 16,
            ..IndexParameters::new(42)
        },
        embedding_model: String::new(),
        decay: Decay::None,
    }
}

impl Replica {
    fn new() -> Self {
        let storage = MemoryStorage::new();
        let mut batch = Batch::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::create(shared, PARTITION, config(), SlotRange::ALL, &mut batch);
        storage
            .write(batch, Durability::Sync)
            .unwrap_or_else(|error| panic!("create: {error}"));
        Self {
            storage,
            partition,
            next: 0,
        }
    }

    fn run_jobs(&self, most: usize) {
        for _ in 0..most {
            let Some(job) = self.partition.next_job() else {
                return;
            };
            let linked = self.partition.run(&job);
            self.partition
                .commit(linked)
                .unwrap_or_else(|error| panic!("commit: {error}"));
        }
    }

    /// The process dies; the disk keeps all synced batches and the first `kept` of the others.
    fn restart(&mut self, kept: usize, index: Option<&[u8]>) {
        self.storage = self.storage.crash(kept);
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let mut index = index;
        let snapshot = index.as_mut().map(|bytes| bytes as &mut dyn std::io::Read);
        self.partition = Partition::open(shared, PARTITION, snapshot)
            .unwrap_or_else(|error| panic!("open after a crash: {error}"));
        self.next = (self.partition.sequence().0 - 1) as usize;
    }

    fn install(&mut self, snapshot: &[u8]) {
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let mut source = snapshot;
        self.partition = Partition::install(shared, PARTITION, &mut source, Batch::new())
            .unwrap_or_else(|error| panic!("install: {error}"));
        self.next = (self.partition.sequence().0 - 1) as usize;
    }
}

impl World {
    fn new(setup: Setup) -> Self {
        Self {
            setup,
            rng: StdRng::seed_from_u64(setup.seed),
            log: Vec::new(),
            replicas: (0..setup.replicas).map(|_| Replica::new()).collect(),
            trace: blake3::Hasher::new(),
            crashes: 0,
            installs: 0,
        }
    }

    fn note(&mut self, event: &str, numbers: [usize; 2]) {
        self.trace.update(event.as_bytes());
        numbers.iter().for_each(|number| {
            self.trace.update(&number.to_le_bytes());
        });
    }

    fn step(&mut self) {
        let chosen = self.rng.random_range(0..self.replicas.len());
        match self.rng.random_range(0..100) {
            0..=39 => self.propose(),
            40..=84 => self.apply(chosen),
            85..=92 => self.replicas[chosen].run_jobs(1),
            93..=96 => self.crash(chosen),
            97 => self.sync(chosen),
            _ => self.install(chosen),
        }
    }

    fn propose(&mut self) {
        let seen = Sequence(self.log.len() as u64 + 1);
        let command = workload::command(&mut self.rng, seen);
        let bytes = format!("{command:?}").into_bytes();
        self.note("propose", [self.log.len(), bytes.len()]);
        self.log.push((command, bytes));
    }

    fn apply(&mut self, chosen: usize) {
        let replica = &mut self.replicas[chosen];
        let Some((command, bytes)) = self.log.get(replica.next) else {
            return;
        };
        let applied = replica
            .partition
            .apply(command, bytes, Batch::new())
            .unwrap_or_else(|error| panic!("apply: {error}"));
        replica.next += 1;
        let outcomes = applied.outcomes.len();
        self.note("apply", [chosen, outcomes]);
    }

    fn sync(&mut self, chosen: usize) {
        let storage = &self.replicas[chosen].storage;
        storage
            .write(Batch::new(), Durability::Sync)
            .unwrap_or_else(|error| panic!("sync: {error}"));
    }

    fn crash(&mut self, chosen: usize) {
        let kept = self
            .rng
            .random_range(0..=self.replicas[chosen].storage.unsynced_batches());
        let mut index = Vec::new();
        let with_index = self.rng.random_bool(0.5);
        let replica = &mut self.replicas[chosen];
        if with_index {
            replica
                .partition
                .save_index(&mut index)
                .unwrap_or_else(|error| panic!("save the index: {error}"));
        }
        // The links may be newer than the records that survive: then they must not be used.
        replica.restart(kept, with_index.then_some(&index[..]));
        match self.setup.planted {
            Planted::Nothing => {}
            Planted::SkipsEntryAfterCrash => replica.next += 1,
            Planted::AppliesTwiceAfterCrash => replica.next = replica.next.saturating_sub(1),
        }
        self.crashes += 1;
        self.note("crash", [chosen, kept]);
    }

    fn install(&mut self, chosen: usize) {
        let source = self.rng.random_range(0..self.replicas.len());
        if self.replicas[source].next <= self.replicas[chosen].next {
            return;
        }
        let mut bytes = Vec::new();
        let snapshot = self.replicas[source].partition.snapshot();
        snapshot
            .unwrap_or_else(|error| panic!("snapshot: {error}"))
            .write_to(&mut bytes)
            .unwrap_or_else(|error| panic!("snapshot: {error}"));
        self.replicas[chosen].install(&bytes);
        self.installs += 1;
        self.note("install", [chosen, source]);
    }

    /// Faults are over: everyone applies the whole log, and a mark, and links all windows.
    fn settle(&mut self) -> Vec<String> {
        let mark = MarkId(u64::MAX);
        self.log
            .push((PartitionCommand::Mark { mark }, b"mark".to_vec()));
        for chosen in 0..self.replicas.len() {
            while self.replicas[chosen].next < self.log.len() {
                self.apply(chosen);
            }
            self.replicas[chosen].run_jobs(usize::MAX);
        }
        let states: Vec<String> = self
            .replicas
            .iter()
            .map(|replica| describe(replica, mark))
            .collect();
        for state in &states {
            self.trace.update(state.as_bytes());
        }
        let differs = |(number, state): (usize, &String)| {
            (*state != states[0])
                .then(|| format!("replica {number}: {state}, first: {}", states[0]))
        };
        states.iter().enumerate().filter_map(differs).collect()
    }
}

/// All digests of a replica, those at the mark, and those added up again from its records.
fn describe(replica: &Replica, mark: MarkId) -> String {
    let marked = replica
        .partition
        .marked(mark)
        .unwrap_or_else(|error| panic!("mark: {error}"));
    let (from_records, view) = replica
        .partition
        .recompute_digests()
        .unwrap_or_else(|error| panic!("recompute: {error}"));
    assert_eq!(
        from_records,
        view.digests(),
        "running digests differ from the records"
    );
    format!("{marked:?} {from_records:?}")
}

/// Runs a world to its end.
#[must_use]
pub fn run(setup: Setup) -> Report {
    let mut world = World::new(setup);
    for _ in 0..setup.steps {
        world.step();
    }
    let differences = world.settle();
    Report {
        trace: world.trace.finalize().to_hex().to_string(),
        entries: world.log.len(),
        crashes: world.crashes,
        installs: world.installs,
        differences,
    }
}
