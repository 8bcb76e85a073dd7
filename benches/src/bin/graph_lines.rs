//! Writes a graph of any size as the two files that `engram import` takes: an R-MAT graph (a = .57,
//! b = c = .19) whose vertices have scattered ids, the same for the same numbers.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use clap::Parser;

/// Odd, so that numbers stay apart: neighbours of one hub do not have neighbouring ids.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Writes memories.jsonl and edges.jsonl.
#[derive(Debug, Parser)]
struct Args {
    /// Directory for the files
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    memories: u64,
    /// An edge that is drawn twice is written twice: more evidence for it
    #[arg(long, default_value_t = 5_000_000)]
    edges: u64,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SCATTER);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn id(number: u64) -> String {
    format!("m-{:016x}", number.wrapping_mul(SCATTER))
}

/// The ends of an edge: each bit of both by one throw.
fn ends(dice: &mut Dice, bits: u32) -> (u64, u64) {
    let (mut from, mut to) = (0, 0);
    for _ in 0..bits {
        let at = (dice.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (right, below) = ((0.57..0.76).contains(&at) || at >= 0.95, at >= 0.76);
        from = from << 1 | u64::from(below);
        to = to << 1 | u64::from(right);
    }
    (from, to)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.memories > 1, "a graph has at least two memories");
    fs::create_dir_all(&args.out)?;
    let file = |name: &str| File::create(args.out.join(name)).map(BufWriter::new);
    let mut memories = file("memories.jsonl")?;
    for number in 0..args.memories {
        let id = id(number);
        writeln!(memories, r#"{{"id":"{id}","content":"memory {number}"}}"#)?;
    }
    memories.flush()?;
    let (mut edges, mut dice) = (file("edges.jsonl")?, Dice(7));
    let bits = 64 - (args.memories - 1).leading_zeros();
    let mut written = 0;
    while written < args.edges {
        let (from, to) = ends(&mut dice, bits);
        if from >= args.memories || to >= args.memories || from == to {
            continue;
        }
        let (from, to) = (id(from), id(to));
        let weight = (dice.next() % 900 + 100) as f64 / 1000.0;
        writeln!(
            edges,
            r#"{{"from":"{from}","to":"{to}","relation":"r","weight":{weight}}}"#
        )?;
        written += 1;
    }
    edges.flush()?;
    Ok(())
}
