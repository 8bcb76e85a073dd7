//! One short split of a real cluster, as `make test` can afford it. `make test-split` makes twenty
//! long ones and says how long each heal took.

use std::time::Duration;

use engram_core::storage::RocksOptions;
use engram_jepsen::binary;
use engram_jepsen::links::Streams;
use engram_jepsen::split::{Round, Splittable};
use engram_node::seams::os;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_split_change_associations_and_nothing_is_lost_or_doubled() {
    let binary = match binary::find() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("SKIPPED, not passed: {error}");
            return;
        }
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seams = os::seams(RocksOptions::default());
    let mut cluster = Splittable::start(&binary, directory.path(), &seams)
        .await
        .unwrap_or_else(|error| panic!("the nodes start: {error}"));
    for streams in [Streams::StayDead, Streams::Resume] {
        let round = Round {
            split: Duration::from_secs(4),
            operations: 500,
            pace: Duration::ZERO,
            streams,
        };
        let outcome = cluster
            .round(round)
            .await
            .unwrap_or_else(|error| panic!("the round ends: {error}"));
        assert!(outcome.anomalies.is_empty(), "{outcome:#?}");
        let (one, other) = outcome.acknowledged;
        assert!(one > 0 && other > 0, "both sides accept: {outcome:#?}");
        assert!(
            outcome.fell_back > 0,
            "no majority, no refusal: {outcome:#?}"
        );
        let total = one + other + outcome.unknown;
        assert!(outcome.unknown * 10 < total, "most is judged: {outcome:#?}");
    }
}
