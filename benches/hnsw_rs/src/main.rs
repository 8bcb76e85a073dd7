//! hnsw_rs as a worker of `make bench-index`: `bench-hnsw-rs BASE QUERIES DIMENSION`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use engram_benches::worker::{LIMIT, Memory, Subject, Table, serve};
use hnsw_rs::prelude::*;

const M: usize = 16;
const EF_CONSTRUCTION: usize = 200;
const LEVELS: usize = 16;

#[derive(Default)]
struct Rival(Option<Hnsw<'static, f32, DistDot>>);

impl Subject for Rival {
    fn build(&mut self, base: &Table, threads: usize) -> Result<Memory> {
        self.0 = None;
        let rows: Vec<(&[f32], usize)> = base.rows().zip(0..).collect();
        let hnsw = Hnsw::new(M, rows.len(), LEVELS, EF_CONSTRUCTION, DistDot {});
        if threads == 1 {
            rows.iter().for_each(|row| hnsw.insert_slice(*row));
        } else {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            pool.install(|| hnsw.parallel_insert_slice(&rows));
        }
        self.0 = Some(hnsw);
        Ok(Memory::default())
    }

    fn search(&self, query: &[f32], effort: usize, found: &mut Vec<u32>) {
        if let Some(hnsw) = &self.0 {
            let near = hnsw.search(query, LIMIT, effort);
            found.extend(near.iter().map(|near| near.d_id as u32));
        }
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: bench-hnsw-rs BASE QUERIES DIMENSION");
    let (base, queries) = (PathBuf::from(next()?), PathBuf::from(next()?));
    let dimension = next()?.parse()?;
    let base = Table::read(&base, dimension)?;
    let queries = Table::read(&queries, dimension)?;
    serve(Rival::default(), &base, &queries)
}
