//! The edges as arrays say what the store says: two replicas take the same commands, one makes
//! arrays at odd moments, and every spread gives the same bits on both.

use std::sync::Arc;

use crate::common::{Numbers, associate, config, forget, id, relation, remember, write};
use engram_core::command::{Dissociate, EdgeChange, Op, OutEdge, PartitionCommand};
use engram_core::filter::Filter;
use engram_core::partition::{GraphJob, LocalChange, Partition};
use engram_core::spread::{self, Alone, SpreadParameters};
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{
    ActorId, ClientId, Decay, Hlc, MemoryHash, PartitionId, RequestId, SlotRange,
};

const MEMORIES: usize = 90;
const NOW: u64 = 5_000_000;

fn partition(decay: Decay) -> Arc<Partition> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let mut batch = Batch::new();
    let made = Partition::create(
        Arc::clone(&storage),
        PartitionId(1),
        config(2, decay),
        SlotRange::ALL,
        &mut batch,
    );
    storage.write(batch, Durability::Sync).expect("writes");
    made
}

/// Two replicas of one log.
struct Pair {
    with_arrays: Arc<Partition>,
    without: Arc<Partition>,
    counter: u64,
    job: Option<GraphJob>,
    builds: usize,
}

impl Pair {
    fn apply(&mut self, command: &PartitionCommand) {
        for replica in [&self.with_arrays, &self.without] {
            replica.apply(command, &[], Batch::new()).expect("applies");
        }
    }

    fn step(&mut self, numbers: &mut Numbers) {
        self.counter += 1;
        let (from, to) = (numbers.below(MEMORIES), numbers.below(MEMORIES + 10));
        let edge = OutEdge {
            to: id(to),
            relation: relation(numbers.below(3)),
            weight: numbers.unit(),
            confidence: numbers.unit(),
        };
        let op = match numbers.below(10) {
            0 | 1 => remember(from, None, vec![edge]),
            2 => forget(from),
            3 => Op::Dissociate(Dissociate {
                from: id(from),
                to: id(to),
                relation: edge.relation,
                context: self.with_arrays.context(),
            }),
            4 => return self.beside(from, edge),
            5 => return self.adopt(),
            6 | 7 => return self.build(numbers),
            _ => associate(from, edge),
        };
        let command = write(self.counter, vec![op]);
        self.apply(&command);
    }

    /// Evidence that the log does not have yet.
    fn beside(&mut self, from: usize, edge: OutEdge) {
        let OutEdge {
            to,
            relation,
            weight,
            confidence,
        } = edge;
        let change = LocalChange {
            request: RequestId {
                client: ClientId([2; 16]),
                counter: self.counter,
                index: 0,
            },
            retried: false,
            stamp: Hlc::from_millis(2_000_000),
            from: id(from),
            to,
            relation,
            change: EdgeChange::Contribute { weight, confidence },
        };
        let actor = ActorId([8; 16]);
        let deltas = self.with_arrays.accept_local(actor, &[change]);
        let deltas = deltas.expect("accepts");
        self.without.receive_overlay(&deltas).expect("receives");
    }

    fn adopt(&mut self) {
        let deltas = self.with_arrays.adoptable(3, usize::MAX);
        if !deltas.is_empty() {
            self.apply(&PartitionCommand::Adopt { deltas });
        }
    }

    /// Takes a job, or commits one that was taken some commands ago.
    fn build(&mut self, numbers: &mut Numbers) {
        match self.job.take() {
            Some(job) if numbers.below(8) > 0 => {
                self.with_arrays.commit_graph(job.build().expect("builds"));
                self.builds += 1;
            }
            Some(_) => self.with_arrays.abandon_graph(),
            None => self.job = self.with_arrays.graph_job(),
        }
    }

    fn compare(&self, numbers: &mut Numbers) {
        let seeds: Vec<(MemoryHash, u64)> = (0..3)
            .map(|_| (id(numbers.below(MEMORIES)).hash(), spread::ONE / 3))
            .collect();
        let explain = numbers.below(3) == 0;
        let parameters = SpreadParameters {
            explain,
            limit: 1_000,
            ..SpreadParameters::default()
        };
        let filter = || {
            (numbers.0.is_multiple_of(2))
                .then(|| Filter::parse("label = \"even\"").expect("parses"))
        };
        let adjacency = self.without.adjacency(filter(), None, NOW);
        let truth = spread::spread(&adjacency, &parameters, &seeds).expect("spreads");
        let arrays = self.with_arrays.adjacency(filter(), None, NOW);
        let answer = spread::run(&arrays, &parameters, &seeds, &Alone).expect("spreads");
        assert_eq!(answer, truth);
    }
}

fn check(decay: Decay, seed: u64) -> usize {
    let mut numbers = Numbers(seed);
    let mut pair = Pair {
        with_arrays: partition(decay),
        without: partition(decay),
        counter: 0,
        job: None,
        builds: 0,
    };
    for _ in 0..600 {
        pair.step(&mut numbers);
        if numbers.below(6) == 0 {
            pair.compare(&mut numbers);
        }
    }
    assert!(pair.with_arrays.graph_arrays().is_some());
    assert!(pair.without.graph_arrays().is_none());
    pair.builds
}

#[test]
fn arrays_and_notes_say_what_the_store_says() {
    let decays = [
        Decay::None,
        Decay::Exponential {
            half_life_millis: 9_000_000,
        },
    ];
    for seed in 0..6 {
        for decay in decays {
            assert!(check(decay, seed) > 0);
        }
    }
}
