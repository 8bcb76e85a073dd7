//! Writers that keep a ledger of what was acknowledged, one per partition.
//!
//! What must hold: an entry is made after the acknowledgement and never taken back, so whatever the
//! ledger names must be found in the cluster, whichever nodes died in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engram_client::{Client, Error, Outcome, SpaceClient, types as v1};
use engram_core::types::{MemoryId, SlotRange};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::seams::{Clock, Seams};

/// Pause between two writes of one writer: the demo shows continuity, not throughput.
const PAUSE: Duration = Duration::from_millis(5);
/// Ids asked for in one `get` when the ledger is checked.
const CHECK_BATCH: usize = 200;

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub partition: u64,
    pub id: String,
    pub content: String,
    /// On the clock of the process.
    pub begun: Duration,
    pub acknowledged: Duration,
}

/// What became of all writes.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Vec<Entry>>,
    /// Ids of writes whose outcome is unknown: they may be found or not.
    unknown: Mutex<Vec<String>>,
    /// Writes that were refused for good, which nothing here explains.
    refused: Mutex<Vec<String>>,
}

/// What a check of the ledger found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    pub acknowledged: usize,
    pub unknown: usize,
    /// Acknowledged, and not there.
    pub lost: Vec<String>,
    /// Acknowledged, and there with other content.
    pub altered: Vec<String>,
    /// Refused while the cluster should have accepted it.
    pub refused: Vec<String>,
}

impl Audit {
    #[must_use]
    pub fn holds(&self) -> bool {
        self.lost.is_empty() && self.altered.is_empty() && self.refused.is_empty()
    }
}

impl Ledger {
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.entries.lock().len()
    }

    /// Ids of the acknowledged writes.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let entries = self.entries.lock();
        entries.iter().map(|entry| entry.id.clone()).collect()
    }

    /// Writes of a partition that were begun at or after `since` and acknowledged.
    #[must_use]
    pub fn acknowledged_since(&self, partition: u64, since: Duration) -> usize {
        let entries = self.entries.lock();
        let counts = |entry: &&Entry| entry.partition == partition && entry.begun >= since;
        entries.iter().filter(counts).count()
    }

    /// Time from `since` until a write of the partition that was begun afterwards was acknowledged.
    #[must_use]
    pub fn resumed_after(&self, partition: u64, since: Duration) -> Option<Duration> {
        let entries = self.entries.lock();
        let later = entries
            .iter()
            .filter(|e| e.partition == partition && e.begun >= since);
        later.map(|entry| entry.acknowledged - since).min()
    }

    /// Asks the cluster for every acknowledged write.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn check(&self, space: &SpaceClient) -> Result<Audit, Error> {
        let entries = self.entries.lock().clone();
        let mut audit = Audit {
            acknowledged: entries.len(),
            unknown: self.unknown.lock().len(),
            refused: self.refused.lock().clone(),
            ..Audit::default()
        };
        for batch in entries.chunks(CHECK_BATCH) {
            let ids = batch.iter().map(|entry| entry.id.clone()).collect();
            let found = space
                .get_with(v1::GetRequest {
                    ids,
                    ..Default::default()
                })
                .await?;
            for entry in batch {
                match found.memories.iter().find(|memory| memory.id == entry.id) {
                    None => audit.lost.push(entry.id.clone()),
                    Some(memory) if memory.content != entry.content => {
                        audit.altered.push(entry.id.clone());
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(audit)
    }
}

/// Writers at work.
pub struct Writers {
    pub ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    /// Closed when the last writer has ended.
    running: mpsc::Receiver<()>,
}

impl Writers {
    /// Starts one writer per partition.
    #[must_use]
    pub fn start(
        client: &Client,
        space: &str,
        dimension: usize,
        partitions: &[v1::Partition],
        seams: &Seams,
    ) -> Self {
        let ledger = Arc::new(Ledger::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (alive, running) = mpsc::channel(1);
        for partition in partitions {
            let writer = Writer {
                space: client.space(space),
                dimension,
                partition: partition.id,
                slots: SlotRange {
                    start: partition.slot_start as u16,
                    end: partition.slot_end as u16,
                },
                ledger: ledger.clone(),
                stop: stop.clone(),
                clock: seams.clock.clone(),
            };
            let alive = alive.clone();
            seams.spawn("ledger-writer", async move {
                writer.run().await;
                drop(alive);
            });
        }
        Self {
            ledger,
            stop,
            running,
        }
    }

    /// Lets each writer finish its write.
    pub async fn stop(mut self) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        while self.running.recv().await.is_some() {}
        self.ledger
    }
}

struct Writer {
    space: SpaceClient,
    dimension: usize,
    partition: u64,
    slots: SlotRange,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
}

impl Writer {
    async fn run(self) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let Some(id) = self.id(number) else { continue };
            self.write(id, number).await;
            self.clock.sleep(PAUSE).await;
        }
    }

    /// The id with this number, if it belongs to the writer's partition.
    fn id(&self, number: u64) -> Option<String> {
        let id = MemoryId::new(format!("note-{}-{number}", self.partition)).ok()?;
        self.slots.contains(id.hash_slot()).then(|| id.into())
    }

    async fn write(&self, id: String, number: u64) {
        let content = format!(
            "note {number} of the writer at partition {}",
            self.partition
        );
        let memory = v1::Memory {
            id: id.clone(),
            content: content.clone(),
            embedding: embedding(self.partition, number, self.dimension),
            labels: vec!["note".to_owned()],
            ..Default::default()
        };
        let begun = self.clock.monotonic();
        match self.space.remember(memory).await {
            Ok(_) => self.ledger.entries.lock().push(Entry {
                partition: self.partition,
                id,
                content,
                begun,
                acknowledged: self.clock.monotonic(),
            }),
            Err(error) if error.retryable || error.outcome == Outcome::Unknown => {
                self.ledger.unknown.lock().push(id);
            }
            Err(error) => self.ledger.refused.lock().push(format!("{id}: {error}")),
        }
    }
}

/// Some vector, the same for the same note.
fn embedding(partition: u64, number: u64, dimension: usize) -> Vec<f32> {
    let mut state = partition.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number << 1 | 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..dimension).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(partition: u64, begun: u64, acknowledged: u64) -> Entry {
        Entry {
            partition,
            id: String::new(),
            content: String::new(),
            begun: Duration::from_millis(begun),
            acknowledged: Duration::from_millis(acknowledged),
        }
    }

    #[test]
    fn only_writes_begun_afterwards_show_that_writes_flow() {
        let ledger = Ledger::default();
        let at = Duration::from_millis(100);
        // Its acknowledgement may have been on its way when the node died.
        ledger.entries.lock().push(entry(1, 90, 110));
        assert_eq!(ledger.resumed_after(1, at), None);
        ledger
            .entries
            .lock()
            .extend([entry(1, 120, 250), entry(1, 130, 140), entry(2, 101, 102)]);
        assert_eq!(ledger.resumed_after(1, at), Some(Duration::from_millis(40)));
        assert_eq!(ledger.acknowledged_since(1, at), 2);
    }

    #[test]
    fn an_audit_holds_only_without_loss() {
        let well = Audit {
            acknowledged: 3,
            unknown: 2,
            ..Audit::default()
        };
        assert!(well.holds());
        assert!(
            !Audit {
                lost: vec!["a".into()],
                ..well.clone()
            }
            .holds()
        );
        assert!(
            !Audit {
                altered: vec!["a".into()],
                ..well
            }
            .holds()
        );
    }

    #[test]
    fn notes_have_usable_embeddings() {
        let first = embedding(1, 1, 384);
        assert!(
            first
                .iter()
                .all(|value| value.is_finite() && value.abs() <= 1.0)
        );
        assert_eq!(first, embedding(1, 1, 384));
        assert_ne!(first, embedding(1, 2, 384));
    }
}
