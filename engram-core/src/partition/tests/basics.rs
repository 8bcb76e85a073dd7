//! One operation at a time: what it answers and what it leaves.

use super::support::*;
use crate::command::{Expected, Op, OpOutcome, PartitionCommand, Rejection};
use crate::limits::MARKS_KEPT;
use crate::partition::{ApplyError, Direction, OpenError, Partition, RequestBounds};
use crate::storage::{Batch, Durability, Family, Order, Reader, Storage};
use crate::types::{MarkId, Sequence, SlotRange};

#[test]
fn a_memory_is_stored_replaced_and_forgotten() {
    let mut driven = Driven::new();
    let first = driven.remember("a", [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(
        first,
        OpOutcome::Remembered {
            version: Sequence(2),
            created: true
        }
    );
    let second = driven.remember("a", [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(
        second,
        OpOutcome::Remembered {
            version: Sequence(3),
            created: false
        }
    );
    let found = driven
        .partition
        .get(&[id("a"), id("b")], true)
        .expect("reads");
    assert_eq!(found.sequence, Sequence(3));
    assert_eq!(found.memories[1], None);
    let a = found.memories[0].clone().expect("a");
    assert_eq!(
        a.embedding.as_deref(),
        Some([0.0, 1.0, 0.0, 0.0].as_slice())
    );
    assert!(a.memory.created < a.memory.updated);
    assert_eq!(driven.recall([0.0, 1.0, 0.0, 0.0], 5), ["a"]);

    let context = driven.partition.context();
    assert_eq!(
        driven.op(forget("a", context)),
        OpOutcome::Forgotten { existed: true }
    );
    assert!(driven.recall([0.0, 1.0, 0.0, 0.0], 5).is_empty());
    assert_eq!(driven.partition.status().memories, 0);
    assert_eq!(driven.partition.status().memory_digest, 0);
    driven.assert_scrubs();
}

#[test]
fn the_same_embedding_keeps_its_vector() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0, 2.0, 3.0, 4.0]);
    driven.remember("a", [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(driven.partition.status().index.dead, 0);
    driven.op(Op::Remember(remember("a", None)));
    assert_eq!(driven.partition.status().index.dead, 1);
    assert!(driven.recall([1.0, 2.0, 3.0, 4.0], 5).is_empty());
    driven.assert_scrubs();
}

#[test]
fn versions_are_compared() {
    let mut driven = Driven::new();
    let with = |expected| {
        Op::Remember(crate::command::Remember {
            expected,
            ..remember("a", None)
        })
    };
    let mismatch = |outcome: OpOutcome| {
        matches!(
            outcome,
            OpOutcome::Rejected(Rejection::VersionMismatch { .. })
        )
    };
    assert!(mismatch(driven.op(with(Expected::Version(Sequence(1))))));
    let created = driven.op(with(Expected::Absent));
    assert_eq!(
        created,
        OpOutcome::Remembered {
            version: Sequence(3),
            created: true
        }
    );
    assert!(mismatch(driven.op(with(Expected::Absent))));
    assert!(mismatch(driven.op(with(Expected::Version(Sequence(2))))));
    let replaced = driven.op(with(Expected::Version(Sequence(3))));
    assert_eq!(
        replaced,
        OpOutcome::Remembered {
            version: Sequence(6),
            created: false
        }
    );
}

#[test]
fn a_rejected_memory_leaves_no_edges() {
    let mut driven = Driven::new();
    let mut op = remember("a", None);
    op.edges = vec![out_edge("b", 1.0)];
    op.expected = Expected::Version(Sequence(9));
    driven.op(Op::Remember(op));
    assert_eq!(driven.partition.status().edges, 0);
}

#[test]
fn foreign_slots_and_dimensions_are_rejected() {
    let mut driven = Driven::with(
        SlotRange { start: 0, end: 1 },
        crate::partition::PartitionOptions::default(),
    );
    assert_eq!(
        driven.remember("a", [0.0; 4]),
        OpOutcome::Rejected(Rejection::NotInPartition)
    );
    let outcome = driven.op(associate("a", "b", 1.0));
    assert_eq!(outcome, OpOutcome::Rejected(Rejection::NotInPartition));

    let mut driven = Driven::new();
    let mut op = remember("a", None);
    op.embedding =
        Some(crate::types::Embedding::new(vec![1.0; 3], 3, crate::types::Metric::L2).expect("row"));
    let expected = Rejection::WrongDimension {
        expected: 4,
        actual: 3,
    };
    assert_eq!(driven.op(Op::Remember(op)), OpOutcome::Rejected(expected));
    assert_eq!(driven.partition.status().memories, 0);
}

#[test]
fn edges_show_when_both_ends_are_there() {
    let mut driven = Driven::new();
    let mut op = remember("a", None);
    op.edges = vec![out_edge("b", 0.5)];
    driven.op(Op::Remember(op));
    assert_eq!(driven.partition.status().edges, 1);
    assert!(
        driven.neighbors("a", Direction::Out).is_empty(),
        "b is missing"
    );
    driven.op(Op::Remember(remember("b", None)));
    assert_eq!(
        driven.neighbors("a", Direction::Out),
        [("b".to_owned(), 1 << 31)]
    );
    assert_eq!(
        driven.neighbors("b", Direction::In),
        [("a".to_owned(), 1 << 31)]
    );
    // A second observation with weight 1: the mean is 0.75.
    driven.op(associate("a", "b", 1.0));
    assert_eq!(
        driven.neighbors("a", Direction::Out),
        [("b".to_owned(), 3 << 30)]
    );
    // In-edges belong to their source and come back with the target.
    let context = driven.partition.context();
    driven.op(forget("b", context));
    assert!(driven.neighbors("a", Direction::Out).is_empty());
    driven.op(Op::Remember(remember("b", None)));
    assert_eq!(driven.neighbors("b", Direction::In).len(), 1);
    // The source takes its edges with it.
    let context = driven.partition.context();
    driven.op(forget("a", context));
    driven.op(Op::Remember(remember("a", None)));
    assert!(driven.neighbors("a", Direction::Out).is_empty());
    assert_eq!(driven.partition.status().edges, 0);
    assert_eq!(driven.partition.status().edge_digest, 0);
    driven.assert_scrubs();
}

#[test]
fn a_removal_spares_what_its_issuer_had_not_seen() {
    let mut driven = Driven::new();
    for name in ["a", "b"] {
        driven.op(Op::Remember(remember(name, None)));
    }
    driven.op(associate("a", "b", 0.25));
    let seen = driven.partition.context();
    driven.op(associate("a", "b", 1.0));
    driven.op(dissociate("a", "b", seen.clone()));
    assert_eq!(
        driven.neighbors("a", Direction::Out),
        [("b".to_owned(), 1 << 32)]
    );
    driven.op(forget("a", seen));
    driven.op(Op::Remember(remember("a", None)));
    assert_eq!(driven.neighbors("a", Direction::Out).len(), 1);
    driven.assert_scrubs();
}

#[test]
fn a_retry_answers_what_was_answered() {
    let mut driven = Driven::new();
    let command = write(
        1,
        vec![associate("a", "b", 1.0), Op::Remember(remember("a", None))],
    );
    let first = driven.apply(command.clone());
    let digest = driven.partition.status().edge_digest;
    driven.remember("x", [0.0; 4]);
    driven.apply(write(5, vec![Op::Remember(remember("a", None))]));
    let again = driven.apply(command);
    assert_eq!(again.outcomes, first.outcomes);
    assert_eq!(driven.partition.status().edge_digest, digest);
    // More operations of the same request, in a second command.
    let PartitionCommand::Write(mut more) = write(1, vec![associate("a", "c", 1.0)]) else {
        unreachable!()
    };
    more.ops[0].0 = 2;
    driven.apply(PartitionCommand::Write(more.clone()));
    assert_eq!(driven.partition.status().edges, 2);
    driven.apply(PartitionCommand::Write(more));
    assert_eq!(driven.partition.status().edges, 2);
}

#[test]
fn a_request_that_is_too_old_changes_nothing() {
    let requests = RequestBounds {
        per_client: 2,
        clients: 2,
    };
    let options = crate::partition::PartitionOptions {
        requests,
        ..Default::default()
    };
    let mut driven = Driven::with(SlotRange::ALL, options);
    for counter in 1..=3 {
        driven.apply(write(counter, vec![associate("a", "b", 1.0)]));
    }
    let before = driven.partition.status().edge_digest;
    let refused = driven.apply(write(1, vec![associate("a", "b", 1.0)]));
    assert_eq!(
        refused.outcomes,
        [(0, OpOutcome::Rejected(Rejection::RequestTooOld))]
    );
    assert_eq!(driven.partition.status().edge_digest, before);
}

#[test]
fn marks_keep_the_digests_of_their_point() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0; 4]);
    driven.apply(PartitionCommand::Mark { mark: MarkId(1) });
    let at_mark = driven.partition.status();
    driven.remember("b", [2.0; 4]);
    let marked = driven
        .partition
        .marked(MarkId(1))
        .expect("reads")
        .expect("the mark");
    assert_eq!(marked.sequence, Sequence(3));
    assert_eq!(marked.log_hash, at_mark.log_hash);
    assert_eq!(marked.memory, at_mark.memory_digest);
    assert_eq!(marked.topology, None, "its window is not linked yet");
    driven.run_jobs();
    let marked = driven
        .partition
        .marked(MarkId(1))
        .expect("reads")
        .expect("the mark");
    assert!(marked.topology.is_some());
    for mark in 2..=1 + MARKS_KEPT as u64 {
        driven.apply(PartitionCommand::Mark { mark: MarkId(mark) });
    }
    assert_eq!(driven.partition.marked(MarkId(1)).expect("reads"), None);
    assert!(driven.partition.marked(MarkId(2)).expect("reads").is_some());
}

#[test]
fn a_drop_leaves_nothing() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0; 4]);
    driven.op(associate("a", "b", 1.0));
    driven.apply(PartitionCommand::Drop);
    for family in Family::ALL {
        let left = driven
            .storage
            .scan(family, &[], &[0xff; 20], Order::Ascending);
        assert_eq!(left.count(), 0, "{family:?}");
    }
    let late = driven.partition.apply(&write(9, vec![]), &[], Batch::new());
    assert!(matches!(late, Err(ApplyError::Dropped { .. })));
    assert!(!Partition::exists(&driven.storage, P).expect("reads"));
    let opened = Partition::open(std::sync::Arc::new(driven.storage.clone()), P, None);
    assert!(matches!(opened.err(), Some(OpenError::Missing { .. })));
}

#[test]
fn the_callers_writes_are_in_the_same_batch() {
    let driven = Driven::new();
    let mut batch = Batch::new();
    batch.put(Family::Metadata, b"group".to_vec(), b"5".to_vec());
    driven
        .partition
        .apply(&write(1, vec![]), &[], batch)
        .expect("applies");
    assert_eq!(driven.storage.unsynced_batches(), 1);
    assert!(
        driven
            .storage
            .get(Family::Metadata, b"group")
            .expect("reads")
            .is_some()
    );
}

#[test]
fn a_failed_write_changes_nothing_in_memory() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0; 4]);
    let before = driven.partition.status();
    driven.storage.fail_next_write();
    let command = write(77, vec![Op::Remember(remember("b", Some([2.0; 4])))]);
    assert!(
        driven
            .partition
            .apply(&command, b"b", Batch::new())
            .is_err()
    );
    let after = driven.partition.status();
    assert_eq!(
        (before.sequence, before.memory_digest),
        (after.sequence, after.memory_digest)
    );
    assert_eq!(driven.recall([2.0; 4], 5), ["a"]);
}

#[test]
fn partitions_of_one_store_are_listed() {
    let driven = Driven::new();
    let mut batch = Batch::new();
    let other = crate::types::PartitionId(300);
    let shared: std::sync::Arc<dyn Storage> = std::sync::Arc::new(driven.storage.clone());
    Partition::create(shared, other, config(), SlotRange::ALL, &mut batch);
    driven
        .storage
        .write(batch, Durability::Sync)
        .expect("writes");
    assert_eq!(Partition::list(&driven.storage).expect("lists"), [P, other]);
}
