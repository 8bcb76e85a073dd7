//! The table of applied request ids (ADR 0002): what makes a retried mutation apply once.
//!
//! Read by the applier before a `Write`'s operations and changed with them in one batch. Per client
//! it keeps the outcomes of the greatest counters; when it drops one, the client's floor rises above
//! it. Of clients it keeps those used last, in log order. What must hold: the table is a function of
//! the log, and an id it has forgotten is refused, never applied.

use std::collections::BTreeMap;

use super::digest;
use super::record::{ClientRecord, RequestRecord};
use crate::keys;
use crate::limits;
use crate::storage::{Batch, Family, Order, Reader, StorageError};
use crate::types::{ClientId, PartitionId, Sequence};

/// How much the table remembers. Part of the state machine: all replicas use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    /// Counters per client.
    pub per_client: u32,
    pub clients: usize,
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self {
            per_client: limits::REQUESTS_PER_CLIENT as u32,
            clients: limits::CLIENTS_PER_PARTITION,
        }
    }
}

/// What the table knows of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// Outcomes of the operations already applied under it; none for a new request.
    Known(KnownRequest),
    /// Below what is remembered; whether it was applied is unknown.
    TooOld,
}

/// A request as storage has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownRequest {
    pub record: RequestRecord,
    /// What its record gives to its client's sum; `None` for a new request.
    pub stored: Option<u128>,
}

/// All clients in memory; outcomes stay in storage.
#[derive(Debug)]
pub struct RequestTable {
    partition: PartitionId,
    bounds: RequestBounds,
    clients: BTreeMap<ClientId, ClientRecord>,
    /// A sequence is one command, hence one client.
    by_use: BTreeMap<Sequence, ClientId>,
    dropped: Option<ClientId>,
    /// Sum mod 2^128 over the clients' records, which hold the sums over their outcomes.
    digest: u128,
}

/// A change of the table that is in a batch and becomes true when the batch is written.
#[derive(Debug, Default)]
#[must_use]
pub struct TableChange {
    used: Option<(ClientId, ClientRecord)>,
    evicted: Option<ClientId>,
}

impl RequestTable {
    pub fn new(partition: PartitionId, bounds: RequestBounds) -> Self {
        assert!(
            bounds.per_client > 0 && bounds.clients > 0,
            "a request table without room"
        );
        let (clients, by_use) = (BTreeMap::new(), BTreeMap::new());
        Self {
            partition,
            bounds,
            clients,
            by_use,
            dropped: None,
            digest: 0,
        }
    }

    /// From storage; `dropped` is in the partition's state record.
    pub fn load(
        reader: &dyn Reader,
        partition: PartitionId,
        bounds: RequestBounds,
        dropped: Option<ClientId>,
    ) -> Result<Self, StorageError> {
        let mut table = Self {
            dropped,
            ..Self::new(partition, bounds)
        };
        let range = keys::clients(partition);
        for entry in reader.scan(Family::Metadata, &range.start, &range.end, Order::Ascending) {
            let (key, value) = entry?;
            let record: ClientRecord =
                keys::decode(&value).map_err(|error| error.at("a request table client"))?;
            let client = keys::parse_client(&key)
                .ok_or_else(|| keys::BadRecord::Empty.at("a request table key"))?;
            table.by_use.insert(record.last_used, client);
            table.clients.insert(client, record);
            table.digest = table.digest.wrapping_add(digest_of_client(client, &record));
        }
        Ok(table)
    }

    /// Of everything that the table remembers: equal where the log is.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let dropped = keys::encode(&self.dropped);
        self.digest
            .wrapping_add(digest::of_record(b"dropped", &dropped, &[]))
    }

    /// The greatest client ever dropped, once `change` is true.
    pub fn dropped_after(&self, change: &TableChange) -> Option<ClientId> {
        self.dropped.max(change.evicted)
    }

    pub fn admit(
        &self,
        reader: &dyn Reader,
        client: ClientId,
        counter: u64,
    ) -> Result<Admission, StorageError> {
        let floor = match self.clients.get(&client) {
            Some(record) => record.floor,
            None if self.dropped.is_some_and(|dropped| client <= dropped) => {
                return Ok(Admission::TooOld);
            }
            None => 0,
        };
        if counter < floor {
            return Ok(Admission::TooOld);
        }
        let key = keys::request(self.partition, client, counter);
        let known = match reader.get(Family::Metadata, &key)? {
            Some(bytes) => KnownRequest {
                record: keys::decode(&bytes).map_err(|error| error.at("a request's outcomes"))?,
                stored: Some(digest::of_record(&key, &bytes, &[])),
            },
            None => KnownRequest::default(),
        };
        Ok(Admission::Known(known))
    }

    /// Notes the outcomes of an admitted request, as they are now.
    pub fn record(
        &self,
        reader: &dyn Reader,
        batch: &mut Batch,
        id: (ClientId, u64),
        KnownRequest { record, stored }: &KnownRequest,
    ) -> Result<TableChange, StorageError> {
        let (client, counter) = id;
        let at = record.sequence;
        let before = self.clients.get(&client).copied();
        let mut entry = before.unwrap_or(ClientRecord {
            floor: 0,
            last_used: at,
            kept: 0,
            outcomes: 0,
        });
        let (key, value) = (
            keys::request(self.partition, client, counter),
            keys::encode(record),
        );
        let now = digest::of_record(&key, &value, &[]);
        entry.outcomes = entry.outcomes.wrapping_sub(stored.unwrap_or(0));
        entry.outcomes = entry.outcomes.wrapping_add(now);
        batch.put(Family::Metadata, key, value);
        if stored.is_none() {
            entry.kept += 1;
            if entry.kept > self.bounds.per_client {
                // What is in the batch cannot be read yet, and may itself be the oldest.
                let oldest = self.oldest(reader, client, entry.floor)?;
                let (oldest, gone) = oldest
                    .filter(|(n, _)| *n < counter)
                    .unwrap_or((counter, now));
                batch.delete(
                    Family::Metadata,
                    keys::request(self.partition, client, oldest),
                );
                entry.kept -= 1;
                entry.outcomes = entry.outcomes.wrapping_sub(gone);
                entry.floor = entry.floor.max(oldest.saturating_add(1));
            }
        }
        entry.last_used = at;
        let evicted = if before.is_none() {
            self.evict(batch)
        } else {
            None
        };
        batch.put(
            Family::Metadata,
            keys::client(self.partition, client),
            keys::encode(&entry),
        );
        Ok(TableChange {
            used: Some((client, entry)),
            evicted,
        })
    }

    /// A known client used the table again without a new outcome: its place among those used last.
    pub fn touch(&self, batch: &mut Batch, client: ClientId, at: Sequence) -> TableChange {
        let Some(entry) = self.clients.get(&client) else {
            return TableChange::default();
        };
        let entry = ClientRecord {
            last_used: at,
            ..*entry
        };
        batch.put(
            Family::Metadata,
            keys::client(self.partition, client),
            keys::encode(&entry),
        );
        TableChange {
            used: Some((client, entry)),
            evicted: None,
        }
    }

    /// Makes a written change true.
    pub fn commit(&mut self, change: &TableChange) {
        if let Some(client) = change.evicted {
            if let Some(record) = self.clients.remove(&client) {
                self.by_use.remove(&record.last_used);
                self.digest = self.digest.wrapping_sub(digest_of_client(client, &record));
            }
            self.dropped = self.dropped.max(Some(client));
        }
        if let Some((client, record)) = change.used {
            if let Some(before) = self.clients.insert(client, record) {
                self.by_use.remove(&before.last_used);
                self.digest = self.digest.wrapping_sub(digest_of_client(client, &before));
            }
            self.digest = self.digest.wrapping_add(digest_of_client(client, &record));
            self.by_use.insert(record.last_used, client);
        }
        assert!(
            self.by_use.len() == self.clients.len(),
            "a client's last use was counted twice"
        );
        assert!(
            self.clients.len() <= self.bounds.clients,
            "more clients than the table may keep"
        );
    }

    fn evict(&self, batch: &mut Batch) -> Option<ClientId> {
        if self.clients.len() < self.bounds.clients {
            return None;
        }
        let (_, client) = self.by_use.first_key_value()?;
        let outcomes = keys::requests_of(self.partition, *client);
        batch.delete_range(Family::Metadata, outcomes.start, outcomes.end);
        batch.delete(Family::Metadata, keys::client(self.partition, *client));
        Some(*client)
    }

    /// The least counter whose outcomes are kept, and what its record gives to the sum. Nothing
    /// below the floor is kept: the search begins there, because a store walks over everything
    /// that was deleted on its way, and a long import deletes one outcome with each command.
    fn oldest(
        &self,
        reader: &dyn Reader,
        client: ClientId,
        floor: u64,
    ) -> Result<Option<(u64, u128)>, StorageError> {
        let first = keys::request(self.partition, client, floor);
        let end = keys::requests_of(self.partition, client).end;
        let mut entries = reader.scan(Family::Metadata, &first, &end, Order::Ascending);
        let first = entries.next().transpose()?;
        Ok(first.and_then(|(key, value)| {
            let counter = keys::parse_number(&key)?;
            Some((counter, digest::of_record(&key, &value, &[])))
        }))
    }
}

fn digest_of_client(client: ClientId, record: &ClientRecord) -> u128 {
    digest::of_record(&client.0, &keys::encode(record), &[])
}

/// Whether a request table that arrives record by record is whole: the outcomes of each client add
/// up to what its own record says.
#[derive(Default)]
pub struct TableCheck {
    /// What the clients' records say less what their outcomes add up to.
    open: BTreeMap<ClientId, u128>,
}

impl TableCheck {
    /// One record of the partition's metadata, of whatever kind.
    pub fn take(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StorageError> {
        if keys::clients(partition).contains(key) {
            let record: ClientRecord =
                keys::decode(value).map_err(|error| error.at("a request table client"))?;
            if let Some(client) = keys::parse_client(key) {
                let open = self.open.entry(client).or_default();
                *open = open.wrapping_add(record.outcomes);
            }
        } else if keys::requests(partition).contains(key)
            && let Some(client) = keys::parse_request(key)
        {
            let open = self.open.entry(client).or_default();
            *open = open.wrapping_sub(digest::of_record(key, value, &[]));
        }
        Ok(())
    }

    /// A client whose outcomes are not those that its record counts.
    #[must_use]
    pub fn incomplete(&self) -> Option<ClientId> {
        let open = self.open.iter().find(|(_, open)| **open != 0);
        open.map(|(client, _)| *client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::OpOutcome;
    use crate::storage::{Durability, MemoryStorage, Storage};

    const P: PartitionId = PartitionId(1);

    struct Driven {
        storage: MemoryStorage,
        table: RequestTable,
        sequence: u64,
    }

    impl Driven {
        fn new(per_client: u32, clients: usize) -> Self {
            let table = RequestTable::new(
                P,
                RequestBounds {
                    per_client,
                    clients,
                },
            );
            Self {
                storage: MemoryStorage::new(),
                table,
                sequence: 0,
            }
        }

        /// Whether the request was new, known or too old.
        fn apply(&mut self, client: u8, counter: u64) -> &'static str {
            self.sequence += 1;
            let client = ClientId([client; 16]);
            let admission = self
                .table
                .admit(&self.storage, client, counter)
                .expect("admits");
            let mut batch = Batch::new();
            let at = Sequence(self.sequence);
            let (change, what) = match admission {
                Admission::TooOld => (self.table.touch(&mut batch, client, at), "old"),
                Admission::Known(mut known) if known.stored.is_none() => {
                    known.record = RequestRecord {
                        sequence: at,
                        outcomes: vec![(0, OpOutcome::EdgeChanged)],
                    };
                    let id = (client, counter);
                    let change = self.table.record(&self.storage, &mut batch, id, &known);
                    (change.expect("records"), "new")
                }
                Admission::Known(_) => (self.table.touch(&mut batch, client, at), "known"),
            };
            self.storage
                .write(batch, Durability::Buffered)
                .expect("writes");
            self.table.commit(&change);
            what
        }

        fn reload(&mut self) {
            let (bounds, digest) = (self.table.bounds, self.table.digest());
            self.table =
                RequestTable::load(&self.storage, P, bounds, self.table.dropped).expect("loads");
            assert_eq!(self.table.digest(), digest);
            assert_eq!(self.check(|_| true).incomplete(), None);
        }

        /// The check of the records that `travels`.
        fn check(&self, travels: impl Fn(&[u8]) -> bool) -> TableCheck {
            let mut check = TableCheck::default();
            let all = keys::partition_metadata(P);
            for entry in self
                .storage
                .scan(Family::Metadata, &all.start, &all.end, Order::Ascending)
            {
                let (key, value) = entry.expect("reads");
                if travels(&key) {
                    check.take(P, &key, &value).expect("decodes");
                }
            }
            check
        }
    }

    #[test]
    fn a_table_that_lacks_outcomes_or_has_others_is_found() {
        let mut driven = Driven::new(3, 4);
        for counter in [9, 1, 4, 6] {
            driven.apply(1, counter);
            driven.reload();
        }
        driven.apply(2, 1);
        driven.reload();
        let lost = keys::request(P, ClientId([1; 16]), 6);
        assert_eq!(
            driven.check(|key| key != lost).incomplete(),
            Some(ClientId([1; 16]))
        );
        let client = keys::client(P, ClientId([2; 16]));
        assert_eq!(
            driven.check(|key| key != client).incomplete(),
            Some(ClientId([2; 16]))
        );
    }

    #[test]
    fn the_digest_is_that_of_what_was_applied() {
        let applied = |requests: &[(u8, u64)]| {
            let mut driven = Driven::new(3, 2);
            for (client, counter) in requests {
                driven.apply(*client, *counter);
            }
            driven.table.digest()
        };
        let all = [(1, 1), (2, 1), (1, 2), (3, 1)];
        assert_eq!(applied(&all), applied(&all));
        assert_ne!(applied(&all), applied(&all[..3]));
        assert_ne!(applied(&[(1, 1), (1, 2)]), applied(&[(1, 2), (1, 1)]));
    }

    #[test]
    fn a_request_applies_once() {
        let mut driven = Driven::new(4, 4);
        assert_eq!(driven.apply(1, 1), "new");
        assert_eq!(driven.apply(1, 1), "known");
        driven.reload();
        assert_eq!(driven.apply(1, 1), "known");
    }

    #[test]
    fn the_floor_rises_above_dropped_counters() {
        let mut driven = Driven::new(3, 4);
        for counter in [2, 5, 6] {
            assert_eq!(driven.apply(1, counter), "new");
        }
        assert_eq!(driven.apply(1, 1), "new", "below none that was dropped");
        // 1 itself was the least of four: it is dropped at once, and the floor is 2.
        assert_eq!(driven.apply(1, 1), "old");
        assert_eq!(driven.apply(1, 2), "known");
        assert_eq!(driven.apply(1, 7), "new");
        driven.reload();
        assert_eq!(driven.apply(1, 2), "old");
        assert_eq!(driven.apply(1, 3), "new", "late, but above the floor");
        assert_eq!(driven.apply(1, 5), "known");
    }

    #[test]
    fn the_client_used_longest_ago_goes_first() {
        let mut driven = Driven::new(4, 2);
        driven.apply(1, 1);
        driven.apply(3, 1);
        assert_eq!(driven.apply(1, 1), "known", "a retry is a use");
        assert_eq!(driven.apply(4, 1), "new", "3 goes");
        driven.reload();
        assert_eq!(driven.apply(3, 1), "old");
        assert_eq!(
            driven.apply(2, 1),
            "old",
            "never seen, but at or below the greatest dropped"
        );
        assert_eq!(driven.apply(1, 1), "known");
        assert_eq!(driven.apply(5, 1), "new");
        assert_eq!(
            driven.apply(4, 1),
            "old",
            "4 was used longest ago, and is now dropped"
        );
        assert_eq!(
            driven.apply(1, 2),
            "new",
            "an old client that is still kept goes on"
        );
    }

    #[test]
    fn dropped_outcomes_leave_storage() {
        let mut driven = Driven::new(4, 1);
        driven.apply(1, 1);
        driven.apply(1, 2);
        driven.apply(2, 1);
        let range = keys::partition_metadata(P);
        let left =
            driven
                .storage
                .scan(Family::Metadata, &range.start, &range.end, Order::Ascending);
        assert_eq!(left.count(), 2, "the second client and its request");
    }
}
