//! From lines to batches, on a thread of its own, so that lines are read and checked while earlier
//! batches are on their way.
//!
//! Used by [`super::load`]. What must hold: a batch holds memories or edges, never both, so that an
//! item's position in it is that of its line in `origins`; row i of the embeddings belongs to line
//! i, so a refused line still consumes its row; memory is bounded by [`AHEAD_MAX`] batches; the last
//! batch says that it is the last, so that a thread that fails is not taken for the end of the source.

use engram_client::types as v1;
use tokio::sync::mpsc;

use super::jsonl::BadLine;
use super::lines::{Line, Lines};
use super::load::{LoadError, OnError, Rows, Source, io_error};
use crate::seams::Seams;

/// Items in one batch: what fits one log entry of a partition.
const ITEMS_MAX: usize = engram_core::limits::OPS_PER_COMMAND_MAX;
/// Size of one batch, in bytes of its lines and rows.
const BYTES_MAX: usize = 1 << 20;
/// Batches that are ready before they can be sent.
pub(super) const AHEAD_MAX: usize = 2;

/// What a line says.
pub(super) enum Item {
    Memory(v1::Memory),
    Edge(v1::ImportEdge),
}

/// Where an item is from.
pub(super) struct Origin {
    pub line: u64,
    pub text: String,
}

/// A line that is refused before it is sent.
pub(super) struct Refused {
    pub origin: Origin,
    pub code: String,
    pub reason: String,
}

/// Lines collected for one batch, and those among them that cannot be in it.
#[derive(Default)]
pub(super) struct Batch {
    pub memories: Vec<v1::Memory>,
    pub edges: Vec<v1::ImportEdge>,
    pub origins: Vec<Origin>,
    pub refused: Vec<Refused>,
    /// Nothing comes after it.
    pub is_last: bool,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, item: Item, origin: Origin) {
        match item {
            Item::Memory(memory) => {
                self.bytes += memory.embedding.len() * size_of::<f32>();
                self.memories.push(memory);
            }
            Item::Edge(edge) => self.edges.push(edge),
        }
        self.origins.push(origin);
    }

    fn is_full(&self) -> bool {
        self.origins.len() + self.refused.len() >= ITEMS_MAX || self.bytes >= BYTES_MAX
    }
}

/// Starts the thread. It ends with the source, with the first error, with the first refused line
/// where none may be, or when nobody receives any more.
pub(super) fn batches(
    seams: &Seams,
    source: Source,
    rows: Option<Rows>,
    on_error: OnError,
    read: impl Fn(&str, Option<Vec<f32>>) -> Result<Item, BadLine> + Send + 'static,
) -> mpsc::Receiver<Result<Batch, LoadError>> {
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let maker = Maker {
        file: source.name.clone(),
        rows,
        on_error,
        read,
    };
    seams.tasks.spawn_blocking(Box::new(move || {
        if let Err(error) = maker.all(source, &sender) {
            // Who went away does not want to know.
            drop(sender.blocking_send(Err(error)));
        }
    }));
    receiver
}

fn changed(file: String) -> LoadError {
    LoadError::Io {
        file,
        error: std::io::Error::other("it changed while it was read"),
    }
}

struct Maker<R> {
    file: String,
    rows: Option<Rows>,
    on_error: OnError,
    read: R,
}

impl<R: Fn(&str, Option<Vec<f32>>) -> Result<Item, BadLine>> Maker<R> {
    fn all(
        mut self,
        source: Source,
        sender: &mpsc::Sender<Result<Batch, LoadError>>,
    ) -> Result<(), LoadError> {
        let mut lines = Lines::new(source.reader);
        let mut batch = Batch::default();
        while let Some(line) = lines.next_line().map_err(io_error(&self.file))? {
            let row = self.next_row()?;
            self.take(&mut batch, line, row);
            batch.is_last = self.on_error == OnError::Stop && !batch.refused.is_empty();
            let stops = batch.is_last;
            if (batch.is_full() || stops)
                && sender
                    .blocking_send(Ok(std::mem::take(&mut batch)))
                    .is_err()
            {
                return Ok(());
            }
            if stops {
                return Ok(());
            }
        }
        if self.next_row()?.is_some() {
            // The file grew or shrank since its lines were counted.
            drop(sender.blocking_send(Ok(batch)));
            return Err(changed(self.file));
        }
        batch.is_last = true;
        drop(sender.blocking_send(Ok(batch)));
        Ok(())
    }

    fn take(&self, batch: &mut Batch, line: Line, row: Option<Vec<f32>>) {
        let (text, result) = match line.text {
            Ok(text) => {
                let result = (self.read)(&text, row);
                let result = result.map_err(|bad| (bad.code.to_owned(), bad.reason));
                (text, result)
            }
            Err(error) => (
                String::new(),
                Err(("MALFORMED_LINE".to_owned(), error.to_string())),
            ),
        };
        batch.bytes += text.len();
        let origin = Origin {
            line: line.number,
            text,
        };
        match result {
            Ok(item) => batch.add(item, origin),
            Err((code, reason)) => batch.refused.push(Refused {
                origin,
                code,
                reason,
            }),
        }
    }

    fn next_row(&mut self) -> Result<Option<Vec<f32>>, LoadError> {
        match &mut self.rows {
            None => Ok(None),
            Some(rows) => rows.next(),
        }
    }
}
