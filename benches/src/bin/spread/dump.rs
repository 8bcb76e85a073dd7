//! The graph, the seeds and the right answers as files, for what is not measured in this process.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::ANSWER;
use crate::csr::{Csr, Loop};

/// Seeds whose answers are written.
const ANSWERS: usize = 20;

/// `NAME.edges`: 12 bytes an edge, little-endian: from, to, share of the source's sum as f32.
/// `NAME.json`: the seeds, and the answers of the first ones.
pub fn write(directory: &Path, name: &str, csr: &Csr, seeds: &[u32]) -> Result<()> {
    fs::create_dir_all(directory)?;
    let mut edges = BufWriter::new(File::create(directory.join(format!("{name}.edges")))?);
    for (from, to, share) in csr.edges() {
        edges.write_all(&from.to_le_bytes())?;
        edges.write_all(&to.to_le_bytes())?;
        edges.write_all(&share.to_le_bytes())?;
    }
    edges.flush()?;
    let mut plain = Loop::new(csr);
    let answers = seeds.iter().take(ANSWERS);
    let answers: Vec<_> = answers
        .map(|seed| plain.spread(*seed, 3, ANSWER).1)
        .collect();
    let text = json!({ "seeds": seeds, "answers": answers }).to_string();
    fs::write(directory.join(format!("{name}.json")), text)?;
    Ok(())
}
