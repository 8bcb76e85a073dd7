//! Hebbian reinforcement: what carried the activation of an answer is strengthened, if the query
//! asks for it.
//!
//! A contribution of weight 1 for each association on the strongest path to a memory of the answer,
//! accepted by one replica alone; bounded per query. It never fails the query: the answer says how
//! many associations took it.

use std::collections::BTreeMap;

use engram_core::command::{Associate, Op};
use engram_core::spread::Activated;
use engram_core::types::{MemoryId, PartitionId, Relation, Unit};
use engram_proto::v1;

use super::super::Services;
use super::super::failure::InputError;
use super::super::input::{self, Requester};
use super::super::writes::{home_of, write_of};
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::Deadline;

/// Confidence for the association that carried most, where the query names none: 0.05.
const CONFIDENCE_DEFAULT: u64 = (1 << 32) / 20;
const EDGES_DEFAULT: u32 = 32;
const EDGES_MAX: usize = 1_024;

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reinforcement {
    pub confidence: Unit,
    pub edges_max: usize,
}

impl Reinforcement {
    /// # Errors
    /// When a number is out of range.
    pub fn of(message: &v1::Reinforcement) -> Result<Self, InputError> {
        let default = Unit::from_bits(CONFIDENCE_DEFAULT).unwrap_or(Unit::ONE);
        let confidence = input::unit_or("the reinforcement", message.confidence, default)?;
        if confidence == Unit::ZERO {
            return Err(InputError::OutOfRange {
                what: "the reinforcement",
                actual: message.confidence.unwrap_or(0.0),
                min: Unit::from_bits(1).unwrap_or(Unit::ONE).to_f64(),
                max: 1.0,
            });
        }
        let edges_max = match message.limit {
            0 => EDGES_DEFAULT,
            limit => limit,
        } as usize;
        input::at_most("the reinforcement", "associations", edges_max, EDGES_MAX)?;
        Ok(Self {
            confidence,
            edges_max,
        })
    }

    /// The contributions: each association once, those first that carried most.
    fn ops(self, activated: &[Activated]) -> Vec<Op> {
        let mut carried: BTreeMap<(&MemoryId, &MemoryId, &Relation), u64> = BTreeMap::new();
        for memory in activated {
            for pair in memory.path.windows(2) {
                let [from, to] = pair else { continue };
                let Some(relation) = &to.relation else {
                    continue;
                };
                let most = carried.entry((&from.id, &to.id, relation)).or_default();
                *most = to.share.max(*most);
            }
        }
        let mut carried: Vec<_> = carried.into_iter().collect();
        // Stable: those that carried the same stay in the order of their names.
        carried.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
        carried.truncate(self.edges_max);
        let most = carried.first().map_or(1, |(_, share)| (*share).max(1));
        let op = |((from, to, relation), share): ((&MemoryId, &MemoryId, &Relation), u64)| {
            let bits = u128::from(self.confidence.bits()) * u128::from(share) / u128::from(most);
            let confidence = Unit::from_bits((bits as u64).max(1)).unwrap_or(Unit::ONE);
            Op::Associate(Associate {
                from: from.clone(),
                to: to.clone(),
                relation: relation.clone(),
                weight: Unit::ONE,
                confidence,
            })
        };
        carried.into_iter().map(op).collect()
    }
}

impl Services {
    /// How many associations took it.
    pub(super) async fn reinforce(
        &self,
        space: &SpaceRecord,
        (reinforcement, requester): (Reinforcement, Requester),
        activated: &[Activated],
        deadline: Deadline,
    ) -> u32 {
        let mut by_place: BTreeMap<PartitionId, (PartitionRecord, Vec<(u32, Op)>)> =
            BTreeMap::new();
        for op in reinforcement.ops(activated) {
            let place = home_of(space, &op);
            let (_, ops) = by_place
                .entry(place.id)
                .or_insert_with(|| (place, Vec::new()));
            // A request counts once for each edge, so all of them may have one index, whatever
            // the order in which a repeated query finds them.
            ops.push((0, op));
        }
        let mut reinforced = 0;
        for (place, ops) in by_place.into_values() {
            let count = ops.len() as u32;
            let write = write_of(requester, ops);
            match self.router().write_local(place, &write, deadline).await {
                Ok(_) => reinforced += count,
                Err(error) => {
                    tracing::debug!(%error, "a spread reinforced less than it was asked to")
                }
            }
        }
        metrics::counter!("engram_spread_reinforced_total").increment(u64::from(reinforced));
        reinforced
    }
}

#[cfg(test)]
mod tests {
    use engram_core::spread::PathStep;

    use super::*;

    fn step(id: &str, relation: &str, share: u64) -> PathStep {
        let id = MemoryId::new(id).unwrap();
        PathStep {
            memory: id.hash(),
            id,
            relation: Relation::new(relation),
            share,
        }
    }

    fn activated(path: Vec<PathStep>) -> Activated {
        let last = path.last().unwrap();
        Activated {
            memory: last.memory,
            id: last.id.clone(),
            total: last.share,
            path,
        }
    }

    fn names(ops: &[Op]) -> Vec<(String, String, u64)> {
        let name = |op: &Op| match op {
            Op::Associate(edge) => (
                edge.from.to_string(),
                edge.to.to_string(),
                edge.confidence.bits(),
            ),
            other => panic!("{other:?}"),
        };
        ops.iter().map(name).collect()
    }

    #[test]
    fn what_carried_most_gets_most_and_each_association_once() {
        let seed = || step("seed", "", 100);
        let answer = [
            activated(vec![seed()]),
            activated(vec![seed(), step("a", "r", 40)]),
            activated(vec![seed(), step("a", "r", 40), step("b", "r", 10)]),
            activated(vec![seed(), step("c", "r", 20)]),
        ];
        let message = v1::Reinforcement {
            confidence: Some(0.5),
            limit: 2,
            request: None,
        };
        let two = Reinforcement::of(&message).unwrap();
        let expected = [
            ("seed".into(), "a".into(), 1 << 31),
            ("seed".into(), "c".into(), 1 << 30),
        ];
        assert_eq!(names(&two.ops(&answer)), expected);
        let all = Reinforcement {
            edges_max: 9,
            ..two
        };
        assert_eq!(
            names(&all.ops(&answer))[2],
            ("a".into(), "b".into(), 1 << 29)
        );
        assert!(all.ops(&answer[..1]).is_empty());
    }

    #[test]
    fn what_is_not_said_has_a_default_and_what_cannot_be_is_refused() {
        let default = Reinforcement::of(&v1::Reinforcement::default()).unwrap();
        assert_eq!(default.edges_max, 32);
        assert_eq!(default.confidence.bits(), CONFIDENCE_DEFAULT);
        for confidence in [0.0, -0.1, 1.1, f64::NAN] {
            let message = v1::Reinforcement {
                confidence: Some(confidence),
                ..Default::default()
            };
            assert!(Reinforcement::of(&message).is_err(), "{confidence}");
        }
        let many = v1::Reinforcement {
            limit: 1_025,
            ..Default::default()
        };
        assert!(Reinforcement::of(&many).is_err());
    }
}
