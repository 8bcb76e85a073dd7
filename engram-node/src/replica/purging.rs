//! Purges: what was forgotten for good leaves the index, the records, the log and the snapshots.
//!
//! `forget --purge` puts the wish into the log. From then on, on every node, again and again: the
//! primary asks the log for a generation of the index, one after the other, so that all purges
//! meanwhile are collected into the next (`Renew`); each replica, once it serves that generation
//! and has deleted the older records, has its group's log and snapshot compacted. What must hold: a
//! replica says that a purge is done only then. What it says is kept in memory alone: after a
//! restart the last step is done again. Metrics: `engram_purges_waiting`,
//! `engram_purge_renewals_total`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::PartitionCommand;
use engram_core::partition::Partition;
use engram_core::types::{GroupId, PartitionId, Sequence};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Replicas;
use crate::consensus::{Compaction, Consensus, LogMoment};
use crate::routing::Router;
use crate::seams::Seams;

/// How often purges are looked after.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest wait for the log to take a renewal.
const RENEW_WAIT: Duration = Duration::from_secs(5);
/// Rounds that one compaction may take. Raft forgets to delete entries that it meant to delete while
/// it led and replicated them; a newer snapshot reminds it.
const COMPACTION_ROUNDS_MAX: u32 = 5;

/// Purges of which nothing is left here, by partition: those up to a command.
#[derive(Default)]
pub struct Cleared(Mutex<BTreeMap<PartitionId, Sequence>>);

impl Cleared {
    #[must_use]
    pub fn of(&self, partition: PartitionId) -> Sequence {
        self.0.lock().get(&partition).copied().unwrap_or_default()
    }
}

/// The loop, and what it remembers.
pub struct Purging {
    seams: Seams,
    router: Router,
    consensus: Consensus,
    replicas: Arc<Replicas>,
    compacting: BTreeMap<PartitionId, Compacting>,
}

/// A log that is being compacted.
#[derive(Clone, Copy)]
struct Compacting {
    /// For purges up to this command.
    last: Sequence,
    /// From what the log held then.
    moment: LogMoment,
    rounds: u32,
}

impl Purging {
    #[must_use]
    pub fn new(router: Router, consensus: Consensus, replicas: Arc<Replicas>) -> Self {
        Self {
            seams: router.seams().clone(),
            router,
            consensus,
            replicas,
            compacting: BTreeMap::new(),
        }
    }

    /// Looks after purges until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let round = async {
                self.seams.clock.sleep(PERIOD).await;
                self.round().await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = round => {}
            }
        }
    }

    async fn round(&mut self) {
        let partitions = self.replicas.partitions();
        let is_here = |id: &PartitionId| partitions.iter().any(|(_, open)| open.id() == *id);
        self.compacting.retain(|id, _| is_here(id));
        self.replicas.cleared().0.lock().retain(|id, _| is_here(id));
        let mut waiting = 0;
        for (group, partition) in &partitions {
            let purges = partition.purges();
            if purges.last <= self.replicas.cleared().of(partition.id()) {
                continue;
            }
            waiting += 1;
            if !purges.are_begun {
                // One generation at a time: what is purged meanwhile goes with the next.
                let leads = self.consensus.leadership(*group).leader == Some(self.router.local());
                if leads && partition.status().index.generations == 1 {
                    self.renew(partition).await;
                }
            } else if purges.are_served {
                self.compact(*group, partition, purges.last).await;
            } else {
                self.let_go(partition).await;
            }
        }
        metrics::gauge!("engram_purges_waiting").set(f64::from(waiting));
    }

    /// Asks the log for a generation, through whoever leads the group. With nothing to purge it
    /// changes nothing, and is an entry all the same.
    async fn renew(&self, partition: &Partition) {
        let id = partition.id();
        let map = self.router.map();
        let Some((_, place)) = map.partition(id) else {
            return;
        };
        let deadline = self.router.deadline(RENEW_WAIT);
        let renewed = self
            .router
            .command(place, PartitionCommand::Renew, deadline);
        match renewed.await {
            Ok(_) => metrics::counter!("engram_purge_renewals_total").increment(1),
            Err(error) => tracing::debug!(partition = %id, %error, "a purge waits"),
        }
    }

    /// Deletes the records of older generations, if the newest one serves already: one without a
    /// window has no job whose commit would do it.
    async fn let_go(&self, partition: &Arc<Partition>) {
        let open = Arc::clone(partition);
        if let Err(error) = self.seams.blocking(move || open.let_go()).await {
            let id = partition.id();
            tracing::error!(partition = %id, %error, "cannot let go of an old generation");
        }
    }

    /// Has the log and the snapshot let go of what the replica has let go of.
    async fn compact(&mut self, group: GroupId, partition: &Partition, last: Sequence) {
        let id = partition.id();
        let goes_on = |it: &&Compacting| it.last == last && it.rounds < COMPACTION_ROUNDS_MAX;
        let compacting = match self.compacting.get(&id).filter(goes_on) {
            Some(begun) => Compacting {
                rounds: begun.rounds + 1,
                ..*begun
            },
            None => match self.consensus.log_moment(group) {
                Some(moment) => Compacting {
                    last,
                    moment,
                    rounds: 0,
                },
                None => return,
            },
        };
        self.compacting.insert(id, compacting);
        let moment = compacting.moment;
        match self.consensus.compact(group, moment).await {
            Some(Compaction::Done) => {
                self.compacting.remove(&id);
                self.replicas.cleared().0.lock().insert(id, last);
                tracing::info!(partition = %id, sequence = %last, "purges are done here");
            }
            // Also where another node leads: it may have been done before this one began.
            Some(Compaction::WantsEntry) => self.renew(partition).await,
            Some(Compaction::UnderWay) | None => {}
        }
    }
}
