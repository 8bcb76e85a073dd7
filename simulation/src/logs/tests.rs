use super::*;

fn of(seed: u64) -> Report {
    run(Setup::of(seed))
}

fn check(seeds: std::ops::Range<u64>) {
    let mut all = Report::default();
    for seed in seeds {
        let report = of(seed);
        assert!(report.violations.is_empty(), "seed {seed}: {report:#?}");
        all.appended += report.appended;
        all.cut += report.cut;
        all.purged += report.purged;
        all.votes += report.votes;
        all.crashes += report.crashes;
        all.crashes_within += report.crashes_within;
        all.failed_syncs += report.failed_syncs;
        all.damaged += report.damaged;
        all.refused_at_start += report.refused_at_start;
        all.refused_when_read += report.refused_when_read;
    }
    // Schedules without these would prove nothing.
    let counts = [
        all.appended,
        all.cut,
        all.purged,
        all.votes,
        all.crashes,
        all.crashes_within,
        all.failed_syncs,
        all.refused_at_start,
        all.refused_when_read,
    ];
    assert!(counts.iter().all(|count| *count > 0), "{all:?}");
}

#[test]
fn a_log_survives_crashes_and_tells_damage() {
    check(0..60);
}

#[test]
fn a_seed_decides_a_run() {
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
#[ignore = "long: part of make test-long"]
fn a_log_survives_crashes_in_five_thousand_runs() {
    check(0..5_000);
}

/// Seeds in which a planted bug must be found.
#[cfg(feature = "planted")]
const PLANTED_SEEDS: u64 = 20;

/// Bugs of production code that this world is expected to find.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_found() {
    let names = [
        "ack-before-fsync",
        "failed-sync-acknowledged",
        "log-chain-unchecked",
        "purge-one-too-many",
        "truncation-keeps-records",
        "vote-before-fsync",
    ];
    let broken = |seed| of(seed).violations.into_iter().next();
    crate::hunt::each_is_found(&names, PLANTED_SEEDS, broken);
}
