//! The graph of a space that only grows, at the positions of an answer.
//!
//! Each change of it was acknowledged with its sequence in its partition, and each answer says up to
//! which sequence of each partition it saw: so what must be in it is known. A change that was never
//! answered may be in it when the audit found it, and one that may have been repeated may be in it
//! before the sequence of its answer; both are tried. Of a partition that an answer lacks it has no
//! sequence; its bound must hold for the graph with what was acknowledged there before the question.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::Ended;
use super::super::evidence::{Contribution, EdgeStory, answers, counts, stories, weight};
use super::{Graph, hash, out_edge};
use crate::history::{Answer, EdgeName, EdgeSeen, Op, Positions, Record};

/// Changes without an answer of which all combinations are tried; with more nothing is said.
const UNSURE_MAX: usize = 3;
/// A change that took less cannot have been sent twice: the client library pauses before it repeats.
const REPEATED_FROM: Duration = Duration::from_millis(25);

/// Whether a change is in what a read saw.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
    Perhaps,
}

/// The graphs of which one must have been read; `None` when that cannot be told.
pub fn graphs(ended: &Ended<'_>, read: &Record) -> Option<Vec<Graph>> {
    let here: Vec<Record> = ended
        .records
        .iter()
        .filter(|record| record.space == read.space && record.invoked < read.completed)
        .filter(|record| !record.op.is_read() && record.may_have_happened())
        .cloned()
        .collect();
    let memories = memories(&here, read)?;
    let at = read.positions()?;
    let audited = audited(ended, &read.space);
    let stories = stories(&here);
    let mut unsure = 0;
    let mut judged: BTreeMap<&EdgeName, Vec<(Contribution<'_>, Seen)>> = BTreeMap::new();
    for ((_, edge), story) in &stories {
        let evidence = audited.get(*edge).copied().unwrap_or(0);
        let changes = judge_edge(story, (read, at), evidence)?;
        unsure += changes
            .iter()
            .filter(|(_, seen)| *seen == Seen::Perhaps)
            .count();
        judged.insert(*edge, changes);
    }
    if unsure > UNSURE_MAX {
        return None;
    }
    let graph = |choice| graph(&memories, &judged, choice);
    Some((0..1_u32 << unsure).map(graph).collect())
}

/// The memories, when they were all there before the question.
fn memories<'a>(here: &'a [Record], read: &Record) -> Option<BTreeSet<&'a str>> {
    let (mut sure, mut named) = (BTreeSet::new(), BTreeSet::new());
    for record in here {
        match &record.op {
            Op::Remember { id, edges, .. } if edges.is_empty() => {
                named.insert(id.as_str());
                if record.is_acked() && record.is_before(read) {
                    sure.insert(id.as_str());
                }
            }
            Op::Contribute { local: false, .. } => {}
            // The rest can take something away.
            _ => return None,
        }
    }
    (named == sure).then_some(sure)
}

/// How much evidence the audit found on each edge.
fn audited<'a>(ended: &Ended<'a>, space: &str) -> BTreeMap<&'a EdgeName, u64> {
    let of_audit = answers(ended.records)
        .filter(|(record, _, _)| record.space == space && record.invoked >= ended.audit);
    of_audit
        .flat_map(|(_, edges, _)| edges)
        .map(|seen| (&seen.edge, seen.evidence))
        .collect()
}

fn judge_edge<'a>(
    story: &EdgeStory<'a>,
    (read, at): (&Record, &Positions),
    evidence: u64,
) -> Option<Vec<(Contribution<'a>, Seen)>> {
    let counts = counts(evidence);
    let mut judged = Vec::new();
    for (number, contribution) in &story.contributions {
        let record = contribution.record;
        let seen = match (record.answer(), record.positions()) {
            (Some(Answer::EdgeChanged { majority: true }), Some(positions)) => {
                let (partition, sequence) = positions.iter().next()?;
                match at.get(partition) {
                    Some(seen) if sequence <= seen => Seen::Yes,
                    // The answer to a repetition: what it repeats was applied at an earlier sequence.
                    Some(_) if may_be_repeated(record) => Seen::Perhaps,
                    Some(_) => Seen::No,
                    None if lacks_nothing(read) => return None,
                    None if record.is_before(read) => Seen::Yes,
                    None => Seen::Perhaps,
                }
            }
            (Some(_), _) => return None,
            (None, _) if counts[*number as usize] == 0 => Seen::No,
            (None, _) => Seen::Perhaps,
        };
        judged.push((*contribution, seen));
    }
    Some(judged)
}

fn lacks_nothing(read: &Record) -> bool {
    matches!(read.answer(), Some(Answer::Spread { complete: true, .. }))
}

fn may_be_repeated(record: &Record) -> bool {
    record.completed_at.saturating_sub(record.invoked_at) >= REPEATED_FROM
}

/// The graph with those of the unsure changes whose bit is set.
fn graph(
    memories: &BTreeSet<&str>,
    judged: &BTreeMap<&EdgeName, Vec<(Contribution<'_>, Seen)>>,
    choice: u32,
) -> Graph {
    use engram_core::types::MemoryId;

    let mut graph = Graph::default();
    let ids = memories.iter().filter_map(|id| MemoryId::new(*id).ok());
    graph.memories = ids.map(|id| (id.hash(), id)).collect();
    let mut number = 0;
    for (edge, changes) in judged {
        let mut counted = Vec::new();
        for (contribution, seen) in changes {
            let is_in = match seen {
                Seen::Yes => true,
                Seen::No => false,
                Seen::Perhaps => {
                    number += 1;
                    choice & (1 << (number - 1)) != 0
                }
            };
            counted.extend(is_in.then_some(contribution));
        }
        if counted.is_empty() {
            continue;
        }
        let seen = EdgeSeen {
            edge: (*edge).clone(),
            weight: weight(counted.iter().copied()),
            evidence: 0,
        };
        let from = graph.edges.entry(hash(&edge.from)).or_default();
        from.extend(out_edge(&seen));
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::super::super::evidence::confidence;
    use super::super::super::trial::judged;
    use super::super::judge;
    use super::*;
    use crate::history::{Level, Outcome, SpreadBound, build};

    const ONE: u64 = 1 << 32;

    fn memory(id: &str, at: u64) -> Record {
        let written = Answer::Written { version: at };
        build::acked(0, (at, at + 1), build::write(id, id), written, at)
    }

    fn edge(relation: &str) -> EdgeName {
        EdgeName {
            from: "a".into(),
            to: "b".into(),
            relation: relation.into(),
        }
    }

    fn contribution(relation: &str) -> Op {
        Op::Contribute {
            edge: edge(relation),
            weight: ONE,
            confidence: confidence(0),
            local: false,
        }
    }

    /// A spread of one hop from "a" that was asked for while everything changed.
    fn spread(b: u64, total: u64, position: u64) -> Record {
        let op = Op::Spread {
            seeds: vec!["a".into()],
            hops: 1,
            level: Level::Stale,
            pushes: false,
        };
        build::acked(1, (20, 40), op, answer(b, total, None), position)
    }

    /// With a bound it lacks a partition.
    fn answer(b: u64, total: u64, bound: Option<SpreadBound>) -> Answer {
        let b = (b > 0).then(|| ("b".to_owned(), b));
        Answer::Spread {
            activated: [("a".to_owned(), ONE)].into_iter().chain(b).collect(),
            total,
            missing_seeds: Vec::new(),
            complete: bound.is_none(),
            bound,
        }
    }

    /// What is found when the edge was written at sequence 7, or nobody knows when.
    fn found(is_known: bool, in_audit: bool, spread: Record) -> usize {
        let changed = Answer::EdgeChanged { majority: true };
        let mut change = build::acked(0, (10, 30), contribution("r"), changed, 7);
        if !is_known {
            change.outcome = Outcome::Unknown(String::new());
        }
        let mut records = vec![memory("a", 1), memory("b", 3), change, spread];
        let neighbors = Op::Neighbors {
            id: "a".into(),
            level: Level::Linearizable,
        };
        let edges = in_audit.then(|| EdgeSeen {
            edge: edge("r"),
            weight: ONE,
            evidence: confidence(0),
        });
        let answer = Answer::Edges {
            edges: edges.into_iter().collect(),
            truncated: false,
        };
        records.push(build::acked(9, (1_001, 1_002), neighbors, answer, 9));
        judged(judge, &records).len()
    }

    #[test]
    fn an_answer_shows_what_its_position_says() {
        let half = ONE / 2;
        assert_eq!(found(true, true, spread(half, 2, 7)), 0);
        assert_eq!(found(true, true, spread(0, 1, 6)), 0);
        assert_eq!(found(true, true, spread(0, 1, 7)), 1, "missed");
        assert_eq!(found(true, true, spread(half, 2, 6)), 1, "too early");
    }

    #[test]
    fn an_answer_that_lacks_a_partition_is_held_to_its_bound() {
        let changed = Answer::EdgeChanged { majority: true };
        let change = build::acked(0, (10, 15), contribution("r"), changed, 7);
        let lacking = |most: f64| {
            let bound = SpreadBound {
                all: most,
                each: most,
            };
            let mut read = spread(0, 1, 9);
            read.outcome = Outcome::Acked {
                answer: answer(0, 1, Some(bound)),
                positions: Positions::default(),
            };
            let later = build::unknown(0, 50, contribution("s"));
            let records = [memory("a", 1), memory("b", 3), change.clone(), read, later];
            judged(judge, &records).len()
        };
        let half = (ONE / 2) as f64;
        assert_eq!((lacking(half), lacking(half - 1.0)), (0, 1));
    }

    #[test]
    fn a_repeated_change_may_be_there_before_its_answer_says() {
        let changed = Answer::EdgeChanged { majority: true };
        let repeated = build::acked(0, (10, 2_000), contribution("r"), changed, 7);
        let quick = build::acked(0, (10, 20), contribution("r"), Answer::Dropped, 7);
        assert!(may_be_repeated(&repeated) && !may_be_repeated(&quick));
    }

    #[test]
    fn a_change_that_was_never_answered_may_be_there_or_not() {
        let half = ONE / 2;
        assert_eq!(found(false, true, spread(half, 2, 9)), 0);
        assert_eq!(found(false, true, spread(0, 1, 9)), 0);
        assert_eq!(found(false, true, spread(half + 1, 2, 9)), 1);
        assert_eq!(found(false, false, spread(0, 1, 9)), 0);
        assert_eq!(found(false, false, spread(half, 2, 9)), 1, "never written");
    }
}
