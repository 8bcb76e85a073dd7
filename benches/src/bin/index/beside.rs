//! Searches on one core while the other one works on the index.
//!
//! One thread asks without a pause and times each search. Phases take turns, so that all see the
//! same machine: *idle*; *linking* (another thread inserts a window's worth of rows and links it,
//! again and again); *rebuilding* (a sixth of all rows dies, a new generation begins and is linked
//! while the old one serves). The writer times its own calls: it must not be held up by a
//! generation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use engram_benches::worker::{LIMIT, Table};
use engram_core::index::{Alone, IndexShape, PartitionIndex, VectorId, WINDOW_SLOTS_MAX};
use engram_core::types::Sequence;
use serde_json::{Value, json};

use crate::{insert, link};

const EFFORT: usize = 64;
/// How long an idle phase lasts.
const IDLE: Duration = Duration::from_millis(1_500);
/// Phases of idling and linking before the generation.
const ROUNDS: usize = 3;
/// Windows that a linking phase links.
const WINDOWS: usize = 12;

/// Times of searches, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn json(&mut self) -> Value {
        self.0.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let last = self.0.len().saturating_sub(1);
            self.0.get((last as f64 * quantile) as usize).copied()
        };
        json!({ "searches": self.0.len(), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999) })
    }
}

/// Asks until `work` has returned.
fn during(index: &PartitionIndex, queries: &Table, times: &mut Times, work: impl FnOnce() + Send) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work();
            is_over.store(true, Ordering::Release);
        });
        for query in queries.rows().cycle() {
            if is_over.load(Ordering::Acquire) {
                break;
            }
            let began = Instant::now();
            std::hint::black_box(index.search(query, LIMIT, EFFORT, &|_| true));
            times.0.push(began.elapsed().as_secs_f64() * 1e6);
        }
    });
}

pub fn measure(shape: IndexShape, base: &Table, queries: &Table) -> Result<Value> {
    let rows: Vec<&[f32]> = base.rows().collect();
    let window = WINDOW_SLOTS_MAX as usize;
    let kept = rows.len().saturating_sub(ROUNDS * WINDOWS * window);
    anyhow::ensure!(kept > 16 * window, "too few rows");
    let index = PartitionIndex::with_shape(shape);
    for (row, components) in rows[..kept].iter().enumerate() {
        insert(&index, row, components);
    }
    link(&index, &crate::Threads(2));

    let (mut idle, mut linking, mut rebuilding) =
        (Times::default(), Times::default(), Times::default());
    let mut writes = Times::default();
    let mut next = kept;
    for _ in 0..ROUNDS {
        during(&index, queries, &mut idle, || std::thread::sleep(IDLE));
        during(&index, queries, &mut linking, || {
            for _ in 0..WINDOWS {
                for (row, components) in (next..).zip(&rows[next..next + window]) {
                    let began = Instant::now();
                    insert(&index, row, components);
                    writes.0.push(began.elapsed().as_secs_f64() * 1e6);
                }
                next += window;
                link(&index, &Alone);
            }
        });
    }
    let before = index.status().serving.generation;
    let mut stall = 0.0_f64;
    let (mut seconds, mut jobs) = (0.0, 0);
    during(&index, queries, &mut rebuilding, || {
        let began = Instant::now();
        stall = die(&index, rows.len());
        while let Some(job) = index.next_job() {
            index.commit(index.run(&job));
            jobs += 1;
        }
        seconds = began.elapsed().as_secs_f64();
    });
    let after = index.status().serving.generation;
    anyhow::ensure!(after == before + 1, "generation {after} serves");
    let mut after = Times::default();
    during(&index, queries, &mut after, || std::thread::sleep(IDLE));
    Ok(json!({
        "effort": EFFORT, "idle": idle.json(), "linking": linking.json(),
        "rebuilding": rebuilding.json(), "after": after.json(), "writes": writes.json(),
        "generation_begins_micros": stall, "generation_seconds": seconds,
        "generation_jobs": jobs,
    }))
}

/// Every sixth row dies, each by a command of its own. Returns the longest that one took, in
/// microseconds: the one that begins the generation.
fn die(index: &PartitionIndex, rows: usize) -> f64 {
    let mut longest = 0.0_f64;
    for (count, row) in (0..rows).step_by(6).enumerate() {
        let began = Instant::now();
        let sequence = Sequence((rows + count) as u64 + 1);
        index.kill(VectorId(row as u64), sequence);
        let due = index.applied(sequence);
        let is_due = due.is_some();
        if let Some(generation) = due {
            index.begin_generation(generation);
        }
        longest = longest.max(began.elapsed().as_secs_f64() * 1e6);
        if is_due {
            break;
        }
    }
    longest
}
