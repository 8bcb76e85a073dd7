//! Whether a memory passes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::{Comparison, Expression, Filter, Literal, Test};
use crate::types::{Memory, PropertyValue, Unit};

/// What a filter looks at.
#[derive(Clone, Copy)]
struct Parts<'a> {
    labels: &'a BTreeSet<String>,
    properties: &'a BTreeMap<String, PropertyValue>,
    confidence: Unit,
}

impl Filter {
    #[must_use]
    pub fn matches(&self, memory: &Memory) -> bool {
        self.matches_parts(&memory.labels, &memory.properties, memory.confidence)
    }

    /// As [`Self::matches`], from the parts of a memory that filters look at.
    #[must_use]
    pub fn matches_parts(
        &self,
        labels: &BTreeSet<String>,
        properties: &BTreeMap<String, PropertyValue>,
        confidence: Unit,
    ) -> bool {
        self.expression.holds(Parts {
            labels,
            properties,
            confidence,
        })
    }
}

impl Expression {
    /// Recursion is as deep as the parser allows.
    fn holds(&self, parts: Parts<'_>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|one| one.holds(parts)),
            Self::Or(any) => any.iter().any(|one| one.holds(parts)),
            Self::Not(inner) => !inner.holds(parts),
            Self::Test(test) => test.holds(parts),
        }
    }
}

impl Test {
    fn holds(&self, parts: Parts<'_>) -> bool {
        let property = |key: &String| parts.properties.get(key);
        match self {
            Self::Label(any) => any.iter().any(|label| parts.labels.contains(label)),
            Self::Exists(key) => property(key).is_some(),
            Self::Has { key, item } => {
                matches!(property(key), Some(PropertyValue::List(items)) if items.contains(item))
            }
            Self::In { key, values } => property(key).is_some_and(|held| {
                values
                    .iter()
                    .any(|value| order(held, value) == Some(Ordering::Equal))
            }),
            Self::Compare {
                key,
                comparison,
                value,
            } => comparison.holds(property(key).and_then(|held| order(held, value))),
            Self::Confidence { comparison, value } => {
                comparison.holds(Some(parts.confidence.cmp(value)))
            }
        }
    }
}

/// Order of values of one type: texts by bytes, numbers as IEEE 754 doubles, false before true.
/// `None` between types, and for lists.
fn order(held: &PropertyValue, value: &Literal) -> Option<Ordering> {
    match (held, value) {
        (PropertyValue::Text(held), Literal::Text(value)) => Some(held.cmp(value)),
        (PropertyValue::Number(held), Literal::Number(value)) => held.partial_cmp(value),
        (PropertyValue::Boolean(held), Literal::Boolean(value)) => Some(held.cmp(value)),
        _ => None,
    }
}

impl Comparison {
    /// `None`, nothing to compare with, is unequal and in no order.
    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => order.is_some_and(Ordering::is_le),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
        }
    }
}
