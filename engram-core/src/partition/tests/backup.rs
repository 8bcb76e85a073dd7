//! What a backup keeps, restored into any number of partitions, shows readers the same.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::support::*;
use crate::cases::cases;
use crate::command::{EdgeChange, EvidenceSums, Op, OpOutcome, RestoreEdge};
use crate::partition::{BackupKey, BackupRecord, LocalChange, PartitionOptions, PartitionView};
use crate::types::{ActorId, Hlc, Memory, RequestId, SlotRange, Unit};

/// The whole backup of a view, in pages of `page` records.
fn back_up(view: &PartitionView, page: usize) -> (Vec<(BackupKey, Op)>, usize) {
    let (mut records, mut hidden, mut after) = (Vec::new(), 0, None::<BackupKey>);
    loop {
        let (mut left, from) = (page, after.take());
        let ended = view
            .back_up(from.as_ref(), &mut |key, record| {
                match record {
                    BackupRecord::Kept(op) => records.push((key.clone(), op)),
                    BackupRecord::WithoutSource => hidden += 1,
                }
                after = Some(key);
                left -= 1;
                left > 0
            })
            .expect("reads");
        if ended {
            return (records, hidden);
        }
    }
}

/// Partitions of a space that holds nothing yet.
fn empty(parts: u32) -> Vec<Driven> {
    SlotRange::split_evenly(parts)
        .into_iter()
        .map(|slots| Driven::with(slots, PartitionOptions::default()))
        .collect()
}

fn restore(parts: &mut [Driven], ops: &[(BackupKey, Op)]) -> Vec<OpOutcome> {
    ops.iter()
        .map(|(_, op)| {
            let home = match op {
                Op::RestoreMemory(restore) => &restore.memory.id,
                Op::RestoreEdge(restore) => &restore.from,
                other => panic!("{other:?} restores nothing"),
            };
            let owner = parts
                .iter_mut()
                .find(|part| part.partition.slots().contains(home.hash_slot()));
            owner.expect("an owner").op(op.clone())
        })
        .collect()
}

type Shown = (
    BTreeMap<String, (Memory, Option<Vec<u32>>)>,
    Vec<(String, String, u64, u128, u64, Hlc)>,
);

/// What readers of all partitions together see, but for versions, which count anew.
fn shown<'a>(views: impl Iterator<Item = &'a PartitionView>) -> Shown {
    let (mut memories, mut edges) = (BTreeMap::new(), Vec::new());
    for view in views {
        for found in view
            .export_memories(None, usize::MAX, usize::MAX)
            .expect("reads")
            .memories
        {
            let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
            let mut memory = found.memory;
            memory.version = crate::types::Sequence(0);
            let id = memory.id.to_string();
            memories.insert(id, (memory, found.embedding.map(bits)));
        }
        for (_, op) in back_up(view, usize::MAX).0 {
            if let Op::RestoreEdge(edge) = op {
                let sums = edge.evidence;
                edges.push((
                    edge.from.to_string(),
                    edge.to.to_string(),
                    u64::try_from(sums.sum_wc).expect("small"),
                    sums.sum_c,
                    sums.count,
                    sums.newest,
                ));
            }
        }
    }
    edges.sort();
    (memories, edges)
}

fn local(driven: &Driven, counter: u64, from: &str, to: &str) {
    let change = LocalChange {
        request: RequestId {
            client: CLIENT,
            counter: 10_000 + counter,
            index: 0,
        },
        retried: false,
        stamp: Hlc::from_millis(counter),
        from: id(from),
        to: id(to),
        relation: relation("r"),
        change: EdgeChange::Contribute {
            weight: unit(0.25),
            confidence: Unit::ONE,
        },
    };
    driven
        .partition
        .accept_local(ActorId([5; 16]), &[change])
        .expect("accepts");
}

#[derive(Clone, Debug)]
enum Act {
    Remember(u8, bool),
    Forget(u8),
    Associate(u8, u8),
    Dissociate(u8, u8),
    Local(u8, u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let id = 0..12_u8;
    let act = prop_oneof![
        4 => (id.clone(), any::<bool>()).prop_map(|(a, row)| Act::Remember(a, row)),
        1 => id.clone().prop_map(Act::Forget),
        4 => (id.clone(), id.clone()).prop_map(|(a, b)| Act::Associate(a, b)),
        1 => (id.clone(), id.clone()).prop_map(|(a, b)| Act::Dissociate(a, b)),
        2 => (id.clone(), id).prop_map(|(a, b)| Act::Local(a, b)),
    ];
    prop::collection::vec(act, 0..60)
}

fn drive(acts: &[Act]) -> Driven {
    let mut driven = Driven::new();
    let name = |n: u8| format!("m{n}");
    for (counter, act) in (0..).zip(acts) {
        match *act {
            Act::Remember(a, row) => {
                let row = row.then_some([f32::from(a), 0.5, -1.0, counter as f32]);
                driven.op(Op::Remember(remember(&name(a), row)));
            }
            Act::Forget(a) => {
                let context = driven.partition.forget_context(id(&name(a)).hash());
                driven.op(forget(&name(a), context));
            }
            Act::Associate(a, b) => {
                driven.op(associate(&name(a), &name(b), f64::from(b) / 16.0));
            }
            Act::Dissociate(a, b) => {
                let context = driven.partition.context();
                driven.op(dissociate(&name(a), &name(b), context));
            }
            Act::Local(a, b) => local(&driven, counter, &name(a), &name(b)),
        }
    }
    driven
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn restored_into_any_number_of_partitions_readers_see_the_same(
        acts in acts(), parts in 1..5_u32, page in 1..9_usize,
    ) {
        let driven = drive(&acts);
        let view = driven.partition.view();
        let (records, _) = back_up(&view, page);
        prop_assert!(records.is_sorted_by(|a, b| a.0 < b.0), "in the order of keys");
        prop_assert_eq!(&records, &back_up(&view, usize::MAX).0);
        let mut restored = empty(parts);
        let outcomes = restore(&mut restored, &records);
        let fresh = OpOutcome::Restored { fresh: true };
        prop_assert!(outcomes.iter().all(|it| *it == fresh));
        let views: Vec<_> = restored.iter().map(|part| part.partition.view()).collect();
        prop_assert_eq!(shown(views.iter()), shown(std::iter::once(&view)));
        // Again: everything is there, and nothing changes.
        let again = restore(&mut restored, &records);
        let there = OpOutcome::Restored { fresh: false };
        prop_assert!(again.iter().all(|it| *it == there));
        let views: Vec<_> = restored.iter().map(|part| part.partition.view()).collect();
        prop_assert_eq!(shown(views.iter()), shown(std::iter::once(&view)));
        restored.iter().for_each(Driven::assert_scrubs);
    }
}

#[test]
fn a_backup_goes_on_while_the_partition_does() {
    let mut driven = drive(&[
        Act::Remember(1, true),
        Act::Remember(2, true),
        Act::Associate(1, 2),
    ]);
    let view = driven.partition.view();
    let before = back_up(&view, usize::MAX);
    driven.remember("m3", [9.0; 4]);
    driven.op(associate("m1", "m2", 1.0));
    let context = driven.partition.context();
    driven.op(forget("m2", context));
    assert_eq!(back_up(&view, 1), before);
    assert_ne!(back_up(&driven.partition.view(), 1), before);
}

#[test]
fn an_edge_without_a_source_is_counted_and_left_out() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0; 4]);
    driven.op(associate("a", "absent", 0.5));
    driven.op(associate("nobody", "a", 0.5));
    let (records, hidden) = back_up(&driven.partition.view(), usize::MAX);
    assert_eq!((records.len(), hidden), (2, 1), "{records:?}");
}

#[test]
fn a_restored_edge_goes_on_as_any_other() {
    let mut driven = Driven::new();
    driven.remember("a", [1.0; 4]);
    driven.remember("b", [2.0; 4]);
    let before = driven.partition.context();
    let evidence = EvidenceSums {
        sum_wc: 3 << 31,
        sum_c: 3 << 32,
        count: 3,
        newest: Hlc::from_millis(77),
    };
    let edge = RestoreEdge {
        from: id("a"),
        to: id("b"),
        relation: relation("r"),
        evidence,
    };
    assert!(evidence.is_possible());
    let outcome = driven.op(Op::RestoreEdge(edge));
    assert_eq!(outcome, OpOutcome::Restored { fresh: true });
    let weight = |driven: &Driven| driven.neighbors("a", crate::partition::Direction::Out);
    assert_eq!(weight(&driven), [("b".to_owned(), unit(0.5).bits())]);
    driven.op(associate("a", "b", 1.0));
    assert_eq!(weight(&driven), [("b".to_owned(), unit(0.625).bits())]);
    // A removal that had not seen the restored evidence does not take it.
    driven.op(dissociate("a", "b", before));
    assert_eq!(weight(&driven), [("b".to_owned(), unit(0.625).bits())]);
    let context = driven.partition.context();
    driven.op(dissociate("a", "b", context));
    assert!(weight(&driven).is_empty());
    driven.crash(0);
    assert!(weight(&driven).is_empty());
    driven.assert_scrubs();
}

#[test]
fn impossible_sums_are_told() {
    let sums = |sum_wc, sum_c, count| EvidenceSums {
        sum_wc,
        sum_c,
        count,
        newest: Hlc::default(),
    };
    assert!(sums(0, 0, 1).is_possible());
    for bad in [sums(0, 0, 0), sums(2, 1, 1), sums(0, (1 << 32) + 1, 1)] {
        assert!(!bad.is_possible(), "{bad:?}");
    }
}
