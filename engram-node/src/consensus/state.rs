//! A group's state machine as openraft sees it, over the node's [`Machine`].
//!
//! Each entry is applied in one storage batch together with the group's position, so that after a
//! crash both are there or neither. While a snapshot is installed the position says so; a crash in
//! between is recognised at the next start, and the snapshot, durable by then, installed again.

use std::io;
use std::sync::Arc;

use engram_core::planted;
use engram_core::storage::{Batch, Durability, Family, Storage, StorageError};
use engram_core::types::GroupId;
use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::codec::{GroupPosition, decode_position, encode_position};
use super::damage::Damages;
use super::runtime::{
    Entry, LogId, Payload, Reply, Snapshot, SnapshotMeta, StoredMembership, Types,
};
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::{Machine, MachineError, SnapshotSource, keys};
use crate::seams::Seams;

/// Entries applied in one go off the async threads.
const APPLY_CHUNK: usize = 64;

/// Between which entries a group's log is, when it is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogEnds {
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
}

impl LogEnds {
    /// Whether the log, as openraft is about to use it, goes on where a snapshot ends, so that both
    /// together are what a follower needs.
    ///
    /// A committed entry may be applied from memory before its record is on the disk; the state is
    /// not synced, but may get there first all the same. After a crash the log then ends before what
    /// was applied, and openraft takes all of it for purged. An older snapshot is of no use from
    /// then on: a new one has to be built of the state.
    fn is_reached_by(&self, snapshot: Option<LogId>, applied: Option<LogId>) -> bool {
        let begins_after = if applied > self.last {
            applied
        } else {
            self.purged
        };
        snapshot >= begins_after
    }
}

/// One group's state machine.
pub struct StateMachine {
    shared: Arc<Shared>,
    position: GroupPosition,
}

struct Shared {
    group: GroupId,
    seams: Seams,
    storage: Arc<dyn Storage>,
    machine: Arc<dyn Machine>,
    snapshots: SnapshotStore,
    damages: Damages,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    /// Dropped with the last user of the state, which may outlive the Raft core for a moment.
    _gone: oneshot::Sender<()>,
}

impl StateMachine {
    /// Blocks while it reads where the group stands, given what its log has. The receiver ends when
    /// nothing touches the machine or the storage on behalf of the group any more.
    ///
    /// # Errors
    /// When that cannot be read, or an installation was interrupted whose snapshot is gone.
    pub fn open(
        group: GroupId,
        seams: &Seams,
        storage: Arc<dyn Storage>,
        machine: Arc<dyn Machine>,
        snapshots: SnapshotStore,
        log: LogEnds,
        damages: Damages,
    ) -> Result<(Self, oneshot::Receiver<()>), MachineError> {
        let stored = storage.get(Family::Metadata, &keys::position(group))?;
        let mut position = match stored {
            Some(bytes) => decode_position(&bytes)?,
            None => GroupPosition::default(),
        };
        let mut current = snapshots.newest(group).map_err(file_error)?;
        if let Some((meta, file)) = &current
            && !log.is_reached_by(meta.last_log_id, position.applied)
        {
            tracing::info!(%group, path = %file.path.display(), "the log begins after the snapshot");
            current = None;
        }
        if position.installing {
            if current.is_none() {
                let reason = "an installation was interrupted and its snapshot is gone";
                return Err(MachineError::Snapshot(reason.into()));
            }
            // Nothing is applied as far as openraft is concerned: it installs the snapshot again.
            position = GroupPosition::default();
        }
        let seams = seams.clone();
        let current = Mutex::new(current);
        let (_gone, gone) = oneshot::channel();
        let shared = Shared {
            group,
            seams,
            storage,
            machine,
            snapshots,
            damages,
            current,
            _gone,
        };
        Ok((
            Self {
                shared: Arc::new(shared),
                position,
            },
            gone,
        ))
    }

    /// Whether nothing was ever applied.
    pub fn is_pristine(&self) -> bool {
        self.position.applied.is_none() && self.shared.current.lock().is_none()
    }
}

impl Shared {
    fn batch_at(&self, position: &GroupPosition) -> Batch {
        let mut batch = Batch::new();
        batch.put(
            Family::Metadata,
            keys::position(self.group),
            encode_position(position),
        );
        batch
    }

    /// Blocks. Applies one entry at `position`, which is the one after it.
    fn apply(&self, payload: &Payload, position: &GroupPosition) -> Result<Reply, MachineError> {
        let mut batch = self.batch_at(position);
        if planted!("applied-index-apart") {
            self.storage
                .write(std::mem::take(&mut batch), Durability::Buffered)?;
        }
        match payload {
            Payload::Normal(command) => self.machine.apply(&command.0, batch).map(Reply),
            Payload::Blank | Payload::Membership(_) => {
                self.storage.write(batch, Durability::Buffered)?;
                Ok(Reply::default())
            }
        }
    }

    /// Blocks. Applies entries in order and answers each; `position` follows.
    fn apply_all(
        &self,
        entries: Vec<EntryResponder<Types>>,
        position: &mut GroupPosition,
    ) -> Result<(), MachineError> {
        for (entry, responder) in entries {
            let Entry { log_id, payload } = entry;
            position.applied = Some(log_id);
            if let Payload::Membership(membership) = &payload {
                position.membership = StoredMembership::new(Some(log_id), membership.clone());
            }
            let reply = self.apply(&payload, position).inspect_err(|error| {
                self.note_damage(error);
                tracing::error!(group = %self.group, %log_id, %error, "cannot apply an entry");
            })?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    fn note_damage(&self, error: &MachineError) {
        if let MachineError::Storage(damage) = error {
            self.damages.note(self.group, damage);
        }
    }

    /// Blocks. Replaces the state by that of a snapshot that was verified.
    fn install(&self, meta: &SnapshotMeta, file: SnapshotFile) -> Result<(), MachineError> {
        let stored = self.snapshots.verify(&file).map_err(file_error)?;
        if stored != *meta {
            let reason = format!(
                "it is at {:?}, not {:?}",
                stored.last_log_id, meta.last_log_id
            );
            return Err(MachineError::Snapshot(reason));
        }
        let file = {
            // Under the lock, so that a build that ends meanwhile cannot remove the adopted file.
            let mut current = self.current.lock();
            let file = self.snapshots.adopt(file).map_err(file_error)?;
            *current = Some((meta.clone(), file.clone()));
            file
        };
        let position = GroupPosition {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            installing: false,
        };
        let begun = match planted!("installed-too-early") {
            true => position.clone(),
            false => GroupPosition {
                installing: true,
                ..GroupPosition::default()
            },
        };
        self.storage
            .write(self.batch_at(&begun), Durability::Buffered)?;
        let mut reader = self.snapshots.open(&file).map_err(file_error)?;
        self.machine
            .install(&mut reader, self.batch_at(&position))?;
        self.snapshots
            .remove_others(self.group, Some(&file))
            .map_err(file_error)
    }

    /// Blocks. Writes a snapshot file, unless a newer one came meanwhile.
    fn build(
        &self,
        meta: SnapshotMeta,
        mut source: Box<dyn SnapshotSource>,
    ) -> Result<Snapshot, MachineError> {
        let file = self.snapshots.build(self.group, &meta, source.as_mut());
        let file = file.inspect_err(|error| self.note_damage(error))?;
        let mut current = self.current.lock();
        if let Some((newer, newer_file)) = current.as_ref()
            && newer.last_log_id > meta.last_log_id
        {
            self.snapshots
                .disk()
                .remove_file(&file.path)
                .map_err(file_error)?;
            return Ok(Snapshot {
                meta: newer.clone(),
                snapshot: newer_file.clone(),
            });
        }
        *current = Some((meta.clone(), file.clone()));
        self.snapshots
            .remove_others(self.group, Some(&file))
            .map_err(file_error)?;
        Ok(Snapshot {
            meta,
            snapshot: file,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn file_error(error: io::Error) -> MachineError {
    MachineError::Snapshot(error.to_string())
}

fn machine_error(error: MachineError) -> io::Error {
    io::Error::other(error)
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut chunk = vec![first?];
            while chunk.len() < APPLY_CHUNK
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                chunk.push(next?);
            }
            let shared = Arc::clone(&self.shared);
            let mut position = self.position.clone();
            let work = move || {
                let applied = shared.apply_all(chunk, &mut position);
                (applied, position)
            };
            let (applied, position) = self.shared.seams.blocking(work).await;
            applied.map_err(machine_error)?;
            self.position = position;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let shared = Arc::clone(&self.shared);
        let source = self
            .shared
            .seams
            .blocking(move || shared.machine.snapshot())
            .await;
        let meta = SnapshotMeta {
            last_log_id: self.position.applied,
            last_membership: self.position.membership.clone(),
        };
        Builder {
            shared: Arc::clone(&self.shared),
            meta,
            source: Mutex::new(Some(source)),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let (shared, installed) = (Arc::clone(&self.shared), meta.clone());
        let work = move || shared.install(&installed, snapshot);
        self.shared
            .seams
            .blocking(work)
            .await
            .map_err(machine_error)?;
        self.position = GroupPosition {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            installing: false,
        };
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let current = self.shared.current.lock().clone();
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes one snapshot of the state at the moment it was made.
pub struct Builder {
    shared: Arc<Shared>,
    meta: SnapshotMeta,
    /// `None` once built. The lock only makes it shareable, which openraft asks for.
    source: Mutex<Option<Result<Box<dyn SnapshotSource>, MachineError>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let source = self
            .source
            .get_mut()
            .take()
            .ok_or_else(|| io::Error::other("already built"))?;
        let mut source = source.map_err(machine_error)?;
        // openraft cuts the log when this one is there, not before.
        self.shared
            .snapshots
            .until_not_sent(self.shared.group)
            .await;
        if planted!("snapshot-taken-late") {
            source = self.shared.machine.snapshot().map_err(machine_error)?;
        }
        let (shared, meta) = (Arc::clone(&self.shared), self.meta.clone());
        let built = self
            .shared
            .seams
            .blocking(move || shared.build(meta, source))
            .await;
        built.map_err(machine_error)
    }
}

/// Removes what consensus itself keeps of a group: position and snapshots. Blocks.
///
/// # Errors
/// When a file cannot be removed.
pub fn forget(
    group: GroupId,
    snapshots: &SnapshotStore,
    batch: &mut Batch,
) -> Result<(), StorageError> {
    let (start, end) = keys::log_range(group);
    batch.delete_range(Family::Log, start, end);
    batch.delete(Family::Metadata, keys::position(group));
    snapshots
        .remove_others(group, None)
        .map_err(|error| StorageError::Write {
            reason: format!("removing snapshots: {error}"),
        })
}
