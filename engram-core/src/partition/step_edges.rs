//! What one command does to edges (ADR 0003).

use super::digest;
use super::overlay::edge_of;
use super::read;
use super::record::{ConflictRecord, SourceRemovals};
use super::step::{Step, count, replace};
use super::touched::Touched;
use crate::command::{
    Associate, Dissociate, EdgeChange, Forget, OutEdge, OverlayDelta, Rejection, RestoreEdge, Write,
};
use crate::edges::{
    self, Conflict, Contribution, EdgeRecord, EdgeState, Effect, FoldMark, Removal,
};
use crate::keys;
use crate::storage::{Family, StorageError};
use crate::types::{Dot, EdgeContext, EdgeKey, MemoryHash, MemoryId, RequestId, Sequence};

/// A state change, or why there is none; storage may fail on the way.
pub type Changed = Result<Result<(), Rejection>, StorageError>;

/// A request as it shows in the evidence it leaves.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    pub write: &'a Write,
    pub request: RequestId,
}

impl Evidence<'_> {
    fn removal(&self, context: EdgeContext) -> Removal {
        Removal {
            context,
            stamp: self.write.stamp,
            request: self.request,
        }
    }
}

/// Whether everything that `part` covers is covered by `whole`.
pub fn covers_context(whole: &EdgeContext, part: &EdgeContext) -> bool {
    part.sequence <= whole.sequence && whole.overlay.covers_all(&part.overlay)
}

impl Step<'_> {
    pub fn associate(&mut self, associate: &Associate, evidence: Evidence<'_>) -> Changed {
        let Associate {
            from,
            to,
            relation,
            weight,
            confidence,
        } = associate.clone();
        self.contribute(
            &from,
            &OutEdge {
                to,
                relation,
                weight,
                confidence,
            },
            evidence,
        )
    }

    /// Adds one observation to an edge.
    pub fn contribute(
        &mut self,
        from: &MemoryId,
        edge: &OutEdge,
        evidence: Evidence<'_>,
    ) -> Changed {
        let key = EdgeKey {
            from: from.hash(),
            to: edge.to.hash(),
            relation: edge.relation.clone(),
        };
        let dot = self.next_dot();
        let Write { stamp, retried, .. } = evidence.write;
        let contribution = Contribution::new(
            edge.weight,
            edge.confidence,
            *stamp,
            evidence.request,
            *retried,
        );
        self.change_edge(&key, &edge.to, |state| {
            state.apply_contribution(dot, contribution)
        })
    }

    pub fn dissociate(&mut self, dissociate: &Dissociate, evidence: Evidence<'_>) -> Changed {
        let Dissociate {
            from,
            to,
            relation,
            context,
        } = dissociate;
        let key = EdgeKey {
            from: from.hash(),
            to: to.hash(),
            relation: relation.clone(),
        };
        let dot = self.next_dot();
        let removal = evidence.removal(self.possible(context));
        let log = self.log.clone();
        self.change_edge(&key, to, |state| state.apply_removal(dot, removal, &log))
    }

    /// Stores an edge of a backup; `Ok(false)` when there is one already.
    pub fn restore_edge(
        &mut self,
        restore: &RestoreEdge,
    ) -> Result<Result<bool, Rejection>, StorageError> {
        let RestoreEdge {
            from,
            to,
            relation,
            evidence,
        } = restore;
        let key = EdgeKey {
            from: from.hash(),
            to: to.hash(),
            relation: relation.clone(),
        };
        let mark = FoldMark {
            partition: self.partition,
            sequence: self.sequence(),
        };
        let mut fresh = false;
        let changed = self.change_edge(&key, to, |state| {
            fresh = state.restore(mark, evidence);
            Effect {
                changed: fresh,
                conflict: None,
            }
        })?;
        Ok(changed.map(|()| fresh))
    }

    /// Removes, under the proposer's context, all edges out of a memory, those included that only
    /// overlays hold so far: what the context names and the log has not seen yet waits.
    pub fn remove_out_edges(
        &mut self,
        forget: &Forget,
        evidence: Evidence<'_>,
    ) -> Result<(), StorageError> {
        let from = forget.id.hash();
        let context = self.possible(&forget.context);
        let mut everything = self.log.clone();
        everything.join(&context);
        for key in self.out_edges(from)? {
            let dot = self.next_dot();
            let removal = evidence.removal(context.clone());
            self.load_edge(&key)?;
            // What waits is kept once, for the memory, not on every edge.
            self.change_found(&key, |state| state.apply_removal(dot, removal, &everything));
        }
        if covers_context(&self.log, &context) {
            return Ok(());
        }
        let mut waiting = self.source_removals(from)?.cloned().unwrap_or_default();
        if !waiting.0.contains(&context) {
            waiting.0.push(context);
            self.set_source_removals(from, waiting);
        }
        Ok(())
    }

    /// Brings an overlay delta into the log under its own dot. One that the log has already, by its
    /// dot or by its request, or that belongs elsewhere, changes no edge; its dot is covered in any
    /// case.
    pub fn adopt(&mut self, delta: &OverlayDelta) -> Result<(), StorageError> {
        let (dot, log) = (Dot::Overlay(delta.dot), self.log.clone());
        self.batch
            .delete(Family::Edges, keys::overlay(self.partition, delta.dot));
        self.adopting.push(delta.dot);
        self.log.overlay.insert(delta.dot);
        if !self.state.slots.contains(delta.from.hash_slot()) {
            return Ok(());
        }
        let key = edge_of(delta);
        let contributes = matches!(delta.change, EdgeChange::Contribute { .. });
        let forgotten = self
            .source_removals(key.from)?
            .is_some_and(|waiting| waiting.covers(&dot));
        if contributes && (forgotten || self.is_applied(delta.request)?) {
            let grown = self.log.clone();
            self.load_edge(&key)?;
            self.change_found(&key, |state| Effect {
                changed: state.prune(&grown),
                conflict: None,
            });
        } else {
            // A colliding target cannot be stored; the delta is dropped as the log would reject it.
            let _collision = self.change_edge(&key, &delta.to, |state| state.adopt(delta, &log))?;
        }
        self.settle_source_removals(key.from)
    }

    fn is_applied(&self, request: RequestId) -> Result<bool, StorageError> {
        read::is_applied(self.reader, self.partition, request)
    }

    /// Lets go of removals of a memory's out-edges that have met all they name. What they name are
    /// dots of these edges, so nothing but the adoption of one of them can settle them.
    fn settle_source_removals(&mut self, from: MemoryHash) -> Result<(), StorageError> {
        let Some(waiting) = self.source_removals(from)?.cloned() else {
            return Ok(());
        };
        let mut left = waiting.clone();
        left.0.retain(|context| !covers_context(&self.log, context));
        if left != waiting {
            self.set_source_removals(from, left);
        }
        Ok(())
    }

    /// Folds what the frontier covers of these edges.
    pub fn fold(&mut self, frontier: &EdgeContext, edges: &[EdgeKey]) -> Result<(), StorageError> {
        let frontier = self.possible(frontier);
        let mark = FoldMark {
            partition: self.partition,
            sequence: self.sequence(),
        };
        for key in edges {
            self.load_edge(key)?;
            self.change_found(key, |state| Effect {
                changed: state.fold(mark, &frontier),
                conflict: None,
            });
        }
        Ok(())
    }

    /// A context without what nobody can have seen yet: it must not reach into the future.
    fn possible(&self, context: &EdgeContext) -> EdgeContext {
        let sequence = context.sequence.min(Sequence(self.sequence().0 - 1));
        EdgeContext {
            sequence,
            overlay: context.overlay.clone(),
        }
    }

    fn change_edge(
        &mut self,
        key: &EdgeKey,
        to: &MemoryId,
        change: impl FnOnce(&mut EdgeState) -> Effect,
    ) -> Changed {
        self.load_edge(key)?;
        let Some(touched) = self.edges.get_mut(key) else {
            return Ok(Ok(()));
        };
        if touched.now().is_some_and(|record| record.to != *to) {
            return Ok(Err(Rejection::HashCollision));
        }
        let fresh = EdgeRecord {
            to: to.clone(),
            state: EdgeState::default(),
        };
        let mut conflict = None;
        touched.edit(fresh, |record| {
            let effect = change(&mut record.state);
            conflict = effect.conflict;
            effect.changed
        });
        self.note_conflict(key, to, conflict);
        Ok(Ok(()))
    }

    /// Changes an edge that was loaded, if it is there.
    fn change_found(&mut self, key: &EdgeKey, change: impl FnOnce(&mut EdgeState) -> Effect) {
        let Some(touched) = self.edges.get_mut(key) else {
            return;
        };
        let Some(mut record) = touched.now().cloned() else {
            return;
        };
        let effect = change(&mut record.state);
        let to = record.to.clone();
        if effect.changed {
            touched.set(Some(record));
        }
        self.note_conflict(key, &to, effect.conflict);
    }

    fn note_conflict(&mut self, key: &EdgeKey, to: &MemoryId, conflict: Option<Conflict>) {
        self.conflicts
            .extend(conflict.map(|conflict| ConflictRecord {
                sequence: self.state.sequence,
                edge: key.clone(),
                to: to.clone(),
                conflict,
            }));
    }

    /// Whether the edge is there with another target of the same hash.
    pub fn collides(&mut self, from: &MemoryId, edge: &OutEdge) -> Result<bool, StorageError> {
        let key = EdgeKey {
            from: from.hash(),
            to: edge.to.hash(),
            relation: edge.relation.clone(),
        };
        self.load_edge(&key)?;
        let found = self.edges.get(&key).and_then(Touched::now);
        Ok(found.is_some_and(|record| record.to != edge.to))
    }

    fn load_edge(&mut self, key: &EdgeKey) -> Result<(), StorageError> {
        if self.edges.contains_key(key) {
            return Ok(());
        }
        let found = read::edge(self.reader, self.partition, key)?;
        let touched = found.map_or_else(Touched::absent, |record| {
            let digest = edges::digest(key, &record.state);
            let counted = has_evidence(&record.state);
            if record.state.base().is_some() {
                self.folded_before.insert(key.clone());
            }
            Touched::found(record, digest, counted)
        });
        self.edges.insert(key.clone(), touched);
        Ok(())
    }

    /// Edges out of a memory that storage holds or this command has touched.
    fn out_edges(&self, from: MemoryHash) -> Result<Vec<EdgeKey>, StorageError> {
        let range = keys::out_edges(self.partition, from);
        let mut found: Vec<EdgeKey> = self
            .edges
            .keys()
            .filter(|key| key.from == from)
            .cloned()
            .collect();
        for entry in read::range(self.reader, Family::Edges, &range) {
            let (key, _) = entry?;
            found.push(keys::parse_edge(&key).ok_or_else(|| read::bad_key("an edge"))?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn source_removals(
        &mut self,
        from: MemoryHash,
    ) -> Result<Option<&SourceRemovals>, StorageError> {
        if !self.removals.contains_key(&from) {
            let key = keys::source_removals(self.partition, from);
            let found = read::source_removals(self.reader, self.partition, from)?;
            let touched = found.map_or_else(Touched::absent, |record| {
                let digest = digest::of_record(&key, &keys::encode(&record), &[]);
                Touched::found(record, digest, false)
            });
            self.removals.insert(from, touched);
        }
        Ok(self.removals.get(&from).and_then(Touched::now))
    }

    fn set_source_removals(&mut self, from: MemoryHash, waiting: SourceRemovals) {
        if let Some(touched) = self.removals.get_mut(&from) {
            touched.set((!waiting.0.is_empty()).then_some(waiting));
        }
    }

    pub fn write_edges(&mut self) {
        for (key, touched) in std::mem::take(&mut self.edges) {
            if !touched.is_changed() {
                continue;
            }
            if self.graph_touched.last() != Some(&key.from) {
                self.graph_touched.push(key.from);
            }
            self.graph_targets.push(key.to);
            let now = touched.now().filter(|record| !record.state.is_empty());
            let forward = keys::edge(self.partition, &key);
            let reverse = keys::reverse_edge(self.partition, &key);
            match now {
                Some(record) => {
                    self.batch.put(Family::Edges, forward, record.encode());
                    if !touched.existed() {
                        self.batch.put(Family::Edges, reverse, keys::encode(&()));
                    }
                }
                None if touched.existed() => {
                    self.batch.delete(Family::Edges, forward);
                    self.batch.delete(Family::Edges, reverse);
                }
                None => {}
            }
            let after = now.map_or(0, |record| edges::digest(&key, &record.state));
            let live = now.is_some_and(|record| has_evidence(&record.state));
            count(&mut self.state.edges, touched.was_counted(), live);
            let is_folded = now.is_some_and(|record| record.state.base().is_some());
            let was_folded = self.folded_before.contains(&key);
            count(&mut self.state.folded_edges, was_folded, is_folded);
            replace(&mut self.state.edge_digest, touched.digest(), after);
        }
    }

    pub fn write_removals(&mut self) {
        for (from, touched) in std::mem::take(&mut self.removals) {
            if !touched.is_changed() {
                continue;
            }
            let key = keys::source_removals(self.partition, from);
            let mut after = 0;
            match touched.now() {
                Some(record) => {
                    let value = keys::encode(record);
                    after = digest::of_record(&key, &value, &[]);
                    self.batch.put(Family::Edges, key, value);
                }
                None => self.batch.delete(Family::Edges, key),
            }
            replace(&mut self.state.edge_digest, touched.digest(), after);
        }
    }
}

/// Whether the log holds evidence for the edge, and not only removals that wait.
pub fn has_evidence(state: &EdgeState) -> bool {
    state.contributions().next().is_some() || state.base().is_some()
}

impl SourceRemovals {
    /// Whether a change under this dot is removed by one of the waiting contexts.
    pub fn covers(&self, dot: &Dot) -> bool {
        self.0.iter().any(|context| context.covers(dot))
    }
}
