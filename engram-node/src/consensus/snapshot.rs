//! Snapshot files: one per group, in `DATA_DIR/snapshots`, named `<group>-<random>.snap`.
//!
//! ```text
//! "ENGS" | version u8 | meta length u32 | meta | frames | 0u32 | BLAKE3 of all before (32 bytes)
//! frame: length u32 (1 to 1 MiB) | bytes
//! ```
//!
//! Integers are big-endian; the meta is the group's position (`codec`); the frames' bytes together
//! are what the machine wrote. A file appears under its name whole and durable, or not at all; a
//! received one lies in `DATA_DIR/staging` until it is installed. A file that fails its hash is
//! never installed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::MachineError;
use super::codec;
use super::runtime::SnapshotMeta;
use crate::seams::{Disk, FileWriter, Seams};

const MAGIC: &[u8; 4] = b"ENGS";
const VERSION: u8 = 1;
const FRAME_BYTES_MAX: usize = 1 << 20;
const META_BYTES_MAX: usize = 1 << 20;
const HASH_BYTES: usize = 32;

/// A whole snapshot, by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub path: PathBuf,
}

/// Where a node's snapshots are. Clones share it.
#[derive(Clone)]
pub struct SnapshotStore {
    seams: Seams,
    snapshots: PathBuf,
    staging: PathBuf,
    sending: Arc<Mutex<Sending>>,
    /// Told whenever a transfer has ended.
    ended: Arc<Notify>,
    bytes_per_second: u64,
    /// How long the log is kept for a snapshot that is being sent.
    log_pin_max: Duration,
}

/// What is being sent to other nodes.
#[derive(Default)]
struct Sending {
    sent: BTreeMap<(GroupId, NodeId), u64>,
    /// Files that are being sent, how often, and whether they are to go when that has ended.
    files: BTreeMap<PathBuf, InUse>,
    /// Transfers under way, by group.
    transfers: BTreeMap<GroupId, usize>,
    counts: TransferCounts,
    /// When the next chunk may go, on the node's monotonic clock.
    free_at: Duration,
}

/// Transfers since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferCounts {
    pub begun: u64,
    /// Bytes that did not have to be sent again after a stream broke.
    pub resumed_bytes: u64,
}

#[derive(Clone, Copy, Default)]
struct InUse {
    transfers: usize,
    doomed: bool,
}

/// A transfer under way: while it lives the file stays, and the group's log is not cut behind it.
pub struct Transfer {
    store: SnapshotStore,
    group: GroupId,
    file: SnapshotFile,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let doomed = {
            let mut sending = self.store.sending.lock();
            if let Some(count) = sending.transfers.get_mut(&self.group) {
                *count -= 1;
                if *count == 0 {
                    sending.transfers.remove(&self.group);
                }
            }
            let path = &self.file.path;
            let in_use = sending.files.get_mut(path).map(|in_use| {
                in_use.transfers -= 1;
                *in_use
            });
            let over = in_use.filter(|in_use| in_use.transfers == 0);
            if over.is_some() {
                sending.files.remove(path);
            }
            over.is_some_and(|in_use| in_use.doomed)
        };
        self.store.ended.notify_waiters();
        if doomed {
            let (disk, path) = (Arc::clone(self.store.disk()), self.file.path.clone());
            let remove = move || {
                if let Err(error) = disk.remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "an old snapshot stays");
                }
            };
            self.store.seams.tasks.spawn_blocking(Box::new(remove));
        }
    }
}

impl SnapshotStore {
    pub fn new(
        seams: &Seams,
        data_dir: &Path,
        bytes_per_second: u64,
        log_pin_max: Duration,
    ) -> Self {
        Self {
            seams: seams.clone(),
            snapshots: data_dir.join("snapshots"),
            staging: data_dir.join("staging"),
            sending: Arc::default(),
            ended: Arc::default(),
            bytes_per_second: bytes_per_second.max(1),
            log_pin_max,
        }
    }

    /// Bytes of a snapshot that were sent so far; 0 when none is under way.
    pub fn sent(&self, group: GroupId, node: NodeId) -> u64 {
        let sending = self.sending.lock();
        sending.sent.get(&(group, node)).copied().unwrap_or(0)
    }

    pub fn counts(&self) -> TransferCounts {
        self.sending.lock().counts
    }

    /// Counts a chunk that is about to be sent, after its turn has come: all transfers of the node
    /// together keep to the rate.
    pub async fn await_turn(&self, group: GroupId, node: NodeId, bytes: u64) {
        let pause = {
            let mut sending = self.sending.lock();
            *sending.sent.entry((group, node)).or_default() += bytes;
            let now = self.seams.clock.monotonic();
            let begin = sending.free_at.max(now);
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
            sending.free_at = begin + Duration::from_nanos(nanos as u64);
            begin - now
        };
        metrics::counter!("engram_snapshot_bytes_sent_total").increment(bytes);
        if !pause.is_zero() {
            self.seams.clock.sleep(pause).await;
        }
    }

    /// A transfer has begun, or ended in whatever way.
    pub fn forget_sent(&self, group: GroupId, node: NodeId) {
        self.sending.lock().sent.remove(&(group, node));
    }

    /// Notes that a snapshot is being sent, until the answer is dropped.
    pub fn begin_transfer(&self, group: GroupId, file: &SnapshotFile) -> Transfer {
        let mut sending = self.sending.lock();
        *sending.transfers.entry(group).or_default() += 1;
        sending.counts.begun += 1;
        let in_use = sending.files.entry(file.path.clone()).or_default();
        in_use.transfers += 1;
        Transfer {
            store: self.clone(),
            group,
            file: file.clone(),
        }
    }

    /// Chunks before `offset` have arrived by an earlier stream.
    pub fn resume_sent(&self, group: GroupId, node: NodeId, offset: u64) {
        {
            let mut sending = self.sending.lock();
            sending.sent.insert((group, node), offset);
            sending.counts.resumed_bytes += offset;
        }
        metrics::counter!("engram_snapshot_transfers_resumed_total").increment(1);
        metrics::counter!("engram_snapshot_bytes_resumed_total").increment(offset);
    }

    /// Returns when no snapshot of the group is being sent, or the longest time for it has passed. A new snapshot
    /// would let go of the log between the one that is being sent and itself, and whoever receives
    /// that one would need another at once.
    pub async fn until_not_sent(&self, group: GroupId) {
        let idle = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                // Before looking, so that no end is missed.
                ended.as_mut().enable();
                if !self.sending.lock().transfers.contains_key(&group) {
                    return;
                }
                ended.await;
            }
        };
        if self.seams.timeout(self.log_pin_max, idle).await.is_err() {
            metrics::counter!("engram_snapshot_pins_expired_total").increment(1);
            tracing::warn!(%group, "the log is not kept any longer for a snapshot that is being sent");
        }
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.seams.disk
    }

    /// Blocks. Removes what receiving and building snapshots left behind; to be called before either.
    pub fn clear_staging(&self) -> io::Result<()> {
        for name in self.disk().list_files(&self.staging)? {
            self.disk().remove_file(&self.staging.join(name))?;
        }
        // A build that was killed left its file under the name that it had before the rename.
        for name in self.disk().list_files(&self.snapshots)? {
            if name.ends_with(".staging") {
                self.disk().remove_file(&self.snapshots.join(name))?;
            }
        }
        Ok(())
    }

    /// A fresh path for a snapshot that is being received.
    pub fn staging_path(&self, group: GroupId) -> PathBuf {
        self.staging.join(self.fresh_name(group))
    }

    /// Blocks. Writes a snapshot whole and durable.
    pub fn build(
        &self,
        group: GroupId,
        meta: &SnapshotMeta,
        source: &mut dyn super::SnapshotSource,
    ) -> Result<SnapshotFile, MachineError> {
        let path = self.snapshots.join(self.fresh_name(group));
        let file = self.disk().create_file(&path).map_err(snapshot_error)?;
        let mut sink = FrameWriter::begin(file, meta).map_err(snapshot_error)?;
        source.write_to(&mut sink)?;
        sink.finish().map_err(snapshot_error)?;
        Ok(SnapshotFile { path })
    }

    /// Blocks. Moves a received snapshot to its place.
    pub fn adopt(&self, file: SnapshotFile) -> io::Result<SnapshotFile> {
        if file.path.starts_with(&self.snapshots) {
            return Ok(file);
        }
        let name = file
            .path
            .file_name()
            .ok_or_else(|| io::Error::other("no file name"))?;
        let path = self.snapshots.join(name);
        self.disk().rename_file(&file.path, &path)?;
        Ok(SnapshotFile { path })
    }

    /// Blocks. The group's newest readable snapshot; damaged ones are reported and left alone.
    pub fn newest(&self, group: GroupId) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let mut newest: Option<(SnapshotMeta, SnapshotFile)> = None;
        for path in self.of_group(group)? {
            let opened = self.disk().open_file(&path);
            match opened.and_then(|file| FrameReader::begin(file).map(|reader| reader.meta)) {
                Ok(meta) => {
                    let newer = newest
                        .as_ref()
                        .is_none_or(|(other, _)| meta.last_log_id > other.last_log_id);
                    if newer {
                        newest = Some((meta, SnapshotFile { path }));
                    }
                }
                Err(error) => {
                    tracing::error!(%group, path = %path.display(), %error, "damaged snapshot");
                }
            }
        }
        Ok(newest)
    }

    /// Blocks. Removes all snapshots of the group but `kept`.
    pub fn remove_others(&self, group: GroupId, kept: Option<&SnapshotFile>) -> io::Result<()> {
        for path in self.of_group(group)? {
            if kept.is_none_or(|kept| kept.path != path) && !self.is_in_use(&path) {
                self.disk().remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Whether a file is being sent; it goes when that has ended.
    fn is_in_use(&self, path: &Path) -> bool {
        let mut sending = self.sending.lock();
        let in_use = sending.files.get_mut(path);
        in_use.map(|in_use| in_use.doomed = true).is_some()
    }

    /// Blocks. Reads the whole file and compares its hash.
    pub fn verify(&self, file: &SnapshotFile) -> io::Result<SnapshotMeta> {
        let mut reader = self.open(file)?;
        io::copy(&mut reader, &mut io::sink())?;
        Ok(reader.meta)
    }

    /// Blocks. The machine's part of the file; reading it to its end verifies the hash.
    pub fn open(&self, file: &SnapshotFile) -> io::Result<FrameReader> {
        FrameReader::begin(self.disk().open_file(&file.path)?)
    }

    fn of_group(&self, group: GroupId) -> io::Result<Vec<PathBuf>> {
        let prefix = format!("{:016x}-", group.0);
        let names = self.disk().list_files(&self.snapshots)?.into_iter();
        let ours = names.filter(|name| name.starts_with(&prefix) && name.ends_with(".snap"));
        Ok(ours.map(|name| self.snapshots.join(name)).collect())
    }

    fn fresh_name(&self, group: GroupId) -> String {
        let random = u128::from_be_bytes(self.seams.random_id());
        format!("{:016x}-{random:032x}.snap", group.0)
    }
}

fn snapshot_error(error: impl std::fmt::Display) -> MachineError {
    MachineError::Snapshot(error.to_string())
}

/// Frames and hashes what the machine writes.
struct FrameWriter {
    file: Box<dyn FileWriter>,
    hash: blake3::Hasher,
    frame: Vec<u8>,
}

impl FrameWriter {
    fn begin(file: Box<dyn FileWriter>, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut writer = Self {
            file,
            hash: blake3::Hasher::new(),
            frame: Vec::with_capacity(FRAME_BYTES_MAX),
        };
        let meta = codec::encode_meta(meta);
        writer.put(MAGIC)?;
        writer.put(&[VERSION])?;
        writer.put(&(meta.len() as u32).to_be_bytes())?;
        writer.put(&meta)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let frame = std::mem::take(&mut self.frame);
        self.put(&(frame.len() as u32).to_be_bytes())?;
        self.put(&frame)?;
        self.frame = frame;
        self.frame.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.end_frame()?;
        self.put(&0u32.to_be_bytes())?;
        let hash = self.hash.finalize();
        self.file.write_all(hash.as_bytes())?;
        self.file.finish()
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(FRAME_BYTES_MAX - self.frame.len());
        self.frame.extend_from_slice(&bytes[..taken]);
        if self.frame.len() == FRAME_BYTES_MAX {
            self.end_frame()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the frames of a snapshot file. Its end is reported only after the hash was right.
pub struct FrameReader {
    pub meta: SnapshotMeta,
    file: Box<dyn Read + Send>,
    hash: blake3::Hasher,
    /// Bytes of the current frame that are still to be read.
    left: usize,
    ended: bool,
}

impl FrameReader {
    fn begin(mut file: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut hash = blake3::Hasher::new();
        let mut head = [0; 9];
        take(&mut file, &mut hash, &mut head)?;
        if &head[..4] != MAGIC || head[4] != VERSION {
            return Err(damaged("not a snapshot of a known version"));
        }
        let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
        if length > META_BYTES_MAX {
            return Err(damaged("its meta is too long"));
        }
        let mut meta = vec![0; length];
        take(&mut file, &mut hash, &mut meta)?;
        let meta = codec::decode_meta(&meta).map_err(io::Error::other)?;
        Ok(Self {
            meta,
            file,
            hash,
            left: 0,
            ended: false,
        })
    }

    fn next_frame(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        take(&mut self.file, &mut self.hash, &mut length)?;
        self.left = u32::from_be_bytes(length) as usize;
        if self.left > FRAME_BYTES_MAX {
            return Err(damaged("a frame is too long"));
        }
        if self.left == 0 {
            let mut stored = [0; HASH_BYTES];
            self.file.read_exact(&mut stored)?;
            if self.hash.finalize() != blake3::Hash::from_bytes(stored) {
                return Err(damaged("its hash is wrong"));
            }
            self.ended = true;
        }
        Ok(())
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.next_frame()?;
        }
        let wanted = buffer.len().min(self.left);
        if wanted == 0 {
            return Ok(0);
        }
        take(&mut self.file, &mut self.hash, &mut buffer[..wanted])?;
        self.left -= wanted;
        Ok(wanted)
    }
}

fn take(file: &mut dyn Read, hash: &mut blake3::Hasher, buffer: &mut [u8]) -> io::Result<()> {
    file.read_exact(buffer)?;
    hash.update(buffer);
    Ok(())
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("snapshot is damaged: {reason}"),
    )
}
