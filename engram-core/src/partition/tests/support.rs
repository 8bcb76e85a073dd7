//! A partition with its log: commands go in, crashes and restarts replay what was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::command::{
    Applied, Associate, Dissociate, Expected, Forget, Op, OpOutcome, OutEdge, PartitionCommand,
    Remember, Write,
};
use crate::partition::{
    Direction, Neighbors, NeighborsQuery, Partition, PartitionOptions, RecallQuery,
};
use crate::storage::{Batch, Durability, MemoryStorage, Storage};
use crate::types::{
    ClientId, EdgeContext, Embedding, Hlc, IndexParameters, MemoryId, Metric, PartitionId,
    Relation, SlotRange, SpaceConfig, SpaceId, Unit,
};

pub const P: PartitionId = PartitionId(7);
pub const DIMENSION: u32 = 4;

pub fn config() -> SpaceConfig {
    SpaceConfig {
        space: SpaceId(1),
        name: "test".into(),
        dimension: DIMENSION,
        metric: Metric::L2,
        index: IndexParameters {
            m: 4,
            ef_construction: 16,
            ..IndexParameters::new(11)
        },
        embedding_model: String::new(),
        decay: crate::types::Decay::None,
    }
}

pub fn id(text: &str) -> MemoryId {
    MemoryId::new(text).expect("a valid id")
}

pub fn relation(text: &str) -> Relation {
    Relation::new(text).expect("a valid relation")
}

pub fn unit(value: f64) -> Unit {
    Unit::from_f64(value).expect("in [0, 1]")
}

pub fn remember(name: &str, vector: Option<[f32; 4]>) -> Remember {
    let make = |row: [f32; 4]| Embedding::new(row.to_vec(), DIMENSION, Metric::L2).expect("row");
    Remember {
        id: id(name),
        content: format!("about {name}"),
        embedding: vector.map(make),
        embedding_model: String::new(),
        labels: BTreeSet::new(),
        properties: BTreeMap::new(),
        confidence: Unit::ONE,
        edges: Vec::new(),
        expected: Expected::Anything,
    }
}

pub fn out_edge(to: &str, weight: f64) -> OutEdge {
    OutEdge {
        to: id(to),
        relation: relation("r"),
        weight: unit(weight),
        confidence: Unit::ONE,
    }
}

pub fn associate(from: &str, to: &str, weight: f64) -> Op {
    let OutEdge {
        to,
        relation,
        weight,
        confidence,
    } = out_edge(to, weight);
    Op::Associate(Associate {
        from: id(from),
        to,
        relation,
        weight,
        confidence,
    })
}

pub fn dissociate(from: &str, to: &str, context: EdgeContext) -> Op {
    Op::Dissociate(Dissociate {
        from: id(from),
        to: id(to),
        relation: relation("r"),
        context,
    })
}

pub fn forget(name: &str, context: EdgeContext) -> Op {
    Op::Forget(Forget {
        id: id(name),
        expected: Expected::Anything,
        context,
        purge: false,
    })
}

pub const CLIENT: ClientId = ClientId([9; 16]);

pub fn write(counter: u64, ops: Vec<Op>) -> PartitionCommand {
    PartitionCommand::Write(Write {
        client: CLIENT,
        counter,
        retried: false,
        stamp: Hlc::from_millis(1_000 + counter),
        ops: (0..).zip(ops).collect(),
    })
}

/// Stands for the command's bytes in a log.
pub fn bytes_of(command: &PartitionCommand) -> Vec<u8> {
    format!("{command:?}").into_bytes()
}

pub struct Driven {
    pub storage: MemoryStorage,
    pub partition: Arc<Partition>,
    pub log: Vec<PartitionCommand>,
    pub options: PartitionOptions,
    counter: u64,
}

impl Driven {
    pub fn new() -> Self {
        Self::with(SlotRange::ALL, PartitionOptions::default())
    }

    pub fn with(slots: SlotRange, options: PartitionOptions) -> Self {
        let storage = MemoryStorage::new();
        let mut batch = Batch::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let partition = Partition::create_with(shared, P, config(), slots, &mut batch, options);
        storage.write(batch, Durability::Sync).expect("writes");
        Self {
            storage,
            partition,
            log: Vec::new(),
            options,
            counter: 0,
        }
    }

    pub fn apply(&mut self, command: PartitionCommand) -> Applied {
        let bytes = bytes_of(&command);
        let applied = self
            .partition
            .apply(&command, &bytes, Batch::new())
            .expect("applies");
        self.log.push(command);
        applied
    }

    /// One operation in a request of its own.
    pub fn op(&mut self, op: Op) -> OpOutcome {
        self.counter += 1;
        let applied = self.apply(write(self.counter, vec![op]));
        applied.outcomes[0].1.clone()
    }

    pub fn remember(&mut self, name: &str, vector: [f32; 4]) -> OpOutcome {
        self.op(Op::Remember(remember(name, Some(vector))))
    }

    /// The machine dies; a prefix of what was not synced survives. The log is applied again from
    /// where the state is.
    pub fn crash(&mut self, kept: usize) {
        self.storage = self.storage.crash(kept);
        self.reopen(None);
    }

    pub fn reopen(&mut self, index: Option<&[u8]>) {
        let shared: Arc<dyn Storage> = Arc::new(self.storage.clone());
        let mut index = index;
        let source = index.as_mut().map(|index| index as &mut dyn std::io::Read);
        self.partition = Partition::open_with(shared, P, source, self.options).expect("opens");
        self.replay();
    }

    pub fn replay(&mut self) {
        // The creation is sequence 1, and not in this log.
        let applied = (self.partition.sequence().0 - 1) as usize;
        for command in &self.log[applied..] {
            self.partition
                .apply(command, &bytes_of(command), Batch::new())
                .expect("applies");
        }
    }

    pub fn run_jobs(&self) -> usize {
        let mut jobs = 0;
        while let Some(job) = self.partition.next_job() {
            let linked = self.partition.run(&job);
            drop(job);
            self.partition.commit(linked).expect("commits");
            jobs += 1;
        }
        jobs
    }

    pub fn neighbors(&self, name: &str, direction: Direction) -> Vec<(String, u64)> {
        let found = neighbors(&self.partition, name, direction);
        let other = |edge: &crate::partition::FoundEdge| match direction {
            Direction::Out => edge.to.to_string(),
            Direction::In => edge.from.to_string(),
        };
        found
            .edges
            .iter()
            .map(|edge| (other(edge), edge.weight.bits()))
            .collect()
    }

    pub fn recall(&self, vector: [f32; 4], limit: usize) -> Vec<String> {
        let query = RecallQuery {
            vector: &vector,
            limit,
            effort: 0,
            filter: None,
            exclude: None,
        };
        let recalled = self.partition.recall(&query).expect("recalls");
        recalled
            .hits
            .iter()
            .map(|hit| hit.memory.id.to_string())
            .collect()
    }

    pub fn assert_scrubs(&self) {
        let (found, view) = self.partition.recompute_digests().expect("recomputes");
        assert_eq!(found, view.digests());
    }
}

pub fn neighbors(partition: &Partition, name: &str, direction: Direction) -> Neighbors {
    let relations = BTreeSet::new();
    let (id, limit) = (id(name), usize::MAX);
    let query = NeighborsQuery {
        id: &id,
        direction,
        relations: &relations,
        now_millis: 0,
        limit,
    };
    partition.neighbors(&query).expect("reads")
}
