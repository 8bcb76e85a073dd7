//! Few edges, many writers: evidence added, through the log or at one replica, and taken away
//! again by removals that know only what their issuer has seen.

use rand::RngExt as _;

use super::{Actor, ONE, Task};
use crate::invariant::confidence;

/// Ends of the edges; written before the workload begins.
pub const ENDS: u32 = 4;

pub fn end(number: u32) -> String {
    format!("end-{number}")
}

pub async fn turn(actor: &mut Actor, task: &Task) {
    let space = task.space.name.as_str();
    let from = end(actor.rng.random_range(0..ENDS));
    let to = end(actor.rng.random_range(0..ENDS));
    let local = actor.rng.random_bool(0.2);
    match actor.rng.random_range(0..100) {
        0..=54 => {
            let (edge, number) = actor.shared.next_contribution(space, &from, &to, "near");
            let weight = match actor.rng.random_range(0..4) {
                0 => ONE,
                1 => ONE / 2,
                2 => 0,
                _ => actor.rng.random_range(0..=ONE),
            };
            actor
                .contribute(space, edge, (weight, confidence(number)), local)
                .await;
        }
        55..=69 => {
            let edge = actor.shared.current_edge(space, &from, &to, "near");
            actor.dissociate(space, edge, local).await;
        }
        _ => {
            let level = actor.draw_level();
            actor.neighbors(space, &from, level).await;
        }
    }
}
