//! Edge changes that this node accepted on its own, on their way to those who pass them on.
//!
//! What must hold: that a partition has news is never lost; the changes themselves are hints, of
//! which a bounded number is kept.

use std::collections::BTreeMap;

use engram_core::command::OverlayDelta;
use engram_core::types::PartitionId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Changes of one partition that wait to be passed on.
const WAITING_MAX: usize = 64;

/// What was accepted since it was last taken.
#[derive(Debug, Default)]
pub struct Accepted {
    waiting: Mutex<BTreeMap<PartitionId, Vec<OverlayDelta>>>,
    news: Notify,
}

impl Accepted {
    pub fn note(&self, partition: PartitionId, deltas: Vec<OverlayDelta>) {
        let mut waiting = self.waiting.lock();
        let of_partition = waiting.entry(partition).or_default();
        let room = WAITING_MAX.saturating_sub(of_partition.len());
        of_partition.extend(deltas.into_iter().take(room));
        self.news.notify_one();
    }

    /// Returns when something was noted since the last return.
    pub async fn wait(&self) {
        self.news.notified().await;
    }

    pub fn take(&self) -> BTreeMap<PartitionId, Vec<OverlayDelta>> {
        std::mem::take(&mut self.waiting.lock())
    }
}
