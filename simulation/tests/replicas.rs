//! Replicas of one partition stay equal through crashes, restores and delays.

use engram_simulation::replicas::world::{Planted, Report, Setup, run};

fn setup(seed: u64, planted: Planted) -> Setup {
    Setup {
        planted,
        ..Setup::of(seed)
    }
}

fn healthy(seed: u64) -> Report {
    let report = run(setup(seed, Planted::Nothing));
    assert!(
        report.differences.is_empty(),
        "seed {seed}: {:#?}",
        report.differences
    );
    report
}

#[test]
fn replicas_are_equal_after_any_schedule() {
    let reports: Vec<Report> = (0..12).map(healthy).collect();
    // A schedule without faults would prove nothing.
    assert!(
        reports
            .iter()
            .all(|report| report.crashes > 0 && report.entries > 100)
    );
    assert!(reports.iter().map(|report| report.installs).sum::<usize>() > 0);
}

#[test]
fn a_seed_run_twice_gives_the_same_trace() {
    for seed in [1, 77] {
        assert_eq!(healthy(seed), healthy(seed));
    }
    assert_ne!(healthy(1).trace, healthy(2).trace);
}

#[test]
fn planted_bugs_are_found() {
    for planted in [
        Planted::SkipsEntryAfterCrash,
        Planted::AppliesTwiceAfterCrash,
    ] {
        let found = (0..20).any(|seed| !run(setup(seed, planted)).differences.is_empty());
        assert!(found, "{planted:?} was not found");
    }
}
