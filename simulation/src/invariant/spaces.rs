//! Spaces come and go (design.md section 3: space, partition and group ids are never reused). A
//! name is used by one client at a time, so what it was told must fit together: a new space has an
//! id that no space ever had, holds nothing of an earlier one of the same name, keeps what was
//! acknowledged, and after the faults it is there, or gone, as the last answer said.
//!
//! Broken by: stale routing that is accepted; ids given out again after a restore of the map; a
//! drop that leaves partitions behind for the next space of the name.

use std::collections::{BTreeMap, BTreeSet};

use super::acknowledged::dropped_spaces;
use super::{Ended, Findings};
use crate::history::{Answer, Level, Op, Outcome, Record};

const UNKNOWN_SPACE: &str = "UNKNOWN_SPACE";

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq)]
enum State {
    #[default]
    Unclear,
    Exists(u64),
    Gone,
}

/// One name as its client's operations go by.
#[derive(Default)]
struct Name<'a> {
    state: State,
    /// The space that the name was last known to stand for.
    id: Option<u64>,
    /// What was written for sure since the space was last made.
    written: BTreeMap<&'a str, &'a str>,
    /// Acknowledged while the name stood for `id`, and while that was not clear.
    acknowledged: BTreeSet<&'a str>,
    unplaced: BTreeSet<&'a str>,
    /// Written before that: must not be seen again.
    earlier: BTreeSet<&'a str>,
    /// Drops and creations without an answer: each may happen once, however late.
    open_drops: u32,
    open_creations: u32,
}

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    // Only names that come and go; the others have stricter judges.
    let dropped = dropped_spaces(ended.records);
    let mut names: BTreeMap<&str, Name<'_>> = BTreeMap::new();
    let mut ids: BTreeMap<u64, &str> = BTreeMap::new();
    for record in ended.records {
        let space = record.space.as_str();
        if let Some(Answer::Space { id }) = record.answer() {
            let owner = *ids.entry(*id).or_insert(space);
            if owner != space {
                findings.report_at(
                    record.completed_at,
                    format!(
                        "space id {id} is that of {owner} already: {}",
                        record.line()
                    ),
                );
            }
        }
        if dropped.contains(space) {
            let name = names.entry(space).or_default();
            name.step(record, record.invoked >= ended.audit, findings);
        }
    }
}

impl<'a> Name<'a> {
    fn step(&mut self, record: &'a Record, in_audit: bool, findings: &mut Findings<'_>) {
        let mut wrong = |what: String| {
            findings.report_at(record.completed_at, format!("{what}: {}", record.line()));
        };
        match (&record.op, &record.outcome) {
            (
                Op::CreateSpace,
                Outcome::Acked {
                    answer: Answer::Space { id },
                    ..
                },
            ) => {
                if self.state == State::Gone && self.id == Some(*id) {
                    wrong("it was dropped".into());
                }
                if self.id != Some(*id) {
                    // What is not known to be of the last space may be of this one.
                    self.written.clear();
                    self.earlier.append(&mut self.acknowledged);
                }
                self.id = Some(*id);
                self.state = State::Exists(*id);
            }
            (Op::DropSpace, Outcome::Acked { .. }) => {
                self.written.clear();
                self.earlier.append(&mut self.acknowledged);
                self.earlier.append(&mut self.unplaced);
                self.state = State::Gone;
            }
            (Op::CreateSpace, Outcome::Unknown(_)) => {
                self.open_creations += 1;
                self.lose_sight();
            }
            (Op::DropSpace, Outcome::Unknown(_)) => {
                self.open_drops += 1;
                self.lose_sight();
            }
            (
                Op::DescribeSpace,
                Outcome::Acked {
                    answer: Answer::Space { id },
                    ..
                },
            ) => {
                let before = self.state.clone();
                let fits = match before {
                    State::Exists(known) if known != *id => {
                        self.dropped_late() && self.created_late()
                    }
                    State::Gone if in_audit => self.created_late(),
                    _ => true,
                };
                if !fits {
                    wrong(format!("it was {before:?}"));
                }
            }
            (Op::DescribeSpace, Outcome::Refused(code))
                if code == UNKNOWN_SPACE
                    && in_audit
                    && matches!(self.state, State::Exists(_))
                    && !self.dropped_late() =>
            {
                wrong("it was made, and not dropped".into());
            }
            (Op::Remember { id, value, .. }, Outcome::Acked { .. }) => {
                if matches!(self.state, State::Exists(_)) {
                    self.acknowledged.insert(value);
                    self.written.insert(id, value);
                } else {
                    self.unplaced.insert(value);
                }
            }
            // It may come later, and then into a later space of that name.
            (Op::Remember { id, .. }, Outcome::Unknown(_)) => {
                self.written.remove(id.as_str());
            }
            (
                Op::Get {
                    id,
                    level: Level::Linearizable,
                },
                Outcome::Acked {
                    answer: Answer::Got(found),
                    ..
                },
            ) => {
                let found = found.as_ref().map(|(_, value)| value.as_str());
                self.check_read(id, found, &mut wrong);
            }
            _ => {}
        }
    }

    fn lose_sight(&mut self) {
        self.state = State::Unclear;
        self.written.clear();
    }

    /// Whether a drop without an answer can have happened meanwhile; it cannot again.
    fn dropped_late(&mut self) -> bool {
        let open = self.open_drops > 0;
        if open {
            self.open_drops -= 1;
            self.lose_sight();
        }
        open
    }

    fn created_late(&mut self) -> bool {
        let open = self.open_creations > 0;
        if open {
            self.open_creations -= 1;
            self.lose_sight();
        }
        open
    }

    fn check_read(&mut self, id: &str, found: Option<&str>, wrong: &mut impl FnMut(String)) {
        match (self.written.get(id).copied(), found) {
            (Some(value), None) if !self.dropped_late() => {
                wrong(format!("{value:?} was acknowledged"));
            }
            (_, Some(value)) if self.earlier.contains(value) => {
                wrong("this was in an earlier space of that name".into());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::build;

    fn made(at: u64, id: u64) -> Record {
        build::acked(0, (at, at), Op::CreateSpace, Answer::Space { id }, 0)
    }

    fn gone(at: u64) -> Record {
        build::acked(0, (at, at), Op::DropSpace, Answer::Dropped, 0)
    }

    fn wrote(at: u64, value: &str) -> Record {
        let answer = Answer::Written { version: at };
        build::acked(0, (at, at), build::write("a", value), answer, at)
    }

    fn read(at: u64, found: Answer) -> Record {
        build::acked(0, (at, at), build::get("a", Level::Linearizable), found, at)
    }

    fn described(at: u64, outcome: Option<u64>) -> Record {
        match outcome {
            Some(id) => build::acked(0, (at, at), Op::DescribeSpace, Answer::Space { id }, 0),
            None => build::record(
                0,
                (at, at),
                Op::DescribeSpace,
                Outcome::Refused(UNKNOWN_SPACE.into()),
            ),
        }
    }

    fn found(records: &[Record]) -> usize {
        judged(judge, records).len()
    }

    #[test]
    fn an_orderly_life_passes() {
        let life = [
            made(1, 4),
            wrote(2, "x"),
            read(3, build::got(2, "x")),
            gone(4),
            made(5, 5),
            read(6, Answer::Got(None)),
            gone(7),
            described(2_000, None),
        ];
        assert_eq!(found(&life), 0);
    }

    #[test]
    fn a_new_space_is_new() {
        let ghost = [
            made(1, 4),
            wrote(2, "x"),
            gone(4),
            made(5, 5),
            read(6, build::got(2, "x")),
        ];
        assert_eq!(found(&ghost), 1);
        let mut other = made(9, 4);
        other.space = "other".into();
        assert_eq!(found(&[made(1, 4), gone(4), other]), 1, "an id used again");
    }

    #[test]
    fn what_was_acknowledged_in_it_is_there() {
        let lost = [
            made(1, 4),
            wrote(2, "x"),
            read(3, Answer::Got(None)),
            gone(4),
        ];
        assert_eq!(found(&lost), 1);
        let unclear = [
            made(1, 4),
            wrote(2, "x"),
            build::unknown(0, 3, Op::DropSpace),
            read(4, Answer::Got(None)),
        ];
        assert_eq!(found(&unclear), 0);
    }

    #[test]
    fn a_drop_without_an_answer_may_not_have_happened() {
        let still_there = [
            made(1, 4),
            wrote(2, "x"),
            build::unknown(0, 3, Op::DropSpace),
            made(4, 4),
            read(5, build::got(2, "x")),
        ];
        assert_eq!(found(&still_there), 0);
        let gone_after_all = |second: Answer| {
            [
                made(1, 4),
                build::unknown(0, 3, Op::DropSpace),
                made(4, 4),
                wrote(5, "x"),
                read(6, Answer::Got(None)),
                made(7, 5),
                wrote(8, "y"),
                read(9, second),
            ]
        };
        assert_eq!(found(&gone_after_all(build::got(2, "y"))), 0);
        assert_eq!(found(&gone_after_all(build::got(2, "x"))), 1);
        assert_eq!(found(&gone_after_all(Answer::Got(None))), 1, "but once");
    }

    #[test]
    fn what_was_written_to_an_unknown_space_may_be_in_the_next_known_one() {
        let life = |after: Record| {
            [
                made(1, 4),
                gone(2),
                build::unknown(0, 3, Op::CreateSpace),
                wrote(4, "x"),
                after,
                made(6, 5),
                read(7, build::got(2, "x")),
            ]
        };
        let unclear = build::unknown(0, 5, Op::DropSpace);
        assert_eq!(found(&life(unclear)), 0);
        assert_eq!(found(&life(gone(5))), 1);
    }

    #[test]
    fn a_dropped_space_is_not_made_again() {
        assert_eq!(found(&[made(1, 4), gone(2), made(3, 4)]), 1);
    }

    #[test]
    fn in_the_end_it_is_there_or_gone() {
        assert_eq!(found(&[made(1, 4), gone(2), described(2_000, Some(4))]), 1);
        let again = |described| [made(1, 4), gone(2), made(3, 5), described];
        assert_eq!(found(&again(described(2_000, None))), 1);
        assert_eq!(found(&again(described(2_000, Some(4)))), 1);
        assert_eq!(found(&again(described(2_000, Some(5)))), 0);
    }
}
