//! Views that are pinned for backups, and their pages: whole chunks of records (ADR 0010).
//!
//! [`Here`](super::Here) opens, pages and closes them for whoever coordinates the backup of a
//! partition. What must hold: all pages of a view are of one state; a chunk is cut where its keys and
//! sizes say, so that records which did not change make chunks which did not change; a view is held
//! while it is asked for, and let go of soon after.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::Op;
use engram_core::partition::{BackupKey, BackupRecord, Partition, PartitionView, ReadError};
use engram_core::types::PartitionId;
use engram_proto::convert::ChunkBuilder;
use engram_proto::{peer, v1};
use parking_lot::Mutex;

use super::refusal::Refusal;
use crate::seams::Seams;

/// Views that a node pins for backups at once.
pub const VIEWS_MAX: usize = 16;
/// How long a view is held that nobody asks for.
pub const VIEW_IDLE_MAX: Duration = Duration::from_secs(60);
/// Hashes of chunks that a caller may name as known.
pub const KNOWN_CHUNKS_MAX: usize = 131_072;
/// Size that chunks have on average, and size and records at which one is cut in any case.
const CHUNK_BYTES_MEAN: usize = 1 << 20;
const CHUNK_BYTES_MAX: usize = 4 << 20;
pub const CHUNK_RECORDS_MAX: usize = 16_384;
/// Data in one page, and records read for it, at which it ends with the chunk at hand.
const PAGE_DATA_BYTES: usize = 4 << 20;
const PAGE_READ_BYTES: usize = 16 << 20;

type Hash = [u8; 32];

/// The pinned views of a node. Cheap to clone.
#[derive(Clone)]
pub struct Backups {
    inner: Arc<Inner>,
}

struct Inner {
    seams: Seams,
    views: Mutex<Views>,
}

#[derive(Default)]
struct Views {
    pinned: BTreeMap<u64, Pinned>,
    /// Whether somebody lets go of idle ones.
    watched: bool,
}

impl Views {
    fn let_go_of_idle(&mut self, now: Duration) {
        self.pinned
            .retain(|_, pinned| now.saturating_sub(pinned.used) < VIEW_IDLE_MAX);
        metrics::gauge!("engram_backup_views").set(self.pinned.len() as f64);
    }
}

struct Pinned {
    partition: PartitionId,
    state: Arc<State>,
    used: Duration,
}

/// What a page is made from.
struct State {
    view: PartitionView,
    known: BTreeSet<Hash>,
}

impl Backups {
    #[must_use]
    pub fn new(seams: Seams) -> Self {
        let views = Mutex::default();
        Self {
            inner: Arc::new(Inner { seams, views }),
        }
    }

    /// Pins the partition as it is now.
    ///
    /// # Errors
    /// When too many views are pinned, or what is known is damaged.
    pub fn open(
        &self,
        partition: &Partition,
        query: &peer::BackUpOpenQuery,
    ) -> Result<peer::BackUpOpenAnswer, Refusal> {
        let known = known_chunks(&query.known)?;
        let now = self.inner.seams.clock.monotonic();
        let mut views = self.inner.views.lock();
        views.let_go_of_idle(now);
        if views.pinned.len() >= VIEWS_MAX {
            let message = format!("{VIEWS_MAX} backups are under way here, as many as may be");
            return Err(Refusal::Overloaded(message));
        }
        let status = partition.status();
        let view = partition.view();
        let begun = v1::BackUpBegun {
            partition: partition.id().0,
            sequence: view.sequence().0,
            memories: status.memories,
            edges: status.edges,
            local_changes: status.overlay_deltas as u64,
            node: 0,
        };
        let mut handle = [0; 8];
        self.inner.seams.entropy.fill(&mut handle);
        let handle = u64::from_le_bytes(handle);
        let pinned = Pinned {
            partition: partition.id(),
            state: Arc::new(State { view, known }),
            used: now,
        };
        views.pinned.insert(handle, pinned);
        views.let_go_of_idle(now);
        if !std::mem::replace(&mut views.watched, true) {
            let backups = self.clone();
            let watch = async move { backups.watch().await };
            self.inner.seams.spawn("backup-views", watch);
        }
        Ok(peer::BackUpOpenAnswer {
            view: handle,
            begun: Some(begun),
        })
    }

    /// Runs while there is a view.
    async fn watch(&self) {
        loop {
            self.inner.seams.clock.sleep(VIEW_IDLE_MAX / 4).await;
            let mut views = self.inner.views.lock();
            views.let_go_of_idle(self.inner.seams.clock.monotonic());
            if views.pinned.is_empty() {
                views.watched = false;
                return;
            }
        }
    }

    /// Blocks. The next chunks of a view.
    ///
    /// # Errors
    /// When storage cannot be read, or the place in the view is damaged.
    pub fn page(
        &self,
        partition: &Partition,
        query: &peer::BackUpPageQuery,
    ) -> Result<peer::BackUpPageAnswer, Refusal> {
        let gone = peer::BackUpPageAnswer {
            gone: true,
            ..Default::default()
        };
        let state = {
            let mut views = self.inner.views.lock();
            if query.close {
                views.pinned.remove(&query.view);
                views.let_go_of_idle(self.inner.seams.clock.monotonic());
                return Ok(gone);
            }
            let found = views.pinned.get_mut(&query.view);
            let Some(pinned) = found.filter(|pinned| pinned.partition == partition.id()) else {
                return Ok(gone);
            };
            pinned.used = self.inner.seams.clock.monotonic();
            Arc::clone(&pinned.state)
        };
        page_of(&state.view, &state.known, &query.after)
    }
}

fn known_chunks(bytes: &[u8]) -> Result<BTreeSet<Hash>, Refusal> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || hashes.len() > KNOWN_CHUNKS_MAX {
        let count = hashes.len();
        return Err(Refusal::Invalid(format!(
            "{count} hashes of 32 bytes and {} bytes more: at most {KNOWN_CHUNKS_MAX} chunks may \
             be named as known",
            rest.len()
        )));
    }
    Ok(hashes.iter().copied().collect())
}

/// A chunk in the making.
#[derive(Default)]
struct Open {
    builder: ChunkBuilder,
    memories: u64,
    edges: u64,
}

impl Open {
    /// Whether the chunk ends with this record.
    fn push(&mut self, key: &BackupKey, op: &Op) -> bool {
        match key {
            BackupKey::Memory(_) => self.memories += 1,
            BackupKey::Edge(_) => self.edges += 1,
        }
        let bytes = self.builder.push(op);
        // A record ends a chunk with a chance that grows with its size, drawn from its key: whatever
        // comes before it, the same record ends a chunk every time.
        let chance = (bytes as u64) << 32;
        let is_cut = u64::from(key.spread()) * (CHUNK_BYTES_MEAN as u64) < chance;
        is_cut
            || self.builder.bytes() >= CHUNK_BYTES_MAX
            || self.builder.records() >= CHUNK_RECORDS_MAX
    }

    fn finish(self, known: &BTreeSet<Hash>) -> v1::BackupChunk {
        let data = self.builder.finish();
        let (bytes, hash) = (data.len() as u64, blake3::hash(&data));
        let data = if known.contains(hash.as_bytes()) {
            Vec::new()
        } else {
            data
        };
        v1::BackupChunk {
            hash: hash.as_bytes().to_vec().into(),
            bytes,
            memories: self.memories,
            edges: self.edges,
            data: data.into(),
        }
    }
}

fn page_of(
    view: &PartitionView,
    known: &BTreeSet<Hash>,
    after: &[u8],
) -> Result<peer::BackUpPageAnswer, Refusal> {
    let after: Option<BackupKey> = match after {
        [] => None,
        bytes => Some(
            postcard::from_bytes(bytes)
                .map_err(|_| Refusal::Invalid("the backup's cursor is damaged".into()))?,
        ),
    };
    let mut answer = peer::BackUpPageAnswer::default();
    let (mut open, mut next, mut data, mut read) = (Open::default(), None, 0, 0);
    let ended = view
        .back_up(after.as_ref(), &mut |key, record| {
            let op = match record {
                BackupRecord::Kept(op) => op,
                BackupRecord::WithoutSource => {
                    answer.edges_without_source += 1;
                    return true;
                }
            };
            if !open.push(&key, &op) {
                return true;
            }
            read += open.builder.bytes();
            let chunk = std::mem::take(&mut open).finish(known);
            data += chunk.data.len();
            answer.chunks.push(chunk);
            next = Some(key);
            data < PAGE_DATA_BYTES && read < PAGE_READ_BYTES
        })
        .map_err(refuse)?;
    if ended {
        if open.builder.records() > 0 {
            answer.chunks.push(open.finish(known));
        }
        return Ok(answer);
    }
    let next = next.map(|key| postcard::to_stdvec(&key));
    answer.next = next
        .transpose()
        .map_err(|error| Refusal::Invalid(error.to_string()))?
        .unwrap_or_default()
        .into();
    Ok(answer)
}

fn refuse(error: ReadError) -> Refusal {
    match error {
        ReadError::Storage(error) => Refusal::Storage(error.to_string()),
        ReadError::WrongDimension { .. }
        | ReadError::NotFinite { .. }
        | ReadError::TooLarge { .. } => Refusal::Invalid(error.to_string()),
    }
}
