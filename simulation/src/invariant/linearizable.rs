//! Linearizable reads and writes within a partition, and true reads at every level (design.md
//! sections 3 and 9: a resumed primary serves nothing stale as linearizable).
//!
//! The main checker takes an order witness: each answer says at which sequence of its partition it
//! was made, and a memory's version is the sequence of its last write. So all operations are in
//! order already, and what is left is to check the order, in O(n log n): it respects real time;
//! each read, of any level, shows exactly what its sequence says; compare-and-set compared; no
//! version stands for two writes. Since the witness comes from the system that is checked, the
//! same operations are given to [`crate::linearizability`] too, which does not look at it.
//!
//! Broken by: a read served after leadership was lost, or without the barrier; a read of a state
//! that is older than its position; a lost or repeated write.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::acknowledged::dropped_spaces;
use super::session::level;
use super::{Ended, Findings};
use crate::history::{Answer, Level, Op, Outcome, Record, Stamp};
use crate::linearizability::{Action, Event, Verdict, check_all};

/// The code of a refused compare-and-set.
const REFUSED_SWAP: &str = "VERSION_MISMATCH";

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let dropped = dropped_spaces(ended.records);
    let records: Vec<&Record> = ended
        .records
        .iter()
        .filter(|record| !dropped.contains(record.space.as_str()))
        .collect();
    real_time(&records, findings);
    for register in registers(&records).values() {
        register.check(findings);
    }
    for ((space, id), verdict) in check_all(events(&records)) {
        if verdict == Verdict::Impossible {
            findings.report(format!(
                "no order of the operations on {id} of {space} explains their answers"
            ));
        }
    }
}

// ---- real time ------------------------------------------------------------------------------

/// An operation that had its answer before another was asked for comes before it in the partition.
fn real_time(records: &[&Record], findings: &mut Findings<'_>) {
    // Invocations and answers in the order in which they happened.
    let mut moments: Vec<(Stamp, bool, &Record)> = Vec::new();
    for record in records.iter().filter(|record| record.is_acked()) {
        moments.push((record.invoked, false, record));
        moments.push((record.completed, true, record));
    }
    moments.sort_by_key(|(stamp, completed, _)| (*stamp, *completed));
    let mut floors: BTreeMap<u64, (u64, &Record)> = BTreeMap::new();
    let mut at_invocation: BTreeMap<Stamp, BTreeMap<u64, (u64, &Record)>> = BTreeMap::new();
    for (stamp, completed, record) in moments {
        if !completed {
            at_invocation.insert(stamp, floors.clone());
            continue;
        }
        let floor = at_invocation.remove(&record.invoked).unwrap_or_default();
        for (partition, sequence) in record.positions().into_iter().flatten() {
            if let Some((before, earlier)) = floor.get(partition) {
                check_floor(record, *partition, *sequence, (*before, earlier), findings);
            }
            let known = floors.entry(*partition).or_insert((*sequence, record));
            if known.0 < *sequence {
                *known = (*sequence, record);
            }
        }
    }
}

fn check_floor(
    record: &Record,
    partition: u64,
    sequence: u64,
    (before, earlier): (u64, &Record),
    findings: &mut Findings<'_>,
) {
    let is_late = match (level(&record.op), record.answer()) {
        (Some(Level::Linearizable), _) => sequence < before,
        (Some(Level::Session | Level::Stale), _) => false,
        // A write takes a sequence of its own.
        (None, Some(Answer::Written { version })) => *version <= before,
        (None, Some(Answer::Forgotten { .. })) => sequence <= before,
        (None, Some(Answer::EdgeChanged { majority: true })) => sequence <= before,
        (None, _) => false,
    };
    if is_late {
        findings.report_at(
            record.completed_at,
            format!(
                "partition {partition} was at {before} already ({}) before this began: {}",
                earlier.line(),
                record.line()
            ),
        );
    }
}

// ---- one memory -----------------------------------------------------------------------------

/// All that happened to one id.
#[derive(Default)]
struct Register<'a> {
    writes: Vec<&'a Record>,
    forgets: Vec<&'a Record>,
    reads: Vec<&'a Record>,
}

fn registers<'a>(records: &[&'a Record]) -> BTreeMap<(&'a str, &'a str), Register<'a>> {
    let mut registers: BTreeMap<(&str, &str), Register<'_>> = BTreeMap::new();
    for record in records {
        let space = record.space.as_str();
        match &record.op {
            Op::Remember { id, .. } => registers
                .entry((space, id))
                .or_default()
                .writes
                .push(record),
            Op::Forget { id } => registers
                .entry((space, id))
                .or_default()
                .forgets
                .push(record),
            Op::Get { id, .. } => registers.entry((space, id)).or_default().reads.push(record),
            _ => {}
        }
    }
    registers
}

impl Register<'_> {
    fn check(&self, findings: &mut Findings<'_>) {
        let versions = self.versions(findings);
        self.check_swaps(&versions, findings);
        for read in &self.reads {
            if let Some(Answer::Got(found)) = read.answer() {
                let position = read.positions().and_then(|all| all.values().next());
                let position = position.copied().unwrap_or(0);
                match found {
                    Some((version, value)) => {
                        self.check_present(&versions, read, position, (*version, value), findings);
                    }
                    None => self.check_absent(&versions, read, position, findings),
                }
            }
        }
    }

    /// What is known of each version: acknowledged with it, or read under it.
    fn versions(&self, findings: &mut Findings<'_>) -> BTreeMap<u64, &str> {
        let mut versions: BTreeMap<u64, &str> = BTreeMap::new();
        let mut note = |version: u64, value, record: &Record| {
            let first = *versions.entry(version).or_insert(value);
            if first != value {
                findings.report_at(
                    record.completed_at,
                    format!(
                        "version {version} is {first:?} and {value:?}: {}",
                        record.line()
                    ),
                );
            }
        };
        for write in &self.writes {
            if let (Op::Remember { value, .. }, Some(Answer::Written { version })) =
                (&write.op, write.answer())
            {
                note(*version, value.as_str(), write);
            }
        }
        for read in &self.reads {
            if let Some(Answer::Got(Some((version, value)))) = read.answer() {
                note(*version, value.as_str(), read);
            }
        }
        versions
    }

    fn check_swaps(&self, versions: &BTreeMap<u64, &str>, findings: &mut Findings<'_>) {
        for write in &self.writes {
            let (Op::Remember { expected, .. }, Some(Answer::Written { version })) =
                (&write.op, write.answer())
            else {
                continue;
            };
            let Some(expected) = expected else {
                continue;
            };
            if expected.version == 0 && !self.forgets.is_empty() {
                continue;
            }
            let from = Bound::Excluded(expected.version);
            let to = Bound::Excluded((*version).max(expected.version.saturating_add(1)));
            let between = versions.range((from, to)).next();
            if let Some((other, _)) = between {
                findings.report_at(
                    write.completed_at,
                    format!(
                        "it expected version {}, but {other} was there: {}",
                        expected.version,
                        write.line()
                    ),
                );
            }
        }
    }

    fn check_present(
        &self,
        versions: &BTreeMap<u64, &str>,
        read: &Record,
        position: u64,
        (version, value): (u64, &str),
        findings: &mut Findings<'_>,
    ) {
        let mut wrong = |what: String| {
            findings.report_at(read.completed_at, format!("{what}: {}", read.line()));
        };
        if version > position {
            wrong(format!(
                "a version {version} beyond the position {position}"
            ));
        }
        let written = self
            .writes
            .iter()
            .find(|write| matches!(&write.op, Op::Remember { value: given, .. } if given == value));
        match written {
            None => wrong("a value that nobody wrote".into()),
            Some(write) if !write.may_have_happened() => {
                wrong(format!("a write that was refused ({})", write.line()));
            }
            Some(write) if read.is_before(write) => {
                wrong(format!(
                    "a write that was not asked for yet ({})",
                    write.line()
                ));
            }
            Some(_) => {}
        }
        let later = (
            Bound::Excluded(version),
            Bound::Included(position.max(version)),
        );
        if let Some((newer, _)) = versions.range(later).next_back() {
            wrong(format!("version {newer} was missed at position {position}"));
        }
        let forgotten = self.forgets.iter().find(|forget| {
            let Some(end) = upper(forget) else {
                return false;
            };
            let lower = self.known_before(forget.invoked);
            lower >= version && end <= position
        });
        if let Some(forget) = forgotten {
            wrong(format!("it had been forgotten ({})", forget.line()));
        }
    }

    fn check_absent(
        &self,
        versions: &BTreeMap<u64, &str>,
        read: &Record,
        position: u64,
        findings: &mut Findings<'_>,
    ) {
        let Some((version, _)) = versions.range(..=position).next_back() else {
            return;
        };
        let may_be_gone = self.forgets.iter().any(|forget| {
            forget.may_have_happened()
                && !read.is_before(forget)
                && upper(forget).is_none_or(|end| end > *version)
        });
        if !may_be_gone {
            findings.report_at(
                read.completed_at,
                format!(
                    "version {version} was missed at position {position}: {}",
                    read.line()
                ),
            );
        }
    }

    /// The greatest version that somebody had heard of before this moment.
    fn known_before(&self, stamp: Stamp) -> u64 {
        let earlier = self.writes.iter().chain(&self.reads);
        let versions = earlier
            .filter(|record| record.completed < stamp)
            .filter_map(|record| match record.answer()? {
                Answer::Written { version } => Some(*version),
                Answer::Got(found) => found.as_ref().map(|(version, _)| *version),
                _ => None,
            });
        versions.max().unwrap_or(0)
    }
}

/// The sequence up to which an acknowledged forgetting had happened for sure.
fn upper(forget: &Record) -> Option<u64> {
    forget
        .positions()
        .and_then(|all| all.values().next().copied())
}

// ---- for the independent checker ------------------------------------------------------------

/// The operations on each id, without versions and sequences.
fn events<'a>(records: &[&'a Record]) -> BTreeMap<(&'a str, &'a str), Vec<Event>> {
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut events: BTreeMap<(&str, &str), Vec<Event>> = BTreeMap::new();
    for record in records {
        let mut number = |value: &'a str| {
            let next = numbers.len() as u32;
            *numbers.entry(value).or_insert(next)
        };
        let Some((id, action)) = action(record, &mut number) else {
            continue;
        };
        events
            .entry((record.space.as_str(), id))
            .or_default()
            .push(Event {
                action,
                invoked: record.invoked.0,
                completed: (record.completed != Stamp(u64::MAX)).then_some(record.completed.0),
            });
    }
    // A register that was only written, once, has nothing to be wrong about.
    events.retain(|_, events| events.len() > 1);
    events
}

fn action<'a>(
    record: &'a Record,
    number: &mut impl FnMut(&'a str) -> u32,
) -> Option<(&'a str, Action)> {
    match (&record.op, &record.outcome) {
        (
            Op::Remember {
                id,
                value,
                expected,
                ..
            },
            Outcome::Acked { .. } | Outcome::Unknown(_),
        ) => {
            let to = number(value);
            let action = match expected {
                None => Action::Write(to),
                Some(expected) => Action::Swap {
                    from: expected.value.as_deref().map(&mut *number),
                    to,
                },
            };
            Some((id, action))
        }
        (
            Op::Remember {
                id,
                expected: Some(expected),
                ..
            },
            Outcome::Refused(code),
        ) if code == REFUSED_SWAP => {
            let from = expected.value.as_deref().map(&mut *number);
            Some((id, Action::Unequal { from }))
        }
        (Op::Forget { id }, Outcome::Acked { .. } | Outcome::Unknown(_)) => {
            Some((id, Action::Remove))
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
            let value = found.as_ref().map(|(_, value)| number(value));
            Some((id, Action::Read(value)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::build;

    fn wrote(at: (u64, u64), version: u64) -> Record {
        let op = build::write("a", &format!("value {version}"));
        build::acked(0, at, op, Answer::Written { version }, version)
    }

    fn read(at: (u64, u64), level: Level, version: u64, position: u64) -> Record {
        let found = match version {
            0 => Answer::Got(None),
            version => build::got(version, &format!("value {version}")),
        };
        build::acked(1, at, build::get("a", level), found, position)
    }

    /// How many violations, and whether the independent checker agrees that there are some.
    fn found(records: &[Record]) -> (usize, bool) {
        let violations = judged(judge, records);
        let independent = violations
            .iter()
            .any(|violation| violation.what.contains("no order of the operations"));
        (violations.len() - usize::from(independent), independent)
    }

    const LINEARIZABLE: Level = Level::Linearizable;

    #[test]
    fn an_orderly_history_passes() {
        let records = [
            wrote((1, 2), 5),
            read((3, 4), LINEARIZABLE, 5, 5),
            wrote((5, 8), 7),
            read((6, 7), LINEARIZABLE, 5, 6),
            read((9, 10), LINEARIZABLE, 7, 8),
            read((11, 12), Level::Stale, 5, 6),
        ];
        assert_eq!(found(&records), (0, false));
    }

    #[test]
    fn a_stale_read_is_found_by_both_checkers() {
        let records = [
            wrote((1, 2), 5),
            wrote((3, 4), 7),
            read((5, 6), LINEARIZABLE, 5, 6),
        ];
        assert_eq!(found(&records), (1, true));
    }

    #[test]
    fn a_lying_witness_is_found_by_the_independent_checker() {
        // The read claims the position 7 and a version 7 that has the old value.
        let lie = build::acked(
            1,
            (5, 6),
            build::get("a", LINEARIZABLE),
            build::got(9, "value 5"),
            9,
        );
        let records = [wrote((1, 2), 5), wrote((3, 4), 7), lie];
        assert!(found(&records).1);
    }

    #[test]
    fn a_read_at_any_level_shows_its_position() {
        let stale = |version, position| {
            found(&[
                wrote((1, 2), 5),
                wrote((3, 4), 7),
                read((5, 6), Level::Stale, version, position),
            ])
            .0
        };
        assert_eq!(stale(5, 6), 0);
        assert_eq!(stale(5, 7), 1, "version 7 was missed");
        assert_eq!(stale(0, 6), 1, "version 5 was missed");
        assert_eq!(stale(0, 4), 0);
        assert_eq!(stale(7, 6), 1, "from the future");
    }

    #[test]
    fn what_nobody_wrote_or_was_refused_is_not_read() {
        assert_eq!(found(&[read((1, 2), LINEARIZABLE, 3, 3)]).0, 1);
        let refused = build::record(
            0,
            (1, 2),
            build::write("a", "value 3"),
            Outcome::Refused("BUSY".into()),
        );
        assert_eq!(found(&[refused, read((3, 4), LINEARIZABLE, 3, 3)]).0, 1);
        let lost = build::unknown(0, 1, build::write("a", "value 3"));
        assert_eq!(found(&[lost, read((3, 4), LINEARIZABLE, 3, 3)]), (0, false));
        let later = build::unknown(0, 5, build::write("a", "value 3"));
        assert_eq!(found(&[later, read((3, 4), LINEARIZABLE, 3, 3)]).0, 1);
    }

    #[test]
    fn two_writes_have_two_versions() {
        let other = build::acked(
            2,
            (1, 2),
            build::write("a", "another"),
            Answer::Written { version: 5 },
            5,
        );
        assert_eq!(found(&[wrote((1, 2), 5), other]).0, 1);
    }

    #[test]
    fn a_write_comes_after_what_was_seen_before() {
        assert_eq!(found(&[wrote((1, 2), 5), wrote((3, 4), 5)]).0, 1);
        assert_eq!(found(&[wrote((1, 2), 5), wrote((3, 4), 4)]).0, 1);
    }

    #[test]
    fn compare_and_set_compares() {
        let swap = |at, expected: u64, version: u64| {
            let op = build::swap("a", "swapped", expected, Some(&format!("value {expected}")));
            build::acked(2, at, op, Answer::Written { version }, version)
        };
        let fine = [wrote((1, 2), 5), swap((3, 4), 5, 6)];
        assert_eq!(found(&fine), (0, false));
        let lost_update = [wrote((1, 2), 5), wrote((3, 4), 7), swap((5, 6), 5, 8)];
        assert_eq!(found(&lost_update), (1, true));
        let wrong_refusal = build::record(
            2,
            (3, 4),
            build::swap("a", "swapped", 5, Some("value 5")),
            Outcome::Refused(REFUSED_SWAP.into()),
        );
        assert_eq!(found(&[wrote((1, 2), 5), wrong_refusal]), (0, true));
    }

    #[test]
    fn forgetting_is_ordered_too() {
        let forget = |at, sequence| {
            let id = "a".to_owned();
            let op = Op::Forget { id };
            build::acked(2, at, op, Answer::Forgotten { existed: true }, sequence)
        };
        let gone = |version, position| {
            found(&[
                wrote((1, 2), 5),
                forget((3, 4), 6),
                read((5, 6), LINEARIZABLE, version, position),
            ])
            .0
        };
        assert_eq!(gone(0, 6), 0);
        assert_eq!(gone(5, 6), 1, "it is back");
        // Forgotten before it was written.
        let early = [
            forget((1, 2), 3),
            wrote((3, 4), 5),
            read((5, 6), LINEARIZABLE, 0, 6),
        ];
        assert_eq!(found(&early), (1, true));
    }
}
