//! A counter per client: evidence added to an edge, each time by a request of its own that the
//! client library repeats until it is answered. The sum tells which requests counted, and how often.

use rand::RngExt as _;

use super::{Actor, ONE, Task};
use crate::invariant::confidence;

/// Counters of a space. Clients share them.
pub const COUNTERS: u32 = 3;
/// What counters point to; written before the workload begins, as the counters are.
pub const TARGET: &str = "counted";

pub fn counter(number: u32) -> String {
    format!("counter-{number}")
}

pub async fn turn(actor: &mut Actor, task: &Task, turn: u32) {
    let space = task.space.name.as_str();
    let from = counter(actor.rng.random_range(0..COUNTERS));
    if turn % 5 == 4 {
        let level = actor.draw_level();
        actor.neighbors(space, &from, level).await;
        return;
    }
    let (edge, number) = actor
        .shared
        .next_contribution(space, &from, TARGET, "count");
    let local = actor.rng.random_bool(0.1);
    actor
        .contribute(space, edge, (ONE, confidence(number)), local)
        .await;
}
