//! Small graphs whose answers are computed by hand.

use std::collections::BTreeMap;

use super::super::{
    HopStats, Normalization, ONE, SpreadError, SpreadOutcome, SpreadParameters,
    SpreadParametersError, spread,
};
use super::graph::{DiskGone, Graph, hash, id, relation};
use crate::limits;
use crate::types::Unit;

const HALF: u64 = ONE / 2;

fn rules() -> SpreadParameters {
    SpreadParameters {
        limit: usize::MAX,
        ..SpreadParameters::default()
    }
}

fn run(graph: &Graph, rules: &SpreadParameters, seeds: &[(usize, u64)]) -> SpreadOutcome {
    let seeds: Vec<_> = seeds
        .iter()
        .map(|(seed, amount)| (hash(*seed), *amount))
        .collect();
    spread(&graph.whole(), rules, &seeds).expect("it spreads")
}

fn totals(outcome: &SpreadOutcome, graph: &Graph) -> BTreeMap<usize, u64> {
    outcome
        .activated
        .iter()
        .map(|one| (graph.index(one.memory), one.total))
        .collect()
}

#[track_caller]
fn check(
    graph: &Graph,
    rules: &SpreadParameters,
    seeds: &[(usize, u64)],
    expected: &[(usize, u64)],
) {
    assert_eq!(
        totals(&run(graph, rules, seeds), graph),
        expected.iter().copied().collect()
    );
}

#[test]
fn activation_halves_along_a_chain() {
    let graph = Graph::new(
        5,
        &[
            (0, 1, "r", 1.0),
            (1, 2, "r", 0.3),
            (2, 3, "r", 1.0),
            (3, 4, "r", 1.0),
        ],
    );
    let outcome = run(&graph, &rules(), &[(0, ONE)]);
    // Under `fan` a single edge carries everything, whatever its weight.
    let expected = [(0, ONE), (1, ONE / 2), (2, ONE / 4), (3, ONE / 8)];
    assert_eq!(totals(&outcome, &graph), expected.into());
    assert_eq!(outcome.activated[0].memory, hash(0));
    assert_eq!(outcome.activated[0].id, id(0));
    let hop = |hop, active, edges_followed| HopStats {
        hop,
        active,
        edges_followed,
    };
    assert_eq!(
        outcome.hops,
        [hop(0, 1, 1), hop(1, 1, 1), hop(2, 1, 1), hop(3, 1, 0)]
    );
    assert_eq!((outcome.edges_followed, outcome.activated_total), (3, 4));
}

#[test]
fn shares_are_floored_and_a_missing_target_keeps_its_place() {
    let mut graph = Graph::new(4, &[(0, 1, "r", 1.0), (0, 2, "r", 1.0), (0, 3, "r", 1.0)]);
    let rules = SpreadParameters { hops: 1, ..rules() };
    check(
        &graph,
        &rules,
        &[(0, 20)],
        &[(0, 20), (1, 3), (2, 3), (3, 3)],
    );
    graph.there[3] = false;
    check(&graph, &rules, &[(0, 20)], &[(0, 20), (1, 3), (2, 3)]);
}

#[test]
fn without_normalization_each_edge_carries_its_weight() {
    let graph = Graph::new(3, &[(0, 1, "r", 0.5), (0, 2, "r", 1.0)]);
    let rules = SpreadParameters {
        hops: 1,
        normalization: Normalization::None,
        ..rules()
    };
    check(&graph, &rules, &[(0, 8)], &[(0, 8), (1, 2), (2, 4)]);
}

#[test]
fn weights_of_zero_send_nothing() {
    let graph = Graph::new(2, &[(0, 1, "r", 0.0)]);
    check(&graph, &rules(), &[(0, ONE)], &[(0, ONE)]);
    let mixed = Graph::new(3, &[(0, 1, "r", 0.0), (0, 2, "r", 0.1)]);
    check(
        &mixed,
        &SpreadParameters { hops: 1, ..rules() },
        &[(0, 4)],
        &[(0, 4), (2, 2)],
    );
}

#[test]
fn missing_seeds_inject_nothing_and_are_listed_once() {
    let mut graph = Graph::new(3, &[(0, 1, "r", 1.0)]);
    graph.there[0] = false;
    let outcome = run(&graph, &rules(), &[(0, ONE), (2, 5), (0, ONE), (2, 6)]);
    assert_eq!(outcome.missing_seeds, [hash(0)]);
    assert_eq!(totals(&outcome, &graph), [(2, 11)].into());
}

#[test]
fn relations_are_filtered_before_the_sum_and_factors_scale_weights() {
    let graph = Graph::new(
        4,
        &[(0, 1, "is", 1.0), (0, 2, "has", 1.0), (0, 3, "near", 1.0)],
    );
    let relations = Some([relation("is"), relation("has")].into());
    let quarter = Unit::from_f64(0.25).expect("in range");
    let relation_factors = [(relation("has"), quarter)].into();
    let rules = SpreadParameters {
        hops: 1,
        relations,
        relation_factors,
        ..rules()
    };
    check(&graph, &rules, &[(0, 100)], &[(0, 100), (1, 40), (2, 10)]);
}

#[test]
fn thresholds_act_on_the_sum_of_a_hop_and_on_seeds() {
    // Two shares of 5 meet in memory 2.
    let graph = Graph::new(4, &[(0, 2, "r", 1.0), (1, 2, "r", 1.0), (2, 3, "r", 1.0)]);
    let at = |threshold| SpreadParameters {
        threshold,
        ..rules()
    };
    check(
        &graph,
        &at(10),
        &[(0, 10), (1, 10)],
        &[(0, 10), (1, 10), (2, 10)],
    );
    check(
        &graph,
        &at(5),
        &[(0, 10), (1, 10)],
        &[(0, 10), (1, 10), (2, 10), (3, 5)],
    );
    check(&graph, &at(11), &[(0, 10), (1, 10)], &[]);
}

#[test]
fn revisits_are_scaled_after_the_threshold() {
    // Between 0 and 1 to and fro: 64 at 0, 32 at 1, then 16 at 0 halved to 8, then 4 at 1 to 2.
    let graph = Graph::new(2, &[(0, 1, "r", 1.0), (1, 0, "r", 1.0)]);
    let revisit = Unit::from_f64(0.5).expect("in range");
    let rules = SpreadParameters { revisit, ..rules() };
    check(&graph, &rules, &[(0, 64)], &[(0, 72), (1, 34)]);
    // 16 reaches the threshold, and counts as 8 below it; it then sends 4, which does not.
    let rules = SpreadParameters {
        threshold: 16,
        ..rules
    };
    check(&graph, &rules, &[(0, 64)], &[(0, 72), (1, 32)]);
    let rules = SpreadParameters {
        threshold: 0,
        revisit: Unit::ZERO,
        ..rules
    };
    check(&graph, &rules, &[(0, 64)], &[(0, 64), (1, 32)]);
}

#[test]
fn refractory_memories_count_and_do_not_send() {
    let graph = Graph::new(2, &[(0, 0, "self", 1.0), (0, 1, "r", 1.0)]);
    let at = |refractory_hops| SpreadParameters {
        refractory_hops,
        hops: 4,
        ..rules()
    };
    // Sends 64, 16, 4, 1 in hops 0 to 3: a quarter of each to 0 and to 1.
    check(
        &graph,
        &at(0),
        &[(0, 64)],
        &[(0, 64 + 16 + 4 + 1), (1, 16 + 4 + 1)],
    );
    // Sends in hop 0, rests in hop 1, and nothing comes to it after.
    check(&graph, &at(1), &[(0, 64)], &[(0, 64 + 16), (1, 16)]);
    // Over a detour of two hops it comes back when it has rested.
    let detour = Graph::new(3, &[(0, 1, "r", 1.0), (1, 0, "r", 1.0), (0, 2, "r", 1.0)]);
    check(
        &detour,
        &at(1),
        &[(0, 64)],
        &[(0, 64 + 8 + 1), (1, 16 + 2), (2, 16 + 2)],
    );
    check(
        &detour,
        &at(2),
        &[(0, 64)],
        &[(0, 64 + 8), (1, 16), (2, 16)],
    );
}

#[test]
fn the_fan_limit_keeps_the_greatest_shares_then_the_least_hash() {
    let graph = Graph::new(
        5,
        &[
            (0, 1, "r", 0.5),
            (0, 2, "r", 0.25),
            (0, 3, "r", 0.25),
            (0, 4, "r", 0.25),
        ],
    );
    let rules = SpreadParameters {
        hops: 1,
        fan_limit: Some(2),
        ..rules()
    };
    let least = [2, 3, 4]
        .into_iter()
        .min_by_key(|index| hash(*index))
        .expect("three of them");
    // The denominator has all four: 100 x 0.5 x 0.5 / 1.25 and 100 x 0.5 x 0.25 / 1.25.
    check(
        &graph,
        &rules,
        &[(0, 100)],
        &[(0, 100), (1, 20), (least, 10)],
    );
}

#[test]
fn sums_saturate() {
    let graph = Graph::new(
        3,
        &[(0, 2, "r", 1.0), (1, 2, "r", 1.0), (2, 2, "self", 1.0)],
    );
    let rules = SpreadParameters {
        decay: Unit::ONE,
        normalization: Normalization::None,
        hops: 16,
        ..rules()
    };
    check(
        &graph,
        &rules,
        &[(0, u64::MAX), (1, u64::MAX), (1, 1)],
        &[(0, u64::MAX), (1, u64::MAX), (2, u64::MAX)],
    );
    // `fan` at its greatest: x d w is just below 2^128.
    let fan = SpreadParameters {
        normalization: Normalization::Fan,
        hops: 1,
        ..rules
    };
    check(
        &graph,
        &fan,
        &[(0, u64::MAX)],
        &[(0, u64::MAX), (2, u64::MAX)],
    );
}

#[test]
fn explained_paths_follow_the_strongest_share() {
    // To 3 lead 0 -> 1 -> 3 with half of everything, and 0 -> 2 -> 3 with a quarter.
    let graph = Graph::new(
        4,
        &[
            (0, 1, "a", 1.0),
            (0, 2, "b", 0.5),
            (1, 3, "c", 1.0),
            (2, 3, "d", 1.0),
        ],
    );
    let rules = SpreadParameters {
        explain: true,
        ..rules()
    };
    let outcome = run(&graph, &rules, &[(0, 12)]);
    let path = |memory: usize| -> Vec<(usize, Option<String>, u64)> {
        let one = outcome
            .activated
            .iter()
            .find(|one| one.memory == hash(memory))
            .expect("active");
        let step =
            |relation: &Option<crate::types::Relation>| relation.as_ref().map(ToString::to_string);
        one.path
            .iter()
            .map(|s| (graph.index(s.memory), step(&s.relation), s.share))
            .collect()
    };
    let named = |name: &str| Some(name.to_string());
    assert_eq!(path(0), [(0, None, 12)]);
    assert_eq!(
        path(3),
        [(0, None, 12), (1, named("a"), 4), (3, named("c"), 2)]
    );
}

#[test]
fn too_many_active_memories_end_the_spread_with_the_complete_hops() {
    let graph = Graph::new(
        5,
        &[
            (0, 1, "r", 1.0),
            (0, 2, "r", 1.0),
            (1, 3, "r", 1.0),
            (3, 4, "r", 1.0),
        ],
    );
    let rules = SpreadParameters {
        activated_max: 2,
        ..rules()
    };
    let error = spread(&graph.whole(), &rules, &[(hash(0), ONE)]).expect_err("three are active");
    let SpreadError::TooManyActivated { hop: 1, complete } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        totals(&complete, &graph),
        [(0, ONE), (1, HALF / 2), (2, HALF / 2)].into()
    );
    assert_eq!(complete.hops.len(), 2);
    // As many as allowed, or too many in the last hop, are no error.
    assert!(
        spread(
            &graph.whole(),
            &SpreadParameters { hops: 1, ..rules },
            &[(hash(0), ONE)]
        )
        .is_ok()
    );
}

#[test]
fn parameters_out_of_range_are_refused() {
    let refused = |rules: SpreadParameters, what: &str| {
        let error = rules.check().expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
        let answer = spread(&Graph::new(1, &[]).whole(), &rules, &[]);
        assert_eq!(answer, Err(SpreadError::Parameters(error)));
    };
    refused(
        SpreadParameters {
            hops: limits::HOPS_MAX + 1,
            ..rules()
        },
        "hops is 17",
    );
    refused(
        SpreadParameters {
            fan_limit: Some(0),
            ..rules()
        },
        "fan limit must be",
    );
    refused(
        SpreadParameters {
            activated_max: 0,
            ..rules()
        },
        "activated_max must be",
    );
    refused(
        SpreadParameters {
            activated_max: limits::ACTIVATED_MAX + 1,
            ..rules()
        },
        "activated_max is",
    );
    let relations = (0..=limits::SPREAD_RELATIONS_MAX).map(|n| relation(&n.to_string()));
    refused(
        SpreadParameters {
            relations: Some(relations.collect()),
            ..rules()
        },
        "relation list is",
    );
    let above: Unit = postcard::from_bytes(&postcard::to_stdvec(&(ONE + 1)).expect("bytes"))
        .expect("bytes do not check the range");
    let error = SpreadParameters {
        decay: above,
        ..rules()
    }
    .check();
    assert!(matches!(
        error,
        Err(SpreadParametersError::TooLarge { what: "decay", .. })
    ));
    let many = vec![(hash(0), 1); limits::SEEDS_MAX + 1];
    let answer = spread(&Graph::new(1, &[]).whole(), &rules(), &many);
    assert_eq!(
        answer,
        Err(SpreadError::TooManySeeds {
            actual: limits::SEEDS_MAX + 1
        })
    );
}

#[test]
fn a_failing_store_is_an_error() {
    let graph = Graph::new(2, &[(0, 1, "r", 1.0)]);
    for reads in 0..4 {
        let part = graph.whole();
        part.reads_left.set(reads);
        assert_eq!(
            spread(&part, &rules(), &[(hash(0), ONE)]),
            Err(SpreadError::Adjacency(DiskGone))
        );
    }
}
