//! `simulate mutants`: each planted bug must be caught.

#[cfg(feature = "planted")]
use std::fmt::Write as _;
use std::time::Duration;

use super::Mutants;

/// What came of one bug.
#[cfg(feature = "planted")]
struct Hunt {
    name: &'static str,
    breaks: &'static str,
    /// The invariant that caught it, at which seed, and in which words.
    caught: Option<(String, u64, String)>,
    seeds: u64,
    took: Duration,
    out_of_time: bool,
}

#[cfg(not(feature = "planted"))]
pub fn run(_arguments: &Mutants, _time_limit: Duration) -> bool {
    eprintln!("this binary cannot plant bugs: build it with --features planted");
    false
}

#[cfg(feature = "planted")]
pub fn run(arguments: &Mutants, time_limit: Duration) -> bool {
    use engram_core::planted::REGISTRY;

    use super::{Output, pool};

    let chosen: Vec<_> = REGISTRY
        .iter()
        .filter(|bug| arguments.name.is_empty() || arguments.name.iter().any(|it| it == bug.name))
        .collect();
    if chosen.len() < arguments.name.len() || chosen.is_empty() {
        eprintln!("not all of {:?} are planted bugs", arguments.name);
        return false;
    }
    let mut hunts = Vec::new();
    pool::each(
        chosen.into_iter(),
        arguments.jobs,
        |bug| hunt(bug, arguments, time_limit),
        |done| {
            match done.result {
                Ok(hunt) => {
                    eprintln!("{}", progress(&hunt));
                    hunts.push(hunt);
                }
                Err(panic) => eprintln!("{}: the simulation panicked: {panic}", done.item.name),
            }
            true
        },
    );
    hunts.sort_by_key(|hunt| hunt.name);
    match arguments.output {
        Output::Table => print!("{}", table(&hunts)),
        Output::Json => println!("{}", json(&hunts)),
    }
    hunts.iter().all(|hunt| hunt.caught.is_some())
}

#[cfg(feature = "planted")]
fn hunt(bug: &'static engram_core::planted::Bug, arguments: &Mutants, limit: Duration) -> Hunt {
    use engram_simulation::shrink::Reduction;

    use super::pool::Began;
    use super::seeds::run_reduced;

    let began = Began::now();
    let mut hunt = Hunt {
        name: bug.name,
        breaks: bug.breaks,
        caught: None,
        seeds: 0,
        took: Duration::ZERO,
        out_of_time: false,
    };
    for seed in arguments.first..arguments.first.saturating_add(arguments.seeds) {
        if began.elapsed() > limit {
            hunt.out_of_time = true;
            break;
        }
        hunt.seeds += 1;
        let ran = std::panic::catch_unwind(|| run_reduced(&Reduction::whole(seed), Some(bug.name)));
        hunt.caught = match ran {
            Ok(report) => report
                .violations
                .first()
                .map(|violation| (violation.invariant.to_owned(), seed, violation.to_string())),
            Err(_) => Some((
                "the simulation's own asserts".to_owned(),
                seed,
                String::new(),
            )),
        };
        if hunt.caught.is_some() {
            break;
        }
    }
    hunt.took = began.elapsed();
    hunt
}

#[cfg(feature = "planted")]
fn verdict(hunt: &Hunt) -> String {
    match (&hunt.caught, hunt.out_of_time) {
        (Some((invariant, seed, _)), _) => format!("{invariant} (seed {seed})"),
        (None, true) => "NOT FOUND: time limit".to_owned(),
        (None, false) => "NOT FOUND".to_owned(),
    }
}

#[cfg(feature = "planted")]
fn progress(hunt: &Hunt) -> String {
    let words = hunt.caught.as_ref().map_or("", |(_, _, words)| words);
    let words: String = words.chars().take(300).collect();
    format!(
        "{}: {} after {} seeds, {:.0} s\n    {words}",
        hunt.name,
        verdict(hunt),
        hunt.seeds,
        hunt.took.as_secs_f64()
    )
}

#[cfg(feature = "planted")]
fn table(hunts: &[Hunt]) -> String {
    let mut text = String::new();
    let width = hunts.iter().map(|hunt| hunt.name.len()).max().unwrap_or(0);
    let _written = writeln!(
        text,
        "\n{:width$}  seeds  seconds  caught by; what is planted",
        "bug"
    );
    for hunt in hunts {
        let _written = writeln!(
            text,
            "{:width$}  {:5}  {:7.0}  {}\n{:width$}                  {}",
            hunt.name,
            hunt.seeds,
            hunt.took.as_secs_f64(),
            verdict(hunt),
            "",
            hunt.breaks
        );
    }
    let found = hunts.iter().filter(|hunt| hunt.caught.is_some()).count();
    let most = hunts
        .iter()
        .filter(|hunt| hunt.caught.is_some())
        .map(|hunt| hunt.seeds);
    let _written = writeln!(
        text,
        "{found} of {} planted bugs were found, the hardest after {} seeds",
        hunts.len(),
        most.max().unwrap_or(0)
    );
    text
}

#[cfg(feature = "planted")]
fn json(hunts: &[Hunt]) -> serde_json::Value {
    let hunts = hunts.iter().map(|hunt| {
        let (invariant, seed, words) = match &hunt.caught {
            Some((invariant, seed, words)) => (Some(invariant), Some(*seed), Some(words)),
            None => (None, None, None),
        };
        serde_json::json!({
            "bug": hunt.name,
            "breaks": hunt.breaks,
            "found": hunt.caught.is_some(),
            "invariant": invariant,
            "seed": seed,
            "violation": words,
            "seeds": hunt.seeds,
            "seconds": hunt.took.as_secs_f64(),
            "out_of_time": hunt.out_of_time,
        })
    });
    hunts.collect()
}
