//! Recall agrees with brute force (design.md section 4: a write is visible to a search the moment
//! it is acknowledged; dead memories are never found; distances have the same bits on every CPU).
//!
//! For each answer the live vectors at its positions are worked out from the history, as far as
//! they are certain, and scored with the engine's kernel: scores must have equal bits, hits must be
//! alive and in order, and nothing that is nearer than the last hit may be missing while the space
//! is small enough to be scanned (every search of so few is exact). Broken by: a window boundary
//! off by one on replay; a vector lost between tail and graph; a tombstone forgotten by a restart.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::index::SCAN_LIVE_MAX;
use engram_core::kernel::{Kernel, Row, normalise};
use engram_core::types::Metric;

use super::{Ended, Findings};
use crate::history::{Answer, Op, Positions, Record};

/// The metric of all spaces.
const METRIC: Metric = Metric::Cosine;

#[derive(Default)]
struct Story<'a> {
    partition: Option<u64>,
    writes: Vec<&'a Record>,
    forgets: Vec<&'a Record>,
}

type Stories<'a> = BTreeMap<(&'a str, &'a str), Story<'a>>;

/// What is known of a memory at the moment of an answer.
#[derive(Clone, Copy)]
enum Known<'a> {
    Alive(&'a [f32]),
    Absent,
    Uncertain,
}

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let stories = stories(ended.records);
    for record in ended.records {
        if let (Op::Recall { vector, limit, .. }, Some(Answer::Recalled(hits)), Some(positions)) =
            (&record.op, record.answer(), record.positions())
        {
            let recalled = Recalled {
                record,
                query: row(vector),
                limit: *limit,
                hits,
                positions,
            };
            recalled.check(&stories, findings);
        }
    }
}

fn stories(records: &[Record]) -> Stories<'_> {
    let mut stories = Stories::new();
    for record in records {
        let (id, is_write) = match &record.op {
            Op::Remember { id, .. } => (id, true),
            Op::Forget { id } => (id, false),
            _ => continue,
        };
        let story = stories.entry((&record.space, id)).or_default();
        if let Some(partition) = record.positions().and_then(|all| all.keys().next()) {
            story.partition = Some(*partition);
        }
        if is_write {
            story.writes.push(record);
        } else {
            story.forgets.push(record);
        }
    }
    stories
}

/// A vector as the index keeps it.
fn row(vector: &[f32]) -> Row {
    let mut vector = vector.to_vec();
    // What has no direction stays as it is.
    let _ = normalise(&mut vector);
    Row::new(&vector)
}

fn score(query: &Row, vector: &[f32]) -> f64 {
    let distance = Kernel::detect().distance(METRIC, query, &row(vector));
    1.0 - f64::from(distance.0)
}

fn vector_of(record: &Record) -> &[f32] {
    match &record.op {
        Op::Remember { embedding, .. } => embedding,
        _ => &[],
    }
}

impl Story<'_> {
    fn at<'a>(&'a self, read: &Record, positions: &Positions) -> Known<'a> {
        let Some(position) = self
            .partition
            .and_then(|partition| positions.get(&partition))
        else {
            return Known::Uncertain;
        };
        let mut current: Option<(u64, &Record)> = None;
        for write in &self.writes {
            match write.answer() {
                Some(Answer::Written { version })
                    if version <= position
                        && current.is_none_or(|(newest, _)| newest < *version) =>
                {
                    current = Some((*version, write));
                }
                Some(_) => {}
                None if write.may_have_happened() && !read.is_before(write) => {
                    return Known::Uncertain;
                }
                None => {}
            }
        }
        let forgotten = |forget: &&Record| forget.may_have_happened() && !read.is_before(forget);
        if self
            .forgets
            .iter()
            .copied()
            .any(|forget| forgotten(&forget))
        {
            return Known::Uncertain;
        }
        match current {
            Some((_, write)) if !vector_of(write).is_empty() => Known::Alive(vector_of(write)),
            _ => Known::Absent,
        }
    }
}

struct Recalled<'a> {
    record: &'a Record,
    query: Row,
    limit: usize,
    hits: &'a [(String, f64)],
    positions: &'a Positions,
}

impl Recalled<'_> {
    fn check(&self, stories: &Stories<'_>, findings: &mut Findings<'_>) {
        let mut wrong = |what: String| {
            findings.report_at(
                self.record.completed_at,
                format!("{what}: {}", self.record.line()),
            );
        };
        let distinct: BTreeSet<&String> = self.hits.iter().map(|(id, _)| id).collect();
        if distinct.len() != self.hits.len() || self.hits.len() > self.limit {
            wrong("hits twice, or too many".into());
        }
        if self.hits.windows(2).any(|pair| pair[0].1 < pair[1].1) {
            wrong("hits out of order".into());
        }
        let space = self.record.space.as_str();
        for (id, found) in self.hits {
            let Some(story) = stories.get(&(space, id.as_str())) else {
                wrong(format!("{id} was never written"));
                continue;
            };
            match story.at(self.record, self.positions) {
                Known::Alive(vector) => {
                    let expected = score(&self.query, vector);
                    if expected.to_bits() != found.to_bits() {
                        wrong(format!("{id} scores {found}, brute force says {expected}"));
                    }
                }
                Known::Absent => wrong(format!("{id} is not alive")),
                Known::Uncertain => {}
            }
        }
        self.check_complete(stories, &mut wrong);
    }

    /// Nothing that is certainly alive and nearer is missing.
    fn check_complete(&self, stories: &Stories<'_>, wrong: &mut impl FnMut(String)) {
        let space = self.record.space.as_str();
        let here = stories
            .range((space, "")..)
            .take_while(|((name, _), _)| *name == space);
        let alive: Vec<(&str, f64)> = here
            .filter_map(
                |((_, id), story)| match story.at(self.record, self.positions) {
                    Known::Alive(vector) => Some((*id, score(&self.query, vector))),
                    Known::Absent | Known::Uncertain => None,
                },
            )
            .collect();
        if alive.len() > SCAN_LIVE_MAX {
            return;
        }
        let last = match self.hits.last() {
            Some((_, last)) if self.hits.len() == self.limit => *last,
            _ => f64::NEG_INFINITY,
        };
        let is_hit = |id: &str| self.hits.iter().any(|(hit, _)| hit == id);
        let missed = alive
            .iter()
            .find(|(id, score)| *score > last && !is_hit(id));
        if let Some((id, score)) = missed {
            wrong(format!("{id} was missed, with the score {score}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::{Level, build};

    fn wrote(id: &str, at: u64, vector: [f32; 2]) -> Record {
        let op = Op::Remember {
            id: id.into(),
            value: id.into(),
            embedding: vector.to_vec(),
            expected: None,
            edges: Vec::new(),
        };
        build::acked(0, (at, at), op, Answer::Written { version: at }, at)
    }

    fn recalled(hits: &[(&str, f64)], position: u64) -> Record {
        let op = Op::Recall {
            vector: vec![1.0, 0.0],
            limit: 2,
            level: Level::Stale,
        };
        let hits = hits.iter().map(|(id, score)| ((*id).to_owned(), *score));
        build::acked(1, (50, 60), op, Answer::Recalled(hits.collect()), position)
    }

    fn found(hits: &[(&str, f64)], position: u64) -> usize {
        let records = [
            wrote("near", 1, [1.0, 1.0]),
            wrote("far", 2, [0.0, 1.0]),
            wrote("farther", 3, [-1.0, 0.0]),
            wrote("near", 4, [2.0, 0.0]),
            recalled(hits, position),
        ];
        judged(judge, &records).len()
    }

    #[test]
    fn hits_are_the_nearest_at_the_position() {
        let slanted = score(&row(&[1.0, 0.0]), &[1.0, 1.0]);
        assert!((slanted - std::f64::consts::FRAC_1_SQRT_2).abs() < 1e-4);
        assert_eq!(found(&[("near", slanted), ("far", 0.0)], 3), 0);
        assert_eq!(found(&[("near", 1.0), ("far", 0.0)], 4), 0);
        assert_eq!(found(&[("near", slanted)], 1), 0);
        assert_eq!(found(&[], 0), 0);
    }

    #[test]
    fn wrong_hits_are_found() {
        let old = score(&row(&[1.0, 0.0]), &[1.0, 1.0]);
        assert_eq!(found(&[("near", old), ("far", 0.0)], 4), 1, "an old vector");
        assert_eq!(
            found(&[("far", 0.0), ("farther", -1.0)], 4),
            1,
            "the nearest missed"
        );
        assert_eq!(found(&[("near", 1.0)], 4), 1, "too few");
        assert_eq!(found(&[("far", 0.0), ("near", 1.0)], 4), 1, "out of order");
        assert_eq!(found(&[("near", old), ("far", 0.0)], 1), 1, "not there yet");
        assert_eq!(
            found(&[("near", old), ("nobody", 0.1)], 1),
            1,
            "never written"
        );
    }

    #[test]
    fn what_may_be_gone_is_not_missed() {
        let forget = build::unknown(0, 5, Op::Forget { id: "near".into() });
        let records = [
            wrote("near", 1, [1.0, 0.0]),
            wrote("far", 2, [0.0, 1.0]),
            forget,
            recalled(&[("far", 0.0)], 9),
        ];
        assert_eq!(judged(judge, &records), []);
    }
}
