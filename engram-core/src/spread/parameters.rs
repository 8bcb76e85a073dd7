//! The rules of one query, the same for every participant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::types::{Decay, Relation, Unit};

/// How a memory's activation is divided over its out-edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Normalization {
    /// `floor(x d w / sum w)`: what a memory sends is at most `x d`.
    #[default]
    Fan,
    /// `floor(x d w)` on each edge.
    None,
}

/// Everything that shapes a spread besides the graph and the seeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpreadParameters {
    /// How often activation travels along edges; 0 returns the seeds.
    pub hops: u32,
    /// Share of a memory's activation that travels on.
    pub decay: Unit,
    /// How weights fade with age, for the adjacency; `None`: as the space says.
    pub edge_decay: Option<Decay>,
    /// Activation below which a (memory, hop) neither counts nor sends.
    pub threshold: u64,
    pub normalization: Normalization,
    /// Relations that are followed; `None` follows all.
    pub relations: Option<BTreeSet<Relation>>,
    /// Factor on the weights of a relation; 1 where absent.
    pub relation_factors: BTreeMap<Relation, Unit>,
    /// Factor on what reaches a memory that counted in an earlier hop.
    pub revisit: Unit,
    /// A memory that sent in hop s does not send in hops s + 1 to s + this; it still counts.
    pub refractory_hops: u32,
    /// Edges of a memory that are followed: the greatest shares, then the least target hash, then
    /// the least relation. The shares of the others are lost.
    pub fan_limit: Option<u32>,
    /// Record predecessors, so that paths can be told.
    pub explain: bool,
    /// Distinct memories, in all partitions together, above which no further hop is processed.
    pub activated_max: usize,
    /// Memories returned, the most activated first.
    pub limit: usize,
}

/// Why parameters are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpreadParametersError {
    #[error("{what} is {actual}, at most {max} is allowed")]
    TooLarge {
        what: &'static str,
        actual: u64,
        max: u64,
    },
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
}

impl Default for SpreadParameters {
    /// Three hops, half of the activation travels on, everything else as plain as can be.
    fn default() -> Self {
        Self {
            hops: 3,
            decay: Unit::from_bits(1 << 31).unwrap_or(Unit::ONE),
            edge_decay: None,
            threshold: 0,
            normalization: Normalization::Fan,
            relations: None,
            relation_factors: BTreeMap::new(),
            revisit: Unit::ONE,
            refractory_hops: 0,
            fan_limit: None,
            explain: false,
            activated_max: limits::ACTIVATED_MAX,
            limit: 100,
        }
    }
}

impl SpreadParameters {
    /// # Errors
    /// The first parameter that is out of its range. What came over the wire is checked too.
    pub fn check(&self) -> Result<(), SpreadParametersError> {
        at_most("hops", u64::from(self.hops), u64::from(limits::HOPS_MAX))?;
        at_most("decay", self.decay.bits(), Unit::ONE.bits())?;
        at_most("revisit factor", self.revisit.bits(), Unit::ONE.bits())?;
        for factor in self.relation_factors.values() {
            at_most("relation factor", factor.bits(), Unit::ONE.bits())?;
        }
        let listed = self.relations.as_ref().map_or(0, BTreeSet::len);
        at_most(
            "relation list",
            listed as u64,
            limits::SPREAD_RELATIONS_MAX as u64,
        )?;
        let factors = self.relation_factors.len() as u64;
        at_most(
            "relation factor list",
            factors,
            limits::SPREAD_RELATIONS_MAX as u64,
        )?;
        at_most(
            "activated_max",
            self.activated_max as u64,
            limits::ACTIVATED_MAX as u64,
        )?;
        if self.fan_limit == Some(0) {
            return Err(SpreadParametersError::Zero { what: "fan limit" });
        }
        if self.activated_max == 0 {
            return Err(SpreadParametersError::Zero {
                what: "activated_max",
            });
        }
        Ok(())
    }

    /// The weight that counts for an edge of this relation; `None` when it is not followed.
    pub(super) fn effective_weight(&self, relation: &Relation, weight: Unit) -> Option<Unit> {
        if self
            .relations
            .as_ref()
            .is_some_and(|followed| !followed.contains(relation))
        {
            return None;
        }
        Some(
            self.relation_factors
                .get(relation)
                .map_or(weight, |factor| weight.times(*factor)),
        )
    }
}

fn at_most(what: &'static str, actual: u64, max: u64) -> Result<(), SpreadParametersError> {
    if actual <= max {
        Ok(())
    } else {
        Err(SpreadParametersError::TooLarge { what, actual, max })
    }
}
