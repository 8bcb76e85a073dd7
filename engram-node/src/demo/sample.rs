//! The sample of WordNet 3.0 that is part of the program, so that the demo runs anywhere.

use crate::cli::bulk::load::{Input, LoadError, Rows, Source};

const MEMORIES: &[u8] = include_bytes!("../../assets/wordnet/memories.jsonl");
const EMBEDDINGS: &[u8] = include_bytes!("../../assets/wordnet/embeddings.f16.npy");
const EDGES: &[u8] = include_bytes!("../../assets/wordnet/edges.jsonl");
const LICENCE: &str = include_str!("../../assets/wordnet/LICENSE");

/// The word sense that the demo starts from: `music`, the art.
pub const START: &str = "music.n.07020895";

/// # Errors
/// When the sample is damaged, which the tests rule out.
pub fn input() -> Result<Input, LoadError> {
    Ok(Input {
        memories: Some(Source::embedded("sample/memories.jsonl", MEMORIES)),
        embeddings: Some(Rows::embedded("sample/embeddings.f16.npy", EMBEDDINGS)?),
        edges: Some(Source::embedded("sample/edges.jsonl", EDGES)),
    })
}

/// Whose data it is: the licence's copyright line.
#[must_use]
pub fn credit() -> &'static str {
    let line = LICENCE
        .lines()
        .map(str::trim)
        .find(|line| line.contains("Copyright"));
    let owner = line.and_then(|line| line.split_once(". All rights"));
    owner.map_or("WordNet 3.0", |(owner, _)| owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bulk::jsonl::{EdgeLine, Embeddings, MemoryLine, parse};
    use crate::cli::bulk::lines::Lines;
    use crate::cli::bulk::npy::NpyReader;

    #[test]
    fn the_sample_is_whole() {
        let mut rows = NpyReader::new(EMBEDDINGS).expect("a .npy");
        let metric = engram_core::types::Metric::Cosine;
        let embeddings = Embeddings {
            dimension: rows.dimension() as u32,
            metric,
        };
        let mut ids = std::collections::BTreeSet::new();
        let mut lines = Lines::new(MEMORIES);
        while let Some(line) = lines.next_line().expect("in memory") {
            let row = rows.next_row().expect("a row per line");
            let line: MemoryLine = parse(&line.text.expect("text")).expect("a memory");
            ids.insert(
                line.into_memory(row, embeddings)
                    .expect("an acceptable memory")
                    .id,
            );
        }
        assert!(rows.next_row().expect("the end").is_none());
        assert!(ids.contains(START));
        let mut lines = Lines::new(EDGES);
        while let Some(line) = lines.next_line().expect("in memory") {
            let edge: EdgeLine = parse(&line.text.expect("text")).expect("an association");
            let edge = edge.into_edge().expect("an acceptable association");
            assert!(
                ids.contains(&edge.from) && ids.contains(&edge.to),
                "{edge:?}"
            );
        }
        assert_eq!(
            credit(),
            "WordNet 3.0 Copyright 2006 by Princeton University"
        );
    }
}
