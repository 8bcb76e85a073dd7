//! One client: it asks, and every question and answer is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_client::types as v1;
use engram_client::{Client, Error, Outcome as Happened, SpaceClient};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::history::{
    Answer, ClientNumber, EdgeName, EdgeSeen, Expected, History, Level, Op, Outcome, Positions,
    SpreadBound,
};
use crate::invariant::{CONTRIBUTIONS_MAX, SPREAD_LIMIT};
use crate::world::{ClientClock, ClientContext};

/// Activation of 1 in the engine's unit.
const SPREAD_ONE: f64 = engram_core::spread::ONE as f64;
/// Share of changes that are asked of any node, which forwards them, and not of the primary.
const FORWARDED: f64 = 0.3;
/// And of removals of edges, whose late arrival can do the most harm.
const REMOVALS_FORWARDED: f64 = 0.7;
/// More edges than any memory of a workload has.
const EDGES_LIMIT: u32 = 10_000;
/// 1.0 in units of 2^-32.
pub const ONE: u64 = 1 << 32;

/// What all clients of a run share. They run on one thread, so that sharing changes nothing.
#[derive(Clone, Default)]
pub struct Shared {
    pub history: History,
    /// Contributions given out so far, per (space, source, target, relation).
    numbers: Arc<Mutex<BTreeMap<(String, EdgeName), u32>>>,
}

impl Shared {
    /// The edge and number of the next contribution between two memories. An edge tells a few
    /// contributions apart; then a relation of the next name takes over.
    pub fn next_contribution(
        &self,
        space: &str,
        from: &str,
        to: &str,
        base: &str,
    ) -> (EdgeName, u32) {
        let key = EdgeName {
            from: from.to_owned(),
            to: to.to_owned(),
            relation: base.to_owned(),
        };
        let mut numbers = self.numbers.lock();
        let given = numbers.entry((space.to_owned(), key.clone())).or_insert(0);
        let (generation, number) = (*given / CONTRIBUTIONS_MAX, *given % CONTRIBUTIONS_MAX);
        *given += 1;
        (
            EdgeName {
                relation: format!("{base}-{generation}"),
                ..key
            },
            number,
        )
    }

    /// The edge that contributions go to at present.
    pub fn current_edge(&self, space: &str, from: &str, to: &str, base: &str) -> EdgeName {
        let relation = base.to_owned();
        let key = EdgeName {
            from: from.to_owned(),
            to: to.to_owned(),
            relation,
        };
        let numbers = self.numbers.lock();
        let given = numbers.get(&(space.to_owned(), key.clone())).copied();
        let generation = given.unwrap_or(1).max(1).div_ceil(CONTRIBUTIONS_MAX) - 1;
        EdgeName {
            relation: format!("{base}-{generation}"),
            ..key
        }
    }
}

/// A client at work.
pub struct Actor {
    pub number: ClientNumber,
    pub client: Client,
    /// Clients that do not know who leads what, each beginning with another node.
    through: Vec<Client>,
    pub clock: ClientClock,
    pub rng: StdRng,
    pub shared: Shared,
    /// Longest pause between two operations.
    pub pause_max: Duration,
    context: ClientContext,
    /// Values made so far.
    values: u64,
}

impl Actor {
    #[must_use]
    pub fn new(
        mut context: ClientContext,
        through: Vec<Client>,
        shared: Shared,
        pause_max: Duration,
    ) -> Self {
        let number = u32::try_from(context.number).unwrap_or(u32::MAX);
        Self {
            number: ClientNumber(number),
            client: context.client.clone(),
            through,
            clock: context.clock.clone(),
            rng: StdRng::from_rng(&mut context.rng),
            shared,
            pause_max,
            context,
            values: 0,
        }
    }

    pub async fn pause(&mut self) {
        let micros = self.rng.random_range(0..=self.pause_max.as_micros() as u64);
        self.clock.sleep(Duration::from_micros(micros)).await;
    }

    /// A value that nobody else writes.
    pub fn fresh_value(&mut self) -> String {
        self.values += 1;
        format!("{}.{}", self.number.0, self.values)
    }

    pub fn draw_level(&mut self) -> Level {
        match self.rng.random_range(0..10) {
            0..=4 => Level::Linearizable,
            5..=7 => Level::Session,
            _ => Level::Stale,
        }
    }

    /// Records the question, asks, and records the answer, which it returns when it is positive.
    async fn ask<T>(
        &self,
        space: &str,
        op: Op,
        call: impl Future<Output = Result<T, Error>>,
        read: impl FnOnce(T) -> (Answer, Option<v1::SessionToken>),
    ) -> Option<Answer> {
        let is_read = op.is_read();
        let history = &self.shared.history;
        self.context.note(&format!("asks {space}: {op:?}"));
        let ticket = history.invoke(self.number, space, op, self.clock.now());
        let outcome = match call.await {
            Ok(message) => {
                let (answer, token) = read(message);
                let positions = positions(token);
                Outcome::Acked { answer, positions }
            }
            Err(error) if is_read || error.outcome == Happened::NotApplied => {
                Outcome::Refused(error.code)
            }
            Err(error) => Outcome::Unknown(error.code),
        };
        self.context.note(&format!("hears {outcome:?}"));
        history.complete(ticket, self.clock.now(), outcome.clone());
        match outcome {
            Outcome::Acked { answer, .. } => Some(answer),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }

    fn space(&self, name: &str) -> SpaceClient {
        self.client.space(name)
    }

    // ---- writes -------------------------------------------------------------------------------

    /// The version written.
    pub async fn remember(&mut self, space: &str, wanted: Remember) -> Option<u64> {
        let Remember {
            id,
            value,
            embedding,
            expected,
            edges,
        } = wanted;
        let request = v1::RememberRequest {
            memory: Some(v1::Memory {
                id: id.clone(),
                content: value.clone(),
                embedding: embedding.clone(),
                ..Default::default()
            }),
            edges: edges.iter().map(out_edge).collect(),
            expected_version: expected.as_ref().map(|expected| expected.version),
            ..Default::default()
        };
        let op = Op::Remember {
            id,
            value,
            embedding,
            expected,
            edges,
        };
        let to = self.asked_to_change(FORWARDED).space(space);
        let call = Box::pin(to.remember_with(request));
        let answer = self
            .ask(space, op, call, |message| {
                self.client.absorb(message.token.as_ref());
                let version = message.version;
                (Answer::Written { version }, message.token)
            })
            .await;
        match answer {
            Some(Answer::Written { version }) => Some(version),
            _ => None,
        }
    }

    /// With `purge`, what is forgotten is to leave index, log and snapshots too.
    pub async fn forget(&mut self, space: &str, id: &str, purge: bool) -> bool {
        let op = Op::Forget { id: id.to_owned() };
        let to = self.asked_to_change(FORWARDED).space(space);
        let request = v1::ForgetRequest {
            id: id.to_owned(),
            purge,
            ..v1::ForgetRequest::default()
        };
        let answer = self.ask(space, op, to.forget_with(request), |message| {
            self.client.absorb(message.token.as_ref());
            let existed = message.existed;
            (Answer::Forgotten { existed }, message.token)
        });
        answer.await.is_some()
    }

    /// Weight and confidence in units of 2^-32.
    pub async fn contribute(
        &mut self,
        space: &str,
        edge: EdgeName,
        (weight, confidence): (u64, u64),
        local: bool,
    ) -> bool {
        let request = v1::AssociateRequest {
            edge: Some(edge_ref(&edge)),
            weight: Some(share(weight)),
            confidence: Some(share(confidence)),
            durability: durability(local),
            ..Default::default()
        };
        let strengthen = v1::StrengthenRequest {
            edge: Some(edge_ref(&edge)),
            confidence: Some(share(confidence)),
            durability: durability(local),
            ..Default::default()
        };
        let op = Op::Contribute {
            edge,
            weight,
            confidence,
            local,
        };
        // One replica's word, of any replica.
        let to = match local {
            true => self.anywhere(),
            false => self.asked_to_change(FORWARDED),
        };
        let to = to.space(space);
        let call = async {
            // The same by its other name.
            if weight == ONE && confidence.trailing_zeros() % 4 == 0 {
                to.strengthen(strengthen).await
            } else {
                to.associate(request).await
            }
        };
        let answer = self.ask(space, op, call, |message| {
            self.client.absorb(message.token.as_ref());
            edge_changed(message)
        });
        answer.await.is_some()
    }

    /// Whether a majority has it, when it is acknowledged.
    pub async fn dissociate(&mut self, space: &str, edge: EdgeName, local: bool) -> Option<bool> {
        let request = v1::DissociateRequest {
            edge: Some(edge_ref(&edge)),
            durability: durability(local),
            ..Default::default()
        };
        let op = Op::Dissociate { edge, local };
        let to = self.asked_to_change(REMOVALS_FORWARDED).space(space);
        let answer = self.ask(space, op, to.dissociate(request), |message| {
            self.client.absorb(message.token.as_ref());
            edge_changed(message)
        });
        match answer.await {
            Some(Answer::EdgeChanged { majority }) => Some(majority),
            _ => None,
        }
    }

    // ---- reads --------------------------------------------------------------------------------

    /// Version and value; the inner `None` when there is no such memory, the outer without an
    /// answer.
    pub async fn get(&self, space: &str, id: &str, level: Level) -> Option<Option<(u64, String)>> {
        self.get_through(&self.client, space, id, level).await
    }

    /// As [`Actor::get`] of what is now, asked at any node, by one who knows nothing of the space.
    pub async fn get_anywhere(&mut self, space: &str, id: &str) {
        let client = self.anywhere();
        self.get_through(&client, space, id, Level::Linearizable)
            .await;
    }

    /// Its own client, or one that begins with any node.
    fn asked(&mut self, anywhere: bool) -> Client {
        match anywhere {
            true => self.anywhere(),
            false => self.client.clone(),
        }
    }

    /// Its own client, which goes to the primary, or any node.
    fn asked_to_change(&mut self, forwarded: f64) -> Client {
        let forwarded = self.rng.random_bool(forwarded);
        self.asked(forwarded)
    }

    /// A client that begins with any node.
    fn anywhere(&mut self) -> Client {
        let node = self.rng.random_range(0..self.through.len());
        self.through[node].clone()
    }

    async fn get_through(
        &self,
        client: &Client,
        space: &str,
        id: &str,
        level: Level,
    ) -> Option<Option<(u64, String)>> {
        let request = v1::GetRequest {
            ids: vec![id.to_owned()],
            consistency: consistency(level),
            ..Default::default()
        };
        let id = id.to_owned();
        let to = client.space(space);
        let answer = self
            .ask(
                space,
                Op::Get { id, level },
                to.get_with(request),
                |message| {
                    let found = message.memories.into_iter().next();
                    let found = found.map(|memory| (memory.version, memory.content));
                    (Answer::Got(found), message.token)
                },
            )
            .await;
        match answer {
            Some(Answer::Got(found)) => Some(found),
            _ => None,
        }
    }

    /// A session goes on at any node.
    pub async fn neighbors(&mut self, space: &str, id: &str, level: Level) -> bool {
        let session = level == Level::Session;
        let request = v1::NeighborsRequest {
            id: id.to_owned(),
            limit: EDGES_LIMIT,
            consistency: consistency(level),
            token: session.then(|| self.client.session_token()).flatten(),
            ..Default::default()
        };
        let id = id.to_owned();
        let by = self.asked(session);
        let to = by.space(space);
        let answer = self.ask(
            space,
            Op::Neighbors { id, level },
            to.neighbors(request),
            |message| {
                self.client.absorb(message.token.as_ref());
                let edges = message.edges.iter().map(edge_seen).collect();
                let truncated = message.truncated;
                (Answer::Edges { edges, truncated }, message.token)
            },
        );
        answer.await.is_some()
    }

    pub async fn recall(&self, space: &str, vector: Vec<f32>, limit: usize, level: Level) -> bool {
        let request = v1::RecallRequest {
            query: Some(v1::recall_request::Query::Vector(v1::Vector {
                components: vector.clone(),
            })),
            limit: limit as u32,
            consistency: consistency(level),
            ..Default::default()
        };
        let op = Op::Recall {
            vector,
            limit,
            level,
        };
        let to = self.space(space);
        let answer = self.ask(space, op, to.recall(request), |message| {
            let hits = message.hits.into_iter().map(|hit| (hit.id, hit.score));
            (Answer::Recalled(hits.collect()), message.token)
        });
        answer.await.is_some()
    }

    /// `pushes`: in `async` mode.
    pub async fn spread(
        &self,
        space: &str,
        seeds: Vec<String>,
        hops: u32,
        level: Level,
        pushes: bool,
    ) -> bool {
        let mode = if pushes {
            v1::SpreadMode::Async
        } else {
            v1::SpreadMode::Exact
        };
        let seed = |id: &String| v1::Seed {
            id: id.clone(),
            activation: None,
        };
        let request = v1::SpreadRequest {
            seeds: seeds.iter().map(seed).collect(),
            hops,
            limit: SPREAD_LIMIT as u32,
            consistency: consistency(level),
            mode: mode.into(),
            ..Default::default()
        };
        let op = Op::Spread {
            seeds,
            hops,
            level,
            pushes,
        };
        let to = self.space(space);
        let answer = self.ask(space, op, Box::pin(to.spread(request)), |message| {
            let result = message.result;
            let activated = result.activated.into_iter();
            let accounting = result.accounting.unwrap_or_default();
            let bound = accounting
                .error_bound
                .zip(accounting.error_bound_per_memory);
            let answer = Answer::Spread {
                activated: activated.map(|one| (one.id, one.activation)).collect(),
                total: result.activated_total,
                missing_seeds: result.missing_seeds,
                complete: accounting.excluded_partitions.is_empty() && accounting.missing <= 0.0,
                // Amounts are told in the unit of the seeds: a division by a power of two.
                bound: bound.map(|(all, each)| SpreadBound {
                    all: all * SPREAD_ONE,
                    each: each * SPREAD_ONE,
                }),
            };
            (answer, result.token)
        });
        Box::pin(answer).await.is_some()
    }

    // ---- spaces -------------------------------------------------------------------------------

    pub async fn create_space(&self, request: v1::CreateSpaceRequest) -> bool {
        let name = request.name.clone();
        let call = self.client.create_space(request);
        let answer = self.ask(&name, Op::CreateSpace, call, |space| {
            (Answer::Space { id: space.id }, None)
        });
        answer.await.is_some()
    }

    pub async fn drop_space(&self, name: &str) -> bool {
        let call = self.client.drop_space(name);
        let answer = self.ask(name, Op::DropSpace, call, |()| (Answer::Dropped, None));
        answer.await.is_some()
    }

    pub async fn describe_space(&self, name: &str) -> bool {
        let call = self.client.describe_space(name);
        let answer = self.ask(name, Op::DescribeSpace, call, |answer| {
            let id = answer.space.map_or(0, |space| space.id);
            let answer = match answer.confirmed {
                true => Answer::Space { id },
                // One node's knowledge, which may be old: it promises nothing.
                false => Answer::Hearsay { id },
            };
            (answer, None)
        });
        answer.await.is_some()
    }
}

/// What to remember.
#[derive(Clone, Debug, Default)]
pub struct Remember {
    pub id: String,
    pub value: String,
    pub embedding: Vec<f32>,
    pub expected: Option<Expected>,
    pub edges: Vec<(EdgeName, u64)>,
}

fn edge_changed(message: v1::EdgeChangeResponse) -> (Answer, Option<v1::SessionToken>) {
    let majority = message.durability() == v1::Durability::Majority;
    (Answer::EdgeChanged { majority }, message.token)
}

fn positions(token: Option<v1::SessionToken>) -> Positions {
    let positions = token.unwrap_or_default().positions.into_iter();
    positions
        .map(|position| (position.partition, position.sequence))
        .collect()
}

/// A multiple of 2^-32 as the API has it; exact.
fn share(units: u64) -> f64 {
    units as f64 / ONE as f64
}

/// Back, exact for what the engine's sums can be.
fn units(share: f64) -> u64 {
    (share * ONE as f64) as u64
}

fn edge_ref(edge: &EdgeName) -> v1::EdgeRef {
    v1::EdgeRef {
        from: edge.from.clone(),
        to: edge.to.clone(),
        relation: edge.relation.clone(),
    }
}

fn out_edge((edge, confidence): &(EdgeName, u64)) -> v1::OutEdge {
    v1::OutEdge {
        to: edge.to.clone(),
        relation: edge.relation.clone(),
        weight: Some(1.0),
        confidence: Some(share(*confidence)),
    }
}

fn edge_seen(edge: &v1::Edge) -> EdgeSeen {
    EdgeSeen {
        edge: EdgeName {
            from: edge.from.clone(),
            to: edge.to.clone(),
            relation: edge.relation.clone(),
        },
        weight: units(edge.weight),
        evidence: units(edge.evidence),
    }
}

fn durability(local: bool) -> i32 {
    if local {
        v1::Durability::Local.into()
    } else {
        v1::Durability::Majority.into()
    }
}

fn consistency(level: Level) -> i32 {
    match level {
        Level::Linearizable => v1::Consistency::Linearizable.into(),
        Level::Session => v1::Consistency::Session.into(),
        Level::Stale => v1::Consistency::Stale.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_takes_sixteen_contributions_then_the_next_takes_over() {
        let shared = Shared::default();
        let next = || shared.next_contribution("s", "a", "b", "r");
        assert_eq!(shared.current_edge("s", "a", "b", "r").relation, "r-0");
        let first: Vec<_> = (0..16).map(|_| next()).collect();
        assert_eq!((first[0].1, first[15].1), (0, 15));
        assert!(first.iter().all(|(edge, _)| edge.relation == "r-0"));
        assert_eq!(shared.current_edge("s", "a", "b", "r").relation, "r-0");
        let (edge, number) = next();
        assert_eq!((edge.relation.as_str(), number), ("r-1", 0));
        assert_eq!(shared.current_edge("s", "a", "b", "r"), edge);
    }

    #[test]
    fn units_go_there_and_back() {
        for bits in [0, 1, ONE - 1, ONE, 3 * ONE, (1 << 34) + 7] {
            assert_eq!(units(share(bits)), bits);
        }
    }
}
