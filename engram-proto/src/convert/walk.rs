//! A round of a walk between nodes: edges in columns, each name once.

use std::collections::BTreeMap;

use engram_core::types::{HashSlot, MemoryHash, MemoryId, PartitionId, Relation, Unit};
use engram_core::walk::{Ask, Expanded, Heading, WalkEdge};

use super::DecodeError;
use crate::peer::{ExpandAnswer, ExpandQuery};

/// Bytes of a hash.
const HASH: usize = 16;

fn hashes_to_bytes(hashes: &[MemoryHash]) -> bytes::Bytes {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

fn hashes(what: &'static str, bytes: &[u8]) -> Result<Vec<MemoryHash>, DecodeError> {
    let chunks = bytes.chunks(HASH);
    chunks
        .map(|chunk| super::fixed(what, chunk).map(MemoryHash))
        .collect()
}

impl From<&Ask> for ExpandQuery {
    /// Without relations, filter and time, which are the caller's.
    fn from(ask: &Ask) -> Self {
        Self {
            own: hashes_to_bytes(&ask.own),
            out_edges: ask.out_edges,
            into: hashes_to_bytes(&ask.into),
            edges_max: u32::try_from(ask.edges_max).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }
}

/// What `partition` is asked.
///
/// # Errors
/// When a hash is incomplete.
pub fn ask_from_peer(query: &ExpandQuery, partition: PartitionId) -> Result<Ask, DecodeError> {
    Ok(Ask {
        partition,
        own: hashes("the hashes of own memories", &query.own)?,
        out_edges: query.out_edges,
        into: hashes("the hashes of targets", &query.into)?,
        edges_max: query.edges_max as usize,
    })
}

/// The answer to `ask`.
#[must_use]
pub fn expanded_to_peer(ask: &Ask, expanded: &Expanded) -> ExpandAnswer {
    let places: [BTreeMap<MemoryHash, u32>; 2] = {
        let own = ask.own.iter().copied().zip(0..);
        let into = ask.into.iter().copied().zip(ask.own.len() as u32..);
        [own.collect(), into.collect()]
    };
    let mut numbers: BTreeMap<&Relation, u32> = BTreeMap::new();
    let id = |id: &Option<MemoryId>| id.as_ref().map(|id| id.as_str().to_owned());
    let mut answer = ExpandAnswer {
        ids: expanded
            .ids
            .iter()
            .map(|one| id(one).unwrap_or_default())
            .collect(),
        cut: expanded.is_cut,
        ..ExpandAnswer::default()
    };
    let mut others = Vec::with_capacity(expanded.edges.len() * HASH);
    for edge in &expanded.edges {
        let places = &places[usize::from(edge.heading == Heading::In)];
        let Some(place) = places.get(&edge.at) else {
            continue;
        };
        let next = numbers.len() as u32;
        let number = *numbers.entry(&edge.relation).or_insert(next);
        if number == next && answer.relations.len() as u32 == next {
            answer.relations.push(edge.relation.as_str().to_owned());
        }
        answer.at.push(*place);
        others.extend(edge.other.0);
        if let Heading::Out(slot) = edge.heading {
            answer.slot.push(u32::from(slot.0));
        }
        answer.relation.push(number);
        answer.weight.push(edge.weight.bits());
    }
    answer.other = others.into();
    answer
}

/// What another node answered to `ask`.
///
/// # Errors
/// When its columns do not fit together.
pub fn expanded_from_peer(ask: &Ask, answer: &ExpandAnswer) -> Result<Expanded, DecodeError> {
    let id = |id: &String| -> Result<Option<MemoryId>, DecodeError> {
        if id.is_empty() {
            return Ok(None);
        }
        let what = "the id of a memory on a walk";
        let id = MemoryId::new(id.as_str()).map_err(|why| DecodeError::MemoryId { what, why })?;
        Ok(Some(id))
    };
    let relation = |name: &String| {
        Relation::new(name.as_str()).ok_or_else(|| DecodeError::Relation(name.clone()))
    };
    let relations: Vec<Relation> = answer
        .relations
        .iter()
        .map(relation)
        .collect::<Result<_, _>>()?;
    let others = hashes("the hashes of neighbours", &answer.other)?;
    let edges = answer.at.len();
    if [others.len(), answer.relation.len(), answer.weight.len()] != [edges; 3] {
        return Err(DecodeError::Missing("a column of the edges of a walk"));
    }
    let mut slots = answer.slot.iter();
    let mut expanded = Expanded {
        ids: answer.ids.iter().map(id).collect::<Result<_, _>>()?,
        edges: Vec::with_capacity(edges),
        is_cut: answer.cut,
    };
    for (index, other) in others.into_iter().enumerate() {
        let place = answer.at[index];
        let out_of_range = |what, actual| DecodeError::OutOfRange { what, actual };
        let missing = || out_of_range("the place of a memory on a walk", u64::from(place));
        let own = ask.own.get(place as usize);
        let (at, heading) = match own {
            Some(at) => {
                let slot = slots
                    .next()
                    .ok_or(DecodeError::Missing("a slot of a walk"))?;
                let slot = u16::try_from(*slot)
                    .map_err(|_| out_of_range("a slot of a walk", u64::from(*slot)))?;
                (*at, Heading::Out(HashSlot(slot)))
            }
            None => {
                let at = ask.into.get(place as usize - ask.own.len());
                (*at.ok_or_else(missing)?, Heading::In)
            }
        };
        let number = answer.relation[index];
        let relation = relations.get(number as usize);
        let bits = answer.weight[index];
        expanded.edges.push(WalkEdge {
            at,
            other,
            heading,
            relation: relation
                .ok_or_else(|| out_of_range("the number of a relation", u64::from(number)))?
                .clone(),
            weight: Unit::from_bits(bits).ok_or_else(|| out_of_range("a weight", bits))?,
        });
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> MemoryHash {
        MemoryHash([byte; HASH])
    }

    fn example() -> (Ask, Expanded) {
        let ask = Ask {
            partition: PartitionId(3),
            own: vec![hash(1), hash(2)],
            out_edges: true,
            into: vec![hash(1), hash(9)],
            edges_max: 10,
        };
        let edge = |at, other, heading, relation: &str, weight| WalkEdge {
            at: hash(at),
            other: hash(other),
            heading,
            relation: Relation::new(relation).expect("a relation"),
            weight: Unit::from_bits(weight).expect("in range"),
        };
        let edges = vec![
            edge(2, 7, Heading::Out(HashSlot(16_383)), "is", 1 << 32),
            edge(1, 8, Heading::Out(HashSlot(0)), "near", 5),
            edge(1, 2, Heading::In, "is", 1),
            edge(9, 2, Heading::In, "near", 0),
        ];
        let expanded = Expanded {
            ids: vec![Some(MemoryId::new("a").expect("an id")), None],
            edges,
            is_cut: true,
        };
        (ask, expanded)
    }

    #[test]
    fn rounds_come_back_as_they_went() {
        let (ask, expanded) = example();
        let query = ExpandQuery::from(&ask);
        assert_eq!(ask_from_peer(&query, PartitionId(3)), Ok(ask.clone()));
        let answer = expanded_to_peer(&ask, &expanded);
        assert_eq!(answer.relations, ["is", "near"]);
        assert_eq!(expanded_from_peer(&ask, &answer), Ok(expanded));
    }

    #[test]
    fn answers_that_do_not_fit_together_are_refused() {
        let (ask, expanded) = example();
        let refused = |change: fn(&mut ExpandAnswer)| {
            let mut answer = expanded_to_peer(&ask, &expanded);
            change(&mut answer);
            expanded_from_peer(&ask, &answer).is_err()
        };
        assert!(refused(|answer| answer.at[0] = 4));
        assert!(refused(|answer| answer.at.truncate(1)));
        assert!(refused(|answer| answer.relation[0] = 2));
        assert!(refused(|answer| answer.weight[0] = u64::MAX));
        assert!(refused(|answer| answer.slot[0] = 70_000));
        assert!(refused(|answer| answer.slot.clear()));
        assert!(refused(|answer| answer.other = vec![0; 63].into()));
        assert!(refused(|answer| answer.relations[0] = String::new()));
    }
}
