//! The index as its callers see it: fed by a log, linked whenever, queried at any time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;
use crate::kernel::normalise;
use crate::types::Quantization;

mod churn;
mod codes;
mod crews;
mod filters;
mod frozen;
#[cfg(feature = "model")]
mod model;
mod product;
mod queries;
mod recovery;
mod wordnet;

const DIMENSION: u32 = 16;

/// One command of a log: what it kills and what it inserts.
#[derive(Clone, Debug, Default)]
struct Command {
    inserts: Vec<(MemoryHash, Vec<f32>)>,
    kills: Vec<VectorId>,
    /// Whether it asks for a generation, as a purge does.
    renews: bool,
}

fn parameters() -> IndexParameters {
    IndexParameters {
        algorithm: 1,
        m: 8,
        ef_construction: 40,
        level_seed: 11,
        quantization: Quantization::None,
    }
}

fn shape(kernel: Kernel, metric: Metric) -> IndexShape {
    IndexShape {
        kernel,
        ..IndexShape::new(parameters(), DIMENSION, metric)
    }
}

fn quantized(shape: IndexShape, quantization: Quantization) -> IndexShape {
    let parameters = IndexParameters {
        quantization,
        ..shape.parameters
    };
    IndexShape {
        parameters,
        ..shape
    }
}

fn owner(random: &mut impl Rng) -> MemoryHash {
    MemoryHash(random.random())
}

/// A point near one of a few centres.
fn clustered(random: &mut impl Rng) -> Vec<f32> {
    let centre = random.random_range(0..CENTRES);
    near(centre, DIMENSION, random)
}

const CENTRES: u8 = 20;

/// A point near a centre.
fn near(centre: u8, dimension: u32, random: &mut impl Rng) -> Vec<f32> {
    let near = |lane: u32| (f32::from(centre) * (lane + 1) as f32).sin();
    let mut point: Vec<f32> = (0..dimension)
        .map(|lane| near(lane) + random.random_range(-0.4..0.4))
        .collect();
    assert!(normalise(&mut point));
    point
}

/// A log of `inserts` vectors in commands of uneven size; `dying` percent of the vectors die, some
/// in the command that inserted them, some are exact duplicates of one before.
fn log(seed: u64, inserts: usize, dying: u32) -> Vec<Command> {
    log_of(seed, inserts, dying, &clustered)
}

/// As [`log`], of points that `make` gives.
fn log_of(
    seed: u64,
    inserts: usize,
    dying: u32,
    make: &dyn Fn(&mut StdRng) -> Vec<f32>,
) -> Vec<Command> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut commands = Vec::new();
    let mut points: Vec<Vec<f32>> = Vec::new();
    let mut live = Vec::new();
    while points.len() < inserts {
        let mut command = Command::default();
        for _ in 0..random.random_range(0..8) {
            let again = !points.is_empty() && random.random_range(0..100) < 5;
            let point = match again {
                true => points[random.random_range(0..points.len())].clone(),
                false => make(&mut random),
            };
            live.push(VectorId(points.len() as u64));
            points.push(point.clone());
            command.inserts.push((owner(&mut random), point));
        }
        for _ in 0..command.inserts.len() {
            if !live.is_empty() && random.random_range(0..100) < dying {
                // Often the newest: a death in the command that seals a window.
                let place = match random.random_range(0..3) {
                    0 => live.len() - 1,
                    _ => random.random_range(0..live.len()),
                };
                command.kills.push(live.swap_remove(place));
            }
        }
        commands.push(command);
    }
    commands
}

/// A partition in small: the index and what storage would hold.
struct Partition {
    index: PartitionIndex,
    sequence: Sequence,
    vectors: BTreeMap<VectorId, StoredVector>,
    deaths: BTreeMap<VectorId, Sequence>,
    generations: Vec<Generation>,
}

impl Partition {
    fn new(shape: IndexShape) -> Self {
        Self {
            index: PartitionIndex::with_shape(shape),
            sequence: Sequence(0),
            vectors: BTreeMap::new(),
            deaths: BTreeMap::new(),
            generations: vec![Generation::initial()],
        }
    }

    fn apply(&mut self, command: &Command) {
        self.sequence = self.sequence.next();
        let sequence = self.sequence;
        for (owner, components) in &command.inserts {
            let id = VectorId(self.vectors.len() as u64);
            self.index.insert(NewVector {
                id,
                owner: *owner,
                sequence,
                components,
            });
            let stored = StoredVector {
                owner: *owner,
                sequence,
                components: components.clone(),
            };
            self.vectors.insert(id, stored);
        }
        for id in &command.kills {
            self.index.kill(*id, sequence);
            self.deaths.entry(*id).or_insert(sequence);
        }
        let due = match command.renews {
            true => Some(self.index.renewed(sequence)),
            false => self.index.applied(sequence),
        };
        if let Some(generation) = due {
            let decoded = Generation::decode(&generation.encode()).expect("a generation");
            self.generations.push(decoded.clone());
            self.index.begin_generation(decoded);
        }
    }

    fn work(&self) -> usize {
        self.work_with(&Alone)
    }

    fn work_with(&self, crew: &dyn Crew) -> usize {
        work_off(&self.index, crew)
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.index.save(&mut bytes).expect("memory takes it");
        bytes
    }

    /// The index as a restart would have it.
    fn restart(&self, shape: IndexShape, snapshot: Option<&[u8]>) -> Rebuilt {
        let mut vectors = self
            .vectors
            .iter()
            .map(|(id, vector)| Ok((*id, vector.clone())));
        let mut deaths = self.deaths.iter().map(|(id, at)| Ok((*id, *at)));
        let mut bytes = snapshot;
        let snapshot = bytes.as_mut().map(|bytes| bytes as &mut dyn std::io::Read);
        let generations = self.generations.clone();
        PartitionIndex::rebuild(shape, generations, &mut vectors, &mut deaths, snapshot)
            .expect("the state of a partition")
    }

    fn live(&self) -> BTreeSet<VectorId> {
        self.vectors
            .keys()
            .copied()
            .filter(|id| !self.deaths.contains_key(id))
            .collect()
    }

    /// The digest of everything that the log has sealed.
    fn digest(&self) -> TopologyDigest {
        self.index
            .digest_at(self.index.sealed())
            .expect("all jobs are done")
    }
}

/// Does all jobs that wait.
fn work_off(index: &PartitionIndex, crew: &dyn Crew) -> usize {
    let mut jobs = 0;
    while let Some(job) = index.next_job() {
        index.commit(index.run_with(&job, crew));
        jobs += 1;
    }
    jobs
}

/// Applier, workers and queries share an index; jobs move between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<PartitionIndex>();
    shared::<Job>();
    shared::<LinkedWindow>();
};

fn everything(_: VectorId) -> bool {
    true
}

/// Kernels, threads, timing of jobs, restarts: one log, one topology.
fn check_one_topology(
    seed: u64,
    inserts: usize,
    dying: u32,
    metric: Metric,
    quantization: Quantization,
) {
    let log = log(seed, inserts, dying);
    let shape = |kernel, metric| quantized(shape(kernel, metric), quantization);
    let reference = {
        let mut late = Partition::new(shape(Kernel::PORTABLE, metric));
        log.iter().for_each(|command| late.apply(command));
        late.work();
        late
    };
    let sealed = reference.index.sealed();
    for (kernel, threads) in Kernel::all_available().into_iter().zip([2, 4, 8, 3]) {
        let shape = shape(kernel, metric);
        let mut live = Partition::new(shape);
        for command in &log {
            live.apply(command);
            live.work_with(&crews::Threads(threads));
        }
        assert_eq!(
            (live.index.sealed(), live.digest()),
            (sealed, reference.digest())
        );
        assert_eq!(live.generations, reference.generations);

        let rebuilt = live.restart(shape, None);
        assert!(matches!(rebuilt.snapshot, SnapshotUse::Absent));
        live.index = rebuilt.index;
        live.work();
        assert_eq!(
            (live.index.sealed(), live.digest()),
            (sealed, reference.digest())
        );
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut restarted = Partition::new(shape(Kernel::detect(), metric));
    for command in &log {
        restarted.apply(command);
        for _ in 0..random.random_range(0..4) {
            let Some(job) = restarted.index.next_job() else {
                break;
            };
            restarted.index.commit(restarted.index.run(&job));
        }
        if random.random_range(0..100) < 4 {
            let bytes = restarted.snapshot();
            let before = restarted.index.status();
            let rebuilt = restarted.restart(shape(Kernel::detect(), metric), Some(&bytes));
            assert!(
                matches!(rebuilt.snapshot, SnapshotUse::Used),
                "{:?}",
                rebuilt.snapshot
            );
            let after = rebuilt.index.status();
            assert_eq!(
                (
                    before.newest,
                    before.newest_sealed,
                    before.tail,
                    before.live
                ),
                (after.newest, after.newest_sealed, after.tail, after.live)
            );
            restarted.index = rebuilt.index;
        }
    }
    restarted.work();
    assert_eq!(
        (restarted.index.sealed(), restarted.digest()),
        (sealed, reference.digest())
    );
    check_reachable(&reference);
}

/// Every linked slot can be reached from the entry point on level 0.
fn check_reachable(partition: &Partition) {
    let (reached, linked) = partition.index.reachable();
    assert_eq!(reached, linked, "slots that no walk can reach");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn one_log_has_one_topology(
        seed: u64,
        inserts in 1_500_usize..3_500,
        dying in 0_u32..45,
        metric in prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)],
        quantization in prop_oneof![
            Just(Quantization::None),
            Just(Quantization::Int8),
            Just(Quantization::Int8OnDisk),
        ],
    ) {
        check_one_topology(seed, inserts, dying, metric, quantization);
    }

    #[test]
    fn small_logs_have_one_topology(seed: u64, inserts in 0_usize..60, dying in 0_u32..120) {
        check_one_topology(seed, inserts, dying, Metric::L2, Quantization::None);
    }
}
