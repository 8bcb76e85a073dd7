//! Hybrid recall: a spread that begins at the memories nearest to a vector, and whose answer is
//! ordered by nearness and activation together.
//!
//! The spread itself is an ordinary one: what was found are its seeds. More memories than were
//! asked for come out of it, because one that is near may have little activation; of these the
//! nearness is looked up at their partitions, and the best by the combined score are answered.
//!
//! Nearness is in [0, 1] (`NearestSeeds` in the API has the formulas) and a pure function of
//! distances, which have the same bits everywhere: so has the answer, where nothing is missing.

use std::collections::HashMap;

use engram_core::limits::{RECALL_LIMIT_MAX, SEARCH_EFFORT_MAX, SEEDS_MAX};
use engram_core::spread::ONE;
use engram_core::types::Metric;
use engram_proto::peer::read_query::Query as Read;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{CompareQuery, ComparedMemory, RecallQuery};
use engram_proto::v1;
use engram_proto::v1::nearest_seeds::Query as Near;
use futures::future::join_all;

use super::super::Services;
use super::super::failure::{Failure, InputError};
use super::super::input;
use super::super::reads::{Reading, by_partition, unfit};
use super::super::recall::{compared_with, merged, nothing_to_be_near_to, score};
use super::super::token::Positions;
use super::parameters::{LIMIT_MAX, Query};

/// Seeds of a hybrid recall that names no count.
const COUNT_DEFAULT: u32 = 10;
/// Memories of the spread that are scored, for one that is answered.
const POOL_FACTOR: usize = 4;
const WEIGHT_DEFAULT: f64 = 0.5;

/// What the combined score is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Weights {
    similarity: f64,
    activation: f64,
}

/// A hybrid recall whose seeds are found.
pub struct Hybrid {
    vector: Vec<f32>,
    weights: Weights,
    scale: Scale,
    /// Memories that the client wants.
    limit: usize,
    seeds: Vec<v1::NearestSeed>,
    unsearched: Vec<u64>,
    /// What the search read.
    pub positions: Positions,
}

/// From similarity to nearness.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    metric: Metric,
    /// Of all that were found: what a dot product is measured by.
    greatest: f64,
}

impl Weights {
    fn of(nearest: &v1::NearestSeeds) -> Result<Self, InputError> {
        let weight = |what, given: Option<f64>| {
            let given = given.unwrap_or(WEIGHT_DEFAULT);
            if (0.0..=1.0).contains(&given) {
                return Ok(given);
            }
            Err(InputError::OutOfRange {
                what,
                actual: given,
                min: 0.0,
                max: 1.0,
            })
        };
        let weights = Self {
            similarity: weight("the weight of similarity", nearest.similarity_weight)?,
            activation: weight("the weight of activation", nearest.activation_weight)?,
        };
        if weights.similarity + weights.activation > 0.0 {
            return Ok(weights);
        }
        Err(InputError::Missing(
            "a weight: those of similarity and activation are both 0",
        ))
    }

    /// Both parts in [0, 1].
    fn combine(self, nearness: f64, activation: f64) -> f64 {
        self.similarity * nearness + self.activation * activation
    }
}

impl Scale {
    /// In [0, 1], greater is nearer.
    fn nearness(self, similarity: f64) -> f64 {
        let nearness = match self.metric {
            Metric::Cosine => similarity,
            Metric::L2 => 1.0 / (1.0 - similarity),
            Metric::Dot if self.greatest > 0.0 => similarity / self.greatest,
            Metric::Dot => 0.0,
        };
        if nearness.is_nan() {
            return 0.0;
        }
        nearness.clamp(0.0, 1.0)
    }
}

impl Hybrid {
    /// Memories that the spread has to answer.
    pub fn pool(&self) -> usize {
        let pool = self.limit.saturating_mul(POOL_FACTOR);
        pool.max(self.limit + self.seeds.len()).min(LIMIT_MAX)
    }

    /// Scores, orders and cuts what the spread gave.
    fn rank(&self, result: &mut v1::SpreadResult, compared: &HashMap<String, ComparedMemory>) {
        let activations = result.activated.iter().map(|one| one.activation);
        let greatest = activations.max().unwrap_or(0).max(1) as f64;
        for one in &mut result.activated {
            let distance = compared.get(&one.id).and_then(|found| found.distance);
            one.similarity = distance.map(|distance| score(self.scale.metric, distance));
            let nearness = one
                .similarity
                .map_or(0.0, |similar| self.scale.nearness(similar));
            let activation = one.activation as f64 / greatest;
            one.combined = Some(self.weights.combine(nearness, activation));
            one.certain_before_next = false;
        }
        let combined = |one: &v1::Activated| one.combined.unwrap_or(0.0);
        result.activated.sort_by(|one, other| {
            combined(other)
                .total_cmp(&combined(one))
                .then_with(|| one.id.cmp(&other.id))
        });
        result.activated.truncate(self.limit);
        result.hybrid = Some(v1::HybridScoring {
            similarity_weight: self.weights.similarity,
            activation_weight: self.weights.activation,
            seeds: self.seeds.clone(),
            unsearched_partitions: self.unsearched.clone(),
        });
    }
}

impl Services {
    /// Finds where a hybrid recall begins, and adds it to the query's seeds.
    pub(super) async fn begin_nearest(
        &self,
        nearest: v1::NearestSeeds,
        query: &mut Query,
        reading: &Reading<'_>,
    ) -> Result<Hybrid, Failure> {
        let weights = Weights::of(&nearest)?;
        let count = match nearest.count {
            0 => COUNT_DEFAULT,
            count => count,
        };
        let seeds_max = SEEDS_MAX.min(RECALL_LIMIT_MAX);
        input::at_most("the nearest", "memories", count as usize, seeds_max)?;
        let effort = nearest.effort;
        input::at_most(
            "the effort",
            "candidates",
            effort as usize,
            SEARCH_EFFORT_MAX,
        )?;
        let config = &reading.space.config;
        let mut positions = Positions::default();
        let model = &nearest.embedding_model;
        let (vector, without) = match nearest.query {
            Some(Near::Vector(vector)) => (compared_with(config, vector, model)?, String::new()),
            Some(Near::Like(id)) => (self.vector_of(reading, &id, &mut positions).await?, id),
            None => return Err(nothing_to_be_near_to().into()),
        };
        let search = RecallQuery {
            vector: vector.clone(),
            limit: count,
            effort,
            filter: query.filter.clone(),
            without,
            with_content: false,
        };
        let places = reading.space.partitions.iter();
        let asked = places.map(|place| {
            let search = Read::Recall(search.clone());
            async move { (place.id, self.ask(reading, *place, search).await) }
        });
        let (mut hits, mut unsearched, mut failed) = (Vec::new(), Vec::new(), None);
        for (partition, read) in join_all(asked).await {
            match read {
                Ok((_, read)) => {
                    positions.note(partition, &read.position);
                    let Answer::Recall(answer) = read.answer else {
                        return Err(unfit("a recall"));
                    };
                    hits.extend(answer.hits);
                }
                Err(failure) => {
                    unsearched.push(partition.0);
                    failed.get_or_insert(failure);
                }
            }
        }
        let is_lost = unsearched.len() == reading.space.partitions.len();
        if let Some(failure) = failed
            && (query.require_complete || is_lost)
        {
            return Err(failure);
        }
        let hits = merged(hits, count as usize);
        let metric = config.metric;
        let scale = Scale {
            metric,
            greatest: hits.first().map_or(0.0, |hit| score(metric, hit.distance)),
        };
        let (mut injected, mut seeds) = (Vec::new(), Vec::new());
        for hit in hits {
            let similarity = score(metric, hit.distance);
            let amount = (scale.nearness(similarity) * ONE as f64).floor() as u64;
            let id = input::memory_id("a memory that was found", &hit.id)?;
            seeds.push(v1::NearestSeed {
                id: hit.id,
                similarity,
                activation: amount as f64 / ONE as f64,
            });
            injected.push((id, amount));
        }
        query.add_seeds(injected.into_iter().filter(|(_, amount)| *amount > 0))?;
        let limit = query.parameters.limit;
        let hybrid = Hybrid {
            vector,
            weights,
            scale,
            limit,
            seeds,
            unsearched,
            positions,
        };
        query.parameters.limit = hybrid.pool();
        Ok(hybrid)
    }

    /// Adds what the spread itself does not know: similarities, the order that follows from them,
    /// and contents.
    pub(super) async fn complete_answer(
        &self,
        reading: &Reading<'_>,
        query: &Query,
        hybrid: Option<&Hybrid>,
        result: &mut v1::SpreadResult,
    ) -> Result<(), Failure> {
        let ids = |result: &v1::SpreadResult| -> Vec<String> {
            let activated = result.activated.iter();
            activated.map(|one| one.id.clone()).collect()
        };
        if let Some(hybrid) = hybrid {
            let asked = CompareQuery {
                vector: hybrid.vector.clone(),
                ids: ids(result),
                with_content: false,
            };
            let compared = self.compare(reading, query, asked).await?;
            hybrid.rank(result, &compared);
        }
        if query.with_content {
            let asked = CompareQuery {
                vector: Vec::new(),
                ids: ids(result),
                with_content: true,
            };
            let mut compared = self.compare(reading, query, asked).await?;
            for one in &mut result.activated {
                one.memory = compared.remove(&one.id).and_then(|found| found.memory);
            }
        }
        Ok(())
    }

    /// By id; without those whose partition does not answer, where losses are allowed.
    async fn compare(
        &self,
        reading: &Reading<'_>,
        query: &Query,
        asked: CompareQuery,
    ) -> Result<HashMap<String, ComparedMemory>, Failure> {
        let places = by_partition(reading.space, &asked.ids)?.into_values();
        let reads = places.map(|(place, ids)| {
            let asked = CompareQuery {
                ids,
                ..asked.clone()
            };
            self.ask(reading, place, Read::Compare(asked))
        });
        let mut compared = HashMap::new();
        for read in join_all(reads).await {
            let read = match read {
                Ok((_, read)) => read,
                Err(failure) if query.require_complete => return Err(failure),
                Err(_) => continue,
            };
            let Answer::Compare(answer) = read.answer else {
                return Err(unfit("a comparison"));
            };
            let memories = answer.memories.into_iter();
            compared.extend(memories.map(|memory| (memory.id.clone(), memory)));
        }
        Ok(compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(similarity: Option<f64>, activation: Option<f64>) -> v1::NearestSeeds {
        v1::NearestSeeds {
            similarity_weight: similarity,
            activation_weight: activation,
            ..Default::default()
        }
    }

    #[test]
    fn weights_are_in_range_and_not_both_zero() {
        let weights = Weights::of(&nearest(None, Some(0.25))).expect("usable");
        assert_eq!((weights.similarity, weights.activation), (0.5, 0.25));
        assert_eq!(weights.combine(1.0, 0.5), 0.625);
        for (similarity, activation) in [(0.0, 0.0), (-0.1, 1.0), (0.5, 1.5), (f64::NAN, 0.5)] {
            assert!(Weights::of(&nearest(Some(similarity), Some(activation))).is_err());
        }
    }

    #[test]
    fn nearness_is_between_zero_and_one_under_every_metric() {
        let scale = |metric, greatest| Scale { metric, greatest };
        let cosine = scale(Metric::Cosine, 0.9);
        assert_eq!([0.8, -0.2].map(|s| cosine.nearness(s)), [0.8, 0.0]);
        // Scores under L2 are negated squared distances.
        let l2 = scale(Metric::L2, -1.0);
        let far = f64::NEG_INFINITY;
        assert_eq!(
            [0.0, -1.0, -3.0, far].map(|s| l2.nearness(s)),
            [1.0, 0.5, 0.25, 0.0]
        );
        let dot = scale(Metric::Dot, 4.0);
        assert_eq!(
            [4.0, 1.0, -2.0, 9.0].map(|s| dot.nearness(s)),
            [1.0, 0.25, 0.0, 1.0]
        );
        assert_eq!(scale(Metric::Dot, -4.0).nearness(-4.0), 0.0);
        let endless = scale(Metric::Dot, f64::INFINITY);
        assert_eq!(endless.nearness(f64::INFINITY), 0.0);
    }

    fn activated(id: &str, activation: u64) -> v1::Activated {
        v1::Activated {
            id: id.into(),
            activation,
            certain_before_next: true,
            ..Default::default()
        }
    }

    fn compared(id: &str, distance: Option<f32>) -> (String, ComparedMemory) {
        let found = ComparedMemory {
            id: id.into(),
            distance,
            memory: None,
        };
        (id.into(), found)
    }

    #[test]
    fn the_combined_score_orders_the_answer() {
        let hybrid = Hybrid {
            vector: vec![1.0],
            weights: Weights {
                similarity: 0.75,
                activation: 0.25,
            },
            scale: Scale {
                metric: Metric::Cosine,
                greatest: 1.0,
            },
            limit: 3,
            seeds: Vec::new(),
            unsearched: vec![9],
            positions: Positions::default(),
        };
        let mut result = v1::SpreadResult {
            activated: vec![
                activated("active", 400),
                activated("near", 100),
                activated("lost", 100),
                activated("far", 1),
            ],
            ..Default::default()
        };
        let known = [
            compared("active", Some(0.5)),
            compared("near", Some(0.0)),
            compared("far", Some(2.0)),
        ];
        hybrid.rank(&mut result, &known.into());
        let got: Vec<_> = result
            .activated
            .iter()
            .map(|one| (one.id.as_str(), one.similarity, one.combined))
            .collect();
        assert_eq!(
            got,
            [
                ("near", Some(1.0), Some(0.75 + 0.25 * 0.25)),
                ("active", Some(0.5), Some(0.75 * 0.5 + 0.25)),
                ("lost", None, Some(0.25 * 0.25)),
            ]
        );
        assert!(result.activated.iter().all(|one| !one.certain_before_next));
        let scoring = result.hybrid.expect("stated");
        assert_eq!(scoring.unsearched_partitions, [9]);
        assert_eq!((hybrid.pool(), scoring.similarity_weight), (12, 0.75));
    }
}
