//! openraft's own conformance suite over both stores, and what it does not look at: the checksum
//! chain, the order of writes and failed writes.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use engram_core::storage::{
    Batch, Damage, Durability, Family, MemoryStorage, RocksOptions, RocksStorage, Storage,
};
use engram_core::types::GroupId;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use openraft::{RaftLogReader as _, StorageError};
use proptest::prelude::*;

use super::record::{self, CHAIN_START};
use super::{LogStore, LogWriter, Marks};
use crate::consensus::MachineFactory as _;
use crate::consensus::damage::Damages;
use crate::consensus::keys;
use crate::consensus::runtime::{Command, CommittedLeaderId, Entry, LogId, Payload, Types, Vote};
use crate::consensus::snapshot::SnapshotStore;
use crate::consensus::state::StateMachine;
use crate::consensus::tests::toys;
use crate::seams::{Seams, os};

const GROUP: GroupId = GroupId(3);
const PIN: std::time::Duration = std::time::Duration::from_secs(1);

fn seams() -> Seams {
    os::seams(RocksOptions::default())
}

fn open(storage: &Arc<dyn Storage>) -> LogStore {
    try_open(storage).unwrap()
}

fn try_open(storage: &Arc<dyn Storage>) -> Result<LogStore, engram_core::storage::StorageError> {
    let seams = seams();
    let nowhere = tempfile::tempdir().unwrap();
    let marks = Marks::open(&seams, nowhere.path(), false);
    let writer = LogWriter::start(&seams, Arc::clone(storage), marks);
    let (sizes, damages) = ((1 << 16, 1 << 16), Damages::default());
    LogStore::open(GROUP, &seams, Arc::clone(storage), writer, sizes, damages)
}

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let storage = MemoryStorage::new();
    (storage.clone(), Arc::new(storage))
}

struct Builder {
    store: fn(PathBuf) -> Arc<dyn Storage>,
}

impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let storage = (self.store)(dir.path().join("store"));
        let machine = toys(&storage).open(GROUP).unwrap();
        let snapshots = SnapshotStore::new(&seams(), dir.path(), u64::MAX, PIN);
        let log = open(&storage);
        let (ends, damages) = (log.ends(), Damages::default());
        let (state, _gone) =
            StateMachine::open(GROUP, &seams(), storage, machine, snapshots, ends, damages)
                .unwrap();
        Ok((dir, log, state))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_in_memory() {
    let store = |_| Arc::new(MemoryStorage::new()) as Arc<dyn Storage>;
    Suite::test_all(Builder { store }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_rocksdb() {
    let store = |path: PathBuf| {
        let sizes = RocksOptions {
            block_cache_bytes: 1 << 20,
            write_buffer_bytes: 1 << 20,
        };
        Arc::new(RocksStorage::open(&path, sizes).unwrap()) as Arc<dyn Storage>
    };
    Suite::test_all(Builder { store }).await.unwrap();
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1), index)
}

fn entry(index: u64) -> Entry {
    let command = Command(Bytes::from(format!("entry {index}")));
    Entry {
        log_id: log_id(index),
        payload: Payload::Normal(command),
    }
}

/// Appends and waits until it is durable.
async fn append(log: &mut LogStore, indexes: std::ops::Range<u64>) -> std::io::Result<()> {
    let (done, durable) = Types::oneshot();
    log.append(indexes.map(entry), IOFlushed::signal(done))
        .await?;
    durable.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_there_after_a_crash_and_chained_after_a_purge() {
    let (memory, storage) = memory();
    let mut log = open(&storage);
    log.save_vote(&Vote::new(4, 2)).await.unwrap();
    append(&mut log, 0..10).await.unwrap();
    log.purge(log_id(3)).await.unwrap();
    append(&mut log, 10..12).await.unwrap();

    let storage: Arc<dyn Storage> = Arc::new(memory.crash(0));
    let mut log = open(&storage);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(4, 2)));
    let entries = log.try_get_log_entries(0..100).await.unwrap();
    assert_eq!(entries, (4..12).map(entry).collect::<Vec<_>>());
    append(&mut log, 12..14).await.unwrap();
    log.drop_cache();
    let entries = log.try_get_log_entries(6..13).await.unwrap();
    assert_eq!(entries, (6..13).map(entry).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_tail_is_written_anew() {
    let (memory, storage) = memory();
    let mut log = open(&storage);
    append(&mut log, 0..10).await.unwrap();
    log.truncate_after(Some(log_id(4))).await.unwrap();
    append(&mut log, 5..7).await.unwrap();
    let mut log = open(&(Arc::new(memory.crash(0)) as Arc<dyn Storage>));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..7).map(entry).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_record_is_an_error_and_never_skipped() {
    let (_, storage) = memory();
    let mut log = open(&storage);
    append(&mut log, 0..10).await.unwrap();
    log.drop_cache();
    let key = keys::record(GROUP, 5);
    let mut bytes = storage.get(Family::Log, &key).unwrap().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let mut batch = Batch::new();
    batch.put(Family::Log, key.clone(), bytes);
    storage.write(batch, Durability::Sync).unwrap();
    let error = log.try_get_log_entries(0..10).await.unwrap_err();
    assert!(error.to_string().contains("log record 5"), "{error}");
    assert_eq!(log.try_get_log_entries(0..5).await.unwrap().len(), 5);

    let mut batch = Batch::new();
    batch.delete(Family::Log, key);
    storage.write(batch, Durability::Sync).unwrap();
    let error = log.try_get_log_entries(0..10).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_record_says_of_itself_is_not_believed() {
    let (memory, storage) = memory();
    let mut log = open(&storage);
    log.save_vote(&Vote::new(4, 2)).await.unwrap();
    append(&mut log, 0..10).await.unwrap();
    // A bit of the term.
    memory.damage(Family::Log, &keys::record(GROUP, 9), Damage::FlippedBit(42));
    let error = try_open(&storage).err().expect("its end is not known");
    assert!(error.to_string().contains("log record 9"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_reads_are_bounded_by_bytes_but_never_empty() {
    let (_, storage) = memory();
    let mut log = open(&storage);
    let big = |index| Entry {
        log_id: log_id(index),
        payload: Payload::Normal(Command(Bytes::from(vec![0; 40_000]))),
    };
    let (done, durable) = Types::oneshot();
    log.append((0..6).map(big), IOFlushed::signal(done))
        .await
        .unwrap();
    durable.await.unwrap().unwrap();
    assert_eq!(log.limited_get_log_entries(0, 6).await.unwrap().len(), 2);
    assert_eq!(log.limited_get_log_entries(5, 6).await.unwrap().len(), 1);
    log.drop_cache();
    assert_eq!(log.limited_get_log_entries(1, 6).await.unwrap().len(), 2);
    assert_eq!(log.try_get_log_entries(0..6).await.unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_write_nothing_is_written_any_more() {
    let (memory, storage) = memory();
    let mut log = open(&storage);
    append(&mut log, 0..3).await.unwrap();
    memory.fail_next_write();
    assert!(append(&mut log, 3..4).await.is_err());
    assert!(append(&mut log, 4..5).await.is_err());
    assert!(log.save_vote(&Vote::new(9, 9)).await.is_err());
    assert_eq!(log.read_vote().await.unwrap(), None);
    let mut log = open(&(Arc::new(memory.crash(usize::MAX)) as Arc<dyn Storage>));
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 3);
}

proptest! {
    #[test]
    fn records_keep_their_entry_and_their_chain(
        previous: u32, term: u64, index: u64, content: Vec<u8>, flip: prop::sample::Index,
    ) {
        let payload = Payload::Normal(Command(Bytes::from(content)));
        let entry = Entry { log_id: LogId::new(CommittedLeaderId::new(term), index), payload };
        let (mut bytes, chain) = record::encode(previous, &entry);
        prop_assert_eq!(record::decode(previous, index, &bytes).unwrap(), (entry, chain));
        prop_assert!(record::decode(previous ^ 1, index, &bytes).is_err());
        let at = flip.index(bytes.len());
        bytes[at] ^= 0x10;
        prop_assert!(record::decode(previous, index, &bytes).is_err());
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes: Vec<u8>) {
        let _ = record::decode(CHAIN_START, 0, &bytes);
    }
}
