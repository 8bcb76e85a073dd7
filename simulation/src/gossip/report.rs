//! Outcomes as a table and as a curve for the book.

use std::fmt::Write as _;

use super::Outcome;

/// Width and height of the curve, and room for its labels, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 48.0;

fn seconds(outcome: &Outcome) -> Option<f64> {
    outcome.converged_after.map(|after| after.as_secs_f64())
}

/// One row for each run.
#[must_use]
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| nodes | partitions | changes | converged after | all alive after | quiet: gossip | quiet: exchange | quiet: greatest | repair | of changes |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let time = |after: Option<std::time::Duration>| {
        after.map_or("not within 60 s".to_owned(), |after| {
            format!("{:.2} s", after.as_secs_f64())
        })
    };
    for outcome in outcomes {
        let (shape, quiet) = (outcome.shape, outcome.quiet);
        let repair = outcome.repair.call_bytes + outcome.repair.datagram_bytes;
        let row = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.0} B/s | {:.0} B/s | {:.0} B/s | {:.2} MB | {:.2} MB |",
            shape.nodes,
            shape.partitions,
            shape.changes,
            time(outcome.converged_after),
            time(outcome.membership_after),
            quiet.datagrams,
            quiet.calls,
            quiet.greatest,
            repair as f64 / 1e6,
            outcome.change_bytes as f64 / 1e6,
        );
        assert!(row.is_ok(), "a string takes every line");
    }
    text
}

/// Convergence against cluster size, the size on a logarithmic axis, as SVG.
#[must_use]
pub fn curve(outcomes: &[Outcome]) -> String {
    let points: Vec<(f64, f64)> = outcomes
        .iter()
        .filter_map(|outcome| Some((outcome.shape.nodes as f64, seconds(outcome)?)))
        .collect();
    let greatest = points
        .iter()
        .fold(1.0_f64, |most, point| most.max(point.1))
        .ceil();
    let (first, last) = (
        points.first().map_or(1.0, |point| point.0.ln()),
        points.last().map_or(2.0, |point| point.0.ln()),
    );
    let x = |nodes: f64| {
        MARGIN + (nodes.ln() - first) / (last - first).max(1e-9) * (WIDTH - 2.0 * MARGIN)
    };
    let y = |value: f64| HEIGHT - MARGIN - value / greatest * (HEIGHT - 2.0 * MARGIN);
    let mut marks = String::new();
    let mut line = String::new();
    for (nodes, value) in &points {
        let (x, y) = (x(*nodes), y(*value));
        let mark = writeln!(
            marks,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{nodes:.0}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.2} s</text>",
            HEIGHT - MARGIN + 16.0,
            y - 8.0,
        );
        assert!(mark.is_ok() && write!(line, "{x:.1},{y:.1} ").is_ok());
    }
    let base = HEIGHT - MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <path d=\"M{MARGIN} {MARGIN}V{base}H{}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\">seconds of virtual time from heal to convergence</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">nodes</text>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#246\"/>\n{marks}</svg>\n",
        WIDTH - MARGIN,
        MARGIN - 20.0,
        WIDTH - MARGIN,
        HEIGHT - 12.0,
        line.trim_end(),
    )
}
