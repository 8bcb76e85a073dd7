//! Structured logs: text or JSON on standard error, with the node's id in every line that a task
//! of the node writes.

use std::sync::Arc;

use tracing::{Instrument as _, Span};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::seams::{BoxFuture, Seams, Tasks};

/// Installs the process's log. A second call changes nothing.
pub fn install(config: &Config) {
    // The directives were checked with the configuration.
    let filter = EnvFilter::try_new(&config.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = match config.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(installed);
}

/// The same seams, with every task inside `span`.
#[must_use]
pub fn in_span(seams: &Seams, span: Span) -> Seams {
    let tasks = Arc::new(SpanTasks {
        inner: Arc::clone(&seams.tasks),
        span,
    });
    Seams {
        tasks,
        ..seams.clone()
    }
}

struct SpanTasks {
    inner: Arc<dyn Tasks>,
    span: Span,
}

impl Tasks for SpanTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) {
        self.inner
            .spawn(name, Box::pin(future.instrument(self.span.clone())));
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let span = self.span.clone();
        self.inner
            .spawn_blocking(Box::new(move || span.in_scope(work)));
    }
}
