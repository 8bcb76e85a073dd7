//! One group's log as openraft writes it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use engram_core::planted;
use engram_core::storage::{Batch, Family, Order, Storage, StorageError};
use engram_core::types::GroupId;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{LogIdOptionExt as _, OptionalSend};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::record::{self, CHAIN_START, Header};
use super::writer::LogWriter;
use crate::consensus::codec::{LogIdRecord, VoteRecord, corrupt, unversioned, versioned};
use crate::consensus::damage::Damages;
use crate::consensus::keys;
use crate::consensus::runtime::{Entry, LogId, Types, Vote};
use crate::consensus::state::LogEnds;
use crate::seams::Seams;

/// A group's log. Clones share it, and read it.
#[derive(Clone)]
pub struct LogStore {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub group: GroupId,
    pub seams: Seams,
    pub storage: Arc<dyn Storage>,
    writer: LogWriter,
    /// Newest entries kept decoded, in bytes; those not durable yet come on top.
    cache_bytes_max: usize,
    /// Bytes of entries that one replication message takes before it is closed.
    pub payload_bytes_max: usize,
    pub damages: Damages,
    pub state: Mutex<State>,
}

/// What is in the log, written or still on its way to the disk.
pub(super) struct State {
    pub vote: Option<Vote>,
    committed: Option<LogId>,
    /// Whether `committed` has yet to travel with a write.
    committed_unsaved: bool,
    purged: Option<LogId>,
    /// Records are `first..end`.
    pub first: u64,
    pub end: u64,
    /// Checksum that the first record chains to.
    pub first_chain: u32,
    last: Option<LogId>,
    last_chain: u32,
    /// The newest entries, without a gap up to `end`.
    pub cache: BTreeMap<u64, Cached>,
    cache_bytes: usize,
    /// All before this index is durable.
    durable_end: u64,
}

pub(super) struct Cached {
    pub entry: Entry,
    pub bytes: usize,
    chain: u32,
}

#[derive(Serialize, Deserialize)]
struct PurgeMark {
    last: LogIdRecord,
    chain: u32,
}

impl LogStore {
    /// Blocks while it reads the ends of the log. The sizes are those of the cache and of a message.
    ///
    /// # Errors
    /// When the store cannot be read, or what it holds is damaged.
    pub fn open(
        group: GroupId,
        seams: &Seams,
        storage: Arc<dyn Storage>,
        writer: LogWriter,
        (cache_bytes_max, payload_bytes_max): (usize, usize),
        damages: Damages,
    ) -> Result<Self, StorageError> {
        let state = Mutex::new(State::load(group, storage.as_ref())?);
        let seams = seams.clone();
        let shared = Shared {
            group,
            seams,
            storage,
            writer,
            cache_bytes_max,
            payload_bytes_max,
            damages,
            state,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The vote that is on disk.
    pub fn saved_vote(&self) -> Option<Vote> {
        self.shared.state.lock().vote
    }

    /// Up to where the log was purged, and its last entry.
    pub fn ends(&self) -> LogEnds {
        let state = self.shared.state.lock();
        LogEnds {
            purged: state.purged,
            last: state.last,
        }
    }

    /// The last entry, written or still on its way to the disk.
    pub fn last(&self) -> Option<LogId> {
        self.shared.state.lock().last
    }

    /// Whether nothing was ever written: no vote, no entry.
    pub fn is_pristine(&self) -> bool {
        let state = self.shared.state.lock();
        state.vote.is_none() && state.last.is_none()
    }
}

impl State {
    fn load(group: GroupId, storage: &dyn Storage) -> Result<Self, StorageError> {
        let get = |key: Vec<u8>| storage.get(Family::Log, &key);
        let vote = get(keys::vote(group))?;
        let vote: Option<VoteRecord> = vote
            .as_deref()
            .map(|bytes| unversioned("vote", bytes))
            .transpose()?;
        let committed = get(keys::committed(group))?;
        let committed: Option<LogIdRecord> = committed
            .as_deref()
            .map(|bytes| unversioned("committed hint", bytes))
            .transpose()?;
        let mark = get(keys::purged(group))?;
        let mark: Option<PurgeMark> = mark
            .as_deref()
            .map(|bytes| unversioned("purge mark", bytes))
            .transpose()?;

        let purged: Option<LogId> = mark.as_ref().map(|mark| mark.last.into());
        let first_chain = mark.map_or(CHAIN_START, |mark| mark.chain);
        let (first, last, last_chain) = match ends(group, storage, first_chain)? {
            Some(ends) => (ends.first, Some(ends.last), ends.chain),
            None => (purged.next_index(), purged, first_chain),
        };
        if purged.is_some() && first != purged.next_index() {
            let reason = format!("records begin at {first}, purged up to {purged:?}");
            return Err(corrupt(format!("log of group {group}"), reason));
        }
        // A hint beyond the end is of a log that has lost its end.
        let committed = committed.map(LogId::from).filter(|_| last.is_some());
        let committed = committed.min(last);
        let end = last.next_index();
        Ok(Self {
            vote: vote.map(Into::into),
            committed,
            committed_unsaved: false,
            purged,
            first,
            end,
            first_chain,
            last_chain,
            last,
            cache: BTreeMap::new(),
            cache_bytes: 0,
            durable_end: end,
        })
    }

    /// Adds an entry's record to `batch`, and the entry to the cache.
    fn push(&mut self, group: GroupId, entry: Entry, batch: &mut Batch) -> Result<usize, String> {
        let index = entry.log_id.index;
        if self.first == self.end {
            self.first = index;
            self.end = index;
        }
        if index != self.end {
            return Err(format!(
                "entry {index} appended to a log that ends at {}",
                self.end
            ));
        }
        let (bytes, chain) = record::encode(self.last_chain, &entry);
        let size = bytes.len();
        batch.put(Family::Log, keys::record(group, index), bytes);
        self.end = index + 1;
        self.last = Some(entry.log_id);
        self.last_chain = chain;
        self.cache_bytes += size;
        self.cache.insert(
            index,
            Cached {
                entry,
                bytes: size,
                chain,
            },
        );
        Ok(size)
    }

    /// Drops the oldest durable entries from the cache until it is within its bound.
    fn shrink_cache(&mut self, bytes_max: usize) {
        while self.cache_bytes > bytes_max
            && let Some(oldest) = self.cache.first_entry()
            && *oldest.key() < self.durable_end
        {
            self.cache_bytes -= oldest.remove().bytes;
        }
    }

    fn cut_cache(&mut self, keep: std::ops::Range<u64>) {
        self.cache.retain(|index, _| keep.contains(index));
        self.cache_bytes = self.cache.values().map(|cached| cached.bytes).sum();
    }

    /// The committed hint travels with other writes: alone it is not worth an fsync.
    fn take_committed(&mut self, group: GroupId, batch: &mut Batch) {
        if std::mem::take(&mut self.committed_unsaved)
            && let Some(committed) = self.committed
        {
            let value = versioned(&LogIdRecord::from(committed));
            batch.put(Family::Log, keys::committed(group), value);
        }
    }
}

/// What the records in the store say of a log.
struct Ends {
    first: u64,
    last: LogId,
    /// Checksum of the last one.
    chain: u32,
}

/// The ends of a log whose first record chains to `first_chain`. The last record decides votes before
/// anybody reads it, so it is verified.
fn ends(
    group: GroupId,
    storage: &dyn Storage,
    first_chain: u32,
) -> Result<Option<Ends>, StorageError> {
    let (start, end) = (keys::record(group, 0), keys::records_end(group));
    let damaged = |reason| corrupt(format!("log of group {group}"), reason);
    let mut oldest = storage.scan(Family::Log, &start, &end, Order::Ascending);
    let Some(first) = oldest.next() else {
        return Ok(None);
    };
    let index_of = |key: &[u8]| keys::index_of(key).ok_or_else(|| damaged("malformed key"));
    let first = index_of(&first?.0)?;
    let mut newest = storage.scan(Family::Log, &start, &end, Order::Descending);
    let Some((key, record)) = newest.next().transpose()? else {
        return Err(damaged("it has a first record and no last one"));
    };
    let previous = match newest.next().transpose()? {
        Some((_, before)) => {
            let header = Header::read(&before);
            let header = header.ok_or_else(|| damaged("malformed record before the last"))?;
            header.chain
        }
        None => first_chain,
    };
    let (last, chain) = record::decode(previous, index_of(&key)?, &record)?;
    Ok(Some(Ends {
        first,
        last: last.log_id,
        chain,
    }))
}

impl Shared {
    /// The checksum that the record after `index` chains to.
    async fn chain_at(self: &Arc<Self>, index: u64) -> io::Result<u32> {
        {
            let state = self.state.lock();
            if let Some(cached) = state.cache.get(&index) {
                return Ok(cached.chain);
            }
            if index < state.first {
                return Ok(state.first_chain);
            }
            if index >= state.end {
                return Ok(CHAIN_START);
            }
        }
        let shared = Arc::clone(self);
        let key = keys::record(self.group, index);
        let record = self
            .seams
            .blocking(move || shared.storage.get(Family::Log, &key))
            .await;
        let record = record.map_err(io::Error::other)?;
        let header = record.as_deref().and_then(Header::read);
        let lost = || corrupt(format!("log record {index}"), "it is missing or malformed");
        header
            .map(|header| header.chain)
            .ok_or_else(|| io::Error::other(lost()))
    }

    fn on_durable(&self, end: u64) {
        let mut state = self.state.lock();
        state.durable_end = state.durable_end.max(end);
        state.shrink_cache(self.cache_bytes_max);
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.shared.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = Batch::new();
        let value = versioned(&VoteRecord::from(*vote));
        batch.put(Family::Log, keys::vote(self.shared.group), value);
        if planted!("vote-before-fsync") {
            self.shared.writer.submit(batch, Box::new(drop)).await?;
        } else {
            self.shared.writer.write(batch).await?;
        }
        self.shared.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.committed = committed;
        state.committed_unsaved = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::new();
        let (end, mark) = {
            let mut state = self.shared.state.lock();
            for entry in entries {
                let pushed = state.push(self.shared.group, entry, &mut batch);
                pushed.map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
            }
            state.take_committed(self.shared.group, &mut batch);
            let mark = state.last.map(|last| (self.shared.group, last.into()));
            (state.end, mark)
        };
        let shared = Arc::clone(&self.shared);
        let done = move |result: Result<(), super::Poisoned>| {
            if result.is_ok() {
                shared.on_durable(end);
            }
            callback.io_completed(result.map_err(Into::into));
        };
        if planted!("ack-before-fsync") {
            done(Ok(()));
            return Ok(self.shared.writer.submit(batch, Box::new(drop)).await?);
        }
        let writer = &self.shared.writer;
        writer.submit_marked(batch, mark, Box::new(done)).await?;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let new_end = last_log_id.next_index();
        if new_end >= self.shared.state.lock().end {
            return Ok(());
        }
        let chain = match last_log_id {
            Some(last) => self.shared.chain_at(last.index).await?,
            None => self.shared.state.lock().first_chain,
        };
        let group = self.shared.group;
        let mut batch = Batch::new();
        if !planted!("truncation-keeps-records") {
            let (start, end) = (keys::record(group, new_end), keys::records_end(group));
            batch.delete_range(Family::Log, start, end);
        }
        {
            let mut state = self.shared.state.lock();
            let first = state.first.min(new_end);
            state.cut_cache(first..new_end);
            state.first = first;
            state.end = new_end;
            state.durable_end = state.durable_end.min(new_end);
            state.last = last_log_id;
            state.last_chain = chain;
        }
        // Waited for, so that no completion of a cut-off append is taken for one of its successor.
        self.shared.writer.write(batch).await?;
        // Appends that were queued before have completed by now and may have raised both again.
        let marks = &self.shared.writer.marks;
        marks.cut(group, last_log_id.map(Into::into));
        let mut state = self.shared.state.lock();
        state.durable_end = state.durable_end.min(new_end);
        Ok(())
    }

    async fn purge(&mut self, mut log_id: LogId) -> io::Result<()> {
        let group = self.shared.group;
        if planted!("purge-one-too-many")
            && let Some(next) = self.shared.state.lock().cache.get(&(log_id.index + 1))
        {
            log_id = next.entry.log_id;
        }
        let chain = self.shared.chain_at(log_id.index).await?;
        let new_first = log_id.index + 1;
        let mut batch = Batch::new();
        batch.delete_range(
            Family::Log,
            keys::record(group, 0),
            keys::record(group, new_first),
        );
        let mark = versioned(&PurgeMark {
            last: log_id.into(),
            chain,
        });
        batch.put(Family::Log, keys::purged(group), mark);
        {
            let mut state = self.shared.state.lock();
            state.purged = Some(log_id);
            state.first_chain = chain;
            state.first = new_first;
            if state.end <= new_first {
                state.end = new_first;
                state.last = Some(log_id);
                state.last_chain = chain;
            }
            let keep = new_first..state.end;
            state.cut_cache(keep);
            state.take_committed(group, &mut batch);
        }
        self.shared.writer.submit(batch, Box::new(|_| ())).await?;
        Ok(())
    }
}

#[cfg(test)]
impl LogStore {
    pub fn drop_cache(&self) {
        self.shared.state.lock().cut_cache(0..0);
    }
}
