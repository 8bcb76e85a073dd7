//! A spread has one answer on any layout: over 1, 3 and 8 real partitions, with frames in any
//! order, it gives the bits of the single-partition engine.

use std::sync::Arc;

use crate::common::{Numbers, associate, config, forget, id, relation, remember, write};
use engram_core::command::{Op, OutEdge};
use engram_core::filter::Filter;
use engram_core::partition::{LocalChange, Partition, PartitionAdjacency};
use engram_core::spread::{
    self, Coordinator, Frame, Normalization, Participant, ParticipantPlan, PartitionPlan, QueryId,
    Seed, SpreadMode, SpreadOutcome, SpreadParameters, SpreadPlan, Step,
};
use engram_core::storage::{Batch, Durability, MemoryStorage, Storage};
use engram_core::types::{
    ActorId, ClientId, Decay, Hlc, MemoryId, NodeId, PartitionId, RequestId, SlotRange, Unit,
};

const MEMORIES: usize = 240;
const NOW: u64 = 5_000_000;
const DECAY: Decay = Decay::Exponential {
    half_life_millis: 9_000_000,
};

/// One space in so many partitions, all with the same memories and edges between them.
struct Layout {
    partitions: Vec<Arc<Partition>>,
}

impl Layout {
    fn new(parts: u32) -> Self {
        let storage = MemoryStorage::new();
        let mut batch = Batch::new();
        let create = |(number, slots)| {
            let shared: Arc<dyn Storage> = Arc::new(storage.clone());
            Partition::create(
                shared,
                PartitionId(number),
                config(2, DECAY),
                slots,
                &mut batch,
            )
        };
        let partitions = (1..)
            .zip(SlotRange::split_evenly(parts))
            .map(create)
            .collect();
        storage.write(batch, Durability::Sync).expect("writes");
        Self { partitions }
    }

    fn of(&self, id: &MemoryId) -> &Arc<Partition> {
        let holds = |partition: &&Arc<Partition>| partition.slots().contains(id.hash_slot());
        self.partitions
            .iter()
            .find(holds)
            .expect("slots are covered")
    }

    fn apply(&self, counter: u64, owner: usize, op: Op) {
        let applied = self
            .of(&id(owner))
            .apply(&write(counter, vec![op]), &[], Batch::new());
        applied.expect("applies");
    }

    /// The same graph on every layout: made in one order, each part where it belongs.
    fn fill(&self) {
        let mut numbers = Numbers(7);
        let mut counter = 0;
        for n in 0..MEMORIES {
            let mut edges: Vec<OutEdge> =
                (0..numbers.below(7)).map(|_| edge(&mut numbers)).collect();
            edges.sort_by(|a, b| (&a.to, &a.relation).cmp(&(&b.to, &b.relation)));
            edges.dedup_by(|a, b| (&a.to, &a.relation) == (&b.to, &b.relation));
            counter += 1;
            self.apply(counter, n, remember(n, None, edges));
        }
        for _ in 0..300 {
            let (from, edge) = (numbers.below(MEMORIES), edge(&mut numbers));
            counter += 1;
            self.apply(counter, from, associate(from, edge));
        }
        for n in (0..MEMORIES).step_by(17) {
            counter += 1;
            self.apply(counter, n, forget(n));
        }
        for n in 0..60 {
            self.beside(n, &mut numbers);
        }
    }

    /// Evidence that no log has yet.
    fn beside(&self, n: usize, numbers: &mut Numbers) {
        let (
            from,
            OutEdge {
                to,
                relation,
                weight,
                confidence,
            },
        ) = (numbers.below(MEMORIES), edge(numbers));
        let change = engram_core::command::EdgeChange::Contribute { weight, confidence };
        let request = RequestId {
            client: ClientId([2; 16]),
            counter: n as u64,
            index: 0,
        };
        let (from, stamp) = (id(from), Hlc::from_millis(2_000_000));
        let change = LocalChange {
            request,
            retried: false,
            stamp,
            from: from.clone(),
            to,
            relation,
            change,
        };
        self.of(&from)
            .accept_local(ActorId([8; 16]), &[change])
            .expect("accepts");
    }

    fn adjacency(&self, partition: &Partition, filter: &str) -> PartitionAdjacency {
        let filter = (!filter.is_empty()).then(|| Filter::parse(filter).expect("a filter"));
        partition.adjacency(filter, None, NOW)
    }

    /// Over participants: `nodes` nodes share the partitions, frames arrive in a random order,
    /// some twice.
    fn spread(&self, nodes: usize, query: &Query, seed: u64) -> SpreadOutcome {
        let plan_of = |partition: &Arc<Partition>| PartitionPlan {
            partition: partition.id(),
            slots: partition.slots(),
        };
        let participant = |node: usize| ParticipantPlan {
            node: NodeId(node as u64 + 1),
            partitions: self
                .partitions
                .iter()
                .skip(node)
                .step_by(nodes)
                .map(plan_of)
                .collect(),
        };
        let seeds = query.seeds.iter().map(|(n, amount)| Seed {
            memory: id(*n).hash(),
            slot: id(*n).hash_slot(),
            amount: *amount,
        });
        let mut coordinator = Coordinator::new(SpreadPlan {
            query: QueryId([3; 16]),
            attempt: 1,
            coordinator: NodeId(1),
            participants: (0..nodes).map(participant).collect(),
            unreachable: Vec::new(),
            mode: SpreadMode::Exact,
            parameters: query.parameters.clone(),
            filter: query.filter.to_owned(),
            now_millis: NOW,
            seeds: seeds.collect(),
        })
        .expect("a plan");
        let mut running: Vec<_> = coordinator
            .starts()
            .into_iter()
            .map(|(node, start)| {
                let own = self
                    .partitions
                    .iter()
                    .skip(node.0 as usize - 1)
                    .step_by(nodes);
                let own = own
                    .map(|p| (p.id(), self.adjacency(p, query.filter)))
                    .collect();
                Participant::new(start, node, own).expect("a participant")
            })
            .collect();
        deliver(&mut running, &mut coordinator, seed)
    }
}

fn deliver(
    running: &mut [Participant<PartitionAdjacency>],
    coordinator: &mut Coordinator,
    seed: u64,
) -> SpreadOutcome {
    let mut numbers = Numbers(seed);
    let mut flying: Vec<(NodeId, Frame)> = Vec::new();
    let mut outcome = None;
    let mut take = |step: Step, flying: &mut Vec<(NodeId, Frame)>| {
        flying.extend(step.frames);
        if let Some(report) = step.report {
            let finished = coordinator.on_report(report).expect("a report");
            outcome = finished.map(|finished| finished.outcome).or(outcome.take());
        }
    };
    for participant in running.iter_mut() {
        take(participant.begin().expect("begins"), &mut flying);
    }
    while !flying.is_empty() {
        let (to, frame) = flying.swap_remove(numbers.below(flying.len()));
        if numbers.below(4) == 0 {
            flying.push((to, frame.clone()));
        }
        let participant = &mut running[to.0 as usize - 1];
        take(participant.on_frame(frame).expect("a frame"), &mut flying);
    }
    outcome.expect("all have reported")
}

fn edge(numbers: &mut Numbers) -> OutEdge {
    // Some targets were never stored.
    let to = id(numbers.below(MEMORIES + 10));
    let relation = relation(numbers.below(3));
    OutEdge {
        to,
        relation,
        weight: numbers.unit(),
        confidence: numbers.unit(),
    }
}

struct Query {
    parameters: SpreadParameters,
    filter: &'static str,
    seeds: Vec<(usize, u64)>,
}

fn queries() -> Vec<Query> {
    let plain = SpreadParameters {
        explain: true,
        limit: 500,
        ..SpreadParameters::default()
    };
    let half = spread::ONE / 2;
    let seeds = vec![
        (1, half),
        (40, half / 3),
        (100, half),
        (202, 77),
        (17, half),
        (900, 5),
    ];
    let harsh = SpreadParameters {
        hops: 5,
        decay: Unit::from_f64(0.9).expect("unit"),
        threshold: 1 << 20,
        normalization: Normalization::None,
        relation_factors: [(relation(0), Unit::from_f64(0.3).expect("unit"))].into(),
        revisit: Unit::from_f64(0.5).expect("unit"),
        refractory_hops: 1,
        fan_limit: Some(3),
        ..plain.clone()
    };
    let followed = [relation(1), relation(2)].into();
    let narrow = SpreadParameters {
        relations: Some(followed),
        hops: 4,
        ..plain.clone()
    };
    vec![
        Query {
            parameters: plain,
            filter: "",
            seeds: seeds.clone(),
        },
        Query {
            parameters: harsh,
            filter: "",
            seeds: seeds.clone(),
        },
        Query {
            parameters: narrow,
            filter: FILTER,
            seeds,
        },
    ]
}

const FILTER: &str = "label = \"even\"";

#[test]
fn spreading_gives_the_same_bits_on_every_layout() {
    let single = Layout::new(1);
    single.fill();
    let layouts: Vec<(usize, Layout)> = [(1, 1), (3, 3), (2, 3), (3, 8), (8, 8)]
        .into_iter()
        .map(|(nodes, parts)| (nodes, Layout::new(parts)))
        .collect();
    layouts.iter().for_each(|(_, layout)| layout.fill());
    for query in queries() {
        let adjacency = single.adjacency(&single.partitions[0], query.filter);
        let seeds: Vec<_> = query
            .seeds
            .iter()
            .map(|(n, amount)| (id(*n).hash(), *amount))
            .collect();
        let oracle = spread::spread(&adjacency, &query.parameters, &seeds).expect("spreads");
        assert!(
            oracle.activated.len() > 10,
            "a query that reaches {}",
            oracle.activated.len()
        );
        assert!(!oracle.missing_seeds.is_empty());
        for (nodes, layout) in &layouts {
            for seed in 0..3 {
                assert_eq!(layout.spread(*nodes, &query, seed), oracle, "{nodes} nodes");
            }
        }
    }
}
