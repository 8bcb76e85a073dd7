//! A data group's machine fed with entries as consensus would, through crashes and snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_core::command::{
    Applied, Expected, Op, OpOutcome, PartitionCommand, Rejection, Remember, Write,
};
use engram_core::partition::Partition;
use engram_core::storage::{Batch, Durability, MemoryStorage, RocksOptions, Storage};
use engram_core::types::{
    ClientId, Decay, Embedding, GroupId, Hlc, IndexParameters, MemoryId, Metric, PartitionId,
    SlotRange, SpaceConfig, SpaceId, Unit,
};
use engram_proto::convert::{decode_applied, encode_group_command};

use super::{INDEX_TAIL_MAX_DEFAULT, INDEX_TAIL_MAX_LEAST, LinkGate, LinkingLags, Replicas};
use crate::consensus::{Machine, MachineError, MachineFactory as _};
use crate::seams::{Seams, os};

const GROUP: GroupId = GroupId(5);
const FIRST: PartitionId = PartitionId(11);
const SECOND: PartitionId = PartitionId(12);
const DIMENSION: u32 = 4;

/// One node's replicas of one group.
struct Node {
    seams: Seams,
    dir: tempfile::TempDir,
    storage: MemoryStorage,
    replicas: Arc<Replicas>,
    machine: Arc<dyn Machine>,
}

impl Node {
    fn new() -> Self {
        Self::over(MemoryStorage::new(), tempfile::tempdir().unwrap())
    }

    fn over(storage: MemoryStorage, dir: tempfile::TempDir) -> Self {
        let seams = os::seams(RocksOptions::default());
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let replicas = Replicas::new(seams.clone(), shared, dir.path(), INDEX_TAIL_MAX_DEFAULT);
        let machine = replicas.open(GROUP).unwrap();
        Self {
            seams,
            dir,
            storage,
            replicas,
            machine,
        }
    }

    fn apply(&self, id: PartitionId, command: &PartitionCommand) -> Applied {
        let entry = encode_group_command(id, command);
        decode_applied(&self.machine.apply(&entry, Batch::new()).unwrap()).unwrap()
    }

    fn partition(&self, id: PartitionId) -> Arc<Partition> {
        self.replicas.partition(id).unwrap()
    }

    fn ids(&self) -> Vec<(GroupId, PartitionId)> {
        self.replicas
            .partitions()
            .iter()
            .map(|(group, open)| (*group, open.id()))
            .collect()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.machine
            .snapshot()
            .unwrap()
            .write_to(&mut bytes)
            .unwrap();
        bytes
    }

    /// The machine restarts; what was not synced is there all the same.
    fn restart(self) -> Self {
        let storage = self.storage.crash(usize::MAX);
        Self::over(storage, self.dir)
    }

    async fn until_linked(&self, id: PartitionId) {
        for _ in 0..2_000 {
            if self.partition(id).status().index.jobs_waiting == 0 {
                return;
            }
            self.seams.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("partition {id} still has jobs");
    }
}

fn create() -> PartitionCommand {
    let config = SpaceConfig {
        space: SpaceId(1),
        name: "test".into(),
        dimension: DIMENSION,
        metric: Metric::L2,
        index: IndexParameters {
            m: 4,
            ef_construction: 16,
            ..IndexParameters::new(3)
        },
        embedding_model: String::new(),
        decay: Decay::None,
    };
    PartitionCommand::Create {
        config,
        slots: SlotRange::ALL,
    }
}

fn remember(counter: u64) -> PartitionCommand {
    let row = vec![
        counter as f32,
        (counter % 7) as f32,
        (counter % 3) as f32,
        1.0,
    ];
    let remember = Remember {
        id: MemoryId::new(format!("m{counter}")).unwrap(),
        content: format!("memory {counter}"),
        embedding: Some(Embedding::new(row, DIMENSION, Metric::L2).unwrap()),
        embedding_model: String::new(),
        labels: BTreeSet::new(),
        properties: BTreeMap::new(),
        confidence: Unit::ONE,
        edges: Vec::new(),
        expected: Expected::Anything,
    };
    PartitionCommand::Write(Write {
        client: ClientId([1; 16]),
        counter,
        retried: false,
        stamp: Hlc::from_millis(1_000 + counter),
        ops: vec![(0, Op::Remember(remember))],
    })
}

/// What replicas must agree on.
fn state(partition: &Partition) -> (u64, u64, [u8; 32], u128, u128) {
    let status = partition.status();
    let digests = (status.memory_digest, status.edge_digest);
    (
        status.sequence.0,
        status.memories,
        status.log_hash,
        digests.0,
        digests.1,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_and_go_with_the_log() {
    let node = Node::new();
    assert_eq!(node.apply(FIRST, &create()).sequence.0, 1);
    assert_eq!(node.apply(SECOND, &create()).sequence.0, 1);
    let written = node.apply(FIRST, &remember(1));
    assert!(matches!(
        written.outcomes[..],
        [(0, OpOutcome::Remembered { created: true, .. })]
    ));
    // Created a second time by someone who did not know: nothing happens.
    assert_eq!(node.apply(FIRST, &create()).sequence.0, 2);
    assert_eq!(node.ids(), [(GROUP, FIRST), (GROUP, SECOND)]);

    node.apply(FIRST, &PartitionCommand::Drop);
    assert_eq!(node.ids(), [(GROUP, SECOND)]);
    let late = node.apply(FIRST, &remember(2));
    assert_eq!(
        late.outcomes,
        [(0, OpOutcome::Rejected(Rejection::NotInPartition))]
    );
    node.apply(FIRST, &create());
    assert_eq!(node.ids(), [(GROUP, SECOND)], "an id is never used again");

    let node = node.restart();
    assert_eq!(node.ids(), [(GROUP, SECOND)]);
    let late = node.apply(FIRST, &remember(3));
    assert_eq!(
        late.outcomes,
        [(0, OpOutcome::Rejected(Rejection::NotInPartition))]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_understood_is_an_error() {
    let node = Node::new();
    node.apply(FIRST, &create());
    let mut entry = encode_group_command(FIRST, &remember(1)).to_vec();
    // Field 15, which no version has.
    entry.extend([0x78, 0x01]);
    let refused = node.machine.apply(&entry, Batch::new()).unwrap_err();
    assert!(
        matches!(refused, MachineError::NotUnderstood(_)),
        "{refused}"
    );
    let refused = node
        .machine
        .apply(&Bytes::from_static(b"\xff\xff"), Batch::new())
        .unwrap_err();
    assert!(
        matches!(refused, MachineError::NotUnderstood(_)),
        "{refused}"
    );
    assert_eq!(node.partition(FIRST).sequence().0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_makes_an_equal_replica() {
    let source = Node::new();
    for id in [FIRST, SECOND] {
        source.apply(id, &create());
        (1..100).for_each(|counter| drop(source.apply(id, &remember(counter))));
    }
    source.apply(SECOND, &PartitionCommand::Drop);
    let snapshot = source.snapshot();

    let target = Node::new();
    target.apply(SECOND, &create());
    target
        .machine
        .install(&mut snapshot.as_slice(), Batch::new())
        .unwrap();
    assert_eq!(target.ids(), [(GROUP, FIRST)]);
    assert_eq!(
        state(&target.partition(FIRST)),
        state(&source.partition(FIRST))
    );
    target.apply(FIRST, &remember(100));
    source.apply(FIRST, &remember(100));
    assert_eq!(
        state(&target.partition(FIRST)),
        state(&source.partition(FIRST))
    );
    let target = target.restart();
    assert_eq!(target.ids(), [(GROUP, FIRST)]);
    assert_eq!(
        state(&target.partition(FIRST)),
        state(&source.partition(FIRST))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_installed_snapshot_serves_nothing_until_it_is_whole() {
    let source = Node::new();
    source.apply(FIRST, &create());
    (1..200).for_each(|counter| drop(source.apply(FIRST, &remember(counter))));
    let snapshot = source.snapshot();

    let target = Node::new();
    target.apply(FIRST, &create());
    let torn = &snapshot[..snapshot.len() - 40];
    assert!(target.machine.install(&mut &*torn, Batch::new()).is_err());
    let target = target.restart();
    assert_eq!(target.ids(), []);
    let entry = encode_group_command(FIRST, &remember(1));
    assert!(target.machine.apply(&entry, Batch::new()).is_err());
    target
        .machine
        .install(&mut snapshot.as_slice(), Batch::new())
        .unwrap();
    assert_eq!(
        state(&target.partition(FIRST)),
        state(&source.partition(FIRST))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_run_and_their_links_are_there_after_a_restart() {
    let node = Node::new();
    node.apply(FIRST, &create());
    (1..600).for_each(|counter| drop(node.apply(FIRST, &remember(counter))));
    node.until_linked(FIRST).await;
    let linked = node.partition(FIRST).status().index.newest;
    assert!(linked.jobs > 0);
    node.replicas.save_indexes().await;

    let node = node.restart();
    // Read at once: the runner may not have had the time to link anything.
    let restored = node.partition(FIRST).status().index.newest;
    assert_eq!(
        (restored.generation, restored.jobs),
        (linked.generation, linked.jobs)
    );
}

/// Nobody links, and a writer is refused; somebody does, and it goes on.
#[tokio::test]
async fn writers_wait_while_linking_lags() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let PartitionCommand::Create { config, slots } = create() else {
        unreachable!("it is a creation");
    };
    let mut batch = Batch::new();
    let partition = Partition::create(Arc::clone(&storage), FIRST, config, slots, &mut batch);
    storage.write(batch, Durability::Buffered).unwrap();
    let seams = os::seams(RocksOptions::default());
    let gate = LinkGate::new(0);
    let (tail_max, tail) = (INDEX_TAIL_MAX_LEAST, INDEX_TAIL_MAX_LEAST + 1);
    for counter in 1..=u64::from(tail) {
        let passed = gate.pass(&seams, &partition, Duration::ZERO).await;
        assert_eq!(passed, Ok(()), "the tail is within the bound");
        let command = remember(counter);
        let entry = encode_group_command(FIRST, &command);
        partition.apply(&command, &entry, Batch::new()).unwrap();
    }
    let refused = gate
        .pass(&seams, &partition, Duration::from_millis(10))
        .await;
    assert_eq!(refused, Err(LinkingLags { tail, tail_max }));

    let link = async {
        while let Some(job) = partition.next_job() {
            tokio::task::yield_now().await;
            partition.commit(partition.run(&job)).unwrap();
            gate.open();
        }
    };
    let wait = Duration::from_secs(60);
    let (passed, ()) = tokio::join!(gate.pass(&seams, &partition, wait), link);
    assert_eq!(passed, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_group_leaves_nothing() {
    let node = Node::new();
    node.apply(FIRST, &create());
    (1..50).for_each(|counter| drop(node.apply(FIRST, &remember(counter))));
    node.replicas.save_indexes().await;
    node.replicas.destroy(GROUP, Batch::new()).unwrap();
    node.replicas.destroy(GROUP, Batch::new()).unwrap();
    assert_eq!(node.ids(), []);
    assert_eq!(node.storage.bytes_on_disk(), 0);
    assert!(!Partition::exists(node.storage.view().as_ref(), FIRST).unwrap());
}
