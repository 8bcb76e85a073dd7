//! Few memories, many writers: reads at every level, blind writes, compare-and-set on what was just
//! read, and now and then a forgetting.

use rand::RngExt as _;

use super::{Actor, Remember, Task};
use crate::history::{Expected, Level};

/// Registers: few, so that operations meet.
const REGISTERS: u32 = 6;
/// Registers that are never forgotten, so that their order can be checked to the last.
const KEPT: u32 = 4;

pub async fn turn(actor: &mut Actor, task: &Task) {
    let number = actor.rng.random_range(0..REGISTERS);
    let (space, id) = (task.space.name.as_str(), format!("register-{number}"));
    match actor.rng.random_range(0..100) {
        0..=44 => {
            let level = actor.draw_level();
            actor.get(space, &id, level).await;
        }
        45..=69 => {
            let value = actor.fresh_value();
            let wanted = Remember {
                id,
                value,
                ..Remember::default()
            };
            actor.remember(space, wanted).await;
        }
        70..=94 => compare_and_set(actor, space, id).await,
        _ if number >= KEPT => {
            let purge = actor.rng.random_bool(0.2);
            actor.forget(space, &id, purge).await;
        }
        _ => {
            actor.get(space, &id, Level::Linearizable).await;
        }
    }
}

async fn compare_and_set(actor: &mut Actor, space: &str, id: String) {
    // Also on stale reads: then it mostly has to be refused.
    let level = actor.draw_level();
    let Some(found) = actor.get(space, &id, level).await else {
        return;
    };
    actor.pause().await;
    let expected = match found {
        Some((version, value)) => Expected {
            version,
            value: Some(value),
        },
        None => Expected {
            version: 0,
            value: None,
        },
    };
    let value = actor.fresh_value();
    let wanted = Remember {
        id,
        value,
        expected: Some(expected),
        ..Remember::default()
    };
    actor.remember(space, wanted).await;
}
