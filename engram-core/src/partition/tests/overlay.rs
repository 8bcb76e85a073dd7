//! Changes beside the log: visible at once, exchanged, adopted, never lost or counted twice.

use super::support::*;
use crate::command::{EdgeChange, Op, OverlayDelta, PartitionCommand};
use crate::partition::{Direction, LocalChange, LocalError, ReceivedOverlay};
use crate::storage::{Family, Order, Reader};
use crate::types::{ActorId, EdgeContext, Hlc, OverlayContext, RequestId, SlotRange, Unit};

const A: ActorId = ActorId([1; 16]);
const B: ActorId = ActorId([2; 16]);

fn change(counter: u64, from: &str, to: &str, change: EdgeChange) -> LocalChange {
    LocalChange {
        request: RequestId {
            client: CLIENT,
            counter,
            index: 0,
        },
        retried: false,
        stamp: Hlc::from_millis(counter),
        from: id(from),
        to: id(to),
        relation: relation("r"),
        change,
    }
}

fn evidence(counter: u64, from: &str, to: &str, weight: f64) -> LocalChange {
    let change_of = EdgeChange::Contribute {
        weight: unit(weight),
        confidence: Unit::ONE,
    };
    change(counter, from, to, change_of)
}

fn removal(counter: u64, from: &str, to: &str, context: EdgeContext) -> LocalChange {
    change(counter, from, to, EdgeChange::Remove { context })
}

/// Two replicas of one partition with the memories a, b and c.
fn pair() -> [Driven; 2] {
    let mut pair = [Driven::new(), Driven::new()];
    for name in ["a", "b", "c"] {
        both(&mut pair, |driven| {
            driven.op(Op::Remember(remember(name, None)));
        });
    }
    pair
}

fn both(pair: &mut [Driven; 2], mut step: impl FnMut(&mut Driven)) {
    pair.iter_mut().for_each(&mut step);
}

fn accept(driven: &Driven, actor: ActorId, change: LocalChange) -> OverlayDelta {
    driven
        .partition
        .accept_local(actor, &[change])
        .expect("accepts")
        .remove(0)
}

fn exchange(from: &Driven, to: &Driven) -> ReceivedOverlay {
    let missing = from
        .partition
        .overlay_missing_from(&to.partition.overlay_context(), usize::MAX);
    to.partition.receive_overlay(&missing).expect("receives")
}

fn out(driven: &Driven, from: &str) -> Vec<(String, f64)> {
    let found = driven.neighbors(from, Direction::Out).into_iter();
    found
        .map(|(to, bits)| (to, bits as f64 / 4_294_967_296.0))
        .collect()
}

fn adopt_all(pair: &mut [Driven; 2], by: usize) {
    let deltas = pair[by].partition.adoptable(usize::MAX, usize::MAX);
    both(pair, |driven| {
        driven.apply(PartitionCommand::Adopt {
            deltas: deltas.clone(),
        });
    });
}

fn assert_equal(pair: &[Driven; 2]) {
    let status = |driven: &Driven| {
        driven.assert_scrubs();
        let status = driven.partition.status();
        (
            status.sequence,
            status.log_hash,
            status.memory_digest,
            status.edge_digest,
            status.edges,
        )
    };
    assert_eq!(status(&pair[0]), status(&pair[1]));
}

#[test]
fn a_local_change_shows_at_once_and_survives_a_crash() {
    let [mut one, _] = pair();
    let digest = one.partition.status().edge_digest;
    let delta = accept(&one, A, evidence(50, "a", "b", 0.5));
    assert_eq!(delta.dot.n, 1);
    assert_eq!(out(&one, "a"), [("b".to_owned(), 0.5)]);
    assert_eq!(one.neighbors("b", Direction::In).len(), 1);
    assert_eq!(
        one.partition.status().edge_digest,
        digest,
        "the log knows nothing of it"
    );
    one.crash(0);
    assert_eq!(out(&one, "a"), [("b".to_owned(), 0.5)]);
    assert_eq!(accept(&one, A, evidence(51, "a", "c", 1.0)).dot.n, 2);
}

#[test]
fn a_repeated_request_keeps_its_dot() {
    let [one, _] = pair();
    let first = accept(&one, A, evidence(50, "a", "b", 0.5));
    assert_eq!(accept(&one, A, evidence(50, "a", "b", 0.5)), first);
    assert_eq!(one.partition.status().overlay_deltas, 1);
}

#[test]
fn replicas_exchange_and_the_log_adopts() {
    let mut pair = pair();
    accept(&pair[0], A, evidence(50, "a", "b", 0.5));
    accept(&pair[1], B, evidence(60, "a", "b", 1.0));
    accept(&pair[1], B, evidence(61, "b", "c", 1.0));
    assert_eq!(exchange(&pair[0], &pair[1]).new, 1);
    assert_eq!(exchange(&pair[1], &pair[0]).new, 2);
    assert_eq!(exchange(&pair[1], &pair[0]), ReceivedOverlay::default());
    let shown = [out(&pair[0], "a"), out(&pair[0], "b")];
    assert_eq!(shown[0], [("b".to_owned(), 0.75)]);
    assert_eq!(shown, [out(&pair[1], "a"), out(&pair[1], "b")]);
    adopt_all(&mut pair, 0);
    for driven in &pair {
        assert_eq!(shown, [out(driven, "a"), out(driven, "b")]);
        assert_eq!(driven.partition.status().overlay_deltas, 0);
        assert_eq!(driven.partition.status().edges, 2);
        let range = crate::keys::overlays(P);
        let left = driven
            .storage
            .scan(Family::Edges, &range.start, &range.end, Order::Ascending);
        assert_eq!(left.count(), 0);
    }
    assert_equal(&pair);
    // What is in the log is not taken back from a peer that was away, and not adopted twice.
    let late = evidence(50, "a", "b", 0.5).delta(crate::types::OverlayDot { actor: A, n: 1 });
    let received = pair[1]
        .partition
        .receive_overlay(std::slice::from_ref(&late));
    assert_eq!(received.expect("receives").known, 1);
    both(&mut pair, |driven| {
        driven.apply(PartitionCommand::Adopt {
            deltas: vec![late.clone()],
        });
    });
    assert_eq!(shown, [out(&pair[0], "a"), out(&pair[0], "b")]);
    assert_equal(&pair);
}

#[test]
fn twins_count_once() {
    let mut pair = pair();
    accept(&pair[0], A, evidence(50, "a", "b", 0.5));
    accept(&pair[0], A, evidence(51, "a", "b", 1.0));
    // The majority attempt of request 50, which was thought lost, is in the log after all.
    both(&mut pair, |driven| {
        driven.apply(write(50, vec![associate("a", "b", 0.5)]));
    });
    assert_eq!(out(&pair[0], "a"), [("b".to_owned(), 0.75)]);
    adopt_all(&mut pair, 0);
    assert_eq!(out(&pair[0], "a"), [("b".to_owned(), 0.75)]);
    assert_eq!(out(&pair[1], "a"), [("b".to_owned(), 0.75)]);
    assert_equal(&pair);
}

/// A replica that was cut off accepted what the majority took, too, and took away again meanwhile.
#[test]
fn a_twin_of_what_the_log_has_removed_does_not_come_back() {
    let mut pair = pair();
    accept(&pair[0], A, evidence(50, "a", "b", 0.5));
    accept(&pair[0], A, evidence(51, "a", "c", 1.0));
    both(&mut pair, |driven| {
        driven.apply(write(50, vec![associate("a", "b", 0.5)]));
        let context = EdgeContext {
            sequence: driven.partition.sequence(),
            ..EdgeContext::default()
        };
        driven.apply(write(52, vec![dissociate("a", "b", context)]));
    });
    let rest = [("c".to_owned(), 1.0)];
    assert_eq!(out(&pair[0], "a"), rest);
    exchange(&pair[0], &pair[1]);
    assert_eq!(out(&pair[1], "a"), rest);
    adopt_all(&mut pair, 0);
    assert_eq!(
        [out(&pair[0], "a"), out(&pair[1], "a")],
        [rest.clone(), rest]
    );
    assert_equal(&pair);
}

#[test]
fn removals_and_evidence_meet_in_any_order() {
    for removal_first in [false, true] {
        let mut pair = pair();
        let first = accept(&pair[0], A, evidence(50, "a", "b", 0.5));
        exchange(&pair[0], &pair[1]);
        let context = pair[1].partition.context();
        let gone = accept(&pair[1], B, removal(60, "a", "b", context));
        assert!(out(&pair[1], "a").is_empty());
        accept(&pair[0], A, evidence(52, "a", "b", 1.0));
        let mut order = vec![first, gone];
        if removal_first {
            order.reverse();
        }
        for delta in order {
            both(&mut pair, |driven| {
                driven.apply(PartitionCommand::Adopt {
                    deltas: vec![delta.clone()],
                });
            });
        }
        assert_eq!(
            out(&pair[0], "a"),
            [("b".to_owned(), 1.0)],
            "not seen by the removal"
        );
        assert!(out(&pair[1], "a").is_empty());
        adopt_all(&mut pair, 0);
        assert_eq!(out(&pair[1], "a"), [("b".to_owned(), 1.0)]);
        assert_equal(&pair);
    }
}

#[test]
fn forgetting_takes_edges_that_only_an_overlay_holds() {
    let mut pair = pair();
    accept(&pair[0], A, evidence(50, "a", "b", 0.5));
    let context = pair[0].partition.context();
    accept(&pair[0], A, evidence(51, "a", "c", 1.0));
    both(&mut pair, |driven| {
        driven.op(forget("a", context.clone()));
        driven.op(Op::Remember(remember("a", None)));
    });
    assert_eq!(
        out(&pair[0], "a"),
        [("c".to_owned(), 1.0)],
        "the issuer had not seen this one"
    );
    pair[0].crash(0);
    assert_eq!(out(&pair[0], "a"), [("c".to_owned(), 1.0)]);
    assert_equal(&pair);
    assert_ne!(
        pair[0].partition.status().edge_digest,
        0,
        "the removal waits in the log"
    );
    adopt_all(&mut pair, 0);
    assert_eq!(out(&pair[0], "a"), [("c".to_owned(), 1.0)]);
    assert_eq!(out(&pair[1], "a"), [("c".to_owned(), 1.0)]);
    assert_equal(&pair);
    let range = crate::keys::all_source_removals(P);
    let left = pair[0]
        .storage
        .scan(Family::Edges, &range.start, &range.end, Order::Ascending);
    assert_eq!(left.count(), 0, "it has met all it named");
}

#[test]
fn one_dot_never_marks_two_changes() {
    let pair = pair();
    let mut delta = accept(&pair[0], A, evidence(50, "a", "b", 0.5));
    delta.to = id("c");
    let other = pair[0]
        .partition
        .receive_overlay(&[delta.clone(), delta])
        .expect("receives");
    assert_eq!(other.conflicts, 2);
    assert_eq!(pair[0].partition.status().overlay_conflicts, 2);
    assert_eq!(out(&pair[0], "a"), [("b".to_owned(), 0.5)]);
}

#[test]
fn edges_of_other_partitions_are_not_taken() {
    let narrow = SlotRange { start: 0, end: 1 };
    let driven = Driven::with(narrow, crate::partition::PartitionOptions::default());
    let refused = driven
        .partition
        .accept_local(A, &[evidence(1, "a", "b", 1.0)]);
    assert!(matches!(refused, Err(LocalError::NotInPartition { .. })));
    let foreign = evidence(1, "a", "b", 1.0).delta(crate::types::OverlayDot { actor: A, n: 1 });
    assert_eq!(
        driven
            .partition
            .receive_overlay(&[foreign])
            .expect("receives")
            .foreign,
        1
    );
    assert_eq!(
        driven.partition.overlay_context(),
        OverlayContext::default()
    );
}

#[test]
fn an_unwritten_change_is_not_shown() {
    let [one, _] = pair();
    one.storage.fail_next_write();
    assert!(
        one.partition
            .accept_local(A, &[evidence(50, "a", "b", 0.5)])
            .is_err()
    );
    assert!(out(&one, "a").is_empty());
    assert_eq!(one.partition.overlay_context(), OverlayContext::default());
}

#[test]
fn an_export_shows_the_overlay_too() {
    let mut pair = pair();
    both(&mut pair, |driven| {
        driven.op(associate("a", "b", 0.5));
        driven.op(associate("b", "c", 0.5));
    });
    accept(&pair[0], A, evidence(50, "a", "b", 1.0));
    accept(&pair[0], A, evidence(51, "c", "a", 1.0));
    let view = pair[0].partition.view();
    let (mut found, mut next) = (Vec::new(), None);
    loop {
        let page = view.export_edges(next.as_ref(), 1).expect("reads");
        found.extend(
            page.edges
                .iter()
                .map(|edge| format!("{}-{}", edge.from, edge.to)),
        );
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    found.sort_unstable();
    assert_eq!(found, ["a-b", "b-c", "c-a"]);
    let page = view.export_memories(None, 2, usize::MAX).expect("reads");
    assert_eq!(page.memories.len(), 2);
    let rest = view
        .export_memories(page.next, 2, usize::MAX)
        .expect("reads");
    assert_eq!((rest.memories.len(), rest.next), (1, None));
}

/// A snapshot replaces records underneath whoever still holds the partition: what such a holder
/// accepted afterwards would be on disk, and its dot given again, without anyone serving it.
#[test]
fn a_retired_partition_accepts_nothing() {
    let [driven, _] = pair();
    accept(&driven, A, evidence(1, "a", "b", 1.0));
    assert!(!driven.partition.is_retired());
    driven.partition.retire();
    assert!(driven.partition.is_retired());
    let refused = driven
        .partition
        .accept_local(A, &[evidence(2, "a", "c", 1.0)]);
    assert!(matches!(refused, Err(LocalError::Dropped { .. })));
}
