//! `simulate mutants`: each planted bug must be caught, on a seed that passes without it.
//!
//! A seed is run in the small worlds of one log and of one partition first, then with a whole cluster. All bugs get
//! their first seed, then all that are left their second, and so on, so that the easy ones are known
//! soon and all processors work on the hard ones in the end. Nothing here knows one bug from another:
//! each seed is the seed of `simulate run`.

#[cfg(feature = "planted")]
use std::collections::BTreeMap;
#[cfg(feature = "planted")]
use std::fmt::Write as _;
#[cfg(feature = "planted")]
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

#[cfg(feature = "planted")]
use engram_simulation::plan::WorkloadKind;

use super::Mutants;

/// Runs between two words about what is not found yet.
#[cfg(feature = "planted")]
const PROGRESS_EVERY: usize = 50;

/// What came of one bug.
#[cfg(feature = "planted")]
struct Hunt {
    name: &'static str,
    breaks: &'static str,
    /// The first seed it gets.
    first: u64,
    /// Seeds given out so far.
    given: u64,
    /// Seeds that were run.
    tried: u64,
    /// Those of them in which the bug's site was met.
    met: u64,
    /// Those that fail without the bug too: they prove nothing.
    spoiled: u64,
    caught: Option<Catch>,
    /// Working time of its runs.
    took: Duration,
}

#[cfg(feature = "planted")]
struct Catch {
    seed: u64,
    invariant: String,
    words: String,
}

/// One run that is to be made: the bug's place in the list, and the seed.
#[cfg(feature = "planted")]
#[derive(Clone, Copy)]
struct Try {
    bug: usize,
    seed: u64,
}

/// What came of it.
#[cfg(feature = "planted")]
struct Tried {
    met: bool,
    /// The invariant that broke, and in which words.
    broken: Option<(String, String)>,
    /// It breaks without the bug, too.
    spoiled: bool,
    took: Duration,
}

#[cfg(not(feature = "planted"))]
pub fn run(_arguments: &Mutants, _time_limit: Duration) -> bool {
    eprintln!("this binary cannot plant bugs: build it with --features planted");
    false
}

#[cfg(feature = "planted")]
pub fn run(arguments: &Mutants, time_limit: Duration) -> bool {
    use engram_core::planted::REGISTRY;

    use super::pool::Began;
    use super::{Output, pool};

    let chosen = REGISTRY
        .iter()
        .filter(|bug| arguments.name.is_empty() || arguments.name.iter().any(|it| it == bug.name));
    let hunts: Vec<Hunt> = chosen.map(|bug| Hunt::new(bug, arguments.first)).collect();
    if hunts.len() < arguments.name.len() || hunts.is_empty() {
        eprintln!("not all of {:?} are planted bugs", arguments.name);
        return false;
    }
    let began = Began::now();
    let names: Vec<&'static str> = hunts.iter().map(|hunt| hunt.name).collect();
    let hunts = Mutex::new(hunts);
    let clean = Clean::default();
    let mut runs = 0_usize;
    let queue = Queue {
        hunts: &hunts,
        turn: 0,
        seeds: arguments.seeds,
        workload: arguments.workload,
        time_limit,
    };
    pool::each(
        queue,
        arguments.jobs,
        |one| attempt(names[one.bug], one.seed, &clean),
        |done| {
            let mut hunts = lock(&hunts);
            let hunt = &mut hunts[done.item.bug];
            match done.result {
                Ok(tried) => {
                    let words = hunt.take(done.item.seed, tried);
                    if let Some(words) = words {
                        let open = hunts.iter().filter(|hunt| hunt.caught.is_none()).count();
                        let elapsed = began.elapsed().as_secs_f64();
                        eprintln!("{elapsed:6.0} s, {open} left: {words}");
                    }
                }
                Err(panic) => eprintln!("{}: the simulation panicked: {panic}", hunt.name),
            }
            runs += 1;
            if runs.is_multiple_of(PROGRESS_EVERY) {
                eprintln!("{runs} runs; not found yet: {}", open_hunts(&hunts));
            }
            true
        },
    );
    let hunts = hunts.into_inner().unwrap_or_else(|held| held.into_inner());
    match arguments.output {
        Output::Table => print!("{}", table(&hunts, time_limit)),
        Output::Json => println!("{}", json(&hunts, time_limit)),
    }
    hunts.iter().all(|hunt| hunt.caught.is_some())
}

/// Those that are not found, each with the seeds that it was met in and those that it was tried in.
#[cfg(feature = "planted")]
fn open_hunts(hunts: &[Hunt]) -> String {
    let open = hunts.iter().filter(|hunt| hunt.caught.is_none());
    let open: Vec<String> = open
        .map(|hunt| format!("{} ({} of {})", hunt.name, hunt.met, hunt.tried))
        .collect();
    open.join(", ")
}

#[cfg(feature = "planted")]
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

#[cfg(feature = "planted")]
impl Hunt {
    fn new(bug: &engram_core::planted::Bug, first: u64) -> Self {
        Self {
            name: bug.name,
            breaks: bug.breaks,
            first,
            given: 0,
            tried: 0,
            met: 0,
            spoiled: 0,
            caught: None,
            took: Duration::ZERO,
        }
    }

    /// Notes a run; what to tell when it was a catch.
    fn take(&mut self, seed: u64, tried: Tried) -> Option<String> {
        self.tried += 1;
        self.met += u64::from(tried.met);
        self.took += tried.took;
        let (invariant, words) = tried.broken?;
        if tried.spoiled {
            self.spoiled += 1;
            return None;
        }
        // Two seeds may be under way at the same time: the lower one is the one it took.
        if self.caught.as_ref().is_some_and(|catch| catch.seed < seed) {
            return None;
        }
        let seeds = seed - self.first + 1;
        let short: String = words.chars().take(300).collect();
        let text = format!(
            "{}: {invariant} (seed {seed}), {seeds} seeds, {:.0} s\n    {short}",
            self.name,
            self.took.as_secs_f64()
        );
        self.caught = Some(Catch {
            seed,
            invariant,
            words,
        });
        Some(text)
    }

    /// Seeds until it was caught, or all that were tried.
    fn seeds(&self) -> u64 {
        let caught = self.caught.as_ref();
        let caught = caught.map(|catch| catch.seed - self.first + 1);
        caught.unwrap_or(self.tried)
    }
}

/// The runs to be made, bug after bug and seed after seed, until a bug is caught or given up.
#[cfg(feature = "planted")]
struct Queue<'a> {
    hunts: &'a Mutex<Vec<Hunt>>,
    turn: usize,
    seeds: u64,
    workload: Option<WorkloadKind>,
    time_limit: Duration,
}

#[cfg(feature = "planted")]
impl Queue<'_> {
    fn is_wanted(&self, seed: u64) -> bool {
        self.workload.is_none_or(|wanted| {
            let workloads = engram_simulation::swarm::plan(seed).workloads;
            workloads.iter().any(|one| one.kind == wanted)
        })
    }
}

#[cfg(feature = "planted")]
impl Iterator for Queue<'_> {
    type Item = Try;

    fn next(&mut self) -> Option<Try> {
        loop {
            let next = self.in_turn()?;
            if self.is_wanted(next.seed) {
                return Some(next);
            }
        }
    }
}

#[cfg(feature = "planted")]
impl Queue<'_> {
    fn in_turn(&mut self) -> Option<Try> {
        let mut hunts = lock(self.hunts);
        let open = |hunt: &Hunt| {
            hunt.caught.is_none() && hunt.given < self.seeds && hunt.took < self.time_limit
        };
        // Nobody gets the next seed before all others had theirs.
        let least = hunts
            .iter()
            .filter(|hunt| open(hunt))
            .map(|hunt| hunt.given)
            .min()?;
        let count = hunts.len();
        let mut turns = (0..count).map(|ahead| (self.turn + ahead) % count);
        let bug = turns.find(|bug| open(&hunts[*bug]) && hunts[*bug].given == least)?;
        self.turn = bug + 1;
        let seed = hunts[bug].first + hunts[bug].given;
        hunts[bug].given += 1;
        Some(Try { bug, seed })
    }
}

/// Whether seeds pass without any bug: each is run once, when somebody asks.
#[cfg(feature = "planted")]
#[derive(Default)]
struct Clean(Mutex<BTreeMap<(Where, u64), Arc<OnceLock<bool>>>>);

#[cfg(feature = "planted")]
impl Clean {
    fn passes(&self, world: Where, seed: u64) -> bool {
        let verdict = Arc::clone(lock(&self.0).entry((world, seed)).or_default());
        *verdict.get_or_init(|| ran(world, seed, None).broken.is_none())
    }
}

/// Where a seed is run.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Logs,
    Replicas,
    Overlays,
    Cluster,
}

/// A run as far as a hunt is concerned.
#[cfg(feature = "planted")]
struct Ran {
    met: bool,
    /// The invariant that broke, and in which words.
    broken: Option<(String, String)>,
}

#[cfg(feature = "planted")]
fn ran(world: Where, seed: u64, planted: Option<&'static str>) -> Ran {
    use engram_simulation::{logs, overlays, replicas};

    match world {
        Where::Logs => small(planted, "one log", || {
            logs::run(logs::Setup::of(seed)).violations
        }),
        Where::Replicas => small(planted, "replicas are equal", || {
            replicas::world::run(replicas::world::Setup::of(seed)).differences
        }),
        Where::Overlays => small(planted, "overlays", || {
            overlays::run(overlays::Setup::of(seed)).violations
        }),
        Where::Cluster => cluster(seed, planted),
    }
}

/// Runs a world of one partition, on this thread.
#[cfg(feature = "planted")]
fn small(planted: Option<&'static str>, invariant: &str, run: impl FnOnce() -> Vec<String>) -> Ran {
    use engram_core::planted::{activate, reached};

    let active = planted.map(|name| activate(name).unwrap_or_else(|error| panic!("{error}")));
    let violations = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let met = active.is_some() && reached() > 0;
    let first = violations.map_or_else(
        |panic| Some(super::pool::words(panic.as_ref())),
        |violations| violations.into_iter().next(),
    );
    Ran {
        met,
        broken: first.map(|words| (invariant.to_owned(), words)),
    }
}

#[cfg(feature = "planted")]
fn cluster(seed: u64, planted: Option<&str>) -> Ran {
    use engram_simulation::shrink::Reduction;

    use super::seeds::run_reduced;

    match std::panic::catch_unwind(|| run_reduced(&Reduction::whole(seed), planted)) {
        Ok(report) => {
            let first = report.violations.first();
            Ran {
                met: report.planted_met > 0,
                broken: first.map(|first| (first.invariant.to_owned(), first.to_string())),
            }
        }
        Err(_) => Ran {
            met: true,
            broken: Some(("the simulation's own asserts".to_owned(), String::new())),
        },
    }
}

#[cfg(feature = "planted")]
fn attempt(name: &'static str, seed: u64, clean: &Clean) -> Tried {
    let began = super::pool::Began::now();
    let mut tried = Tried {
        met: false,
        broken: None,
        spoiled: false,
        took: Duration::ZERO,
    };
    for world in [
        Where::Logs,
        Where::Replicas,
        Where::Overlays,
        Where::Cluster,
    ] {
        let ran = ran(world, seed, Some(name));
        tried.met |= ran.met;
        if ran.broken.is_some() {
            // Where its site was not met, the run was the one without the bug.
            let counts = ran.met && clean.passes(world, seed);
            tried.spoiled = !counts;
            tried.broken = ran.broken;
            if counts {
                break;
            }
        }
    }
    tried.took = began.elapsed();
    tried
}

#[cfg(feature = "planted")]
fn verdict(hunt: &Hunt, time_limit: Duration) -> String {
    match &hunt.caught {
        Some(catch) => format!("{} (seed {})", catch.invariant, catch.seed),
        None if hunt.took >= time_limit => "NOT FOUND: time limit".to_owned(),
        None => "NOT FOUND".to_owned(),
    }
}

#[cfg(feature = "planted")]
fn table(hunts: &[Hunt], time_limit: Duration) -> String {
    let mut text = String::new();
    let width = hunts.iter().map(|hunt| hunt.name.len()).max().unwrap_or(0);
    let _written = writeln!(
        text,
        "\n{:width$}  seeds  met in  spoiled  seconds  caught by; what is planted",
        "bug"
    );
    for hunt in hunts {
        let _written = writeln!(
            text,
            "{:width$}  {:5}  {:6}  {:7}  {:7.0}  {}\n{:width$}                                  {}",
            hunt.name,
            hunt.seeds(),
            hunt.met,
            hunt.spoiled,
            hunt.took.as_secs_f64(),
            verdict(hunt, time_limit),
            "",
            hunt.breaks
        );
    }
    let found = hunts.iter().filter(|hunt| hunt.caught.is_some());
    let most = found.clone().map(|hunt| hunt.seeds()).max();
    let _written = writeln!(
        text,
        "{} of {} planted bugs were found, the hardest after {} seeds\n\
         met in: seeds in which the bug's site was reached; spoiled: seeds that fail without the bug, \
         too, and prove nothing",
        found.count(),
        hunts.len(),
        most.unwrap_or(0)
    );
    text
}

#[cfg(feature = "planted")]
fn json(hunts: &[Hunt], time_limit: Duration) -> serde_json::Value {
    let hunts = hunts.iter().map(|hunt| {
        let catch = hunt.caught.as_ref();
        serde_json::json!({
            "bug": hunt.name,
            "breaks": hunt.breaks,
            "found": catch.is_some(),
            "invariant": catch.map(|catch| &catch.invariant),
            "seed": catch.map(|catch| catch.seed),
            "violation": catch.map(|catch| &catch.words),
            "seeds": hunt.seeds(),
            "met": hunt.met,
            "spoiled": hunt.spoiled,
            "seconds": hunt.took.as_secs_f64(),
            "out_of_time": catch.is_none() && hunt.took >= time_limit,
        })
    });
    hunts.collect()
}
