//! `simulate run`.

use engram_simulation::run::{self, Options, Report};
use engram_simulation::shrink::{Reduction, shrink};

use super::pool::{self, Began};
use super::summary::{Failure, Summary};
use super::{Output, Run};

/// Seeds between two words of progress.
const PROGRESS_EVERY: usize = 20;

pub fn run(arguments: &Run) -> bool {
    let began = Began::now();
    let mut summary = Summary::default();
    let seeds = arguments.first..arguments.first.saturating_add(arguments.seeds);
    pool::each(
        seeds,
        arguments.jobs,
        |seed| run_reduced(&Reduction::whole(seed), None),
        |done| {
            match done.result {
                Ok(report) => {
                    if !report.is_ok() {
                        eprintln!("seed {} failed: {}", done.item, report.violations[0]);
                    }
                    summary.add(&report);
                }
                Err(panic) => {
                    eprintln!("seed {}: the simulation panicked: {panic}", done.item);
                    summary.failures.push(Failure::broken(done.item, &panic));
                }
            }
            if summary.seeds.is_multiple_of(PROGRESS_EVERY) {
                eprintln!(
                    "{} of {} seeds, {} failed, {:.0} s",
                    summary.seeds,
                    arguments.seeds,
                    summary.failures.len(),
                    began.elapsed().as_secs_f64()
                );
            }
            summary.failures.len() < arguments.failures
        },
    );
    summary
        .failures
        .sort_by_key(|failure| failure.reduction.seed);
    for failure in &mut summary.failures {
        if arguments.shrink > 0 {
            failure.reduction = smaller(&failure.reduction, arguments.shrink, None);
        }
    }
    summary.took = began.elapsed();
    match arguments.output {
        Output::Table => print!("{summary}"),
        Output::Json => println!("{}", summary.json()),
    }
    summary.failures.is_empty()
}

pub fn run_reduced(reduction: &Reduction, planted: Option<&str>) -> Report {
    let options = Options {
        planted: planted.map(str::to_owned),
        ..Options::default()
    };
    run::run(&reduction.plan(), options)
}

/// Makes a failing seed smaller; whatever fails in it counts.
pub fn smaller(failing: &Reduction, tries: usize, planted: Option<&str>) -> Reduction {
    eprintln!(
        "making seed {} smaller, with at most {tries} runs",
        failing.seed
    );
    shrink(failing.clone(), tries, |next| {
        let ran = std::panic::catch_unwind(|| run_reduced(next, planted));
        ran.map_or(true, |report| !report.is_ok())
    })
}
