use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::command::{Expected, Rejection};
use crate::partition::{Direction, RecallQuery};
use crate::types::{MemoryId, Unit};

const OPTIONS: EngramOptions = EngramOptions {
    now_millis: || 5_000,
    seed: [3; 16],
};

fn id(text: &str) -> MemoryId {
    MemoryId::new(text).expect("a valid id")
}

fn memory(name: &str, row: [f32; 2]) -> NewMemory {
    NewMemory::new(format!("about {name}"))
        .id(name)
        .expect("id")
        .embedding(row.to_vec())
}

fn nearest(space: &Space, row: [f32; 2]) -> Vec<String> {
    let recalled = space.recall(&RecallQuery::new(&row, 10)).expect("recalls");
    recalled
        .hits
        .iter()
        .map(|hit| hit.memory.id.to_string())
        .collect()
}

fn fill(space: &Space) {
    space.remember(memory("a", [1.0, 0.0])).expect("stores");
    let b = memory("b", [0.0, 1.0])
        .edge("a", "near", 0.5, 1.0)
        .expect("edge");
    space.remember(b).expect("stores");
    space
        .strengthen(&id("a"), &id("b"), "near", Unit::ONE)
        .expect("strengthens");
}

fn check(space: &Space) {
    assert_eq!(nearest(space, [0.9, 0.1]), ["a", "b"]);
    let relations = BTreeSet::new();
    let out = space
        .neighbors(&id("b"), Direction::Out, &relations, 9)
        .expect("reads");
    assert_eq!(out.edges[0].weight, Unit::from_f64(0.5).expect("unit"));
    let spread = space.spread(&SpreadQuery::from_seeds([("b", 1.0)]).expect("seeds"));
    let spread = spread.expect("spreads");
    assert_eq!(spread.activated.len(), 2);
    assert!(!spread.activated[1].path.is_empty());
    assert!(space.verify().expect("reads"));
}

#[test]
fn a_store_is_the_same_after_every_crash() {
    let disk = MemoryStorage::new();
    let engram = Engram::on(Arc::new(disk.clone()), OPTIONS).expect("opens");
    let space = engram.create_space(NewSpace::new("s", 2)).expect("creates");
    fill(&space);
    check(&space);
    // Nothing that was not synced survives, and nothing is missing.
    let engram = Engram::on(Arc::new(disk.crash(0)), OPTIONS).expect("opens");
    assert_eq!(engram.spaces(), ["s"]);
    let space = engram.space("s").expect("the space");
    check(&space);
    // A second opening does not repeat the request ids of the first.
    let made = space
        .remember(NewMemory::new("no id").embedding(vec![1.0, 1.0]))
        .expect("stores");
    assert!(made.created);
    assert_eq!(space.status().memories, 3);
}

#[test]
fn a_checkpoint_spares_the_linking() {
    let disk = MemoryStorage::new();
    let engram = Engram::on(Arc::new(disk.clone()), OPTIONS).expect("opens");
    let space = engram.create_space(NewSpace::new("s", 2)).expect("creates");
    for n in 0..100 {
        space
            .remember(memory(&n.to_string(), [n as f32, 1.0]))
            .expect("stores");
    }
    space.link_all().expect("links");
    let before = space.status().index;
    engram.checkpoint().expect("saves");
    let engram = Engram::on(Arc::new(disk), OPTIONS).expect("opens");
    assert_eq!(engram.space("s").expect("the space").status().index, before);
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let engram = Engram::in_memory(OPTIONS).expect("opens");
    let space = engram.create_space(NewSpace::new("s", 2)).expect("creates");
    let refused = |memory: NewMemory| {
        assert!(matches!(space.remember(memory), Err(WriteError::Input(_))));
    };
    refused(NewMemory::new("").embedding(vec![1.0]));
    refused(NewMemory::new("").embedding(vec![0.0, 0.0]));
    refused(NewMemory::new("").embedding(vec![f32::NAN, 0.0]));
    refused(NewMemory::new("").label(""));
    refused(NewMemory::new("x".repeat(limits_content() + 1)));
    assert!(NewMemory::new("").id("").is_err());
    assert!(NewMemory::new("").confidence(1.5).is_err());
    assert!(NewMemory::new("").edge("b", "", 0.5, 0.5).is_err());
    let missing = memory("a", [1.0, 0.0]).expecting(Expected::Version(crate::types::Sequence(9)));
    let refused = space.remember(missing);
    let mismatch = |error| {
        matches!(
            error,
            WriteError::Rejected(Rejection::VersionMismatch { .. })
        )
    };
    assert!(refused.is_err_and(mismatch));
    assert_eq!(space.status().memories, 0);
    assert!(space.recall(&RecallQuery::new(&[1.0], 5)).is_err());
}

fn limits_content() -> usize {
    crate::limits::CONTENT_BYTES_MAX
}

#[test]
fn spaces_are_made_once_and_dropped_whole() {
    let engram = Engram::in_memory(OPTIONS).expect("opens");
    let new = NewSpace::new("s", 2);
    let space = engram.create_space(new.clone()).expect("creates");
    space.remember(memory("a", [1.0, 0.0])).expect("stores");
    engram.create_space(new.clone()).expect("finds it");
    let other = NewSpace {
        dimension: 3,
        ..new.clone()
    };
    let refused = engram.create_space(other);
    assert!(matches!(refused, Err(EngramError::SpaceExists { .. })));
    assert!(engram.create_space(NewSpace::new("", 2)).is_err());
    engram.drop_space("s").expect("drops");
    assert!(space.remember(memory("b", [1.0, 0.0])).is_err());
    assert!(matches!(
        engram.space("s"),
        Err(EngramError::NoSuchSpace { .. })
    ));
    let again = engram.create_space(new).expect("creates");
    assert_eq!(again.status().memories, 0);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_store_on_disk_opens_again() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let engram = Engram::open(directory.path(), OPTIONS).expect("opens");
        let space = engram.create_space(NewSpace::new("s", 2)).expect("creates");
        fill(&space);
        engram.checkpoint().expect("saves");
    }
    let engram = Engram::open(directory.path(), OPTIONS).expect("opens");
    check(&engram.space("s").expect("the space"));
}
