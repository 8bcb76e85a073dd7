//! Reading one group's log: newest entries from the cache, older ones from the store with their
//! checksum chain verified.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use engram_core::storage::{Family, Order, StorageError};
use openraft::{OptionalSend, RaftLogReader};

use super::record;
use super::store::{LogStore, Shared};
use crate::consensus::codec::corrupt;
use crate::consensus::keys;
use crate::consensus::runtime::{Entry, Types, Vote};

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.shared.read(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.shared
            .read(start..end, self.shared.payload_bytes_max)
            .await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state.lock().vote)
    }
}

/// What the state says about a wanted range.
struct Plan {
    /// To be read from the store.
    stored: Range<u64>,
    /// The checksum before `stored`, when no record before it has it.
    chain: Option<u32>,
    cached: Vec<(Entry, usize)>,
}

impl Shared {
    /// The entries of `wanted` that the log contains, oldest first; no more than the first ones
    /// that reach `bytes_max` together, but at least one.
    async fn read(
        self: &Arc<Self>,
        wanted: Range<u64>,
        bytes_max: usize,
    ) -> io::Result<Vec<Entry>> {
        loop {
            let plan = self.plan(&wanted);
            let (mut entries, mut bytes) = (Vec::new(), 0);
            if !plan.stored.is_empty() {
                let (shared, stored) = (Arc::clone(self), plan.stored.clone());
                let read = self
                    .seams
                    .blocking(move || shared.read_stored(stored, plan.chain, bytes_max));
                match read.await {
                    Ok(read) => (entries, bytes) = read,
                    // What was purged meanwhile is no longer wanted.
                    Err(_) if self.state.lock().first > plan.stored.start => continue,
                    Err(error) => {
                        self.damages.note(self.group, &error);
                        return Err(io::Error::other(error));
                    }
                }
                if (entries.len() as u64) < plan.stored.end - plan.stored.start {
                    return Ok(entries);
                }
            }
            for (entry, size) in plan.cached {
                if !entries.is_empty() && bytes >= bytes_max {
                    break;
                }
                bytes += size;
                entries.push(entry);
            }
            return Ok(entries);
        }
    }

    fn plan(&self, wanted: &Range<u64>) -> Plan {
        let state = self.state.lock();
        let start = wanted.start.max(state.first);
        let end = wanted.end.min(state.end).max(start);
        let cached_from = state
            .cache
            .keys()
            .next()
            .copied()
            .unwrap_or(state.end)
            .max(start);
        let cached = state.cache.range(cached_from.min(end)..end);
        let cached = cached
            .map(|(_, cached)| (cached.entry.clone(), cached.bytes))
            .collect();
        let chain = (start == state.first).then_some(state.first_chain);
        Plan {
            stored: start..cached_from.min(end),
            chain,
            cached,
        }
    }

    /// Blocks. The entries of `range`, with the bytes they take; all of them must be there.
    fn read_stored(
        &self,
        range: Range<u64>,
        chain: Option<u32>,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, usize), StorageError> {
        let lost = |index: u64| {
            corrupt(
                format!("log of group {}", self.group),
                format!("record {index} is missing"),
            )
        };
        // The record before the range carries the checksum that the first one chains to.
        let from = if chain.is_some() {
            range.start
        } else {
            range.start - 1
        };
        let (start, end) = (
            keys::record(self.group, from),
            keys::record(self.group, range.end),
        );
        let mut records = self
            .storage
            .scan(Family::Log, &start, &end, Order::Ascending);
        let mut chain = match chain {
            Some(chain) => chain,
            None => {
                let (_, before) = records.next().ok_or_else(|| lost(from))??;
                let header = record::Header::read(&before).ok_or_else(|| lost(from))?;
                header.chain
            }
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in range {
            let (key, value) = records.next().ok_or_else(|| lost(index))??;
            if keys::index_of(&key) != Some(index) {
                return Err(lost(index));
            }
            let (entry, next) = record::decode(chain, index, &value)?;
            chain = next;
            bytes += value.len();
            entries.push(entry);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok((entries, bytes))
    }
}
