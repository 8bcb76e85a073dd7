//! Spaces that come and go: each client makes one of its own name, uses it, drops it, and makes it
//! again.

use rand::RngExt as _;

use super::{Actor, Remember, Task, request_of};
use crate::history::Level;
use crate::plan::SpacePlan;

/// Turns of one life of a space.
const LIFE: u32 = 8;

pub fn name(actor: &Actor) -> String {
    format!("passing-{}", actor.number.0)
}

pub async fn turn(actor: &mut Actor, task: &Task, turn: u32) {
    let name = name(actor);
    match turn % LIFE {
        0 => {
            let partitions = actor.rng.random_range(1..=2);
            let space = SpacePlan {
                name,
                partitions,
                ..task.space.clone()
            };
            let mut request = request_of(&space);
            // Repeated by the client library only with this.
            request.if_not_exists = actor.rng.random_bool(0.5);
            actor.create_space(request).await;
        }
        1 => {
            actor.describe_space(&name).await;
        }
        2 | 3 | 5 => {
            let id = format!("guest-{}", actor.rng.random_range(0..2));
            let value = actor.fresh_value();
            let wanted = Remember {
                id,
                value,
                ..Remember::default()
            };
            actor.remember(&name, wanted).await;
        }
        4 | 6 => {
            let id = format!("guest-{}", actor.rng.random_range(0..2));
            actor.get(&name, &id, Level::Linearizable).await;
        }
        _ => {
            actor.drop_space(&name).await;
        }
    }
}
