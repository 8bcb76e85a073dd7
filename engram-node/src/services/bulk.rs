//! Import and export: streams of batches.

use std::collections::BTreeMap;
use std::pin::Pin;

use engram_core::command::{Associate, Expected, Op, OpOutcome, Remember};
use engram_core::limits::OPS_PER_COMMAND_MAX;
use engram_core::types::PartitionId;
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ExportAnswer, ExportQuery};
use engram_proto::v1;
use futures::future::try_join_all;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::{Status, Streaming};

use super::Services;
use super::failure::{Failure, InputError};
use super::input::{self, Requester};
use super::reads::{Reading, unfit};
use super::status;
use super::token::{Freshness, Positions};
use super::writes::{home_of, write_of};
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::Deadline;

/// Batches of one import stream that are worked on at once.
const IMPORT_BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Memories and edges of one batch.
const IMPORT_BATCH_ITEMS_MAX: usize = 65_536;
/// Estimated size at which a partition's part of a batch is cut into another log entry.
const COMMAND_BYTES_TARGET: usize = 2 << 20;
/// How long one batch, or one page of an export, may take.
const BATCH_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Size of one page of an export.
const EXPORT_PAGE_BYTES: u64 = 1 << 20;

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A batch after its items were checked.
#[derive(Default)]
struct Sorted {
    /// Operations by the partition that takes them, each with its index within the request.
    by_place: BTreeMap<PartitionId, (PartitionRecord, Vec<(u32, Op)>)>,
    rejected: Vec<v1::ImportReject>,
    /// Operations before this index are memories, the others edges.
    memories: u32,
}

impl Services {
    /// Acknowledgements come in the order of the batches. The first failure ends the stream; what
    /// was not acknowledged can be sent again under the same request ids.
    pub(super) fn import_stream(
        &self,
        batches: Streaming<v1::ImportBatch>,
    ) -> Answers<v1::ImportAck> {
        let services = self.clone();
        let acks = batches
            .map(move |batch| {
                let services = services.clone();
                async move {
                    let batch = batch?;
                    // A batch takes the place of one call; it waits for it, which slows the sender.
                    let place = services.place().await;
                    let acknowledged = match &place {
                        Ok(_) => services.import_batch(batch).await,
                        Err(failure) => return Err(services.status(failure)),
                    };
                    acknowledged.map_err(|failure| services.status(&failure))
                }
            })
            .buffered(IMPORT_BATCHES_IN_FLIGHT_MAX);
        Box::pin(acks)
    }

    async fn import_batch(&self, batch: v1::ImportBatch) -> Result<v1::ImportAck, Failure> {
        let items = batch.memories.len() + batch.edges.len();
        input::at_most("the batch", "items", items, IMPORT_BATCH_ITEMS_MAX)?;
        if !batch.chunk.is_empty() {
            // Of a chunk nothing is taken when anything of it is wrong.
            input::at_most("items beside a chunk", "items", items, 0)?;
        }
        let deadline = self.router().deadline(BATCH_WAIT);
        let space = self.space(&batch.space, deadline).await?;
        let requester = self.requester(batch.request.as_ref())?;
        let mut sorted = if batch.chunk.is_empty() {
            sort(&space, requester, batch.memories, batch.edges)
        } else {
            sort_chunk(&space, input::restore(&space.config, &batch.chunk)?)
        };
        let parts = std::mem::take(&mut sorted.by_place).into_values();
        let parts = parts.map(|(place, ops)| self.import_part(requester, place, ops, deadline));
        let mut ack = v1::ImportAck {
            counter: requester.counter,
            ..Default::default()
        };
        for (index, outcome) in try_join_all(parts).await?.into_iter().flatten() {
            match outcome {
                OpOutcome::Rejected(rejection) => {
                    sorted.reject(index, &Failure::from(rejection));
                }
                OpOutcome::Restored { fresh: false } => ack.present += 1,
                _ if index < sorted.memories => ack.memories += 1,
                _ => ack.edges += 1,
            }
        }
        sorted
            .rejected
            .sort_by_key(|reject| (reject.edge, reject.position));
        ack.rejected = sorted.rejected;
        Ok(ack)
    }

    /// What falls to one partition, in as many log entries as it takes, one after the other.
    async fn import_part(
        &self,
        requester: Requester,
        place: PartitionRecord,
        ops: Vec<(u32, Op)>,
        deadline: Deadline,
    ) -> Result<Vec<(u32, OpOutcome)>, Failure> {
        let mut outcomes = Vec::with_capacity(ops.len());
        for part in cut(ops) {
            let write = write_of(requester, part);
            outcomes.extend(self.router().write(place, write, deadline).await?.outcomes);
        }
        Ok(outcomes)
    }

    /// Partition by partition, in the order of keys. Each page is read from the newest state, so
    /// an export of a space that changes meanwhile is no snapshot.
    pub(super) async fn export(
        &self,
        request: v1::ExportRequest,
        deadline: Deadline,
    ) -> Result<Answers<v1::ExportBatch>, Failure> {
        let space = self.space(&request.space, deadline).await?;
        let flags = request_flags(&request);
        let first = Some((0, bytes::Bytes::new()));
        let (services, space) = (self.clone(), std::sync::Arc::new(space));
        let pages = stream::try_unfold(first, move |cursor| {
            let (services, space) = (services.clone(), std::sync::Arc::clone(&space));
            let flags = flags.clone();
            async move {
                let page = services.export_page(&space, flags, cursor).await;
                page.map_err(|failure| services.status(&failure))
            }
        });
        let pages = pages.try_filter(|page| {
            std::future::ready(!page.memories.is_empty() || !page.edges.is_empty())
        });
        Ok(Box::pin(pages))
    }

    /// The page at a cursor (partition's position in the space, its own cursor), and the next.
    async fn export_page(
        &self,
        space: &SpaceRecord,
        flags: ExportQuery,
        cursor: Option<(usize, bytes::Bytes)>,
    ) -> Result<Option<(v1::ExportBatch, Option<(usize, bytes::Bytes)>)>, Failure> {
        let Some((position, after)) = cursor else {
            return Ok(None);
        };
        let Some(place) = space.partitions.get(position) else {
            return Ok(None);
        };
        let deadline = self.router().deadline(BATCH_WAIT);
        let reading = Reading {
            space,
            freshness: &Freshness::Linearizable,
            deadline,
        };
        let query = ExportQuery { after, ..flags };
        let (_, read) = self.ask(&reading, *place, Query::Export(query)).await?;
        let Answer::Export(ExportAnswer {
            memories,
            mut edges,
            next,
        }) = read.answer
        else {
            return Err(unfit("an export"));
        };
        let targets = edges.iter().map(|edge| edge.to.clone());
        let there = self
            .existing(&reading, targets, &mut Positions::default())
            .await?;
        edges.retain(|edge| there.contains(&edge.to));
        let next = if next.is_empty() {
            (position + 1, next)
        } else {
            (position, next)
        };
        Ok(Some((v1::ExportBatch { memories, edges }, Some(next))))
    }
}

fn request_flags(request: &v1::ExportRequest) -> ExportQuery {
    ExportQuery {
        memories: request.memories || request.embeddings,
        embeddings: request.embeddings,
        edges: request.edges,
        after: bytes::Bytes::new(),
        bytes_max: EXPORT_PAGE_BYTES,
        now_millis: 0,
    }
}

impl Sorted {
    fn reject(&mut self, index: u32, failure: &Failure) {
        let edge = index >= self.memories;
        self.rejected.push(v1::ImportReject {
            edge,
            position: if edge { index - self.memories } else { index },
            code: status::code(failure).to_owned(),
            reason: failure.to_string(),
        });
    }

    fn take(&mut self, space: &SpaceRecord, index: u32, op: Result<Op, InputError>) {
        match op {
            Ok(op) => {
                let place = home_of(space, &op);
                let ops = self
                    .by_place
                    .entry(place.id)
                    .or_insert_with(|| (place, Vec::new()));
                ops.1.push((index, op));
            }
            Err(error) => self.reject(index, &Failure::Input(error)),
        }
    }
}

/// Checks every item; those in order go to the partitions that own them. The index of an item
/// depends on its place in the batch only, so a repeated batch repeats its request ids.
fn sort(
    space: &SpaceRecord,
    requester: Requester,
    memories: Vec<v1::Memory>,
    edges: Vec<v1::ImportEdge>,
) -> Sorted {
    let mut sorted = Sorted {
        memories: memories.len() as u32,
        ..Sorted::default()
    };
    let mut index = 0;
    for memory in memories {
        let request = requester.request_id(index);
        let op = input::remember(&space.config, request, memory, &[], Expected::Anything);
        sorted.take(space, index, op.map(Op::Remember));
        index += 1;
    }
    for edge in edges {
        sorted.take(space, index, import_edge(edge).map(Op::Associate));
        index += 1;
    }
    sorted
}

/// The records of a chunk come as memories, then edges.
fn sort_chunk(space: &SpaceRecord, ops: Vec<Op>) -> Sorted {
    let is_memory = |op: &&Op| matches!(op, Op::RestoreMemory(_));
    let mut sorted = Sorted {
        memories: ops.iter().take_while(is_memory).count() as u32,
        ..Sorted::default()
    };
    for (index, op) in (0..).zip(ops) {
        sorted.take(space, index, Ok(op));
    }
    sorted
}

fn import_edge(edge: v1::ImportEdge) -> Result<Associate, InputError> {
    let v1::ImportEdge {
        from,
        to,
        relation,
        weight,
        confidence,
    } = edge;
    input::associate(
        Some(&v1::EdgeRef { from, to, relation }),
        weight,
        confidence,
    )
}

/// Parts that each fit one log entry, in order. The cut depends on the operations alone.
fn cut(ops: Vec<(u32, Op)>) -> Vec<Vec<(u32, Op)>> {
    let mut parts: Vec<Vec<(u32, Op)>> = Vec::new();
    let mut bytes = 0;
    for (index, op) in ops {
        let size = estimated_bytes(&op);
        let fits = |part: &Vec<_>| {
            bytes + size <= COMMAND_BYTES_TARGET && part.len() < OPS_PER_COMMAND_MAX
        };
        match parts.last_mut().filter(|part| fits(part)) {
            Some(part) => {
                part.push((index, op));
                bytes += size;
            }
            None => {
                parts.push(vec![(index, op)]);
                bytes = size;
            }
        }
    }
    parts
}

fn estimated_bytes(op: &Op) -> usize {
    const FIXED: usize = 64;
    let memory = |memory: &Remember| {
        let embedding = memory
            .embedding
            .as_ref()
            .map_or(0, |row| row.components().len() * 4);
        let labels: usize = memory.labels.iter().map(|label| label.len() + 4).sum();
        FIXED + memory.id.as_str().len() + memory.content.len() + embedding + labels
    };
    match op {
        Op::Remember(remember) => memory(remember),
        Op::RestoreMemory(restore) => memory(&restore.memory),
        Op::Associate(edge) => FIXED + edge.from.as_str().len() + edge.to.as_str().len(),
        Op::RestoreEdge(edge) => 2 * FIXED + edge.from.as_str().len() + edge.to.as_str().len(),
        Op::Forget(_) | Op::Dissociate(_) => FIXED,
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{
        ClientId, Decay, GroupId, IndexParameters, Metric, SlotRange, SpaceConfig, SpaceId,
    };

    use super::*;

    fn space(parts: u32) -> SpaceRecord {
        let config = SpaceConfig {
            space: SpaceId(1),
            name: "s".into(),
            dimension: 2,
            metric: Metric::L2,
            index: IndexParameters::new(1),
            embedding_model: String::new(),
            decay: Decay::None,
        };
        let place = |(n, slots): (usize, SlotRange)| PartitionRecord {
            id: PartitionId(n as u64),
            group: GroupId(n as u64 + 1),
            slots,
        };
        let partitions = SlotRange::split_evenly(parts)
            .into_iter()
            .enumerate()
            .map(place);
        SpaceRecord {
            config,
            replicas: 1,
            partitions: partitions.collect(),
            local_fallback: Default::default(),
        }
    }

    fn memory(id: &str, embedding: Vec<f32>) -> v1::Memory {
        v1::Memory {
            id: id.into(),
            embedding,
            ..Default::default()
        }
    }

    fn edge(from: &str, relation: &str) -> v1::ImportEdge {
        let (from, to, relation) = (from.into(), "b".into(), relation.into());
        v1::ImportEdge {
            from,
            to,
            relation,
            weight: None,
            confidence: None,
        }
    }

    fn requester() -> Requester {
        Requester {
            client: ClientId([1; 16]),
            counter: 5,
            retried: false,
        }
    }

    #[test]
    fn items_keep_their_index_wherever_they_go() {
        let memories = vec![
            memory("a", vec![]),
            memory("", vec![1.0]),
            memory("c", vec![]),
        ];
        let edges = vec![edge("a", ""), edge("a", "r")];
        let mut sorted = sort(&space(4), requester(), memories, edges);
        let mut indexes: Vec<u32> = Vec::new();
        for (place, ops) in sorted.by_place.values() {
            assert!(
                ops.iter()
                    .all(|(_, op)| home_of(&space(4), op).id == place.id)
            );
            assert!(
                ops.is_sorted_by_key(|(index, _)| *index),
                "as the log wants them"
            );
            indexes.extend(ops.iter().map(|(index, _)| *index));
        }
        indexes.sort_unstable();
        assert_eq!(indexes, [0, 2, 4]);
        sorted
            .rejected
            .sort_by_key(|reject| (reject.edge, reject.position));
        let rejected: Vec<_> = sorted
            .rejected
            .iter()
            .map(|r| (r.edge, r.position, r.code.as_str()))
            .collect();
        assert_eq!(
            rejected,
            [(false, 1, "WRONG_DIMENSION"), (true, 0, "INVALID_RELATION")]
        );
    }

    #[test]
    fn large_parts_are_cut_in_order() {
        let content = "x".repeat(COMMAND_BYTES_TARGET / 3);
        let memories: Vec<v1::Memory> = (0..7)
            .map(|n| v1::Memory {
                content: content.clone(),
                ..memory(&n.to_string(), vec![])
            })
            .collect();
        let mut sorted = sort(&space(1), requester(), memories, Vec::new());
        let (_, (_, ops)) = sorted.by_place.pop_first().unwrap();
        let parts = cut(ops);
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 2, 1]);
        let indexes: Vec<u32> = parts.iter().flatten().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 1, 2, 3, 4, 5, 6]);
    }
}
