//! Applying one command: the state machine's only way to change (design section 3).
//!
//! Called by one applier at a time, in the order of the log. A command is worked out over what
//! storage holds ([`Step`]), written as one batch together with the caller's own writes, and only
//! then made visible. What must hold: everything here is a function of the commands alone; an error
//! means that nothing of the command happened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::overlay::Received;
use super::record::{MarkRecord, MemoryRecord, RequestRecord};
use super::requests::{Admission, TableChange};
use super::step::Step;
use super::step_edges::Evidence;
use super::{Applier, Newest, Partition, digest};
use crate::command::{
    Applied, Expected, Forget, Op, OpOutcome, OverlayDelta, PartitionCommand, Rejection, Remember,
    RestoreMemory, Write,
};
use crate::index::{
    GENERATION_DEAD_PERCENT, GENERATION_SLOTS_MIN, Generation, IndexPosition, NewVector, VectorId,
};
use crate::kernel;
use crate::keys;
use crate::limits;
use crate::planted;
use crate::storage::{Batch, Durability, Family, StorageError};
use crate::types::{MarkId, Memory, MemoryId, Metric, PartitionId};

/// Why a command was not applied. All of these stop the replica: the log holds what this program
/// or this disk cannot follow.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the log creates partition {partition} a second time")]
    CreatedTwice { partition: PartitionId },
    #[error("the log goes on after it dropped partition {partition}")]
    Dropped { partition: PartitionId },
}

/// What becomes true when the batch is written.
struct Effects {
    applied: Applied,
    table: TableChange,
    mark: Option<MarkId>,
    generation: Option<Generation>,
    durability: Durability,
}

impl Partition {
    /// Applies one command, whose bytes in the log are `command_bytes`, and writes `batch` with it.
    ///
    /// # Errors
    /// See [`ApplyError`]; nothing was applied.
    ///
    /// # Durability
    /// Buffered: after a crash the caller applies again from the log.
    pub fn apply(
        &self,
        command: &PartitionCommand,
        command_bytes: &[u8],
        batch: Batch,
    ) -> Result<Applied, ApplyError> {
        self.apply_as(command, command_bytes, batch, Durability::Buffered)
    }

    /// As [`Self::apply`], on disk when it returns: for a caller that keeps no log.
    ///
    /// # Errors
    /// See [`ApplyError`]; nothing was applied.
    pub fn apply_durably(
        &self,
        command: &PartitionCommand,
        command_bytes: &[u8],
        batch: Batch,
    ) -> Result<Applied, ApplyError> {
        self.apply_as(command, command_bytes, batch, Durability::Sync)
    }

    fn apply_as(
        &self,
        command: &PartitionCommand,
        command_bytes: &[u8],
        batch: Batch,
        durability: Durability,
    ) -> Result<Applied, ApplyError> {
        let mut applier = self.applier.lock();
        let (state, covered) = {
            let published = self.published.read();
            if published.dropped {
                return Err(ApplyError::Dropped { partition: self.id });
            }
            (Arc::clone(&published.state), Arc::clone(&published.log))
        };
        let mut step = Step::new(self.id, &*self.storage, &state, &covered, batch);
        let sequence = step.sequence();
        step.state.log_hash = digest::log_link(&state.log_hash, sequence.0, command_bytes);
        step.purges = applier.purges;
        let (mut outcomes, mut table, mut mark) = (Vec::new(), TableChange::default(), None);
        match command {
            PartitionCommand::Create { .. } => {
                return Err(ApplyError::CreatedTwice { partition: self.id });
            }
            PartitionCommand::Drop => return self.apply_drop(step, durability),
            PartitionCommand::Write(write) => {
                (outcomes, table) = apply_write(&mut step, write, &applier)?
            }
            PartitionCommand::Adopt { deltas } => {
                self.count_reused_dots(deltas);
                apply_adopt(&mut step, deltas)?;
            }
            PartitionCommand::Fold { frontier, edges } => step.fold(frontier, edges)?,
            PartitionCommand::Mark { mark: id } => mark = Some(*id),
            PartitionCommand::Renew => step.renews = applier.purges_wait(),
        }
        step.finish(applier.conflicts)?;
        let generation = applier.generation_due(&step);
        if let Some(generation) = &generation {
            let key = keys::generation(self.id, generation.number);
            step.batch.put(Family::Metadata, key, generation.encode());
        }
        let applied = Applied { sequence, outcomes };
        let effects = Effects {
            applied,
            table,
            mark,
            generation,
            durability,
        };
        self.publish(step, &mut applier, effects)
    }

    /// The log's change is the one that counts; that this replica held another is an alarm.
    fn count_reused_dots(&self, deltas: &[OverlayDelta]) {
        let published = self.published.read();
        let reused =
            |delta: &&OverlayDelta| published.overlay.classify(delta) == Received::Conflict;
        let count = deltas.iter().filter(reused).count();
        self.overlay_conflicts
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Writes the batch and shows it, as one step to every reader.
    fn publish(
        &self,
        mut step: Step<'_>,
        applier: &mut Applier,
        effects: Effects,
    ) -> Result<Applied, ApplyError> {
        let Effects {
            applied,
            table,
            mark,
            generation,
            durability,
        } = effects;
        step.state.dropped_client = applier.requests.dropped_after(&table);
        step.batch.put(
            Family::Metadata,
            keys::state(self.id),
            keys::encode(&step.state),
        );
        let mut published = self.published.write();
        if let Some(mark) = mark {
            applier.note_mark(&mut step, mark, self.index.sealed());
        }
        self.storage
            .write(std::mem::take(&mut step.batch), durability)?;
        applier.requests.commit(&table);
        applier.conflicts += step.conflicts.len() as u64;
        published.conflicts = applier.conflicts;
        published.requests = applier.requests.digest();
        applier.purges = step.purges;
        published.purges = step.purges;
        self.index_step(&step, applier, generation);
        if !step.killed.is_empty() {
            published.last_kill = step.sequence();
        }
        if !step.adopting.is_empty() {
            published.overlay.adopt(&step.adopting);
        }
        let touched = std::mem::take(&mut step.graph_touched);
        published.graph.note(touched, step.sequence());
        let targets = std::mem::take(&mut step.graph_targets);
        published.graph.note_targets(targets, step.sequence());
        published.log = Arc::new(step.log);
        published.state = Arc::new(step.state);
        Ok(applied)
    }

    /// Feeds the index with what the command did to vectors.
    fn index_step(&self, step: &Step<'_>, applier: &mut Applier, generation: Option<Generation>) {
        for (id, record) in &step.inserted {
            applier.alive.insert(id.0);
            self.index.insert(NewVector {
                id: *id,
                owner: record.owner,
                sequence: record.inserted,
                components: &record.components,
            });
        }
        for id in &step.killed {
            applier.alive.remove(id.0);
            if !planted!("forgotten-memory-recalled") {
                self.index.kill(*id, step.sequence());
            }
        }
        if step.inserted.is_empty() && step.killed.is_empty() && !step.renews {
            return;
        }
        let due = match step.renews {
            true => Some(self.index.renewed(step.sequence())),
            false => self.index.applied(step.sequence()),
        };
        assert!(
            due == generation,
            "index and state machine disagree on the next generation"
        );
        if let Some(generation) = generation {
            applier.newest = Newest::from(&generation);
            self.index.begin_generation(generation);
        }
    }

    /// Drops the partition without a log, and writes `batch` with it.
    ///
    /// # Errors
    /// When storage fails.
    pub(crate) fn drop_durably(&self, mut batch: Batch) -> Result<(), StorageError> {
        let _applier = self.applier.lock();
        let _overlay_writer = self.overlay_writer.lock();
        let mut published = self.published.write();
        Self::drop_state(self.id, &mut batch);
        self.storage.write(batch, Durability::Sync)?;
        published.dropped = true;
        Ok(())
    }

    fn apply_drop(
        &self,
        mut step: Step<'_>,
        durability: Durability,
    ) -> Result<Applied, ApplyError> {
        Self::drop_state(self.id, &mut step.batch);
        // Nothing may be written behind the deletion.
        let _overlay_writer = self.overlay_writer.lock();
        let mut published = self.published.write();
        self.storage
            .write(std::mem::take(&mut step.batch), durability)?;
        published.dropped = true;
        Ok(Applied {
            sequence: step.sequence(),
            outcomes: Vec::new(),
        })
    }
}

impl Applier {
    /// Whether the newest generation began before the last purge: its vectors may be in it.
    fn purges_wait(&self) -> bool {
        self.purges.last > self.newest.start
    }

    /// The generation that the command makes due (ADR 0004): a function of the log alone.
    fn generation_due(&self, step: &Step<'_>) -> Option<Generation> {
        let slots = self.newest.base + (step.state.next_vector - self.newest.first.0);
        let alive = self.alive.len() + step.inserted.len() as u64 - step.killed.len() as u64;
        let dead = slots - alive;
        let is_worn = slots >= u64::from(GENERATION_SLOTS_MIN)
            && dead * 100 >= slots * u64::from(GENERATION_DEAD_PERCENT);
        if !is_worn && !step.renews {
            return None;
        }
        let mut base = self.alive.clone();
        base.extend(step.inserted.iter().map(|(id, _)| id.0));
        step.killed.iter().for_each(|id| {
            base.remove(id.0);
        });
        Some(Generation {
            number: self.newest.number + 1,
            start: step.sequence(),
            base,
            first: VectorId(step.state.next_vector),
        })
    }

    /// Puts the digests of this point under a mark, and lets go of the oldest mark.
    fn note_mark(&mut self, step: &mut Step<'_>, mark: MarkId, position: IndexPosition) {
        let record = MarkRecord {
            sequence: step.sequence(),
            log_hash: step.state.log_hash,
            memory_digest: step.state.memory_digest,
            edge_digest: step.state.edge_digest,
            position,
        };
        step.batch.put(
            Family::Metadata,
            keys::mark(step.partition, mark),
            keys::encode(&record),
        );
        self.marks.retain(|noted| *noted != mark);
        self.marks.push_back(mark);
        if self.marks.len() > limits::MARKS_KEPT
            && let Some(oldest) = self.marks.pop_front()
        {
            step.batch
                .delete(Family::Metadata, keys::mark(step.partition, oldest));
        }
    }
}

type Outcomes = Vec<(u32, OpOutcome)>;

fn apply_write(
    step: &mut Step<'_>,
    write: &Write,
    applier: &Applier,
) -> Result<(Outcomes, TableChange), StorageError> {
    let table = &applier.requests;
    let at = step.sequence();
    let admitted = table.admit(step.reader, write.client, write.counter)?;
    let Admission::Known(mut known) = admitted else {
        let refused = OpOutcome::Rejected(Rejection::RequestTooOld);
        let outcomes = write
            .ops
            .iter()
            .map(|(index, _)| (*index, refused.clone()))
            .collect();
        return Ok((outcomes, table.touch(&mut step.batch, write.client, at)));
    };
    let mut outcomes = Vec::with_capacity(write.ops.len());
    let mut applied_any = false;
    for (index, op) in &write.ops {
        let again = write.retried && planted!("retry-applied-twice");
        let outcome = match known.record.outcome(*index) {
            Some(outcome) if !again => outcome.clone(),
            _ => {
                let outcome = apply_op(step, write, *index, op)?;
                known.record.note(*index, outcome.clone());
                applied_any = true;
                outcome
            }
        };
        outcomes.push((*index, outcome));
    }
    let change = if applied_any {
        known.record.sequence = at;
        let id = (write.client, write.counter);
        table.record(step.reader, &mut step.batch, id, &known)?
    } else {
        table.touch(&mut step.batch, write.client, at)
    };
    Ok((outcomes, change))
}

impl RequestRecord {
    pub(super) fn outcome(&self, index: u32) -> Option<&OpOutcome> {
        let place = self
            .outcomes
            .binary_search_by_key(&index, |(noted, _)| *noted)
            .ok()?;
        self.outcomes.get(place).map(|(_, outcome)| outcome)
    }

    /// Keeps the outcomes in the order of their indexes.
    fn note(&mut self, index: u32, outcome: OpOutcome) {
        let place = self.outcomes.partition_point(|(noted, _)| *noted < index);
        self.outcomes.insert(place, (index, outcome));
    }
}

fn apply_op(
    step: &mut Step<'_>,
    write: &Write,
    index: u32,
    op: &Op,
) -> Result<OpOutcome, StorageError> {
    let owner = match op {
        Op::Remember(Remember { id, .. }) | Op::Forget(Forget { id, .. }) => id,
        Op::Associate(associate) => &associate.from,
        Op::Dissociate(dissociate) => &dissociate.from,
        Op::RestoreMemory(restore) => &restore.memory.id,
        Op::RestoreEdge(restore) => &restore.from,
    };
    if !step.state.slots.contains(owner.hash_slot()) {
        return Ok(OpOutcome::Rejected(Rejection::NotInPartition));
    }
    let evidence = Evidence {
        write,
        request: write.request_id(index),
    };
    let outcome = match op {
        Op::Remember(remember) => apply_remember(step, evidence, remember)?,
        Op::Forget(forget) => apply_forget(step, evidence, forget)?,
        Op::Associate(associate) => step
            .associate(associate, evidence)?
            .map(|()| OpOutcome::EdgeChanged),
        Op::Dissociate(dissociate) => step
            .dissociate(dissociate, evidence)?
            .map(|()| OpOutcome::EdgeChanged),
        Op::RestoreMemory(restore) => restore_memory(step, restore)?,
        Op::RestoreEdge(restore) => step
            .restore_edge(restore)?
            .map(|fresh| OpOutcome::Restored { fresh }),
    };
    Ok(outcome.unwrap_or_else(OpOutcome::Rejected))
}

fn check_expected(expected: Expected, found: Option<&MemoryRecord>) -> Result<(), Rejection> {
    let version = found.map(|record| record.memory.version);
    let fits = match expected {
        Expected::Anything => true,
        Expected::Absent => version.is_none(),
        Expected::Version(wanted) if planted!("expected-version-too-lax") => {
            version >= Some(wanted)
        }
        Expected::Version(wanted) => version == Some(wanted),
    };
    if fits {
        return Ok(());
    }
    let expected = match expected {
        Expected::Version(wanted) => format!("version {wanted}"),
        Expected::Anything | Expected::Absent => "no memory".to_owned(),
    };
    let found = version.map_or("is absent".to_owned(), |found| {
        format!("has version {found}")
    });
    Err(Rejection::VersionMismatch { expected, found })
}

/// The memory stored under an operation's id, when the operation may go on.
fn admit_memory(
    step: &mut Step<'_>,
    id: &MemoryId,
    expected: Expected,
) -> Result<Result<Option<MemoryRecord>, Rejection>, StorageError> {
    let found = step.memory(id.hash())?;
    if found.is_some_and(|record| record.memory.id != *id) {
        return Ok(Err(Rejection::HashCollision));
    }
    Ok(check_expected(expected, found).map(|()| found.cloned()))
}

/// The components as they were given, when they are as many as the space has.
fn given_components(step: &Step<'_>, remember: &Remember) -> Result<Option<Vec<f32>>, Rejection> {
    let Some(embedding) = &remember.embedding else {
        return Ok(None);
    };
    let (expected, actual) = (step.state.config.dimension, embedding.components().len());
    if actual != expected as usize {
        let actual = actual as u32;
        return Err(Rejection::WrongDimension { expected, actual });
    }
    Ok(Some(embedding.components().to_vec()))
}

/// The components as the index compares them.
fn stored_components(step: &Step<'_>, remember: &Remember) -> Result<Option<Vec<f32>>, Rejection> {
    let Some(mut components) = given_components(step, remember)? else {
        return Ok(None);
    };
    let config = &step.state.config;
    // A vector without direction was refused before it was proposed; if one is in the log all the
    // same, it is stored as it is, and is far from everything.
    let _ = config.metric == Metric::Cosine && kernel::normalise(&mut components);
    Ok(Some(components))
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn apply_remember(
    step: &mut Step<'_>,
    evidence: Evidence<'_>,
    remember: &Remember,
) -> Result<Result<OpOutcome, Rejection>, StorageError> {
    let before = match admit_memory(step, &remember.id, remember.expected)? {
        Ok(before) => before,
        Err(rejection) => return Ok(Err(rejection)),
    };
    let components = match stored_components(step, remember) {
        Ok(components) => components,
        Err(rejection) => return Ok(Err(rejection)),
    };
    for edge in &remember.edges {
        if step.collides(&remember.id, edge)? {
            return Ok(Err(Rejection::HashCollision));
        }
    }
    let hash = remember.id.hash();
    let vector_before = before.as_ref().and_then(|record| record.vector);
    let vector = match (vector_before, components) {
        // The same embedding again keeps its vector: nothing to link, nothing dies.
        (Some(id), Some(new)) if same_bits(&step.components(id)?, &new) => Some(id),
        (replaced, new) => {
            replaced.into_iter().for_each(|id| step.kill_vector(id));
            new.map(|components| step.insert_vector(hash, components))
        }
    };
    let version = step.sequence();
    let created = before.is_none();
    let memory = Memory {
        id: remember.id.clone(),
        content: remember.content.clone(),
        embedding_model: remember.embedding_model.clone(),
        labels: remember.labels.clone(),
        properties: remember.properties.clone(),
        confidence: remember.confidence,
        version,
        created: before.map_or(evidence.write.stamp, |record| record.memory.created),
        updated: evidence.write.stamp,
    };
    step.set_memory(hash, Some(MemoryRecord { memory, vector }));
    for edge in &remember.edges {
        if let Err(rejection) = step.contribute(&remember.id, edge, evidence)? {
            // Two targets of this one request collide: the second cannot be stored.
            debug_assert_eq!(rejection, Rejection::HashCollision);
        }
    }
    Ok(Ok(OpOutcome::Remembered { version, created }))
}

fn restore_memory(
    step: &mut Step<'_>,
    restore: &RestoreMemory,
) -> Result<Result<OpOutcome, Rejection>, StorageError> {
    let given = &restore.memory;
    match admit_memory(step, &given.id, Expected::Anything)? {
        Ok(None) => {}
        Ok(Some(_)) => return Ok(Ok(OpOutcome::Restored { fresh: false })),
        Err(rejection) => return Ok(Err(rejection)),
    }
    let components = match given_components(step, given) {
        Ok(components) => components,
        Err(rejection) => return Ok(Err(rejection)),
    };
    let hash = given.id.hash();
    let vector = components.map(|components| step.insert_vector(hash, components));
    let memory = Memory {
        id: given.id.clone(),
        content: given.content.clone(),
        embedding_model: given.embedding_model.clone(),
        labels: given.labels.clone(),
        properties: given.properties.clone(),
        confidence: given.confidence,
        version: step.sequence(),
        created: restore.created,
        updated: restore.updated,
    };
    step.set_memory(hash, Some(MemoryRecord { memory, vector }));
    Ok(Ok(OpOutcome::Restored { fresh: true }))
}

fn apply_forget(
    step: &mut Step<'_>,
    evidence: Evidence<'_>,
    forget: &Forget,
) -> Result<Result<OpOutcome, Rejection>, StorageError> {
    let before = match admit_memory(step, &forget.id, forget.expected)? {
        Ok(before) => before,
        Err(rejection) => return Ok(Err(rejection)),
    };
    let existed = before.is_some();
    if let Some(record) = before {
        record
            .vector
            .into_iter()
            .for_each(|id| step.kill_vector(id));
        step.set_memory(forget.id.hash(), None);
    }
    if forget.purge {
        step.purge();
    }
    if !planted!("forgetting-keeps-edges") {
        step.remove_out_edges(forget, evidence)?;
    }
    Ok(Ok(OpOutcome::Forgotten { existed }))
}

fn apply_adopt(step: &mut Step<'_>, deltas: &[OverlayDelta]) -> Result<(), StorageError> {
    for delta in deltas {
        step.adopt(delta)?;
    }
    Ok(())
}
