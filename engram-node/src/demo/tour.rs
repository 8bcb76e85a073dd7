//! The tour itself: each step shows something and fails when it does not hold.

use std::path::Path;
use std::time::Duration;

use engram_client::{Client, types as v1};
use engram_core::types::{MemoryId, Metric, SlotRange};

use super::ledger::{Audit, Writers};
use super::processes::LocalCluster;
use super::sample;
use super::wait::until;
use crate::cli::bulk::jsonl::Embeddings;
use crate::cli::bulk::load::{IN_FLIGHT_DEFAULT, Loader, OnError};
use crate::cli::bulk::progress::{Progress, rate, thousands};
use crate::cli::bulk::rejects::Rejects;
use crate::cli::cluster::verify_text;
use crate::cli::failure::{Exit, Failure};
use crate::cli::memory::hit_table;
use crate::cli::output::{line, table};
use crate::cli::spread::path as path_text;
use crate::seams::Seams;

const SPACE: &str = "wordnet";
const PARTITIONS: u32 = 3;
const REPLICAS: u32 = 3;
/// Longest wait for one thing to come true: generous, since the machine may be busy with other work,
/// and a node that comes back links its whole index again before `verify` can compare it.
const LIMIT: Duration = Duration::from_secs(120);
/// Acknowledged writes that each partition must have before the kill, and again after it.
const WRITES_SHOWN: usize = 40;
const RECALL_LIMIT: u32 = 6;
/// Most activated memories asked for, and those of each distance that are shown.
const SPREAD_LIMIT: u32 = 100;
const SHOWN_PER_DISTANCE: usize = 3;
/// High, so that memories two and three hops away are among the most activated.
const SPREAD_DECAY: f64 = 0.9;

pub struct Tour {
    cluster: LocalCluster,
    seams: Seams,
    step: u32,
}

impl Tour {
    pub fn new(cluster: LocalCluster, seams: Seams) -> Self {
        Self {
            cluster,
            seams,
            step: 0,
        }
    }

    pub fn process_ids(&self) -> Vec<u32> {
        self.cluster.process_ids()
    }

    pub fn leave_running(self) {
        self.cluster.leave_running();
    }

    pub async fn run(&mut self, directory: &Path) -> Result<(), Failure> {
        let began = self.now();
        line(&format!(
            "Engram demo: {} server processes on this machine; data and logs in {}",
            self.cluster.size(),
            directory.display()
        ))?;
        self.start().await?;
        let client = self.cluster.client()?;
        let dimension = self.create_space(&client).await?;
        self.load(&client, directory).await?;
        self.recall(&client).await?;
        self.spread(&client).await?;
        self.survive(&client, dimension).await?;
        self.verify(&client).await?;
        line(&format!(
            "\nEverything held, in {:.1} s.",
            (self.now() - began).as_secs_f64()
        ))
    }

    fn now(&self) -> Duration {
        self.seams.clock.monotonic()
    }

    fn heading(&mut self, text: &str) -> Result<(), Failure> {
        self.step += 1;
        line(&format!("\n{}. {text}", self.step))
    }

    async fn start(&mut self) -> Result<(), Failure> {
        self.heading("Starting the nodes: the first founds a cluster, the others join it")?;
        let began = self.now();
        self.cluster.start().await?;
        let client = self.cluster.client()?;
        let wanted = self.cluster.size();
        let alive = async || {
            let status = client.status().await.ok()?;
            (status.nodes_alive as usize == wanted).then_some(())
        };
        until(&*self.seams.clock, LIMIT, "not all nodes were alive", alive).await?;
        let pids = self.cluster.process_ids();
        for (index, pid) in pids.iter().enumerate() {
            if let Some(addresses) = self.cluster.addresses(index) {
                let (node, at) = (addresses.node, &addresses.client);
                line(&format!("   node {node}: process {pid}, clients at {at}"))?;
            }
        }
        line(&format!(
            "   all alive after {}",
            seconds(self.now() - began)
        ))
    }

    async fn create_space(&mut self, client: &Client) -> Result<usize, Failure> {
        self.heading(&format!(
            "A space of {PARTITIONS} partitions, each with {REPLICAS} replicas on different nodes"
        ))?;
        let input = sample::input()?;
        let dimension = input.embeddings.as_ref().map_or(0, |rows| rows.dimension());
        let request = v1::CreateSpaceRequest {
            name: SPACE.to_owned(),
            dimension: dimension as u32,
            metric: v1::Metric::Cosine.into(),
            partitions: PARTITIONS,
            replicas: REPLICAS,
            if_not_exists: true,
            ..Default::default()
        };
        client.with_deadline(LIMIT).create_space(request).await?;
        let partitions = self.partitions_with_primary(client).await?;
        for partition in &partitions {
            let replicas: Vec<String> = partition
                .replicas
                .iter()
                .map(|replica| replica.node.to_string())
                .collect();
            line(&format!(
                "   partition {}: slots {} to {}, replicas on nodes {}, primary on node {}",
                partition.id,
                partition.slot_start,
                partition.slot_end.saturating_sub(1),
                replicas.join(", "),
                partition.primary
            ))?;
        }
        Ok(dimension)
    }

    async fn partitions_with_primary(
        &self,
        client: &Client,
    ) -> Result<Vec<v1::Partition>, Failure> {
        let ready = async || {
            let partitions = client.partitions(Some(SPACE)).await.ok()?;
            let whole = partitions.len() == PARTITIONS as usize
                && partitions.iter().all(|partition| partition.primary != 0);
            whole.then_some(partitions)
        };
        Ok(until(
            &*self.seams.clock,
            LIMIT,
            "not every partition had a primary",
            ready,
        )
        .await?)
    }

    async fn load(&mut self, client: &Client, directory: &Path) -> Result<(), Failure> {
        self.heading("Loading word senses of WordNet and the relations between them")?;
        line(&format!("   ({})", sample::credit()))?;
        let input = sample::input()?;
        let dimension = input.embeddings.as_ref().map_or(0, |rows| rows.dimension());
        let loader = Loader {
            space: client.space(SPACE),
            embeddings: Embeddings {
                dimension: dimension as u32,
                metric: Metric::Cosine,
            },
            on_error: OnError::Stop,
            in_flight: IN_FLIGHT_DEFAULT,
            progress: Progress::Shown,
            seams: self.seams.clone(),
        };
        let mut rejects = Rejects::new(directory.join("rejected.jsonl"));
        let loaded = loader.load(input, &mut rejects).await?;
        line(&format!(
            "   {} memories in {} ({}), {} associations in {} ({}); each on the disks of a majority",
            thousands(loaded.memories),
            seconds(loaded.memories_time),
            rate(loaded.memories, loaded.memories_time),
            thousands(loaded.edges),
            seconds(loaded.edges_time),
            rate(loaded.edges, loaded.edges_time),
        ))
    }

    async fn recall(&mut self, client: &Client) -> Result<(), Failure> {
        let start = sample::START;
        self.heading(&format!(
            "Recall: the memories nearest to {start}, from all partitions"
        ))?;
        let began = self.now();
        let request = v1::RecallRequest {
            query: Some(v1::recall_request::Query::Like(start.to_owned())),
            limit: RECALL_LIMIT,
            with_content: true,
            ..Default::default()
        };
        let answer = client.space(SPACE).recall(request).await?;
        let took = self.now() - began;
        held(
            answer.hits.len() == RECALL_LIMIT as usize,
            "the recall found too few memories",
        )?;
        line(&indent(&hit_table(&answer.hits)))?;
        line(&format!("   in {}", millis(took)))
    }

    async fn spread(&mut self, client: &Client) -> Result<(), Failure> {
        let start = sample::START;
        self.heading(&format!(
            "Spread: activation from {start} along the relations, 3 hops"
        ))?;
        let partitions = client.partitions(Some(SPACE)).await?;
        let began = self.now();
        let request = v1::SpreadRequest {
            seeds: vec![v1::Seed {
                id: start.to_owned(),
                activation: None,
            }],
            hops: 3,
            decay: Some(SPREAD_DECAY),
            // What has sent does not send again: the activation moves on.
            refractory_hops: 3,
            limit: SPREAD_LIMIT,
            explain: true,
            ..Default::default()
        };
        let answer = client.space(SPACE).spread(request).await?;
        let took = self.now() - began;
        let result = &answer.result;
        held(!result.activated.is_empty(), "the spread activated nothing")?;
        let shown = strongest_by_distance(&result.activated);
        let rows = shown.iter().map(|memory| {
            let (hops, score) = (memory.path.len().saturating_sub(1), memory.score);
            vec![
                hops.to_string(),
                format!("{score:.4}"),
                path_text(&memory.path),
            ]
        });
        line(&indent(&table(
            &[">HOPS", ">ACTIVATION", "STRONGEST PATH"],
            rows,
        )))?;
        let crossings: usize = shown
            .iter()
            .map(|memory| crossings(&memory.path, &partitions))
            .sum();
        line(&format!(
            "   {} memories activated over {} relations in {}; the paths shown cross partitions {} times",
            thousands(result.activated_total),
            thousands(result.edges_followed),
            millis(took),
            crossings
        ))
    }

    /// Kills the node that leads most while writers write, and checks every acknowledged write.
    async fn survive(&mut self, client: &Client, dimension: usize) -> Result<(), Failure> {
        let partitions = self.partitions_with_primary(client).await?;
        let victim = busiest(&partitions);
        let Some(index) = self.cluster.index_of(victim) else {
            let message = format!("node {victim} is none of the demo's");
            return Err(Failure::new(Exit::Unavailable, message, "engram demo"));
        };
        let led: Vec<u64> = partitions
            .iter()
            .filter(|p| p.primary == victim)
            .map(|p| p.id)
            .collect();
        self.heading(&format!(
            "kill -9 of node {victim}, primary of {} of {} partitions, while writers write",
            led.len(),
            partitions.len()
        ))?;
        let writers = Writers::start(client, SPACE, dimension, &partitions, &self.seams);
        let start = self.now();
        self.wait_for_writes(&writers, &partitions, start).await?;
        let killed = self.now();
        self.cluster.kill(index)?;
        self.wait_for_writes(&writers, &partitions, killed).await?;
        let mut slowest = Duration::ZERO;
        for partition in &partitions {
            let resumed = writers
                .ledger
                .resumed_after(partition.id, killed)
                .unwrap_or_default();
            slowest = slowest.max(resumed);
            let note = if led.contains(&partition.id) {
                " (had its primary there)"
            } else {
                ""
            };
            line(&format!(
                "   partition {}: first write acknowledged {} after the kill{note}",
                partition.id,
                millis(resumed)
            ))?;
        }
        line(&format!(
            "   writes flow again on every partition after {}",
            millis(slowest)
        ))?;
        let ledger = writers.stop().await;
        let audit = ledger.check(&client.space(SPACE)).await?;
        report(&audit)?;
        self.come_back(client, victim, index).await
    }

    async fn wait_for_writes(
        &self,
        writers: &Writers,
        partitions: &[v1::Partition],
        since: Duration,
    ) -> Result<(), Failure> {
        let flowing = async || {
            let enough = |partition: &v1::Partition| {
                writers.ledger.acknowledged_since(partition.id, since) >= WRITES_SHOWN
            };
            partitions.iter().all(enough).then_some(())
        };
        Ok(until(
            &*self.seams.clock,
            LIMIT,
            "writes did not flow on every partition",
            flowing,
        )
        .await?)
    }

    async fn come_back(
        &mut self,
        client: &Client,
        victim: u64,
        index: usize,
    ) -> Result<(), Failure> {
        self.heading(&format!("Node {victim} comes back and catches up"))?;
        let began = self.now();
        self.cluster.restart(index).await?;
        let up = self.now();
        let level = async || {
            let partitions = client.partitions(Some(SPACE)).await.ok()?;
            partitions.iter().all(is_level).then_some(())
        };
        until(
            &*self.seams.clock,
            LIMIT,
            "the replicas were not level",
            level,
        )
        .await?;
        line(&format!(
            "   serving after {}, level with the others after {}",
            millis(up - began),
            millis(self.now() - began)
        ))
    }

    async fn verify(&mut self, client: &Client) -> Result<(), Failure> {
        self.heading("Verify: the digests of every replica, compared at one point of each log")?;
        let answer = client.with_deadline(LIMIT).verify(SPACE, false).await?;
        line(&indent(&verify_text(SPACE, &answer)))?;
        let complete = answer.partitions.len() == PARTITIONS as usize
            && answer
                .partitions
                .iter()
                .all(|p| p.replicas.len() == REPLICAS as usize);
        held(answer.equal && complete, "the replicas are not all equal")
    }

    /// What to try next by hand.
    pub fn further(&self, directory: &Path, keep: bool) -> Result<(), Failure> {
        let start = sample::START;
        let program = std::env::current_exe().unwrap_or_else(|_| "engram".into());
        let preparation = match keep {
            true => format!(
                "\nTo explore by hand:\n   alias engram={}\n   export ENGRAM_ENDPOINT={}",
                program.display(),
                self.cluster.endpoints().join(","),
            ),
            false => "\nTo explore by hand, first leave a cluster running (it prints what to \
                      export):\n   engram demo --keep"
                .to_owned(),
        };
        line(&format!(
            "{preparation}\n   \
             engram cluster nodes\n   \
             engram recall {SPACE} --like river.n.09411430\n   \
             engram spread {SPACE} --seed {start} --seed river.n.09411430=0.5 --explain\n   \
             engram neighbors {SPACE} {start}\n   \
             engram remember {SPACE} \"a tune that stays in the ear\" --id earworm --edge hypernym:{start}\n   \
             engram verify {SPACE}\n   \
             engram export {SPACE} --output-dir {}",
            directory.with_file_name("wordnet-export").display()
        ))
    }
}

/// All replicas are there and have applied what the primary has.
fn is_level(partition: &v1::Partition) -> bool {
    let primary = partition
        .replicas
        .iter()
        .find(|replica| replica.node == partition.primary);
    let Some(primary) = primary else { return false };
    partition.replicas.len() == REPLICAS as usize
        && partition
            .replicas
            .iter()
            .all(|r| r.reachable && r.sequence == primary.sequence)
}

/// The node that is primary of most partitions.
fn busiest(partitions: &[v1::Partition]) -> u64 {
    let led = |node: u64| {
        partitions
            .iter()
            .filter(|partition| partition.primary == node)
            .count()
    };
    let primaries = partitions.iter().map(|partition| partition.primary);
    primaries
        .max_by_key(|node| (led(*node), std::cmp::Reverse(*node)))
        .unwrap_or(0)
}

/// The most activated of each distance from the seed, nearest first.
fn strongest_by_distance(activated: &[v1::Activated]) -> Vec<&v1::Activated> {
    let at = |length: usize| {
        let of_length = activated
            .iter()
            .filter(move |memory| memory.path.len() == length);
        of_length.take(SHOWN_PER_DISTANCE)
    };
    // A path of one step is the seed itself.
    (2..=4).flat_map(at).collect()
}

/// Steps of a path that lead from one partition to another.
fn crossings(path: &[v1::PathStep], partitions: &[v1::Partition]) -> usize {
    let home = |step: &v1::PathStep| {
        let slot = MemoryId::new(step.id.as_str()).ok()?.hash_slot();
        let owns = |partition: &&v1::Partition| {
            let slots = SlotRange {
                start: partition.slot_start as u16,
                end: partition.slot_end as u16,
            };
            slots.contains(slot)
        };
        partitions.iter().find(owns).map(|partition| partition.id)
    };
    path.windows(2)
        .filter(|pair| home(&pair[0]) != home(&pair[1]))
        .count()
}

fn report(audit: &Audit) -> Result<(), Failure> {
    let found = audit.acknowledged - audit.lost.len() - audit.altered.len();
    line(&format!(
        "   {} writes were acknowledged, {} of them are there{}",
        thousands(audit.acknowledged as u64),
        match found == audit.acknowledged {
            true => "all".to_owned(),
            false => thousands(found as u64),
        },
        match audit.unknown {
            0 => String::new(),
            unknown =>
                format!("; {unknown} more gave up without an answer and may be there or not"),
        }
    ))?;
    for refused in &audit.refused {
        line(&format!("   refused: {refused}"))?;
    }
    for lost in audit.lost.iter().chain(&audit.altered) {
        line(&format!("   LOST: {lost}"))?;
    }
    held(
        audit.holds(),
        "acknowledged writes were lost, or good ones refused",
    )
}

fn held(condition: bool, otherwise: &str) -> Result<(), Failure> {
    match condition {
        true => Ok(()),
        false => Err(Failure::new(Exit::Negative, otherwise, "the nodes' logs")),
    }
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("   {line}").trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    match time.as_millis() {
        0 => format!("{} µs", time.as_micros()),
        1..2_000 => format!("{} ms", time.as_millis()),
        _ => seconds(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(id: u64, primary: u64, sequences: &[u64]) -> v1::Partition {
        let replicas = sequences
            .iter()
            .zip(1..)
            .map(|(sequence, node)| v1::Replica {
                node,
                reachable: true,
                sequence: *sequence,
                ..Default::default()
            });
        v1::Partition {
            id,
            primary,
            replicas: replicas.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_busiest_node_leads_most() {
        let led = |nodes: &[u64]| -> Vec<v1::Partition> {
            nodes.iter().map(|node| partition(1, *node, &[])).collect()
        };
        assert_eq!(busiest(&led(&[1, 2, 2])), 2);
        assert_eq!(
            busiest(&led(&[3, 2, 1])),
            1,
            "the lowest when all lead as many"
        );
    }

    #[test]
    fn replicas_are_level_when_all_have_what_the_primary_has() {
        assert!(is_level(&partition(1, 1, &[5, 5, 5])));
        assert!(!is_level(&partition(1, 1, &[5, 5, 4])));
        assert!(!is_level(&partition(1, 1, &[5, 5])), "a replica is missing");
        assert!(
            !is_level(&partition(1, 0, &[5, 5, 5])),
            "no primary is known"
        );
    }

    #[test]
    fn steps_between_partitions_are_counted() {
        let halves = SlotRange::split_evenly(2);
        let partitions: Vec<v1::Partition> = halves
            .iter()
            .zip(1..)
            .map(|(slots, id)| v1::Partition {
                id,
                slot_start: slots.start.into(),
                slot_end: slots.end.into(),
                ..Default::default()
            })
            .collect();
        let steps = ["{a}1", "{a}2", "{b}1", "{b}2", "{c}1", "{d}1"].map(|id| v1::PathStep {
            id: id.into(),
            ..Default::default()
        });
        let homes: Vec<bool> = steps
            .iter()
            .map(|step| {
                halves[0].contains(MemoryId::new(step.id.as_str()).expect("valid").hash_slot())
            })
            .collect();
        let expected = homes.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(crossings(&steps, &partitions), expected);
    }
}
