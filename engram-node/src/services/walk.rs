//! Walks: what lies around memories, and paths between two. The search is `engram_core::walk`; here
//! its rounds are carried to the partitions, each round at once.

use std::collections::BTreeMap;

use engram_core::limits::SEEDS_MAX;
use engram_core::types::{MemoryHash, MemoryId};
use engram_core::walk::{
    Ask, Expanded, Goal, Homes, PathBy, Start, Walk, WalkDirection, WalkEnd, WalkError,
    WalkOutcome, WalkParameters, WalkStep,
};
use engram_proto::convert::{DecodeError, expanded_from_peer};
use engram_proto::peer::ExpandQuery;
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::v1::find_path_request::By;
use engram_proto::v1::{self, neighbors_request::Direction};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Services;
use super::failure::{Failure, InputError};
use super::input;
use super::reads::{Reading, unfit};
use super::token::{Freshness, Positions};
use crate::routing::Deadline;

/// Memories of one answer, and what it gives without a limit.
const MEMBERS_MAX: usize = 10_000;
const MEMBERS_DEFAULT: usize = 1_000;
/// Hops of a path, and what is taken without a number.
const PATH_HOPS_MAX: u32 = 64;
const PATH_HOPS_DEFAULT: u32 = 8;
/// Memories that one walk meets, and edges that it reads.
const WALK_MEMORIES_MAX: usize = 100_000;
const WALK_EDGES_MAX: usize = 1_000_000;
/// Edges of one answer of one partition: some 8 MB.
const ANSWER_EDGES_MAX: usize = 262_144;
/// Partitions asked at the same time.
const ASKS_AT_ONCE: usize = 16;

/// What is the same in all rounds of a walk.
struct Rules {
    relations: Vec<String>,
    filter: String,
    now_millis: u64,
}

impl Services {
    pub(super) async fn neighborhood(
        &self,
        request: v1::NeighborhoodRequest,
        deadline: Deadline,
    ) -> Result<v1::NeighborhoodResponse, Failure> {
        if request.ids.is_empty() {
            return Err(InputError::Missing("the ids").into());
        }
        input::at_most("the ids", "ids", request.ids.len(), SEEDS_MAX)?;
        let limit = match request.limit as usize {
            0 => MEMBERS_DEFAULT,
            limit => limit,
        };
        input::at_most("the limit", "memories", limit, MEMBERS_MAX)?;
        let hops_max = match request.hops {
            0 => u32::MAX,
            hops => hops,
        };
        let parameters = parameters(direction(request.direction)?, hops_max);
        let rules = self.rules(request.relations, request.filter, request.now_millis)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space(&request.space, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let ids = request.ids.iter().map(|id| input::memory_id("an id", id));
        let ids: Vec<MemoryId> = ids.collect::<Result<_, _>>()?;
        let (outcome, positions) = self
            .walk(&reading, &rules, Goal::Around, &ids, parameters)
            .await?;
        let missing = names(&outcome, &ids);
        let is_cut = outcome.end != WalkEnd::Complete || outcome.reached.len() > limit;
        let members = outcome.reached.into_iter().take(limit);
        Ok(v1::NeighborhoodResponse {
            members: members
                .map(|member| v1::NeighborhoodMember {
                    id: member.id.as_str().to_owned(),
                    hops: member.hops,
                })
                .collect(),
            truncated: is_cut,
            complete_hops: outcome.hops,
            missing,
            edges_read: outcome.edges_read as u64,
            token: Some(positions.token()),
        })
    }

    pub(super) async fn find_path(
        &self,
        request: v1::FindPathRequest,
        deadline: Deadline,
    ) -> Result<v1::FindPathResponse, Failure> {
        let from = input::memory_id("the id of the first memory", &request.from)?;
        let to = input::memory_id("the id of the last memory", &request.to)?;
        let by = match By::try_from(request.by) {
            Ok(By::Unspecified | By::Hops) => PathBy::Hops,
            Ok(By::Strength) => PathBy::Strength,
            Err(_) => {
                let error = DecodeError::NotUnderstood("what the path is chosen by");
                return Err(InputError::Decode(error).into());
            }
        };
        let hops_max = match request.hops_max {
            0 => PATH_HOPS_DEFAULT,
            hops => hops,
        };
        input::at_most(
            "the path",
            "hops",
            hops_max as usize,
            PATH_HOPS_MAX as usize,
        )?;
        let parameters = parameters(direction(request.direction)?, hops_max);
        let rules = self.rules(request.relations, request.filter, request.now_millis)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space(&request.space, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let goal = Goal::Path { to: start(&to), by };
        let ids = [from, to];
        let (outcome, positions) = self
            .walk(&reading, &rules, goal, &ids[..1], parameters)
            .await?;
        match outcome.end {
            WalkEnd::Complete => {}
            WalkEnd::TooManyMemories { hops } => {
                return Err(Failure::WalkTooLarge {
                    what: "memories",
                    max: WALK_MEMORIES_MAX,
                    hops,
                });
            }
            WalkEnd::TooManyEdges { hops } => {
                return Err(Failure::WalkTooLarge {
                    what: "associations",
                    max: WALK_EDGES_MAX,
                    hops,
                });
            }
        }
        let missing = names(&outcome, &ids);
        let (steps, strength) = match outcome.path {
            Some(path) => (path.steps, path.strength.to_f64()),
            None => (Vec::new(), 0.0),
        };
        Ok(v1::FindPathResponse {
            steps: steps.into_iter().map(api_step).collect(),
            strength,
            missing,
            edges_read: outcome.edges_read as u64,
            token: Some(positions.token()),
        })
    }

    fn rules(
        &self,
        relations: Vec<String>,
        filter: String,
        now_millis: Option<i64>,
    ) -> Result<Rules, InputError> {
        input::filter(&filter)?;
        for name in &relations {
            input::relation(name)?;
        }
        Ok(Rules {
            relations,
            filter,
            now_millis: match now_millis {
                Some(now) => u64::try_from(now).unwrap_or(0),
                None => self.router().seams().clock.wall_millis(),
            },
        })
    }

    async fn walk(
        &self,
        reading: &Reading<'_>,
        rules: &Rules,
        goal: Goal,
        from: &[MemoryId],
        parameters: WalkParameters,
    ) -> Result<(WalkOutcome, Positions), Failure> {
        let places = reading.space.partitions.iter();
        let homes = Homes(places.map(|place| (place.slots, place.id)).collect());
        let starts: Vec<Start> = from.iter().map(start).collect();
        let walk = Walk::new(goal, &starts, parameters, homes);
        let mut walk = walk.map_err(|error| internal(&error))?;
        let mut positions = Positions::default();
        loop {
            let asks = walk.round();
            if asks.is_empty() {
                return Ok((walk.finish(), positions));
            }
            let mut asked = Vec::with_capacity(asks.len());
            for ask in &asks {
                asked.push(self.expand(reading, rules, ask));
            }
            // Ordered: answers belong to asks by their place.
            let answers = stream::iter(asked).buffered(ASKS_AT_ONCE);
            let answers: Vec<(Expanded, Positions)> = answers.try_collect().await?;
            let mut expanded = Vec::with_capacity(answers.len());
            for (one, read) in answers {
                positions.join(&read);
                expanded.push(one);
            }
            walk.take(expanded).map_err(|error| internal(&error))?;
        }
    }

    async fn expand(
        &self,
        reading: &Reading<'_>,
        rules: &Rules,
        ask: &Ask,
    ) -> Result<(Expanded, Positions), Failure> {
        let mut places = reading.space.partitions.iter();
        let place = places.find(|place| place.id == ask.partition);
        let place = place.ok_or_else(|| internal(&WalkError::Unfit(ask.partition)))?;
        let query = ExpandQuery {
            edges_max: ask.edges_max.min(ANSWER_EDGES_MAX) as u32,
            relations: rules.relations.clone(),
            filter: rules.filter.clone(),
            now_millis: rules.now_millis,
            ..ExpandQuery::from(ask)
        };
        let (partition, read) = self.ask(reading, *place, Query::Expand(query)).await?;
        let Answer::Expand(answer) = read.answer else {
            return Err(unfit("a round of a walk"));
        };
        let mut positions = Positions::default();
        positions.note(partition, &read.position);
        let expanded = expanded_from_peer(ask, &answer);
        let expanded = expanded.map_err(|error| Failure::Internal(error.to_string()))?;
        Ok((expanded, positions))
    }
}

fn internal(error: &WalkError) -> Failure {
    Failure::Internal(error.to_string())
}

fn start(id: &MemoryId) -> Start {
    Start {
        memory: id.hash(),
        slot: id.hash_slot(),
    }
}

fn direction(direction: i32) -> Result<WalkDirection, InputError> {
    match Direction::try_from(direction) {
        Ok(Direction::Unspecified | Direction::Out) => Ok(WalkDirection::Out),
        Ok(Direction::In) => Ok(WalkDirection::In),
        Ok(Direction::Both) => Ok(WalkDirection::Both),
        Err(_) => Err(DecodeError::NotUnderstood("the direction").into()),
    }
}

fn parameters(direction: WalkDirection, hops_max: u32) -> WalkParameters {
    WalkParameters {
        direction,
        hops_max,
        memories_max: WALK_MEMORIES_MAX,
        edges_max: WALK_EDGES_MAX,
    }
}

/// The ids among `known` that are missing.
fn names(outcome: &WalkOutcome, known: &[MemoryId]) -> Vec<String> {
    let by_hash: BTreeMap<MemoryHash, &MemoryId> = known.iter().map(|id| (id.hash(), id)).collect();
    let missing = outcome.missing.iter();
    let named = missing.filter_map(|memory| by_hash.get(memory));
    named.map(|id| id.as_str().to_owned()).collect()
}

fn api_step(step: WalkStep) -> v1::WalkStep {
    let id = step.id.as_str().to_owned();
    match step.by {
        None => v1::WalkStep {
            id,
            ..Default::default()
        },
        Some(by) => v1::WalkStep {
            id,
            relation: by.relation.as_str().to_owned(),
            weight: by.weight.to_f64(),
            reversed: by.is_reversed,
        },
    }
}

const _: () = assert!(MEMBERS_MAX <= WALK_MEMORIES_MAX);
