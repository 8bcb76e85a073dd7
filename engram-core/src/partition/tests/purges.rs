//! Purges: collected into the next generation, which the log begins.

use super::support::*;
use crate::command::{Op, PartitionCommand};
use crate::keys;
use crate::storage::{Family, Order, Reader as _};
use crate::types::Sequence;

fn vectors(driven: &Driven) -> usize {
    let range = keys::partition_records(P);
    let order = Order::Ascending;
    let stored = driven
        .storage
        .scan(Family::Vectors, &range.start, &range.end, order);
    stored.count()
}

fn forget_of(driven: &Driven, name: &str, purge: bool) -> Op {
    match forget(name, driven.partition.context()) {
        Op::Forget(forget) => Op::Forget(crate::command::Forget { purge, ..forget }),
        other => unreachable!("{other:?} is no forgetting"),
    }
}

fn generation(driven: &Driven) -> u64 {
    driven.partition.status().index.newest.generation
}

fn filled() -> Driven {
    let mut driven = Driven::new();
    for n in 0..40 {
        driven.remember(&n.to_string(), [n as f32, 1.0, (n % 5) as f32, 0.0]);
    }
    driven.run_jobs();
    driven
}

#[test]
fn what_is_purged_is_gone_with_the_next_generation() {
    let mut driven = filled();
    driven.apply(PartitionCommand::Renew);
    assert_eq!(generation(&driven), 1, "nothing was purged");
    let forgetting = forget_of(&driven, "3", false);
    driven.op(forgetting);
    driven.apply(PartitionCommand::Renew);
    assert_eq!(generation(&driven), 1, "forgetting alone asks for nothing");

    // A purge of what is gone counts for what was forgotten before.
    let purge = forget_of(&driven, "3", true);
    driven.op(purge);
    let purge = forget_of(&driven, "4", true);
    driven.op(purge);
    let last = driven.partition.sequence();
    let purges = driven.partition.purges();
    assert_eq!((purges.asked, purges.last), (2, last));
    assert!(!purges.are_begun && !purges.are_served);
    assert_eq!(vectors(&driven), 40);

    driven.apply(PartitionCommand::Renew);
    assert_eq!(generation(&driven), 2, "both are collected into one");
    let purges = driven.partition.purges();
    assert!(purges.are_begun && !purges.are_served, "it is not linked");
    driven.apply(PartitionCommand::Renew);
    assert_eq!(generation(&driven), 2, "nothing waits any more");

    // Half-way the process ends.
    let job = driven.partition.next_job().expect("a job");
    let linked = driven.partition.run(&job);
    driven.partition.commit(linked).expect("commits");
    // Without saved links the newest generation alone is opened, and serves.
    driven.crash(usize::MAX);
    assert_eq!(driven.partition.purges().last, last);
    driven.run_jobs();
    assert!(driven.partition.purges().are_served);
    assert_eq!(vectors(&driven), 38);
    driven.assert_scrubs();

    // Another replica gets to the same point by the log alone.
    let mut other = Driven::new();
    other.log.clone_from(&driven.log);
    other.replay();
    other.run_jobs();
    assert_eq!(other.partition.purges(), driven.partition.purges());
    let position = driven.partition.index.sealed();
    assert_eq!(other.partition.index.sealed(), position);
    let digest = driven.partition.index.digest_at(position);
    assert!(digest.is_some() && digest == other.partition.index.digest_at(position));
}

/// A generation without a single window serves at once.
#[test]
fn all_of_a_partition_may_be_purged() {
    let mut driven = filled();
    for n in 0..40 {
        let purge = forget_of(&driven, &n.to_string(), true);
        driven.op(purge);
    }
    driven.apply(PartitionCommand::Renew);
    driven.partition.let_go().expect("storage takes it");
    assert!(driven.partition.purges().are_served);
    assert_eq!(vectors(&driven), 0);
    driven.remember("new", [1.0, 2.0, 3.0, 4.0]);
    assert!(driven.partition.sequence() > Sequence(40));
    assert_eq!(vectors(&driven), 1);
}
