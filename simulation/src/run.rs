//! One run from its plan to its report.
//!
//! ```text
//! boot -> first memories -> safety phase: faults and workloads -> heal -> liveness phase: until all
//! is well -> audit: everything is read, every space is written -> well again -> judges
//! ```
//!
//! Watchers look on all the time; the first violation of one ends the run, since what comes after it
//! explains nothing. A panic in a node or client is a violation like any other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engram_client::ClientBuilder;
use engram_core::types::GroupId;
use parking_lot::Mutex;

use crate::history::{Outcome, Record, Stamp};
use crate::invariant::{
    self, Ended, Findings, Logs, Moment, Violation, Watcher, liveness, log_watchers, quick_watchers,
};
use crate::observe::LogObservation;
use crate::plan::{Host, Plan, WorkloadKind};
use crate::swarm::SAFETY_MIN;
use crate::thread;
use crate::workload::audit::{self, Question};
use crate::workload::{self, Actor, Shared, Task};
use crate::world::{Coverage, World};

/// Simulated time between two looks of the watchers, and of those that read logs.
const WATCH_EVERY: Duration = Duration::from_millis(100);
const LOGS_EVERY: Duration = Duration::from_millis(1_000);
/// Between two looks at all records of all replicas, which cost more than anything else.
const RECORDS_EVERY: Duration = Duration::from_secs(10);
/// Between two looks whether all is well.
const LIVENESS_EVERY: Duration = Duration::from_millis(250);
/// Simulated time in which the workloads' first memories must be there.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// Simulated time of the audit.
const AUDIT_LIMIT: Duration = Duration::from_secs(120);
/// How long clients wait for an answer.
const PATIENT: Duration = Duration::from_secs(5);
const HASTY: Duration = Duration::from_millis(1_000);
/// Clients that audit side by side, and the numbers of those that are no workload's.
const AUDITORS: usize = 4;
const PREPARERS_FROM: usize = 1_000;
const AUDITORS_FROM: usize = 2_000;
/// What a run needs at least to count.
const NODES_MIN: usize = 3;
const OPERATIONS_MIN: usize = 500;
const FAULTS_MIN: u64 = 5;
const FAULT_KINDS_MIN: usize = 2;

/// How a run went. Equal for equal plans.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub seed: u64,
    pub violations: Vec<Violation>,
    /// Hash of everything that happened, hexadecimal.
    pub trace: String,
    /// From the boot to the end.
    pub simulated: Duration,
    pub safety: Duration,
    /// From the heal until all was well.
    pub recovery: Duration,
    pub nodes: usize,
    pub operations: usize,
    /// By outcome: acknowledged, refused, unknown.
    pub outcomes: BTreeMap<&'static str, u64>,
    pub operations_by_kind: BTreeMap<&'static str, u64>,
    /// Faults that found something to harm, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    pub coverage: Coverage,
    /// How often the site of the planted bug was met.
    pub planted_met: u64,
    /// What the run lacks to count; empty when it counts.
    pub lacks: Vec<&'static str>,
}

impl Report {
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.violations.is_empty()
    }

    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// What to do besides running.
#[derive(Default)]
pub struct Options {
    /// Takes every event of the trace, one line each.
    pub trace: Option<Box<dyn std::io::Write + Send>>,
    /// Takes what clients asked for and were told when the run is over, one line each.
    pub history: Option<Box<dyn std::io::Write + Send>>,
    /// Name of a planted bug to activate.
    pub planted: Option<String>,
}

/// Runs a plan on a thread of its own.
///
/// # Panics
/// When the simulation itself, not what it simulates, panics.
#[must_use]
pub fn run(plan: &Plan, options: Options) -> Report {
    let plan = plan.clone();
    let seed = plan.seed;
    thread::on_own_thread(seed, move || {
        let _planted = options.planted.as_deref().map(plant);
        let report = Run::new(&plan, options.trace, options.history).run();
        Report {
            planted_met: planted_met(),
            ..report
        }
    })
}

#[cfg(feature = "planted")]
fn planted_met() -> u64 {
    engram_core::planted::reached()
}

#[cfg(not(feature = "planted"))]
fn planted_met() -> u64 {
    0
}

#[cfg(feature = "planted")]
fn plant(name: &str) -> engram_core::planted::Active {
    engram_core::planted::activate(name).unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(not(feature = "planted"))]
fn plant(name: &str) {
    panic!("{name} cannot be planted: this binary was built without the feature `planted`");
}

/// Reads logs through the world.
struct WorldLogs<'a>(&'a World);

impl Logs for WorldLogs<'_> {
    fn log(&self, host: Host, group: GroupId, range: Range<u64>) -> Vec<LogObservation> {
        self.0.log(host, group, range.start, range.end)
    }
}

type Sink = Box<dyn std::io::Write + Send>;

struct Run {
    plan: Plan,
    world: World,
    shared: Shared,
    /// Takes the history at the end.
    history: Option<Sink>,
    quick: Vec<Box<dyn Watcher>>,
    logs: Vec<Box<dyn Watcher>>,
    next_watch: Duration,
    next_logs: Duration,
    next_records: Duration,
    violations: Vec<Violation>,
    panics_seen: usize,
    safety: Duration,
    recovery: Duration,
}

/// The run is over early: there is a violation.
struct Over;

/// How a client bears with nodes that do not answer.
#[derive(Clone, Copy)]
struct Manner {
    deadline: Duration,
    /// Where it goes through any node, it asks once and takes what that node says.
    asks_once: bool,
}

const PATIENTLY: Manner = Manner {
    deadline: PATIENT,
    asks_once: false,
};

/// Some clients give up while others still try. Changes of edges fall back to one replica then, in the
/// middle of a cut and not after it. Of the others, the hasty ones take a node at its first
/// word where they go through any: a library that asks again finds out what that node did not know.
fn manner(kind: WorkloadKind, number: usize) -> Manner {
    let edges = kind == WorkloadKind::Edges;
    let is_hasty = match edges {
        true => !number.is_multiple_of(4),
        false => number % 4 == 3,
    };
    Manner {
        deadline: if is_hasty { HASTY } else { PATIENT },
        asks_once: is_hasty && !edges,
    }
}

impl Run {
    fn new(plan: &Plan, trace: Option<Sink>, history: Option<Sink>) -> Self {
        let mut world = World::new(plan);
        if let Some(trace) = trace {
            world.copy_trace(trace);
        }
        Self {
            plan: plan.clone(),
            world,
            shared: Shared::default(),
            history,
            quick: quick_watchers(),
            logs: log_watchers(),
            next_watch: Duration::ZERO,
            next_logs: Duration::ZERO,
            next_records: RECORDS_EVERY,
            violations: Vec::new(),
            panics_seen: 0,
            safety: Duration::ZERO,
            recovery: Duration::ZERO,
        }
    }

    fn run(mut self) -> Report {
        if self.phases().is_ok() {
            let records = self.shared.history.records();
            let audit = records.iter().find(|record| is_audit(record));
            let ended = Ended {
                records: &records,
                audit: audit.map_or(Stamp(u64::MAX), |record| record.invoked),
                // Damaged records read right again once their node was started anew.
                local_may_be_lost: false,
            };
            self.violations.extend(invariant::judge(&ended));
        }
        if let Some(mut history) = self.history.take() {
            for record in self.shared.history.records() {
                if let Err(error) = writeln!(history, "{}", record.line()) {
                    panic!("the history cannot be written: {error}");
                }
            }
        }
        self.report()
    }

    fn phases(&mut self) -> Result<(), Over> {
        if let Err(error) = self.world.start() {
            return Err(self.fail("boot", error.to_string()));
        }
        self.prepare()?;
        let stop = self.start_workloads();
        while self.world.safety_elapsed() < self.plan.safety {
            self.step()?;
        }
        self.safety = self.world.safety_elapsed();
        stop.store(true, Ordering::Relaxed);
        self.world.heal();
        let healed = self.world.now();
        self.wait_until_well(true)?;
        self.recovery = self.world.now() - healed;
        self.watch(true, true)?;
        self.audit()?;
        self.wait_until_well(false)?;
        self.watch(true, true)
    }

    /// One tick, and whatever is due to be looked at.
    fn step(&mut self) -> Result<(), Over> {
        self.world.step();
        if self.world.panics().len() > self.panics_seen {
            let panics = self.world.panics().join("; ");
            self.panics_seen = self.world.panics().len();
            return Err(self.fail("no panic", panics));
        }
        if self.world.now() >= self.next_watch {
            let with_logs = self.world.now() >= self.next_logs;
            self.next_watch = self.world.now() + WATCH_EVERY;
            if with_logs {
                self.next_logs = self.world.now() + LOGS_EVERY;
            }
            let with_records = self.world.now() >= self.next_records;
            if with_records {
                self.next_records = self.world.now() + RECORDS_EVERY;
            }
            return self.watch(with_logs, with_records);
        }
        Ok(())
    }

    fn watch(&mut self, with_logs: bool, with_records: bool) -> Result<(), Over> {
        let at = self.world.now();
        let nodes = match with_records {
            true => self.world.observe_records(),
            false => self.world.observe(),
        };
        let moment = Moment {
            at,
            nodes: &nodes,
            logs: &WorldLogs(&self.world),
        };
        let logs = self.logs.iter_mut().filter(|_| with_logs);
        for watcher in self.quick.iter_mut().chain(logs) {
            let name = watcher.name();
            watcher.watch(&moment, &mut Findings::new(name, at, &mut self.violations));
        }
        if self.violations.is_empty() {
            Ok(())
        } else {
            Err(Over)
        }
    }

    fn fail(&mut self, invariant: &'static str, what: String) -> Over {
        let at = self.world.now();
        self.violations.push(Violation {
            invariant,
            at,
            what,
        });
        Over
    }

    // ---- phases -------------------------------------------------------------------------------

    fn actor(&mut self, number: usize, manner: Manner, pause_max: Duration) -> Actor {
        let setup = |builder: ClientBuilder| {
            builder
                .session(true)
                .deadline(manner.deadline)
                .attempt_timeout(Duration::from_secs(2))
        };
        let context = self.world.client_with(number, number, setup);
        let unrouted = |builder| {
            let builder = setup(builder).routing(false);
            match manner.asks_once {
                true => builder.retry_budget(0),
                false => builder,
            }
        };
        let through = (0..self.plan.nodes)
            .map(|node| self.world.client_with(number, node, unrouted).client)
            .collect();
        Actor::new(context, through, self.shared.clone(), pause_max)
    }

    fn prepare(&mut self) -> Result<(), Over> {
        for (number, workload) in self.plan.workloads.clone().into_iter().enumerate() {
            let number = PREPARERS_FROM + number;
            let actor = self.actor(number, PATIENTLY, Duration::ZERO);
            let work = workload::prepare(actor, workload.kind.name(), workload.kind);
            self.world.spawn_client(number, work);
        }
        let begun = self.world.now();
        while self.world.client_tasks() > 0 {
            if self.world.now() - begun > PREPARE_LIMIT {
                let what = "the workloads' first memories could not be written".to_owned();
                return Err(self.fail("liveness", what));
            }
            self.step()?;
        }
        self.world
            .dismiss_clients(PREPARERS_FROM..=PREPARERS_FROM + self.plan.workloads.len());
        Ok(())
    }

    fn start_workloads(&mut self) -> Arc<AtomicBool> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut number = 0;
        for workload in self.plan.workloads.clone() {
            let name = workload.kind.name();
            let space = self.plan.spaces.iter().find(|space| space.name == name);
            let Some(space) = space.cloned() else {
                continue;
            };
            for _ in 0..workload.clients {
                let actor = self.actor(number, manner(workload.kind, number), workload.pause_max);
                let task = Task {
                    kind: workload.kind,
                    space: space.clone(),
                    operations: workload.operations,
                    local_percent: workload.local_percent,
                };
                let work = workload::run(actor, task, Arc::clone(&stop));
                self.world.spawn_client(number, work);
                number += 1;
            }
        }
        stop
    }

    /// Steps until nothing is wrong any more. After the faults, clients that still wait for an
    /// answer get it or their deadline first.
    fn wait_until_well(&mut self, after_faults: bool) -> Result<(), Over> {
        let begun = self.world.now();
        let mut next = begun;
        let mut complaints = Vec::new();
        while self.world.now() - begun < self.plan.liveness {
            self.step()?;
            if self.world.now() < next {
                continue;
            }
            next = self.world.now() + LIVENESS_EVERY;
            complaints = liveness::complaints(&self.world.observe(), self.world.nodes());
            if self.world.client_tasks() > 0 {
                complaints.push("clients still wait for answers".into());
            }
            if complaints.is_empty() {
                return Ok(());
            }
        }
        let when = if after_faults {
            "the faults"
        } else {
            "the audit"
        };
        let limit = self.plan.liveness;
        let failures: Vec<String> = (0..self.world.nodes())
            .filter_map(|host| self.world.failure(Host(host)).map(str::to_owned))
            .collect();
        let what = format!(
            "{limit:?} after {when}: {}; processes that ended: {failures:?}",
            complaints.join("; ")
        );
        Err(self.fail("liveness", what))
    }

    fn audit(&mut self) -> Result<(), Over> {
        let questions = audit::questions(&self.shared.history.records(), &self.plan.spaces);
        let unanswered: Arc<Mutex<Vec<Question>>> = Arc::default();
        // Writes first: what is read must not change under the auditors.
        let is_write = |question: &Question| matches!(question, Question::Write { .. });
        let (writes, reads): (Vec<_>, Vec<_>) = questions.into_iter().partition(is_write);
        for questions in [writes, reads] {
            for auditor in 0..AUDITORS {
                let share = questions.iter().skip(auditor).step_by(AUDITORS);
                let share: Vec<Question> = share.cloned().collect();
                let number = AUDITORS_FROM + auditor;
                let actor = self.actor(number, PATIENTLY, Duration::ZERO);
                let noted = Arc::clone(&unanswered);
                self.world.spawn_client(number, async move {
                    let left = Box::pin(audit::ask(actor, share)).await;
                    noted.lock().extend(left);
                });
            }
            let begun = self.world.now();
            while self.world.client_tasks() > 0 {
                if self.world.now() - begun > AUDIT_LIMIT {
                    let what = format!("the audit did not end within {AUDIT_LIMIT:?}");
                    return Err(self.fail("liveness", what));
                }
                self.step()?;
            }
        }
        let unanswered = std::mem::take(&mut *unanswered.lock());
        if let Some(first) = unanswered.first() {
            let records = self.shared.history.records();
            let last = records.iter().rev().find(|record| !record.is_acked());
            let what = format!(
                "{} questions of the audit were not answered, among them {first:?}; the last that \
                 failed: {}",
                unanswered.len(),
                last.map_or_else(String::new, Record::line)
            );
            return Err(self.fail("liveness", what));
        }
        Ok(())
    }

    // ---- report -------------------------------------------------------------------------------

    fn report(self) -> Report {
        let records = self.shared.history.records();
        let of_workloads = records.iter().filter(|record| is_of_workload(record));
        let (mut outcomes, mut kinds, mut operations) = (BTreeMap::new(), BTreeMap::new(), 0);
        for record in of_workloads {
            operations += 1;
            *kinds.entry(record.op.kind()).or_default() += 1;
            *outcomes.entry(outcome_name(&record.outcome)).or_default() += 1;
        }
        let faults = self.world.faults().clone();
        let lacks = self.lacks(operations, &faults);
        Report {
            seed: self.plan.seed,
            trace: self.world.trace(),
            simulated: self.world.now(),
            safety: self.safety,
            recovery: self.recovery,
            nodes: self.world.nodes(),
            operations,
            outcomes,
            operations_by_kind: kinds,
            faults,
            coverage: self.world.coverage(),
            planted_met: 0,
            lacks,
            violations: self.violations,
        }
    }

    fn lacks(&self, operations: usize, faults: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
        let needs = [
            (self.world.nodes() >= NODES_MIN, "3 nodes"),
            (self.safety >= SAFETY_MIN, "60 simulated seconds"),
            (operations >= OPERATIONS_MIN, "500 operations"),
            (faults.values().sum::<u64>() >= FAULTS_MIN, "5 faults"),
            (faults.len() >= FAULT_KINDS_MIN, "faults of 2 kinds"),
            (self.recovery > Duration::ZERO, "a liveness phase"),
        ];
        let lacking = needs.iter().filter(|(has, _)| !has);
        lacking.map(|(_, what)| *what).collect()
    }
}

fn is_audit(record: &Record) -> bool {
    record.client.0 as usize >= AUDITORS_FROM
}

fn is_of_workload(record: &Record) -> bool {
    (record.client.0 as usize) < PREPARERS_FROM
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Acked { .. } => "acknowledged",
        Outcome::Refused(_) => "refused",
        Outcome::Unknown(_) => "unknown",
    }
}
