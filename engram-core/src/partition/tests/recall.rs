//! Recall: filters inside the search, and one state while the log goes on.

use std::sync::atomic::{AtomicBool, Ordering};

use super::support::*;
use crate::command::Op;
use crate::filter::Filter;
use crate::partition::{ReadError, RecallQuery};
use crate::storage::Batch;

fn labelled(count: u32) -> Driven {
    let mut driven = Driven::new();
    for n in 0..count {
        let mut op = remember(&format!("m{n}"), Some([n as f32, 0.0, 0.0, 0.0]));
        op.labels = [if n % 10 == 0 { "tenth" } else { "other" }.to_owned()].into();
        driven.op(Op::Remember(op));
    }
    driven.run_jobs();
    driven
}

#[test]
fn filters_and_exclusion_cost_no_place() {
    let driven = labelled(100);
    let filter = Filter::parse("label = \"tenth\"").expect("a filter");
    let excluded = id("m10");
    let query = RecallQuery {
        filter: Some(&filter),
        exclude: Some(&excluded),
        ..RecallQuery::new(&[11.0, 0.0, 0.0, 0.0], 3)
    };
    let recalled = driven.partition.recall(&query).expect("recalls");
    let ids: Vec<&str> = recalled
        .hits
        .iter()
        .map(|hit| hit.memory.id.as_str())
        .collect();
    assert_eq!(ids, ["m20", "m0", "m30"]);
}

#[test]
fn unusable_queries_are_refused() {
    let driven = labelled(3);
    let refused = |query: RecallQuery<'_>| driven.partition.recall(&query).expect_err("refused");
    let short = refused(RecallQuery::new(&[1.0], 3));
    assert!(matches!(
        short,
        ReadError::WrongDimension {
            expected: 4,
            actual: 1
        }
    ));
    let nan = refused(RecallQuery::new(&[1.0, 0.0, f32::NAN, 0.0], 3));
    assert!(matches!(nan, ReadError::NotFinite { position: 2 }));
    let many = refused(RecallQuery::new(&[0.0; 4], 1_000_000));
    assert!(matches!(many, ReadError::TooLarge { what: "limit", .. }));
    let none = driven
        .partition
        .recall(&RecallQuery::new(&[0.0; 4], 0))
        .expect("recalls");
    assert!(none.hits.is_empty());
}

/// A memory whose embedding is replaced all the time is in every answer, with one of its
/// embeddings.
#[test]
fn a_replaced_memory_is_never_missed() {
    let driven = labelled(20);
    let done = AtomicBool::new(false);
    let partition = std::sync::Arc::clone(&driven.partition);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                let query = RecallQuery::new(&[3.0, 0.0, 0.0, 0.0], 50);
                let recalled = partition.recall(&query).expect("recalls");
                assert_eq!(recalled.hits.len(), 20, "at {}", recalled.sequence);
                assert!(recalled.sequence.0 >= last);
                last = recalled.sequence.0;
            }
        });
        for n in 0..600_u64 {
            let row = [(n % 7) as f32, 1.0, 0.0, 0.0];
            let command = write(1_000 + n, vec![Op::Remember(remember("m3", Some(row)))]);
            driven
                .partition
                .apply(&command, &[], Batch::new())
                .expect("applies");
        }
        done.store(true, Ordering::Release);
        reader.join().expect("no answer was incomplete");
    });
}

#[test]
fn comparing_says_what_a_recall_says() {
    let driven = labelled(30);
    let mut bare = remember("bare", None);
    bare.content = "without an embedding".into();
    let mut driven = driven;
    driven.op(Op::Remember(bare));
    let vector = [11.0, 2.0, 0.0, 0.5];
    let recalled = driven
        .partition
        .recall(&RecallQuery::new(&vector, 30))
        .expect("recalls");
    let mut ids: Vec<_> = recalled
        .hits
        .iter()
        .map(|hit| hit.memory.id.clone())
        .collect();
    ids.extend([id("bare"), id("nobody")]);
    let view = driven.partition.view();
    let compared = view.compare(&vector, &ids).expect("compares");
    assert_eq!(compared.len(), 32);
    for (hit, compared) in recalled.hits.iter().zip(&compared) {
        let compared = compared.as_ref().expect("it is there");
        assert_eq!(compared.memory, hit.memory);
        let bits = compared.distance.expect("it has an embedding").to_bits();
        assert_eq!(bits, hit.distance.to_bits());
    }
    let bare = compared[30].as_ref().expect("it is there");
    assert_eq!((bare.distance, compared[31].is_none()), (None, true));
    let unasked = view.compare(&[], &ids[..1]).expect("compares nothing");
    assert_eq!(unasked[0].as_ref().expect("there").distance, None);
    assert!(matches!(
        view.compare(&[1.0], &ids),
        Err(ReadError::WrongDimension { .. })
    ));
}
