//! `simulate replay`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use engram_simulation::run::{self, Options};

use super::summary::Summary;
use super::{REPLAY, Replay, seeds};

pub fn run(arguments: &Replay) -> bool {
    let reduction = arguments.reduction();
    let plan = reduction.plan();
    if arguments.plan {
        println!("{plan:#?}");
        for (number, event) in plan.faults.iter().enumerate() {
            println!("fault {number} at {:?}: {:?}", event.at, event.fault);
        }
    }
    let (Ok(trace), Ok(history)) = (writer(&arguments.trace), writer(&arguments.history)) else {
        return false;
    };
    let options = Options {
        trace,
        history,
        planted: arguments.planted.clone(),
    };
    let report = run::run(&plan, options);
    let mut summary = Summary::default();
    summary.add(&report);
    for failure in &mut summary.failures {
        failure.reduction = reduction.clone();
    }
    print!("{summary}");
    println!("trace {}", report.trace);
    for violation in &report.violations {
        println!("{violation}");
    }
    if !report.is_ok() && arguments.shrink > 0 {
        let small = seeds::smaller(&reduction, arguments.shrink, arguments.planted.as_deref());
        println!("smaller: {REPLAY} {small}");
    }
    report.is_ok()
}

/// A file to write to, if one is named; an error has been told.
fn writer(path: &Option<PathBuf>) -> Result<Option<Box<dyn Write + Send>>, ()> {
    let Some(path) = path else {
        return Ok(None);
    };
    match File::create(path) {
        Ok(file) => Ok(Some(Box::new(BufWriter::new(file)))),
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            Err(())
        }
    }
}
