//! Reads by id: memories, and the edges at a memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use engram_core::types::PartitionId;
use engram_proto::convert::DecodeError;
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ExistsQuery, GetQuery, NeighborsAnswer, NeighborsQuery, ReadQuery};
use engram_proto::v1::{self, neighbors_request::Direction};
use futures::future::try_join_all;

use super::Services;
use super::failure::{Failure, InputError};
use super::input;
use super::token::{Freshness, Positions};
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::{Deadline, Read};

/// Ids of one get.
const GET_IDS_MAX: usize = 1_024;
/// Edges of one answer about neighbours, and what it gives without a limit.
const NEIGHBORS_MAX: usize = 10_000;
const NEIGHBORS_DEFAULT: usize = 100;

/// One call's reads: its space, freshness and deadline, and the positions it met.
pub(super) struct Reading<'a> {
    pub space: &'a SpaceRecord,
    pub freshness: &'a Freshness,
    pub deadline: Deadline,
}

impl Services {
    /// Asks one partition.
    pub(super) async fn ask(
        &self,
        reading: &Reading<'_>,
        place: PartitionRecord,
        query: Query,
    ) -> Result<(PartitionId, Read), Failure> {
        let query = ReadQuery { query: Some(query) };
        let at = reading.freshness.at(place.id);
        let read = self
            .router()
            .read(place, &query, &at, reading.deadline)
            .await?;
        Ok((place.id, read))
    }

    pub(super) async fn get(
        &self,
        request: v1::GetRequest,
        deadline: Deadline,
    ) -> Result<v1::GetResponse, Failure> {
        input::at_most("ids", "ids", request.ids.len(), GET_IDS_MAX)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space_for(&request.space, &freshness, deadline).await?;
        let by_place = by_partition(&space, &request.ids)?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let asked = by_place.into_values().map(|(place, ids)| {
            let query = GetQuery {
                ids,
                with_embedding: request.with_embedding,
            };
            self.ask(&reading, place, Query::Get(query))
        });
        let mut positions = Positions::default();
        let mut found: HashMap<String, v1::Memory> = HashMap::new();
        for (partition, read) in try_join_all(asked).await? {
            positions.note(partition, &read.position);
            let Answer::Get(answer) = read.answer else {
                return Err(unfit("a get"));
            };
            found.extend(
                answer
                    .memories
                    .into_iter()
                    .map(|memory| (memory.id.clone(), memory)),
            );
        }
        let (mut memories, mut missing) = (Vec::new(), Vec::new());
        for id in request.ids {
            match found.get(&id) {
                Some(memory) => memories.push(memory.clone()),
                None => missing.push(id),
            }
        }
        Ok(v1::GetResponse {
            memories,
            missing,
            token: Some(positions.token()),
        })
    }

    /// Which of these ids have a memory.
    pub(super) async fn existing(
        &self,
        reading: &Reading<'_>,
        ids: impl IntoIterator<Item = String>,
        positions: &mut Positions,
    ) -> Result<BTreeSet<String>, Failure> {
        let ids: Vec<String> = ids
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let asked =
            by_partition(reading.space, &ids)?
                .into_values()
                .map(|(place, ids)| async move {
                    let query = Query::Exists(ExistsQuery { ids: ids.clone() });
                    Ok::<_, Failure>((ids, self.ask(reading, place, query).await?))
                });
        let mut existing = BTreeSet::new();
        for (ids, (partition, read)) in try_join_all(asked).await? {
            positions.note(partition, &read.position);
            let Answer::Exists(answer) = read.answer else {
                return Err(unfit("an exists"));
            };
            let there = ids
                .into_iter()
                .zip(answer.exists)
                .filter(|(_, exists)| *exists);
            existing.extend(there.map(|(id, _)| id));
        }
        Ok(existing)
    }

    pub(super) async fn neighbors(
        &self,
        request: v1::NeighborsRequest,
        deadline: Deadline,
    ) -> Result<v1::NeighborsResponse, Failure> {
        input::memory_id("the memory's id", &request.id)?;
        request
            .relations
            .iter()
            .try_for_each(|name| input::relation(name).map(drop))?;
        let limit = match request.limit as usize {
            0 => NEIGHBORS_DEFAULT,
            limit => limit,
        };
        input::at_most("the limit", "edges", limit, NEIGHBORS_MAX)?;
        let direction = match Direction::try_from(request.direction) {
            Ok(Direction::Unspecified) => Direction::Out,
            Ok(direction) => direction,
            Err(_) => {
                let error = DecodeError::NotUnderstood("the direction");
                return Err(InputError::Decode(error).into());
            }
        };
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space_for(&request.space, &freshness, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let query = NeighborsQuery {
            id: request.id,
            incoming: false,
            relations: request.relations,
            limit: 0,
            now_millis: self.router().seams().clock.wall_millis(),
        };
        self.visible_neighbors(&reading, query, direction, limit)
            .await
    }

    /// Edges whose ends both exist. A partition hides an edge when an end of its own is missing;
    /// the others are looked up here. When that leaves too few, more are fetched.
    async fn visible_neighbors(
        &self,
        reading: &Reading<'_>,
        query: NeighborsQuery,
        direction: Direction,
        limit: usize,
    ) -> Result<v1::NeighborsResponse, Failure> {
        let mut fetch = limit + limit / 4 + 8;
        loop {
            let fetched = NeighborsQuery {
                limit: fetch as u32,
                ..query.clone()
            };
            let mut positions = Positions::default();
            let (mut edges, cut) = self
                .fetch_neighbors(reading, &fetched, direction, &mut positions)
                .await?;
            let ends = edges
                .iter()
                .flat_map(|edge| [edge.from.clone(), edge.to.clone()]);
            let there = self.existing(reading, ends, &mut positions).await?;
            edges.retain(|edge| there.contains(&edge.from) && there.contains(&edge.to));
            if edges.len() >= limit || !cut || fetch >= NEIGHBORS_MAX {
                let truncated = cut || edges.len() > limit;
                edges.truncate(limit);
                let token = Some(positions.token());
                return Ok(v1::NeighborsResponse {
                    edges,
                    truncated,
                    token,
                });
            }
            fetch = fetch.saturating_mul(4).min(NEIGHBORS_MAX);
        }
    }

    /// Strongest first, and whether there are more.
    async fn fetch_neighbors(
        &self,
        reading: &Reading<'_>,
        query: &NeighborsQuery,
        direction: Direction,
        positions: &mut Positions,
    ) -> Result<(Vec<v1::Edge>, bool), Failure> {
        let mut asked = Vec::new();
        if direction != Direction::In {
            let slot = input::memory_id("the memory's id", &query.id)?.hash_slot();
            asked.push((reading.space.partition_of(slot), query.clone()));
        }
        if direction != Direction::Out {
            // Incoming edges are indexed where they begin, which can be any partition.
            let incoming = NeighborsQuery {
                incoming: true,
                ..query.clone()
            };
            asked.extend(
                reading
                    .space
                    .partitions
                    .iter()
                    .map(|place| (*place, incoming.clone())),
            );
        }
        let asked = asked
            .into_iter()
            .map(|(place, query)| self.ask(reading, place, Query::Neighbors(query)));
        let (mut edges, mut cut) = (Vec::new(), false);
        for (partition, read) in try_join_all(asked).await? {
            positions.note(partition, &read.position);
            let Answer::Neighbors(NeighborsAnswer {
                edges: some,
                truncated,
            }) = read.answer
            else {
                return Err(unfit("a question about neighbours"));
            };
            cut |= truncated;
            edges.extend(some);
        }
        // A memory's edge to itself comes by both directions.
        let mut seen = BTreeSet::new();
        edges.retain(|edge: &v1::Edge| {
            let (from, to, relation) = name_of(edge);
            from != to || seen.insert(relation.to_owned())
        });
        edges.sort_by(strongest_first);
        Ok((edges, cut))
    }
}

fn name_of(edge: &v1::Edge) -> (&str, &str, &str) {
    (&edge.from, &edge.to, &edge.relation)
}

fn strongest_first(one: &v1::Edge, other: &v1::Edge) -> std::cmp::Ordering {
    other
        .weight
        .total_cmp(&one.weight)
        .then_with(|| name_of(one).cmp(&name_of(other)))
}

pub(super) fn unfit(what: &str) -> Failure {
    Failure::Internal(format!("{what} was answered with something else"))
}

/// Ids by the partition that owns them.
pub(super) fn by_partition(
    space: &SpaceRecord,
    ids: &[String],
) -> Result<BTreeMap<PartitionId, (PartitionRecord, Vec<String>)>, InputError> {
    let mut places: BTreeMap<PartitionId, (PartitionRecord, Vec<String>)> = BTreeMap::new();
    for id in ids {
        let place = space.partition_of(input::memory_id("a memory's id", id)?.hash_slot());
        places
            .entry(place.id)
            .or_insert_with(|| (place, Vec::new()))
            .1
            .push(id.clone());
    }
    Ok(places)
}
