//! Unique memories, each written once, some with an edge in the same log entry; read again later,
//! anywhere, and a few of them forgotten, edges and all.

use rand::RngExt as _;

use super::{Actor, Remember, Task};
use crate::history::{EdgeName, Expected};
use crate::invariant::confidence;

/// What the edges of the set point to; written before the workload begins.
pub const ANCHOR: &str = "anchor";

pub async fn turn(actor: &mut Actor, task: &Task, turn: u32) {
    let space = task.space.name.as_str();
    if turn > 0 && actor.rng.random_bool(0.35) {
        let earlier = actor.rng.random_range(0..turn);
        let id = name(actor, earlier);
        let level = actor.draw_level();
        match actor.rng.random_range(0..10) {
            0 | 1 => {
                actor.neighbors(space, &id, level).await;
            }
            2 | 3 => {
                let purge = actor.rng.random_bool(0.2);
                actor.forget(space, &id, purge).await;
            }
            _ => {
                actor.get(space, &id, level).await;
            }
        }
        return;
    }
    let id = name(actor, turn);
    let edge = EdgeName {
        from: id.clone(),
        to: ANCHOR.into(),
        relation: "in".into(),
    };
    let with_edge = actor.rng.random_bool(0.3);
    let only_new = actor.rng.random_bool(0.3);
    let wanted = Remember {
        value: actor.fresh_value(),
        id,
        expected: only_new.then_some(Expected {
            version: 0,
            value: None,
        }),
        edges: if with_edge {
            vec![(edge, confidence(0))]
        } else {
            Vec::new()
        },
        ..Remember::default()
    };
    actor.remember(space, wanted).await;
}

fn name(actor: &Actor, turn: u32) -> String {
    format!("member-{}-{turn}", actor.number.0)
}
