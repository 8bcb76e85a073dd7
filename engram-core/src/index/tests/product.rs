//! One log, one topology: the full product of threads, kernels and ways to the end of the log.

use std::fmt;

use super::crews::Threads;
use super::*;

/// Memories that a log of the product inserts; about a fifth of them die.
const MEMORIES: usize = 20_000;
const THREADS: [usize; 4] = [1, 2, 4, 8];
/// Points of the log at which the reference saves its links, in percent of the commands.
const SAVED_AT: [usize; 3] = [30, 65, 90];
/// Restarts of a run, while the log is applied.
const RESTARTS: usize = 4;

/// How an index comes to the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It links as commands come.
    Live,
    /// All commands first, then all jobs.
    Replayed,
    /// From links saved earlier, and the jobs since.
    Saved,
    /// From the base of the newest generation and what came after.
    Rebuilt,
    /// Restarted at random points, jobs done or not, links saved or not.
    Restarted,
}

const WAYS: [Way; 5] = [
    Way::Live,
    Way::Replayed,
    Way::Saved,
    Way::Rebuilt,
    Way::Restarted,
];

/// One cell of the product.
#[derive(Clone, Copy)]
struct Run {
    threads: usize,
    kernel: Kernel,
    way: Way,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            threads,
            kernel,
            way,
        } = self;
        write!(f, "{threads} threads, {}, {way:?}", kernel.name())
    }
}

/// What all runs are compared with: one live run on the portable kernel, alone.
struct Reference {
    seed: u64,
    shape: IndexShape,
    log: Vec<Command>,
    partition: Partition,
    /// Links as they were at [`SAVED_AT`], some of the jobs not done.
    saved: Vec<Vec<u8>>,
}

fn shape_of(dimension: u32, quantization: Quantization) -> IndexShape {
    let parameters = IndexParameters {
        m: 6,
        ef_construction: 12,
        ..parameters()
    };
    let shape = IndexShape::new(parameters, dimension, Metric::Cosine);
    quantized(shape, quantization)
}

/// A log with three generations: a tenth of what lives dies at once after the middle of it, and
/// near its end a purge asks for one.
fn product_log(seed: u64, dimension: u32) -> Vec<Command> {
    let make = |random: &mut StdRng| {
        let centre = random.random_range(0..CENTRES);
        near(centre, dimension, random)
    };
    let mut log = log_of(seed, MEMORIES, 9, &make);
    let burst = log.len() * 6 / 10;
    let before = log[..burst].iter().map(|command| command.inserts.len());
    let inserted = before.sum::<usize>() as u64;
    let mut random = StdRng::seed_from_u64(seed ^ 1);
    log[burst].kills = (0..inserted)
        .filter(|_| random.random_range(0..10) == 0)
        .map(VectorId)
        .collect();
    let purge = log.len() * 95 / 100;
    log[purge].renews = true;
    log
}

impl Reference {
    fn new(seed: u64, shape: IndexShape) -> Self {
        let log = product_log(seed, shape.dimension);
        let shape = IndexShape {
            kernel: Kernel::PORTABLE,
            ..shape
        };
        let mut partition = Partition::new(shape);
        let mut saved = Vec::new();
        let at = SAVED_AT.map(|percent| log.len() * percent / 100);
        for (place, command) in log.iter().enumerate() {
            partition.apply(command);
            // Some windows wait whenever links are saved.
            if place % 100 == 0 {
                partition.work();
            }
            if at.contains(&place) {
                saved.push(partition.snapshot());
            }
        }
        partition.work();
        assert!(partition.generations.len() > 2, "generations have ended");
        let (inserted, dead) = (partition.vectors.len(), partition.deaths.len());
        assert!(inserted >= MEMORIES && dead * 10 > inserted, "{dead} died");
        check_reachable(&partition);
        Self {
            seed,
            shape,
            log,
            partition,
            saved,
        }
    }

    fn check(&self, run: Run) {
        let shape = IndexShape {
            kernel: run.kernel,
            ..self.shape
        };
        let crew = Threads(run.threads);
        let index = match run.way {
            Way::Live => self.applied(shape, &crew, true),
            Way::Replayed => self.applied(shape, &crew, false),
            Way::Saved => self.restored(shape, run),
            Way::Rebuilt => self.partition.restart(shape, None).index,
            Way::Restarted => self.restarted(shape, run),
        };
        work_off(&index, &crew);
        let sealed = self.partition.index.sealed();
        assert_eq!(index.sealed(), sealed, "seed {}: {run}", self.seed);
        let (expected, actual) = (self.partition.digest(), index.digest_at(sealed));
        assert_eq!(actual, Some(expected), "seed {}: {run}", self.seed);
    }

    fn applied(&self, shape: IndexShape, crew: &dyn Crew, is_live: bool) -> PartitionIndex {
        let mut partition = Partition::new(shape);
        for command in &self.log {
            partition.apply(command);
            if is_live {
                partition.work_with(crew);
            }
        }
        assert_eq!(partition.generations, self.partition.generations);
        partition.index
    }

    /// Each number of threads begins with other links.
    fn restored(&self, shape: IndexShape, run: Run) -> PartitionIndex {
        let saved = &self.saved[run.threads % self.saved.len()];
        let rebuilt = self.partition.restart(shape, Some(saved));
        let usage = &rebuilt.snapshot;
        assert!(matches!(usage, SnapshotUse::Used), "{run}: {usage:?}");
        rebuilt.index
    }

    fn restarted(&self, shape: IndexShape, run: Run) -> PartitionIndex {
        let mut random = StdRng::seed_from_u64(self.seed ^ run.threads as u64);
        let at: BTreeSet<usize> = (0..RESTARTS)
            .map(|_| random.random_range(0..self.log.len()))
            .collect();
        let mut partition = Partition::new(shape);
        let mut saved: Option<Vec<u8>> = None;
        for (place, command) in self.log.iter().enumerate() {
            partition.apply(command);
            for _ in 0..random.random_range(0..3) {
                let Some(job) = partition.index.next_job() else {
                    break;
                };
                let linked = partition.index.run_with(&job, &Threads(run.threads));
                if random.random_range(0..20) > 0 {
                    partition.index.commit(linked);
                }
            }
            if at.contains(&place) {
                // Links of now, of the restart before, or none.
                match random.random_range(0..3) {
                    0 => saved = None,
                    1 => {}
                    _ => saved = Some(partition.snapshot()),
                }
                partition.index = partition.restart(shape, saved.as_deref()).index;
            }
        }
        partition.index
    }
}

fn kernels(name: &str) -> Vec<Kernel> {
    let mut kernels = Kernel::all_available();
    kernels.retain(|kernel| kernel.name() == name);
    if kernels.is_empty() {
        println!("skipped: this CPU has no {name}");
    }
    kernels
}

fn check_kernel(name: &str, seed: u64) {
    for kernel in kernels(name) {
        let reference = Reference::new(seed, shape_of(DIMENSION, Quantization::None));
        for way in WAYS {
            for threads in THREADS {
                reference.check(Run {
                    threads,
                    kernel,
                    way,
                });
            }
        }
    }
}

/// Twenty runs in which each pair of a number of threads, a kernel and a way occurs.
fn check_pairs(reference: &Reference, kernels: &[Kernel]) {
    for (row, way) in WAYS.into_iter().enumerate() {
        for (column, threads) in THREADS.into_iter().enumerate() {
            let kernel = kernels[(row + column) % kernels.len()];
            reference.check(Run {
                threads,
                kernel,
                way,
            });
        }
    }
}

/// The reference is made on the portable kernel for each of the tests, so that together they are
/// the product.
fn one_case() -> ProptestConfig {
    ProptestConfig {
        cases: 1,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(one_case())]
    #[test]
    fn one_topology_on_the_portable_kernel(seed: u64) {
        check_kernel("portable", seed);
    }

    #[test]
    fn one_topology_on_avx2(seed: u64) {
        check_kernel("avx2", seed);
    }

    #[test]
    fn one_topology_on_avx512(seed: u64) {
        check_kernel("avx512", seed);
    }

    #[test]
    fn codes_have_one_topology_on_pairs_of_all(seed: u64) {
        let reference = Reference::new(seed, shape_of(DIMENSION, Quantization::Int8));
        check_pairs(&reference, &Kernel::all_available());
    }

    #[test]
    #[ignore = "takes minutes: make test-long"]
    fn vectors_of_384_have_one_topology_on_pairs_of_all(seed: u64) {
        for quantization in [Quantization::None, Quantization::Int8] {
            let reference = Reference::new(seed, shape_of(384, quantization));
            check_pairs(&reference, &Kernel::all_available());
        }
    }
}
