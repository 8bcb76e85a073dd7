//! Few edges, many writers: evidence added, through the log or at one replica, and taken away
//! again by removals that know only what their issuer has seen.

use rand::RngExt as _;

use super::{Actor, ONE, Task};
use crate::history::{EdgeName, Level};
use crate::invariant::confidence;

/// Ends of the edges; written before the workload begins.
pub const ENDS: u32 = 3;
/// Those of them that edges go to: few, so that changes meet.
const TARGETS: u32 = 2;
const RELATION: &str = "near";
/// Evidence that comes after a removal of which only one replica knows.
const GIVEN_AGAIN: u32 = 4;

pub fn end(number: u32) -> String {
    format!("end-{number}")
}

pub async fn turn(actor: &mut Actor, task: &Task) {
    let space = task.space.name.as_str();
    let from = end(actor.rng.random_range(0..ENDS));
    let to = end(actor.rng.random_range(0..TARGETS));
    let local = actor.rng.random_range(0..100) < task.local_percent;
    match actor.rng.random_range(0..100) {
        0..=39 => {
            contribute(actor, space, (&from, &to), local).await;
            // A session sees what it has just changed, also when one replica alone has it.
            if local && actor.rng.random_bool(0.5) {
                actor.neighbors(space, &from, Level::Session).await;
            }
        }
        40..=59 => take_back(actor, space, (&from, &to), local).await,
        60..=69 => {
            let edge = actor.shared.current_edge(space, &from, &to, RELATION);
            remove(actor, space, edge, local).await;
        }
        _ => {
            let level = actor.draw_level();
            actor.neighbors(space, &from, level).await;
        }
    }
}

async fn contribute(
    actor: &mut Actor,
    space: &str,
    (from, to): (&str, &str),
    local: bool,
) -> EdgeName {
    let (edge, number) = actor.shared.next_contribution(space, from, to, RELATION);
    let weight = match actor.rng.random_range(0..4) {
        0 => ONE,
        1 => ONE / 2,
        2 => 0,
        _ => actor.rng.random_range(0..=ONE),
    };
    let given = (weight, confidence(number));
    actor.contribute(space, edge.clone(), given, local).await;
    edge
}

/// Where only one replica could be told, more evidence comes right after, and is looked for: the
/// attempt at a majority may still be on its way, and must not take it.
async fn remove(actor: &mut Actor, space: &str, edge: EdgeName, local: bool) {
    let (from, to) = (edge.from.clone(), edge.to.clone());
    let by_majority = actor.dissociate(space, edge, local).await;
    if local || by_majority != Some(false) {
        return;
    }
    for _ in 0..GIVEN_AGAIN {
        contribute(actor, space, (&from, &to), false).await;
        actor.pause().await;
        actor.neighbors(space, &from, Level::Linearizable).await;
    }
}

/// Evidence that its giver takes away again at once, wherever leadership has gone meanwhile; now and
/// then more comes right after.
async fn take_back(actor: &mut Actor, space: &str, ends: (&str, &str), local: bool) {
    let edge = contribute(actor, space, ends, local).await;
    let local = actor.rng.random_bool(0.25);
    remove(actor, space, edge, local).await;
    if actor.rng.random_bool(0.3) {
        contribute(actor, space, ends, false).await;
    }
    if actor.rng.random_bool(0.3) {
        let level = actor.draw_level();
        actor.neighbors(space, ends.0, level).await;
    }
}
