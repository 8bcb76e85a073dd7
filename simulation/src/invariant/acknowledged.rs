//! No acknowledged write is lost (design.md section 9: nothing acknowledged by a majority is lost,
//! whatever minority crashes, forgets what it had not synced, or comes back late).
//!
//! The audit reads every id that was ever written; each must show the last acknowledged write or a
//! later one. Broken by: acknowledging before the sync; a vote before the sync; a replica whose log
//! lost its end and votes; a snapshot over a newer state; a truncated log.

use std::collections::{BTreeMap, BTreeSet};

use super::{Ended, Findings};
use crate::history::{Answer, Level, Op, Record};

/// What happened to one id.
#[derive(Default)]
struct Story<'a> {
    /// The acknowledged write of the greatest version.
    last: Option<(u64, &'a Record)>,
    forgets: Vec<&'a Record>,
    audits: Vec<&'a Record>,
}

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let dropped = dropped_spaces(ended.records);
    let mut stories: BTreeMap<(&str, &str), Story<'_>> = BTreeMap::new();
    for record in ended.records {
        let space = record.space.as_str();
        match (&record.op, record.answer()) {
            (Op::Remember { id, .. }, Some(Answer::Written { version }))
                if record.invoked < ended.audit =>
            {
                let story = stories.entry((space, id)).or_default();
                if story.last.is_none_or(|(last, _)| last < *version) {
                    story.last = Some((*version, record));
                }
            }
            (Op::Forget { id }, _) if record.may_have_happened() => {
                stories.entry((space, id)).or_default().forgets.push(record);
            }
            (
                Op::Get {
                    id,
                    level: Level::Linearizable,
                },
                Some(Answer::Got(_)),
            ) if record.invoked >= ended.audit => {
                stories.entry((space, id)).or_default().audits.push(record);
            }
            _ => {}
        }
    }
    for ((space, id), story) in &stories {
        if !dropped.contains(space) {
            check(id, story, findings);
        }
    }
}

/// Spaces that somebody may have dropped: what was in them may be gone.
pub fn dropped_spaces(records: &[Record]) -> BTreeSet<&str> {
    let drops = records
        .iter()
        .filter(|record| record.op == Op::DropSpace && record.may_have_happened());
    drops.map(|record| record.space.as_str()).collect()
}

fn check(id: &str, story: &Story<'_>, findings: &mut Findings<'_>) {
    let Some((version, write)) = story.last else {
        return;
    };
    if story.audits.is_empty() {
        findings.report(format!("the audit did not read {id}: {}", write.line()));
    }
    for audit in &story.audits {
        let Some(Answer::Got(found)) = audit.answer() else {
            continue;
        };
        let is_lost = match found {
            Some((found, _)) => *found < version,
            None => !story.forgets.iter().any(|forget| !forget.is_before(write)),
        };
        if is_lost {
            findings.report_at(
                audit.completed_at,
                format!("lost: {}; the audit: {}", write.line(), audit.line()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::build;

    fn wrote(version: u64) -> Record {
        let op = build::write("a", &format!("value {version}"));
        build::acked(
            0,
            (version, version),
            op,
            Answer::Written { version },
            version,
        )
    }

    fn audit(found: Answer) -> Record {
        build::acked(
            9,
            (1_001, 1_002),
            build::get("a", Level::Linearizable),
            found,
            99,
        )
    }

    fn found(records: &[Record]) -> usize {
        judged(judge, records).len()
    }

    #[test]
    fn the_last_acknowledged_write_is_there() {
        let writes = [wrote(5), wrote(7)];
        let with = |found: Answer| [writes[0].clone(), writes[1].clone(), audit(found)];
        assert_eq!(found(&with(build::got(7, "value 7"))), 0);
        assert_eq!(found(&with(build::got(8, "of unknown outcome"))), 0);
        assert_eq!(found(&with(build::got(5, "value 5"))), 1);
        assert_eq!(found(&with(Answer::Got(None))), 1);
        assert_eq!(found(&writes), 1, "nobody looked");
    }

    #[test]
    fn what_may_have_been_forgotten_may_be_missing() {
        let forget = |at| {
            let id = "a".to_owned();
            build::acked(
                1,
                at,
                Op::Forget { id },
                Answer::Forgotten { existed: true },
                9,
            )
        };
        let with = |forget| found(&[wrote(5), forget, audit(Answer::Got(None))]);
        assert_eq!(with(forget((6, 8))), 0);
        assert_eq!(with(forget((1, 2))), 1, "it was before the write");
    }
}
