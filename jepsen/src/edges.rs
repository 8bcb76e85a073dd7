//! Checker: what associations are worth after a split, from the operations that were acknowledged.
//!
//! An edge is changed on each side of a split by one client, in order. What holds then: a removal
//! takes what its side had acknowledged before it, and what all had before the split; it takes
//! nothing that the other side acknowledged meanwhile. Weights and confidences are multiples of
//! 1/1024, so every number here is exact.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::Told;

/// Weights and confidences are given in this many parts.
pub const PARTS: u32 = 1_024;

/// Who changed an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Side {
    /// Before the split, seen by all when it began.
    Before,
    One,
    Other,
}

/// One change of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Change {
    /// In [`PARTS`].
    Contribute {
        weight: u32,
        confidence: u32,
    },
    Remove,
}

/// A change, and what its client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operation {
    pub edge: String,
    pub side: Side,
    pub change: Change,
    pub told: Told,
}

/// An edge as a replica shows it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Found {
    pub weight: f64,
    pub evidence: f64,
}

/// What is wrong with what a replica shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Anomaly {
    Differs {
        edge: String,
        expected: Option<Found>,
        found: Option<Found>,
    },
    /// Nobody made it.
    FromNowhere { edge: String },
}

/// What the history makes of each edge. Edges with an operation of unknown outcome are left out:
/// the second list names them.
#[must_use]
pub fn expected(history: &[Operation]) -> (BTreeMap<String, Option<Found>>, Vec<String>) {
    let mut edges: BTreeMap<&str, Edge> = BTreeMap::new();
    for operation in history {
        edges.entry(&operation.edge).or_default().take(operation);
    }
    let (mut known, mut unknown) = (BTreeMap::new(), Vec::new());
    for (name, edge) in edges {
        match edge.is_open {
            true => unknown.push(name.to_owned()),
            false => drop(known.insert(name.to_owned(), edge.value())),
        }
    }
    (known, unknown)
}

/// Judges what one replica shows.
#[must_use]
pub fn check(history: &[Operation], found: &BTreeMap<String, Found>) -> Vec<Anomaly> {
    let (known, unknown) = expected(history);
    let differs = known.iter().filter_map(|(edge, expected)| {
        let found = found.get(edge).copied();
        (*expected != found).then(|| Anomaly::Differs {
            edge: edge.clone(),
            expected: *expected,
            found,
        })
    });
    let strange = found
        .keys()
        .filter(|edge| !known.contains_key(*edge) && !unknown.contains(edge));
    let strange = strange.map(|edge| Anomaly::FromNowhere { edge: edge.clone() });
    differs.chain(strange).collect()
}

#[derive(Default)]
struct Edge {
    /// Live contributions of each side: weight and confidence.
    live: BTreeMap<Side, Vec<(u32, u32)>>,
    is_open: bool,
}

impl Edge {
    fn take(&mut self, operation: &Operation) {
        match operation.told {
            Told::Refused => return,
            Told::Unknown => {
                self.is_open = true;
                return;
            }
            Told::Acknowledged => {}
        }
        match operation.change {
            Change::Contribute { weight, confidence } => {
                let of_side = self.live.entry(operation.side).or_default();
                of_side.push((weight, confidence));
            }
            Change::Remove => {
                self.live.remove(&Side::Before);
                self.live.remove(&operation.side);
            }
        }
    }

    fn value(&self) -> Option<Found> {
        let live = || self.live.values().flatten();
        live().next()?;
        let parts = u128::from(PARTS);
        // In units of 1 / PARTS^2.
        let sum_wc: u128 = live()
            .map(|(weight, confidence)| u128::from(*weight) * u128::from(*confidence))
            .sum();
        let sum_c: u128 = live()
            .map(|(_, confidence)| u128::from(*confidence) * parts)
            .sum();
        // Divided once, down to a multiple of 2^-32.
        let bits = (sum_wc << 32).checked_div(sum_c).unwrap_or(0);
        Some(Found {
            weight: bits as f64 / 4_294_967_296.0,
            evidence: sum_c as f64 / (parts * parts) as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(side: Side, change: Change, told: Told) -> Operation {
        let edge = "e".to_owned();
        Operation {
            edge,
            side,
            change,
            told,
        }
    }

    fn contribute(side: Side, weight: u32) -> Operation {
        let confidence = 512;
        operation(
            side,
            Change::Contribute { weight, confidence },
            Told::Acknowledged,
        )
    }

    fn remove(side: Side) -> Operation {
        operation(side, Change::Remove, Told::Acknowledged)
    }

    fn worth(history: &[Operation]) -> Option<Found> {
        expected(history).0["e"]
    }

    #[test]
    fn a_removal_takes_what_its_side_had_seen_and_nothing_else() {
        let found = |weight, evidence| Some(Found { weight, evidence });
        let before = contribute(Side::Before, 1_024);
        let (one, other) = (contribute(Side::One, 512), contribute(Side::Other, 256));
        let all = [before.clone(), one.clone(), other.clone()];
        assert_eq!(
            worth(&all),
            found((1.0 + 0.5 + 0.25) / 3.0 - f64_floor(), 1.5)
        );
        let removed = [before, one.clone(), other, remove(Side::One)];
        assert_eq!(worth(&removed), found(0.25, 0.5));
        let again = [&removed[..], &[remove(Side::Other), one]].concat();
        assert_eq!(worth(&again), found(0.5, 0.5));
        assert_eq!(worth(&[&again[..], &[remove(Side::One)]].concat()), None);
    }

    /// 1.75 / 3 is no multiple of 2^-32.
    fn f64_floor() -> f64 {
        let exact: f64 = 1.75 / 3.0;
        exact - (exact * 4_294_967_296.0).floor() / 4_294_967_296.0
    }

    #[test]
    fn lost_kept_doubled_and_invented_evidence_is_found_out() {
        let history = [contribute(Side::One, 512), contribute(Side::Other, 512)];
        let shows = |evidence| {
            BTreeMap::from([(
                "e".to_owned(),
                Found {
                    weight: 0.5,
                    evidence,
                },
            )])
        };
        assert_eq!(check(&history, &shows(1.0)), []);
        for wrong in [0.5, 1.5] {
            assert_eq!(check(&history, &shows(wrong)).len(), 1);
        }
        assert_eq!(check(&history, &BTreeMap::new()).len(), 1);
        assert_eq!(check(&[], &shows(1.0)).len(), 1);
        let gone = [&history[..], &[remove(Side::One), remove(Side::Other)]].concat();
        assert_eq!(check(&gone, &BTreeMap::new()), []);
        assert_eq!(check(&gone, &shows(0.5)).len(), 1);
    }

    #[test]
    fn refused_changes_count_for_nothing_and_unknown_ones_leave_the_edge_open() {
        let mut history = vec![contribute(Side::One, 512)];
        history.push(operation(Side::One, Change::Remove, Told::Refused));
        assert!(worth(&history).is_some());
        history.push(operation(Side::One, Change::Remove, Told::Unknown));
        let (known, unknown) = expected(&history);
        assert!(known.is_empty() && unknown == ["e"]);
        assert_eq!(check(&history, &BTreeMap::new()), []);
    }
}
