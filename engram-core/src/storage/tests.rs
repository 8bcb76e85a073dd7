//! Both stores behave alike, against a plain sorted map as the model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..4, 0..3)
}

fn op() -> impl Strategy<Value = BatchOp> {
    let family = Family::Edges;
    prop_oneof![
        4 => (key(), any::<u8>())
            .prop_map(move |(key, byte)| BatchOp::Put { family, key, value: vec![byte] }),
        2 => key().prop_map(move |key| BatchOp::Delete { family, key }),
        1 => (key(), key()).prop_map(move |(start, end)| BatchOp::DeleteRange {
            family,
            start: start.clone().min(end.clone()),
            end: start.max(end),
        }),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn apply_to_model(model: &mut Model, op: &BatchOp) {
    match op {
        BatchOp::Put { key, value, .. } => {
            model.insert(key.clone(), value.clone());
        }
        BatchOp::Delete { key, .. } => {
            model.remove(key);
        }
        BatchOp::DeleteRange { start, end, .. } => {
            model.retain(|key, _| key < start || key >= end);
        }
    }
}

fn batch_of(ops: &[BatchOp]) -> Batch {
    let mut batch = Batch::new();
    for op in ops.iter().cloned() {
        match op {
            BatchOp::Put { family, key, value } => batch.put(family, key, value),
            BatchOp::Delete { family, key } => batch.delete(family, key),
            BatchOp::DeleteRange { family, start, end } => batch.delete_range(family, start, end),
        }
    }
    batch
}

fn contents(
    reader: &dyn Reader,
    start: &[u8],
    end: &[u8],
    order: Order,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let records = reader.scan(Family::Edges, start, end, order);
    records
        .map(|record| record.expect("readable"))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

fn check_against_model(storage: &dyn Storage, batches: &[Vec<BatchOp>], start: &[u8], end: &[u8]) {
    let mut model = Model::new();
    let mut views = Vec::new();
    for ops in batches {
        ops.iter().for_each(|op| apply_to_model(&mut model, op));
        storage
            .write(batch_of(ops), Durability::Buffered)
            .expect("written");
        views.push((storage.view(), model.clone()));
    }
    for (view, model) in views {
        let mut expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| key.as_slice() >= start && key.as_slice() < end)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert_eq!(
            contents(view.as_ref(), start, end, Order::Ascending),
            expected
        );
        expected.reverse();
        assert_eq!(
            contents(view.as_ref(), start, end, Order::Descending),
            expected
        );
        for (key, value) in &model {
            assert_eq!(
                view.get(Family::Edges, key).expect("readable").as_ref(),
                Some(value)
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_store_equals_the_model(
        batches in prop::collection::vec(prop::collection::vec(op(), 0..6), 0..8),
        start in key(),
        end in key(),
    ) {
        check_against_model(&MemoryStorage::new(), &batches, &start, &end);
    }

    #[test]
    fn a_crash_keeps_a_prefix_that_holds_all_synced_batches(
        synced in prop::collection::vec(prop::collection::vec(op(), 1..4), 0..4),
        unsynced in prop::collection::vec(prop::collection::vec(op(), 1..4), 0..4),
        kept in 0_usize..4,
    ) {
        let storage = MemoryStorage::new();
        let mut model = Model::new();
        for ops in &synced {
            storage.write(batch_of(ops), Durability::Sync).expect("written");
            ops.iter().for_each(|op| apply_to_model(&mut model, op));
        }
        for ops in &unsynced {
            storage.write(batch_of(ops), Durability::Buffered).expect("written");
        }
        unsynced.iter().take(kept).flatten().for_each(|op| apply_to_model(&mut model, op));
        let restarted = storage.crash(kept);
        let expected: Vec<_> = model.into_iter().collect();
        prop_assert_eq!(contents(&restarted, &[], &[9], Order::Ascending), expected);
        prop_assert!(storage.write(Batch::new(), Durability::Sync).is_err());
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn rocks_store_equals_the_model(
        batches in prop::collection::vec(prop::collection::vec(op(), 0..6), 0..8),
        start in key(),
        end in key(),
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let storage = RocksStorage::open(directory.path(), RocksOptions::default()).expect("open");
        check_against_model(&storage, &batches, &start, &end);
    }
}

#[test]
fn a_failed_write_poisons_the_store() {
    let storage = MemoryStorage::new();
    storage.fail_next_write();
    assert!(matches!(
        storage.write(Batch::new(), Durability::Sync),
        Err(StorageError::Write { .. })
    ));
    assert!(matches!(
        storage.write(Batch::new(), Durability::Sync),
        Err(StorageError::Poisoned)
    ));
}

const EDGES: Family = Family::Edges;

fn put(storage: &MemoryStorage, key: &[u8], value: &[u8], durability: Durability) {
    let mut batch = Batch::new();
    batch.put(EDGES, key, value);
    storage.write(batch, durability).expect("written");
}

#[test]
fn a_full_disk_refuses_everything_until_it_is_opened_again() {
    let storage = MemoryStorage::new();
    put(&storage, &[1], &[1], Durability::Sync);
    storage.fail_next_write();
    let mut batch = Batch::new();
    batch.put(EDGES, [2], [2]);
    let failed = storage.write(batch, Durability::Buffered);
    assert!(matches!(failed, Err(StorageError::Write { .. })));
    assert_eq!(
        storage.get(EDGES, &[2]).expect("readable"),
        None,
        "it was not taken"
    );
    let opened = storage.crash(usize::MAX);
    assert_eq!(opened.get(EDGES, &[1]).expect("readable"), Some(vec![1]));
    put(&opened, &[2], &[2], Durability::Sync);
}

#[test]
fn a_write_whose_sync_fails_is_there_or_not() {
    for visible in [true, false] {
        let storage = MemoryStorage::new();
        storage.fail_next_sync(visible);
        put(&storage, &[1], &[1], Durability::Buffered);
        let mut batch = Batch::new();
        batch.put(EDGES, [2], [2]);
        let failed = storage.write(batch, Durability::Sync);
        assert!(matches!(failed, Err(StorageError::Write { .. })));
        let refused = storage.write(Batch::new(), Durability::Sync);
        assert!(
            matches!(refused, Err(StorageError::Poisoned)),
            "it is not tried again"
        );
        let seen = storage.get(EDGES, &[2]).expect("readable").is_some();
        assert_eq!(seen, visible);
        for (kept, expected) in [(0, vec![]), (1, vec![1]), (2, vec![1, 2])] {
            let keys: Vec<u8> = contents(&storage.crash(kept), &[], &[9], Order::Ascending)
                .iter()
                .map(|(key, _)| key[0])
                .collect();
            assert_eq!(keys, expected, "{kept} unsynced writes survived");
        }
    }
}

#[test]
fn an_unreadable_record_stays_so_until_it_is_written() {
    let storage = MemoryStorage::new();
    for key in [1, 2, 3] {
        put(&storage, &[key], &[key], Durability::Sync);
    }
    let before = storage.view();
    assert!(storage.damage(EDGES, &[2], Damage::Unreadable));
    assert!(!storage.damage(EDGES, &[7], Damage::Unreadable));
    assert_eq!(before.get(EDGES, &[2]).expect("readable"), Some(vec![2]));
    let failed = |reader: &dyn Reader| {
        let of_scan = reader.scan(EDGES, &[], &[9], Order::Descending);
        let failed: Vec<bool> = of_scan.map(|record| record.is_err()).collect();
        assert_eq!(failed[1], reader.get(EDGES, &[2]).is_err());
        failed
    };
    assert_eq!(failed(&storage), [false, true, false]);
    assert_eq!(failed(&*storage.view()), [false, true, false]);
    let storage = storage.crash(0);
    assert_eq!(
        failed(&storage),
        [false, true, false],
        "a restart repairs nothing"
    );
    put(&storage, &[2], &[4], Durability::Buffered);
    assert_eq!(failed(&storage), [false, false, false]);
    assert_eq!(
        failed(&storage.crash(0)),
        [false, true, false],
        "the repair was not synced"
    );
    assert_eq!(failed(&storage.crash(1)), [false, false, false]);
}

#[test]
fn deleting_a_range_takes_its_unreadable_records_away() {
    let storage = MemoryStorage::new();
    for key in [1, 2, 3] {
        put(&storage, &[key], &[key], Durability::Sync);
        storage.damage(EDGES, &[key], Damage::Unreadable);
    }
    let mut batch = Batch::new();
    batch.delete_range(EDGES, [1], [3]);
    storage.write(batch, Durability::Sync).expect("written");
    put(&storage, &[2], &[5], Durability::Sync);
    assert_eq!(storage.get(EDGES, &[1]).expect("readable"), None);
    assert_eq!(storage.get(EDGES, &[2]).expect("readable"), Some(vec![5]));
    assert!(storage.get(EDGES, &[3]).is_err(), "outside the range");
}

#[test]
fn a_flipped_bit_is_served_until_the_store_is_healed() {
    let storage = MemoryStorage::new();
    put(&storage, &[1], &[0b1000, 0], Durability::Sync);
    put(&storage, &[2], &[], Durability::Sync);
    assert!(storage.damage(EDGES, &[1], Damage::FlippedBit(3)));
    storage.damage(EDGES, &[2], Damage::FlippedBit(3));
    assert_eq!(storage.get(EDGES, &[2]).expect("readable"), Some(vec![]));
    assert_eq!(storage.keys_on_disk(EDGES).len(), 2);
    let restarted = storage.crash(0);
    for reader in [&storage, &restarted] {
        assert_eq!(reader.get(EDGES, &[1]).expect("readable"), Some(vec![0, 0]));
        reader.heal();
        let healed = reader.get(EDGES, &[1]).expect("readable");
        assert_eq!(healed, Some(vec![0b1000, 0]));
    }
}

#[test]
fn prefix_ends_bound_their_prefix() {
    assert_eq!(prefix_end(&[1, 2]), vec![1, 3]);
    assert_eq!(prefix_end(&[1, 0xff]), vec![2]);
    assert!(prefix_end(&[0xff, 0xff]) > vec![0xff; 60]);
}
