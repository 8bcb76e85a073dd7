//! The scope of a node's tasks: each carries the node's id into its log lines, and none outlives
//! the node.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::seams::{BoxFuture, Seams, Tasks};

/// The same seams, with every task inside `span` and dropped when `end` is cancelled.
#[must_use]
pub fn scoped(seams: &Seams, span: Span, end: CancellationToken) -> Seams {
    let tasks = Arc::new(ScopedTasks {
        inner: Arc::clone(&seams.tasks),
        span,
        end,
    });
    Seams {
        tasks,
        ..seams.clone()
    }
}

struct ScopedTasks {
    inner: Arc<dyn Tasks>,
    span: Span,
    end: CancellationToken,
}

impl Tasks for ScopedTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) {
        let end = self.end.clone();
        let scoped = async move {
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = future => {}
            }
        };
        self.inner
            .spawn(name, Box::pin(scoped.instrument(self.span.clone())));
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let span = self.span.clone();
        self.inner
            .spawn_blocking(Box::new(move || span.in_scope(work)));
    }
}
