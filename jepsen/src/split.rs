//! Nemesis: a cluster of three is split into one node and two while clients on both sides change
//! associations, shared ones among them; then the network heals.
//!
//! Judged: the time from the heal until every replica holds the same in its log and nothing beside
//! it; and what each replica then shows, against [`crate::edges`]. A run leaves its edges for the
//! next one, and at the end all of them are read again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use engram_client::{Client, types as v1};
use engram_node::demo::processes::{Fate, LocalCluster, ProcessError};
use engram_node::demo::wait::{Late, until};
use engram_node::seams::{Clock, Seams};
use tokio::sync::mpsc;

use crate::edges::{self, Anomaly, Change, Found, Operation, PARTS, Side};
use crate::history::Told;
use crate::links::{Links, Streams};

const SPACE: &str = "associations";
const NODES: usize = 3;
/// The node that is cut off from the two others.
const ALONE: usize = 0;
const SOURCES: usize = 12;
const TARGETS: usize = 20;
/// Longest wait for anything but the heal.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for the replicas to be equal after a heal; longer is a failure of another kind.
const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// Deadline of the calls that ask for a majority where there is none: four fifths of it pass before
/// one replica's word is given.
const FALLBACK_DEADLINE: Duration = Duration::from_millis(1_500);
/// Deadline of a look at the replicas: one that is silent does not hold the others up for longer.
const LOOK_DEADLINE: Duration = Duration::from_millis(400);
/// Deadline of one comparison of digests.
const VERIFY_DEADLINE: Duration = Duration::from_secs(2);
/// Clients that change associations on each node.
const CLIENTS_PER_NODE: usize = 4;
/// Clients of the cut off node that ask for a majority.
const FALLBACK_CLIENTS: usize = 8;

/// How a round is run.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// How long the network is split, at least.
    pub split: Duration,
    /// Operations before it heals, at least.
    pub operations: usize,
    /// Between the beginnings of two operations of one client, at least. What changes in a split has to be
    /// exchanged after it: a limit on how long that takes means something for so many changes only.
    pub pace: Duration,
    pub streams: Streams,
}

/// What a round showed.
#[derive(Debug)]
pub struct Outcome {
    /// Acknowledged operations on the side of the single node, and on the other.
    pub acknowledged: (usize, usize),
    /// Of the former, those that asked for a majority and were told that it is one replica's word.
    pub fell_back: usize,
    /// Operations without an answer; their edges are not judged.
    pub unknown: usize,
    /// From the heal to equal replicas.
    pub equal_after: Duration,
    pub anomalies: Vec<(usize, Anomaly)>,
}

/// Why a round could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Client(#[from] engram_client::Error),
    #[error(transparent)]
    Late(#[from] Late),
    #[error("the proxies: {0}")]
    Proxy(#[from] std::io::Error),
    #[error("replicas at one sequence differ: {0}")]
    Differ(String),
    #[error("a change on {side:?} was acknowledged as {durability:?}")]
    Durability {
        side: Side,
        durability: v1::Durability,
    },
}

/// A cluster whose links can be cut.
pub struct Splittable {
    seams: Seams,
    links: Links,
    cluster: LocalCluster,
    client: Client,
    /// Of a node that is never alone.
    observer: Client,
    rounds: u32,
    /// Of all rounds.
    history: Vec<Operation>,
}

impl Splittable {
    /// # Errors
    /// See [`SplitError`].
    pub async fn start(binary: &Path, directory: &Path, seams: &Seams) -> Result<Self, SplitError> {
        let links = Links::start(seams, NODES).await?;
        let mut cluster =
            LocalCluster::new(binary, directory, NODES, Fate::Bound, seams.clock.clone());
        for node in 0..NODES {
            cluster = cluster.with_node(node, links.listen_of(node), links.options_of(node));
        }
        cluster.start().await?;
        let client = cluster.client()?;
        let alive = async || (client.status().await.ok()?.nodes_alive == 3).then_some(());
        until(&*seams.clock, LIMIT, "not all nodes were alive", alive).await?;
        let request = v1::CreateSpaceRequest {
            name: SPACE.into(),
            dimension: 1,
            metric: v1::Metric::L2.into(),
            partitions: 3,
            replicas: 3,
            ..Default::default()
        };
        client.create_space(request).await?;
        let observer = cluster.client_of(1)?.with_deadline(LOOK_DEADLINE);
        let split = Self {
            seams: seams.clone(),
            observer,
            links,
            cluster,
            client,
            rounds: 0,
            history: Vec::new(),
        };
        split.make_memories().await?;
        Ok(split)
    }

    /// Associations are shown between memories that are there.
    async fn make_memories(&self) -> Result<(), SplitError> {
        let space = self.client.space(SPACE);
        let sources = (0..SOURCES).map(source);
        for id in sources.chain((0..TARGETS).map(target)) {
            let memory = v1::Memory {
                id,
                embedding: vec![1.0],
                ..Default::default()
            };
            space.remember(memory).await?;
        }
        Ok(())
    }

    /// # Errors
    /// See [`SplitError`].
    pub async fn round(&mut self, round: Round) -> Result<Outcome, SplitError> {
        self.rounds += 1;
        let mut history = self.before().await?;
        self.until_equal(LIMIT).await?;
        self.links.split(&[ALONE], &[1, 2]);
        let during = self.change_on_both_sides(round).await;
        self.links.heal(round.streams);
        let healed = self.seams.clock.monotonic();
        self.until_equal(HEAL_LIMIT).await?;
        let equal_after = self.seams.clock.monotonic() - healed;
        let during = during?;
        let of_side = |side: Side| {
            let told = |o: &&Operation| o.side == side && o.told == Told::Acknowledged;
            during.operations.iter().filter(told).count()
        };
        let acknowledged = (of_side(Side::One), of_side(Side::Other));
        let unknown = during.operations.iter();
        let unknown = unknown.filter(|o| o.told == Told::Unknown).count();
        history.extend(during.operations);
        let anomalies = self.judge(&history, Some(self.rounds)).await?;
        self.history.extend(history);
        Ok(Outcome {
            acknowledged,
            fell_back: during.fell_back,
            unknown,
            equal_after,
            anomalies,
        })
    }

    /// Reads the edges of all rounds again, some of them folded by now.
    ///
    /// # Errors
    /// See [`SplitError`].
    pub async fn judge_all(&self) -> Result<Vec<(usize, Anomaly)>, SplitError> {
        self.until_equal(LIMIT).await?;
        self.judge(&self.history, None).await
    }

    /// Evidence that all have seen when the split begins.
    async fn before(&self) -> Result<Vec<Operation>, SplitError> {
        let space = self.client.space(SPACE);
        let mut history = Vec::new();
        for number in (0..SOURCES * TARGETS).step_by(2) {
            let edge = Edge::shared(self.rounds, number);
            let (weight, confidence) = (number as u32 % PARTS, PARTS);
            let change = Change::Contribute { weight, confidence };
            let answer = edge.apply(&space, change, v1::Durability::Majority).await;
            answer.as_ref().map_err(Clone::clone)?;
            history.push(edge.operation(Side::Before, change, Told::of(&answer)));
        }
        Ok(history)
    }

    async fn change_on_both_sides(&self, round: Round) -> Result<During, SplitError> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let (report, mut reports) = mpsc::channel(NODES * CLIENTS_PER_NODE + FALLBACK_CLIENTS);
        let start = |worker: Worker| {
            let (stop, answered, report) = (stop.clone(), answered.clone(), report.clone());
            self.seams.spawn("client", async move {
                drop(report.send(worker.run(&stop, &answered).await).await);
            });
        };
        for node in 0..NODES {
            for place in 0..CLIENTS_PER_NODE {
                start(self.worker(node, place, round.pace)?);
            }
        }
        for place in 0..FALLBACK_CLIENTS {
            start(self.fallback_worker(place, round.pace)?);
        }
        drop(report);
        let clock = &self.seams.clock;
        let end = clock.monotonic() + round.split;
        let enough = async || {
            let is_over = clock.monotonic() >= end;
            (is_over && answered.load(Ordering::Relaxed) >= round.operations).then_some(())
        };
        let limit = round.split + LIMIT;
        let waited = until(&**clock, limit, "too few operations were answered", enough).await;
        stop.store(true, Ordering::Relaxed);
        let mut during = During::default();
        let mut failed = None;
        while let Some(report) = reports.recv().await {
            match report {
                Ok(part) => during.add(part),
                Err(error) => failed = Some(error),
            }
        }
        waited?;
        failed.map_or(Ok(during), Err)
    }

    /// A client of one node. The single node's, and half of the others', ask for one replica's
    /// word; the rest for a majority. An edge is changed by one client of each side.
    fn worker(&self, node: usize, place: usize, pace: Duration) -> Result<Worker, SplitError> {
        let side = if node == ALONE {
            Side::One
        } else {
            Side::Other
        };
        let (durability, lane, lanes) = if node == ALONE {
            (v1::Durability::Local, place, CLIENTS_PER_NODE)
        } else {
            let durability = match place % 2 {
                0 => v1::Durability::Local,
                _ => v1::Durability::Majority,
            };
            let lane = (node - 1) * CLIENTS_PER_NODE + place;
            (durability, lane, (NODES - 1) * CLIENTS_PER_NODE)
        };
        Ok(Worker {
            clock: Arc::clone(&self.seams.clock),
            pace,
            client: self.cluster.client_of(node)?,
            side,
            durability,
            edges: (lane..SOURCES * TARGETS)
                .step_by(lanes)
                .map(|number| Edge::shared(self.rounds, number))
                .collect(),
            random: Random::new(&[self.rounds as usize, node, place]),
        })
    }

    /// A client of the single node that asks for a majority. What its attempts at that leave on the
    /// way must not be carried out after the heal.
    fn fallback_worker(&self, place: usize, pace: Duration) -> Result<Worker, SplitError> {
        let client = self.cluster.client_of(ALONE)?;
        Ok(Worker {
            clock: Arc::clone(&self.seams.clock),
            pace,
            client: client.with_deadline(FALLBACK_DEADLINE),
            side: Side::One,
            durability: v1::Durability::Majority,
            edges: vec![Edge::own(self.rounds, place)],
            random: Random::new(&[self.rounds as usize, NODES, place]),
        })
    }

    /// Waits until no replica holds anything beside its log and all logs led to the same.
    async fn until_equal(&self, limit: Duration) -> Result<(), SplitError> {
        let clock = &*self.seams.clock;
        let end = clock.monotonic() + limit;
        let adopted = async || {
            let partitions = self.observer.partitions(Some(SPACE)).await.ok()?;
            let mut replicas = partitions.iter().flat_map(|partition| &partition.replicas);
            let count = replicas.clone().count();
            let is_done = |r: &v1::Replica| r.reachable && r.overlay_deltas == 0;
            (count == 3 * NODES && replicas.all(is_done)).then_some(())
        };
        until(clock, limit, "changes were still beside the logs", adopted).await?;
        let mut differ = None;
        let verifier = self.observer.with_deadline(VERIFY_DEADLINE);
        let equal = async || {
            let answer = verifier.verify(SPACE, false).await.ok()?;
            let replicas = answer.partitions.iter().flat_map(|p| &p.replicas);
            // One that is still catching up gives no digests; one that differs is final.
            if replicas
                .into_iter()
                .any(|r| !r.agrees && r.error.is_empty())
            {
                differ = Some(format!("{answer:?}"));
                return Some(());
            }
            answer.equal.then_some(())
        };
        let left = end.saturating_sub(clock.monotonic());
        until(clock, left, "the replicas were not equal", equal).await?;
        differ.map_or(Ok(()), |differ| Err(SplitError::Differ(differ)))
    }

    /// Compares what each node shows with what the history says.
    async fn judge(
        &self,
        history: &[Operation],
        round: Option<u32>,
    ) -> Result<Vec<(usize, Anomaly)>, SplitError> {
        let mut anomalies = Vec::new();
        for node in 0..NODES {
            let found = self.read(node, round).await?;
            let wrong = edges::check(history, &found).into_iter();
            anomalies.extend(wrong.map(|anomaly| (node, anomaly)));
        }
        Ok(anomalies)
    }

    /// What the replicas of one node show.
    async fn read(
        &self,
        node: usize,
        round: Option<u32>,
    ) -> Result<BTreeMap<String, Found>, SplitError> {
        let client = self.cluster.client_of(node)?;
        let space = client.space(SPACE);
        let mut found = BTreeMap::new();
        for number in 0..SOURCES {
            let request = v1::NeighborsRequest {
                id: source(number),
                direction: v1::neighbors_request::Direction::Out.into(),
                relations: round.map(relation).into_iter().collect(),
                limit: 10_000,
                consistency: v1::Consistency::Stale.into(),
                ..Default::default()
            };
            let answer = space.neighbors(request).await?;
            for edge in answer.edges {
                let name = name(&edge.from, &edge.to, &edge.relation);
                let (weight, evidence) = (edge.weight, edge.evidence);
                found.insert(name, Found { weight, evidence });
            }
        }
        Ok(found)
    }
}

/// What clients did during a split.
#[derive(Default)]
struct During {
    operations: Vec<Operation>,
    fell_back: usize,
}

impl During {
    fn add(&mut self, other: Self) {
        self.operations.extend(other.operations);
        self.fell_back += other.fell_back;
    }
}

fn source(number: usize) -> String {
    format!("source-{number}")
}

fn target(number: usize) -> String {
    format!("target-{number}")
}

fn relation(round: u32) -> String {
    format!("round-{round}")
}

fn name(from: &str, to: &str, relation: &str) -> String {
    format!("{from} {relation} {to}")
}

#[derive(Clone, Debug)]
struct Edge {
    from: String,
    to: String,
    relation: String,
}

impl Edge {
    /// Changed on both sides.
    fn shared(round: u32, number: usize) -> Self {
        Self {
            from: source(number % SOURCES),
            to: target(number / SOURCES),
            relation: relation(round),
        }
    }

    /// Of one client.
    fn own(round: u32, place: usize) -> Self {
        Self {
            from: source(place % SOURCES),
            to: source((place + 1) % SOURCES),
            relation: relation(round),
        }
    }

    fn operation(&self, side: Side, change: Change, told: Told) -> Operation {
        Operation {
            edge: name(&self.from, &self.to, &self.relation),
            side,
            change,
            told,
        }
    }

    async fn apply(
        &self,
        space: &engram_client::SpaceClient,
        change: Change,
        durability: v1::Durability,
    ) -> Result<v1::EdgeChangeResponse, engram_client::Error> {
        let edge = Some(v1::EdgeRef {
            from: self.from.clone(),
            to: self.to.clone(),
            relation: self.relation.clone(),
        });
        let (durability, ones) = (durability.into(), |parts: u32| {
            Some(f64::from(parts) / f64::from(PARTS))
        });
        match change {
            Change::Contribute { weight, confidence } if weight == PARTS => {
                let request = v1::StrengthenRequest {
                    edge,
                    confidence: ones(confidence),
                    durability,
                    ..Default::default()
                };
                space.strengthen(request).await
            }
            Change::Contribute { weight, confidence } => {
                let request = v1::AssociateRequest {
                    edge,
                    weight: ones(weight),
                    confidence: ones(confidence),
                    durability,
                    ..Default::default()
                };
                space.associate(request).await
            }
            Change::Remove => {
                let request = v1::DissociateRequest {
                    edge,
                    durability,
                    ..Default::default()
                };
                space.dissociate(request).await
            }
        }
    }
}

/// One client during a split.
struct Worker {
    clock: Arc<dyn Clock>,
    pace: Duration,
    client: Client,
    side: Side,
    durability: v1::Durability,
    edges: Vec<Edge>,
    random: Random,
}

impl Worker {
    async fn run(
        mut self,
        stop: &AtomicBool,
        answered: &AtomicUsize,
    ) -> Result<During, SplitError> {
        let space = self.client.space(SPACE);
        let mut during = During::default();
        let mut due = self.clock.monotonic();
        while !stop.load(Ordering::Relaxed) {
            let early = due.saturating_sub(self.clock.monotonic());
            if !early.is_zero() {
                self.clock.sleep(early).await;
            }
            due = self.clock.monotonic() + self.pace;
            let edge = self.edges[self.random.below(self.edges.len())].clone();
            let change = self.change();
            let answer = edge.apply(&space, change, self.durability).await;
            let mut told = Told::of(&answer);
            if let Ok(answer) = &answer {
                match self.fell_back(answer)? {
                    true if self.side == Side::One => during.fell_back += 1,
                    // No majority in time, although there is one: the attempt may still be carried
                    // out, and nobody can say what a later removal has seen of it.
                    true => told = Told::Unknown,
                    false => {}
                }
            }
            during
                .operations
                .push(edge.operation(self.side, change, told));
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(during)
    }

    fn change(&mut self) -> Change {
        let confidence = 1 + self.random.below(PARTS as usize) as u32;
        match self.random.below(100) {
            0..15 => Change::Remove,
            15..60 => Change::Contribute {
                weight: PARTS,
                confidence,
            },
            _ => Change::Contribute {
                weight: self.random.below(PARTS as usize) as u32,
                confidence,
            },
        }
    }

    /// Whether one replica's word was given although a majority was asked for: always so on the
    /// single node's side. What was asked of one replica alone is never more.
    fn fell_back(&self, answer: &v1::EdgeChangeResponse) -> Result<bool, SplitError> {
        let achieved = answer.durability();
        let is_possible = match self.side {
            Side::One => achieved == v1::Durability::Local,
            Side::Other | Side::Before => {
                achieved == self.durability || achieved == v1::Durability::Local
            }
        };
        if !is_possible {
            return Err(SplitError::Durability {
                side: self.side,
                durability: achieved,
            });
        }
        Ok(achieved != self.durability)
    }
}

/// Numbers that a round's number decides.
struct Random(u64);

impl Random {
    fn new(parts: &[usize]) -> Self {
        let mix =
            |seed: u64, part: &usize| (seed ^ *part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(parts.iter().fold(0x5851_f42d_4c95_7f2d, mix))
    }

    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
