//! What many runs came to, as a table that can be read in the middle of the night.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use engram_simulation::run::Report;
use engram_simulation::shrink::Reduction;
use engram_simulation::world::Coverage;

use super::REPLAY;

/// A seed that failed.
pub struct Failure {
    pub reduction: Reduction,
    pub words: Vec<String>,
}

impl Failure {
    pub fn broken(seed: u64, panic: &str) -> Self {
        Self {
            reduction: Reduction::whole(seed),
            words: vec![format!("the simulation panicked: {panic}")],
        }
    }
}

/// Sums over runs.
#[derive(Default)]
pub struct Summary {
    pub seeds: usize,
    /// Those that had everything a seed must have.
    counted: usize,
    lacks: BTreeMap<&'static str, u64>,
    simulated: Duration,
    pub took: Duration,
    nodes: Vec<u64>,
    seconds: Vec<u64>,
    operations: Vec<u64>,
    faults: Vec<u64>,
    recoveries_millis: Vec<u64>,
    outcomes: BTreeMap<&'static str, u64>,
    operations_by_kind: BTreeMap<&'static str, u64>,
    faults_by_kind: BTreeMap<&'static str, u64>,
    coverage: Coverage,
    pub failures: Vec<Failure>,
}

fn merge(into: &mut BTreeMap<&'static str, u64>, from: &BTreeMap<&'static str, u64>) {
    for (name, count) in from {
        *into.entry(name).or_default() += count;
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

impl Summary {
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.counted += usize::from(report.lacks.is_empty());
        for lack in &report.lacks {
            *self.lacks.entry(lack).or_default() += 1;
        }
        self.nodes.push(report.nodes as u64);
        self.seconds.push(report.simulated.as_secs());
        self.operations.push(report.operations as u64);
        self.faults.push(report.faults_injected());
        if !report.recovery.is_zero() {
            self.recoveries_millis
                .push(report.recovery.as_millis() as u64);
        }
        merge(&mut self.outcomes, &report.outcomes);
        merge(&mut self.operations_by_kind, &report.operations_by_kind);
        merge(&mut self.faults_by_kind, &report.faults);
        self.coverage.merge(&report.coverage);
        if !report.is_ok() {
            self.failures.push(Failure {
                reduction: Reduction::whole(report.seed),
                words: report.violations.iter().map(ToString::to_string).collect(),
            });
        }
    }

    fn hours(&self) -> f64 {
        self.simulated.as_secs_f64() / 3_600.0
    }

    pub fn json(&self) -> serde_json::Value {
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|failure| {
                serde_json::json!({
                    "seed": failure.reduction.seed,
                    "violations": failure.words,
                    "replay": format!("{REPLAY} {}", failure.reduction),
                })
            })
            .collect();
        let coverage: BTreeMap<&str, u64> = self.coverage.iter().collect();
        serde_json::json!({
            "seeds": self.seeds,
            "counted": self.counted,
            "lacks": self.lacks,
            "simulated_hours": self.hours(),
            "seconds": self.took.as_secs_f64(),
            "median_nodes": median(&self.nodes),
            "median_simulated_seconds": median(&self.seconds),
            "median_operations": median(&self.operations),
            "median_faults": median(&self.faults),
            "median_recovery_millis": median(&self.recoveries_millis),
            "outcomes": self.outcomes,
            "operations": self.operations_by_kind,
            "faults": self.faults_by_kind,
            "coverage": coverage,
            "failures": failures,
        })
    }
}

/// Names and counts, several in a line.
fn columns(f: &mut fmt::Formatter<'_>, title: &str, counts: &[(&str, u64)]) -> fmt::Result {
    writeln!(f, "{title}")?;
    let width = counts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let per_line = (100 / (width + 14)).max(1);
    for line in counts.chunks(per_line) {
        f.write_str("  ")?;
        for (name, count) in line {
            write!(f, "{name:width$} {count:>9}    ")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn listed<'a>(counts: &'a BTreeMap<&'static str, u64>) -> Vec<(&'a str, u64)> {
    counts.iter().map(|(name, count)| (*name, *count)).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        writeln!(
            f,
            "{} seeds, {} of them count, {} failed; {:.1} simulated hours in {:.0} s",
            self.seeds,
            self.counted,
            self.failures.len(),
            self.hours(),
            self.took.as_secs_f64()
        )?;
        writeln!(
            f,
            "median of a seed: {} nodes, {} simulated s, {} operations, {} faults, {:.1} s until all was well",
            median(&self.nodes),
            median(&self.seconds),
            median(&self.operations),
            median(&self.faults),
            median(&self.recoveries_millis) as f64 / 1_000.0
        )?;
        columns(f, "operations by outcome", &listed(&self.outcomes))?;
        columns(f, "operations by kind", &listed(&self.operations_by_kind))?;
        columns(
            f,
            "faults that found something to harm",
            &listed(&self.faults_by_kind),
        )?;
        let coverage: Vec<(&str, u64)> = self.coverage.iter().collect();
        columns(f, "paths that were taken (0 is a blind spot)", &coverage)?;
        if !self.lacks.is_empty() {
            columns(
                f,
                "seeds that lacked what a seed must have to count",
                &listed(&self.lacks),
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: seed {}", failure.reduction.seed)?;
            for words in &failure.words {
                writeln!(f, "  {words}")?;
            }
            writeln!(f, "  {REPLAY} {}", failure.reduction)?;
        }
        f.write_str(LEGEND)
    }
}

const LEGEND: &str = "
a seed counts when it had 3 nodes, 60 simulated seconds with faults, 500 operations of clients, 5 faults
  of 2 kinds that found something to harm, and a liveness phase after them
acknowledged: answered, and held to it; refused: certainly not done, and reads without an answer;
  unknown: may be done, or may yet happen
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0);
        assert_eq!(median(&[5]), 5);
        assert_eq!(median(&[9, 1, 5]), 5);
    }

    #[test]
    fn a_failure_tells_how_to_see_it_again() {
        let mut summary = Summary::default();
        summary.failures.push(Failure::broken(7, "words"));
        let text = summary.to_string();
        assert!(text.contains("FAILED: seed 7") && text.contains("replay --seed 7"));
        let json = summary.json();
        assert_eq!(json["failures"][0]["seed"], 7);
    }
}
