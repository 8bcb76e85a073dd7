//! What the machine does with frames, starts and reports that do not fit, and with hostile bytes.

use proptest::prelude::*;

use super::super::{
    Coordinator, CoordinatorError, Frame, ONE, Participant, ParticipantError, PlanError, QueryId,
    Received, Report, ReportEnd, SpreadParameters, SpreadPlan, SpreadStart, WireError,
};
use super::arrays::Projecting;
use super::cluster::{Arrays, layout, participant, plan};
use super::graph::{Graph, hash};
use crate::types::{NodeId, PartitionId, SlotRange};

fn graph() -> Graph {
    Graph::new(
        6,
        &[
            (0, 1, "r", 1.0),
            (0, 2, "r", 1.0),
            (1, 3, "r", 1.0),
            (2, 4, "r", 0.5),
            (3, 5, "r", 1.0),
        ],
    )
}

fn two_nodes() -> SpreadPlan {
    let rules = SpreadParameters {
        explain: true,
        ..SpreadParameters::default()
    };
    plan(
        layout(2, 2),
        rules,
        &[(0, ONE), (1, ONE), (2, ONE), (3, ONE)],
    )
}

/// Both participants begun, with the frame of hop 1 that the second sent the first.
fn begun(
    graph: &Graph,
) -> (
    Participant<Projecting<'_>>,
    Participant<Projecting<'_>>,
    Frame,
) {
    let mut starts = Coordinator::new(two_nodes())
        .expect("a sound plan")
        .starts()
        .into_iter();
    let mut next = || {
        let (node, start) = starts.next().expect("two participants");
        participant(graph, start, node, Arrays::None)
    };
    let (mut first, mut second) = (next(), next());
    assert_eq!(first.begin().expect("it begins").frames.len(), 1);
    let mut frames = second.begin().expect("it begins").frames;
    let (to, frame) = frames.pop().expect("one other participant");
    assert_eq!(
        (to, frame.hop, frame.sequence, frame.credit),
        (NodeId(1), 1, 1, 0)
    );
    (first, second, frame)
}

#[test]
fn frames_that_do_not_fit_change_nothing() {
    let graph = graph();
    let (mut first, _, frame) = begun(&graph);
    let other_attempt = Frame {
        attempt: 2,
        ..frame.clone()
    };
    assert_eq!(
        first.on_frame(other_attempt).map(|step| step.received),
        Ok(Received::Foreign)
    );
    let other_query = Frame {
        query: QueryId([8; 16]),
        ..frame.clone()
    };
    assert_eq!(
        first.on_frame(other_query).map(|step| step.received),
        Ok(Received::Foreign)
    );

    let mut unpaired = frame.clone();
    unpaired.sections.clear();
    let mut swapped = frame.clone();
    swapped.sections[0].from = PartitionId(1_000);
    let mut unexplained = frame.clone();
    let arrivals = unexplained
        .sections
        .iter_mut()
        .flat_map(|section| &mut section.arrivals);
    arrivals.for_each(|arrival| arrival.best = None);
    for bad in [
        Frame {
            source: NodeId(3),
            ..frame.clone()
        },
        Frame {
            source: NodeId(1),
            ..frame.clone()
        },
        Frame {
            hop: 3,
            ..frame.clone()
        },
        Frame {
            hop: u32::MAX,
            ..frame.clone()
        },
        unpaired,
        swapped,
        unexplained,
    ] {
        let source_node = bad.source;
        let error = first.on_frame(bad).expect_err("it does not fit");
        assert!(
            matches!(error, ParticipantError::BadFrame { source_node: told, .. } if told == source_node)
        );
    }
    assert!(!first.is_over());
    let late = Frame {
        hop: 0,
        ..frame.clone()
    };
    assert_eq!(
        first.on_frame(late).map(|step| step.received),
        Ok(Received::Repeated)
    );

    let step = first
        .on_frame(frame.clone())
        .expect("the frame it waits for");
    assert_eq!((step.received, step.frames.len()), (Received::Accepted, 1));
    assert_eq!(step.frames[0].1.hop, 2);
    assert!(step.frames[0].1.lamport > frame.lamport);
    assert_eq!(
        first.on_frame(frame).map(|step| step.received),
        Ok(Received::Repeated)
    );
}

#[test]
fn beginning_twice_and_going_on_after_the_end_do_nothing() {
    let graph = graph();
    let plan = plan(layout(3, 1), SpreadParameters::default(), &[(0, ONE)]);
    let (node, start) = Coordinator::new(plan)
        .expect("a sound plan")
        .starts()
        .remove(0);
    let mut alone = participant(&graph, start, node, Arrays::None);
    let step = alone.begin().expect("it begins");
    assert!(step.frames.is_empty(), "its own frames stay inside");
    let report = step.report.expect("alone it runs through");
    assert_eq!(
        (report.end, report.hops.len(), report.activated_total),
        (ReportEnd::Complete, 4, 6)
    );
    assert!(alone.is_over());
    let again = alone.begin().expect("nothing");
    assert!(again.report.is_none() && again.frames.is_empty());
}

#[test]
fn a_store_that_fails_loses_the_participant() {
    let graph = graph();
    let plan = plan(layout(1, 1), SpreadParameters::default(), &[(0, ONE)]);
    let (node, start) = Coordinator::new(plan)
        .expect("a sound plan")
        .starts()
        .remove(0);
    let part = graph.whole();
    part.reads_left.set(3);
    let partition = start.participants[0].partitions[0].partition;
    let mut lost = Participant::new(start, node, vec![(partition, part)]).expect("a sound start");
    assert!(matches!(lost.begin(), Err(ParticipantError::Adjacency(_))));
    assert!(lost.is_over());
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let refused = |change: fn(&mut SpreadPlan), error: PlanError| {
        let mut plan = two_nodes();
        change(&mut plan);
        assert_eq!(Coordinator::new(plan).err(), Some(error));
    };
    refused(
        |plan| plan.participants[1].node = NodeId(1),
        PlanError::NodeTwice(NodeId(1)),
    );
    refused(
        |plan| plan.participants[1].partitions.clear(),
        PlanError::NoPartition(NodeId(2)),
    );
    refused(
        |plan| plan.participants.clear(),
        PlanError::Slots { slot: 0 },
    );
    refused(
        |plan| {
            plan.participants.pop();
        },
        PlanError::Slots { slot: 8_192 },
    );
    refused(
        |plan| {
            plan.participants[1].partitions[0].slots = SlotRange {
                start: 8_191,
                end: 16_384,
            }
        },
        PlanError::Slots { slot: 8_192 },
    );
    refused(
        |plan| plan.participants[1].partitions[0].partition = PartitionId(1_000),
        PlanError::PartitionTwice(PartitionId(1_000)),
    );
    refused(
        |plan| plan.seeds = vec![plan.seeds[0]; crate::limits::SEEDS_MAX + 1],
        PlanError::TooManySeeds {
            actual: crate::limits::SEEDS_MAX + 1,
        },
    );
    let mut plan = two_nodes();
    plan.parameters.hops = 17;
    assert!(matches!(
        Coordinator::new(plan).err(),
        Some(PlanError::Parameters(_))
    ));
}

#[test]
fn starts_must_fit_their_node() {
    let graph = graph();
    let starts = Coordinator::new(two_nodes())
        .expect("a sound plan")
        .starts();
    let (_, start) = &starts[0];
    let part = || {
        graph.part(SlotRange {
            start: 0,
            end: 8_192,
        })
    };
    let own = start.participants[0].partitions[0].partition;
    let make = |start: &SpreadStart, node: u64, parts| {
        Participant::new(start.clone(), NodeId(node), parts).err()
    };
    assert_eq!(make(start, 1, vec![(own, part())]), None);
    assert_eq!(make(start, 1, vec![]), Some(PlanError::WrongPartitions));
    let strange = vec![(own, part()), (PartitionId(5), part())];
    assert_eq!(make(start, 1, strange), Some(PlanError::WrongPartitions));
    assert_eq!(
        make(start, 3, vec![]),
        Some(PlanError::NotAParticipant(NodeId(3)))
    );
    let mut foreign = start.clone();
    foreign.seeds = two_nodes().seeds;
    assert_eq!(
        make(&foreign, 1, vec![(own, part())]),
        Some(PlanError::ForeignSeed)
    );
}

fn reports(graph: &Graph) -> (Coordinator, Vec<Report>) {
    let coordinator = Coordinator::new(two_nodes()).expect("a sound plan");
    let (mut first, mut second, frame) = begun(graph);
    let mut to_second = first.on_frame(frame).expect("a sound frame").frames;
    // The first participant's frame of hop 1 is not at hand any more: begin it anew for it.
    let mut twin = participant(
        graph,
        coordinator.starts().remove(0).1,
        NodeId(1),
        Arrays::None,
    );
    to_second.extend(twin.begin().expect("it begins").frames);
    let mut to_first = Vec::new();
    let mut reports = Vec::new();
    while let Some(((_, frame), is_first)) = to_second
        .pop()
        .map(|frame| (frame, false))
        .or_else(|| to_first.pop().map(|frame| (frame, true)))
    {
        let step = if is_first {
            first.on_frame(frame)
        } else {
            second.on_frame(frame)
        };
        let step = step.expect("a sound frame");
        if is_first {
            to_second.extend(step.frames)
        } else {
            to_first.extend(step.frames)
        }
        reports.extend(step.report);
    }
    assert_eq!(reports.len(), 2);
    (coordinator, reports)
}

#[test]
fn reports_that_do_not_fit_are_told() {
    let graph = graph();
    let (mut coordinator, reports) = reports(&graph);
    let [one, two] = [&reports[0], &reports[1]];
    let stranger = Report {
        source: NodeId(3),
        ..one.clone()
    };
    assert_eq!(
        coordinator.on_report(stranger),
        Err(CoordinatorError::NotAParticipant(NodeId(3)))
    );
    assert_eq!(
        coordinator.on_report(Report {
            attempt: 9,
            ..one.clone()
        }),
        Ok(None)
    );
    assert_eq!(coordinator.on_report(one.clone()), Ok(None));
    assert_eq!(coordinator.on_report(one.clone()), Ok(None));
    assert_eq!(coordinator.outstanding().collect::<Vec<_>>(), [two.source]);
    let other_end = Report {
        end: ReportEnd::TooManyActivated { hop: 1 },
        ..two.clone()
    };
    assert!(matches!(
        coordinator.on_report(other_end),
        Err(CoordinatorError::Contradiction(..))
    ));

    let mut unnamed = Coordinator::new(two_nodes()).expect("a sound plan");
    assert_eq!(
        unnamed.on_report(Report {
            names: Default::default(),
            ..one.clone()
        }),
        Ok(None)
    );
    assert!(matches!(
        unnamed.on_report(two.clone()),
        Err(CoordinatorError::Unnamed(_))
    ));

    let mut sound = Coordinator::new(two_nodes()).expect("a sound plan");
    assert_eq!(sound.on_report(two.clone()), Ok(None));
    let finished = sound
        .on_report(one.clone())
        .expect("sound reports")
        .expect("the last one");
    assert_eq!(finished.outcome.activated_total, 6);
    assert!(
        finished
            .outcome
            .activated
            .iter()
            .any(|one| one.memory == hash(5))
    );
    assert_eq!(sound.on_report(one.clone()), Ok(None));
}

#[test]
fn versions_and_lengths_are_checked() {
    let (_, start) = Coordinator::new(two_nodes())
        .expect("a sound plan")
        .starts()
        .remove(0);
    let bytes = start.encode();
    assert_eq!(SpreadStart::decode(&bytes), Ok(start));
    let mut newer = bytes.clone();
    newer[0] = 9;
    assert!(matches!(
        SpreadStart::decode(&newer),
        Err(WireError::Version { found: 9, .. })
    ));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(
        SpreadStart::decode(&longer),
        Err(WireError::Malformed { .. })
    ));
    assert!(matches!(
        SpreadStart::decode(&bytes[..9]),
        Err(WireError::Malformed { .. })
    ));
    assert!(Frame::decode(&[]).is_err());
    let huge = vec![1; crate::limits::SPREAD_START_BYTES_MAX + 1];
    assert!(matches!(
        SpreadStart::decode(&huge),
        Err(WireError::TooLong { .. })
    ));
}

proptest! {
    /// Damaged messages are refused or, where they still make sense, taken: never a panic.
    #[test]
    fn no_bytes_make_it_panic(
        position in any::<prop::sample::Index>(), flip in 1_u8.., noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let graph = graph();
        let damaged = |mut bytes: Vec<u8>| {
            let position = position.index(bytes.len());
            bytes[position] ^= flip;
            bytes
        };
        let (mut first, _, frame) = begun(&graph);
        if let Ok(frame) = Frame::decode(&damaged(frame.encode())) {
            let arrivals = frame.sections.iter().flat_map(|section| &section.arrivals);
            // The test's graph insists on memories that it knows.
            if arrivals.clone().all(|arrival| (0..6).any(|index| hash(index) == arrival.target)) {
                let _ = first.on_frame(frame);
            }
        }
        let (mut coordinator, reports) = reports(&graph);
        for report in reports {
            if let Ok(report) = Report::decode(&damaged(report.encode())) {
                let _ = coordinator.on_report(report);
            }
        }
        let (_, start) = Coordinator::new(two_nodes()).expect("a sound plan").starts().remove(0);
        let _ = SpreadStart::decode(&damaged(start.encode()));
        let _ = (SpreadStart::decode(&noise), Frame::decode(&noise), Report::decode(&noise));
    }
}
