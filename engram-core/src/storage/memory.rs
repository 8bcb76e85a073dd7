//! An in-memory store for tests and the simulation. It keeps the batches written since the last
//! sync apart, so that a crash can lose any suffix of them, and it can be told to fail: as a full
//! disk, as a failed sync, or as a record that cannot be read or has a flipped bit. Damage to records
//! is on the disk: it outlives a crash and goes when the record is written again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Batch, BatchOp, Durability, Family, Order, Reader, Records, Storage, StorageError};

type Table = BTreeMap<Box<[u8]>, Box<[u8]>>;
type DamagedRecords = BTreeMap<(Family, Box<[u8]>), Damage>;

/// All families at one moment. Tables are shared between states until one of them is written.
#[derive(Clone, Default)]
struct State {
    tables: [Arc<Table>; Family::ALL.len()],
    /// Records that do not read as they were written.
    damaged: Arc<DamagedRecords>,
}

impl State {
    fn table(&self, family: Family) -> &Table {
        &self.tables[family as usize]
    }

    fn apply(&mut self, batch: Batch) {
        for op in batch.into_ops() {
            self.repair(&op);
            match op {
                BatchOp::Put { family, key, value } => {
                    self.table_mut(family).insert(key.into(), value.into());
                }
                BatchOp::Delete { family, key } => {
                    self.table_mut(family).remove(key.as_slice());
                }
                BatchOp::DeleteRange { family, start, end } => {
                    if start < end {
                        let table = self.table_mut(family);
                        let mut tail = table.split_off(start.as_slice());
                        table.append(&mut tail.split_off(end.as_slice()));
                    }
                }
            }
        }
    }

    fn table_mut(&mut self, family: Family) -> &mut Table {
        Arc::make_mut(&mut self.tables[family as usize])
    }

    /// What is written again is whole again.
    fn repair(&mut self, op: &BatchOp) {
        if self.damaged.is_empty() {
            return;
        }
        Arc::make_mut(&mut self.damaged).retain(|(of, damaged), _| match op {
            BatchOp::Put { family, key, .. } | BatchOp::Delete { family, key } => {
                of != family || damaged.as_ref() != key.as_slice()
            }
            BatchOp::DeleteRange { family, start, end } => {
                of != family || **damaged < **start || **damaged >= **end
            }
        });
    }

    /// Damages a record, if it is there.
    fn damage(&mut self, family: Family, key: &[u8], damage: Damage) -> bool {
        let there = self.table(family).contains_key(key);
        if there {
            Arc::make_mut(&mut self.damaged).insert((family, key.into()), damage);
        }
        there
    }

    /// A record's value as it reads.
    fn read(&self, family: Family, key: &[u8], value: &[u8]) -> Result<Box<[u8]>, StorageError> {
        let mut value: Box<[u8]> = value.into();
        if self.damaged.is_empty() {
            return Ok(value);
        }
        match self.damaged.get(&(family, key.into())) {
            None => {}
            Some(Damage::FlippedBit(bit)) => {
                let bit = bit % (value.len() * 8).max(1);
                if let Some(byte) = value.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Some(Damage::Unreadable) => {
                return Err(StorageError::Corrupt {
                    what: format!("a record of family {}", family.name()),
                    reason: "its checksum fails".into(),
                });
            }
        }
        Ok(value)
    }
}

impl Reader for State {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let value = self.table(family).get(key);
        let value = value.map(|value| self.read(family, key, value));
        Ok(value.transpose()?.map(Vec::from))
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let range = self.table(family).range::<[u8], _>(bounds);
        let range = range.map(|(key, value)| (key.as_ref(), value.as_ref()));
        let copy =
            move |(key, value): (&[u8], &[u8])| Ok((key.into(), self.read(family, key, value)?));
        match order {
            Order::Ascending => Box::new(range.map(copy)),
            Order::Descending => Box::new(range.rev().map(copy)),
        }
    }
}

/// How a record on disk is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Reading it fails, as where the disk's or the database's own checksum does.
    Unreadable,
    /// This bit of its value (modulo its length) is another, and nothing below the reader notices.
    FlippedBit(usize),
}

/// What a failing disk does with the write that it fails.
#[derive(Clone, Copy)]
enum WriteFailure {
    /// Refuses it: no space left.
    Full,
    /// Keeps it for the time being, and does not get it onto the disk.
    Sync { visible: bool },
}

#[derive(Default)]
struct Durable {
    /// What the disk holds.
    synced: State,
    /// Batches written since, oldest first.
    unsynced: Vec<Batch>,
    failure: Option<WriteFailure>,
    poisoned: bool,
}

impl Durable {
    /// The failure that meets a write now.
    fn failure_of(&self, durability: Durability) -> Option<WriteFailure> {
        match self.failure {
            Some(WriteFailure::Sync { .. }) if durability == Durability::Buffered => None,
            failure => failure,
        }
    }
}

/// The in-memory store. Clones share one store.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    live: Arc<RwLock<State>>,
    durable: Arc<Mutex<Durable>>,
}

impl MemoryStorage {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The store as a restarted machine would find it: all synced batches, and the first `kept` of
    /// those not synced. The old handle is dead: it refuses writes from now on.
    #[must_use]
    pub fn crash(&self, kept: usize) -> Self {
        let mut durable = self.durable.lock();
        durable.poisoned = true;
        let mut state = durable.synced.clone();
        for batch in durable.unsynced.iter().take(kept) {
            state.apply(batch.clone());
        }
        let live = State {
            tables: state
                .tables
                .each_ref()
                .map(|table| Arc::new((**table).clone())),
            damaged: Arc::clone(&state.damaged),
        };
        Self {
            live: Arc::new(RwLock::new(live)),
            durable: Arc::new(Mutex::new(Durable {
                synced: state,
                ..Durable::default()
            })),
        }
    }

    /// Batches that a crash could lose.
    #[must_use]
    pub fn unsynced_batches(&self) -> usize {
        self.durable.lock().unsynced.len()
    }

    /// The next write fails, as on a full disk, and poisons the store until the machine is started
    /// again.
    pub fn fail_next_write(&self) {
        self.durable.lock().failure = Some(WriteFailure::Full);
    }

    /// The next synced write fails, and poisons the store as a failed write does. Readers see it when
    /// `visible`; a crash may keep it as it may keep any other write that was not synced.
    pub fn fail_next_sync(&self, visible: bool) {
        self.durable.lock().failure = Some(WriteFailure::Sync { visible });
    }

    /// Damages one record on disk, also under the eyes of its readers (views taken before do not
    /// notice); whether there was one.
    pub fn damage(&self, family: Family, key: &[u8], damage: Damage) -> bool {
        let mut durable = self.durable.lock();
        durable.synced.damage(family, key, damage);
        self.live.write().damage(family, key, damage)
    }

    /// Everything reads again as it was written, as after a change of a cable.
    pub fn heal(&self) {
        let mut durable = self.durable.lock();
        durable.synced.damaged = Arc::default();
        self.live.write().damaged = Arc::default();
    }

    /// Whether a record reads wrong: one that was written again, or deleted, does not.
    #[must_use]
    pub fn reads_wrong(&self) -> bool {
        !self.live.read().damaged.is_empty() || !self.durable.lock().synced.damaged.is_empty()
    }

    /// The keys of a family on disk, for a choice of what to damage.
    #[must_use]
    pub fn keys_on_disk(&self, family: Family) -> Vec<Box<[u8]>> {
        let durable = self.durable.lock();
        durable.synced.table(family).keys().cloned().collect()
    }

    /// Fails a write, and says how.
    fn fail(&self, durable: &mut Durable, batch: Batch, failure: WriteFailure) -> StorageError {
        let reason = match failure {
            WriteFailure::Full => "no space left on device",
            WriteFailure::Sync { visible } => {
                if visible {
                    self.live.write().apply(batch.clone());
                }
                durable.unsynced.push(batch);
                "the sync failed"
            }
        };
        StorageError::Write {
            reason: reason.into(),
        }
    }
}

impl Reader for MemoryStorage {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.live.read().get(family, key)
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        // The scan must not hold the lock while its caller works: read from a frozen copy.
        let state = self.live.read().clone();
        let records: Vec<_> = state.scan(family, start, end, order).collect();
        Box::new(records.into_iter())
    }
}

impl Storage for MemoryStorage {
    fn view(&self) -> Arc<dyn Reader> {
        Arc::new(self.live.read().clone())
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let mut durable = self.durable.lock();
        if durable.poisoned {
            return Err(StorageError::Poisoned);
        }
        if let Some(failure) = durable.failure_of(durability) {
            durable.poisoned = true;
            return Err(self.fail(&mut durable, batch, failure));
        }
        self.live.write().apply(batch.clone());
        durable.unsynced.push(batch);
        if durability == Durability::Sync {
            // Applied a second time rather than copied from `live`: sharing tables between the two
            // would make the next write copy a whole table.
            for batch in std::mem::take(&mut durable.unsynced) {
                durable.synced.apply(batch);
            }
        }
        Ok(())
    }

    fn bytes_on_disk(&self) -> u64 {
        let state = self.live.read();
        let table_bytes =
            |table: &Arc<Table>| table.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        state.tables.iter().map(table_bytes).sum::<usize>() as u64
    }
}
