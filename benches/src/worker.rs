//! One index under test in a process of its own, told what to do line by line.
//!
//! `scripts/bench_index.py` starts one worker for each index and lets them take turns, so that all
//! are measured under the same conditions and never at the same time. A request and its answer are
//! one line of JSON each:
//!
//! | request | answer |
//! | --- | --- |
//! | `{"do":"build","threads":2}` | `wall`, `cpu` (seconds); `bytes` by the index's own count, `walked` of them touched by a search; `resident` |
//! | `{"do":"search","effort":64}` | `wall`, `cpu`: seconds for all queries, one after the other, the mean of as many passes as fill [`PASSES_SECONDS`] |
//! | `{"do":"answers","effort":64}` | `ids`: the rows nearest to each query |
//! | `{"do":"latency","effort":64}` | `micros` of each query |
//! | anything else | whatever the index makes of it |
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::processor::{process_seconds, resident_bytes, thread_seconds};

/// Rows that a query asks for.
pub const LIMIT: usize = 10;

/// All queries are asked again until so many seconds are over: the system counts the time on the
/// processor in ticks of some milliseconds.
pub const PASSES_SECONDS: f64 = 0.4;

/// Rows of f32, one after the other.
pub struct Table {
    pub dimension: usize,
    pub values: Vec<f32>,
}

impl Table {
    /// Reads little-endian f32.
    ///
    /// # Errors
    /// When the file is not there, or holds no whole rows.
    pub fn read(path: &Path, dimension: usize) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let (values, rest) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values
            .iter()
            .map(|lane| f32::from_le_bytes(*lane))
            .collect();
        ensure!(
            dimension > 0 && rest.is_empty() && values.len().is_multiple_of(dimension),
            "{} holds no whole rows of {dimension}",
            path.display()
        );
        Ok(Self { dimension, values })
    }

    pub fn rows(&self) -> impl Iterator<Item = &[f32]> + Clone {
        self.values.chunks_exact(self.dimension)
    }
}

/// Memory that an index says it takes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    pub bytes: Option<u64>,
    /// What searches touch of it.
    pub walked: Option<u64>,
}

/// An index under test.
pub trait Subject {
    /// Builds it anew.
    ///
    /// # Errors
    /// When it cannot.
    fn build(&mut self, base: &Table, threads: usize) -> Result<Memory>;

    /// Appends the [`LIMIT`] rows nearest to `query`, nearest first.
    fn search(&self, query: &[f32], effort: usize, found: &mut Vec<u32>);

    /// What only this index can do.
    ///
    /// # Errors
    /// When it cannot.
    fn other(&mut self, request: &Value, _base: &Table, _queries: &Table) -> Result<Value> {
        anyhow::bail!("unknown request {request}")
    }
}

#[derive(Deserialize)]
struct Request {
    #[serde(rename = "do")]
    verb: String,
    threads: Option<usize>,
    effort: Option<usize>,
}

/// Answers requests until standard input ends.
///
/// # Errors
/// When a request cannot be understood or carried out.
pub fn serve(mut subject: impl Subject, base: &Table, queries: &Table) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = answer(&mut subject, &request, base, queries)?;
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(
    subject: &mut impl Subject,
    request: &Value,
    base: &Table,
    queries: &Table,
) -> Result<Value> {
    let Request {
        verb,
        threads,
        effort,
    } = Request::deserialize(request)?;
    let effort = effort.unwrap_or(LIMIT);
    match verb.as_str() {
        "build" => build(subject, base, threads.unwrap_or(1)),
        "search" => Ok(search_all(subject, queries, effort)),
        "answers" => {
            let ids = queries.rows().map(|query| {
                let mut found = Vec::with_capacity(LIMIT);
                subject.search(query, effort, &mut found);
                found
            });
            Ok(json!({ "ids": ids.collect::<Vec<_>>() }))
        }
        "latency" => {
            let mut found = Vec::with_capacity(LIMIT);
            let micros = queries.rows().map(|query| {
                found.clear();
                let began = Instant::now();
                subject.search(query, effort, &mut found);
                began.elapsed().as_secs_f64() * 1e6
            });
            Ok(json!({ "micros": micros.collect::<Vec<_>>() }))
        }
        _ => subject.other(request, base, queries),
    }
}

fn build(subject: &mut impl Subject, base: &Table, threads: usize) -> Result<Value> {
    let resident = resident_bytes();
    let (began, cpu) = (Instant::now(), process_seconds());
    let memory = subject.build(base, threads)?;
    let wall = began.elapsed().as_secs_f64();
    let cpu = process_seconds()
        .zip(cpu)
        .map(|(after, before)| after - before);
    let grown = resident_bytes().zip(resident);
    let resident = grown.map(|(after, before)| after.saturating_sub(before));
    Ok(json!({
        "wall": wall, "cpu": cpu, "resident": resident,
        "bytes": memory.bytes, "walked": memory.walked,
    }))
}

fn search_all(subject: &impl Subject, queries: &Table, effort: usize) -> Value {
    let mut found = Vec::with_capacity(LIMIT);
    let (began, cpu) = (Instant::now(), thread_seconds());
    let mut passes = 0.0;
    while began.elapsed().as_secs_f64() < PASSES_SECONDS {
        for query in queries.rows() {
            found.clear();
            subject.search(query, effort, &mut found);
            std::hint::black_box(&found);
        }
        passes += 1.0;
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = thread_seconds()
        .zip(cpu)
        .map(|(after, before)| after - before);
    json!({ "wall": wall / passes, "cpu": cpu.map(|cpu| cpu / passes) })
}
