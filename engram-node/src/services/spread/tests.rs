//! A node's part in a spread: it gives what the engine gives on one partition, and forgets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::{Associate, Expected, Op, Remember};
use engram_core::partition::Partition;
use engram_core::spread::{
    Coordinator, Frame, HopStats, ONE, ParticipantPlan, PartitionPlan, QueryId, Report, Seed,
    SpreadMode, SpreadOutcome, SpreadParameters, SpreadPlan, spread,
};
use engram_core::types::{
    ClientId, EdgeContext, GroupId, MemoryId, NodeId, PartitionId, Relation, Sequence, SlotRange,
    Unit,
};
use engram_proto::peer::SpreadReportMessage;
use engram_proto::peer::spread_report_message::Content;
use tokio::sync::watch;

use super::lead::Lead;
use super::part::Word;
use super::registry::{Heard, Listening, Registry};
use crate::control::ClusterMap;
use crate::routing::fakes::{Held, NoClocks, NoGroups, NoLinks, apply, partition, system_seams};
use crate::routing::{Dialer, Groups, Here, Router};
use crate::services::input::Requester;
use crate::services::writes::write_of;

const HERE: NodeId = NodeId(1);
const P: PartitionId = PartitionId(7);

fn id(name: &str) -> MemoryId {
    MemoryId::new(name).unwrap()
}

/// A few memories in a ring with chords.
fn graph() -> Arc<Partition> {
    let partition = partition(P, SlotRange::ALL);
    let remember = |name: &str| {
        Op::Remember(Remember {
            id: id(name),
            content: String::new(),
            embedding: None,
            embedding_model: String::new(),
            labels: Default::default(),
            properties: Default::default(),
            confidence: Unit::ONE,
            edges: Vec::new(),
            expected: Expected::Anything,
        })
    };
    let edge = |from: &str, to: &str, weight: f64| {
        Op::Associate(Associate {
            from: id(from),
            to: id(to),
            relation: Relation::new("r").unwrap(),
            weight: Unit::from_f64(weight).unwrap(),
            confidence: Unit::ONE,
        })
    };
    let mut ops: Vec<Op> = ["a", "b", "c", "d"].map(remember).into();
    ops.extend([
        edge("a", "b", 0.9),
        edge("b", "c", 0.4),
        edge("c", "d", 0.7),
    ]);
    ops.extend([
        edge("d", "a", 1.0),
        edge("a", "c", 0.2),
        edge("b", "nobody", 0.5),
    ]);
    let ops = (0..).zip(ops).collect();
    let requester = Requester {
        client: ClientId([1; 16]),
        counter: 1,
        retried: false,
    };
    apply(&partition, write_of(requester, ops));
    partition
}

fn registry(partition: &Arc<Partition>) -> Registry {
    let (_, map) = watch::channel(Arc::<ClusterMap>::default());
    let (seams, groups): (_, Arc<dyn Groups>) = (system_seams(), Arc::new(NoGroups));
    let held = Held(vec![(GroupId(1), Arc::clone(partition))]);
    let here = Here::new(
        seams.clone(),
        HERE,
        map.clone(),
        Arc::clone(&groups),
        Arc::new(held),
    );
    let remote = Arc::new(Dialer::new(
        seams.clone(),
        Arc::new(NoLinks),
        Arc::new(NoClocks),
    ));
    Registry::new(
        Router::new(seams, map, groups, remote, here),
        Arc::new(NoLinks),
        crate::config::SPREAD_ATTEMPT_WAIT,
    )
}

fn plan(query: u8, attempt: u32, participants: Vec<ParticipantPlan>) -> SpreadPlan {
    let seed = Seed {
        memory: id("a").hash(),
        slot: id("a").hash_slot(),
        amount: ONE,
    };
    SpreadPlan {
        query: QueryId([query; 16]),
        attempt,
        coordinator: HERE,
        participants,
        unreachable: Vec::new(),
        mode: SpreadMode::Exact,
        parameters: SpreadParameters {
            explain: true,
            ..SpreadParameters::default()
        },
        filter: String::new(),
        now_millis: 0,
        seeds: vec![seed],
    }
}

fn alone() -> Vec<ParticipantPlan> {
    let partitions = vec![PartitionPlan {
        partition: P,
        slots: SlotRange::ALL,
    }];
    vec![ParticipantPlan {
        node: HERE,
        partitions,
    }]
}

fn oracle(partition: &Partition, plan: &SpreadPlan) -> SpreadOutcome {
    let adjacency = partition.adjacency(None, None, 0);
    spread(&adjacency, &plan.parameters, &[(id("a").hash(), ONE)]).unwrap()
}

fn report(message: SpreadReportMessage) -> Report {
    match message.content {
        Some(Content::Report(bytes)) => Report::decode(&bytes).unwrap(),
        other => panic!("a report was expected, not {other:?}"),
    }
}

async fn next_report(listening: &mut Listening) -> SpreadReportMessage {
    loop {
        match listening.heard.recv().await.unwrap() {
            Heard::Report(message) => return message,
            Heard::Hop { .. } => {}
        }
    }
}

#[tokio::test]
async fn a_lone_participant_answers_as_the_engine_does() {
    let partition = graph();
    let registry = registry(&partition);
    let plan = plan(1, 1, alone());
    let mut coordinator = Coordinator::new(plan.clone()).unwrap();
    let mut listening = registry.listen(plan.query).unwrap();
    let (_, start) = coordinator.starts().remove(0);
    registry
        .start(start, &HashMap::new(), Duration::from_secs(30))
        .unwrap();
    let message = next_report(&mut listening).await;
    let finished = coordinator
        .on_report(report(message))
        .unwrap()
        .expect("the only report");
    assert_eq!(finished.outcome, oracle(&partition, &plan));
}

#[tokio::test]
async fn a_later_attempt_replaces_an_earlier_one() {
    let partition = graph();
    let registry = registry(&partition);
    // The other half never answers, so the first attempt waits for its frames.
    let halves = SlotRange::split_evenly(2);
    let own = PartitionPlan {
        partition: P,
        slots: halves[0],
    };
    let other = PartitionPlan {
        partition: PartitionId(8),
        slots: halves[1],
    };
    let both = vec![
        ParticipantPlan {
            node: HERE,
            partitions: vec![own],
        },
        ParticipantPlan {
            node: NodeId(2),
            partitions: vec![other],
        },
    ];
    let waiting = Coordinator::new(plan(2, 1, both)).unwrap();
    let mut listening = registry.listen(QueryId([2; 16])).unwrap();
    let (_, start) = waiting.starts().remove(0);
    let seedless = engram_core::spread::SpreadStart {
        seeds: Vec::new(),
        ..start
    };
    registry
        .start(seedless, &HashMap::new(), Duration::from_secs(30))
        .unwrap();
    let again = Coordinator::new(plan(2, 2, alone())).unwrap();
    let (_, start) = again.starts().remove(0);
    registry
        .start(start, &HashMap::new(), Duration::from_secs(30))
        .unwrap();
    loop {
        let message = next_report(&mut listening).await;
        if message.attempt == 2 {
            assert_eq!(report(message).activated_total, 4);
            break;
        }
    }
}

#[tokio::test]
async fn who_cannot_take_part_says_so() {
    let registry = registry(&graph());
    let wait = Duration::from_secs(1);
    let start = |participants| {
        let (_, start) = Coordinator::new(plan(3, 1, participants))
            .unwrap()
            .starts()
            .remove(0);
        start
    };
    let foreign = vec![ParticipantPlan {
        node: HERE,
        partitions: vec![PartitionPlan {
            partition: PartitionId(99),
            slots: SlotRange::ALL,
        }],
    }];
    let refused = registry
        .start(start(foreign), &HashMap::new(), wait)
        .unwrap_err();
    assert!(refused.contains("partition 99"), "{refused}");
    let ahead = EdgeContext {
        sequence: Sequence(1_000),
        ..EdgeContext::default()
    };
    let positions = HashMap::from([(P, ahead)]);
    let refused = registry
        .start(start(alone()), &positions, wait)
        .unwrap_err();
    assert!(refused.contains("fell back"), "{refused}");
}

#[test]
fn early_frames_are_bounded() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let registry = registry(&graph());
        let frame = |hop| Frame {
            query: QueryId([5; 16]),
            attempt: 1,
            source: NodeId(2),
            hop,
            lamport: 1,
            sequence: 1,
            credit: 0,
            activated: 0,
            emitted: 0,
            stats: HopStats::default(),
            sections: Vec::new(),
        };
        let taken = (1..1_000)
            .take_while(|hop| registry.deliver(Word::Frame(frame(*hop))).is_ok())
            .count();
        assert_eq!(taken, 64);
    });
}

#[tokio::test]
async fn async_mode_pushes_all_there_is() {
    let partition = graph();
    let registry = registry(&partition);
    let mut plan = plan(6, 1, alone());
    plan.mode = SpreadMode::Async { cut_off: 0 };
    plan.parameters.explain = false;
    let truth = oracle(&partition, &plan);
    let mut listening = registry.listen(plan.query).unwrap();
    let mut lead = Lead::new(plan, registry.clone()).unwrap();
    let (_, start) = lead.starts().remove(0);
    registry
        .start(start, &HashMap::new(), Duration::from_secs(30))
        .unwrap();
    let finished = loop {
        let message = next_report(&mut listening).await;
        let content = message.content.expect("a step");
        if let Some(finished) = lead.on_report(&content).unwrap() {
            break finished;
        }
    };
    assert!(finished.accounting.missing.is_empty());
    let bound = finished.accounting.bound.expect("linear rules");
    assert_eq!(finished.outcome.activated_total, truth.activated_total);
    for one in &truth.activated {
        let mut got = finished.outcome.activated.iter();
        let got = got.find(|got| got.memory == one.memory);
        let total = got.expect("it counted").total;
        assert!(total <= one.total && u128::from(one.total - total) <= bound.of(P));
    }
    drop((lead, listening));
    nothing_is_left(&registry).await;
}

/// Waits until the registry holds nothing of any query.
async fn nothing_is_left(registry: &Registry) {
    while registry.held() != (0, 0, 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_query_that_is_dropped_leaves_nothing_behind() {
    let registry = registry(&graph());
    let halves = SlotRange::split_evenly(2);
    let half = |partition, slots| PartitionPlan { partition, slots };
    let both = vec![
        ParticipantPlan {
            node: HERE,
            partitions: vec![half(P, halves[0])],
        },
        // It never answers, so this node waits for its frames.
        ParticipantPlan {
            node: NodeId(2),
            partitions: vec![half(PartitionId(8), halves[1])],
        },
    ];
    let plan = plan(7, 1, both);
    let listening = registry.listen(plan.query).unwrap();
    let lead = Lead::new(plan, registry.clone()).unwrap();
    let (_, start) = lead.starts().remove(0);
    let seeds = Vec::new();
    let start = engram_core::spread::SpreadStart { seeds, ..start };
    registry
        .start(start, &HashMap::new(), Duration::from_secs(600))
        .unwrap();
    assert_eq!(registry.held(), (1, 1, 0));
    drop((lead, listening));
    nothing_is_left(&registry).await;
}
