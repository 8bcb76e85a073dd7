//! Edge changes beside the log: accepted here, or received from another replica (ADR 0003).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::overlay::{OverlayStats, Received, edge_of};
use super::{Partition, Published};
use crate::command::{EdgeChange, OverlayDelta};
use crate::keys;
use crate::limits;
use crate::planted;
use crate::storage::{Batch, Durability, Family, StorageError};
use crate::types::{
    ActorId, EdgeContext, EdgeKey, Hlc, MemoryHash, MemoryId, OverlayContext, OverlayDot,
    PartitionId, Relation, RequestId, Sequence,
};

/// A change to be accepted at this replica alone.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalChange {
    pub request: RequestId,
    /// Whether this is a second or later attempt of the same request.
    pub retried: bool,
    pub stamp: Hlc,
    pub from: MemoryId,
    pub to: MemoryId,
    pub relation: Relation,
    /// The context of a removal is filled in where it is accepted; what it says here is passed
    /// over.
    pub change: EdgeChange,
}

/// Where a replica is, for the others of its partition.
///
/// What must hold: a removal that this replica issued and that is not in `seen` carries a context
/// that has reached `sequence`. On that rests the frontier of folding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaPosition {
    pub sequence: Sequence,
    /// Overlay dots in the log or beside it.
    pub seen: OverlayContext,
    /// Of the changes beside the log: replicas with equal `sequence` and `seen` have it equal too.
    pub held_digest: u128,
}

/// Why changes were not accepted. Nothing of them was kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("memory {id} does not belong to partition {partition}")]
    NotInPartition {
        id: MemoryId,
        partition: PartitionId,
    },
    #[error("partition {partition} was dropped")]
    Dropped { partition: PartitionId },
    #[error(
        "partition {partition} holds {bytes} bytes of edge changes that no majority has taken yet, the most is {}",
        limits::OVERLAY_BYTES_MAX
    )]
    Full {
        partition: PartitionId,
        bytes: usize,
    },
}

/// What came of deltas from another replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceivedOverlay {
    pub new: usize,
    /// Held already, or in the log.
    pub known: usize,
    /// The dot of another change held here: never merged, an alarm.
    pub conflicts: usize,
    /// Edges of another partition: not kept.
    pub foreign: usize,
}

impl Partition {
    /// Accepts changes under the actor's next dots and returns them. `actor` are 128 bits that were
    /// drawn at the first local write after the process started. A change whose request and edge
    /// are held already gets the dot it has.
    ///
    /// # Errors
    /// See [`LocalError`].
    ///
    /// # Durability
    /// On disk when this returns; no other call shows the dots before that.
    pub fn accept_local(
        &self,
        actor: ActorId,
        changes: &[LocalChange],
    ) -> Result<Vec<OverlayDelta>, LocalError> {
        let _writer = self.overlay_writer.lock();
        let mut accepted: Vec<OverlayDelta> = Vec::with_capacity(changes.len());
        let mut fresh = Vec::new();
        {
            let published = self.published.read();
            self.check_room(published.overlay.stats().bytes)?;
            let mut n = published.overlay.next_n(actor);
            for change in changes {
                self.check_source(&change.from, published.state.slots)?;
                let mut delta = change.delta(OverlayDot { actor, n });
                let key = edge_of(&delta);
                if let EdgeChange::Remove { context } = &mut delta.change {
                    *context = published.edge_context(&key);
                    let before = fresh.iter().filter(|other| edge_of(other) == key);
                    before.for_each(|other: &OverlayDelta| context.overlay.insert(other.dot));
                }
                if let Some(held) = published.overlay.twin(&delta) {
                    accepted.push(held.clone());
                } else {
                    n += 1;
                    fresh.push(delta.clone());
                    accepted.push(delta);
                }
            }
        }
        self.keep(fresh)?;
        Ok(accepted)
    }

    fn check_room(&self, bytes: usize) -> Result<(), LocalError> {
        if bytes <= limits::OVERLAY_BYTES_MAX {
            return Ok(());
        }
        Err(LocalError::Full {
            partition: self.id,
            bytes,
        })
    }

    fn check_source(
        &self,
        from: &MemoryId,
        slots: crate::types::SlotRange,
    ) -> Result<(), LocalError> {
        if slots.contains(from.hash_slot()) {
            return Ok(());
        }
        Err(LocalError::NotInPartition {
            id: from.clone(),
            partition: self.id,
        })
    }

    /// Takes in what another replica holds; in any order, any number of times.
    ///
    /// # Errors
    /// See [`LocalError`].
    ///
    /// # Durability
    /// On disk when this returns.
    pub fn receive_overlay(&self, deltas: &[OverlayDelta]) -> Result<ReceivedOverlay, LocalError> {
        let _writer = self.overlay_writer.lock();
        let mut received = ReceivedOverlay::default();
        let mut fresh: Vec<OverlayDelta> = Vec::new();
        let mut places: BTreeMap<OverlayDot, usize> = BTreeMap::new();
        {
            let published = self.published.read();
            self.check_room(published.overlay.stats().bytes)?;
            for delta in deltas {
                let twice = places.get(&delta.dot).and_then(|place| fresh.get(*place));
                match twice.map_or_else(
                    || published.overlay.classify(delta),
                    |other| same(other, delta),
                ) {
                    Received::Known => received.known += 1,
                    Received::Conflict => received.conflicts += 1,
                    Received::New
                        if self
                            .check_source(&delta.from, published.state.slots)
                            .is_err() =>
                    {
                        received.foreign += 1;
                    }
                    Received::New => {
                        places.insert(delta.dot, fresh.len());
                        fresh.push(delta.clone());
                    }
                }
            }
        }
        received.new = fresh.len();
        self.overlay_conflicts
            .fetch_add(received.conflicts as u64, Ordering::Relaxed);
        self.keep(fresh)?;
        Ok(received)
    }

    /// Writes new changes and then shows them. The caller holds `overlay_writer`.
    fn keep(&self, fresh: Vec<OverlayDelta>) -> Result<(), LocalError> {
        if fresh.is_empty() {
            return Ok(());
        }
        if self.published.read().dropped {
            return Err(LocalError::Dropped { partition: self.id });
        }
        let mut batch = Batch::new();
        for delta in &fresh {
            batch.put(
                Family::Edges,
                keys::overlay(self.id, delta.dot),
                keys::encode(delta),
            );
        }
        let durability = match planted!("local-edge-not-synced") {
            true => Durability::Buffered,
            false => Durability::Sync,
        };
        self.storage.write(batch, durability)?;
        let mut overtaken = Batch::new();
        let mut published = self.published.write();
        for delta in fresh {
            // The log may have adopted it from another replica while it was written here.
            if published.overlay.seen().covers(delta.dot) {
                overtaken.delete(Family::Edges, keys::overlay(self.id, delta.dot));
            } else {
                let sequence = published.state.sequence;
                published.graph.note([delta.from.hash()], sequence);
                published.overlay.insert(delta);
            }
        }
        if !overtaken.is_empty() {
            self.storage.write(overtaken, Durability::Buffered)?;
        }
        Ok(())
    }

    #[must_use]
    pub fn overlay_stats(&self) -> OverlayStats {
        self.published.read().overlay.stats()
    }

    /// Overlay dots seen here, in the log or beside it: what a peer need not send.
    #[must_use]
    pub fn overlay_context(&self) -> OverlayContext {
        self.published.read().overlay.seen().clone()
    }

    /// Changes held here that a peer with this context has not seen, in the order of their dots,
    /// up to about `bytes_max`; at least one when there is any.
    #[must_use]
    pub fn overlay_missing_from(
        &self,
        peer: &OverlayContext,
        bytes_max: usize,
    ) -> Vec<OverlayDelta> {
        self.published.read().overlay.missing_from(peer, bytes_max)
    }

    /// Changes that the log does not have yet, for the primary to propose: the first in the order
    /// of their dots, up to about `bytes_max`.
    #[must_use]
    pub fn adoptable(&self, limit: usize, bytes_max: usize) -> Vec<OverlayDelta> {
        self.published.read().overlay.first(limit, bytes_max)
    }

    /// See [`ReplicaPosition`]. Waits for local changes that are being written.
    #[must_use]
    pub fn position(&self) -> ReplicaPosition {
        // A removal that is being accepted has its context already, and its dot not yet.
        let _writer = self.overlay_writer.lock();
        let published = self.published.read();
        ReplicaPosition {
            sequence: published.state.sequence,
            seen: published.overlay.seen().clone(),
            held_digest: published.overlay.digest(),
        }
    }

    /// What a removal of this edge carries when it is issued here now: all that the log has, and
    /// what is held beside it for this edge. Dots of other edges would make it wait for them.
    #[must_use]
    pub fn removal_context(&self, key: &EdgeKey) -> EdgeContext {
        self.published.read().edge_context(key)
    }

    /// As [`Self::removal_context`], for all edges out of a memory.
    #[must_use]
    pub fn forget_context(&self, from: MemoryHash) -> EdgeContext {
        let published = self.published.read();
        let mut context = EdgeContext::clone(&published.log);
        let beside = published.overlay.dots_of_source(from);
        beside.for_each(|dot| context.overlay.insert(dot));
        context
    }
}

impl Published {
    fn edge_context(&self, key: &EdgeKey) -> EdgeContext {
        let mut context = EdgeContext::clone(&self.log);
        let beside = self.overlay.dots_of_edge(key);
        beside.for_each(|dot| context.overlay.insert(dot));
        context
    }
}

impl LocalChange {
    pub(super) fn delta(&self, dot: OverlayDot) -> OverlayDelta {
        let Self {
            request,
            retried,
            stamp,
            from,
            to,
            relation,
            change,
        } = self.clone();
        OverlayDelta {
            dot,
            request,
            retried,
            stamp,
            from,
            to,
            relation,
            change,
        }
    }
}

fn same(one: &OverlayDelta, other: &OverlayDelta) -> Received {
    if one == other {
        Received::Known
    } else {
        Received::Conflict
    }
}
