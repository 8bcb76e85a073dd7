//! Index jobs of all partitions, and edges as arrays, on blocking threads, off the write path.
//!
//! One worker per core but one (at least one); each links one window at a time, with the help of the
//! cores that link nothing ([`super::crew`]), and yields the thread between two. Links are saved
//! every [`SAVE_EVERY`] where they changed. Metrics: `engram_index_jobs_total`,
//! `engram_index_job_seconds`, `engram_graph_builds_total`, `engram_graph_build_seconds`,
//! `engram_graph_bytes`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engram_core::partition::Partition;
use engram_core::types::PartitionId;

use super::Shared;

/// How often changed links are saved.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// A worker looks for jobs at least so often: the pause of one that lost a race.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// What of a partition's links was saved: generation and jobs done.
type Saved = BTreeMap<PartitionId, (u64, u64)>;

pub fn start(shared: &Arc<Shared>) {
    for _ in 0..shared.hands.steady() {
        shared
            .seams
            .spawn("index-jobs", work(Arc::downgrade(shared)));
    }
    shared
        .seams
        .spawn("index-saves", save(Arc::downgrade(shared)));
}

/// Runs jobs until the registry is gone.
async fn work(registry: Weak<Shared>) {
    while let Some(shared) = registry.upgrade() {
        let running = Arc::clone(&shared);
        if shared.seams.blocking(move || run_one(&running)).await {
            // There may be more for another worker, too.
            shared.work.notify_one();
            continue;
        }
        // The registry must be able to go away while its workers wait.
        let (seams, work) = (shared.seams.clone(), Arc::clone(&shared.work));
        drop(shared);
        let _ = seams.timeout(IDLE_PAUSE, work.notified()).await;
    }
}

/// Blocks. Runs one job of the partition that has most to do; `false` when there is none.
fn run_one(shared: &Shared) -> bool {
    if shared
        .all()
        .into_iter()
        .any(|(_, partition)| make_arrays(shared, &partition))
    {
        return true;
    }
    let mut waiting: Vec<(u64, Arc<Partition>)> = shared
        .all()
        .into_iter()
        .map(|(_, partition)| (partition.status().index.jobs_waiting, partition))
        .filter(|(jobs, _)| *jobs > 0)
        .collect();
    waiting.sort_by_key(|(jobs, partition)| (std::cmp::Reverse(*jobs), partition.id()));
    for (windows, partition) in waiting {
        let Some(job) = partition.next_job() else {
            continue;
        };
        let began = shared.seams.clock.monotonic();
        let linked = partition.run_with(&job, &shared.hands.lend(windows));
        if let Err(error) = partition.commit(linked) {
            let id = partition.id();
            tracing::error!(partition = %id, %error, "cannot let go of an old generation");
        }
        shared.gate.open();
        let took = shared.seams.clock.monotonic().saturating_sub(began);
        metrics::counter!("engram_index_jobs_total").increment(1);
        metrics::histogram!("engram_index_job_seconds").record(took.as_secs_f64());
        return true;
    }
    false
}

/// Blocks. Makes the edges of a partition into arrays, if that is due. Without them spreading reads
/// the store.
fn make_arrays(shared: &Shared, partition: &Partition) -> bool {
    let Some(job) = partition.graph_job() else {
        return false;
    };
    let (id, began) = (partition.id(), shared.seams.clock.monotonic());
    match job.build() {
        Ok(built) => partition.commit_graph(built),
        Err(error) => {
            partition.abandon_graph();
            tracing::error!(partition = %id, %error, "cannot make the edges into arrays");
            return false;
        }
    }
    let took = shared.seams.clock.monotonic().saturating_sub(began);
    metrics::counter!("engram_graph_builds_total").increment(1);
    metrics::histogram!("engram_graph_build_seconds").record(took.as_secs_f64());
    let bytes = partition.graph_arrays().map_or(0, |arrays| {
        let bytes = arrays.bytes();
        bytes.vertices + bytes.edges
    });
    metrics::gauge!("engram_graph_bytes", "partition" => id.to_string()).set(bytes as f64);
    true
}

async fn save(registry: Weak<Shared>) {
    let mut saved = Saved::new();
    while let Some(shared) = registry.upgrade() {
        let seams = shared.seams.clone();
        saved = seams
            .blocking(move || {
                save_all(&shared, &mut saved);
                saved
            })
            .await;
        seams.clock.sleep(SAVE_EVERY).await;
    }
}

/// Blocks. Saves the links of every partition where they changed since they were `saved`.
pub fn save_all(shared: &Shared, saved: &mut Saved) {
    let open = shared.all();
    saved.retain(|id, _| open.iter().any(|(_, partition)| partition.id() == *id));
    for (_, partition) in open {
        let newest = partition.status().index.newest;
        let now = (newest.generation, newest.jobs);
        if newest.jobs == 0 || saved.get(&partition.id()) == Some(&now) {
            continue;
        }
        match save_one(shared, &partition) {
            Ok(()) => {
                saved.insert(partition.id(), now);
            }
            // Without it a restart takes longer, no more.
            Err(error) => {
                let id = partition.id();
                tracing::warn!(partition = %id, error, "cannot save the links of an index");
            }
        }
    }
}

fn save_one(shared: &Shared, partition: &Partition) -> Result<(), String> {
    let path = shared.index_file(partition.id());
    let mut file = shared
        .seams
        .disk
        .create_file(&path)
        .map_err(|error| error.to_string())?;
    partition
        .save_index(&mut file)
        .map_err(|error| error.to_string())?;
    file.flush().map_err(|error| error.to_string())?;
    // A partition dropped meanwhile leaves a file without an owner, never to be read.
    file.finish().map_err(|error| error.to_string())
}
