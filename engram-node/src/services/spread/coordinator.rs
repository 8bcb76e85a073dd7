//! A client's spread, coordinated here: choose a replica of each partition, start the participants,
//! collect their reports; on a lost participant start again with fresh routing while time is left.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use engram_core::limits::ACTIVATED_MAX;
use engram_core::spread::{
    Activated, Coordinator, Finished, ONE, ParticipantPlan, PartitionPlan, QueryId, Report,
    ReportEnd, SpreadPlan, SpreadStart,
};
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::read_query::Query as Read;
use engram_proto::peer::spread_report_message::Content;
use engram_proto::peer::{SpreadReportMessage, StatusQuery};
use engram_proto::v1::{self, spread_event::Event};
use futures::future::{join_all, try_join_all};
use futures::stream;

use super::super::Services;
use super::super::bulk::Answers;
use super::super::failure::{Failure, SpreadFailure};
use super::super::reads::Reading;
use super::super::token::{Freshness, Positions};
use super::parameters::{self, Query};
use super::registry::Listening;
use crate::routing::{Deadline, Pauses};

/// Share of the time left that one attempt may take while it is not the last.
const ATTEMPT_SHARE: f64 = 0.6;
/// Shorter attempts are not worth making: the whole time left is one.
const ATTEMPT_MIN: Duration = Duration::from_millis(1_500);

/// The node chosen for each partition, and what it has shown of them.
struct Route {
    participants: Vec<ParticipantPlan>,
    positions: BTreeMap<NodeId, HashMap<PartitionId, EdgeContext>>,
}

/// How an attempt ended without an answer.
enum Lost {
    /// Another attempt may do better.
    Participant(String),
    Final(Failure),
}

impl Services {
    pub(in super::super) async fn spread(
        &self,
        request: v1::SpreadRequest,
        deadline: Deadline,
    ) -> Result<Answers<v1::SpreadEvent>, Failure> {
        let query = parameters::query(&request)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space(&request.space, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &freshness,
            deadline,
        };
        let seams = self.router().seams();
        let now_millis = match request.now_millis {
            Some(now) => u64::try_from(now).unwrap_or(0),
            None => seams.clock.wall_millis(),
        };
        let id = QueryId(seams.random_id());
        let mut listening = self.inner.spreads.listen(id);
        let mut pauses = Pauses::default();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let lost = match self
                .attempt(&reading, &query, (id, attempt, now_millis), &mut listening)
                .await
            {
                Ok(finished) => return Ok(self.events(&query, finished)),
                Err(Lost::Final(failure)) => return Err(failure),
                Err(Lost::Participant(cause)) => cause,
            };
            tracing::debug!(attempt, cause = lost, "a spread lost a participant");
            pauses.pause(seams, deadline).await;
            if deadline.has_passed(seams) {
                return Err(SpreadFailure::Lost {
                    attempts: attempt,
                    cause: lost,
                }
                .into());
            }
        }
    }

    async fn attempt(
        &self,
        reading: &Reading<'_>,
        query: &Query,
        (id, attempt, now_millis): (QueryId, u32, u64),
        listening: &mut Listening,
    ) -> Result<Finished, Lost> {
        let route = self.route(reading).await.map_err(Lost::Final)?;
        let mut coordinator = Coordinator::new(SpreadPlan {
            query: id,
            attempt,
            coordinator: self.router().local(),
            participants: route.participants.clone(),
            parameters: query.parameters.clone(),
            filter: query.filter.clone(),
            now_millis,
            seeds: query.seeds.clone(),
        })
        .map_err(|error| Lost::Final(Failure::Internal(error.to_string())))?;
        let seams = self.router().seams();
        let left = reading.deadline.left(seams);
        let wait = left.mul_f64(ATTEMPT_SHARE);
        let wait = if wait < ATTEMPT_MIN { left } else { wait };
        let over = self.router().deadline(wait);
        self.start_all(&coordinator, &route, wait).await?;
        loop {
            let report = seams
                .timeout(over.left(seams), listening.reports.recv())
                .await;
            let Ok(Some(message)) = report else {
                let silent: Vec<String> = coordinator
                    .outstanding()
                    .map(|node| node.to_string())
                    .collect();
                let silent = silent.join(", ");
                return Err(Lost::Participant(format!("no report of nodes {silent}")));
            };
            if message.attempt != attempt {
                continue;
            }
            if let Some(finished) = take(&mut coordinator, message)? {
                return Ok(finished);
            }
        }
    }

    /// A replica of each partition that may serve such a read: it has just served one.
    async fn route(&self, reading: &Reading<'_>) -> Result<Route, Failure> {
        let places = reading.space.partitions.iter();
        let asked = places.map(|place| async move {
            let status = Read::Status(StatusQuery {});
            Ok::<_, Failure>((place, self.ask(reading, *place, status).await?.1))
        });
        let mut plans: BTreeMap<NodeId, Vec<PartitionPlan>> = BTreeMap::new();
        let mut positions: BTreeMap<NodeId, HashMap<PartitionId, EdgeContext>> = BTreeMap::new();
        for (place, read) in try_join_all(asked).await? {
            let plan = PartitionPlan {
                partition: place.id,
                slots: place.slots,
            };
            plans.entry(read.node).or_default().push(plan);
            positions
                .entry(read.node)
                .or_default()
                .insert(place.id, read.position);
        }
        let participants = plans.into_iter();
        let participants =
            participants.map(|(node, partitions)| ParticipantPlan { node, partitions });
        Ok(Route {
            participants: participants.collect(),
            positions,
        })
    }

    async fn start_all(
        &self,
        coordinator: &Coordinator,
        route: &Route,
        wait: Duration,
    ) -> Result<(), Lost> {
        let none = HashMap::new();
        let starts = coordinator.starts();
        let started = starts.iter().map(|(node, start)| {
            let positions = route.positions.get(node).unwrap_or(&none);
            self.start_one(*node, start, positions, wait)
        });
        for result in join_all(started).await {
            result.map_err(Lost::Participant)?;
        }
        Ok(())
    }

    async fn start_one(
        &self,
        node: NodeId,
        start: &SpreadStart,
        positions: &HashMap<PartitionId, EdgeContext>,
        wait: Duration,
    ) -> Result<(), String> {
        let spreads = &self.inner.spreads;
        let started = if node == self.router().local() {
            spreads.start(start.clone(), positions, wait)
        } else {
            spreads
                .messenger()
                .start(node, start, positions, wait)
                .await
        };
        started.map_err(|reason| format!("node {node}: {reason}"))
    }

    /// Hops in order, then the result, or why there is none.
    fn events(&self, query: &Query, finished: Finished) -> Answers<v1::SpreadEvent> {
        let Finished {
            end,
            outcome,
            pinned,
        } = finished;
        let hops = outcome.hops.iter().map(|stats| {
            Event::Hop(v1::HopDone {
                hop: stats.hop,
                active_memories: stats.active,
                edges_followed: stats.edges_followed,
            })
        });
        let mut events: Vec<Result<Event, tonic::Status>> = hops.map(Ok).collect();
        let mut positions = Positions::default();
        pinned
            .iter()
            .for_each(|(partition, position)| positions.note(*partition, position));
        let missing = outcome
            .missing_seeds
            .iter()
            .filter_map(|hash| query.ids.get(hash));
        events.push(match end {
            ReportEnd::Complete => Ok(Event::Result(v1::SpreadResult {
                activated: outcome.activated.into_iter().map(api_activated).collect(),
                activated_total: outcome.activated_total,
                edges_followed: outcome.edges_followed,
                missing_seeds: missing.map(|id| id.as_str().to_owned()).collect(),
                token: Some(positions.token()),
            })),
            ReportEnd::TooManyActivated { hop } => {
                let failure = SpreadFailure::TooManyActivated {
                    hop,
                    max: ACTIVATED_MAX,
                };
                Err(self.status(&failure.into()))
            }
        });
        let events = events.into_iter();
        let events = events.map(|event| event.map(|event| v1::SpreadEvent { event: Some(event) }));
        Box::pin(stream::iter(events))
    }
}

fn take(
    coordinator: &mut Coordinator,
    message: SpreadReportMessage,
) -> Result<Option<Finished>, Lost> {
    let source = message.source;
    let report = match message.content {
        Some(Content::Report(report)) => Report::decode(&report),
        Some(Content::Fault(fault)) if fault.exhausted => {
            return Err(Lost::Final(SpreadFailure::Exhausted(fault.reason).into()));
        }
        Some(Content::Fault(fault)) => {
            return Err(Lost::Participant(format!(
                "node {source}: {}",
                fault.reason
            )));
        }
        None => {
            return Err(Lost::Participant(format!(
                "node {source} said nothing known"
            )));
        }
    };
    let report = report.map_err(|error| Lost::Participant(format!("node {source}: {error}")))?;
    coordinator
        .on_report(report)
        .map_err(|error| Lost::Participant(error.to_string()))
}

fn api_activated(activated: Activated) -> v1::Activated {
    let step = |step: engram_core::spread::PathStep| v1::PathStep {
        id: step.id.as_str().to_owned(),
        relation: step
            .relation
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        share: step.share,
    };
    v1::Activated {
        id: activated.id.as_str().to_owned(),
        activation: activated.total,
        score: activated.total as f64 / ONE as f64,
        path: activated.path.into_iter().map(step).collect(),
    }
}
