//! The node's one log writer: many groups, one batch, one fsync.
//!
//! Bounds: [`QUEUE_OPS_MAX`] operations and [`QUEUE_KIB_MAX`] of data wait at most; a caller
//! beyond that waits. One batch takes at most [`BATCH_BYTES_MAX`] and then whatever one more
//! operation adds. Metrics: `engram_log_queue_ops`, `engram_log_batch_ops`,
//! `engram_log_batch_bytes`, `engram_log_sync_seconds`.

use std::sync::Arc;

use engram_core::planted;
use engram_core::storage::{Batch, Durability, Storage, StorageError};
use engram_core::types::GroupId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::marks::{Mark, Marks};
use crate::seams::Seams;

/// Operations that wait for the writer.
pub const QUEUE_OPS_MAX: usize = 4_096;
/// Data that waits for the writer, in KiB.
pub const QUEUE_KIB_MAX: u32 = 64 << 10;
/// Data of one batch, in bytes, before it is closed.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

/// A log write failed: no group may go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a log write failed, the node's replicas have stopped: {reason}")]
pub struct Poisoned {
    pub reason: String,
}

impl From<Poisoned> for std::io::Error {
    fn from(poisoned: Poisoned) -> Self {
        Self::other(poisoned)
    }
}

/// Called once, with the outcome of the write, before later writes of the same group complete.
pub type OnDurable = Box<dyn FnOnce(Result<(), Poisoned>) + Send>;

struct Op {
    batch: Batch,
    /// Where the group's log is when the operation is durable.
    mark: Option<(GroupId, Mark)>,
    done: OnDurable,
    /// Held until the operation is durable: the bound on waiting data.
    _room: OwnedSemaphorePermit,
}

/// The writer's handle. Clones share it; it ends when all are gone.
#[derive(Clone)]
pub struct LogWriter {
    queue: mpsc::Sender<Op>,
    pub marks: Marks,
    room: Arc<Semaphore>,
    poison: watch::Receiver<Option<Poisoned>>,
}

impl LogWriter {
    pub fn start(seams: &Seams, storage: Arc<dyn Storage>, marks: Marks) -> Self {
        let (queue, ops) = mpsc::channel(QUEUE_OPS_MAX);
        let (poison_sender, poison) = watch::channel(None);
        let task = Task {
            seams: seams.clone(),
            storage,
            marks: marks.clone(),
            ops,
            poison: poison_sender,
        };
        seams.spawn("log-writer", task.run());
        Self {
            queue,
            marks,
            room: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            poison,
        }
    }

    /// Queues a batch; `done` is called when it is durable, or when it never will be.
    ///
    /// # Errors
    /// [`Poisoned`] when a write has failed before. `done` is not called then.
    pub async fn submit(&self, batch: Batch, done: OnDurable) -> Result<(), Poisoned> {
        self.submit_marked(batch, None, done).await
    }

    /// As [`Self::submit`]; once durable, the batch brings a group's log to `mark`.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn submit_marked(
        &self,
        batch: Batch,
        mark: Option<(GroupId, Mark)>,
        done: OnDurable,
    ) -> Result<(), Poisoned> {
        self.check()?;
        let kib = u32::try_from(batch.bytes() >> 10).unwrap_or(QUEUE_KIB_MAX) + 1;
        let room = Arc::clone(&self.room)
            .acquire_many_owned(kib.min(QUEUE_KIB_MAX))
            .await;
        let room = room.map_err(|_| self.stopped())?;
        let op = Op {
            batch,
            mark,
            done,
            _room: room,
        };
        self.queue.send(op).await.map_err(|_| self.stopped())?;
        metrics::gauge!("engram_log_queue_ops").increment(1);
        Ok(())
    }

    /// Writes a batch and returns when it is durable.
    ///
    /// # Errors
    /// [`Poisoned`] when it, or a write before it, failed.
    pub async fn write(&self, batch: Batch) -> Result<(), Poisoned> {
        let (sender, receiver) = oneshot::channel();
        // A caller that went away does not want to know.
        self.submit(batch, Box::new(move |result| drop(sender.send(result))))
            .await?;
        receiver.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// # Errors
    /// [`Poisoned`] once a write has failed.
    pub fn check(&self) -> Result<(), Poisoned> {
        self.poison.borrow().clone().map_or(Ok(()), Err)
    }

    /// Waits until a write fails, or until the writer has ended without that. The future does not
    /// keep the writer alive.
    pub fn poisoned(&self) -> impl Future<Output = Option<Poisoned>> + Send + use<> {
        let mut poison = self.poison.clone();
        async move {
            let seen = poison.wait_for(Option::is_some).await.ok()?;
            seen.clone()
        }
    }

    fn stopped(&self) -> Poisoned {
        let poisoned = self.poison.borrow().clone();
        poisoned.unwrap_or_else(|| Poisoned {
            reason: "the log writer has ended".into(),
        })
    }
}

/// Operations that become durable together.
struct Gathered {
    batch: Batch,
    marks: Vec<(GroupId, Mark)>,
    waiting: Vec<(OnDurable, OwnedSemaphorePermit)>,
}

struct Task {
    seams: Seams,
    storage: Arc<dyn Storage>,
    marks: Marks,
    ops: mpsc::Receiver<Op>,
    poison: watch::Sender<Option<Poisoned>>,
}

impl Task {
    async fn run(mut self) {
        while let Some(first) = self.ops.recv().await {
            let Gathered {
                batch,
                marks,
                waiting,
            } = self.gather(first);
            let result = self.write(batch, marks).await;
            if let Err(poisoned) = &result {
                tracing::error!(reason = %poisoned.reason, "log write failed");
                self.poison.send_replace(Some(poisoned.clone()));
            }
            for (done, _room) in waiting {
                done(result.clone());
            }
            if let Err(poisoned) = result {
                return self.refuse_all(&poisoned).await;
            }
        }
    }

    /// One batch of everything that is waiting, within the bound.
    fn gather(&mut self, first: Op) -> Gathered {
        let mut marks: Vec<_> = first.mark.into_iter().collect();
        let mut batch = first.batch;
        let mut waiting = vec![(first.done, first._room)];
        while batch.bytes() < BATCH_BYTES_MAX
            && let Ok(op) = self.ops.try_recv()
        {
            batch.append(op.batch);
            marks.extend(op.mark);
            waiting.push((op.done, op._room));
        }
        metrics::gauge!("engram_log_queue_ops").decrement(waiting.len() as f64);
        metrics::histogram!("engram_log_batch_ops").record(waiting.len() as f64);
        metrics::histogram!("engram_log_batch_bytes").record(batch.bytes() as f64);
        Gathered {
            batch,
            marks,
            waiting,
        }
    }

    async fn write(&self, batch: Batch, reached: Vec<(GroupId, Mark)>) -> Result<(), Poisoned> {
        let (storage, marks) = (Arc::clone(&self.storage), self.marks.clone());
        let began = self.seams.clock.monotonic();
        let written = self
            .seams
            .blocking(move || {
                storage.write(batch, Durability::Sync)?;
                // After the sync, and never before.
                marks
                    .reached(&reached)
                    .map_err(|error| StorageError::Write {
                        reason: format!("the marks of the logs: {error}"),
                    })
            })
            .await;
        let took = self.seams.clock.monotonic().saturating_sub(began);
        metrics::histogram!("engram_log_sync_seconds").record(took.as_secs_f64());
        if written.is_err() && planted!("failed-sync-acknowledged") {
            return Ok(());
        }
        written.map_err(|error| Poisoned {
            reason: error.to_string(),
        })
    }

    /// After a failure nothing is written any more: all that comes is answered with the reason.
    async fn refuse_all(mut self, poisoned: &Poisoned) {
        self.ops.close();
        while let Some(op) = self.ops.recv().await {
            (op.done)(Err(poisoned.clone()));
        }
    }
}
