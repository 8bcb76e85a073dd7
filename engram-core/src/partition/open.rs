//! How a partition comes into being: created by its log's first command, or opened from storage.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};
use roaring::RoaringTreemap;

use super::graph::GraphVersion;
use super::overlay::Overlay;
use super::record::{MarkRecord, PurgeRecord, StateRecord, VectorRecord};
use super::requests::{RequestBounds, RequestTable};
use super::{Applier, Newest, Partition, Published, digest, read};
use crate::command::OverlayDelta;
use crate::index::{
    Generation, IndexShape, PartitionIndex, RebuildError, SourceError, StoredVector, VectorId,
};
use crate::kernel::Kernel;
use crate::keys;
use crate::storage::{Batch, Family, Order, Reader, Storage, StorageError};
use crate::types::{
    EdgeContext, MarkId, OverlayContext, PartitionId, Sequence, SlotRange, SpaceConfig,
};

/// What is chosen where the partition runs.
#[derive(Clone, Copy, Debug)]
pub struct PartitionOptions {
    /// Changes nothing but the speed.
    pub kernel: Kernel,
    /// Part of the state machine: the same on all replicas, for ever.
    pub requests: RequestBounds,
}

impl Default for PartitionOptions {
    fn default() -> Self {
        Self {
            kernel: Kernel::detect(),
            requests: RequestBounds::default(),
        }
    }
}

/// Why a partition cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("partition {partition} is not here")]
    Missing { partition: PartitionId },
    /// A snapshot has to be installed again; only the overlay is whole.
    #[error("a snapshot of partition {partition} was not installed to its end")]
    Incomplete { partition: PartitionId },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the index of partition {partition} cannot be rebuilt: {source}")]
    Index {
        partition: PartitionId,
        source: RebuildError,
    },
}

impl Partition {
    /// Whether storage holds the partition, whole or half installed.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn exists(reader: &dyn Reader, id: PartitionId) -> Result<bool, StorageError> {
        let has = |key: &[u8]| Ok::<_, StorageError>(reader.get(Family::Metadata, key)?.is_some());
        Ok(has(&keys::state(id))? || has(&keys::installing(id))?)
    }

    /// The partitions that storage holds.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn list(reader: &dyn Reader) -> Result<Vec<PartitionId>, StorageError> {
        let mut found = Vec::new();
        let mut range = keys::all_partitions();
        while let Some(entry) = read::range(reader, Family::Metadata, &range).next() {
            let (key, _) = entry?;
            let id = keys::parse_partition(&key).ok_or_else(|| read::bad_key("a partition"))?;
            found.push(id);
            range.start = keys::partition_metadata(id).end;
        }
        Ok(found)
    }

    /// Creates the partition at sequence 1. Its records are in `batch`, which the caller writes
    /// before anything else of this partition.
    pub fn create(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        config: SpaceConfig,
        slots: SlotRange,
        batch: &mut Batch,
    ) -> Arc<Self> {
        Self::create_with(
            storage,
            id,
            config,
            slots,
            batch,
            PartitionOptions::default(),
        )
    }

    /// As [`Self::create`], with other options than the default.
    pub fn create_with(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        config: SpaceConfig,
        slots: SlotRange,
        batch: &mut Batch,
        options: PartitionOptions,
    ) -> Arc<Self> {
        let sequence = Sequence(1);
        // The command's meaning stands for its bytes: a function of the log all the same.
        let command = keys::encode(&(&config, slots));
        let state = StateRecord {
            log_hash: digest::log_link(&[0; 32], sequence.0, &command),
            config,
            slots,
            sequence,
            memory_digest: 0,
            edge_digest: 0,
            memories: 0,
            edges: 0,
            folded_edges: 0,
            next_vector: 0,
            dropped_client: None,
        };
        let generation = Generation::initial();
        let key = keys::generation(id, generation.number);
        batch.put(Family::Metadata, key, generation.encode());
        batch.put(Family::Metadata, keys::state(id), keys::encode(&state));
        let parts = Parts {
            index: PartitionIndex::with_shape(shape(&state.config, options)),
            requests: RequestTable::new(id, options.requests),
            alive: RoaringTreemap::new(),
            newest: Newest::from(&generation),
            oldest: generation.number,
            marks: VecDeque::new(),
            conflicts: 0,
            purges: PurgeRecord::default(),
            adopted: OverlayContext::default(),
            overlay: Overlay::new(OverlayContext::default()),
            state,
        };
        parts.assemble(storage, id)
    }

    /// Opens the partition from its records. Links come from `index_snapshot` where it fits; the
    /// jobs that it does not have are offered again.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        index_snapshot: Option<&mut dyn Read>,
    ) -> Result<Arc<Self>, OpenError> {
        Self::open_with(storage, id, index_snapshot, PartitionOptions::default())
    }

    /// As [`Self::open`], with other options than the default.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with(
        storage: Arc<dyn Storage>,
        id: PartitionId,
        index_snapshot: Option<&mut dyn Read>,
        options: PartitionOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let parts = Parts::load(&*storage.view(), id, index_snapshot, options)?;
        let partition = parts.assemble(storage, id);
        partition.let_go()?;
        Ok(partition)
    }
}

fn shape(config: &SpaceConfig, options: PartitionOptions) -> IndexShape {
    let kernel = options.kernel;
    IndexShape {
        kernel,
        ..IndexShape::new(config.index, config.dimension, config.metric)
    }
}

/// Everything of a partition but its locks.
struct Parts {
    state: StateRecord,
    adopted: OverlayContext,
    overlay: Overlay,
    index: PartitionIndex,
    requests: RequestTable,
    alive: RoaringTreemap,
    newest: Newest,
    oldest: u64,
    marks: VecDeque<MarkId>,
    conflicts: u64,
    purges: PurgeRecord,
}

impl Parts {
    fn assemble(self, storage: Arc<dyn Storage>, id: PartitionId) -> Arc<Partition> {
        let Self {
            requests,
            alive,
            newest,
            marks,
            conflicts,
            purges,
            ..
        } = self;
        let published = Published {
            // Nobody has searched yet, so no kill can have been missed.
            last_kill: Sequence(0),
            log: Arc::new(EdgeContext {
                sequence: self.state.sequence,
                overlay: self.adopted,
            }),
            state: Arc::new(self.state),
            overlay: self.overlay,
            graph: GraphVersion::default(),
            conflicts,
            requests: requests.digest(),
            purges,
            dropped: false,
        };
        Arc::new(Partition {
            id,
            storage,
            index: self.index,
            applier: Mutex::new(Applier {
                requests,
                alive,
                newest,
                marks,
                conflicts,
                purges,
            }),
            overlay_writer: Mutex::new(()),
            published: RwLock::new(published),
            overlay_conflicts: AtomicU64::new(0),
            oldest_generation: Mutex::new(self.oldest),
            kept_from: AtomicU64::new(self.oldest),
            graph_wanted: AtomicBool::new(false),
            graph_building: AtomicBool::new(false),
        })
    }

    fn load(
        reader: &dyn Reader,
        id: PartitionId,
        index_snapshot: Option<&mut dyn Read>,
        options: PartitionOptions,
    ) -> Result<Self, OpenError> {
        if reader
            .get(Family::Metadata, &keys::installing(id))?
            .is_some()
        {
            return Err(OpenError::Incomplete { partition: id });
        }
        let metadata = Family::Metadata;
        let state: StateRecord = read::record(reader, metadata, &keys::state(id), "the state")?
            .ok_or(OpenError::Missing { partition: id })?;
        let adopted: OverlayContext =
            read::record(reader, metadata, &keys::adopted(id), "the adopted dots")?
                .unwrap_or_default();
        let requests = RequestTable::load(reader, id, options.requests, state.dropped_client)?;
        let generations = load_generations(reader, id)?;
        let (Some(oldest), Some(newest)) = (generations.first(), generations.last()) else {
            let source = RebuildError::NoGeneration;
            return Err(OpenError::Index {
                partition: id,
                source,
            });
        };
        let (oldest, alive) = (
            oldest.number,
            load_alive(reader, id, newest, state.next_vector)?,
        );
        let newest = Newest::from(newest);
        let index = PartitionIndex::rebuild(
            shape(&state.config, options),
            generations,
            &mut vectors(reader, id),
            &mut deaths(reader, id).map(|entry| entry.map_err(SourceError::new)),
            index_snapshot,
        )
        .map_err(|source| OpenError::Index {
            partition: id,
            source,
        })?
        .index;
        // Windows that the last commands sealed are offered again as jobs.
        let _due = index.applied(state.sequence);
        Ok(Self {
            overlay: load_overlay(reader, id, &adopted)?,
            marks: load_marks(reader, id)?,
            conflicts: load_conflicts(reader, id)?,
            purges: read::record(reader, metadata, &keys::purges(id), "the purges")?
                .unwrap_or_default(),
            state,
            adopted,
            index,
            requests,
            alive,
            newest,
            oldest,
        })
    }
}

fn load_generations(reader: &dyn Reader, id: PartitionId) -> Result<Vec<Generation>, StorageError> {
    let range = keys::generations(id);
    let records = read::range(reader, Family::Metadata, &range);
    let decode = |bytes: &[u8]| {
        Generation::decode(bytes).map_err(|error| StorageError::Corrupt {
            what: "a generation".into(),
            reason: error.to_string(),
        })
    };
    records.map(|entry| decode(&entry?.1)).collect()
}

fn deaths(
    reader: &dyn Reader,
    id: PartitionId,
) -> impl Iterator<Item = Result<(VectorId, Sequence), StorageError>> + '_ {
    let range = keys::deaths(id);
    read::range(reader, Family::Metadata, &range).map(|entry| {
        let (key, value) = entry?;
        let vector = keys::parse_number(&key).ok_or_else(|| read::bad_key("a death"))?;
        let at = keys::decode(&value).map_err(|error| error.at("a death"))?;
        Ok((VectorId(vector), at))
    })
}

fn vectors(
    reader: &dyn Reader,
    id: PartitionId,
) -> impl Iterator<Item = Result<(VectorId, StoredVector), SourceError>> + '_ {
    let range = keys::partition_records(id);
    let decode = |entry: Result<_, StorageError>| {
        let (key, value): (Box<[u8]>, Box<[u8]>) = entry?;
        let vector = keys::parse_number(&key).ok_or_else(|| read::bad_key("a vector"))?;
        let record: VectorRecord =
            keys::decode(&value).map_err(|error| error.at("a vector record"))?;
        let VectorRecord {
            inserted: sequence,
            owner,
            components,
        } = record;
        Ok((
            VectorId(vector),
            StoredVector {
                owner,
                sequence,
                components,
            },
        ))
    };
    read::range(reader, Family::Vectors, &range)
        .map(move |entry| decode(entry).map_err(|error: StorageError| SourceError::new(error)))
}

/// The base of the newest generation and everything since, without the dead.
fn load_alive(
    reader: &dyn Reader,
    id: PartitionId,
    newest: &Generation,
    next_vector: u64,
) -> Result<RoaringTreemap, StorageError> {
    let mut alive = newest.base.clone();
    alive.insert_range(newest.first.0..next_vector);
    for death in deaths(reader, id) {
        alive.remove(death?.0.0);
    }
    Ok(alive)
}

/// Marks in the order of the log.
fn load_marks(reader: &dyn Reader, id: PartitionId) -> Result<VecDeque<MarkId>, StorageError> {
    let mut noted = Vec::new();
    for entry in read::range(reader, Family::Metadata, &keys::marks(id)) {
        let (key, value) = entry?;
        let mark = keys::parse_number(&key).ok_or_else(|| read::bad_key("a mark"))?;
        let record: MarkRecord = keys::decode(&value).map_err(|error| error.at("a mark"))?;
        noted.push((record.sequence, MarkId(mark)));
    }
    noted.sort_unstable();
    Ok(noted.into_iter().map(|(_, mark)| mark).collect())
}

/// How many conflicts there ever were: the number of the last one.
fn load_conflicts(reader: &dyn Reader, id: PartitionId) -> Result<u64, StorageError> {
    let range = keys::conflicts(id);
    let mut records = reader.scan(
        Family::Metadata,
        &range.start,
        &range.end,
        Order::Descending,
    );
    let Some(entry) = records.next() else {
        return Ok(0);
    };
    keys::parse_number(&entry?.0).ok_or_else(|| read::bad_key("a conflict"))
}

/// What this replica holds beside the log. What the log has adopted since it was written (a
/// snapshot may have brought that) is passed over.
fn load_overlay(
    reader: &dyn Reader,
    id: PartitionId,
    adopted: &OverlayContext,
) -> Result<Overlay, StorageError> {
    let mut overlay = Overlay::new(adopted.clone());
    for entry in read::range(reader, Family::Edges, &keys::overlays(id)) {
        let delta: OverlayDelta =
            keys::decode(&entry?.1).map_err(|error| error.at("an overlay delta"))?;
        if !adopted.covers(delta.dot) {
            overlay.insert(delta);
        }
    }
    Ok(overlay)
}
