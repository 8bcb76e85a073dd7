//! Exact spreads over a graph that lies across partitions and does not change, so that each answer
//! can be compared with the oracle, whatever happens to the nodes meanwhile.

use rand::RngExt as _;

use super::{Actor, Task};

/// Memories of the graph; written before the workload begins.
pub const MEMORIES: u32 = 24;
/// Out-edges of each.
pub const OUT_EDGES: u32 = 3;

pub fn memory(number: u32) -> String {
    format!("node-{number}")
}

pub async fn turn(actor: &mut Actor, task: &Task) {
    let seeds = draw_seeds(actor);
    let hops = actor.rng.random_range(1..=4);
    let level = actor.draw_level();
    actor.spread(&task.space.name, seeds, hops, level).await;
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
