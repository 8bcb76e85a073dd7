//! Edges converge to what the operations say (design.md section 5: add-wins; no observation lost or
//! counted twice; a removal takes what its context covers and nothing else).
//!
//! The oracle is the list of operations. In a read that reflects everything before it, a
//! contribution that a majority acknowledged before must count unless a removal may have covered
//! it (one that had not ended before the contribution began); it must not count if a removal that
//! a majority acknowledged was asked for after it, and ended before the read. In the audit, when
//! overlays have met, the same holds of contributions that one replica acknowledged alone; and a
//! session sees its own, whoever acknowledged them. The weight shown must be exactly that of the
//! contributions counted. Broken by: a snapshot that replaces the overlay; dots used again after a
//! wipe; averaging; a removal without its context.

use super::evidence::{Contribution, EdgeStory, answers, counts, stories, weight};
use super::{Ended, Findings};
use crate::history::{Answer, EdgeSeen, Level, Op, Record};

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let stories = stories(ended.records);
    for (read, edges, truncated) in answers(ended.records) {
        for seen in edges {
            if let Some(story) = stories.get(&(read.space.as_str(), &seen.edge)) {
                check_weight(story, read, seen, findings);
            }
        }
        let Op::Neighbors { id, level } = &read.op else {
            continue;
        };
        if truncated || *level == Level::Stale {
            continue;
        }
        let from_here = stories
            .iter()
            .filter(|((space, edge), _)| *space == read.space && edge.from == *id);
        for ((_, edge), story) in from_here {
            let seen = edges.iter().find(|seen| seen.edge == **edge);
            let evidence = seen.map_or(0, |seen| seen.evidence);
            match level {
                Level::Session => check_own(story, read, evidence, findings),
                _ => check_presence(ended, story, read, evidence, findings),
            }
        }
    }
}

fn check_weight(
    story: &EdgeStory<'_>,
    read: &Record,
    seen: &EdgeSeen,
    findings: &mut Findings<'_>,
) {
    let counts = counts(seen.evidence);
    let counted = story
        .contributions
        .iter()
        .filter(|(number, _)| counts[**number as usize] == 1);
    let expected = weight(counted.map(|(_, contribution)| contribution));
    // Counted twice, or nobody's: that is another invariant's find.
    let is_plain = counts.iter().enumerate().all(|(number, count)| {
        *count <= 1 && (*count == 0 || story.contributions.contains_key(&(number as u32)))
    });
    if is_plain && expected != seen.weight {
        findings.report_at(
            read.completed_at,
            format!(
                "{:?} shows the weight {}, its evidence makes {expected}: {}",
                seen.edge,
                seen.weight,
                read.line()
            ),
        );
    }
}

fn check_presence(
    ended: &Ended<'_>,
    story: &EdgeStory<'_>,
    read: &Record,
    evidence: u64,
    findings: &mut Findings<'_>,
) {
    let counts = counts(evidence);
    let in_audit = read.invoked >= ended.audit;
    for (number, contribution) in &story.contributions {
        let counted = counts[*number as usize] > 0;
        let record = contribution.record;
        let owed = in_audit && !ended.local_may_be_lost || by_majority(contribution);
        let owed = owed && record.is_acked() && record.is_before(read);
        if !counted && owed && !is_covered(story, record, read) {
            findings.report_at(
                read.completed_at,
                format!("lost: {}; not seen by {}", record.line(), read.line()),
            );
        }
        if counted {
            let remover = story
                .removals
                .iter()
                .find(|removal| surely_covers(removal, contribution) && removal.is_before(read));
            if let Some(removal) = remover {
                findings.report_at(
                    read.completed_at,
                    format!(
                        "removed, but counted: {}; removed by {}; seen by {}",
                        record.line(),
                        removal.line(),
                        read.line()
                    ),
                );
            }
        }
    }
}

/// A session sees what it has changed itself.
fn check_own(story: &EdgeStory<'_>, read: &Record, evidence: u64, findings: &mut Findings<'_>) {
    let counts = counts(evidence);
    for (number, contribution) in &story.contributions {
        let record = contribution.record;
        let owed = record.client == read.client && record.is_acked() && record.is_before(read);
        if counts[*number as usize] == 0 && owed && !is_covered(story, record, read) {
            findings.report_at(
                read.completed_at,
                format!("its own: {}; not seen by {}", record.line(), read.line()),
            );
        }
    }
}

/// Whether a removal that a read may know may have taken a contribution away.
fn is_covered(story: &EdgeStory<'_>, contribution: &Record, read: &Record) -> bool {
    let mut removals = story.removals.iter();
    removals.any(|removal| may_cover(removal, contribution) && removal.invoked < read.completed)
}

/// Acknowledged by a majority, through the log.
fn by_majority(contribution: &Contribution<'_>) -> bool {
    match contribution.record.answer() {
        Some(Answer::EdgeChanged { majority }) => *majority,
        Some(Answer::Written { .. }) => true,
        _ => false,
    }
}

fn may_cover(removal: &Record, contribution: &Record) -> bool {
    removal.may_have_happened() && !removal.is_before(contribution)
}

fn surely_covers(removal: &Record, contribution: &Contribution<'_>) -> bool {
    let through_the_log = match removal.answer() {
        Some(Answer::EdgeChanged { majority }) => *majority,
        Some(Answer::Forgotten { .. }) => true,
        _ => false,
    };
    through_the_log && by_majority(contribution) && contribution.record.is_before(removal)
}

#[cfg(test)]
mod tests {
    use super::super::evidence::confidence;
    use super::super::trial::judged;
    use super::*;
    use crate::history::{ClientNumber, EdgeName, Record, build};

    const ONE: u64 = 1 << 32;

    fn edge() -> EdgeName {
        EdgeName {
            from: "a".into(),
            to: "b".into(),
            relation: "r".into(),
        }
    }

    fn contribute(at: (u64, u64), number: u32, majority: bool) -> Record {
        let op = Op::Contribute {
            edge: edge(),
            weight: ONE / (u64::from(number) + 1),
            confidence: confidence(number),
            local: !majority,
        };
        build::acked(0, at, op, Answer::EdgeChanged { majority }, 1)
    }

    fn remove(at: (u64, u64)) -> Record {
        let op = Op::Dissociate {
            edge: edge(),
            local: false,
        };
        build::acked(1, at, op, Answer::EdgeChanged { majority: true }, 2)
    }

    fn read(at: (u64, u64), evidence: u64, weight: u64) -> Record {
        let seen = EdgeSeen {
            edge: edge(),
            weight,
            evidence,
        };
        let edges = if evidence == 0 { vec![] } else { vec![seen] };
        let op = Op::Neighbors {
            id: "a".into(),
            level: Level::Linearizable,
        };
        let answer = Answer::Edges {
            edges,
            truncated: false,
        };
        build::acked(2, at, op, answer, 3)
    }

    fn found(records: &[Record]) -> usize {
        judged(judge, records).len()
    }

    #[test]
    fn acknowledged_evidence_is_seen() {
        let given = contribute((1, 2), 0, true);
        assert_eq!(found(&[given.clone(), read((3, 4), 1, ONE)]), 0);
        assert_eq!(found(&[given.clone(), read((3, 4), 0, 0)]), 1);
        // At the same time: either.
        assert_eq!(found(&[given, read((1, 4), 0, 0)]), 0);
    }

    #[test]
    fn what_one_replica_has_is_owed_once_overlays_have_met() {
        let local = contribute((1, 2), 0, false);
        assert_eq!(found(&[local.clone(), read((3, 4), 0, 0)]), 0);
        assert_eq!(found(&[local, read((1_001, 1_002), 0, 0)]), 1);
    }

    #[test]
    fn a_session_sees_its_own() {
        let mut given = contribute((1, 2), 0, false);
        given.client = ClientNumber(2);
        let session = |evidence, weight| {
            let mut read = read((3, 4), evidence, weight);
            if let Op::Neighbors { level, .. } = &mut read.op {
                *level = Level::Session;
            }
            read
        };
        assert_eq!(found(&[given.clone(), session(1, ONE)]), 0);
        assert_eq!(found(&[given.clone(), session(0, 0)]), 1);
        assert_eq!(found(&[contribute((1, 2), 0, false), session(0, 0)]), 0);
        assert_eq!(found(&[given, remove((1, 5)), session(0, 0)]), 0);
    }

    #[test]
    fn a_removal_takes_what_it_knew_and_no_more() {
        let before = contribute((1, 2), 0, true);
        let gone = [before.clone(), remove((3, 4)), read((5, 6), 0, 0)];
        assert_eq!(found(&gone), 0);
        let stays = [before, remove((3, 4)), read((5, 6), 1, ONE)];
        assert_eq!(found(&stays), 1);
        let after = contribute((5, 6), 0, true);
        assert_eq!(found(&[remove((3, 4)), after, read((7, 8), 0, 0)]), 1);
        let meanwhile = contribute((3, 9), 0, true);
        for (evidence, weight) in [(0, 0), (1, ONE)] {
            let records = [
                meanwhile.clone(),
                remove((2, 8)),
                read((10, 11), evidence, weight),
            ];
            assert_eq!(found(&records), 0);
        }
    }

    #[test]
    fn the_weight_is_that_of_the_evidence() {
        let both = [contribute((1, 2), 0, true), contribute((3, 4), 1, true)];
        // 1 x 1 and 1/2 x 4, over 5.
        let mean = (3 << 32) / 5;
        let with = |weight| [both[0].clone(), both[1].clone(), read((5, 6), 5, weight)];
        assert_eq!(found(&with(mean)), 0);
        assert_eq!(found(&with(mean + 1)), 1);
    }
}
