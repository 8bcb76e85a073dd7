//! The same on a real disk: RocksDB answers as memory does, and a process that ends without a word
//! leaves what it had synced.

use std::sync::Arc;

use engram_core::command::PartitionCommand;
use engram_core::partition::{Partition, RecallQuery};
use engram_core::storage::{Batch, Durability, MemoryStorage, RocksOptions, RocksStorage, Storage};
use engram_core::types::{Decay, Embedding, MarkId, Metric, PartitionId, SlotRange};

use crate::common::{Numbers, associate, config, forget, id, relation, remember, write};

const P: PartitionId = PartitionId(4);

fn log() -> Vec<PartitionCommand> {
    let mut numbers = Numbers(11);
    let mut log = Vec::new();
    for n in 0..120 {
        let row = Embedding::new(numbers.row(8), 8, Metric::Cosine).expect("a direction");
        let edge = engram_core::command::OutEdge {
            to: id(numbers.below(120)),
            relation: relation(n),
            weight: numbers.unit(),
            confidence: numbers.unit(),
        };
        let ops = vec![
            remember(n, Some(row), vec![edge.clone()]),
            associate(n / 2, edge),
        ];
        log.push(write(n as u64 + 1, ops));
    }
    log.extend((0..20).map(|n| write(200 + n as u64, vec![forget(n * 3)])));
    log.push(PartitionCommand::Mark { mark: MarkId(1) });
    log
}

fn create(storage: &Arc<dyn Storage>) -> Arc<Partition> {
    let mut batch = Batch::new();
    let (storage_of, config) = (Arc::clone(storage), config(8, Decay::None));
    let partition = Partition::create(storage_of, P, config, SlotRange::ALL, &mut batch);
    storage.write(batch, Durability::Sync).expect("writes");
    partition
}

fn feed(partition: &Partition) {
    for command in &log()[partition.sequence().0 as usize - 1..] {
        partition
            .apply(command, &[], Batch::new())
            .expect("applies");
    }
    while let Some(job) = partition.next_job() {
        partition.commit(partition.run(&job)).expect("commits");
    }
}

#[test]
fn a_disk_answers_as_memory_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || -> Arc<dyn Storage> {
        let storage = RocksStorage::open(directory.path(), RocksOptions::default());
        Arc::new(storage.expect("opens"))
    };
    let in_memory = create(&(Arc::new(MemoryStorage::new()) as Arc<dyn Storage>));
    feed(&in_memory);
    let (mut index, mut snapshot) = (Vec::new(), Vec::new());
    {
        let partition = create(&open());
        feed(&partition);
        partition.save_index(&mut index).expect("saves");
        partition
            .snapshot()
            .expect("saves")
            .write_to(&mut snapshot)
            .expect("writes");
    }
    let storage = open();
    let again =
        Partition::open(Arc::clone(&storage), P, Some(&mut index.as_slice())).expect("opens");
    let marked = |partition: &Partition| partition.marked(MarkId(1)).expect("reads").expect("it");
    assert_eq!(marked(&again), marked(&in_memory));
    assert!(marked(&again).topology.is_some());
    let (found, view) = again.recompute_digests().expect("reads");
    assert_eq!(found, view.digests());
    let row = Numbers(5).row(8);
    let query = RecallQuery::new(&row, 10);
    assert_eq!(
        again.recall(&query).expect("recalls"),
        in_memory.recall(&query).expect("recalls")
    );
    drop((again, view));
    // Over what is there, as after a long absence.
    let source = &mut snapshot.as_slice();
    let installed = Partition::install(storage, P, source, Batch::new()).expect("installs");
    assert_eq!(marked(&installed), marked(&in_memory));
    assert_eq!(
        installed.status().memory_digest,
        in_memory.status().memory_digest
    );
}
