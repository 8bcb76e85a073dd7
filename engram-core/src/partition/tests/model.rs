//! The engine against a naive one: random operations, crashes, restarts and snapshots. Whatever
//! happens to one replica, it answers as the model does and ends with the digests of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::support::*;
use crate::command::{Expected, Op, OpOutcome, PartitionCommand, Rejection};
use crate::kernel::Kernel;
use crate::partition::{Direction, Partition, PartitionOptions};
use crate::storage::{Batch, MemoryStorage};
use crate::types::{EdgeContext, MarkId, Sequence, SlotRange};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Remember {
        name: u8,
        row: Option<[i8; 2]>,
        edges: Vec<(u8, u8)>,
        absent: bool,
    },
    Forget {
        name: u8,
        lag: u64,
    },
    Associate {
        from: u8,
        to: u8,
        weight: u8,
    },
    Dissociate {
        from: u8,
        to: u8,
        lag: u64,
    },
    Retry {
        back: usize,
    },
    Mark,
    Crash {
        kept: usize,
    },
    Restart {
        with_index: bool,
    },
    Transfer,
    Jobs {
        count: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let name = || 0_u8..10;
    let row = prop::option::weighted(0.8, [-9_i8..9, -2_i8..3]);
    let edges = prop::collection::vec((name(), 0_u8..=4), 0..3);
    prop_oneof![
        6 => (name(), row, edges, prop::bool::weighted(0.2)).prop_map(|(name, row, edges, absent)| {
            Event::Remember { name, row, edges, absent }
        }),
        2 => (name(), 0_u64..4).prop_map(|(name, lag)| Event::Forget { name, lag }),
        4 => (name(), name(), 0_u8..=4)
            .prop_map(|(from, to, weight)| Event::Associate { from, to, weight }),
        2 => (name(), name(), 0_u64..4)
            .prop_map(|(from, to, lag)| Event::Dissociate { from, to, lag }),
        1 => (1_usize..5).prop_map(|back| Event::Retry { back }),
        1 => Just(Event::Mark),
        1 => (0_usize..9).prop_map(|kept| Event::Crash { kept }),
        1 => any::<bool>().prop_map(|with_index| Event::Restart { with_index }),
        1 => Just(Event::Transfer),
        1 => (1_usize..4).prop_map(|count| Event::Jobs { count }),
    ]
}

#[derive(Default)]
struct Model {
    sequence: u64,
    memories: BTreeMap<String, (Option<[f32; 4]>, u64)>,
    /// (from, to) -> (sequence, weight in quarters) of each observation.
    edges: BTreeMap<(String, String), Vec<(u64, u64)>>,
}

impl Model {
    fn associate(&mut self, from: &str, to: &str, weight: u8) {
        let seen = self.edges.entry((from.into(), to.into())).or_default();
        seen.push((self.sequence, u64::from(weight)));
    }

    fn remove(&mut self, covers: impl Fn(&str, &str) -> bool, up_to: u64) {
        for ((from, to), seen) in &mut self.edges {
            if covers(from, to) {
                seen.retain(|(sequence, _)| *sequence > up_to);
            }
        }
    }

    fn neighbors(&self, name: &str, direction: Direction) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for ((from, to), seen) in &self.edges {
            let (near, far) = match direction {
                Direction::Out => (from, to),
                Direction::In => (to, from),
            };
            let there = self.memories.contains_key(from) && self.memories.contains_key(to);
            if near == name && there && !seen.is_empty() {
                let sum: u64 = seen.iter().map(|(_, weight)| weight << 30).sum();
                found.push((far.clone(), sum / seen.len() as u64));
            }
        }
        found.sort_by_key(|(far, weight)| (std::cmp::Reverse(*weight), id(far).hash()));
        found
    }

    fn recall(&self, query: [f32; 4], limit: usize) -> Vec<f32> {
        let distance = |row: [f32; 4]| {
            row.iter()
                .zip(query)
                .map(|(a, b)| (a - b) * (a - b))
                .sum::<f32>()
        };
        let rows = self.memories.values().filter_map(|(row, _)| *row);
        let mut all: Vec<f32> = rows.map(distance).collect();
        all.sort_by(f32::total_cmp);
        all.truncate(limit);
        all
    }
}

/// Two replicas of one log, and what they should say.
struct Run {
    model: Model,
    steady: Driven,
    tried: Driven,
    marks: u64,
    counter: u64,
}

fn name_of(n: u8) -> String {
    format!("m{n}")
}

impl Run {
    fn new() -> Self {
        let portable = PartitionOptions {
            kernel: Kernel::PORTABLE,
            ..Default::default()
        };
        Self {
            model: Model {
                sequence: 1,
                ..Model::default()
            },
            steady: Driven::new(),
            tried: Driven::with(SlotRange::ALL, portable),
            marks: 0,
            counter: 0,
        }
    }

    fn apply(&mut self, command: PartitionCommand) -> Option<OpOutcome> {
        let steady = self.steady.apply(command.clone());
        let tried = self.tried.apply(command);
        assert_eq!(steady, tried);
        self.model.sequence += 1;
        assert_eq!(steady.sequence.0, self.model.sequence);
        steady.outcomes.first().map(|(_, outcome)| outcome.clone())
    }

    fn op(&mut self, op: Op) -> Option<OpOutcome> {
        self.counter += 1;
        self.apply(write(self.counter, vec![op]))
    }

    fn context(&self, lag: u64) -> EdgeContext {
        let sequence = Sequence(self.model.sequence.saturating_sub(lag));
        EdgeContext {
            sequence,
            ..EdgeContext::default()
        }
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::Remember {
                name,
                row,
                edges,
                absent,
            } => self.remember(*name, *row, edges, *absent),
            Event::Forget { name, lag } => {
                let (name, context) = (name_of(*name), self.context(*lag));
                let up_to = context.sequence.0;
                self.op(forget(&name, context));
                self.model.memories.remove(&name);
                self.model.remove(|from, _| from == name, up_to);
            }
            Event::Associate { from, to, weight } => {
                let (from, to) = (name_of(*from), name_of(*to));
                self.op(associate(&from, &to, f64::from(*weight) / 4.0));
                self.model.associate(&from, &to, *weight);
            }
            Event::Dissociate { from, to, lag } => {
                let (from, to, context) = (name_of(*from), name_of(*to), self.context(*lag));
                let up_to = context.sequence.0;
                self.op(dissociate(&from, &to, context));
                self.model.remove(|a, b| a == from && b == to, up_to);
            }
            Event::Retry { back } => {
                let writes: Vec<_> = self
                    .steady
                    .log
                    .iter()
                    .rev()
                    .filter(|command| matches!(command, PartitionCommand::Write(_)))
                    .take(*back)
                    .cloned()
                    .collect();
                if let Some(command) = writes.last() {
                    self.apply(command.clone());
                }
            }
            Event::Mark => {
                self.marks += 1;
                self.apply(PartitionCommand::Mark {
                    mark: MarkId(self.marks),
                });
            }
            Event::Crash { kept } => self.tried.crash(*kept),
            Event::Restart { with_index } => {
                let mut index = Vec::new();
                self.tried.partition.save_index(&mut index).expect("saves");
                self.tried.reopen(with_index.then_some(index.as_slice()));
            }
            Event::Transfer => self.transfer(),
            Event::Jobs { count } => {
                for _ in 0..*count {
                    let Some(job) = self.tried.partition.next_job() else {
                        break;
                    };
                    let linked = self.tried.partition.run(&job);
                    self.tried.partition.commit(linked).expect("commits");
                }
            }
        }
    }

    fn remember(&mut self, name: u8, row: Option<[i8; 2]>, edges: &[(u8, u8)], absent: bool) {
        let name = name_of(name);
        let row = row.map(|[a, b]| [f32::from(a), f32::from(b), 1.0, 0.0]);
        let mut op = remember(&name, row);
        // Two edges to one target in one request would be twins.
        let edges: BTreeMap<u8, u8> = edges.iter().copied().collect();
        let edge = |(to, weight): (&u8, &u8)| out_edge(&name_of(*to), f64::from(*weight) / 4.0);
        op.edges = edges.iter().map(edge).collect();
        let refused = absent && self.model.memories.contains_key(&name);
        if absent {
            op.expected = Expected::Absent;
        }
        let outcome = self.op(Op::Remember(op));
        if refused {
            let mismatch = Some(OpOutcome::Rejected(Rejection::VersionMismatch {
                expected: "no memory".into(),
                found: format!("has version {}", self.model.memories[&name].1),
            }));
            assert_eq!(outcome, mismatch);
            return;
        }
        self.model
            .memories
            .insert(name.clone(), (row, self.model.sequence));
        for (to, weight) in &edges {
            self.model.associate(&name, &name_of(*to), *weight);
        }
    }

    /// The tried replica is thrown away and made again from a snapshot of the steady one.
    fn transfer(&mut self) {
        let mut bytes = Vec::new();
        let snapshot = self.steady.partition.snapshot().expect("saves");
        snapshot.write_to(&mut bytes).expect("writes");
        let storage = MemoryStorage::new();
        self.tried.partition = Partition::install_with(
            Arc::new(storage.clone()),
            P,
            &mut bytes.as_slice(),
            Batch::new(),
            self.tried.options,
        )
        .expect("installs");
        self.tried.storage = storage;
    }

    fn check(&self) {
        for driven in [&self.steady, &self.tried] {
            let status = driven.partition.status();
            assert_eq!(status.memories, self.model.memories.len() as u64);
            let edges = self
                .model
                .edges
                .values()
                .filter(|seen| !seen.is_empty())
                .count();
            assert_eq!(status.edges, edges as u64);
            for name in (0..10).map(name_of) {
                let found = driven
                    .partition
                    .get(&[id(&name)], true)
                    .expect("reads")
                    .memories;
                let found = found[0]
                    .as_ref()
                    .map(|found| (found.embedding.clone(), found.memory.version.0));
                let expected = self.model.memories.get(&name);
                let expected = expected.map(|(row, at)| (row.map(Vec::from), *at));
                assert_eq!(found, expected);
                for direction in [Direction::Out, Direction::In] {
                    let expected = self.model.neighbors(&name, direction);
                    assert_eq!(driven.neighbors(&name, direction), expected, "{name}");
                }
            }
            self.check_recall(driven);
        }
    }

    fn check_recall(&self, driven: &Driven) {
        let query = [3.0, 1.0, 0.0, 0.0];
        let query_of = crate::partition::RecallQuery::new(&query, 4);
        let found = driven.partition.recall(&query_of).expect("recalls");
        let found: Vec<f32> = found.hits.iter().map(|hit| hit.distance).collect();
        assert_eq!(found, self.model.recall(query, 4));
    }

    fn finish(&self) {
        self.steady.run_jobs();
        self.tried.run_jobs();
        let (steady, tried) = (
            self.steady.partition.status(),
            self.tried.partition.status(),
        );
        assert_eq!(steady.log_hash, tried.log_hash);
        assert_eq!(steady.memory_digest, tried.memory_digest);
        assert_eq!(steady.edge_digest, tried.edge_digest);
        for mark in 1..=self.marks {
            let steady = self.steady.partition.marked(MarkId(mark)).expect("reads");
            let tried = self.tried.partition.marked(MarkId(mark)).expect("reads");
            assert!(steady.is_none_or(|digests| digests.topology.is_some()));
            assert_eq!(steady, tried);
        }
        let position = self.steady.partition.index.sealed();
        assert_eq!(position, self.tried.partition.index.sealed());
        let digest = self.steady.partition.index.digest_at(position);
        assert_eq!(digest, self.tried.partition.index.digest_at(position));
        self.steady.assert_scrubs();
        self.tried.assert_scrubs();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_engine_is_its_model(events in prop::collection::vec(event(), 1..60)) {
        let mut run = Run::new();
        for event in &events {
            run.step(event);
            run.check();
        }
        run.finish();
    }

    /// A memory and its edges are one: whatever a crash loses, both are there or neither.
    #[test]
    fn a_crash_keeps_a_memory_with_its_edges(memories in 1_usize..20, kept in 0_usize..25) {
        let mut driven = Driven::new();
        driven.op(Op::Remember(remember("hub", None)));
        for n in 0..memories {
            let mut op = remember(&n.to_string(), Some([n as f32; 4]));
            op.edges = vec![out_edge("hub", 0.5)];
            driven.op(Op::Remember(op));
        }
        driven.storage = driven.storage.crash(kept);
        let reopened = Partition::open(Arc::new(driven.storage.clone()), P, None).expect("opens");
        for n in 0..memories {
            let name = n.to_string();
            let there = reopened.get(&[id(&name)], false).expect("reads").memories[0].is_some();
            let edges = neighbors(&reopened, "hub", Direction::In).edges;
            let joined = edges.iter().any(|edge| edge.from == id(&name));
            prop_assert_eq!(there, joined);
        }
        let (found, view) = reopened.recompute_digests().expect("reads");
        prop_assert_eq!(found, view.digests());
        prop_assert_eq!(view.sequence().0 as usize, 1 + kept.min(memories + 1));
    }
}
