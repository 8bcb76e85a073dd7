//! Spreads of both modes over a graph that lies across partitions and only grows, so that each answer
//! can be compared with the oracle at its positions, whatever happens to the nodes meanwhile.

use rand::RngExt as _;

use super::{Actor, ONE, Task};
use crate::invariant::confidence;

/// Memories of the graph; written before the workload begins.
pub const MEMORIES: u32 = 24;
/// Out-edges of each.
pub const OUT_EDGES: u32 = 3;

pub fn memory(number: u32) -> String {
    format!("node-{number}")
}

/// Share of turns in which the graph grows by an edge, as long as it grows: in the second half of the
/// workload every answer can be compared, also one that lacks a partition and so does not say what
/// state it saw of it.
const GROWTH: f64 = 0.4;

pub async fn turn(actor: &mut Actor, task: &Task, turn: u32) {
    if turn < task.operations / 2 && actor.rng.random_bool(GROWTH) {
        return grow(actor, &task.space.name).await;
    }
    let seeds = draw_seeds(actor);
    let hops = actor.rng.random_range(1..=4);
    let level = actor.draw_level();
    let pushes = actor.rng.random_bool(0.4);
    let space = &task.space.name;
    actor.spread(space, seeds, hops, level, pushes).await;
}

/// A new edge, or more evidence for one.
async fn grow(actor: &mut Actor, space: &str) {
    let from = memory(actor.rng.random_range(0..MEMORIES));
    let to = memory(actor.rng.random_range(0..MEMORIES));
    let weight = ONE / u64::from(actor.rng.random_range(1..=3_u32));
    let (edge, number) = actor.shared.next_contribution(space, &from, &to, "grown");
    actor
        .contribute(space, edge, (weight, confidence(number)), false)
        .await;
}

/// One to three seeds, now and then one that does not exist.
pub fn draw_seeds(actor: &mut Actor) -> Vec<String> {
    let count = actor.rng.random_range(1..=3);
    let mut seeds: Vec<String> = (0..count)
        .map(|_| memory(actor.rng.random_range(0..MEMORIES)))
        .collect();
    if actor.rng.random_bool(0.1) {
        seeds.push("nobody".into());
    }
    seeds
}
