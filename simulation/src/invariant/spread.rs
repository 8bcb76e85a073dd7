//! An exact spread gives bit-identical activations on any layout, and an answer with something
//! missing says so (design.md promise 2 and section 6): it never has too much, and never lacks more
//! than the bound that it gives. So does every answer in `async` mode.
//!
//! The oracle is the engine's single-partition reference, run over the graph that the audit read.
//! It is compared with every complete answer in whose time the graph did not change, whatever was
//! cut off, restarted or moved meanwhile. Where a graph only grows, the positions in an answer say
//! which changes it shows, and it is compared with the graph at these ([`grown`]). Broken by: mass
//! lost on a duplicate message, or counted twice; a frame of an earlier attempt accepted; a hop
//! processed before all of it had arrived; a partition left out without a word; activation that was
//! on its way to a lost node not counted; a replica that takes part in another state than it says.

mod grown;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use engram_core::spread::{Adjacency, ONE, OutEdge, SpreadOutcome, SpreadParameters, spread};
use engram_core::types::{EdgeContext, MemoryHash, MemoryId, Relation, Unit};

use super::acknowledged::dropped_spaces;
use super::evidence::answers;
use super::{Ended, Findings};
use crate::history::{Answer, Op, Record, SpreadBound};

/// Most activated memories that workloads ask for: more than their graphs have.
pub const LIMIT: usize = 10_000;

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let dropped = dropped_spaces(ended.records);
    let mut graphs: BTreeMap<&str, Graph> = BTreeMap::new();
    for record in ended.records {
        let (Op::Spread { .. }, Some(answer)) = (&record.op, record.answer()) else {
            continue;
        };
        let space = record.space.as_str();
        if dropped.contains(space) {
            continue;
        }
        if !is_quiet(ended, record) {
            if let Some(possible) = grown::graphs(ended, record) {
                check(ended, &possible, record, answer, findings);
            }
            continue;
        }
        let graph = graphs
            .entry(space)
            .or_insert_with(|| Graph::of_audit(ended, space));
        let graph = std::slice::from_ref(&*graph);
        check(ended, graph, record, answer, findings);
    }
}

/// Whether the graph was what the audit saw, all the time from the question to the answer: nothing
/// that changes it ended after the question was asked.
fn is_quiet(ended: &Ended<'_>, read: &Record) -> bool {
    if read.invoked >= ended.audit {
        return true;
    }
    let changes = ended
        .records
        .iter()
        .filter(|record| record.space == read.space && !record.op.is_read());
    changes
        .filter(|record| record.may_have_happened())
        .all(|record| record.is_before(read))
}

/// Compares an answer with what the oracle says of one of the graphs that there may have been.
fn check(
    ended: &Ended<'_>,
    graphs: &[Graph],
    record: &Record,
    answer: &Answer,
    findings: &mut Findings<'_>,
) {
    let (
        Op::Spread {
            seeds,
            hops,
            pushes,
            ..
        },
        Answer::Spread {
            activated,
            total,
            missing_seeds,
            complete,
            bound,
        },
    ) = (&record.op, answer)
    else {
        return;
    };
    if !complete && record.invoked >= ended.audit {
        findings.report_at(
            record.completed_at,
            format!("incomplete although all is well: {}", record.line()),
        );
    }
    let seeds: Vec<(MemoryHash, u64)> = seeds.iter().map(|id| (hash(id), ONE)).collect();
    let parameters = SpreadParameters {
        hops: *hops,
        limit: LIMIT,
        ..SpreadParameters::default()
    };
    let missing: BTreeSet<MemoryHash> = missing_seeds.iter().map(|id| hash(id)).collect();
    let mut why_not = Vec::new();
    for graph in graphs {
        let Ok(expected) = spread(graph, &parameters, &seeds) else {
            findings.report(format!("the oracle refuses: {}", record.line()));
            return;
        };
        if *pushes || !complete {
            match within_bound(&expected, activated, *bound) {
                Ok(()) => return,
                Err(what) => why_not.push(what),
            }
            continue;
        }
        let list: Vec<(String, u64)> = expected
            .activated
            .iter()
            .map(|one| (one.id.as_str().to_owned(), one.total))
            .collect();
        let same = list == *activated
            && expected.activated_total == *total
            && missing.iter().eq(expected.missing_seeds.iter());
        if same {
            return;
        }
        let (all, missing) = (expected.activated_total, expected.missing_seeds);
        why_not.push(format!(
            "the oracle has {list:?}, {all} in all, missing {missing:?}"
        ));
    }
    findings.report_at(
        record.completed_at,
        format!("{}: {}", why_not.join("; or "), record.line()),
    );
}

/// The rules are linear, so there is a bound; and nobody has more than the oracle gives.
fn within_bound(
    expected: &SpreadOutcome,
    activated: &[(String, u64)],
    bound: Option<SpreadBound>,
) -> Result<(), String> {
    let bound = bound.ok_or("no bound although the rules are linear")?;
    let mut got: BTreeMap<&str, u64> = activated
        .iter()
        .map(|(id, total)| (id.as_str(), *total))
        .collect();
    let mut lacks = 0;
    for one in &expected.activated {
        let id = one.id.as_str();
        let total = got.remove(id).unwrap_or(0);
        let Some(lack) = one.total.checked_sub(total) else {
            return Err(format!("{id} has {total}, the oracle {}", one.total));
        };
        if lack as f64 > bound.each {
            return Err(format!(
                "{id} lacks {lack}, at most {} was said",
                bound.each
            ));
        }
        lacks += lack;
    }
    if let Some((id, total)) = got.first_key_value() {
        return Err(format!("{id} has {total}, the oracle nothing"));
    }
    if lacks as f64 > bound.all {
        return Err(format!(
            "{lacks} is missing, at most {} was said",
            bound.all
        ));
    }
    Ok(())
}

fn hash(id: &str) -> MemoryHash {
    MemoryId::new(id).map_or(MemoryHash([0; 16]), |id| id.hash())
}

/// The graph of a space, from answers.
#[derive(Clone, Default)]
struct Graph {
    memories: BTreeMap<MemoryHash, MemoryId>,
    edges: BTreeMap<MemoryHash, Vec<OutEdge>>,
}

impl Graph {
    fn of_audit(ended: &Ended<'_>, space: &str) -> Self {
        let mut graph = Self::default();
        for record in ended
            .records
            .iter()
            .filter(|record| record.space == space && record.invoked >= ended.audit)
        {
            if let (Op::Get { id, .. }, Some(Answer::Got(Some(_)))) = (&record.op, record.answer())
                && let Ok(id) = MemoryId::new(id.as_str())
            {
                graph.memories.insert(id.hash(), id);
            }
        }
        for (record, edges, _) in answers(ended.records) {
            let Op::Neighbors { id, .. } = &record.op else {
                continue;
            };
            if record.space == space && record.invoked >= ended.audit {
                // The last look at a memory counts.
                graph
                    .edges
                    .insert(hash(id), edges.iter().filter_map(out_edge).collect());
            }
        }
        graph
    }
}

fn out_edge(seen: &crate::history::EdgeSeen) -> Option<OutEdge> {
    let to = MemoryId::new(seen.edge.to.as_str()).ok()?;
    Some(OutEdge {
        to: to.hash(),
        slot: to.hash_slot(),
        relation: Relation::new(&seen.edge.relation)?,
        weight: Unit::from_bits(seen.weight)?,
    })
}

impl Adjacency for Graph {
    type Error = Infallible;

    fn resolve(&self, memory: MemoryHash) -> Result<bool, Infallible> {
        Ok(self.memories.contains_key(&memory))
    }

    fn out_edges(&self, memory: MemoryHash, sink: &mut Vec<OutEdge>) -> Result<(), Infallible> {
        sink.extend(self.edges.get(&memory).into_iter().flatten().cloned());
        Ok(())
    }

    fn id(&self, memory: MemoryHash) -> Result<MemoryId, Infallible> {
        let known = self.memories.get(&memory).cloned();
        Ok(known.unwrap_or_else(|| unreachable!("only what resolved is asked for")))
    }

    fn pinned(&self) -> EdgeContext {
        EdgeContext::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judged;
    use super::*;
    use crate::history::{EdgeName, EdgeSeen, Level, build};

    const HALF: u64 = ONE / 2;

    fn spread_answer(at: (u64, u64), b: u64, total: u64, complete: bool) -> Record {
        let bound = SpreadBound {
            all: HALF as f64,
            each: HALF as f64,
        };
        answered(at, b, total, complete, (false, Some(bound)))
    }

    fn answered(
        at: (u64, u64),
        b: u64,
        total: u64,
        complete: bool,
        (pushes, bound): (bool, Option<SpreadBound>),
    ) -> Record {
        let op = Op::Spread {
            seeds: vec!["a".into()],
            hops: 1,
            level: Level::Linearizable,
            pushes,
        };
        let answer = Answer::Spread {
            activated: vec![("a".into(), ONE), ("b".into(), b)],
            total,
            missing_seeds: Vec::new(),
            complete,
            bound,
        };
        build::acked(0, at, op, answer, 9)
    }

    fn audited() -> Vec<Record> {
        let get = |id: &str, at| {
            let found = build::got(1, id);
            build::acked(
                9,
                (at, at + 1),
                build::get(id, Level::Linearizable),
                found,
                9,
            )
        };
        let neighbors = Op::Neighbors {
            id: "a".into(),
            level: Level::Linearizable,
        };
        let edge = EdgeName {
            from: "a".into(),
            to: "b".into(),
            relation: "r".into(),
        };
        let seen = EdgeSeen {
            edge,
            weight: 1 << 32,
            evidence: 1,
        };
        let edges = Answer::Edges {
            edges: vec![seen],
            truncated: false,
        };
        vec![
            get("a", 1_001),
            get("b", 1_003),
            build::acked(9, (1_005, 1_006), neighbors, edges, 9),
        ]
    }

    fn found(first: &[Record], spread: Record) -> usize {
        let mut records = first.to_vec();
        records.push(spread);
        records.extend(audited());
        judged(judge, &records).len()
    }

    #[test]
    fn answers_have_the_oracles_bits() {
        assert_eq!(found(&[], spread_answer((1, 2), HALF, 2, true)), 0);
        assert_eq!(found(&[], spread_answer((1, 2), HALF - 1, 2, true)), 1);
        assert_eq!(found(&[], spread_answer((1, 2), HALF, 3, true)), 1);
        // It says itself that something is missing.
        assert_eq!(found(&[], spread_answer((1, 2), 1, 2, false)), 0);
        assert_eq!(found(&[], spread_answer((2_000, 2_001), 1, 2, false)), 1);
    }

    #[test]
    fn what_is_missing_is_within_the_bound() {
        let bound = |all, each| Some(SpreadBound { all, each });
        let judged = |b, complete, how| found(&[], answered((1, 2), b, 2, complete, how));
        for complete in [true, false] {
            assert_eq!(judged(HALF - 7, complete, (true, bound(7.0, 7.0))), 0);
            assert_eq!(judged(HALF - 7, complete, (true, bound(6.0, 7.0))), 1);
            assert_eq!(judged(HALF - 7, complete, (true, bound(7.0, 6.0))), 1);
            assert_eq!(judged(HALF + 1, complete, (true, bound(7.0, 7.0))), 1);
            assert_eq!(judged(HALF, complete, (true, None)), 1);
        }
        assert_eq!(judged(HALF - 7, false, (false, bound(6.0, 7.0))), 1);
    }

    #[test]
    fn a_graph_that_changes_is_compared_only_when_it_is_quiet() {
        let change = build::acked(
            0,
            (1, 5),
            build::write("c", "v"),
            Answer::Written { version: 1 },
            1,
        );
        let change = std::slice::from_ref(&change);
        assert_eq!(found(change, spread_answer((3, 9), 1, 2, true)), 0);
        assert_eq!(found(change, spread_answer((6, 9), 1, 2, true)), 1);
        assert_eq!(found(change, spread_answer((1_500, 1_501), 1, 2, true)), 1);
    }
}
