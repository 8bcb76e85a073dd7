//! Recall: all partitions are asked at once, their answers merged by distance.

use engram_core::limits;
use engram_core::types::{Metric, SpaceConfig};
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{GetQuery, RecallHit, RecallQuery};
use engram_proto::v1;
use engram_proto::v1::recall_request::Query as Like;
use futures::future::try_join_all;

use super::Services;
use super::failure::{Failure, InputError};
use super::input;
use super::reads::{Reading, unfit};
use super::token::{Freshness, Positions};
use crate::routing::Deadline;

/// Results of a recall that names no limit.
const RECALL_LIMIT_DEFAULT: u32 = 10;

impl Services {
    pub(super) async fn recall(
        &self,
        request: v1::RecallRequest,
        deadline: Deadline,
    ) -> Result<v1::RecallResponse, Failure> {
        let limit = if request.limit == 0 {
            RECALL_LIMIT_DEFAULT
        } else {
            request.limit
        };
        input::at_most(
            "the limit",
            "results",
            limit as usize,
            limits::RECALL_LIMIT_MAX,
        )?;
        let effort = request.effort;
        input::at_most(
            "the effort",
            "candidates",
            effort as usize,
            limits::SEARCH_EFFORT_MAX,
        )?;
        input::filter(&request.filter)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space_for(&request.space, &freshness, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let mut positions = Positions::default();
        let model = &request.embedding_model;
        let (vector, without) = match request.query {
            Some(Like::Vector(vector)) => {
                (compared_with(&space.config, vector, model)?, String::new())
            }
            Some(Like::Like(id)) => (self.vector_of(&reading, &id, &mut positions).await?, id),
            None => return Err(nothing_to_be_near_to().into()),
        };
        let query = RecallQuery {
            vector,
            limit,
            effort,
            filter: request.filter,
            without,
            with_content: request.with_content,
        };
        let hits = self.nearest(&reading, query, &mut positions).await?;
        let by_confidence = request.scale_by_confidence;
        let hits = scored(&space.config, hits, by_confidence);
        Ok(v1::RecallResponse {
            hits,
            token: Some(positions.token()),
        })
    }

    /// The embedding of a memory.
    pub(super) async fn vector_of(
        &self,
        reading: &Reading<'_>,
        id: &str,
        positions: &mut Positions,
    ) -> Result<Vec<f32>, Failure> {
        let place = reading
            .space
            .partition_of(input::memory_id("the id", id)?.hash_slot());
        let query = GetQuery {
            ids: vec![id.to_owned()],
            with_embedding: true,
        };
        let (partition, read) = self.ask(reading, place, Query::Get(query)).await?;
        positions.note(partition, &read.position);
        let Answer::Get(answer) = read.answer else {
            return Err(unfit("a get"));
        };
        let memory = answer.memories.into_iter().next();
        let memory = memory.ok_or_else(|| Failure::UnknownMemory { id: id.to_owned() })?;
        if memory.embedding.is_empty() {
            return Err(Failure::NoEmbedding { id: id.to_owned() });
        }
        Ok(memory.embedding)
    }

    /// The nearest of all partitions, nearest first.
    pub(super) async fn nearest(
        &self,
        reading: &Reading<'_>,
        query: RecallQuery,
        positions: &mut Positions,
    ) -> Result<Vec<RecallHit>, Failure> {
        let limit = query.limit as usize;
        let places = reading.space.partitions.iter();
        let asked = places.map(|place| self.ask(reading, *place, Query::Recall(query.clone())));
        let mut hits = Vec::new();
        for (partition, read) in try_join_all(asked).await? {
            positions.note(partition, &read.position);
            let Answer::Recall(answer) = read.answer else {
                return Err(unfit("a recall"));
            };
            hits.extend(answer.hits);
        }
        Ok(merged(hits, limit))
    }
}

pub(super) fn nothing_to_be_near_to() -> InputError {
    InputError::Missing("the vector, or the id to be like")
}

/// A client's vector, as it is compared in this space.
pub(super) fn compared_with(
    config: &SpaceConfig,
    vector: v1::Vector,
    model: &str,
) -> Result<Vec<f32>, InputError> {
    let embedding = config.embedding(vector.components, model)?;
    Ok(embedding.components().to_vec())
}

/// By distance, then id: the same whatever the layout.
pub(super) fn merged(mut hits: Vec<RecallHit>, limit: usize) -> Vec<RecallHit> {
    hits.sort_by(|one, other| {
        one.distance
            .total_cmp(&other.distance)
            .then_with(|| one.id.cmp(&other.id))
    });
    hits.truncate(limit);
    hits
}

/// A distance as a score: greater is nearer.
pub(super) fn score(metric: Metric, distance: f32) -> f64 {
    let distance = f64::from(distance);
    match metric {
        Metric::Cosine => 1.0 - distance,
        Metric::Dot | Metric::L2 => 0.0 - distance,
    }
}

/// Distances as scores.
fn scored(config: &SpaceConfig, hits: Vec<RecallHit>, by_confidence: bool) -> Vec<v1::Hit> {
    let mut hits: Vec<v1::Hit> = hits
        .into_iter()
        .map(|hit| {
            let score = score(config.metric, hit.distance);
            let score = if by_confidence {
                weighed(score, hit.confidence)
            } else {
                score
            };
            v1::Hit {
                id: hit.id,
                score,
                memory: hit.memory,
            }
        })
        .collect();
    if by_confidence {
        hits.sort_by(|one, other| {
            other
                .score
                .total_cmp(&one.score)
                .then_with(|| one.id.cmp(&other.id))
        });
    }
    hits
}

/// Less confidence never raises a score, whatever its sign.
fn weighed(score: f64, confidence: f64) -> f64 {
    if score >= 0.0 {
        score * confidence
    } else {
        (score / confidence).max(f64::MIN)
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{Decay, IndexParameters, SpaceId};

    use super::*;

    fn hit(id: &str, distance: f32, confidence: f64) -> RecallHit {
        RecallHit {
            id: id.into(),
            distance,
            confidence,
            memory: None,
        }
    }

    fn config(metric: Metric) -> SpaceConfig {
        SpaceConfig {
            space: SpaceId(1),
            name: "s".into(),
            dimension: 2,
            metric,
            index: IndexParameters::new(1),
            embedding_model: String::new(),
            decay: Decay::None,
        }
    }

    fn names(hits: &[v1::Hit]) -> Vec<&str> {
        hits.iter().map(|hit| hit.id.as_str()).collect()
    }

    #[test]
    fn partitions_merge_by_distance_then_id() {
        let hits = vec![hit("b", 0.5, 1.0), hit("c", 0.1, 1.0), hit("a", 0.5, 1.0)];
        let merged = merged(hits, 2);
        let ids: Vec<_> = merged.iter().map(|hit| hit.id.as_str()).collect();
        assert_eq!(ids, ["c", "a"]);
    }

    #[test]
    fn scores_grow_with_nearness() {
        let hits = || vec![hit("near", 0.25, 1.0), hit("far", 1.5, 1.0)];
        let cosine = scored(&config(Metric::Cosine), hits(), false);
        assert_eq!((cosine[0].score, cosine[1].score), (0.75, -0.5));
        let l2 = scored(&config(Metric::L2), hits(), false);
        assert_eq!((l2[0].score, l2[1].score), (-0.25, -1.5));
    }

    #[test]
    fn confidence_lowers_scores_of_either_sign() {
        let hits = vec![
            hit("sure", 1.0, 1.0),
            hit("unsure", 0.9, 0.5),
            hit("void", 0.1, 0.0),
        ];
        let l2 = scored(&config(Metric::L2), hits, true);
        assert_eq!(names(&l2), ["sure", "unsure", "void"]);
        assert!(l2.iter().all(|hit| hit.score.is_finite()));
    }
}
