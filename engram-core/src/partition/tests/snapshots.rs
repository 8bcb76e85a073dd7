//! Snapshots travel whole or not at all; restarts and generations leave no trace in the state.

use std::io::Read;
use std::sync::Arc;

use super::support::*;
use crate::command::{EdgeChange, Op, PartitionCommand};
use crate::partition::{
    Direction, InstallError, LocalChange, OpenError, Partition, PartitionOptions, StreamError,
};
use crate::storage::{Batch, Durability, Family, MemoryStorage, Order, Reader, Storage};
use crate::types::{ActorId, Hlc, MarkId, PartitionId, RequestId, SlotRange, Unit};

fn filled(memories: u32) -> Driven {
    let mut driven = Driven::new();
    for n in 0..memories {
        let mut op = remember(&n.to_string(), Some([n as f32, 1.0, (n % 7) as f32, 0.5]));
        op.edges = vec![out_edge(&(n / 2).to_string(), 0.5)];
        driven.op(Op::Remember(op));
    }
    let context = driven.partition.context();
    driven.op(forget("1", context));
    driven.apply(PartitionCommand::Mark { mark: MarkId(3) });
    driven
}

fn stream(partition: &Partition) -> Vec<u8> {
    let mut bytes = Vec::new();
    partition
        .snapshot()
        .expect("saves")
        .write_to(&mut bytes)
        .expect("writes");
    bytes
}

fn install(storage: &MemoryStorage, mut source: &[u8]) -> Result<Arc<Partition>, InstallError> {
    Partition::install(Arc::new(storage.clone()), P, &mut source, Batch::new())
}

fn local(driven: &Partition) {
    let change = LocalChange {
        request: RequestId {
            client: CLIENT,
            counter: 900,
            index: 0,
        },
        retried: false,
        stamp: Hlc(1),
        from: id("4"),
        to: id("3"),
        relation: relation("beside"),
        change: EdgeChange::Contribute {
            weight: Unit::ONE,
            confidence: Unit::ONE,
        },
    };
    driven
        .accept_local(ActorId([5; 16]), &[change])
        .expect("accepts");
}

#[test]
fn an_installed_snapshot_is_the_partition() {
    let mut driven = filled(100);
    driven.run_jobs();
    let bytes = stream(&driven.partition);
    let storage = MemoryStorage::new();
    let mut callers = Batch::new();
    callers.put(Family::Metadata, b"group".to_vec(), b"1".to_vec());
    let copy = Partition::install(Arc::new(storage.clone()), P, &mut bytes.as_slice(), callers)
        .expect("installs");
    assert!(
        storage
            .get(Family::Metadata, b"group")
            .expect("reads")
            .is_some()
    );
    let (was, is) = (driven.partition.status(), copy.status());
    assert_eq!((was.sequence, was.log_hash), (is.sequence, is.log_hash));
    assert_eq!(
        (was.memory_digest, was.edge_digest),
        (is.memory_digest, is.edge_digest)
    );
    assert_eq!(was.request_digest, is.request_digest);
    assert_eq!(was.index, is.index, "no job is to be run again");
    assert_eq!(
        copy.marked(MarkId(3)).expect("reads"),
        driven.partition.marked(MarkId(3)).expect("reads")
    );
    assert_eq!(stream(&copy), bytes);
    // The request table came along.
    let command = driven.log[5].clone();
    let again = copy
        .apply(&command, &bytes_of(&command), Batch::new())
        .expect("applies");
    assert_eq!(again.outcomes, driven.apply(command).outcomes);
    assert_eq!(
        copy.status().edge_digest,
        driven.partition.status().edge_digest
    );
}

#[test]
fn the_overlay_of_the_receiver_stays() {
    let driven = filled(20);
    local(&driven.partition);
    let bytes = stream(&driven.partition);
    let receiver = Driven::new();
    local(&receiver.partition);
    let copy = install(&receiver.storage, &bytes).expect("installs");
    assert_eq!(copy.status().overlay_deltas, 1);
    assert_eq!(neighbors(&copy, "4", Direction::Out).edges.len(), 2);
    let fresh = MemoryStorage::new();
    let copy = install(&fresh, &bytes).expect("installs");
    assert_eq!(
        copy.status().overlay_deltas,
        0,
        "it is not part of the snapshot"
    );
}

#[test]
fn a_broken_installation_is_seen_and_repeated() {
    let driven = filled(60);
    let bytes = stream(&driven.partition);
    let receiver = filled(10);
    local(&receiver.partition);
    let mut storage = receiver.storage;
    let cuts = [15, 200, bytes.len() / 2, bytes.len() - 50, bytes.len() - 1];
    for (round, cut) in cuts.into_iter().enumerate() {
        let broken = install(&storage, &bytes[..cut]);
        assert!(matches!(
            broken,
            Err(InstallError::Stream(
                StreamError::Damaged { .. } | StreamError::Io(_)
            ))
        ));
        storage = storage.crash(round);
        let opened = Partition::open(Arc::new(storage.clone()), P, None);
        if cut < 20 {
            // Not even the header was whole: nothing was touched.
            assert!(opened.is_ok());
        } else {
            assert!(matches!(opened.err(), Some(OpenError::Incomplete { .. })));
            assert!(Partition::exists(&storage, P).expect("reads"));
        }
    }
    let copy = install(&storage, &bytes).expect("installs");
    assert_eq!(
        copy.status().memory_digest,
        driven.partition.status().memory_digest
    );
    assert_eq!(copy.status().overlay_deltas, 1);
}

#[test]
fn a_crash_after_the_installation_loses_nothing() {
    let driven = filled(30);
    let bytes = stream(&driven.partition);
    let storage = MemoryStorage::new();
    install(&storage, &bytes).expect("installs");
    let copy = Partition::open(Arc::new(storage.crash(0)), P, None).expect("opens");
    let (found, view) = copy.recompute_digests().expect("reads");
    assert_eq!(found, view.digests());
    assert_eq!(found, driven.partition.view().digests());
}

#[test]
fn a_snapshot_of_another_partition_is_refused() {
    let driven = filled(5);
    let bytes = stream(&driven.partition);
    let storage = MemoryStorage::new();
    let refused = Partition::install(
        Arc::new(storage.clone()),
        PartitionId(8),
        &mut bytes.as_slice(),
        Batch::new(),
    );
    assert!(matches!(refused, Err(InstallError::WrongPartition { .. })));
    assert!(!Partition::exists(&storage, PartitionId(8)).expect("reads"));
}

#[test]
fn a_view_stays_as_it_was_while_the_log_goes_on() {
    let mut driven = filled(40);
    let snapshot = driven.partition.snapshot().expect("saves");
    let before = stream(&driven.partition);
    driven.remember("later", [1.0; 4]);
    driven.run_jobs();
    let mut after = Vec::new();
    snapshot.write_to(&mut after).expect("writes");
    assert_eq!(before, after);
}

/// Enough dead vectors for a second generation; then the records of the first go.
#[test]
fn old_generations_leave_storage() {
    let options = PartitionOptions::default();
    let mut driven = Driven::with(SlotRange::ALL, options);
    let ops = |from: u32, shift: f32| {
        let one = |n: u32| {
            let row = [n as f32 + shift, (n % 13) as f32, (n % 5) as f32, shift];
            Op::Remember(remember(&n.to_string(), Some(row)))
        };
        (from..from + 100).map(one).collect::<Vec<_>>()
    };
    let mut counter = 0;
    for from in (0..1_000).step_by(100) {
        counter += 1;
        driven.apply(write(counter, ops(from, 0.0)));
    }
    driven.run_jobs();
    for from in (0..200).step_by(100) {
        counter += 1;
        driven.apply(write(counter, ops(from, 0.5)));
    }
    assert_eq!(driven.partition.status().index.newest.generation, 2);
    // Half of the new generation's jobs are done when the process ends.
    for _ in 0..20 {
        let job = driven.partition.next_job().expect("a job");
        let linked = driven.partition.run(&job);
        driven.partition.commit(linked).expect("commits");
    }
    let mut index = Vec::new();
    driven.partition.save_index(&mut index).expect("saves");
    let mut other = Driven::with(SlotRange::ALL, options);
    other.log.clone_from(&driven.log);
    other.replay();
    driven.reopen(Some(&index));
    for driven in [&driven, &other] {
        driven.run_jobs();
        let status = driven.partition.status();
        assert_eq!(status.index.serving.generation, 2);
        let vectors = crate::keys::partition_records(P);
        let stored = driven.storage.scan(
            Family::Vectors,
            &vectors.start,
            &vectors.end,
            Order::Ascending,
        );
        assert_eq!(
            stored.count() as u64,
            u64::from(status.index.live + status.index.dead)
        );
        driven.assert_scrubs();
    }
    let position = driven.partition.index.sealed();
    assert_eq!(position, other.partition.index.sealed());
    let digest = driven.partition.index.digest_at(position);
    assert!(digest.is_some());
    assert_eq!(digest, other.partition.index.digest_at(position));
    // A replica that gets what is left has the same.
    let bytes = stream(&driven.partition);
    let copy = install(&MemoryStorage::new(), &bytes).expect("installs");
    assert_eq!(copy.index.digest_at(position), digest);
    driven.reopen(None);
    driven.run_jobs();
    assert_eq!(driven.partition.index.digest_at(position), digest);
}

/// A source that fails as a broken connection does.
struct Breaking<'a>(&'a [u8]);

impl Read for Breaking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::Error::other("the connection broke")),
            count => Ok(count),
        }
    }
}

#[test]
fn a_broken_connection_is_an_error() {
    let driven = filled(10);
    let bytes = stream(&driven.partition);
    let storage = MemoryStorage::new();
    storage
        .write(Batch::new(), Durability::Sync)
        .expect("writes");
    let mut source = Breaking(&bytes[..bytes.len() - 20]);
    let broken = Partition::install(Arc::new(storage), P, &mut source, Batch::new());
    assert!(matches!(
        broken,
        Err(InstallError::Stream(StreamError::Io(_)))
    ));
}
