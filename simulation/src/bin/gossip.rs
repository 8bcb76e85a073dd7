//! `gossip [--nodes 3,10,100] [--seeds N] [--svg FILE]`: how long clusters of these sizes take to
//! converge after a split, as a table; with `--svg` also as a curve. Seeds differ in when it heals.

use std::process::ExitCode;

use engram_simulation::gossip::{PHASES, Shape, curve, markdown, run};

struct Arguments {
    nodes: Vec<u64>,
    seeds: u64,
    svg: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        nodes: vec![3, 5, 10, 20, 30, 50, 100, 200, 300],
        seeds: PHASES,
        svg: None,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or(format!("{name} needs a value"))?;
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|error| format!("{text}: {error}"))
        };
        match name.as_str() {
            "--nodes" => parsed.nodes = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--seeds" => parsed.seeds = number(&value)?.max(1),
            "--svg" => parsed.svg = Some(value),
            _ => return Err(format!("{name} is not known")),
        }
    }
    if parsed
        .nodes
        .iter()
        .any(|nodes| !(3..=10_000).contains(nodes))
    {
        return Err("a cluster has 3 to 10,000 nodes here".into());
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let parsed = match arguments() {
        Ok(parsed) => parsed,
        Err(reason) => {
            eprintln!("{reason}\nusage: gossip [--nodes 3,10,100] [--seeds N] [--svg FILE]");
            return ExitCode::from(2);
        }
    };
    let mut sizes = Vec::new();
    for nodes in parsed.nodes {
        let mut outcomes = Vec::new();
        for seed in 1..=parsed.seeds {
            let outcome = run(Shape::of(nodes, seed));
            eprintln!("{nodes} nodes, seed {seed}: {:?}", outcome.converged_after);
            outcomes.push(outcome);
        }
        sizes.push(outcomes);
    }
    print!("{}", markdown(&sizes));
    if let Some(path) = parsed.svg
        && let Err(error) = std::fs::write(&path, curve(&sizes))
    {
        eprintln!("{path}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
