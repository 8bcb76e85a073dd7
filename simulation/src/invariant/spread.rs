//! An exact spread gives bit-identical activations on any layout, and an answer with something
//! missing says so (design.md promise 2 and section 6).
//!
//! The oracle is the engine's single-partition reference, run over the graph that the audit read.
//! It is compared with every complete answer in whose time the graph did not change, whatever was
//! cut off, restarted or moved meanwhile. Where a graph only grows, the positions in an answer say
//! which changes it shows, and it is compared with the graph at these ([`grown`]). Broken by: mass
//! lost on a duplicate message, or counted twice; a frame of an earlier attempt accepted; a hop
//! processed before all of it had arrived; a partition left out without a word; a replica that takes
//! part in another state than it says.

mod grown;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use engram_core::spread::{Adjacency, ONE, OutEdge, SpreadParameters, spread};
use engram_core::types::{EdgeContext, MemoryHash, MemoryId, Relation, Unit};

use super::acknowledged::dropped_spaces;
use super::evidence::answers;
use super::{Ended, Findings};
use crate::history::{Answer, Op, Record};

/// Most activated memories that workloads ask for: more than their graphs have.
pub const LIMIT: usize = 10_000;

pub fn judge(ended: &Ended<'_>, findings: &mut Findings<'_>) {
    let dropped = dropped_spaces(ended.records);
    let mut graphs: BTreeMap<&str, Graph> = BTreeMap::new();
    for record in ended.records {
        let (Op::Spread { seeds, hops, .. }, Some(answer)) = (&record.op, record.answer()) else {
            continue;
        };
        let space = record.space.as_str();
        if dropped.contains(space) {
            continue;
        }
        if !is_quiet(ended, record) {
            if let Some(possible) = grown::graphs(ended, record) {
                check(ended, &possible, record, (seeds, *hops), answer, findings);
            }
            continue;
        }
        let graph = graphs
            .entry(space)
            .or_insert_with(|| Graph::of_audit(ended, space));
        let graph = std::slice::from_ref(&*graph);
        check(ended, graph, record, (seeds, *hops), answer, findings);
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
    (seeds, hops): (&[String], u32),
    answer: &Answer,
    findings: &mut Findings<'_>,
) {
    let Answer::Spread {
        activated,
        total,
        missing_seeds,
        complete,
    } = answer
    else {
        return;
    };
    if !complete {
        if record.invoked >= ended.audit {
            findings.report_at(
                record.completed_at,
                format!("incomplete although all is well: {}", record.line()),
            );
        }
        return;
    }
    let seeds: Vec<(MemoryHash, u64)> = seeds.iter().map(|id| (hash(id), ONE)).collect();
    let parameters = SpreadParameters {
        hops,
        limit: LIMIT,
        ..SpreadParameters::default()
    };
    let missing: BTreeSet<MemoryHash> = missing_seeds.iter().map(|id| hash(id)).collect();
    let mut all_expected = Vec::new();
    for graph in graphs {
        let Ok(expected) = spread(graph, &parameters, &seeds) else {
            findings.report(format!("the oracle refuses: {}", record.line()));
            return;
        };
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
        all_expected.push((list, expected.activated_total, expected.missing_seeds));
    }
    findings.report_at(
        record.completed_at,
        format!("the oracle has {all_expected:?}: {}", record.line()),
    );
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
        let op = Op::Spread {
            seeds: vec!["a".into()],
            hops: 1,
            level: Level::Linearizable,
        };
        let answer = Answer::Spread {
            activated: vec![("a".into(), ONE), ("b".into(), b)],
            total,
            missing_seeds: Vec::new(),
            complete,
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
