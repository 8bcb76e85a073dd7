//! How the workloads write evidence so that a sum tells who contributed to it, and how the judges
//! read it back.
//!
//! Contribution number k to an edge has the confidence 4^k (in units of 2^-32), so each has two
//! bits of the sum of confidences to itself: 0 says that it is not in the sum, 1 that it is, 2 or 3
//! that it was counted more than once. An edge takes 16 of them; then the workload goes on to a
//! fresh relation.

use std::collections::BTreeMap;

use engram_core::types::Unit;

use crate::history::{EdgeName, EdgeSeen, Op, Record};

/// Contributions that one edge can tell apart.
pub const CONTRIBUTIONS_MAX: u32 = 16;

/// The confidence of an edge's contribution number `number`, in units of 2^-32.
#[must_use]
pub fn confidence(number: u32) -> u64 {
    assert!(
        number < CONTRIBUTIONS_MAX,
        "an edge tells 16 contributions apart"
    );
    1 << (2 * number)
}

/// How often each contribution is in a sum of confidences.
#[must_use]
pub fn counts(evidence: u64) -> [u8; CONTRIBUTIONS_MAX as usize] {
    std::array::from_fn(|number| ((evidence >> (2 * number)) & 3) as u8)
}

/// What was asked for about one edge, in the order of the history.
#[derive(Default)]
pub struct EdgeStory<'a> {
    /// By their number.
    pub contributions: BTreeMap<u32, Contribution<'a>>,
    /// Dissociations, and forgettings of the source.
    pub removals: Vec<&'a Record>,
}

#[derive(Clone, Copy)]
pub struct Contribution<'a> {
    pub record: &'a Record,
    pub weight: u64,
    pub confidence: u64,
}

/// (space, edge) and what happened to it.
pub type Stories<'a> = BTreeMap<(&'a str, &'a EdgeName), EdgeStory<'a>>;

/// The stories of all edges.
#[must_use]
pub fn stories(records: &[Record]) -> Stories<'_> {
    let mut stories = Stories::new();
    let mut forgotten: BTreeMap<(&str, &str), Vec<&Record>> = BTreeMap::new();
    for record in records {
        let space = record.space.as_str();
        match &record.op {
            Op::Contribute {
                edge,
                weight,
                confidence,
                ..
            } => add(&mut stories, record, edge, (*weight, *confidence)),
            Op::Remember { edges, .. } => {
                for (edge, confidence) in edges {
                    add(&mut stories, record, edge, (Unit::ONE.bits(), *confidence));
                }
            }
            Op::Dissociate { edge, .. } => {
                stories
                    .entry((space, edge))
                    .or_default()
                    .removals
                    .push(record);
            }
            Op::Forget { id } => forgotten.entry((space, id)).or_default().push(record),
            _ => {}
        }
    }
    for ((space, edge), story) in &mut stories {
        let of_source = forgotten.get(&(*space, edge.from.as_str()));
        story.removals.extend(of_source.into_iter().flatten());
    }
    stories
}

fn add<'a>(
    stories: &mut Stories<'a>,
    record: &'a Record,
    edge: &'a EdgeName,
    (weight, confidence): (u64, u64),
) {
    let story = stories.entry((record.space.as_str(), edge)).or_default();
    let contribution = Contribution {
        record,
        weight,
        confidence,
    };
    let earlier = story
        .contributions
        .insert(confidence.trailing_zeros() / 2, contribution);
    assert!(
        earlier.is_none() && confidence.is_power_of_two(),
        "workloads give each contribution of an edge its own confidence"
    );
}

/// The weight that an edge must show when exactly these contributions count, and no decay.
#[must_use]
pub fn weight<'a>(counted: impl Iterator<Item = &'a Contribution<'a>>) -> u64 {
    let (mut sum_wc, mut sum_c) = (0_u128, 0_u128);
    for contribution in counted {
        sum_wc += (u128::from(contribution.weight) * u128::from(contribution.confidence)) >> 32;
        sum_c += u128::from(contribution.confidence);
    }
    (sum_wc << 32).checked_div(sum_c).unwrap_or(0) as u64
}

/// All answers that show edges: the record and what it saw.
pub fn answers(records: &[Record]) -> impl Iterator<Item = (&Record, &[EdgeSeen], bool)> {
    records.iter().filter_map(|record| match record.answer()? {
        crate::history::Answer::Edges { edges, truncated } => {
            Some((record, edges.as_slice(), *truncated))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_tells_who_is_in_it_and_how_often() {
        let sum = confidence(0) + confidence(3) * 2 + confidence(15);
        let counts = counts(sum);
        assert_eq!((counts[0], counts[3], counts[15], counts[1]), (1, 2, 1, 0));
    }

    #[test]
    fn the_weight_is_the_mean_rounded_down() {
        use crate::history::build;
        let record = build::unknown(0, 1, build::write("a", "v"));
        let contribution = |weight, confidence| Contribution {
            record: &record,
            weight,
            confidence,
        };
        let both = [contribution(1 << 32, 4), contribution(1 << 31, 4)];
        assert_eq!(weight(both.iter()), 3 << 30);
        assert_eq!(weight([].iter()), 0);
        // The product is rounded down before it is added.
        let product = Unit::from_bits(1 << 31).map(|half| {
            let one = Unit::from_bits(1).unwrap_or_default();
            half.times(one).bits()
        });
        assert_eq!(product, Some(0));
        assert_eq!(weight([contribution(1 << 31, 1)].iter()), 0);
    }
}
