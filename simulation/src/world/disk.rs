//! A node's disk: it outlives the node's processes, and fails as it is told.
//!
//! The store is the in-memory engine, which loses unsynced batches in a crash; files are durable
//! from the moment a write returns, as the seam promises. A machine that dies at a write is dead from
//! that moment: its life ends inside the call.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engram_core::storage::{
    Batch, BatchOp, Damage, Durability, Family, MemoryStorage, Order, Reader, Records, Storage,
    StorageError,
};
use engram_core::types::GroupId;
use engram_node::seams::{Disk, FileWriter};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::seams::{Ledger, Life};
use super::trace::digest;

/// Bytes of the key of a log entry: group, tag, index.
const LOG_RECORD_KEY_BYTES: usize = 17;
/// How often a damaged log is that of the cluster map.
const MAP_DAMAGED: f64 = 0.3;
/// The records of a log that are likely to be read again.
const LOG_END_RECORDS: usize = 4;

/// What is on the platters, and what is to go wrong.
#[derive(Default)]
struct Platters {
    store: MemoryStorage,
    files: BTreeMap<PathBuf, Arc<[u8]>>,
    full: bool,
    trap: Option<Trap>,
    /// A write has failed, or the next one will.
    spoiled: bool,
    /// A record was damaged, and no majority is to lose what it had.
    damaged: bool,
    /// Records have read wrong at some time.
    was_damaged: bool,
    /// What is damaged stays so when the process is started again.
    lasts: bool,
}

/// From when on the writes before a trap count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    Now,
    /// When the next file of a snapshot or an index is whole.
    AtFile,
    /// When the next snapshot that came from another node is about to be installed.
    AtInstallation,
}

/// The machine dies at a write.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    pub begins: Begins,
    /// Writes before it.
    pub others: u32,
    /// Whether that write is done.
    pub after: bool,
}

/// A disk. Clones share it.
#[derive(Clone, Default)]
pub struct Platter(Arc<Mutex<Platters>>);

impl Platter {
    /// The machine dies; a drawn part of what was not synced is kept. How many batches were lost.
    pub fn crash(&self, generator: &mut StdRng) -> usize {
        let mut platters = self.0.lock();
        let unsynced = platters.store.unsynced_batches();
        let kept = generator.random_range(0..=unsynced);
        let store = platters.store.crash(kept);
        platters.open_again(store);
        unsynced - kept
    }

    /// The process ends in order: what it wrote stays.
    pub fn close(&self) {
        let mut platters = self.0.lock();
        let unsynced = platters.store.unsynced_batches();
        let store = platters.store.crash(unsynced);
        platters.open_again(store);
    }

    pub fn set_trap(&self, trap: Option<Trap>) {
        self.0.lock().trap = trap;
    }

    pub fn fill(&self) {
        let mut platters = self.0.lock();
        platters.full = true;
        platters.spoiled = true;
    }

    pub fn fail_next_sync(&self, visible: bool) {
        let mut platters = self.0.lock();
        platters.store.fail_next_sync(visible);
        platters.spoiled = true;
    }

    /// One record reads wrong: a bit of a log entry, which only the log's own checksums show, or any
    /// record altogether. A bit may stay wrong when the process is started again, and does where
    /// nobody looks before (`at_rest`). Whether there was one.
    pub fn damage(&self, generator: &mut StdRng, at_rest: bool) -> bool {
        let mut platters = self.0.lock();
        let flip = at_rest || generator.random_bool(0.6);
        let family = match flip {
            true => Family::Log,
            false => Family::ALL[generator.random_range(0..Family::ALL.len())],
        };
        let mut keys = platters.store.keys_on_disk(family);
        if flip {
            keys.retain(|key| key.len() == LOG_RECORD_KEY_BYTES);
            let chosen = draw_log(&keys, generator);
            keys.retain(|key| key.starts_with(&chosen));
        }
        if keys.is_empty() {
            return false;
        }
        let at = match flip && generator.random_bool(0.5) {
            true => {
                let back = generator.random_range(1..=LOG_END_RECORDS);
                keys.len().saturating_sub(back)
            }
            false => generator.random_range(0..keys.len()),
        };
        let key = &keys[at];
        let value = platters.store.get(family, key).ok().flatten();
        let bits = value.map_or(0, |value| value.len() * 8);
        let damage = match flip && bits > 0 {
            true => Damage::FlippedBit(generator.random_range(0..bits)),
            false => Damage::Unreadable,
        };
        // Nothing was written meanwhile: what starts on it has a store that works.
        platters.spoiled |= !at_rest;
        platters.damaged = true;
        platters.was_damaged = true;
        platters.lasts = flip && (at_rest || generator.random_bool(0.5));
        platters.store.damage(family, key, damage)
    }

    /// Whether records have ever read wrong.
    pub fn was_damaged(&self) -> bool {
        self.0.lock().was_damaged
    }

    /// Whether a record was damaged, though it may have been written again since.
    pub fn is_damaged(&self) -> bool {
        self.0.lock().damaged
    }

    /// Whether records read wrong.
    pub fn reads_wrong(&self) -> bool {
        self.0.lock().store.reads_wrong()
    }

    /// Whether no write has failed and all records read right.
    pub fn is_sound(&self) -> bool {
        let platters = self.0.lock();
        !platters.store.reads_wrong() && !platters.spoiled
    }

    /// Whether there is a log entry.
    pub fn has_log(&self) -> bool {
        let keys = self.0.lock().store.keys_on_disk(Family::Log);
        keys.iter().any(|key| key.len() == LOG_RECORD_KEY_BYTES)
    }

    /// What was unreadable reads as it was written, unless the damage lasts.
    pub fn repair(&self) {
        let mut platters = self.0.lock();
        if !platters.lasts {
            platters.heal();
        }
    }

    /// No fault waits to happen any more; whether the store may refuse writes until it is opened
    /// again.
    pub fn calm(&self) -> bool {
        let mut platters = self.0.lock();
        platters.full = false;
        platters.trap = None;
        platters.heal();
        platters.spoiled
    }

    pub fn store(&self) -> MemoryStorage {
        self.0.lock().store.clone()
    }
}

/// The beginning of the keys of one log: each is as likely as another, however long it is, but for
/// that of the cluster map, which is short and matters to all.
fn draw_log(keys: &[Box<[u8]>], generator: &mut StdRng) -> Vec<u8> {
    let map = GroupId::CONTROL.0.to_be_bytes().to_vec();
    let group = |key: &[u8]| key[..size_of::<u64>()].to_vec();
    let groups: BTreeSet<Vec<u8>> = keys.iter().map(|key| group(key)).collect();
    if generator.random_bool(MAP_DAMAGED) && groups.contains(&map) {
        return map;
    }
    let chosen = generator.random_range(0..groups.len().max(1));
    groups.into_iter().nth(chosen).unwrap_or_default()
}

impl Platters {
    fn heal(&mut self) {
        self.store.heal();
        self.damaged = false;
        self.lasts = false;
    }

    fn open_again(&mut self, store: MemoryStorage) {
        self.store = store;
        self.full = false;
        self.trap = None;
        self.spoiled = false;
    }
}

/// A disk as one process sees it.
#[derive(Clone)]
pub struct SimDisk {
    platter: Platter,
    life: Arc<Life>,
    ledger: Arc<Ledger>,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Records,
    /// Of a snapshot or an index.
    File,
    /// A snapshot that was received takes its place.
    Received,
    /// Any other file.
    Note,
}

impl Written {
    fn at(path: &Path) -> Self {
        let directory = path.parent().and_then(Path::file_name);
        match directory.and_then(|name| name.to_str()) {
            Some("snapshots" | "staging" | "index") => Self::File,
            _ => Self::Note,
        }
    }

    fn begins(self, trap: Begins) -> bool {
        match trap {
            Begins::Now => true,
            Begins::AtFile => matches!(self, Self::File | Self::Received),
            Begins::AtInstallation => self == Self::Received,
        }
    }
}

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    DoneAndDead,
    Lost,
    Full,
}

impl SimDisk {
    pub fn new(platter: Platter, life: Arc<Life>, ledger: Arc<Ledger>) -> Self {
        Self {
            platter,
            life,
            ledger,
        }
    }

    fn fate(&self, what: Written) -> Fate {
        if self.life.is_over() {
            return Fate::Lost;
        }
        let mut platters = self.platter.0.lock();
        if platters.full {
            return Fate::Full;
        }
        match platters.trap {
            None => Fate::Done,
            Some(trap) if trap.begins != Begins::Now => {
                if what.begins(trap.begins) {
                    let begins = Begins::Now;
                    platters.trap = Some(Trap { begins, ..trap });
                }
                Fate::Done
            }
            Some(Trap {
                others: 0, after, ..
            }) => {
                platters.trap = None;
                self.life.end();
                self.ledger.event(format_args!(
                    "died at a write {} {after}",
                    self.life.place.0
                ));
                if after { Fate::DoneAndDead } else { Fate::Lost }
            }
            Some(trap) => {
                let others = trap.others - 1;
                platters.trap = Some(Trap { others, ..trap });
                Fate::Done
            }
        }
    }

    /// Whether a write of a file is to happen.
    fn file_fate(&self, what: Written) -> Result<()> {
        match self.fate(what) {
            Fate::Done | Fate::DoneAndDead => Ok(()),
            Fate::Lost => Err(Error::other("the machine is off")),
            Fate::Full => Err(Error::from(ErrorKind::StorageFull)),
        }
    }

    fn event(&self, what: &str, path: &Path, bytes: &[u8]) {
        let place = self.life.place.0;
        self.ledger.event(format_args!(
            "{what} {place} {} {} {:016x}",
            path.display(),
            bytes.len(),
            digest(bytes)
        ));
    }
}

impl Disk for SimDisk {
    fn open_store(&self, _directory: &Path) -> std::result::Result<Arc<dyn Storage>, StorageError> {
        Ok(Arc::new(SimStore {
            store: self.platter.store(),
            disk: self.clone(),
        }))
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>> {
        let platters = self.platter.0.lock();
        let file = platters.files.get(path);
        file.map(|bytes| bytes.to_vec())
            .ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.file_fate(Written::at(path))?;
        self.event("file", path, bytes);
        let mut platters = self.platter.0.lock();
        platters.files.insert(path.to_owned(), bytes.into());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        if self.life.is_over() {
            return Err(Error::other("the machine is off"));
        }
        self.platter.0.lock().files.remove(path);
        Ok(())
    }

    fn create_file(&self, path: &Path) -> Result<Box<dyn FileWriter>> {
        Ok(Box::new(Writer {
            disk: self.clone(),
            path: path.to_owned(),
            bytes: Vec::new(),
        }))
    }

    fn open_file(&self, path: &Path) -> Result<Box<dyn std::io::Read + Send>> {
        let platters = self.platter.0.lock();
        let file = platters.files.get(path).cloned();
        let file = file.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        Ok(Box::new(Cursor::new(file)))
    }

    fn rename_file(&self, from: &Path, to: &Path) -> Result<()> {
        self.file_fate(Written::Received)?;
        let mut platters = self.platter.0.lock();
        let file = platters.files.remove(from);
        let file = file.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        self.event("rename", to, &file);
        platters.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn list_files(&self, directory: &Path) -> Result<Vec<String>> {
        let platters = self.platter.0.lock();
        let here = platters
            .files
            .keys()
            .filter(|path| path.parent() == Some(directory));
        let names = here.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        Ok(names.collect())
    }
}

/// A file in the making: nowhere before it is finished.
struct Writer {
    disk: SimDisk,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl FileWriter for Writer {
    fn finish(self: Box<Self>) -> Result<()> {
        self.disk.write_file(&self.path, &self.bytes)
    }
}

/// The store as one process sees it.
struct SimStore {
    store: MemoryStorage,
    disk: SimDisk,
}

fn batch_digest(batch: &Batch) -> u64 {
    let mut hash = blake3::Hasher::new();
    for op in batch.ops() {
        let (family, parts) = match op {
            BatchOp::Put { family, key, value } => (family, [&key[..], &value[..]]),
            BatchOp::Delete { family, key } => (family, [&key[..], &[]]),
            BatchOp::DeleteRange { family, start, end } => (family, [&start[..], &end[..]]),
        };
        hash.update(family.name().as_bytes());
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Reader for SimStore {
    fn get(
        &self,
        family: Family,
        key: &[u8],
    ) -> std::result::Result<Option<Vec<u8>>, StorageError> {
        self.store.get(family, key)
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        self.store.scan(family, start, end, order)
    }
}

impl Storage for SimStore {
    fn view(&self) -> Arc<dyn Reader> {
        self.store.view()
    }

    fn write(&self, batch: Batch, durability: Durability) -> std::result::Result<(), StorageError> {
        let refused = |reason: &str| {
            Err(StorageError::Write {
                reason: reason.into(),
            })
        };
        let fate = self.disk.fate(Written::Records);
        match fate {
            Fate::Lost => return refused("the machine is off"),
            Fate::Full => {
                // Poisons the store, as any failed write does.
                self.store.fail_next_write();
            }
            Fate::Done | Fate::DoneAndDead => {}
        }
        let ledger = &self.disk.ledger;
        ledger.event(format_args!(
            "write {} {} {durability:?} {:016x}",
            self.disk.life.place.0,
            batch.bytes(),
            batch_digest(&batch)
        ));
        ledger.count("disk writes", 1);
        if durability == Durability::Sync {
            ledger.count("disk syncs", 1);
        }
        self.store.write(batch, durability)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.store.bytes_on_disk()
    }
}
