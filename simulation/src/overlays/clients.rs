//! What clients do: changes through the log, at one replica alone, and by both roads.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::command::{
    Associate, Dissociate, EdgeChange, Expected, Forget, Op, PartitionCommand, Remember, Write,
};
use engram_core::partition::LocalChange;
use engram_core::types::{ClientId, Hlc, MemoryId, Relation, RequestId, Unit};
use engram_node::overlay::Event;
use rand::RngExt as _;

use super::node::PARTITION;
use super::oracle;
use super::world::World;

/// Memories, each of which is a source and a target.
pub const ENDS: usize = 4;
/// Share of the changes that are removals: one in so many.
const REMOVALS: u32 = 12;

const CLIENT: ClientId = ClientId([1; 16]);

pub fn end(number: usize) -> MemoryId {
    let id = MemoryId::new(format!("end-{number}"));
    id.unwrap_or_else(|error| panic!("a valid id: {error}"))
}

fn relation() -> Relation {
    Relation::new("near").unwrap_or_else(|| panic!("a valid relation"))
}

fn remember(id: MemoryId) -> Op {
    Op::Remember(Remember {
        id,
        content: String::new(),
        embedding: None,
        embedding_model: String::new(),
        labels: BTreeSet::new(),
        properties: BTreeMap::new(),
        confidence: Unit::ONE,
        edges: Vec::new(),
        expected: Expected::Anything,
    })
}

/// One change of an edge, before it is known which road it takes.
#[derive(Clone)]
struct Wanted {
    from: MemoryId,
    to: MemoryId,
    /// Absent in a removal.
    weight: Option<Unit>,
}

impl World {
    pub(super) fn remember_ends(&mut self) {
        for number in 0..ENDS {
            let write = self.write(remember(end(number)));
            self.log.push(write);
        }
    }

    fn stamp(&mut self) -> Hlc {
        // Clocks jump by years; nothing but decay and audit rests on them.
        let jump = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(0..1_u64 << 40),
            _ => 1_700_000_000_000,
        };
        Hlc::from_millis(jump + self.counter)
    }

    /// Under a request id of its own, which [`World::counter`] names until the next one.
    fn write(&mut self, op: Op) -> PartitionCommand {
        self.counter += 1;
        PartitionCommand::Write(Write {
            client: CLIENT,
            counter: self.counter,
            retried: false,
            stamp: self.stamp(),
            ops: vec![(0, op)],
        })
    }

    fn wanted(&mut self) -> Wanted {
        let from = self.rng.random_range(0..ENDS);
        let to = (from + 1 + self.rng.random_range(0..2)) % ENDS;
        let weight = Unit::from_bits(self.rng.random_range(0_u64..=4) << 30);
        let removes = self.rng.random_range(0..REMOVALS) == 0;
        Wanted {
            from: end(from),
            to: end(to),
            weight: weight.filter(|_| !removes),
        }
    }

    /// The change as this leader proposes it: a removal is issued after a barrier.
    fn op(&mut self, leader: usize, wanted: Wanted) -> Op {
        let Wanted { from, to, weight } = wanted;
        let Some(weight) = weight else {
            self.apply(leader, usize::MAX);
            let key = oracle::key(&from, &to, &relation());
            let context = self.nodes[&leader].partition.removal_context(&key);
            return Op::Dissociate(Dissociate {
                from,
                to,
                relation: relation(),
                context,
            });
        };
        Op::Associate(Associate {
            from,
            to,
            relation: relation(),
            weight,
            confidence: Unit::ONE,
        })
    }

    pub(super) fn majority_change(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let wanted = self.wanted();
        let op = self.op(leader, wanted);
        let write = self.write(op);
        self.log.push(write);
    }

    /// A memory goes, and comes back at once.
    pub(super) fn forget(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        self.apply(leader, usize::MAX);
        let id = end(self.rng.random_range(0..ENDS));
        let context = self.nodes[&leader].partition.forget_context(id.hash());
        for op in [
            Op::Forget(Forget {
                id: id.clone(),
                expected: Expected::Anything,
                context,
                purge: false,
            }),
            remember(id),
        ] {
            let write = self.write(op);
            self.log.push(write);
        }
        self.report.forgotten += 1;
    }

    pub(super) fn local_change(&mut self) {
        let wanted = self.wanted();
        self.counter += 1;
        self.accept(wanted, false);
    }

    /// A majority is asked, and does not answer in time: one replica accepts it, under the same
    /// request. The attempt is in the log already, comes there late, or is lost.
    pub(super) fn unanswered_change(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let wanted = self.wanted();
        let op = self.op(leader, wanted.clone());
        let write = self.write(op);
        match self.rng.random_bool(0.5) {
            true => self.log.push(write),
            false => self.late.push(write),
        }
        self.accept(wanted, true);
        self.report.twins += 1;
    }

    pub(super) fn late_proposal(&mut self) {
        if self.late.is_empty() || self.leader().is_none() {
            return;
        }
        let chosen = self.rng.random_range(0..self.late.len());
        let write = self.late.swap_remove(chosen);
        self.log.push(write);
    }

    /// Some replica accepts a change under the request that was given out last.
    fn accept(&mut self, wanted: Wanted, retried: bool) {
        let number = self.members[self.rng.random_range(0..self.members.len())];
        if !self.is_up(number) {
            return;
        }
        let change = wanted.weight.map_or_else(
            || EdgeChange::Remove {
                context: Default::default(),
            },
            |weight| EdgeChange::Contribute {
                weight,
                confidence: Unit::ONE,
            },
        );
        let change = LocalChange {
            request: RequestId {
                client: CLIENT,
                counter: self.counter,
                index: 0,
            },
            retried,
            stamp: self.stamp(),
            from: wanted.from,
            to: wanted.to,
            relation: relation(),
            change,
        };
        let node = &self.nodes[&number];
        let Ok(deltas) = node.partition.accept_local(node.actor, &[change]) else {
            return;
        };
        self.report.local_changes += 1;
        for delta in &deltas {
            let before = self.acknowledged.insert(delta.dot, delta.clone());
            if before.is_some_and(|before| before != *delta) {
                self.violation(format!("the dot {:?} was given twice", delta.dot));
            }
        }
        let partition = PARTITION;
        self.node_step(number, Event::Accepted { partition, deltas });
    }
}
