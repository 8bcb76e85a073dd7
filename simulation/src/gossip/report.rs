//! Outcomes as a table and as a curve for the book.

use std::fmt::Write as _;
use std::time::Duration;

use super::Outcome;

/// Width and height of the curve, and room for its labels, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 48.0;

/// When the runs of one size converged, in order; `None` when one was given up.
fn converged(runs: &[Outcome]) -> Option<Vec<Duration>> {
    let all = runs.iter().map(|run| run.converged_after);
    let mut all: Vec<Duration> = all.collect::<Option<_>>()?;
    all.sort_unstable();
    Some(all)
}

fn median(runs: &[Outcome]) -> Option<Duration> {
    let all = converged(runs)?;
    all.get(all.len() / 2).copied()
}

fn greatest(runs: &[Outcome]) -> Option<Duration> {
    converged(runs)?.pop()
}

/// When the last of the runs had all nodes see each other again.
fn all_alive(runs: &[Outcome]) -> Option<Duration> {
    let all = runs.iter().map(|run| run.membership_after);
    all.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The greatest over the runs.
fn most(runs: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    runs.iter().map(of).fold(0.0, f64::max)
}

fn seconds(after: Option<Duration>) -> String {
    after.map_or("not within 60 s".to_owned(), |after| {
        format!("{:.2} s", after.as_secs_f64())
    })
}

/// One row for each size; of its runs the greatest, where nothing else is said.
#[must_use]
pub fn markdown(sizes: &[Vec<Outcome>]) -> String {
    let mut text = String::from(
        "| nodes | partitions | changes | runs | converged after: median | converged after: greatest | all alive after | quiet: gossip | quiet: exchange | quiet: busiest node | repair | of changes |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for runs in sizes {
        let Some(shape) = runs.first().map(|run| run.shape) else {
            continue;
        };
        let repair = |run: &Outcome| (run.repair.call_bytes + run.repair.datagram_bytes) as f64;
        let row = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:.0} B/s | {:.0} B/s | {:.0} B/s | {:.2} MB | {:.2} MB |",
            shape.nodes,
            shape.partitions,
            shape.changes,
            runs.len(),
            seconds(median(runs)),
            seconds(greatest(runs)),
            seconds(all_alive(runs)),
            most(runs, |run| run.quiet.datagrams),
            most(runs, |run| run.quiet.calls),
            most(runs, |run| run.quiet.greatest),
            most(runs, repair) / 1e6,
            most(runs, |run| run.change_bytes as f64) / 1e6,
        );
        assert!(row.is_ok(), "a string takes every line");
    }
    text
}

/// Convergence against cluster size, the size on a logarithmic axis, as SVG: the slowest run of each
/// size, and the median.
#[must_use]
pub fn curve(sizes: &[Vec<Outcome>]) -> String {
    let of = |pick: fn(&[Outcome]) -> Option<Duration>| -> Vec<(f64, f64)> {
        let point = |runs: &Vec<Outcome>| {
            let nodes = runs.first()?.shape.nodes;
            Some((nodes as f64, pick(runs)?.as_secs_f64()))
        };
        sizes.iter().filter_map(point).collect()
    };
    let axes = Axes::of(&of(greatest));
    let base = HEIGHT - MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <path d=\"M{MARGIN} {MARGIN}V{base}H{}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\">virtual seconds from heal to convergence: slowest run (line), median (dashes)</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">nodes</text>\n{}{}</svg>\n",
        WIDTH - MARGIN,
        MARGIN - 20.0,
        WIDTH - MARGIN,
        HEIGHT - 12.0,
        axes.line(&of(greatest), "stroke=\"#246\"", Labels::Above),
        axes.line(
            &of(median),
            "stroke=\"#862\" stroke-dasharray=\"4 3\"",
            Labels::Below
        ),
    )
}

/// Where the numbers of a line's points go.
#[derive(Clone, Copy)]
enum Labels {
    /// With the sizes below the axis.
    Above,
    Below,
}

struct Axes {
    /// Logarithms of the least and the greatest size.
    first: f64,
    last: f64,
    greatest: f64,
}

impl Axes {
    fn of(points: &[(f64, f64)]) -> Self {
        let greatest = points.iter().fold(1.0_f64, |most, point| most.max(point.1));
        Self {
            first: points.first().map_or(1.0, |point| point.0.ln()),
            last: points.last().map_or(2.0, |point| point.0.ln()),
            greatest: greatest.ceil(),
        }
    }

    fn place(&self, (nodes, value): (f64, f64)) -> (f64, f64) {
        let share = (nodes.ln() - self.first) / (self.last - self.first).max(1e-9);
        (
            MARGIN + share * (WIDTH - 2.0 * MARGIN),
            HEIGHT - MARGIN - value / self.greatest * (HEIGHT - 2.0 * MARGIN),
        )
    }

    fn line(&self, points: &[(f64, f64)], style: &str, labels: Labels) -> String {
        let (mut marks, mut line) = (String::new(), String::new());
        for point in points {
            let (x, y) = self.place(*point);
            let (nodes, value) = point;
            let under = HEIGHT - MARGIN + 16.0;
            let written = match labels {
                Labels::Above => write!(
                    marks,
                    "<text x=\"{x:.1}\" y=\"{under:.1}\" text-anchor=\"middle\">{nodes:.0}</text>\
                     <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.2}</text>",
                    y - 8.0
                ),
                Labels::Below => write!(
                    marks,
                    "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#862\">{value:.2}</text>",
                    y + 16.0
                ),
            };
            let circle = writeln!(marks, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
            assert!(written.and(circle).is_ok() && write!(line, "{x:.1},{y:.1} ").is_ok());
        }
        let line = line.trim_end();
        format!("<polyline points=\"{line}\" fill=\"none\" {style}/>\n{marks}")
    }
}
