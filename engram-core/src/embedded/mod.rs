//! The engine without a server: spaces in a directory (or in memory), one partition each, driven
//! directly. A program links this and has the operations, the semantics and the answers of a
//! cluster on its own disk.
//!
//! What must hold: a mutation that returned is on disk; answers are those of a cluster. There is no
//! log: every command is one synced batch, so the state on disk is always that after the last one.
//! Index jobs run in the calling thread after each mutation, a few at a time.
//!
//! ```
//! use engram_core::embedded::{Engram, EngramOptions, NewMemory, NewSpace, SpreadQuery};
//! use engram_core::partition::RecallQuery;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The engine knows no clock and no random numbers: the program brings both.
//! let options = EngramOptions { now_millis: || 1_700_000_000_000, seed: [7; 16] };
//! let engram = Engram::in_memory(options)?;
//! let animals = engram.create_space(NewSpace::new("animals", 3))?;
//! animals.remember(NewMemory::new("Barks.").id("dog")?.embedding(vec![1.0, 0.1, 0.0]))?;
//! let cat = NewMemory::new("Purrs.").id("cat")?.embedding(vec![0.9, 0.4, 0.0]);
//! animals.remember(cat.edge("dog", "flees", 0.8, 1.0)?)?;
//!
//! let query = RecallQuery::new(&[1.0, 0.0, 0.0], 1);
//! let nearest = animals.recall(&query)?;
//! assert_eq!(nearest.hits[0].memory.id.as_str(), "dog");
//!
//! let reached = animals.spread(&SpreadQuery::from_seeds([("cat", 1.0)])?)?;
//! assert_eq!(reached.activated[1].id.as_str(), "dog");
//! # Ok(())
//! # }
//! ```

mod memory;
mod space;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use memory::{NewMemory, NewMemoryError};
pub use space::{Remembered, Space, SpreadQuery, WriteError};

use crate::keys;
use crate::partition::{OpenError, Partition};
use crate::storage::{Batch, Durability, Family, MemoryStorage, Order, Storage, StorageError};
use crate::types::{
    ClientId, Decay, Hlc, IndexParameters, Metric, PartitionId, SlotRange, SpaceConfig,
    SpaceConfigError, SpaceId,
};

/// Where the facade keeps what it knows of itself.
const STATE: &str = "embedded";
/// Prefix of the parts of a saved index.
const INDEX: &str = "embedded-index-";
/// Bytes of a saved index in one record.
const INDEX_PART_BYTES: usize = 1 << 20;

/// What the engine cannot know by itself.
#[derive(Clone, Copy, Debug)]
pub struct EngramOptions {
    /// Milliseconds since the Unix epoch. Nothing but stamps and decay depends on it.
    pub now_millis: fn() -> u64,
    /// Random bytes; they need not differ from one opening to the next.
    pub seed: [u8; 16],
}

/// What a space is made with.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSpace {
    pub name: String,
    pub dimension: u32,
    pub metric: Metric,
    /// Model that all embeddings must name; empty accepts any, unnamed.
    pub embedding_model: String,
    pub decay: Decay,
}

impl NewSpace {
    /// Compared by cosine, any model, no decay.
    #[must_use]
    pub fn new(name: impl Into<String>, dimension: u32) -> Self {
        let (metric, embedding_model) = (Metric::Cosine, String::new());
        Self {
            name: name.into(),
            dimension,
            metric,
            embedding_model,
            decay: Decay::None,
        }
    }

    fn fits(&self, config: &SpaceConfig) -> bool {
        config.dimension == self.dimension
            && config.metric == self.metric
            && config.embedding_model == self.embedding_model
            && config.decay == self.decay
    }
}

/// Why a store or a space cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngramError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Config(#[from] SpaceConfigError),
    #[error("space {name} exists with another configuration")]
    SpaceExists { name: String },
    #[error("there is no space {name}")]
    NoSuchSpace { name: String },
}

/// An open store.
#[derive(Clone)]
pub struct Engram {
    shared: Arc<Shared>,
}

impl fmt::Debug for Engram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engram")
            .field("spaces", &self.spaces())
            .finish()
    }
}

/// What is kept across openings.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct StateRecord {
    /// How often the store was opened: no two openings share a client id.
    openings: u64,
    /// Spaces ever made: ids are never reused.
    spaces: u64,
}

struct Shared {
    storage: Arc<dyn Storage>,
    options: EngramOptions,
    spaces: Mutex<BTreeMap<String, Arc<Partition>>>,
    state: Mutex<StateRecord>,
    /// Held for the length of a mutation.
    requests: Mutex<Requests>,
}

/// Where the request ids and stamps of this opening come from.
struct Requests {
    client: ClientId,
    counter: u64,
    clock: Hlc,
}

impl Requests {
    /// Openings are counted in the leading bytes, so that later clients are greater.
    fn new(opening: u64, seed: [u8; 16]) -> Self {
        let mut client = [0; 16];
        client[..8].copy_from_slice(&opening.to_be_bytes());
        client[8..].copy_from_slice(&blake3::hash(&seed).as_bytes()[..8]);
        Self {
            client: ClientId(client),
            counter: 0,
            clock: Hlc::default(),
        }
    }
}

impl Engram {
    /// Opens or creates the store in a directory.
    ///
    /// # Errors
    /// When the directory cannot be used, another process holds it, or its data is damaged.
    #[cfg(feature = "rocksdb")]
    pub fn open(path: &std::path::Path, options: EngramOptions) -> Result<Self, EngramError> {
        use crate::storage::{RocksOptions, RocksStorage};
        let storage = RocksStorage::open(path, RocksOptions::default())?;
        Self::on(Arc::new(storage), options)
    }

    /// A store that ends with the process.
    ///
    /// # Errors
    /// Does not fail today; the same operation on a disk does.
    pub fn in_memory(options: EngramOptions) -> Result<Self, EngramError> {
        Self::on(Arc::new(MemoryStorage::new()), options)
    }

    /// Opens the store that is on `storage`.
    ///
    /// # Errors
    /// When the storage cannot be read or written, or what it holds is damaged.
    pub fn on(storage: Arc<dyn Storage>, options: EngramOptions) -> Result<Self, EngramError> {
        let mut state = match storage.get(Family::Metadata, &keys::program(STATE))? {
            Some(bytes) => keys::decode(&bytes).map_err(|error| error.at("the store's record"))?,
            None => StateRecord::default(),
        };
        state.openings += 1;
        let mut batch = Batch::new();
        batch.put(Family::Metadata, keys::program(STATE), keys::encode(&state));
        storage.write(batch, Durability::Sync)?;
        let mut spaces = BTreeMap::new();
        for id in Partition::list(&*storage)? {
            let index = load_index(&*storage, id)?;
            let mut source = index.as_slice();
            let partition = Partition::open(Arc::clone(&storage), id, Some(&mut source))?;
            spaces.insert(partition.config().name, partition);
        }
        let requests = Mutex::new(Requests::new(state.openings, options.seed));
        let (spaces, state) = (Mutex::new(spaces), Mutex::new(state));
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                options,
                spaces,
                state,
                requests,
            }),
        })
    }

    /// Creates a space, or finds it if it is there with the same configuration.
    ///
    /// # Errors
    /// When the configuration is out of range or the name belongs to another one.
    pub fn create_space(&self, new: NewSpace) -> Result<Space, EngramError> {
        let mut spaces = self.shared.spaces.lock();
        if let Some(partition) = spaces.get(&new.name) {
            if new.fits(&partition.config()) {
                return Ok(Space::new(Arc::clone(&self.shared), Arc::clone(partition)));
            }
            return Err(EngramError::SpaceExists { name: new.name });
        }
        let mut state = self.shared.state.lock();
        let number = state.spaces + 1;
        let config = self.config(new, number);
        config.check()?;
        let next = StateRecord {
            spaces: number,
            ..*state
        };
        let (name, storage) = (config.name.clone(), Arc::clone(&self.shared.storage));
        let mut batch = Batch::new();
        batch.put(Family::Metadata, keys::program(STATE), keys::encode(&next));
        let id = PartitionId(number);
        let partition =
            Partition::create(Arc::clone(&storage), id, config, SlotRange::ALL, &mut batch);
        storage.write(batch, Durability::Sync)?;
        *state = next;
        spaces.insert(name, Arc::clone(&partition));
        Ok(Space::new(Arc::clone(&self.shared), partition))
    }

    fn config(&self, new: NewSpace, number: u64) -> SpaceConfig {
        let NewSpace {
            name,
            dimension,
            metric,
            embedding_model,
            decay,
        } = new;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&self.shared.options.seed)
            .update(&number.to_be_bytes());
        let mut seed = [0; 8];
        seed.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let index = IndexParameters::new(u64::from_le_bytes(seed));
        let space = SpaceId(number);
        SpaceConfig {
            space,
            name,
            dimension,
            metric,
            index,
            embedding_model,
            decay,
        }
    }

    /// # Errors
    /// When there is no space of this name.
    pub fn space(&self, name: &str) -> Result<Space, EngramError> {
        let found = self.shared.spaces.lock().get(name).cloned();
        let partition = found.ok_or_else(|| EngramError::NoSuchSpace {
            name: name.to_owned(),
        })?;
        Ok(Space::new(Arc::clone(&self.shared), partition))
    }

    /// Names of all spaces, in order.
    #[must_use]
    pub fn spaces(&self) -> Vec<String> {
        self.shared.spaces.lock().keys().cloned().collect()
    }

    /// Deletes a space and everything in it. Handles of it fail from now on.
    ///
    /// # Errors
    /// When there is no such space or storage fails.
    pub fn drop_space(&self, name: &str) -> Result<(), EngramError> {
        let mut spaces = self.shared.spaces.lock();
        let no_such = || EngramError::NoSuchSpace {
            name: name.to_owned(),
        };
        let partition = spaces.get(name).cloned().ok_or_else(no_such)?;
        let mut batch = Batch::new();
        clear_index(partition.id(), &mut batch);
        partition.drop_durably(batch)?;
        spaces.remove(name);
        Ok(())
    }

    /// Saves the links of all indexes, so that the next opening need not make them again. Without
    /// it nothing is lost but time.
    ///
    /// # Errors
    /// When storage fails.
    pub fn checkpoint(&self) -> Result<(), EngramError> {
        let partitions: Vec<_> = self.shared.spaces.lock().values().cloned().collect();
        for partition in partitions {
            save_index(&*self.shared.storage, &partition)?;
        }
        Ok(())
    }
}

fn part_name(id: PartitionId, part: usize) -> String {
    format!("{INDEX}{id:020}-{part:08}")
}

fn clear_index(id: PartitionId, batch: &mut Batch) {
    let parts = keys::programs(&format!("{INDEX}{id:020}-"));
    batch.delete_range(Family::Metadata, parts.start, parts.end);
}

fn save_index(storage: &dyn Storage, partition: &Partition) -> Result<(), StorageError> {
    let mut bytes = Vec::new();
    partition
        .save_index(&mut bytes)
        .map_err(|error| StorageError::Write {
            reason: error.to_string(),
        })?;
    let mut batch = Batch::new();
    clear_index(partition.id(), &mut batch);
    for (part, bytes) in bytes.chunks(INDEX_PART_BYTES).enumerate() {
        batch.put(
            Family::Metadata,
            keys::program(&part_name(partition.id(), part)),
            bytes,
        );
    }
    storage.write(batch, Durability::Buffered)
}

fn load_index(storage: &dyn Storage, id: PartitionId) -> Result<Vec<u8>, StorageError> {
    let parts = keys::programs(&format!("{INDEX}{id:020}-"));
    let mut bytes = Vec::new();
    for part in storage.scan(Family::Metadata, &parts.start, &parts.end, Order::Ascending) {
        bytes.extend_from_slice(&part?.1);
    }
    Ok(bytes)
}
