//! Recall on real text embeddings. Run it with the directory of the data set:
//! `ENGRAM_DATA=... cargo test -p engram-core wordnet -- --ignored --nocapture`

use std::path::PathBuf;

use super::*;
use crate::types::{MemoryId, SlotRange};

const ROW_LANES: usize = 384;

fn from_half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * mantissa * 2_f32.powi(-24),
        _ => sign * (1.0 + mantissa / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

/// Unit rows of a float16 `.npy` file.
fn rows(name: &str) -> Vec<Vec<f32>> {
    let data = std::env::var_os("ENGRAM_DATA").expect("ENGRAM_DATA names the data directory");
    let mut path = PathBuf::from(data);
    if path.join("wordnet").is_dir() {
        path.push("wordnet");
    }
    let bytes = std::fs::read(path.join(name)).expect("a data file");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let halves: Vec<f32> = bytes[header..]
        .chunks_exact(2)
        .map(|half| from_half(u16::from_le_bytes([half[0], half[1]])))
        .collect();
    let mut rows: Vec<Vec<f32>> = halves
        .chunks_exact(ROW_LANES)
        .map(<[f32]>::to_vec)
        .collect();
    rows.iter_mut().for_each(|row| assert!(normalise(row)));
    rows
}

fn recall(partitions: u32, effort: usize, indexes: &[Partition], queries: &[Vec<f32>]) -> f64 {
    let mut found = 0;
    for query in queries {
        let merge = |search: &dyn Fn(&PartitionIndex) -> Vec<Hit>| {
            let mut hits: Vec<(u32, VectorId, f32)> = (0..partitions)
                .zip(indexes)
                .flat_map(|(part, held)| {
                    let hits = search(&held.index);
                    hits.into_iter()
                        .map(move |hit| (part, hit.id, hit.distance))
                })
                .collect();
            hits.sort_by(|a, b| a.2.total_cmp(&b.2));
            let hits = hits.into_iter().take(10).map(|(part, id, _)| (part, id));
            hits.collect::<BTreeSet<_>>()
        };
        let exact = merge(&|index| index.scan(query, 10, &everything));
        let near = merge(&|index| index.search(query, 10, effort, &everything));
        found += near.intersection(&exact).count();
    }
    found as f64 / (queries.len() * 10) as f64
}

fn filled(partitions: u32, rows: &[Vec<f32>]) -> Vec<Partition> {
    let ranges = SlotRange::split_evenly(partitions);
    let parameters = IndexParameters::new(3);
    let shape = IndexShape::new(parameters, ROW_LANES as u32, Metric::Cosine);
    let mut indexes: Vec<Partition> = ranges.iter().map(|_| Partition::new(shape)).collect();
    for (line, row) in rows.iter().enumerate() {
        let id = MemoryId::new(format!("row-{line}")).expect("a valid id");
        let slot = id.hash_slot();
        let part = ranges
            .iter()
            .position(|range| range.contains(slot))
            .expect("covered");
        indexes[part].apply(&Command {
            inserts: vec![(id.hash(), row.clone())],
            kills: vec![],
            ..Command::default()
        });
    }
    indexes.iter().for_each(|partition| {
        partition.work();
    });
    indexes
}

#[test]
#[ignore = "needs the data set"]
fn recall_on_wordnet() {
    let (base, queries) = (rows("embeddings.f16.npy"), rows("queries.f16.npy"));
    for partitions in [1, 3] {
        let indexes = filled(partitions, &base);
        indexes.iter().for_each(check_reachable);
        for effort in [32, 64, DEFAULT_EFFORT, 128] {
            let recall = recall(partitions, effort, &indexes, &queries);
            println!("{partitions} partitions, effort {effort}: recall@10 {recall:.4}");
            assert!(effort < DEFAULT_EFFORT || recall >= 0.97);
        }
        println!("{:?}", indexes[0].index.status());
    }
}
