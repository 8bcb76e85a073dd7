//! The table of applied request ids (ADR 0002): what makes a retried mutation apply once.
//!
//! Read by the applier before a `Write`'s operations and changed with them in one batch. Per client
//! it keeps the outcomes of the greatest counters; when it drops one, the client's floor rises above
//! it. Of clients it keeps those used last, in log order. What must hold: the table is a function of
//! the log, and an id it has forgotten is refused, never applied.

use std::collections::BTreeMap;

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
    Known(RequestRecord),
    /// Below what is remembered; whether it was applied is unknown.
    TooOld,
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
        }
        Ok(table)
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
        let record = match reader.get(Family::Metadata, &key)? {
            Some(bytes) => {
                keys::decode(&bytes).map_err(|error| error.at("a request's outcomes"))?
            }
            None => RequestRecord::default(),
        };
        Ok(Admission::Known(record))
    }

    /// Notes the outcomes of an admitted request. `known` says whether any were there before.
    pub fn record(
        &self,
        reader: &dyn Reader,
        batch: &mut Batch,
        id: (ClientId, u64),
        record: &RequestRecord,
        known: bool,
    ) -> Result<TableChange, StorageError> {
        let (client, counter) = id;
        let at = record.sequence;
        let before = self.clients.get(&client).copied();
        let mut entry = before.unwrap_or(ClientRecord {
            floor: 0,
            last_used: at,
            kept: 0,
        });
        batch.put(
            Family::Metadata,
            keys::request(self.partition, client, counter),
            keys::encode(record),
        );
        if !known {
            entry.kept += 1;
            if entry.kept > self.bounds.per_client {
                let oldest = self
                    .oldest_counter(reader, client)?
                    .map_or(counter, |n| n.min(counter));
                batch.delete(
                    Family::Metadata,
                    keys::request(self.partition, client, oldest),
                );
                entry.kept -= 1;
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
            }
            self.dropped = self.dropped.max(Some(client));
        }
        if let Some((client, record)) = change.used {
            if let Some(before) = self.clients.insert(client, record) {
                self.by_use.remove(&before.last_used);
            }
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

    fn oldest_counter(
        &self,
        reader: &dyn Reader,
        client: ClientId,
    ) -> Result<Option<u64>, StorageError> {
        let range = keys::requests_of(self.partition, client);
        let mut entries = reader.scan(Family::Metadata, &range.start, &range.end, Order::Ascending);
        let first = entries.next().transpose()?;
        Ok(first.and_then(|(key, _)| keys::parse_number(&key)))
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
                Admission::Known(record) if record.outcomes.is_empty() => {
                    let outcomes = vec![(0, OpOutcome::EdgeChanged)];
                    let record = RequestRecord {
                        sequence: at,
                        outcomes,
                    };
                    let id = (client, counter);
                    let change = self
                        .table
                        .record(&self.storage, &mut batch, id, &record, false);
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
            let bounds = self.table.bounds;
            self.table =
                RequestTable::load(&self.storage, P, bounds, self.table.dropped).expect("loads");
        }
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
