//! Session reads are monotone (design.md section 3): a session never reads a partition at a lower
//! sequence than it has read or written there before, whatever node answers.
//!
//! Clients ask one thing at a time and keep a session each. What is read at a position is the
//! business of [`super::linearizable`]; here only positions count. Broken by: a replica that
//! answers without waiting for the position; a token that loses a partition; a restarted replica
//! that serves before it has caught up with what it had shown.

use std::collections::BTreeMap;

use super::{Ended, Findings};
use crate::history::{ClientNumber, Level, Op, Record, Stamp};

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let mut clients: BTreeMap<ClientNumber, Vec<&Record>> = BTreeMap::new();
    for record in ended.records {
        clients.entry(record.client).or_default().push(record);
    }
    for records in clients.values() {
        judge_client(records, findings);
    }
}

fn judge_client(records: &[&Record], findings: &mut Findings<'_>) {
    // By partition: what was seen last, and when that answer arrived.
    let mut seen: BTreeMap<u64, Vec<(Stamp, u64)>> = BTreeMap::new();
    for record in records {
        let Some(positions) = record.positions() else {
            continue;
        };
        for (partition, sequence) in positions {
            let before = seen.entry(*partition).or_default();
            let known = before
                .iter()
                .filter(|(at, _)| *at < record.invoked)
                .map(|(_, sequence)| *sequence)
                .max()
                .unwrap_or(0);
            if level(&record.op) == Some(Level::Session) && *sequence < known {
                findings.report_at(
                    record.completed_at,
                    format!(
                        "partition {partition} was read at {sequence} after {known} had been seen: {}",
                        record.line()
                    ),
                );
            }
            // Clients ask one at a time, so the greatest is all that is needed.
            if *sequence > known {
                before.clear();
                before.push((record.completed, *sequence));
            }
        }
    }
}

/// The level of a read.
pub fn level(op: &Op) -> Option<Level> {
    match op {
        Op::Get { level, .. }
        | Op::Neighbors { level, .. }
        | Op::Recall { level, .. }
        | Op::Spread { level, .. } => Some(*level),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::{Answer, build};

    fn read(client: u32, at: (u64, u64), level: Level, sequence: u64) -> Record {
        build::acked(
            client,
            at,
            build::get("a", level),
            Answer::Got(None),
            sequence,
        )
    }

    #[test]
    fn a_session_never_goes_back() {
        let wrote = build::acked(
            0,
            (1, 2),
            build::write("a", "x"),
            Answer::Written { version: 5 },
            5,
        );
        let after = |client, level, sequence| {
            judged(
                judge,
                &[wrote.clone(), read(client, (3, 4), level, sequence)],
            )
            .len()
        };
        assert_eq!(after(0, Level::Session, 5), 0);
        assert_eq!(after(0, Level::Session, 4), 1);
        assert_eq!(after(0, Level::Stale, 4), 0, "stale promises nothing");
        assert_eq!(after(1, Level::Session, 4), 0, "another session");
        let reads = [
            read(0, (1, 2), Level::Stale, 9),
            read(0, (3, 4), Level::Session, 8),
        ];
        assert_eq!(judged(judge, &reads).len(), 1, "what was read counts too");
    }
}
