//! One space of an embedded store, and its operations.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::memory::{NewMemory, NewMemoryError, relation};
use crate::command::{
    Associate, Dissociate, Expected, Forget, Op, OpOutcome, PartitionCommand, Rejection, Remember,
    Write,
};
use crate::filter::Filter;
use crate::limits;
use crate::partition::{
    ApplyError, Direction, EdgeAges, FoundMemory, Neighbors, NeighborsQuery, Partition,
    PartitionStatus, ReadError, RecallQuery, Recalled,
};
use crate::spread::{self, SpreadError, SpreadOutcome, SpreadParameters};
use crate::storage::{Batch, StorageError};
use crate::types::{
    MemoryError, MemoryHash, MemoryId, MemoryIdError, Relation, RequestId, Sequence, SpaceConfig,
    Unit, check_parts,
};

/// Index jobs run after one mutation. Linking falls behind only within a burst of very small
/// windows; searches stay exact over what is not linked.
const JOBS_PER_MUTATION: usize = 4;

/// Why a mutation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Input(#[from] NewMemoryError),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<MemoryIdError> for WriteError {
    fn from(error: MemoryIdError) -> Self {
        Self::Input(error.into())
    }
}

impl From<MemoryError> for WriteError {
    fn from(error: MemoryError) -> Self {
        Self::Input(error.into())
    }
}

/// A stored memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub id: MemoryId,
    pub version: Sequence,
    pub created: bool,
}

/// What a spread starts from, and its rules.
#[derive(Clone, Debug)]
pub struct SpreadQuery {
    /// Memories with their activation, [`spread::ONE`] per 1.0.
    pub seeds: Vec<(MemoryId, u64)>,
    pub parameters: SpreadParameters,
    /// Memories that it does not take are as if they were missing.
    pub filter: Option<Filter>,
}

impl SpreadQuery {
    /// From memories with their activation, with the default rules and paths explained.
    ///
    /// # Errors
    /// When an id is no id or an activation is not in [0, 1].
    pub fn from_seeds<'a>(
        seeds: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<Self, NewMemoryError> {
        let seed = |(id, amount): (&str, f64)| -> Result<_, NewMemoryError> {
            Ok((MemoryId::new(id)?, Unit::from_f64(amount)?.bits()))
        };
        let seeds = seeds.into_iter().map(seed).collect::<Result<_, _>>()?;
        let parameters = SpreadParameters {
            explain: true,
            ..SpreadParameters::default()
        };
        Ok(Self {
            seeds,
            parameters,
            filter: None,
        })
    }
}

/// A space of an open store. Clones are the same space.
#[derive(Clone)]
pub struct Space {
    shared: Arc<Shared>,
    partition: Arc<Partition>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("config", &self.config())
            .finish_non_exhaustive()
    }
}

impl Space {
    pub(super) fn new(shared: Arc<Shared>, partition: Arc<Partition>) -> Self {
        Self { shared, partition }
    }

    #[must_use]
    pub fn config(&self) -> SpaceConfig {
        self.partition.config()
    }

    #[must_use]
    pub fn status(&self) -> PartitionStatus {
        self.partition.status()
    }

    /// Stores a memory, replacing the one with the same id, with its edges.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn remember(&self, memory: NewMemory) -> Result<Remembered, WriteError> {
        check_parts(&memory.content, &memory.labels, &memory.properties)?;
        let actual = memory.edges.len();
        if actual > limits::EDGES_PER_REMEMBER_MAX {
            return Err(NewMemoryError::TooManyEdges { actual }.into());
        }
        let (config, model) = (self.config(), &memory.embedding_model);
        let embedding = memory
            .embedding
            .map(|row| config.embedding(row, model))
            .transpose();
        let embedding = embedding.map_err(MemoryError::from)?;
        let mut stored = None;
        let outcome = self.mutate(|request| {
            let id = match memory.id {
                Some(id) => id,
                None => MemoryId::new(request.derived_memory_id())?,
            };
            stored = Some(id.clone());
            Ok(Op::Remember(Remember {
                id,
                content: memory.content,
                embedding,
                embedding_model: memory.embedding_model,
                labels: memory.labels,
                properties: memory.properties,
                confidence: memory.confidence,
                edges: memory.edges,
                expected: memory.expected,
            }))
        })?;
        match (outcome, stored) {
            (OpOutcome::Remembered { version, created }, Some(id)) => Ok(Remembered {
                id,
                version,
                created,
            }),
            (outcome, _) => unreachable!("remembering was answered with {outcome:?}"),
        }
    }

    /// Removes a memory and its out-edges; says whether it was there.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn forget(&self, id: &MemoryId, expected: Expected) -> Result<bool, WriteError> {
        let outcome = self.mutate(|_| {
            let context = self.partition.context();
            Ok(Op::Forget(Forget {
                id: id.clone(),
                expected,
                context,
                purge: false,
            }))
        })?;
        Ok(outcome == OpOutcome::Forgotten { existed: true })
    }

    /// Adds one observation to an edge.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn associate(
        &self,
        from: &MemoryId,
        to: &MemoryId,
        name: &str,
        (weight, confidence): (Unit, Unit),
    ) -> Result<(), WriteError> {
        let (from, to, relation) = (from.clone(), to.clone(), relation(name)?);
        let associate = Associate {
            from,
            to,
            relation,
            weight,
            confidence,
        };
        self.mutate(|_| Ok(Op::Associate(associate))).map(|_| ())
    }

    /// Adds an observation of weight 1 with this confidence.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn strengthen(
        &self,
        from: &MemoryId,
        to: &MemoryId,
        name: &str,
        amount: Unit,
    ) -> Result<(), WriteError> {
        self.associate(from, to, name, (Unit::ONE, amount))
    }

    /// Removes all evidence of an edge.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn dissociate(&self, from: &MemoryId, to: &MemoryId, name: &str) -> Result<(), WriteError> {
        let (from, to, relation) = (from.clone(), to.clone(), relation(name)?);
        self.mutate(|_| {
            let context = self.partition.context();
            Ok(Op::Dissociate(Dissociate {
                from,
                to,
                relation,
                context,
            }))
        })
        .map(|_| ())
    }

    /// Applies one operation under the next request id, and links what it sealed.
    fn mutate(
        &self,
        op: impl FnOnce(RequestId) -> Result<Op, WriteError>,
    ) -> Result<OpOutcome, WriteError> {
        let mut requests = self.shared.requests.lock();
        requests.counter += 1;
        requests.clock = requests.clock.tick((self.shared.options.now_millis)());
        let (client, counter, stamp) = (requests.client, requests.counter, requests.clock);
        let op = op(RequestId {
            client,
            counter,
            index: 0,
        })?;
        let write = Write {
            client,
            counter,
            retried: false,
            stamp,
            ops: vec![(0, op)],
        };
        // The id stands for the command's bytes: it is unique in the life of the store.
        let mut bytes = client.0.to_vec();
        bytes.extend(counter.to_be_bytes());
        let command = PartitionCommand::Write(write);
        let applied = self
            .partition
            .apply_durably(&command, &bytes, Batch::new())?;
        self.run_jobs(JOBS_PER_MUTATION)?;
        drop(requests);
        match applied.outcomes.into_iter().next() {
            Some((_, OpOutcome::Rejected(rejection))) => Err(rejection.into()),
            Some((_, outcome)) => Ok(outcome),
            None => unreachable!("one operation was answered with nothing"),
        }
    }

    fn run_jobs(&self, limit: usize) -> Result<(), StorageError> {
        for _ in 0..limit {
            let Some(job) = self.partition.next_job() else {
                break;
            };
            self.partition.commit(self.partition.run(&job))?;
        }
        Ok(())
    }

    /// Links everything that waits, for instance after a bulk load or an opening without a
    /// checkpoint.
    ///
    /// # Errors
    /// When storage fails.
    pub fn link_all(&self) -> Result<(), StorageError> {
        self.run_jobs(usize::MAX)
    }

    /// # Errors
    /// When storage cannot be read.
    pub fn get(&self, id: &MemoryId) -> Result<Option<FoundMemory>, ReadError> {
        let found = self.partition.get(std::slice::from_ref(id), true)?;
        Ok(found.memories.into_iter().next().flatten())
    }

    /// The visible edges of a memory, the heaviest first. No relations means all.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn neighbors(
        &self,
        id: &MemoryId,
        direction: Direction,
        relations: &BTreeSet<Relation>,
        limit: usize,
    ) -> Result<Neighbors, ReadError> {
        let now_millis = (self.shared.options.now_millis)();
        self.partition.neighbors(&NeighborsQuery {
            id,
            direction,
            relations,
            now_millis,
            limit,
        })
    }

    /// The memories nearest to a vector, nearest first.
    ///
    /// # Errors
    /// When the query does not fit the space, or storage cannot be read.
    pub fn recall(&self, query: &RecallQuery<'_>) -> Result<Recalled, ReadError> {
        self.partition.recall(query)
    }

    /// Spreads activation along the associations of this space.
    ///
    /// # Errors
    /// When the rules are out of range, too much is activated, or storage cannot be read.
    pub fn spread(&self, query: &SpreadQuery) -> Result<SpreadOutcome, SpreadError<ReadError>> {
        let now_millis = (self.shared.options.now_millis)();
        self.make_arrays();
        let ages = EdgeAges {
            now_millis,
            decay: query.parameters.edge_decay,
        };
        let adjacency = self.partition.adjacency(query.filter.clone(), None, ages);
        let seeds: Vec<(MemoryHash, u64)> = query
            .seeds
            .iter()
            .map(|(id, amount)| (id.hash(), *amount))
            .collect();
        spread::run(&adjacency, &query.parameters, &seeds, &spread::Alone)
    }

    /// The edges as arrays, from the second spread on. Without them spreading reads the store and
    /// gives the same answer.
    fn make_arrays(&self) {
        let Some(job) = self.partition.graph_job() else {
            return;
        };
        match job.build() {
            Ok(built) => self.partition.commit_graph(built),
            Err(_) => self.partition.abandon_graph(),
        }
    }

    /// Adds up the digests of the space from the disk; whether they equal the running ones.
    ///
    /// # Errors
    /// When a record is missing or cannot be read.
    pub fn verify(&self) -> Result<bool, ReadError> {
        let (found, view) = self.partition.recompute_digests()?;
        Ok(found == view.digests())
    }
}
