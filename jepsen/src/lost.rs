//! Checker: no acknowledged write is lost, none happens that was refused, nothing comes from nowhere.
//!
//! For registers written by one client each, in order: the value found must be that of the last
//! acknowledged write, or of an unknown one after it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{Told, Write};

/// What is wrong with what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Anomaly {
    /// An acknowledged write is not there, and nothing that may have replaced it.
    Lost {
        id: String,
        expected: String,
        found: Option<String>,
    },
    /// A refused write happened.
    RefusedButThere { id: String, value: String },
    /// Nobody wrote it.
    FromNowhere { id: String, value: String },
}

/// Judges what was `found` after all writes of `history`, which is in each writer's order.
#[must_use]
pub fn check(history: &[Write], found: &BTreeMap<String, String>) -> Vec<Anomaly> {
    let mut registers: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
    for write in history {
        registers.entry(&write.id).or_default().push(write);
    }
    let mut anomalies: Vec<Anomaly> = registers
        .iter()
        .filter_map(|(id, writes)| judge(id, writes, found.get(*id)))
        .collect();
    for (id, value) in found {
        if !registers.contains_key(id.as_str()) {
            anomalies.push(Anomaly::FromNowhere {
                id: id.clone(),
                value: value.clone(),
            });
        }
    }
    anomalies
}

fn judge(id: &str, writes: &[&Write], found: Option<&String>) -> Option<Anomaly> {
    let id = id.to_owned();
    let last = writes
        .iter()
        .rposition(|write| write.told == Told::Acknowledged);
    let Some(value) = found else {
        let expected = writes[last?].value.clone();
        return Some(Anomaly::Lost {
            id,
            expected,
            found: None,
        });
    };
    let Some(position) = writes.iter().position(|write| write.value == *value) else {
        return Some(Anomaly::FromNowhere {
            id,
            value: value.clone(),
        });
    };
    match (writes[position].told, last) {
        (Told::Refused, _) => Some(Anomaly::RefusedButThere {
            id,
            value: value.clone(),
        }),
        // An unknown write from before may still be on its way, and land after a later one.
        (Told::Unknown, _) => None,
        (Told::Acknowledged, Some(last)) if position < last => {
            let expected = writes[last].value.clone();
            Some(Anomaly::Lost {
                id,
                expected,
                found: Some(value.clone()),
            })
        }
        (Told::Acknowledged, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: &str, told: Told) -> Write {
        Write {
            id: "r".into(),
            value: value.into(),
            told,
        }
    }

    fn judged(history: &[Write], found: Option<&str>) -> Vec<Anomaly> {
        let found = found
            .map(|value| ("r".to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        check(history, &found)
    }

    #[test]
    fn the_last_acknowledged_write_must_be_there() {
        let history = [
            write("1", Told::Acknowledged),
            write("2", Told::Acknowledged),
        ];
        assert_eq!(judged(&history, Some("2")), []);
        assert!(matches!(
            judged(&history, Some("1")).as_slice(),
            [Anomaly::Lost { .. }]
        ));
        assert!(matches!(
            judged(&history, None).as_slice(),
            [Anomaly::Lost { .. }]
        ));
    }

    #[test]
    fn an_unknown_write_may_be_there_or_not() {
        let history = [write("1", Told::Acknowledged), write("2", Told::Unknown)];
        assert_eq!(judged(&history, Some("1")), []);
        assert_eq!(judged(&history, Some("2")), []);
        assert_eq!(judged(&[write("1", Told::Unknown)], None), []);
    }

    #[test]
    fn refused_and_invented_values_are_found_out() {
        let history = [write("1", Told::Acknowledged), write("2", Told::Refused)];
        assert!(matches!(
            judged(&history, Some("2")).as_slice(),
            [Anomaly::RefusedButThere { .. }]
        ));
        assert!(matches!(
            judged(&history, Some("9")).as_slice(),
            [Anomaly::FromNowhere { .. }]
        ));
        assert!(matches!(
            judged(&[], Some("9")).as_slice(),
            [Anomaly::FromNowhere { .. }]
        ));
    }
}
