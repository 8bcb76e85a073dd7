//! What a read query asks of one partition, and its answer. Blocking; the same code answers local
//! and forwarded reads.

use std::collections::BTreeSet;

use engram_core::edges::Conflict;
use engram_core::filter::Filter;
use engram_core::partition::{
    Direction, FoundEdge, FoundMemory, NeighborsQuery, NumberedConflict, Partition,
    PartitionStatus, PartitionView, ReadError, RecallQuery,
};
use engram_core::storage::StorageError;
use engram_core::types::{EdgeKey, MarkId, MemoryHash, MemoryId, PartitionId, Relation};
use engram_proto::convert::{ask_from_peer, expanded_to_peer, memory_to_api};
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::{peer, v1};

use super::refusal::Refusal;

/// Memories, or edges, in one page of an export.
const EXPORT_PAGE_ITEMS_MAX: usize = 4_096;
/// Bytes of memories in one page of an export, whatever the caller asks for.
const EXPORT_PAGE_BYTES_MAX: usize = 4 << 20;

/// Answers a query from the partition's newest state.
pub fn execute(partition: &Partition, query: &peer::ReadQuery) -> Result<peer::Served, Refusal> {
    let invalid = || Refusal::Invalid("the query is of no known kind".into());
    let answer = match query.query.as_ref().ok_or_else(invalid)? {
        Query::Get(query) => Answer::Get(get(&partition.view(), query)?),
        Query::Exists(query) => Answer::Exists(exists(&partition.view(), query)?),
        Query::Neighbors(query) => Answer::Neighbors(neighbors(&partition.view(), query)?),
        Query::Recall(query) => Answer::Recall(recall(partition, query)?),
        Query::Status(peer::StatusQuery {}) => Answer::Status(status(partition)),
        Query::Mark(query) => Answer::Mark(mark(partition, *query)?),
        Query::Export(query) => Answer::Export(export(&partition.view(), query)?),
        Query::Conflicts(query) => Answer::Conflicts(conflicts(&partition.view(), *query)?),
        Query::Compare(query) => Answer::Compare(compare(&partition.view(), query)?),
        Query::Expand(query) => Answer::Expand(expand(partition, query)?),
        // Asked of the pinned views.
        Query::BackUpOpen(_) | Query::BackUpPage(_) => return Err(invalid()),
    };
    Ok(served(partition, answer))
}

/// An answer and a position that covers all that it shows: it is taken after the read.
pub fn served(partition: &Partition, answer: Answer) -> peer::Served {
    peer::Served {
        position: Some((&partition.context()).into()),
        answer: Some(answer),
    }
}

fn refuse(error: ReadError) -> Refusal {
    match error {
        ReadError::Storage(error) => Refusal::Storage(error.to_string()),
        ReadError::WrongDimension { .. }
        | ReadError::NotFinite { .. }
        | ReadError::TooLarge { .. } => Refusal::Invalid(error.to_string()),
    }
}

fn id(id: &str) -> Result<MemoryId, Refusal> {
    MemoryId::new(id).map_err(|error| Refusal::Invalid(error.to_string()))
}

fn ids(ids: &[String]) -> Result<Vec<MemoryId>, Refusal> {
    ids.iter().map(|text| id(text)).collect()
}

fn relations(names: &[String]) -> Result<BTreeSet<Relation>, Refusal> {
    let relation = |name: &String| {
        Relation::new(name).ok_or_else(|| Refusal::Invalid(format!("{name:?} is no relation")))
    };
    names.iter().map(relation).collect()
}

fn get(view: &PartitionView, query: &peer::GetQuery) -> Result<peer::GetAnswer, Refusal> {
    let found = view
        .get(&ids(&query.ids)?, query.with_embedding)
        .map_err(refuse)?;
    let memories = found
        .memories
        .into_iter()
        .flatten()
        .map(api_memory)
        .collect();
    Ok(peer::GetAnswer { memories })
}

fn api_memory(found: FoundMemory) -> v1::Memory {
    memory_to_api(&found.memory, found.embedding)
}

fn exists(view: &PartitionView, query: &peer::ExistsQuery) -> Result<peer::ExistsAnswer, Refusal> {
    let found = view.get(&ids(&query.ids)?, false).map_err(refuse)?;
    Ok(peer::ExistsAnswer {
        exists: found.memories.iter().map(Option::is_some).collect(),
    })
}

fn neighbors(
    view: &PartitionView,
    query: &peer::NeighborsQuery,
) -> Result<peer::NeighborsAnswer, Refusal> {
    let (id, relations) = (id(&query.id)?, relations(&query.relations)?);
    let asked = NeighborsQuery {
        id: &id,
        direction: if query.incoming {
            Direction::In
        } else {
            Direction::Out
        },
        relations: &relations,
        now_millis: query.now_millis,
        limit: query.limit as usize,
    };
    let found = view.neighbors(&asked).map_err(refuse)?;
    Ok(peer::NeighborsAnswer {
        edges: found.edges.iter().map(api_edge).collect(),
        truncated: found.left_out > 0,
    })
}

fn api_edge(edge: &FoundEdge) -> v1::Edge {
    v1::Edge {
        from: edge.from.as_str().to_owned(),
        to: edge.to.as_str().to_owned(),
        relation: edge.relation.as_str().to_owned(),
        weight: edge.weight.to_f64(),
        evidence: edge.confidence,
        updated_millis: edge.newest.millis() as i64,
    }
}

fn recall(partition: &Partition, query: &peer::RecallQuery) -> Result<peer::RecallAnswer, Refusal> {
    let filter = filter(&query.filter)?;
    let without = (!query.without.is_empty())
        .then(|| id(&query.without))
        .transpose()?;
    let asked = RecallQuery {
        vector: &query.vector,
        limit: query.limit as usize,
        effort: query.effort as usize,
        filter: filter.as_ref(),
        exclude: without.as_ref(),
    };
    let recalled = partition.recall(&asked).map_err(refuse)?;
    let hits = recalled.hits.into_iter().map(|hit| peer::RecallHit {
        id: hit.memory.id.as_str().to_owned(),
        distance: hit.distance,
        confidence: hit.memory.confidence.to_f64(),
        memory: query.with_content.then(|| memory_to_api(&hit.memory, None)),
    });
    Ok(peer::RecallAnswer {
        hits: hits.collect(),
    })
}

fn expand(partition: &Partition, query: &peer::ExpandQuery) -> Result<peer::ExpandAnswer, Refusal> {
    let ask = ask_from_peer(query, partition.id());
    let ask = ask.map_err(|error| Refusal::Invalid(error.to_string()))?;
    let relations = relations(&query.relations)?;
    let relations = (!relations.is_empty()).then_some(relations);
    let adjacency = partition.adjacency(filter(&query.filter)?, relations, query.now_millis);
    let expanded = adjacency.expand(&ask).map_err(refuse)?;
    Ok(expanded_to_peer(&ask, &expanded))
}

fn filter(text: &str) -> Result<Option<Filter>, Refusal> {
    let filter = (!text.is_empty()).then(|| Filter::parse(text)).transpose();
    filter.map_err(|error| Refusal::Invalid(error.to_string()))
}

fn compare(
    view: &PartitionView,
    query: &peer::CompareQuery,
) -> Result<peer::CompareAnswer, Refusal> {
    let found = view.compare(&query.vector, &ids(&query.ids)?);
    let found = found.map_err(refuse)?.into_iter().flatten();
    let memories = found.map(|compared| peer::ComparedMemory {
        id: compared.memory.id.as_str().to_owned(),
        distance: compared.distance,
        memory: query
            .with_content
            .then(|| memory_to_api(&compared.memory, None)),
    });
    Ok(peer::CompareAnswer {
        memories: memories.collect(),
    })
}

fn status(partition: &Partition) -> peer::StatusAnswer {
    let status = partition.status();
    peer::StatusAnswer {
        memories: status.memories,
        edges: status.edges,
        index_tail: u64::from(status.index.tail),
        overlay_deltas: status.overlay_deltas as u64,
        bytes: estimated_bytes(partition, &status),
        overlay_bytes: status.overlay.bytes as u64,
        folded_edges: status.folded_edges,
        edge_conflicts: status.edge_conflicts,
        reused_dots: status.overlay_conflicts,
        index_bytes: status.index.bytes,
        index_generations: status.index.generations,
        purge_last: status.purges.last.0,
        purge_done: 0,
        // Known to consensus only: the caller fills them in.
        leader: 0,
        epoch: 0,
        stopped: String::new(),
        catching_up: Vec::new(),
    }
}

fn conflicts(
    view: &PartitionView,
    query: peer::ConflictsQuery,
) -> Result<peer::ConflictsAnswer, Refusal> {
    let storage = |error: StorageError| Refusal::Storage(error.to_string());
    let found = view.conflicts(query.limit as usize).map_err(storage)?;
    let total = found.first().map_or(0, |newest| newest.number);
    let mut conflicts = Vec::with_capacity(found.len());
    for conflict in found {
        let from = view.id_of(conflict.record.edge.from).map_err(storage)?;
        conflicts.push(api_conflict(view.partition(), from, &conflict));
    }
    Ok(peer::ConflictsAnswer { conflicts, total })
}

fn api_conflict(
    partition: PartitionId,
    from: Option<MemoryId>,
    conflict: &NumberedConflict,
) -> v1::EdgeConflict {
    use v1::edge_conflict::Kind;
    let record = &conflict.record;
    let (kind, request) = match &record.conflict {
        Conflict::RemovalMissesBase { request, .. } => (Kind::RemovalTooLate, Some(request)),
        Conflict::RetryMeetsBase {
            request, counted, ..
        } => {
            let kind = if *counted {
                Kind::RetryCounted
            } else {
                Kind::RetryDropped
            };
            (kind, Some(request))
        }
        Conflict::DotReused { .. } => (Kind::MarkReused, None),
    };
    v1::EdgeConflict {
        partition: partition.0,
        number: conflict.number,
        sequence: record.sequence.0,
        from: from.map(|id| id.as_str().to_owned()).unwrap_or_default(),
        to: record.to.as_str().to_owned(),
        relation: record.edge.relation.as_str().to_owned(),
        kind: kind.into(),
        index: request.map_or(0, |request| request.index),
        request: request.map(|request| v1::RequestId {
            client: request.client.0.to_vec().into(),
            counter: request.counter,
            retried: false,
        }),
    }
}

/// Bytes of a memory's record beside its vector, and of an edge in both directions, as estimated
/// for planning.
const MEMORY_BYTES: u64 = 384;
const EDGE_BYTES: u64 = 256;

fn estimated_bytes(partition: &Partition, status: &PartitionStatus) -> u64 {
    let vector = u64::from(partition.config().dimension) * 4;
    status.memories * (vector + MEMORY_BYTES) + status.edges * EDGE_BYTES
}

fn mark(partition: &Partition, query: peer::MarkQuery) -> Result<peer::MarkAnswer, Refusal> {
    let Some(marked) = partition.marked(MarkId(query.mark)).map_err(refuse)? else {
        return Ok(peer::MarkAnswer { digests: None });
    };
    let Some(topology) = marked.topology else {
        return Ok(peer::MarkAnswer { digests: None });
    };
    let damage = if query.deep {
        damage(partition)?
    } else {
        String::new()
    };
    Ok(peer::MarkAnswer {
        digests: Some(peer::MarkDigests {
            sequence: marked.sequence.0,
            log_hash: marked.log_hash.to_vec().into(),
            memory_digest: marked.memory.to_le_bytes().to_vec().into(),
            edge_digest: marked.edge.to_le_bytes().to_vec().into(),
            generation: marked.position.generation,
            index_jobs: marked.position.jobs,
            topology_digest: topology.0.to_vec().into(),
            damage,
        }),
    })
}

/// What the records on disk do not bear out; empty when they do.
fn damage(partition: &Partition) -> Result<String, Refusal> {
    let (recomputed, view) = match partition.recompute_digests() {
        Ok(done) => done,
        Err(error) => return Ok(format!("records cannot be read: {error}")),
    };
    let held = view.digests();
    let differs = |what: &str, equal: bool| (!equal).then(|| what.to_owned());
    let parts = [
        differs("memories", held.memory == recomputed.memory),
        differs("edges", held.edge == recomputed.edge),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return Ok(String::new());
    }
    let what = parts.join(" and ");
    Ok(format!(
        "the {what} on disk do not have the digest that the log gave them"
    ))
}

/// Where the next page of an export begins: a tag byte, then the last key.
enum Cursor {
    Memories(Option<MemoryHash>),
    Edges(Option<EdgeKey>),
    End,
}

impl Cursor {
    fn decode(query: &peer::ExportQuery) -> Result<Self, Refusal> {
        let invalid = |_| Refusal::Invalid("the export's cursor is damaged".into());
        match query.after.split_first() {
            None if query.memories => Ok(Self::Memories(None)),
            None if query.edges => Ok(Self::Edges(None)),
            None => Ok(Self::End),
            Some((b'm', hash)) => Ok(Self::Memories(Some(MemoryHash(
                hash.try_into().map_err(|_| invalid(()))?,
            )))),
            Some((b'e', [])) => Ok(Self::Edges(None)),
            Some((b'e', key)) => {
                let key = postcard::from_bytes(key).map_err(|_| invalid(()))?;
                Ok(Self::Edges(Some(key)))
            }
            Some(_) => Err(invalid(())),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Memories(after) => {
                let hash = after.iter().flat_map(|hash| hash.0);
                std::iter::once(b'm').chain(hash).collect()
            }
            Self::Edges(after) => {
                let key = after.as_ref().map(postcard::to_stdvec);
                let key = key.and_then(Result::ok).unwrap_or_default();
                std::iter::once(b'e').chain(key).collect()
            }
            Self::End => Vec::new(),
        }
    }
}

fn export(view: &PartitionView, query: &peer::ExportQuery) -> Result<peer::ExportAnswer, Refusal> {
    let bytes_max = usize::try_from(query.bytes_max).unwrap_or(usize::MAX);
    let bytes_max = bytes_max.clamp(1, EXPORT_PAGE_BYTES_MAX);
    let mut answer = peer::ExportAnswer::default();
    let next = match Cursor::decode(query)? {
        Cursor::Memories(after) => {
            let page = view.export_memories(after, EXPORT_PAGE_ITEMS_MAX, bytes_max);
            let page = page.map_err(refuse)?;
            answer.memories = page.memories.into_iter().map(api_memory).collect();
            if !query.embeddings {
                answer
                    .memories
                    .iter_mut()
                    .for_each(|memory| memory.embedding.clear());
            }
            match page.next {
                Some(last) => Cursor::Memories(Some(last)),
                None if query.edges => Cursor::Edges(None),
                None => Cursor::End,
            }
        }
        Cursor::Edges(after) => {
            let page = view
                .export_edges(after.as_ref(), EXPORT_PAGE_ITEMS_MAX)
                .map_err(refuse)?;
            answer.edges = page.edges.iter().map(api_edge).collect();
            page.next
                .map_or(Cursor::End, |last| Cursor::Edges(Some(last)))
        }
        Cursor::End => Cursor::End,
    };
    answer.next = next.encode().into();
    Ok(answer)
}
