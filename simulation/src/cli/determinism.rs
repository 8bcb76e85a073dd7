//! `simulate determinism`: the same seed, the same run.

use std::io::Write;
use std::sync::{Arc, Mutex};

use engram_simulation::run::{self, Options, Report};
use engram_simulation::swarm;

use super::Determinism;
use super::pool::{self, Began};

pub fn run(arguments: &Determinism) -> bool {
    let began = Began::now();
    let (mut same, mut different) = (0, 0);
    let seeds = arguments.first..arguments.first.saturating_add(arguments.seeds);
    pool::each(
        seeds,
        arguments.jobs,
        |seed| (traced(seed), traced(seed)),
        |done| {
            match done.result {
                Ok((first, second)) if first == second => same += 1,
                Ok((first, second)) => {
                    different += 1;
                    println!("seed {}: {}", done.item, difference(&first, &second));
                }
                Err(panic) => {
                    different += 1;
                    println!("seed {}: the simulation panicked: {panic}", done.item);
                }
            }
            true
        },
    );
    println!(
        "{same} seeds ran twice the same, event by event; {different} did not ({:.0} s)",
        began.elapsed().as_secs_f64()
    );
    different == 0
}

#[derive(PartialEq)]
struct Traced {
    report: Report,
    lines: Vec<u8>,
}

/// Collects a trace.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(|held| held.into_inner());
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn traced(seed: u64) -> Traced {
    let lines = Lines::default();
    let options = Options {
        trace: Some(Box::new(lines.clone())),
        ..Options::default()
    };
    let report = run::run(&swarm::plan(seed), options);
    let mut held = lines.0.lock().unwrap_or_else(|held| held.into_inner());
    Traced {
        report,
        lines: std::mem::take(&mut *held),
    }
}

/// The first event in which two runs differ.
fn difference(first: &Traced, second: &Traced) -> String {
    let lines = |traced: &Traced| -> Vec<String> {
        let text = String::from_utf8_lossy(&traced.lines);
        text.lines().map(str::to_owned).collect()
    };
    let (one, other) = (lines(first), lines(second));
    let at = one.iter().zip(&other).position(|(one, other)| one != other);
    match at {
        Some(at) => format!(
            "event {at} is\n  {}\nand then\n  {}\nafter\n  {}",
            one[at],
            other[at],
            at.checked_sub(1).map_or("the start", |before| &one[before])
        ),
        None => format!(
            "traces of {} and {} events are equal as far as they go; the reports differ",
            one.len(),
            other.len()
        ),
    }
}
