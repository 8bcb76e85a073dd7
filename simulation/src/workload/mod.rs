//! What clients do: one file per workload. Each works on a space of its own name, concurrently with
//! all others, through the product's own client library; all it learns goes into the
//! [`crate::history::History`].
//!
//! A workload does not judge: it asks, pauses, and asks again, whatever the answer, and never waits
//! for the cluster to be well. What it may not do is make its answers impossible to judge: values
//! are unique, and contributions to an edge can be told apart.

mod actor;
pub mod audit;
mod counter;
mod edges;
mod prepare;
mod recall;
mod register;
mod set;
mod spaces;
mod spread;

use actor::ONE;
pub use actor::{Actor, Remember, Shared};
pub use prepare::{prepare, request_of};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::plan::{SpacePlan, WorkloadKind};

/// What one client of a workload is told.
#[derive(Clone, Debug)]
pub struct Task {
    pub kind: WorkloadKind,
    pub space: SpacePlan,
    pub operations: u32,
    /// Of a hundred changes of edges, so many are asked of one replica alone.
    pub local_percent: u32,
}

/// Runs one client of a workload to its end, or until it is told to stop.
pub async fn run(mut actor: Actor, task: Task, stop: Arc<AtomicBool>) {
    for turn in 0..task.operations {
        actor.pause().await;
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match task.kind {
            WorkloadKind::Register => register::turn(&mut actor, &task).await,
            WorkloadKind::Set => set::turn(&mut actor, &task, turn).await,
            WorkloadKind::Counter => counter::turn(&mut actor, &task, turn).await,
            WorkloadKind::Edges => edges::turn(&mut actor, &task).await,
            WorkloadKind::Recall => recall::turn(&mut actor, &task, turn).await,
            WorkloadKind::Spread => spread::turn(&mut actor, &task, turn).await,
            WorkloadKind::Spaces => spaces::turn(&mut actor, &task, turn).await,
        }
    }
}
