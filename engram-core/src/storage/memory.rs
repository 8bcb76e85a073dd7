//! An in-memory store for tests and the simulation. It keeps the batches written since the last
//! sync apart, so that a crash can lose any suffix of them, and it can be told to fail.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Batch, BatchOp, Durability, Family, Order, Reader, Records, Storage, StorageError};

type Table = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// All families at one moment. Tables are shared between states until one of them is written.
#[derive(Clone, Default)]
struct State {
    tables: [Arc<Table>; Family::ALL.len()],
}

impl State {
    fn table(&self, family: Family) -> &Table {
        &self.tables[family as usize]
    }

    fn apply(&mut self, batch: Batch) {
        for op in batch.into_ops() {
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
}

impl Reader for State {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.table(family).get(key).map(|value| value.to_vec()))
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        fn copy<T: Clone, E>((key, value): (&T, &T)) -> Result<(T, T), E> {
            Ok((key.clone(), value.clone()))
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let range = self.table(family).range::<[u8], _>(bounds);
        match order {
            Order::Ascending => Box::new(range.map(copy)),
            Order::Descending => Box::new(range.rev().map(copy)),
        }
    }
}

#[derive(Default)]
struct Durable {
    /// What the disk holds.
    synced: State,
    /// Batches written since, oldest first.
    unsynced: Vec<Batch>,
    fail_next_write: bool,
    poisoned: bool,
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

    /// The next write fails, as on a full disk or a failed fsync, and poisons the store.
    pub fn fail_next_write(&self) {
        self.durable.lock().fail_next_write = true;
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
        if std::mem::take(&mut durable.fail_next_write) {
            durable.poisoned = true;
            return Err(StorageError::Write {
                reason: "injected failure".into(),
            });
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
