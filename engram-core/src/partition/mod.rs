//! One replica's copy of one partition: a deterministic function of the partition's log.
//!
//! The node's state machine (or the embedded facade) feeds [`Partition::apply`] with the log;
//! services read; the node's pools run the index jobs. What must hold: replicas that applied the
//! same commands have the same state and digests; a command is there whole or not at all; a read
//! shows one sequence and one overlay; nothing here knows a clock, a random number or a thread.
//!
//! ```text
//! log -> apply -> Step (records as the command leaves them) -> batch -> storage
//!                                                                  \-> index, published state
//! ```
//!
//! Verbs: `apply`, `open`, `snapshot` (and installing one), `recall`, `scrub`. Nouns: `record` (what
//! is stored), `step` (one command on its way), `overlay` (changes the log does not have yet),
//! `requests` (applied request ids), `view` (one state as readers see it), `graph`
//! (the edges as arrays).

mod adjacency;
mod apply;
mod backup;
mod compare;
mod digest;
mod expand;
mod folding;
mod graph;
mod local;
mod open;
mod overlay;
mod read;
mod recall;
mod record;
mod requests;
mod scrub;
mod snapshot;
mod step;
mod step_edges;
mod stream;
#[cfg(test)]
mod tests;
mod touched;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use roaring::RoaringTreemap;

pub use adjacency::{EdgeAges, PartitionAdjacency};
pub use apply::ApplyError;
pub use backup::{BackupKey, BackupRecord};
pub use compare::Compared;
pub use folding::{FoldPage, FoldScan, NumberedConflict};
pub use graph::{BuiltGraph, GraphError, GraphJob, InEdge};
pub use local::{LocalChange, LocalError, ReceivedOverlay, ReplicaPosition};
pub use open::{OpenError, PartitionOptions};
pub use overlay::{OverlayStats, delta_bytes};
pub use recall::{RecallHit, RecallQuery, Recalled};
pub use record::ConflictRecord;
pub use requests::RequestBounds;
pub use scrub::{Digests, MarkDigests};
pub use snapshot::{InstallError, PartitionSnapshot, SnapshotWriteError};
pub use stream::StreamError;
pub use view::{
    Direction, EdgePage, Found, FoundEdge, FoundMemory, MemoryPage, Neighbors, NeighborsQuery,
    PartitionView, ReadError,
};

use self::graph::GraphVersion;
use self::overlay::Overlay;
use self::record::{PurgeRecord, StateRecord};
use self::requests::RequestTable;
use crate::index::{
    Crew, Generation, IndexPosition, IndexStatus, Job, LinkedWindow, PartitionIndex,
    TopologyDigest, VectorId,
};
use crate::keys;
use crate::planted;
use crate::storage::{Batch, Durability, Family, Storage, StorageError};
use crate::types::{
    EdgeContext, MarkId, OverlayContext, PartitionId, Sequence, SlotRange, SpaceConfig,
};

/// One replica's copy of one partition.
pub struct Partition {
    id: PartitionId,
    storage: Arc<dyn Storage>,
    index: PartitionIndex,
    /// What only the applier needs; held for the length of a command.
    applier: Mutex<Applier>,
    /// Held while overlay changes are written, so that dots become visible in their order.
    overlay_writer: Mutex<()>,
    /// Held for writing from before a batch is written until its effects are visible, so that a
    /// storage view taken under it fits what it says.
    published: RwLock<Published>,
    /// Overlay changes that carried the dot of another one.
    overlay_conflicts: AtomicU64,
    /// The oldest generation whose records are kept. Held while records are deleted.
    oldest_generation: Mutex<u64>,
    /// The same, for readers that do not wait.
    kept_from: AtomicU64,
    /// A reader has missed the edges as arrays.
    graph_wanted: AtomicBool,
    /// A job that makes them is under way.
    graph_building: AtomicBool,
}

/// What readers pair with a view of the storage.
struct Published {
    state: Arc<StateRecord>,
    /// What the log covers: its sequence and the overlay dots that it has adopted.
    log: Arc<EdgeContext>,
    overlay: Overlay,
    graph: GraphVersion,
    /// Conflicts that the log has brought about so far.
    conflicts: u64,
    /// Of the request table.
    requests: u128,
    purges: PurgeRecord,
    /// The last command that took a vector out of the index.
    last_kill: Sequence,
    dropped: bool,
}

/// What applying needs besides storage and the published state.
struct Applier {
    requests: RequestTable,
    /// Vectors without a death.
    alive: RoaringTreemap,
    newest: Newest,
    /// Verification marks, in the order of the log.
    marks: VecDeque<MarkId>,
    /// How many there were: the number of the last one.
    conflicts: u64,
    purges: PurgeRecord,
}

/// The newest generation, as far as the next one depends on it.
struct Newest {
    number: u64,
    start: Sequence,
    base: u64,
    first: VectorId,
}

impl From<&Generation> for Newest {
    fn from(generation: &Generation) -> Self {
        Self {
            number: generation.number,
            start: generation.start,
            base: generation.base_len(),
            first: generation.first,
        }
    }
}

/// Purges: what was forgotten is to leave the index, too, and all records that only it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purges {
    /// That the log has asked for, ever.
    pub asked: u64,
    /// The command that asked for the last one; 0 when none did.
    pub last: Sequence,
    /// The newest generation began after it.
    pub are_begun: bool,
    /// This replica serves a generation that began after it, and has deleted what only older ones
    /// need.
    pub are_served: bool,
}

/// How a partition is doing.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub sequence: Sequence,
    pub memories: u64,
    /// Edges with evidence in the log.
    pub edges: u64,
    pub log_hash: [u8; 32],
    pub memory_digest: u128,
    pub edge_digest: u128,
    /// Of the applied request ids and their outcomes.
    pub request_digest: u128,
    pub index: IndexStatus,
    /// Edges of which some evidence was folded.
    pub folded_edges: u64,
    /// Changes that folding had made undecidable, over the partition's whole life.
    pub edge_conflicts: u64,
    /// Overlay changes that the log does not have yet.
    pub overlay_deltas: usize,
    pub overlay: OverlayStats,
    /// Overlay changes that came under the dot of another one, since this process started: never
    /// merged, an alarm.
    pub overlay_conflicts: u64,
    pub purges: Purges,
}

/// What a replica holds at its sequence: equal on all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSummary {
    pub sequence: Sequence,
    pub memories: u64,
    pub edges: u64,
    pub log_hash: [u8; 32],
    pub memory_digest: u128,
    pub edge_digest: u128,
    pub request_digest: u128,
}

impl Partition {
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.published.read().state.sequence
    }

    #[must_use]
    pub fn config(&self) -> SpaceConfig {
        self.published.read().state.config.clone()
    }

    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.published.read().state.slots
    }

    /// Log sequence and overlay dots seen here: what a session that reads here has seen.
    #[must_use]
    pub fn context(&self) -> EdgeContext {
        let published = self.published.read();
        let mut overlay = published.overlay.seen().clone();
        if planted!("overlay-dots-unseen") {
            overlay = OverlayContext::default();
        }
        EdgeContext {
            sequence: published.state.sequence,
            overlay,
        }
    }

    /// A small part of the status, which costs nothing.
    #[must_use]
    pub fn summary(&self) -> StateSummary {
        let published = self.published.read();
        let state = &published.state;
        StateSummary {
            sequence: state.sequence,
            memories: state.memories,
            edges: state.edges,
            log_hash: state.log_hash,
            memory_digest: state.memory_digest,
            edge_digest: state.edge_digest,
            request_digest: published.requests,
        }
    }

    /// Structural jobs of the index that wait.
    #[must_use]
    pub fn jobs_waiting(&self) -> u64 {
        self.index.progress().1
    }

    #[must_use]
    pub fn status(&self) -> PartitionStatus {
        let (state, overlay, edge_conflicts, request_digest) = {
            let published = self.published.read();
            let (overlay, conflicts) = (published.overlay.stats(), published.conflicts);
            let state = Arc::clone(&published.state);
            (state, overlay, conflicts, published.requests)
        };
        let purges = self.purges();
        PartitionStatus {
            sequence: state.sequence,
            memories: state.memories,
            edges: state.edges,
            log_hash: state.log_hash,
            memory_digest: state.memory_digest,
            edge_digest: state.edge_digest,
            request_digest,
            index: self.index.status(),
            folded_edges: state.folded_edges,
            edge_conflicts,
            overlay_deltas: overlay.deltas,
            overlay,
            overlay_conflicts: self.overlay_conflicts.load(Ordering::Relaxed),
            purges,
        }
    }

    /// The purges that the log has asked for, and how far this replica is with them.
    #[must_use]
    pub fn purges(&self) -> Purges {
        let record = self.published.read().purges;
        let kept = self.kept_from.load(Ordering::Acquire);
        Purges {
            asked: record.asked,
            last: record.last,
            are_begun: self.index.newest_start() >= record.last,
            // Records of older generations are deleted when this one serves.
            are_served: self
                .index
                .serving_start(kept)
                .is_some_and(|start| start >= record.last),
        }
    }

    /// The state as it is now, for any number of reads.
    #[must_use]
    pub fn view(&self) -> PartitionView {
        let published = self.published.read();
        self.view_of(&published)
    }

    fn view_of(&self, published: &Published) -> PartitionView {
        PartitionView {
            partition: self.id,
            reader: self.storage.view(),
            state: Arc::clone(&published.state),
            log: Arc::clone(&published.log),
            overlay: published.overlay.view(),
        }
    }

    /// The last job done in the newest generation, and the digest of the topology after it.
    #[must_use]
    pub fn topology(&self) -> Option<(IndexPosition, TopologyDigest)> {
        let (position, _) = self.index.progress();
        let digest = self.index.digest_at(position)?;
        Some((position, digest))
    }

    /// Embeddings that are applied and not linked, so that every search scans them.
    #[must_use]
    pub fn index_tail(&self) -> u32 {
        self.index.tail()
    }

    /// The next structural job of the index, if one waits. Run and commit it, or drop it to have
    /// it offered again.
    #[must_use]
    pub fn next_job(&self) -> Option<Job> {
        self.index.next_job()
    }

    /// Computes a job's links: takes long, changes nothing, runs beside everything else.
    #[must_use]
    pub fn run(&self, job: &Job) -> LinkedWindow {
        self.index.run(job)
    }

    /// As [`Self::run`], with the help of a crew: the links are the same.
    #[must_use]
    pub fn run_with(&self, job: &Job, crew: &dyn Crew) -> LinkedWindow {
        self.index.run_with(job, crew)
    }

    /// Puts a job's links into the index, and lets go of what no generation needs any more.
    ///
    /// # Errors
    /// When storage cannot let go of it; the links are in place all the same.
    pub fn commit(&self, linked: LinkedWindow) -> Result<(), StorageError> {
        self.index.commit(linked);
        self.let_go()
    }

    /// Writes the links of the index, for [`Partition::open`].
    ///
    /// # Errors
    /// When the sink does not take it.
    pub fn save_index(
        &self,
        sink: &mut dyn std::io::Write,
    ) -> Result<(), crate::index::SnapshotError> {
        self.index.save(sink)
    }

    /// Deletes what only generations before the serving one linked: their records, and the
    /// vectors and deaths that no later generation has a slot for. Each replica does so at its
    /// own time: nothing of it is in a digest.
    ///
    /// Commits call it; after a generation without a single window somebody else has to.
    ///
    /// # Errors
    /// When storage cannot be read or written.
    pub fn let_go(&self) -> Result<(), StorageError> {
        let mut oldest = self.oldest_generation.lock();
        let serving = self.index.status().serving.generation;
        if serving <= *oldest {
            return Ok(());
        }
        let key = keys::generation(self.id, serving);
        let Some(bytes) = self.storage.get(Family::Metadata, &key)? else {
            // The partition was dropped meanwhile.
            return Ok(());
        };
        let serving_generation =
            Generation::decode(&bytes).map_err(|error| StorageError::Corrupt {
                what: "a generation".into(),
                reason: error.to_string(),
            })?;
        let mut batch = Batch::new();
        for entry in read::range(
            &*self.storage.view(),
            Family::Metadata,
            &keys::deaths(self.id),
        ) {
            let (key, _) = entry?;
            let vector = keys::parse_number(&key).ok_or_else(|| read::bad_key("a death"))?;
            if serving_generation.slot_of(VectorId(vector)).is_none() {
                batch.delete(Family::Vectors, keys::vector(self.id, vector));
                batch.delete(Family::Metadata, key);
            }
        }
        let start = keys::generation(self.id, 0);
        batch.delete_range(Family::Metadata, start, keys::generation(self.id, serving));
        self.storage.write(batch, Durability::Buffered)?;
        *oldest = serving;
        self.kept_from.store(serving, Ordering::Release);
        Ok(())
    }

    /// Ends this object before its records are replaced underneath it: from now on it applies
    /// nothing and accepts no local change. Waits for those that are under way.
    pub fn retire(&self) {
        let _applier = self.applier.lock();
        let _writer = self.overlay_writer.lock();
        self.published.write().dropped = true;
    }

    /// Whether the partition was dropped, or replaced by a snapshot, since this object was taken.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.published.read().dropped
    }

    /// Adds to `batch` the deletion of everything that belongs to the partition, its overlay
    /// included.
    pub fn drop_state(id: PartitionId, batch: &mut Batch) {
        let records = keys::partition_records(id);
        for family in [Family::Memories, Family::Vectors, Family::Edges] {
            batch.delete_range(family, records.start.clone(), records.end.clone());
        }
        let metadata = keys::partition_metadata(id);
        batch.delete_range(Family::Metadata, metadata.start, metadata.end);
    }
}
