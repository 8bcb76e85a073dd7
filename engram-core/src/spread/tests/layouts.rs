//! One answer on any layout: the same bits from 1, 2, 3, 8 and 32 partitions as from the oracle,
//! under any order, doubling and delay of messages.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::super::{ReportEnd, SpreadError, SpreadOutcome, SpreadParameters, spread};
use super::cluster::{Bug, layout, plan, run};
use super::graph::{Graph, graphs, hash, parameters, seeds};
use crate::types::MemoryHash;

const LAYOUTS: [(u32, u64); 7] = [(1, 1), (2, 2), (3, 3), (3, 1), (8, 3), (8, 8), (32, 5)];

fn oracle(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
) -> (ReportEnd, SpreadOutcome) {
    let seeds: Vec<(MemoryHash, u64)> = seeds
        .iter()
        .map(|(seed, amount)| (hash(*seed), *amount))
        .collect();
    match spread(&graph.whole(), rules, &seeds) {
        Ok(outcome) => (ReportEnd::Complete, outcome),
        Err(SpreadError::TooManyActivated { hop, complete }) => {
            (ReportEnd::TooManyActivated { hop }, *complete)
        }
        Err(error) => panic!("{error}"),
    }
}

/// The checker: whether a layout answers what the oracle answers.
fn agrees(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
    (partitions, nodes): (u32, u64),
    schedule: u64,
    bug: Bug,
) -> Result<(), String> {
    let plan = plan(layout(partitions, nodes), rules.clone(), seeds);
    let finished = run(graph, plan, schedule, bug);
    let (end, outcome) = oracle(graph, rules, seeds);
    if finished.pinned.len() != partitions as usize {
        return Err(format!(
            "{} of {partitions} partitions pinned",
            finished.pinned.len()
        ));
    }
    if (finished.end, &finished.outcome) != (end, &outcome) {
        return Err(format!(
            "{:?} {:#?}\nthe oracle: {end:?} {outcome:#?}",
            finished.end, finished.outcome
        ));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_layout_gives_the_same_bits(
        graph in graphs(), rules in parameters(), seeds in seeds(), schedule in any::<u64>(),
    ) {
        for (index, layout) in LAYOUTS.into_iter().enumerate() {
            let schedule = schedule.wrapping_add(index as u64);
            agrees(&graph, &rules, &seeds, layout, schedule, Bug::None)
                .map_err(|wrong| TestCaseError::fail(format!("{layout:?}: {wrong}")))?;
        }
    }
}

/// Of a fixed list of queries on three nodes, those where a bug shows.
fn caught(bug: Bug) -> usize {
    let mut runner = TestRunner::deterministic();
    let strategy = (graphs(), parameters(), seeds());
    let shows = |schedule: &u64| {
        let tree = strategy.new_tree(&mut runner).expect("a query");
        let (graph, rules, seeds) = tree.current();
        agrees(&graph, &rules, &seeds, (3, 3), *schedule, bug).is_err()
    };
    (0..300).filter(shows).count()
}

#[test]
fn the_checker_catches_planted_bugs() {
    assert_eq!(caught(Bug::None), 0);
    for bug in [Bug::DoubledFrame, Bug::EmptiedFrame, Bug::OffByOne] {
        let caught = caught(bug);
        assert!(caught > 30, "{bug:?}: {caught}");
    }
}
