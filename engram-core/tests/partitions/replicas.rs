//! Replicas that were fed the same log have the same digests, whatever kernel they run, whether
//! they link at once or late, and wherever they crash, restart or are made from a snapshot.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{Numbers, config, forget, remember, write};
use engram_core::command::{Op, PartitionCommand};
use engram_core::index::TopologyDigest;
use engram_core::kernel::Kernel;
use engram_core::limits::MARKS_KEPT;
use engram_core::partition::{MarkDigests, Partition, PartitionOptions};
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{Decay, Embedding, MarkId, Metric, PartitionId, SlotRange};

const P: PartitionId = PartitionId(3);
const DIMENSION: u32 = 24;
const MEMORIES: usize = 1_300;

/// Inserts, then replacements and deaths until a second generation is under way, with marks.
fn log() -> (Vec<PartitionCommand>, u64) {
    let mut numbers = Numbers(42);
    let (mut log, mut counter, mut marks, mut next) = (Vec::new(), 0, 0, 0);
    while log.len() < 170 {
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..1 + numbers.below(30) {
            let fresh = next < MEMORIES && numbers.below(8) != 0;
            let n = if fresh {
                next
            } else {
                numbers.below(next.max(1))
            };
            next += usize::from(fresh);
            if !fresh && numbers.below(3) == 0 {
                ops.push(forget(n));
                continue;
            }
            let row = numbers.row(DIMENSION);
            let row = Embedding::new(row, DIMENSION, Metric::Cosine).expect("a direction");
            ops.push(remember(n, Some(row), Vec::new()));
        }
        counter += 1;
        log.push(write(counter, ops));
        if log.len() % 4 == 0 {
            marks += 1;
            log.push(PartitionCommand::Mark {
                mark: MarkId(marks),
            });
        }
    }
    marks += 1;
    log.push(PartitionCommand::Mark {
        mark: MarkId(marks),
    });
    (log, marks)
}

struct Replica {
    storage: MemoryStorage,
    partition: Arc<Partition>,
    options: PartitionOptions,
    /// Topologies at the marks, noted as soon as they are known: a generation takes its digests
    /// with it when it goes.
    noted: RefCell<BTreeMap<u64, TopologyDigest>>,
}

impl Replica {
    fn new(kernel: Kernel) -> Self {
        let options = PartitionOptions {
            kernel,
            ..PartitionOptions::default()
        };
        let storage = MemoryStorage::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let (config, slots) = (config(DIMENSION, Decay::None), SlotRange::ALL);
        let mut batch = Batch::new();
        let partition = Partition::create_with(shared, P, config, slots, &mut batch, options);
        storage.write(batch, Durability::Sync).expect("writes");
        Self {
            storage,
            partition,
            options,
            noted: RefCell::default(),
        }
    }

    fn note_topologies(&self) {
        let mut noted = self.noted.borrow_mut();
        for mark in 1.. {
            let Some(digests) = self.partition.marked(MarkId(mark)).expect("reads") else {
                return;
            };
            if let Some(topology) = digests.topology {
                let known = *noted.entry(mark).or_insert(topology);
                assert_eq!(known, topology, "the topology at mark {mark} changed");
            }
        }
    }

    fn apply_up_to(&self, log: &[PartitionCommand]) {
        for command in &log[self.partition.sequence().0 as usize - 1..] {
            let bytes = format!("{command:?}").into_bytes();
            self.partition
                .apply(command, &bytes, Batch::new())
                .expect("applies");
        }
    }

    fn run_jobs(&self, limit: usize) {
        self.note_topologies();
        for _ in 0..limit {
            let Some(job) = self.partition.next_job() else {
                return;
            };
            let linked = self.partition.run(&job);
            self.partition.commit(linked).expect("commits");
            self.note_topologies();
        }
    }

    fn restart(&mut self, index: Option<&[u8]>, lost: usize) {
        self.storage = self
            .storage
            .crash(self.storage.unsynced_batches().saturating_sub(lost));
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let mut source = index;
        let source = source
            .as_mut()
            .map(|source| source as &mut dyn std::io::Read);
        self.partition = Partition::open_with(shared, P, source, self.options).expect("opens");
    }

    fn move_away(&mut self) {
        let mut bytes = Vec::new();
        let snapshot = self.partition.snapshot().expect("saves");
        snapshot.write_to(&mut bytes).expect("writes");
        self.storage = MemoryStorage::new();
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let (source, batch) = (&mut bytes.as_slice(), Batch::new());
        self.partition =
            Partition::install_with(shared, P, source, batch, self.options).expect("installs");
    }

    fn marks(&self, last: u64) -> Vec<MarkDigests> {
        let first = last - MARKS_KEPT.min(last as usize) as u64 + 1;
        let mark = |mark| MarkDigests {
            topology: self.noted.borrow().get(&mark).copied(),
            ..self
                .partition
                .marked(MarkId(mark))
                .expect("reads")
                .expect("is kept")
        };
        (first..=last).map(mark).collect()
    }
}

/// Links everything as soon as it can be.
fn live(kernel: Kernel, log: &[PartitionCommand]) -> Replica {
    let replica = Replica::new(kernel);
    for end in 1..=log.len() {
        replica.apply_up_to(&log[..end]);
        replica.run_jobs(usize::MAX);
    }
    replica
}

/// Replays the whole log first.
fn replayed(kernel: Kernel, log: &[PartitionCommand]) -> Replica {
    let replica = Replica::new(kernel);
    replica.apply_up_to(log);
    replica.run_jobs(usize::MAX);
    replica
}

/// Crashes, restarts and moves at random points, with links of any age or none.
fn tormented(kernel: Kernel, log: &[PartitionCommand], seed: u64) -> Replica {
    let mut numbers = Numbers(seed);
    let mut replica = Replica::new(kernel);
    let mut saved = None;
    let mut end = 0;
    while end < log.len() {
        end = (end + 1 + numbers.below(9)).min(log.len());
        replica.apply_up_to(&log[..end]);
        replica.run_jobs(numbers.below(12));
        match numbers.below(5) {
            0 => {
                let mut index = Vec::new();
                replica.partition.save_index(&mut index).expect("saves");
                saved = Some(index);
            }
            1 => replica.restart(saved.as_deref(), numbers.below(3)),
            2 => replica.move_away(),
            _ => {}
        }
    }
    replica.apply_up_to(log);
    replica.run_jobs(usize::MAX);
    replica
}

fn assert_same(expected: &[MarkDigests], found: &[MarkDigests], what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (expected, found) in expected.iter().zip(found) {
        let without = |digests: &MarkDigests| MarkDigests {
            topology: None,
            ..*digests
        };
        assert_eq!(without(expected), without(found), "{what}");
        // A replica that was moved or that lost its links may never have had those of a generation.
        if let (Some(expected), Some(found)) = (expected.topology, found.topology) {
            assert_eq!(expected, found, "{what}");
        }
    }
    for marks in [expected, found] {
        let newest = marks.last().expect("a mark").position.generation;
        let held =
            |mark: &MarkDigests| mark.position.generation != newest || mark.topology.is_some();
        assert!(
            marks.iter().all(held),
            "{what}: the newest generation is held"
        );
    }
}

#[test]
fn replicas_of_one_log_are_equal() {
    let (log, marks) = log();
    let reference = live(Kernel::PORTABLE, &log);
    let expected = reference.marks(marks);
    let generations: Vec<u64> = expected
        .iter()
        .map(|mark| mark.position.generation)
        .collect();
    assert!(
        generations.contains(&1) && generations.contains(&2),
        "{generations:?}"
    );
    for kernel in Kernel::all_available() {
        let name = kernel.name();
        let found = live(kernel, &log).marks(marks);
        assert!(found.iter().all(|mark| mark.topology.is_some()), "{name}");
        assert_same(&expected, &found, &format!("live, {name}"));
        // Where the whole log comes before the first job, a generation may have been replaced before
        // its turn (`GENERATIONS_HELD_MAX`): the first one and the newest are always compared.
        let found = replayed(kernel, &log).marks(marks);
        let first = |mark: &&MarkDigests| mark.position.generation == 1;
        assert!(
            found
                .iter()
                .filter(first)
                .all(|mark| mark.topology.is_some()),
            "{name}"
        );
        assert_same(&expected, &found, &format!("replayed, {name}"));
        for seed in 0..3 {
            let found = tormented(kernel, &log, seed).marks(marks);
            assert_same(
                &expected,
                &found,
                &format!("tormented with seed {seed}, {name}"),
            );
        }
    }
}

/// The answers of a search with links are near to those of an exact scan.
#[test]
fn recall_finds_what_is_near() {
    use engram_core::partition::RecallQuery;
    let (log, _) = log();
    let replica = replayed(Kernel::detect(), &log);
    let mut numbers = Numbers(9);
    let (mut found, mut wanted) = (0, 0);
    for _ in 0..50 {
        let row = numbers.row(DIMENSION);
        let query = RecallQuery::new(&row, 10);
        let linked = replica.partition.recall(&query).expect("recalls");
        let all = RecallQuery {
            limit: 1_000,
            ..query
        };
        let exact = replica.partition.recall(&all).expect("recalls");
        wanted += 10;
        let near = |hit: &&engram_core::partition::RecallHit| exact.hits[..10].contains(hit);
        found += linked.hits.iter().filter(near).count();
        assert_eq!(linked.hits.len(), 10);
    }
    assert!(found * 100 >= wanted * 95, "{found} of {wanted}");
}
