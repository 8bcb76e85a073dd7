//! A client's spread, coordinated here: choose a replica of each partition, start the participants,
//! collect their reports. On a lost participant start again with fresh routing while time is left;
//! the last attempt goes on without it, and the answer says what it lacks.
//!
//! # Cancel safety
//! A client that goes away drops the query, and with it its [`Lead`], which lets all participants go.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use engram_core::limits::ACTIVATED_MAX;
use engram_core::spread::{
    Finished, HopStats, ParticipantPlan, PartitionPlan, QueryId, ReportEnd, SpreadPlan, SpreadStart,
};
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::StatusQuery;
use engram_proto::peer::read_query::Query as Read;
use engram_proto::peer::spread_report_message::Content;
use engram_proto::v1::{self, spread_event::Event};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::Services;
use super::super::bulk::Answers;
use super::super::failure::{Failure, SpreadFailure};
use super::super::input::Requester;
use super::super::reads::Reading;
use super::super::token::Freshness;
use super::answer;
use super::hybrid::Hybrid;
use super::lead::{BadReport, Lead};
use super::parameters::{self, Query};
use super::registry::{Heard, Listening};
use crate::control::SpaceRecord;
use crate::routing::{Deadline, Pauses};

/// Share of the time left that one attempt may take while it is not the last; and the share that
/// the last one waits before it ends with what it has.
const ATTEMPT_SHARE: f64 = 0.6;
const LAST_SHARE: f64 = 0.9;
/// Share of the time left that the search of a hybrid recall may take.
const SEARCH_SHARE: f64 = 0.4;
/// Shorter attempts are not worth making: the whole time left is one.
const ATTEMPT_MIN: Duration = Duration::from_millis(1_500);
/// Attempts of one query. The last one goes on without what is lost.
const ATTEMPTS_MAX: u32 = 3;
/// Events that wait for a client that reads slowly.
const EVENTS_MAX: usize = 64;

/// The node chosen for each partition, and what it has shown of them.
struct Route {
    participants: Vec<ParticipantPlan>,
    positions: BTreeMap<NodeId, HashMap<PartitionId, EdgeContext>>,
    /// Partitions of which no replica answered in time.
    unreachable: Vec<PartitionPlan>,
}

/// How an attempt ended without an answer.
enum Lost {
    /// Another attempt may do better.
    Participant(String),
    Final(Failure),
}

/// A client's query on its way.
struct Asked {
    query: Query,
    hybrid: Option<Hybrid>,
    freshness: Freshness,
    space: SpaceRecord,
    /// In whose name associations are strengthened.
    requester: Requester,
    id: QueryId,
    now_millis: u64,
    deadline: Deadline,
}

/// One attempt of it.
#[derive(Clone, Copy)]
struct Attempt {
    number: u32,
    is_last: bool,
}

type Sender = mpsc::Sender<Result<v1::SpreadEvent, tonic::Status>>;

/// Where events of a query go.
struct Events {
    sender: Sender,
    /// Hops of this attempt that the client has been told.
    told: u32,
}

impl Events {
    /// When the client does not listen any more, the query is dropped from outside.
    async fn send(&self, event: Event) {
        let event = v1::SpreadEvent { event: Some(event) };
        drop(self.sender.send(Ok(event)).await);
    }

    /// In their order, each once.
    async fn hops(&mut self, hops: &[HopStats], attempt: u32) {
        for stats in hops {
            if stats.hop == self.told {
                self.send(answer::hop(stats, attempt)).await;
                self.told += 1;
            }
        }
    }
}

impl Services {
    pub(in super::super) async fn spread(
        &self,
        request: v1::SpreadRequest,
        deadline: Deadline,
    ) -> Result<Answers<v1::SpreadEvent>, Failure> {
        let mut query = parameters::query(&request)?;
        let freshness = Freshness::of(request.consistency, request.token)?;
        let space = self.space_for(&request.space, &freshness, deadline).await?;
        let seams = self.router().seams();
        let now_millis = match request.now_millis {
            Some(now) => u64::try_from(now).unwrap_or(0),
            None => seams.clock.wall_millis(),
        };
        let reinforcement = request.reinforcement.as_ref();
        let requester = reinforcement.and_then(|asked| asked.request.as_ref());
        let requester = self.requester(requester)?;
        let hybrid = match request.nearest {
            Some(nearest) => {
                let reading = Reading {
                    space: &space,
                    freshness: &freshness,
                    deadline: self.search_deadline(&query, deadline),
                };
                Some(self.begin_nearest(nearest, &mut query, &reading).await?)
            }
            None => None,
        };
        let asked = Asked {
            query,
            hybrid,
            freshness,
            space,
            requester,
            id: QueryId(seams.random_id()),
            now_millis,
            deadline,
        };
        let listening = self.inner.spreads.listen(asked.id);
        let listening = listening.map_err(SpreadFailure::Exhausted)?;
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let services = self.clone();
        seams.spawn("spread coordinator", async move {
            let gone = sender.clone();
            tokio::select! {
                biased;
                () = services.conduct(asked, listening, sender) => {}
                () = gone.closed() => {}
            }
        });
        let mut events = ReceiverStream::new(receiver);
        // What fails before anything is known fails the call itself.
        let first = events.next().await;
        Ok(Box::pin(stream::iter(first).chain(events)))
    }

    /// Runs a query to its end: hops in order, then the result, or why there is none.
    async fn conduct(&self, asked: Asked, mut listening: Listening, sender: Sender) {
        let mut events = Events { sender, told: 0 };
        match self.attempts(&asked, &mut listening, &mut events).await {
            Ok((finished, attempt)) => {
                let hops = finished.outcome.hops.clone();
                events.hops(&hops, attempt).await;
                let end = match finished.end {
                    ReportEnd::Complete => self.answer_of(&asked, finished, attempt).await,
                    ReportEnd::TooManyActivated { hop } => {
                        let max = ACTIVATED_MAX;
                        Err(SpreadFailure::TooManyActivated { hop, max }.into())
                    }
                };
                match end {
                    Ok(result) => events.send(Event::Result(result)).await,
                    Err(failure) => self.fail(&events, &failure).await,
                }
            }
            Err(failure) => self.fail(&events, &failure).await,
        }
    }

    async fn answer_of(
        &self,
        asked: &Asked,
        finished: Finished,
        attempt: u32,
    ) -> Result<v1::SpreadResult, Failure> {
        let mut reinforced = 0;
        if let Some(reinforcement) = asked.query.reinforcement {
            let how = (reinforcement, asked.requester);
            let activated = &finished.outcome.activated;
            reinforced = self
                .reinforce(&asked.space, how, activated, asked.deadline)
                .await;
        }
        let hybrid = asked.hybrid.as_ref();
        let searched = hybrid.map(|hybrid| hybrid.positions.clone());
        let mut result = answer::result(
            finished,
            &asked.query.ids,
            attempt,
            searched.unwrap_or_default(),
        );
        result.reinforced = reinforced;
        if !asked.query.shows_paths {
            result
                .activated
                .iter_mut()
                .for_each(|memory| memory.path.clear());
        }
        let reading = Reading {
            space: &asked.space,
            freshness: &asked.freshness,
            deadline: asked.deadline,
        };
        self.complete_answer(&reading, &asked.query, hybrid, &mut result)
            .await?;
        Ok(result)
    }

    /// Where losses are allowed a search leaves time for the spread.
    fn search_deadline(&self, query: &Query, deadline: Deadline) -> Deadline {
        if query.require_complete {
            return deadline;
        }
        let left = deadline.left(self.router().seams());
        let share = self.router().deadline(left.mul_f64(SEARCH_SHARE));
        share.min(deadline)
    }

    async fn fail(&self, events: &Events, failure: &Failure) {
        drop(events.sender.send(Err(self.status(failure))).await);
    }

    async fn attempts(
        &self,
        asked: &Asked,
        listening: &mut Listening,
        events: &mut Events,
    ) -> Result<(Finished, u32), Failure> {
        let seams = self.router().seams();
        let mut pauses = Pauses::default();
        let mut number = 0;
        loop {
            number += 1;
            let left = asked.deadline.left(seams);
            let is_short = left.mul_f64(ATTEMPT_SHARE) < ATTEMPT_MIN;
            let attempt = Attempt {
                number,
                is_last: number == ATTEMPTS_MAX || is_short,
            };
            events.told = 0;
            let lost = match self.attempt(asked, attempt, listening, events).await {
                Ok(finished) => return Ok((finished, number)),
                Err(Lost::Final(failure)) => return Err(failure),
                Err(Lost::Participant(cause)) => cause,
            };
            tracing::debug!(
                attempt = number,
                cause = lost,
                "a spread lost a participant"
            );
            pauses.pause(seams, asked.deadline).await;
            if asked.deadline.has_passed(seams) || attempt.is_last {
                return Err(SpreadFailure::Lost {
                    attempts: number,
                    cause: lost,
                }
                .into());
            }
        }
    }

    async fn attempt(
        &self,
        asked: &Asked,
        attempt: Attempt,
        listening: &mut Listening,
        events: &mut Events,
    ) -> Result<Finished, Lost> {
        let seams = self.router().seams();
        let left = asked.deadline.left(seams);
        let allows_loss = !asked.query.require_complete;
        let route_wait = if allows_loss {
            left.mul_f64(ATTEMPT_SHARE)
        } else {
            left
        };
        let reading = Reading {
            space: &asked.space,
            freshness: &asked.freshness,
            deadline: self.router().deadline(route_wait).min(asked.deadline),
        };
        let route = self
            .route(&reading, allows_loss)
            .await
            .map_err(Lost::Final)?;
        let plan = SpreadPlan {
            query: asked.id,
            attempt: attempt.number,
            coordinator: self.router().local(),
            participants: route.participants.clone(),
            unreachable: route.unreachable.clone(),
            mode: asked.query.mode,
            parameters: asked.query.parameters.clone(),
            filter: asked.query.filter.clone(),
            now_millis: asked.now_millis,
            seeds: asked.query.seeds.clone(),
        };
        let mut lead = Lead::new(plan, self.inner.spreads.clone())
            .map_err(|error| Lost::Final(Failure::Internal(error.to_string())))?;
        let left = asked.deadline.left(seams);
        let share = if attempt.is_last {
            LAST_SHARE
        } else {
            ATTEMPT_SHARE
        };
        let over = self.router().deadline(left.mul_f64(share));
        // Who can be left behind in this attempt.
        let may_exclude = allows_loss && attempt.is_last;
        let refused = self.start_all(&lead, &route, left).await;
        let mut causes: Vec<String> = refused.iter().map(|(_, cause)| cause.clone()).collect();
        if !refused.is_empty() {
            let nodes: Vec<NodeId> = refused.into_iter().map(|(node, _)| node).collect();
            if let Some(finished) = exclude(&mut lead, &nodes, may_exclude, &causes)? {
                return Ok(finished);
            }
        }
        loop {
            let heard = seams
                .timeout(over.left(seams), listening.heard.recv())
                .await;
            let Ok(Some(heard)) = heard else {
                let silent: Vec<String> =
                    lead.outstanding().iter().map(NodeId::to_string).collect();
                causes.push(format!("no report of nodes {}", silent.join(", ")));
                let cause = causes.join("; ");
                if !may_exclude {
                    return Err(Lost::Participant(cause));
                }
                let finished = lead.give_up().map_err(Lost::Participant)?;
                return finished.ok_or(Lost::Participant(cause));
            };
            let message = match heard {
                Heard::Hop { attempt: of, stats } => {
                    if of == attempt.number {
                        events.hops(&[stats], of).await;
                    }
                    continue;
                }
                Heard::Report(message) => message,
            };
            if message.attempt != attempt.number {
                continue;
            }
            let source = NodeId(message.source);
            let finished = match message.content {
                Some(Content::Fault(fault)) if fault.exhausted => {
                    return Err(Lost::Final(SpreadFailure::Exhausted(fault.reason).into()));
                }
                Some(Content::Fault(fault)) => {
                    causes.push(format!("node {source}: {}", fault.reason));
                    let blamed = if fault.node == 0 {
                        source
                    } else {
                        NodeId(fault.node)
                    };
                    exclude(&mut lead, &[blamed], may_exclude, &causes)?
                }
                Some(content) => match lead.on_report(&content) {
                    Ok(finished) => finished,
                    Err(BadReport::Dropped(reason)) => {
                        tracing::warn!(node = %source, reason, "a report of a spread makes no sense");
                        None
                    }
                    Err(BadReport::Fatal(reason)) => {
                        return Err(Lost::Participant(format!("node {source}: {reason}")));
                    }
                },
                None => None,
            };
            if let Some(finished) = finished {
                return Ok(finished);
            }
        }
    }

    /// A replica of each partition that may serve such a read: it has just served one. Without one,
    /// a partition is unreachable where losses are allowed, as long as any partition is left.
    async fn route(&self, reading: &Reading<'_>, allows_loss: bool) -> Result<Route, Failure> {
        let places = reading.space.partitions.iter();
        let asked = places.map(|place| async move {
            let status = Read::Status(StatusQuery {});
            (place, self.ask(reading, *place, status).await)
        });
        let mut plans: BTreeMap<NodeId, Vec<PartitionPlan>> = BTreeMap::new();
        let mut positions: BTreeMap<NodeId, HashMap<PartitionId, EdgeContext>> = BTreeMap::new();
        let (mut unreachable, mut failed) = (Vec::new(), None);
        for (place, read) in join_all(asked).await {
            let plan = PartitionPlan {
                partition: place.id,
                slots: place.slots,
            };
            match read {
                Ok((_, read)) => {
                    plans.entry(read.node).or_default().push(plan);
                    let positions = positions.entry(read.node).or_default();
                    positions.insert(place.id, read.position);
                }
                Err(failure) => {
                    tracing::debug!(partition = %place.id, ?failure, "no replica for a spread");
                    unreachable.push(plan);
                    failed.get_or_insert(failure);
                }
            }
        }
        if let Some(failure) = failed
            && (!allows_loss || plans.is_empty())
        {
            return Err(failure);
        }
        let participants = plans.into_iter();
        let participants =
            participants.map(|(node, partitions)| ParticipantPlan { node, partitions });
        Ok(Route {
            participants: participants.collect(),
            positions,
            unreachable,
        })
    }

    /// Those that do not take part, and why.
    async fn start_all(&self, lead: &Lead, route: &Route, wait: Duration) -> Vec<(NodeId, String)> {
        let none = HashMap::new();
        let starts = lead.starts();
        let started = starts.iter().map(|(node, start)| {
            let positions = route.positions.get(node).unwrap_or(&none);
            async move {
                let started = self.start_one(*node, start, positions, wait).await;
                started.err().map(|cause| (*node, cause))
            }
        });
        join_all(started).await.into_iter().flatten().collect()
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
}

/// Goes on without these nodes, or ends the attempt.
fn exclude(
    lead: &mut Lead,
    nodes: &[NodeId],
    may_exclude: bool,
    causes: &[String],
) -> Result<Option<Finished>, Lost> {
    if !may_exclude {
        return Err(Lost::Participant(causes.join("; ")));
    }
    lead.exclude(nodes).map_err(Lost::Participant)
}
