//! No write is applied twice (design.md section 3: writes are idempotent by request id), and none
//! that nobody asked for, or that was answered with `not applied`, is applied at all.
//!
//! Evidence sums prove it per operation ([`super::evidence`]): clients retry under faults, over
//! other nodes, after restarts and across snapshots, and each contribution must be in the sum at
//! most once. Broken by: a table of request ids that is left out of a snapshot, kept too short, or
//! saved apart from the state; an overlay delta and its twin in the log both counted.

use super::evidence::{answers, counts, stories};
use super::{Ended, Findings};

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let stories = stories(ended.records);
    for (read, edges, _) in answers(ended.records) {
        for seen in edges {
            let story = stories.get(&(read.space.as_str(), &seen.edge));
            for (number, count) in counts(seen.evidence).into_iter().enumerate() {
                if count == 0 {
                    continue;
                }
                let asked = story.and_then(|story| story.contributions.get(&(number as u32)));
                let Some(contribution) = asked else {
                    findings.report_at(
                        read.completed_at,
                        format!(
                            "evidence that nobody gave (number {number}): {}",
                            read.line()
                        ),
                    );
                    continue;
                };
                let record = contribution.record;
                if count > 1 {
                    findings.report_at(
                        read.completed_at,
                        format!(
                            "counted {count} times: {}; seen by {}",
                            record.line(),
                            read.line()
                        ),
                    );
                }
                if !record.may_have_happened() {
                    findings.report_at(
                        read.completed_at,
                        format!(
                            "refused, but applied: {}; seen by {}",
                            record.line(),
                            read.line()
                        ),
                    );
                }
                if read.is_before(record) {
                    findings.report_at(
                        read.completed_at,
                        format!("seen before it was asked for: {}", record.line()),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::evidence::confidence;
    use super::super::trial::judged;
    use super::*;
    use crate::history::{Answer, EdgeName, EdgeSeen, Level, Op, Outcome, Record, build};

    fn edge() -> EdgeName {
        EdgeName {
            from: "a".into(),
            to: "b".into(),
            relation: "r".into(),
        }
    }

    fn contribute(number: u32) -> Op {
        Op::Contribute {
            edge: edge(),
            weight: 1 << 32,
            confidence: confidence(number),
            local: false,
        }
    }

    fn read(evidence: u64) -> Record {
        let op = Op::Neighbors {
            id: "a".into(),
            level: Level::Linearizable,
        };
        let seen = EdgeSeen {
            edge: edge(),
            weight: 1 << 32,
            evidence,
        };
        let answer = Answer::Edges {
            edges: vec![seen],
            truncated: false,
        };
        build::acked(1, (50, 60), op, answer, 9)
    }

    fn found(evidence: u64) -> usize {
        let changed = Answer::EdgeChanged { majority: true };
        let records = [
            build::acked(0, (1, 2), contribute(0), changed, 1),
            build::unknown(0, 3, contribute(1)),
            build::record(0, (5, 6), contribute(2), Outcome::Refused("BUSY".into())),
            read(evidence),
            build::unknown(0, 70, contribute(3)),
        ];
        judged(judge, &records).len()
    }

    #[test]
    fn each_contribution_counts_at_most_once() {
        assert_eq!(found(confidence(0)), 0);
        assert_eq!(
            found(confidence(0) + confidence(1)),
            0,
            "unknown may have happened"
        );
        assert_eq!(found(2 * confidence(0)), 1, "twice");
        assert_eq!(found(2 * confidence(1)), 1, "unknown, and twice");
        assert_eq!(found(confidence(0) + confidence(2)), 1, "refused");
        assert_eq!(found(confidence(0) + confidence(3)), 1, "not asked for yet");
        assert_eq!(found(confidence(0) + confidence(9)), 1, "nobody's");
    }
}
