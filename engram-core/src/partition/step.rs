//! One command on its way: what it has changed so far, over what storage holds. Operations of one
//! command see the changes of those before them. Nothing is written and nothing in memory changes
//! until the whole command went through.

use std::collections::{BTreeMap, BTreeSet};

use super::digest;
use super::record::{
    ConflictRecord, MemoryRecord, PurgeRecord, SourceRemovals, StateRecord, VectorRecord,
};
use super::touched::Touched;
use crate::edges::EdgeRecord;
use crate::index::VectorId;
use crate::keys;
use crate::limits;
use crate::storage::{Batch, Family, Reader, StorageError};
use crate::types::{Dot, EdgeContext, EdgeKey, MemoryHash, OverlayDot, PartitionId, Sequence};

pub struct Step<'a> {
    pub partition: PartitionId,
    pub reader: &'a dyn Reader,
    /// As it will be after the command; the sequence is the command's already.
    pub state: StateRecord,
    /// What the log covers, this command included.
    pub log: EdgeContext,
    pub batch: Batch,
    pub memories: BTreeMap<MemoryHash, Touched<MemoryRecord>>,
    pub edges: BTreeMap<EdgeKey, Touched<EdgeRecord>>,
    pub removals: BTreeMap<MemoryHash, Touched<SourceRemovals>>,
    pub inserted: Vec<(VectorId, VectorRecord)>,
    pub killed: Vec<VectorId>,
    /// Purges asked for so far; this command may add some.
    pub purges: PurgeRecord,
    /// A generation begins if purges wait.
    pub renews: bool,
    /// Overlay dots that this command brings into the log.
    pub adopting: Vec<OverlayDot>,
    /// Memories that come, go, or whose out-edges change.
    pub graph_touched: Vec<MemoryHash>,
    /// Memories to which an edge changes.
    pub graph_targets: Vec<MemoryHash>,
    /// What folding made undecidable for this command, in its order.
    pub conflicts: Vec<ConflictRecord>,
    /// Edges among those touched that had a base before.
    pub folded_before: BTreeSet<EdgeKey>,
    edge_changes: u32,
}

impl<'a> Step<'a> {
    /// The next command over `state`, which is what storage holds.
    pub fn new(
        partition: PartitionId,
        reader: &'a dyn Reader,
        state: &StateRecord,
        covered: &EdgeContext,
        batch: Batch,
    ) -> Self {
        let state = StateRecord {
            sequence: state.sequence.next(),
            ..state.clone()
        };
        let log = EdgeContext {
            sequence: state.sequence,
            overlay: covered.overlay.clone(),
        };
        Self {
            partition,
            reader,
            state,
            log,
            batch,
            memories: BTreeMap::new(),
            edges: BTreeMap::new(),
            removals: BTreeMap::new(),
            inserted: Vec::new(),
            killed: Vec::new(),
            purges: PurgeRecord::default(),
            renews: false,
            adopting: Vec::new(),
            graph_touched: Vec::new(),
            graph_targets: Vec::new(),
            conflicts: Vec::new(),
            folded_before: BTreeSet::new(),
            edge_changes: 0,
        }
    }

    pub fn sequence(&self) -> Sequence {
        self.state.sequence
    }

    /// The mark of the command's next change to edges.
    pub fn next_dot(&mut self) -> Dot {
        let index = self.edge_changes;
        self.edge_changes += 1;
        Dot::Log {
            partition: self.partition,
            sequence: self.sequence(),
            index,
        }
    }

    pub fn memory(&mut self, hash: MemoryHash) -> Result<Option<&MemoryRecord>, StorageError> {
        if !self.memories.contains_key(&hash) {
            let touched = self.load_memory(hash)?;
            self.memories.insert(hash, touched);
        }
        Ok(self.memories.get(&hash).and_then(Touched::now))
    }

    fn load_memory(&self, hash: MemoryHash) -> Result<Touched<MemoryRecord>, StorageError> {
        let key = keys::memory(self.partition, hash);
        let Some(bytes) = self.reader.get(Family::Memories, &key)? else {
            return Ok(Touched::absent());
        };
        let record: MemoryRecord =
            keys::decode(&bytes).map_err(|error| error.at("a memory record"))?;
        let embedding = match record.vector {
            Some(id) => self.components(id)?,
            None => Vec::new(),
        };
        Ok(Touched::found(
            record,
            digest::of_record(&key, &bytes, &embedding),
            true,
        ))
    }

    /// The embedding under an id, stored or inserted by this command.
    pub fn components(&self, id: VectorId) -> Result<Vec<f32>, StorageError> {
        // Ids are given in order, so those of this command are one run.
        let first = self.inserted.first().map_or(id, |(first, _)| *first);
        let place = id.0.checked_sub(first.0).map(|place| place as usize);
        if let Some((_, record)) = place.and_then(|place| self.inserted.get(place)) {
            return Ok(record.components.clone());
        }
        let stored = super::read::vector(self.reader, self.partition, id)?;
        let record = stored.ok_or_else(|| StorageError::Corrupt {
            what: format!("vector {id}"),
            reason: "a memory names it, but it is not there".into(),
        })?;
        Ok(record.components)
    }

    /// Stores or removes a memory whose record was read through [`Self::memory`] before.
    pub fn set_memory(&mut self, hash: MemoryHash, record: Option<MemoryRecord>) {
        let touched = self.memories.get_mut(&hash);
        assert!(touched.is_some(), "a memory is read before it is written");
        if let Some(touched) = touched {
            touched.set(record);
        }
    }

    /// Gives an embedding the next vector id.
    pub fn insert_vector(&mut self, owner: MemoryHash, components: Vec<f32>) -> VectorId {
        let id = VectorId(self.state.next_vector);
        self.state.next_vector += 1;
        let record = VectorRecord {
            inserted: self.sequence(),
            owner,
            components,
        };
        self.inserted.push((id, record));
        id
    }

    pub fn kill_vector(&mut self, id: VectorId) {
        self.killed.push(id);
    }

    /// Notes that what this command forgets is to leave the index, too.
    pub fn purge(&mut self) {
        self.purges = PurgeRecord {
            asked: self.purges.asked + 1,
            last: self.sequence(),
        };
    }

    /// Moves all changes into the batch, with the state record but for what the caller adds.
    /// `conflicts_before` were reported by earlier commands.
    pub fn finish(&mut self, conflicts_before: u64) -> Result<(), StorageError> {
        self.write_conflicts(conflicts_before);
        self.write_memories()?;
        self.write_edges();
        self.write_removals();
        for (id, record) in &self.inserted {
            let key = keys::vector(self.partition, id.0);
            self.batch.put(Family::Vectors, key, keys::encode(record));
        }
        for id in &self.killed {
            let key = keys::death(self.partition, id.0);
            self.batch
                .put(Family::Metadata, key, keys::encode(&self.state.sequence));
        }
        if self.purges.last == self.sequence() {
            let value = keys::encode(&self.purges);
            self.batch
                .put(Family::Metadata, keys::purges(self.partition), value);
        }
        if !self.adopting.is_empty() {
            let value = keys::encode(&self.log.overlay);
            self.batch
                .put(Family::Metadata, keys::adopted(self.partition), value);
        }
        Ok(())
    }

    /// Keeps the newest conflicts; the number of the last one says how many there ever were.
    fn write_conflicts(&mut self, before: u64) {
        for (number, record) in (before + 1..).zip(&self.conflicts) {
            let key = keys::conflict(self.partition, number);
            self.batch.put(Family::Metadata, key, keys::encode(record));
            if number > limits::CONFLICTS_KEPT {
                let old = keys::conflict(self.partition, number - limits::CONFLICTS_KEPT);
                self.batch.delete(Family::Metadata, old);
            }
        }
    }

    fn write_memories(&mut self) -> Result<(), StorageError> {
        for (hash, touched) in std::mem::take(&mut self.memories) {
            if !touched.is_changed() {
                continue;
            }
            if touched.existed() != touched.now().is_some() {
                self.graph_touched.push(hash);
            }
            let key = keys::memory(self.partition, hash);
            let mut after = 0;
            match touched.now() {
                Some(record) => {
                    let value = keys::encode(record);
                    let embedding = record.vector.map(|id| self.components(id)).transpose()?;
                    after = digest::of_record(&key, &value, &embedding.unwrap_or_default());
                    self.batch.put(Family::Memories, key, value);
                }
                None => self.batch.delete(Family::Memories, key),
            }
            count(
                &mut self.state.memories,
                touched.was_counted(),
                touched.now().is_some(),
            );
            replace(&mut self.state.memory_digest, touched.digest(), after);
        }
        Ok(())
    }
}

/// Counts one thing more or less.
pub fn count(counter: &mut u64, before: bool, after: bool) {
    assert!(
        *counter > 0 || !before,
        "more was removed than was ever counted"
    );
    *counter = *counter + u64::from(after) - u64::from(before);
}

/// Replaces what one record gives to a digest.
pub fn replace(digest: &mut u128, before: u128, after: u128) {
    *digest = digest.wrapping_sub(before).wrapping_add(after);
}
