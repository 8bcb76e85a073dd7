//! RocksDB behind the storage seam: one database per node, one column family per [`Family`].
//!
//! Recovery mode: `TolerateCorruptedTailRecords`. A torn last record (the machine died while
//! writing it) is dropped, since nothing was acknowledged for it; damage anywhere else fails the
//! open instead of silently dropping all that follows, which RocksDB's default would do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, IteratorMode, Options, ReadOptions, SnapshotWithThreadMode, WriteBatch,
    WriteOptions,
};
use self_cell::self_cell;

use super::{Batch, BatchOp, Durability, Family, Order, Reader, Records, Storage, StorageError};

/// Sizes of one node's database. All in bytes.
#[derive(Clone, Copy, Debug)]
pub struct RocksOptions {
    /// Cache of uncompressed blocks, shared by all families.
    pub block_cache_bytes: usize,
    /// Memory table of one family before it is flushed.
    pub write_buffer_bytes: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 256 << 20,
            write_buffer_bytes: 64 << 20,
        }
    }
}

/// A RocksDB database. Clones share it.
#[derive(Clone)]
pub struct RocksStorage {
    shared: Arc<Shared>,
}

struct Shared {
    db: DB,
    /// Set by the first failed write: after a failed fsync the kernel may report later ones as
    /// successful although the data is gone, so nothing is ever retried.
    poisoned: AtomicBool,
}

impl RocksStorage {
    /// Opens or creates the database in the directory `path`.
    ///
    /// # Errors
    /// When the directory cannot be used, another process holds it, or its log is damaged.
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, StorageError> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.name(), family_options(family, options, &cache))
        });
        let db = DB::open_cf_descriptors(&database_options(), path, families).map_err(|error| {
            StorageError::Open {
                path: path.display().to_string(),
                reason: error.to_string(),
            }
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                db,
                poisoned: AtomicBool::new(false),
            }),
        })
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(512 << 20);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options
}

fn family_options(family: Family, sizes: RocksOptions, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(sizes.write_buffer_bytes);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(match family {
        // Embeddings do not compress; the log is short-lived.
        Family::Vectors | Family::Log => DBCompressionType::None,
        Family::Memories | Family::Edges | Family::Metadata => DBCompressionType::Lz4,
    });
    options
}

fn read_error(family: Family) -> impl Fn(rocksdb::Error) -> StorageError {
    move |error| StorageError::Read {
        family: family.name(),
        reason: error.to_string(),
    }
}

impl Shared {
    fn family(&self, family: Family) -> &ColumnFamily {
        let handle = self.db.cf_handle(family.name());
        assert!(handle.is_some(), "family {} was not opened", family.name());
        handle.unwrap_or_else(|| unreachable!("asserted above"))
    }
}

fn bounded(start: &[u8], end: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    options
}

fn mode(order: Order) -> IteratorMode<'static> {
    match order {
        Order::Ascending => IteratorMode::Start,
        Order::Descending => IteratorMode::End,
    }
}

impl Reader for RocksStorage {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.shared
            .db
            .get_cf(self.shared.family(family), key)
            .map_err(read_error(family))
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        let handle = self.shared.family(family);
        let records = self
            .shared
            .db
            .iterator_cf_opt(handle, bounded(start, end), mode(order));
        Box::new(records.map(move |record| record.map_err(read_error(family))))
    }
}

impl Storage for RocksStorage {
    fn view(&self) -> Arc<dyn Reader> {
        Arc::new(View(ViewCell::new(Arc::clone(&self.shared), |shared| {
            shared.db.snapshot()
        })))
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        if self.shared.poisoned.load(Ordering::Acquire) {
            return Err(StorageError::Poisoned);
        }
        let mut writes = WriteBatch::default();
        for op in batch.into_ops() {
            match op {
                BatchOp::Put { family, key, value } => {
                    writes.put_cf(self.shared.family(family), key, value);
                }
                BatchOp::Delete { family, key } => {
                    writes.delete_cf(self.shared.family(family), key);
                }
                BatchOp::DeleteRange { family, start, end } => {
                    writes.delete_range_cf(self.shared.family(family), start, end);
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Sync);
        self.shared.db.write_opt(writes, &options).map_err(|error| {
            self.shared.poisoned.store(true, Ordering::Release);
            StorageError::Write {
                reason: error.to_string(),
            }
        })
    }

    fn bytes_on_disk(&self) -> u64 {
        let size = |family: &Family| {
            let handle = self.shared.family(*family);
            let property = "rocksdb.total-sst-files-size";
            self.shared
                .db
                .property_int_value_cf(handle, property)
                .ok()
                .flatten()
                .unwrap_or(0)
        };
        Family::ALL.iter().map(size).sum()
    }
}

type Snapshot<'a> = SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct ViewCell {
        owner: Arc<Shared>,
        #[not_covariant]
        dependent: Snapshot,
    }
);

/// A snapshot that keeps its database open.
struct View(ViewCell);

impl Reader for View {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.0.with_dependent(|shared, snapshot| {
            snapshot
                .get_cf(shared.family(family), key)
                .map_err(read_error(family))
        })
    }

    fn scan<'a>(&'a self, family: Family, start: &[u8], end: &[u8], order: Order) -> Records<'a> {
        self.0.with_dependent(|shared, snapshot| {
            let handle = shared.family(family);
            let mut options = bounded(start, end);
            options.set_snapshot(snapshot);
            let records = shared.db.iterator_cf_opt(handle, options, mode(order));
            Box::new(records.map(move |record| record.map_err(read_error(family)))) as Records<'_>
        })
    }
}
