//! From a client's spread request to what engram-core runs.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::limits::{ACTIVATED_MAX, RECALL_LIMIT_MAX, SEEDS_MAX};
use engram_core::spread::{
    INJECTED_MAX, Normalization, ONE, Seed, SpreadMode, SpreadParameters, check_rules,
};
use engram_core::types::{MemoryHash, MemoryId, Unit};
use engram_proto::convert::{DecodeError, decay_from_api};
use engram_proto::v1;

use super::super::failure::{Failure, InputError};
use super::super::input;
use super::reinforce::Reinforcement;

const HOPS_DEFAULT: u32 = 3;
const LIMIT_DEFAULT: u32 = 100;
/// Memories that a spread returns.
pub const LIMIT_MAX: usize = 10_000;
/// Greatest activation of a seed and greatest threshold, in the unit of the seeds.
const ACTIVATION_MAX: f64 = 1_048_576.0;

/// A spread that can be run.
pub struct Query {
    pub parameters: SpreadParameters,
    pub filter: String,
    pub mode: SpreadMode,
    /// A partition that cannot be reached fails the query.
    pub require_complete: bool,
    pub with_content: bool,
    pub seeds: Vec<Seed>,
    /// The seeds' ids, to name those that are missing.
    pub ids: BTreeMap<MemoryHash, MemoryId>,
    pub reinforcement: Option<Reinforcement>,
    /// The answer tells the strongest paths.
    pub shows_paths: bool,
}

/// # Errors
/// The first thing that the request says and that cannot be.
pub fn query(request: &v1::SpreadRequest) -> Result<Query, Failure> {
    let mode = mode(request)?;
    let reinforcement = request.reinforcement.as_ref();
    let reinforcement = reinforcement.map(Reinforcement::of).transpose()?;
    if reinforcement.is_some() && mode != SpreadMode::Exact {
        return Err(InputError::ReinforcedAsync.into());
    }
    input::filter(&request.filter)?;
    if request.seeds.is_empty() && request.nearest.is_none() {
        return Err(InputError::Missing("the seeds").into());
    }
    input::at_most("the seeds", "seeds", request.seeds.len(), SEEDS_MAX)?;
    let seed = |seed: &v1::Seed| {
        let id = input::memory_id("a seed", &seed.id)?;
        let amount = amount("a seed's activation", seed.activation.unwrap_or(1.0))?;
        Ok::<_, InputError>((id, amount))
    };
    let seeds: Vec<_> = request.seeds.iter().map(seed).collect::<Result<_, _>>()?;
    let mut parameters = parameters(request)?;
    // What is strengthened is found along the paths.
    parameters.explain |= reinforcement.is_some();
    if let SpreadMode::Async { .. } = mode {
        check_rules(&parameters).map_err(InputError::from)?;
    }
    let mut query = Query {
        parameters,
        filter: request.filter.clone(),
        mode,
        require_complete: request.require_complete,
        with_content: request.with_content,
        seeds: Vec::new(),
        ids: BTreeMap::new(),
        reinforcement,
        shows_paths: request.explain,
    };
    query.add_seeds(seeds)?;
    Ok(query)
}

impl Query {
    /// Adds memories to start from.
    ///
    /// # Errors
    /// When there are too many, or more than `async` can account for.
    pub fn add_seeds(
        &mut self,
        seeds: impl IntoIterator<Item = (MemoryId, u64)>,
    ) -> Result<(), InputError> {
        for (id, amount) in seeds {
            self.seeds.push(Seed {
                memory: id.hash(),
                slot: id.hash_slot(),
                amount,
            });
            self.ids.insert(id.hash(), id);
        }
        input::at_most("the seeds", "seeds", self.seeds.len(), SEEDS_MAX)?;
        let amounts = self.seeds.iter().map(|seed| u128::from(seed.amount));
        let injected: u128 = amounts.sum();
        if self.mode != SpreadMode::Exact && injected > u128::from(INJECTED_MAX) {
            return Err(InputError::OutOfRange {
                what: "the sum of the seeds in async mode",
                actual: injected as f64 / ONE as f64,
                min: 0.0,
                max: (INJECTED_MAX / ONE) as f64,
            });
        }
        Ok(())
    }
}

fn mode(request: &v1::SpreadRequest) -> Result<SpreadMode, InputError> {
    let cut_off = amount("the cut-off", request.cut_off)?;
    match v1::SpreadMode::try_from(request.mode) {
        Ok(v1::SpreadMode::Unspecified | v1::SpreadMode::Exact) if cut_off > 0 => {
            Err(InputError::CutOff)
        }
        Ok(v1::SpreadMode::Unspecified | v1::SpreadMode::Exact) => Ok(SpreadMode::Exact),
        Ok(v1::SpreadMode::Async) => Ok(SpreadMode::Async { cut_off }),
        Err(_) => Err(InputError::Decode(DecodeError::NotUnderstood("the mode"))),
    }
}

fn parameters(request: &v1::SpreadRequest) -> Result<SpreadParameters, InputError> {
    let normalization = match v1::Normalization::try_from(request.normalization) {
        Ok(v1::Normalization::Unspecified | v1::Normalization::Fan) => Normalization::Fan,
        Ok(v1::Normalization::None) => Normalization::None,
        Err(_) => return Err(DecodeError::NotUnderstood("the normalization").into()),
    };
    let relations = request.relations.iter().map(|name| input::relation(name));
    let relations: BTreeSet<_> = relations.collect::<Result<_, _>>()?;
    let factor = |(name, factor): (&String, &f64)| {
        Ok::<_, InputError>((
            input::relation(name)?,
            input::unit("a relation's factor", Some(*factor))?,
        ))
    };
    let half = Unit::from_bits(ONE / 2).unwrap_or(Unit::ONE);
    let parameters = SpreadParameters {
        hops: if request.hops == 0 {
            HOPS_DEFAULT
        } else {
            request.hops
        },
        decay: input::unit_or("the decay", request.decay, half)?,
        edge_decay: request
            .edge_decay
            .map(|decay| decay_from_api(Some(decay)))
            .transpose()?,
        threshold: amount("the threshold", request.threshold)?,
        normalization,
        relations: (!relations.is_empty()).then_some(relations),
        relation_factors: request
            .relation_factors
            .iter()
            .map(factor)
            .collect::<Result<_, _>>()?,
        revisit: input::unit("the revisit factor", request.revisit_factor)?,
        refractory_hops: request.refractory_hops,
        fan_limit: (request.fan_limit != 0).then_some(request.fan_limit),
        explain: request.explain,
        activated_max: ACTIVATED_MAX,
        limit: if request.limit == 0 {
            LIMIT_DEFAULT
        } else {
            request.limit
        } as usize,
    };
    let limit_max = if request.with_content {
        RECALL_LIMIT_MAX
    } else {
        LIMIT_MAX
    };
    input::at_most("the limit", "memories", parameters.limit, limit_max)?;
    parameters.check()?;
    Ok(parameters)
}

/// Fixed-point activation, rounded down.
fn amount(what: &'static str, value: f64) -> Result<u64, InputError> {
    if (0.0..=ACTIVATION_MAX).contains(&value) {
        Ok((value * ONE as f64).floor() as u64)
    } else {
        Err(InputError::OutOfRange {
            what,
            actual: value,
            min: 0.0,
            max: ACTIVATION_MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::Decay;

    use super::*;

    fn request() -> v1::SpreadRequest {
        let seed = v1::Seed {
            id: "a".into(),
            activation: None,
        };
        v1::SpreadRequest {
            seeds: vec![seed],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let query = query(&request()).expect("a usable request");
        assert_eq!(query.parameters, SpreadParameters::default());
        assert_eq!(query.seeds[0].amount, ONE);
        assert!(query.reinforcement.is_none() && !query.shows_paths);
    }

    #[test]
    fn a_query_may_read_decay_its_own_way_and_strengthen_what_it_followed() {
        let mut request = request();
        request.edge_decay = Some(v1::Decay::default());
        request.reinforcement = Some(v1::Reinforcement::default());
        let query = query(&request).expect("a usable request");
        assert_eq!(query.parameters.edge_decay, Some(Decay::None));
        assert!(query.parameters.explain && !query.shows_paths);
        assert!(query.reinforcement.is_some());
    }

    #[test]
    fn impossible_spreads_are_refused() {
        let refused = |change: fn(&mut v1::SpreadRequest)| {
            let mut request = request();
            change(&mut request);
            query(&request).is_err()
        };
        assert!(refused(|r| r.seeds.clear()));
        assert!(refused(|r| r.seeds = vec![r.seeds[0].clone(); 2_000]));
        assert!(refused(|r| r.seeds[0].id.clear()));
        assert!(refused(|r| r.seeds[0].activation = Some(f64::NAN)));
        assert!(refused(|r| r.seeds[0].activation = Some(-1.0)));
        assert!(refused(|r| r.hops = 1_000));
        assert!(refused(|r| r.decay = Some(1.5)));
        assert!(refused(|r| r.threshold = -0.1));
        assert!(refused(|r| r.relations = vec![String::new()]));
        assert!(refused(|r| r.filter = "(((".into()));
        assert!(refused(|r| r.mode = 99));
        assert!(refused(|r| r.cut_off = 0.1));
        assert!(refused(|r| r.limit = u32::MAX));
        assert!(refused(|r| {
            let law = v1::decay::Law::Exponential(v1::decay::Exponential {
                half_life_millis: 0,
            });
            r.edge_decay = Some(v1::Decay { law: Some(law) });
        }));
    }

    #[test]
    fn async_takes_linear_rules_alone() {
        let asynchronous = |change: fn(&mut v1::SpreadRequest)| {
            let mut request = request();
            request.mode = v1::SpreadMode::Async.into();
            change(&mut request);
            query(&request)
        };
        let taken = asynchronous(|r| r.cut_off = 0.5).expect("linear rules");
        let cut_off = ONE / 2;
        assert_eq!(taken.mode, SpreadMode::Async { cut_off });
        assert!(asynchronous(|r| r.threshold = 0.1).is_err());
        assert!(asynchronous(|r| r.fan_limit = 3).is_err());
        assert!(asynchronous(|r| r.explain = true).is_err());
        assert!(asynchronous(|r| r.reinforcement = Some(v1::Reinforcement::default())).is_err());
        assert!(asynchronous(|r| r.seeds[0].activation = Some(1e6)).is_ok());
        assert!(
            asynchronous(|r| {
                r.seeds[0].activation = Some(1e6);
                r.seeds = vec![r.seeds[0].clone(); 400];
            })
            .is_err()
        );
    }
}
