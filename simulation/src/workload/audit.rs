//! What is asked when the faults are over: everything that was ever written is read again, and
//! every space takes a write. The judges see it as the end of the history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;

use super::recall::vector;
use super::{Actor, Remember, spread};
use crate::history::{Level, Op, Record};
use crate::invariant::acknowledged::dropped_spaces;
use crate::plan::{SpacePlan, WorkloadKind};

/// Attempts at each question before the cluster counts as unavailable.
const ATTEMPTS: u32 = 5;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Searches and spreads of each space.
const QUERIES: u32 = 12;

/// One question of the audit.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    Get { space: String, id: String },
    Neighbors { space: String, id: String },
    Recall { space: String, dimension: u32 },
    Spread { space: String, ids: Vec<String> },
    Write { space: String },
    Describe { space: String },
}

/// Everything to ask, from what was asked for so far: first all writes, then all reads.
#[must_use]
pub fn questions(records: &[Record], spaces: &[SpacePlan]) -> Vec<Question> {
    let mut ids: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut sources: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in records {
        let space = record.space.as_str();
        let ids = ids.entry(space).or_default();
        match &record.op {
            Op::Remember { id, edges, .. } => {
                ids.insert(id);
                if !edges.is_empty() {
                    sources.entry(space).or_default().insert(id);
                }
            }
            Op::Forget { id } => {
                ids.insert(id);
            }
            Op::Contribute { edge, .. } | Op::Dissociate { edge, .. } => {
                sources.entry(space).or_default().insert(&edge.from);
            }
            _ => {}
        }
    }
    let written = records.iter().filter(|record| {
        let write = matches!(record.op, Op::Remember { .. });
        write && record.answer().is_some()
    });
    let written: BTreeSet<&str> = written.map(|record| record.space.as_str()).collect();
    let dropped = dropped_spaces(records);
    let planned: BTreeSet<&str> = spaces.iter().map(|space| space.name.as_str()).collect();
    let mut questions: Vec<Question> = spaces
        .iter()
        .map(|space| Question::Write {
            space: space.name.clone(),
        })
        .collect();
    for (space, ids) in &ids {
        let space = (*space).to_owned();
        if !planned.contains(space.as_str()) {
            let name = space.as_str();
            let stays = written.contains(name) && !dropped.contains(name);
            questions.push(Question::Describe {
                space: space.clone(),
            });
            if !stays {
                continue;
            }
        }
        let get = |id: &&str| Question::Get {
            space: space.clone(),
            id: (*id).to_owned(),
        };
        questions.extend(ids.iter().map(get));
    }
    for (space, sources) in &sources {
        let of = |id: &&str| Question::Neighbors {
            space: (*space).to_owned(),
            id: (*id).to_owned(),
        };
        questions.extend(sources.iter().map(of));
    }
    for space in spaces {
        questions.extend((0..QUERIES).map(|_| Question::Recall {
            space: space.name.clone(),
            dimension: space.dimension,
        }));
        let sources = sources.get(space.name.as_str());
        let from: Vec<String> = sources
            .into_iter()
            .flatten()
            .map(|id| (*id).to_owned())
            .collect();
        if !from.is_empty() {
            questions.extend((0..QUERIES).map(|_| Question::Spread {
                space: space.name.clone(),
                ids: from.clone(),
            }));
        }
    }
    questions
}

/// Asks until there is an answer; the questions that never got one.
pub async fn ask(mut actor: Actor, questions: Vec<Question>) -> Vec<Question> {
    let mut unanswered = Vec::new();
    for question in questions {
        let mut answered = false;
        for _ in 0..ATTEMPTS {
            answered = ask_once(&mut actor, &question).await;
            if answered {
                break;
            }
            actor.clock.sleep(PAUSE).await;
        }
        if !answered {
            unanswered.push(question);
        }
    }
    unanswered
}

async fn ask_once(actor: &mut Actor, question: &Question) -> bool {
    match question {
        Question::Get { space, id } => actor.get(space, id, Level::Linearizable).await.is_some(),
        Question::Neighbors { space, id } => actor.neighbors(space, id, Level::Linearizable).await,
        Question::Recall { space, dimension } => {
            let query = vector(&mut actor.rng, *dimension);
            let limit = actor.rng.random_range(1..=100);
            actor.recall(space, query, limit, Level::Linearizable).await
        }
        Question::Spread { space, ids } => {
            let seeds = if *space == WorkloadKind::Spread.name() {
                spread::draw_seeds(actor)
            } else {
                vec![ids[actor.rng.random_range(0..ids.len())].clone()]
            };
            let hops = actor.rng.random_range(1..=4);
            let pushes = actor.rng.random_bool(0.4);
            let level = Level::Linearizable;
            actor.spread(space, seeds, hops, level, pushes).await
        }
        Question::Write { space } => {
            let wanted = Remember {
                id: format!("audit-{}", actor.number.0),
                value: actor.fresh_value(),
                ..Remember::default()
            };
            actor.remember(space, wanted).await.is_some()
        }
        Question::Describe { space } => {
            // That it is gone is an answer too.
            actor.describe_space(space).await;
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Answer, build};

    #[test]
    fn all_that_was_written_is_asked_for() {
        let spaces = [SpacePlan {
            name: "s".into(),
            partitions: 1,
            replicas: 3,
            dimension: 2,
        }];
        let mut elsewhere = build::unknown(0, 3, build::write("x", "3"));
        elsewhere.space = "passing".into();
        let records = [
            build::unknown(0, 1, build::write("a", "1")),
            build::unknown(0, 2, Op::Forget { id: "b".into() }),
            elsewhere,
        ];
        let asked = questions(&records, &spaces);
        let space = || "s".to_owned();
        for id in ["a", "b"] {
            let id = id.to_owned();
            assert!(asked.contains(&Question::Get { space: space(), id }));
        }
        assert!(asked.contains(&Question::Describe {
            space: "passing".into()
        }));
        assert_eq!(asked[0], Question::Write { space: space() });
    }

    #[test]
    fn a_passing_space_is_read_where_nobody_may_have_dropped_it() {
        let mut wrote = build::acked(
            0,
            (1, 2),
            build::write("x", "3"),
            Answer::Written { version: 1 },
            1,
        );
        wrote.space = "passing".into();
        let get = Question::Get {
            space: "passing".into(),
            id: "x".into(),
        };
        assert!(questions(&[wrote.clone()], &[]).contains(&get));
        let mut dropped = build::unknown(1, 3, Op::DropSpace);
        dropped.space = "passing".into();
        assert!(!questions(&[wrote, dropped], &[]).contains(&get));
    }
}
