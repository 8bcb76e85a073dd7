use super::*;

fn of(seed: u64) -> Report {
    run(Setup::of(seed))
}

fn check(seeds: std::ops::Range<u64>) -> Vec<Report> {
    let reports: Vec<Report> = seeds
        .map(|seed| {
            let report = of(seed);
            assert!(report.violations.is_empty(), "seed {seed}: {report:#?}");
            report
        })
        .collect();
    let sum = |count: fn(&Report) -> usize| reports.iter().map(count).sum::<usize>();
    // Schedules without these would prove nothing.
    assert!(sum(|it| it.wiped) > 0 && sum(|it| it.restored) > 0 && sum(|it| it.cuts) > 0);
    assert!(sum(|it| it.moved) > 0 && sum(|it| it.expelled) > 0 && sum(|it| it.returned) > 0);
    assert!(sum(|it| it.crashed) > 0 && sum(|it| it.installed) > 0 && sum(|it| it.forgotten) > 0);
    assert!(sum(|it| it.twins) > 0 && sum(|it| usize::from(it.mild)) > 0);
    assert!(sum(|it| it.folded_edges as usize) > 0, "nothing was folded");
    let without = reports.iter().filter(|report| report.conflicts == 0);
    assert!(without.count() * 4 > reports.len(), "values are compared");
    reports
}

#[test]
fn edges_survive_whatever_becomes_of_their_replicas() {
    check(0..30);
}

#[test]
fn a_seed_decides_a_run() {
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
#[ignore = "long: part of make test-long"]
fn edges_survive_in_two_thousand_runs() {
    check(0..2_000);
}

/// Seeds in which a planted bug must be found.
#[cfg(feature = "planted")]
const PLANTED_SEEDS: u64 = 60;

/// Bugs of production code that this world is expected to find.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_found() {
    let names = [
        "edges-averaged",
        "exchange-takes-all-for-equal",
        "fold-past-the-unheard",
        "forgetting-keeps-edges",
        "local-edge-not-synced",
        "overlay-dot-reused",
        "removal-ignores-context",
        "snapshot-takes-overlay",
    ];
    let broken = |seed| of(seed).violations.into_iter().next();
    crate::hunt::each_is_found(&names, PLANTED_SEEDS, broken);
}
