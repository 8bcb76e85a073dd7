//! Spaces that come and go: each client makes one of its own name, uses it, drops it, and makes it
//! again. It reads at any node: some have not heard of it yet.

use rand::RngExt as _;

use super::{Actor, Remember, Task, request_of};
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
                name: name.clone(),
                partitions,
                ..task.space.clone()
            };
            let mut request = request_of(&space);
            // Repeated by the client library only with this.
            request.if_not_exists = actor.rng.random_bool(0.5);
            actor.create_space(request).await;
            get(actor, &name).await;
        }
        1 => {
            actor.describe_space(&name).await;
            get(actor, &name).await;
        }
        2 | 3 | 5 => {
            let id = guest(actor);
            let value = actor.fresh_value();
            let wanted = Remember {
                id,
                value,
                ..Remember::default()
            };
            actor.remember(&name, wanted).await;
        }
        4 | 6 => {
            get(actor, &name).await;
        }
        _ => {
            actor.drop_space(&name).await;
            // Not every node has heard of that yet.
            get(actor, &name).await;
            get(actor, &name).await;
        }
    }
}

fn guest(actor: &mut Actor) -> String {
    format!("guest-{}", actor.rng.random_range(0..2))
}

async fn get(actor: &mut Actor, space: &str) {
    let id = guest(actor);
    actor.get_anywhere(space, &id).await;
}
