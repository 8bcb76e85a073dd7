//! Opening with a snapshot of the links, against linking again from the generation base.

use std::time::Instant;

use anyhow::{Result, ensure};
use engram_benches::worker::Table;
use engram_core::index::{
    Alone, Generation, IndexShape, PartitionIndex, Rebuilt, SnapshotUse, SourceError, StoredVector,
    VectorId,
};
use engram_core::types::Sequence;
use serde_json::{Value, json};

use crate::{filled, link, owner};

/// Memories of the partition: rows of the set, and copies of them that are a little off.
const MEMORIES: usize = 100_000;

fn rows(base: &Table) -> Table {
    let dimension = base.dimension;
    let mut values = Vec::with_capacity(MEMORIES * dimension);
    let mut state = 1_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.02
    };
    for row in base.rows().cycle().take(MEMORIES) {
        let is_first = values.len() < base.values.len();
        let mut row: Vec<f32> = row
            .iter()
            .map(|lane| if is_first { *lane } else { lane + noise() })
            .collect();
        // A row without a direction stays as it is.
        let _ = engram_core::kernel::normalise(&mut row);
        values.extend(row);
    }
    Table { dimension, values }
}

fn open(shape: IndexShape, rows: &Table, links: Option<&[u8]>) -> Result<Rebuilt> {
    let mut vectors = rows.rows().enumerate().map(|(row, components)| {
        let vector = StoredVector {
            owner: owner(row),
            sequence: Sequence(row as u64 + 1),
            components: components.to_vec(),
        };
        Ok::<_, SourceError>((VectorId(row as u64), vector))
    });
    let mut links = links;
    let links = links.as_mut().map(|links| links as &mut dyn std::io::Read);
    let generations = vec![Generation::initial()];
    Ok(PartitionIndex::rebuild(
        shape,
        generations,
        &mut vectors,
        &mut std::iter::empty(),
        links,
    )?)
}

pub fn measure(shape: IndexShape, base: &Table, _queries: &Table) -> Result<Value> {
    let rows = rows(base);
    let index = filled(shape, &rows, 2);
    let mut links = Vec::new();
    let began = Instant::now();
    index.save(&mut links)?;
    let save = began.elapsed().as_secs_f64();
    drop(index);

    let mut loads = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let rebuilt = open(shape, &rows, Some(&links))?;
        loads.push(began.elapsed().as_secs_f64());
        ensure!(matches!(rebuilt.snapshot, SnapshotUse::Used), "not used");
        ensure!(rebuilt.index.next_job().is_none(), "a job is left");
    }
    let began = Instant::now();
    let rebuilt = open(shape, &rows, None)?;
    link(&rebuilt.index, &Alone);
    let relink = began.elapsed().as_secs_f64();
    Ok(json!({
        "memories": MEMORIES, "snapshot_bytes": links.len(), "save_seconds": save,
        "open_seconds": loads, "rebuild_seconds": relink,
    }))
}
