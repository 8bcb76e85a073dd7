//! Memories with embeddings that come, change and go, and searches that must see each of them the
//! moment it was acknowledged.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Actor, Remember, Task};

pub fn vector(rng: &mut StdRng, dimension: u32) -> Vec<f32> {
    // Few steps, so that equal distances happen.
    let component = |_| rng.random_range(-8_i32..=8) as f32 / 8.0;
    (0..dimension).map(component).collect()
}

pub async fn turn(actor: &mut Actor, task: &Task, turn: u32) {
    let (space, dimension) = (task.space.name.as_str(), task.space.dimension);
    let earlier = if turn > 0 && actor.rng.random_bool(0.25) {
        actor.rng.random_range(0..turn)
    } else {
        turn
    };
    let id = format!("point-{}-{earlier}", actor.number.0);
    match actor.rng.random_range(0..100) {
        0..=54 => {
            // An earlier one gets another embedding, or none.
            let embedding = match actor.rng.random_bool(0.9) {
                true => vector(&mut actor.rng, dimension),
                false => Vec::new(),
            };
            let wanted = Remember {
                id,
                value: actor.fresh_value(),
                embedding,
                ..Remember::default()
            };
            actor.remember(space, wanted).await;
        }
        55..=62 => {
            let purge = actor.rng.random_bool(0.2);
            actor.forget(space, &id, purge).await;
        }
        _ => {
            let query = vector(&mut actor.rng, dimension);
            let limit = actor.rng.random_range(1..=20);
            let level = actor.draw_level();
            actor.recall(space, query, limit, level).await;
        }
    }
}
