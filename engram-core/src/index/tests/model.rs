//! Writer, workers and a reader of one small index, in orders that shuttle chooses: it changes
//! between them at every use of an atomic or a lock. A failing order is printed, and can be run again
//! with `shuttle::replay`.

use std::sync::{Arc, OnceLock};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::{Config, Runner, thread};

use super::queries::apply_shared;
use super::*;

/// Vectors that the log brings, several by most commands.
const INSERTS: usize = 70;
/// Parts of the log, in percent: applied before the threads start, and after which a generation
/// begins, which is linked while the next commands come.
const BEFORE: u64 = 30;
const RENEWED_AT: [u64; 2] = [50, 75];
const SEARCHES: usize = 12;
/// Orders that are tried: drawn evenly, and with a few changes of who goes first.
const ORDERS: usize = 600;
const CHANGES: usize = 4;

struct World {
    index: PartitionIndex,
    log: Vec<Command>,
    /// Vectors with the command that brings them; deaths with the command that kills.
    points: Vec<(u64, Vec<f32>)>,
    deaths: BTreeMap<VectorId, u64>,
    acknowledged: AtomicU64,
    is_over: AtomicBool,
}

fn small() -> IndexShape {
    let parameters = IndexParameters {
        m: 4,
        ef_construction: 6,
        ..parameters()
    };
    IndexShape::new(parameters, DIMENSION, Metric::L2)
}

impl World {
    fn new() -> Self {
        let log = log(77, INSERTS, 25);
        let (mut points, mut deaths) = (Vec::new(), BTreeMap::new());
        for (place, command) in (1_u64..).zip(&log) {
            let inserts = command.inserts.iter();
            points.extend(inserts.map(|(_, point)| (place, point.clone())));
            command.kills.iter().for_each(|id| {
                deaths.entry(*id).or_insert(place);
            });
        }
        Self {
            index: PartitionIndex::with_shape(small()),
            log,
            points,
            deaths,
            acknowledged: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// The command that ends this part of the log.
    fn at(&self, percent: u64) -> u64 {
        self.log.len() as u64 * percent / 100
    }

    fn apply(&self, places: std::ops::RangeInclusive<u64>) {
        for place in places {
            let command = &self.log[place as usize - 1];
            apply_shared(&self.index, place, command, &self.points);
            if RENEWED_AT.map(|percent| self.at(percent)).contains(&place) {
                let generation = self.index.renewed(Sequence(place));
                self.index.begin_generation(generation);
            }
            self.acknowledged.store(place, Ordering::Release);
        }
    }

    fn work(&self) {
        while let Some(job) = self.index.next_job() {
            self.index.commit(self.index.run(&job));
        }
    }

    /// What was acknowledged is found, what died before is not. What is asked for is being linked.
    fn search(&self) {
        let tail = self.index.tail() as usize;
        let before = self.acknowledged.load(Ordering::Acquire);
        let known = self.points.partition_point(|(place, _)| *place <= before);
        let wanted = known.saturating_sub(tail).min(known - 1);
        let hits = self
            .index
            .search(&self.points[wanted].1, 6, 64, &everything);
        let after = self.acknowledged.load(Ordering::Acquire) + 1;
        for hit in &hits {
            let died = self.deaths.get(&hit.id);
            assert!(died.is_none_or(|at| *at > before), "{} is dead", hit.id);
        }
        let id = VectorId(wanted as u64);
        let is_live = self.deaths.get(&id).is_none_or(|at| *at > after);
        let is_found = hits.iter().any(|hit| hit.id == id || hit.distance == 0.0);
        assert!(!is_live || is_found, "vector {id} was not found");
    }
}

/// What one thread alone makes of the log.
fn expected() -> (IndexPosition, TopologyDigest) {
    static EXPECTED: OnceLock<(IndexPosition, TopologyDigest)> = OnceLock::new();
    *EXPECTED.get_or_init(|| {
        let world = World::new();
        world.apply(1..=world.log.len() as u64);
        world.work();
        let sealed = world.index.sealed();
        (
            sealed,
            world.index.digest_at(sealed).expect("all is linked"),
        )
    })
}

fn all_at_once() {
    let expected = expected();
    let world = Arc::new(World::new());
    let before = world.at(BEFORE);
    world.apply(1..=before);
    world.work();
    let writer = Arc::clone(&world);
    let writer = thread::spawn(move || {
        writer.apply(before + 1..=writer.log.len() as u64);
        writer.is_over.store(true, Ordering::Release);
    });
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                while !world.is_over.load(Ordering::Acquire) {
                    world.work();
                    thread::yield_now();
                }
            })
        })
        .collect();
    let reader = Arc::clone(&world);
    let reader = thread::spawn(move || {
        for _ in 0..SEARCHES {
            reader.search();
        }
        let mut links = Vec::new();
        reader.index.save(&mut links).expect("memory takes it");
    });
    writer.join().expect("the writer ends");
    workers
        .into_iter()
        .for_each(|worker| worker.join().expect("a worker ends"));
    reader.join().expect("the reader ends");
    world.work();
    let sealed = world.index.sealed();
    let digest = world.index.digest_at(sealed).expect("all is linked");
    assert_eq!((sealed, digest), expected);
    let status = world.index.status();
    assert_eq!((status.generations, status.jobs_waiting), (1, 0));
}

fn run(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(all_at_once);
}

#[test]
fn any_order_is_one_topology_and_hides_nothing() {
    run(RandomScheduler::new(ORDERS));
}

#[test]
fn few_changes_of_turn_are_one_topology_and_hide_nothing() {
    run(PctScheduler::new(CHANGES, ORDERS));
}
