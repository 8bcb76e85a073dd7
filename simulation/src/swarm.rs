//! From a seed to a plan: each draws its own sizes, timeouts, weather, faults and workloads, and
//! each uses only some of the kinds of faults, since one that happens all the time hides what
//! others would show (swarm testing).
//!
//! What must hold: the same seed gives the same plan for ever; no plan breaks what the promises
//! presuppose. What was synced on a majority stays there: faults stop processes, forget what was not
//! synced and cut links, but none destroys synced data of more than a minority.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

use crate::plan::{
    CutOff, DiskPlan, Fault, FaultEvent, Host, NetworkPlan, NodePlan, Plan, SpacePlan,
    WorkloadKind, WorkloadPlan,
};

/// What a run needs at least to count (see [`crate::run`]).
pub const SAFETY_MIN: Duration = Duration::from_secs(60);
/// Bound on the time until all is well after the faults.
const LIVENESS: Duration = Duration::from_secs(60);
/// No fault begins before: the workloads' first memories are written then.
const FAULTS_FROM: Duration = Duration::from_secs(4);
/// Operations of all clients together, roughly. Some of them wait out a fault.
const OPERATIONS: u32 = 800;
/// Workloads of one seed: each brings groups of its own, whose upkeep is most of what a run costs.
const WORKLOADS: std::ops::RangeInclusive<usize> = 2..=4;
/// Nodes that may join in one run.
const JOINS_MAX: usize = 2;

/// Kinds of faults that a seed chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crash,
    CrashAtWrite,
    CrashAtFile,
    Restart,
    Pause,
    Cut,
    CutOneWay,
    Clog,
    Reset,
    Weather,
    SlowDisk,
    FullDisk,
    FailedSync,
    CorruptRecord,
    /// All nodes crash at once.
    PowerCut,
    ClockJump,
    Join,
    Transfer,
    Move,
    CancelMoves,
    Drain,
    Rebalance,
}

const KINDS: [Kind; 22] = [
    Kind::Crash,
    Kind::CrashAtWrite,
    Kind::CrashAtFile,
    Kind::Restart,
    Kind::Pause,
    Kind::Cut,
    Kind::CutOneWay,
    Kind::Clog,
    Kind::Reset,
    Kind::Weather,
    Kind::SlowDisk,
    Kind::FullDisk,
    Kind::FailedSync,
    Kind::CorruptRecord,
    Kind::PowerCut,
    Kind::ClockJump,
    Kind::Join,
    Kind::Transfer,
    Kind::Move,
    Kind::CancelMoves,
    Kind::Drain,
    Kind::Rebalance,
];

/// The plan of a seed.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut hash = blake3::Hasher::new();
    hash.update(b"plan").update(&seed.to_le_bytes());
    let mut rng = StdRng::from_seed(*hash.finalize().as_bytes());
    let rng = &mut rng;
    let nodes = *[3, 3, 3, 4, 5, 5].choose(rng).unwrap_or(&3);
    let tick = Duration::from_millis(*[2, 5, 5, 10].choose(rng).unwrap_or(&5));
    let safety = SAFETY_MIN + Duration::from_secs(rng.random_range(0..=15));
    let network = draw_network(rng, tick);
    let workloads = draw_workloads(rng, safety);
    Plan {
        seed,
        nodes,
        tick,
        safety,
        liveness: LIVENESS,
        network,
        disk: draw_disk(rng),
        options: draw_options(rng),
        clock_offsets: draw_offsets(rng, nodes),
        spaces: workloads
            .iter()
            .map(|one| draw_space(rng, one.kind, nodes))
            .collect(),
        faults: draw_faults(rng, nodes, safety, network),
        workloads,
        spread_attempt_wait: draw_attempt_wait(rng, network),
    }
}

fn millis(rng: &mut StdRng, range: std::ops::RangeInclusive<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

fn draw_network(rng: &mut StdRng, tick: Duration) -> NetworkPlan {
    let delay_max = *[5, 10, 20, 40].choose(rng).unwrap_or(&10);
    let share = |rng: &mut StdRng| *[0.0, 0.0, 0.01, 0.05].choose(rng).unwrap_or(&0.0);
    NetworkPlan {
        delay_min: tick,
        delay_max: tick + millis(rng, 1..=delay_max),
        loss: share(rng),
        duplicates: share(rng),
        reordered: share(rng),
    }
}

/// As in production, or about as long as an answer takes.
fn draw_attempt_wait(rng: &mut StdRng, network: NetworkPlan) -> Duration {
    match rng.random_range(0..3) {
        0 => Duration::from_millis(1_000),
        1 => network.delay_max * 2,
        _ => network.delay_min * 2 + network.delay_max,
    }
}

fn draw_disk(rng: &mut StdRng) -> DiskPlan {
    let sync_min = Duration::from_micros(rng.random_range(50..=2_000));
    DiskPlan {
        sync_min,
        sync_max: sync_min + Duration::from_micros(rng.random_range(0..=10_000)),
        slow: *[0.0, 0.0, 0.001, 0.01].choose(rng).unwrap_or(&0.0),
    }
}

/// Short logs, so that replicas that were away need a snapshot; and often so short a patience
/// with nodes that are away that they find their replicas elsewhere when they come back.
fn draw_options(rng: &mut StdRng) -> NodePlan {
    NodePlan {
        snapshot_every: *[20, 50, 100, 400].choose(rng).unwrap_or(&50),
        keep: *[2, 10, 50].choose(rng).unwrap_or(&10),
        heartbeat: Duration::from_millis(*[250, 250, 500].choose(rng).unwrap_or(&250)),
        marks_before_ack: rng.random_bool(0.3),
        replace_after: Duration::from_secs(*[600, 600, 6, 6].choose(rng).unwrap_or(&600)),
    }
}

fn draw_offsets(rng: &mut StdRng, nodes: usize) -> Vec<i64> {
    let reach = *[0, 0, 50, 2_000, 3_600_000].choose(rng).unwrap_or(&0);
    (0..nodes)
        .map(|_| rng.random_range(-reach..=reach))
        .collect()
}

/// [`WORKLOADS`]; together about [`OPERATIONS`] in a safety phase.
fn draw_workloads(rng: &mut StdRng, safety: Duration) -> Vec<WorkloadPlan> {
    let mut kinds = WorkloadKind::ALL.to_vec();
    kinds.shuffle(rng);
    kinds.truncate(rng.random_range(WORKLOADS));
    let clients: Vec<u32> = kinds.iter().map(|_| rng.random_range(2..=4)).collect();
    let operations = OPERATIONS / clients.iter().sum::<u32>();
    // The pause is half of its greatest length on average.
    let pause_max = (safety / operations).mul_f64(1.4);
    kinds
        .into_iter()
        .zip(clients)
        .map(|(kind, clients)| WorkloadPlan {
            kind,
            clients,
            operations,
            pause_max,
            local_percent: *[10, 25, 25, 70].choose(rng).unwrap_or(&25),
        })
        .collect()
}

/// A space of its own for each workload, by whose name it goes.
fn draw_space(rng: &mut StdRng, kind: WorkloadKind, nodes: usize) -> SpacePlan {
    let partitions = match kind {
        WorkloadKind::Spread => rng.random_range(2..=4),
        _ => rng.random_range(1..=2),
    };
    let replicas = if nodes >= 5 && rng.random_bool(0.2) {
        5
    } else {
        3
    };
    SpacePlan {
        name: kind.name().to_owned(),
        partitions,
        replicas,
        dimension: rng.random_range(2..=12),
    }
}

// ---- faults ---------------------------------------------------------------------------------

fn draw_faults(
    rng: &mut StdRng,
    nodes: usize,
    safety: Duration,
    network: NetworkPlan,
) -> Vec<FaultEvent> {
    let mut kinds = KINDS.to_vec();
    kinds.shuffle(rng);
    kinds.truncate(rng.random_range(3..=KINDS.len()));
    let count = match rng.random_range(0..3) {
        0 => rng.random_range(8..=12),
        1 => rng.random_range(12..=20),
        _ => rng.random_range(20..=40),
    };
    let mut joins = 0;
    let mut faults = Vec::new();
    for number in 0..count {
        // Each chosen kind once, then any of them.
        let kind = match kinds.get(number) {
            Some(kind) => *kind,
            None => *kinds.choose(rng).unwrap_or(&Kind::Crash),
        };
        let kind = match kind {
            Kind::Join if joins == JOINS_MAX => Kind::Crash,
            kind => kind,
        };
        joins += usize::from(kind == Kind::Join);
        let latest = safety.saturating_sub(Duration::from_secs(2));
        let at = millis(
            rng,
            FAULTS_FROM.as_millis() as u64..=latest.as_millis() as u64,
        );
        if kind == Kind::PowerCut {
            let down = millis(rng, 50..=2_000);
            let crash = |host| Fault::Crash { host, down };
            let all = (0..nodes).map(|host| crash(Host(host)));
            faults.extend(all.map(|fault| FaultEvent { at, fault }));
        } else {
            let fault = draw_fault(rng, kind, nodes, network);
            faults.push(FaultEvent { at, fault });
        }
    }
    faults.sort_by_key(|event| event.at);
    faults
}

/// Most faults are short; some outlast every timeout.
fn draw_length(rng: &mut StdRng) -> Duration {
    match rng.random_range(0..4) {
        0 => millis(rng, 50..=500),
        1 | 2 => millis(rng, 500..=4_000),
        _ => millis(rng, 4_000..=15_000),
    }
}

fn draw_fault(rng: &mut StdRng, kind: Kind, nodes: usize, network: NetworkPlan) -> Fault {
    let host = Host(rng.random_range(0..nodes));
    let length = draw_length(rng);
    match kind {
        Kind::Crash | Kind::PowerCut => {
            // Now and then it is back so soon that hardly anybody notices.
            let down = match rng.random_bool(0.25) {
                true => millis(rng, 1..=30),
                false => length,
            };
            Fault::Crash { host, down }
        }
        Kind::CrashAtWrite => Fault::CrashAtWrite {
            host,
            writes: rng.random_range(0..=30),
            after: rng.random_bool(0.5),
            down: length,
        },
        Kind::CrashAtFile => Fault::CrashAtFile {
            host,
            writes: rng.random_range(0..=8),
            after: rng.random_bool(0.5),
            down: length,
        },
        Kind::Restart => Fault::Restart { host, down: length },
        Kind::Pause => Fault::Pause { host, length },
        Kind::Cut | Kind::CutOneWay => {
            let (from, to) = draw_sides(rng, nodes);
            Fault::Cut {
                from,
                to,
                both: kind == Kind::Cut,
                length,
            }
        }
        Kind::Clog => {
            let other = Host((host.0 + rng.random_range(1..nodes)) % nodes);
            Fault::Clog {
                between: (host, other),
                length,
            }
        }
        Kind::Reset => Fault::Reset {
            host,
            times: *[1, 3, 10, 30].choose(rng).unwrap_or(&1),
            every: millis(rng, 20..=300),
        },
        Kind::Weather => Fault::Weather {
            network: NetworkPlan {
                delay_max: network.delay_max + millis(rng, 10..=200),
                loss: rng.random_range(0.0..0.3),
                duplicates: rng.random_range(0.0..0.3),
                reordered: rng.random_range(0.0..0.5),
                ..network
            },
            length,
        },
        Kind::SlowDisk => Fault::SlowDisk {
            host,
            factor: rng.random_range(10..=200),
            length,
        },
        Kind::FullDisk => Fault::FullDisk { host, down: length },
        Kind::FailedSync => Fault::FailedSync { host, down: length },
        Kind::CorruptRecord => Fault::CorruptRecord { host, down: length },
        Kind::ClockJump => {
            let reach = *[500, 10_000, 3_600_000].choose(rng).unwrap_or(&500);
            Fault::ClockJump {
                host,
                millis: rng.random_range(-reach..=reach),
            }
        }
        Kind::Join => Fault::Join,
        Kind::Transfer => Fault::Transfer {
            choice: rng.random_range(0..64),
            times: *[1, 3, 10, 30].choose(rng).unwrap_or(&1),
            every: millis(rng, 50..=500),
        },
        Kind::Move => Fault::Move {
            choice: rng.random_range(0..1_024),
            cut: rng.random_bool(0.5).then(|| CutOff {
                length: millis(rng, 1_000..=8_000),
                from_all: rng.random_bool(0.5),
            }),
        },
        Kind::CancelMoves => Fault::CancelMoves,
        Kind::Drain => Fault::Drain { host, length },
        Kind::Rebalance => Fault::Rebalance,
    }
}

/// Two sides; now and then somebody is on neither, so that cuts can be partial.
fn draw_sides(rng: &mut StdRng, nodes: usize) -> (Vec<Host>, Vec<Host>) {
    let mut hosts: Vec<Host> = (0..nodes).map(Host).collect();
    hosts.shuffle(rng);
    let first = rng.random_range(1..nodes);
    let bridge = usize::from(nodes > 2 && nodes - first > 1 && rng.random_bool(0.25));
    let to = hosts.split_off(first);
    (hosts, to[bridge..].to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_another_seed_another() {
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_plan_can_count() {
        for seed in 0..500 {
            let plan = plan(seed);
            assert!((3..=5).contains(&plan.nodes) && plan.safety >= SAFETY_MIN);
            let kinds: BTreeSet<_> = plan.faults.iter().map(|event| event.fault.kind()).collect();
            assert!(plan.faults.len() >= 8 && kinds.len() >= 2, "seed {seed}");
            assert!(plan.faults.is_sorted_by_key(|event| event.at));
            let operations: u32 = plan
                .workloads
                .iter()
                .map(|one| one.clients * one.operations)
                .sum();
            assert!(operations >= 700, "seed {seed}: {operations}");
            assert!(
                plan.spaces
                    .iter()
                    .all(|space| space.replicas as usize <= plan.nodes)
            );
            for event in &plan.faults {
                assert!(event.at + Duration::from_secs(2) <= plan.safety);
                assert!(event.fault.hosts().iter().all(|host| host.0 < plan.nodes));
                if let Fault::Cut { from, to, .. } = &event.fault {
                    assert!(!from.is_empty() && !to.is_empty());
                    assert!(from.iter().all(|host| !to.contains(host)));
                }
            }
        }
    }

    #[test]
    fn seeds_differ_in_the_kinds_they_use_and_all_kinds_are_used() {
        let kinds = |seed| -> BTreeSet<&'static str> {
            plan(seed)
                .faults
                .iter()
                .map(|event| event.fault.kind())
                .collect()
        };
        let all: BTreeSet<_> = (0..200).flat_map(kinds).collect();
        // A power cut is a crash of every node, and named so.
        assert_eq!(all.len(), KINDS.len() - 1);
        let few = (0..200).filter(|seed| kinds(*seed).len() <= 5).count();
        let many = (0..200).filter(|seed| kinds(*seed).len() >= 10).count();
        assert!(few > 10 && many > 10);
    }
}
