//! Loading: lines become batches, batches are sent, refused lines are reported.
//!
//! What must hold: row i of the embeddings belongs to line i of the memories, so a refused line
//! still consumes its row; memory is bounded by the batches in flight.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_client::{BatchReport, Importer, SpaceClient, types as v1};
use indicatif::ProgressBar;

use super::jsonl::{BadLine, EdgeLine, Embeddings, MemoryLine, parse};
use super::lines::{Line, Lines, count};
use super::npy::{NpyError, NpyReader};
use super::progress::Progress;
use super::rejects::{Reject, Rejects};
use crate::seams::Clock;

/// Items in one batch.
const BATCH_ITEMS_MAX: usize = 256;
/// Size of one batch, in bytes of its lines and rows.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Batches that may be unanswered, unless the caller says otherwise.
pub const IN_FLIGHT_DEFAULT: usize = 8;

/// Lines to load, with their number when it is known.
pub struct Source {
    pub name: String,
    pub lines: u64,
    reader: Box<dyn BufRead + Send>,
}

/// Rows to load.
pub struct Rows {
    pub name: String,
    reader: NpyReader<Box<dyn Read + Send>>,
}

/// What to load. Embeddings need memories.
#[derive(Default)]
pub struct Input {
    pub memories: Option<Source>,
    pub embeddings: Option<Rows>,
    pub edges: Option<Source>,
}

/// What to do with a line that is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Write it to the report and go on.
    #[default]
    Skip,
    /// Finish what is on its way, then stop.
    Stop,
}

/// What was loaded, and in what time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    pub memories: u64,
    pub memories_time: Duration,
    pub edges: u64,
    pub edges_time: Duration,
}

/// Why loading ended early. What was acknowledged before stays.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{file}: {error}")]
    Io { file: String, error: std::io::Error },
    #[error("{file}: {error}")]
    Npy { file: String, error: NpyError },
    #[error(
        "{embeddings} has {rows} rows, but {memories} has {lines} lines: row i belongs to line i"
    )]
    RowCount {
        embeddings: String,
        rows: usize,
        memories: String,
        lines: u64,
    },
    #[error("{embeddings} has rows of dimension {actual}, the space has dimension {expected}")]
    Dimension {
        embeddings: String,
        actual: usize,
        expected: u32,
    },
    #[error("{file}, line {line}: {reason} ({code})")]
    Stopped {
        file: String,
        line: u64,
        code: String,
        reason: String,
    },
    #[error("{error}")]
    Client { error: engram_client::Error },
}

impl From<engram_client::Error> for LoadError {
    fn from(error: engram_client::Error) -> Self {
        Self::Client { error }
    }
}

fn io_error(file: &str) -> impl Fn(std::io::Error) -> LoadError {
    let file = file.to_owned();
    move |error| LoadError::Io {
        file: file.clone(),
        error,
    }
}

impl Source {
    /// Opens a file and counts its lines.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let open = || {
            File::open(path)
                .map(BufReader::new)
                .map_err(io_error(&name))
        };
        let lines = count(open()?).map_err(io_error(&name))?;
        let reader = Box::new(open()?);
        Ok(Self {
            name,
            lines,
            reader,
        })
    }

    /// Lines that are part of the program.
    #[must_use]
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        let lines = count(bytes).unwrap_or(0);
        Self {
            name: name.to_owned(),
            lines,
            reader: Box::new(bytes),
        }
    }
}

impl Rows {
    /// # Errors
    /// When the file cannot be read or is no `.npy` of embeddings.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(io_error(&name))?;
        Self::new(name, Box::new(BufReader::new(file)))
    }

    /// # Errors
    /// When the bytes are no `.npy` of embeddings.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, LoadError> {
        Self::new(name.to_owned(), Box::new(bytes))
    }

    fn new(name: String, source: Box<dyn Read + Send>) -> Result<Self, LoadError> {
        match NpyReader::new(source) {
            Ok(reader) => Ok(Self { name, reader }),
            Err(error) => Err(LoadError::Npy { file: name, error }),
        }
    }

    #[must_use]
    pub fn dimension(&self) -> usize {
        self.reader.dimension()
    }
}

impl Input {
    /// # Errors
    /// When a part cannot be opened.
    pub fn open(
        memories: Option<&Path>,
        embeddings: Option<&Path>,
        edges: Option<&Path>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            memories: memories.map(Source::open).transpose()?,
            embeddings: embeddings.map(Rows::open).transpose()?,
            edges: edges.map(Source::open).transpose()?,
        })
    }

    /// What can be known before anything is sent.
    fn check(&self, embeddings: Embeddings) -> Result<(), LoadError> {
        let Some(rows) = &self.embeddings else {
            return Ok(());
        };
        if rows.dimension() != embeddings.dimension as usize {
            return Err(LoadError::Dimension {
                embeddings: rows.name.clone(),
                actual: rows.dimension(),
                expected: embeddings.dimension,
            });
        }
        let (memories, lines) = match &self.memories {
            Some(source) => (source.name.clone(), source.lines),
            None => ("(no memories file)".to_owned(), 0),
        };
        if rows.reader.rows() as u64 == lines {
            return Ok(());
        }
        let embeddings = rows.name.clone();
        Err(LoadError::RowCount {
            embeddings,
            rows: rows.reader.rows(),
            memories,
            lines,
        })
    }
}

/// How to load.
pub struct Loader {
    pub space: SpaceClient,
    pub embeddings: Embeddings,
    pub on_error: OnError,
    pub in_flight: usize,
    pub progress: Progress,
    pub clock: Arc<dyn Clock>,
}

impl Loader {
    /// Loads memories, then associations.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(&self, input: Input, rejects: &mut Rejects) -> Result<Loaded, LoadError> {
        input.check(self.embeddings)?;
        let mut loaded = Loaded::default();
        let Input {
            memories,
            embeddings: mut rows,
            edges,
        } = input;
        if let Some(source) = memories {
            let started = self.clock.monotonic();
            let embeddings = self.embeddings;
            let read = move |line: &str, row| {
                parse::<MemoryLine>(line)?
                    .into_memory(row, embeddings)
                    .map(Item::Memory)
            };
            let run = Run::new(self, "memories", &source, rejects);
            loaded.memories = run.through(source, rows.as_mut(), read).await?;
            loaded.memories_time = self.clock.monotonic() - started;
        }
        if let Some(source) = edges {
            let started = self.clock.monotonic();
            let read = |line: &str, _| parse::<EdgeLine>(line)?.into_edge().map(Item::Edge);
            let run = Run::new(self, "edges", &source, rejects);
            loaded.edges = run.through(source, None, read).await?;
            loaded.edges_time = self.clock.monotonic() - started;
        }
        Ok(loaded)
    }
}

enum Item {
    Memory(v1::Memory),
    Edge(v1::ImportEdge),
}

/// Lines collected for one batch. A batch holds memories or edges, never both, so that an item's
/// position in it is that of its line in `origins`.
#[derive(Default)]
struct Batch {
    memories: Vec<v1::Memory>,
    edges: Vec<v1::ImportEdge>,
    origins: Vec<Origin>,
    bytes: usize,
}

struct Origin {
    line: u64,
    text: String,
}

impl Batch {
    fn add(&mut self, item: Item, origin: Origin) {
        self.bytes += origin.text.len();
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
        self.origins.len() >= BATCH_ITEMS_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

/// One source on its way into the space.
struct Run<'a> {
    file: String,
    importer: Importer,
    on_error: OnError,
    rejects: &'a mut Rejects,
    bar: ProgressBar,
    batch: Batch,
    /// Origins of the unanswered batches, in order.
    sent: VecDeque<Vec<Origin>>,
    loaded: u64,
    /// The first refused line, when lines may not be skipped.
    stopped: Option<Reject>,
}

impl<'a> Run<'a> {
    fn new(loader: &Loader, what: &'static str, source: &Source, rejects: &'a mut Rejects) -> Self {
        Self {
            file: source.name.clone(),
            importer: loader.space.importer().in_flight(loader.in_flight),
            on_error: loader.on_error,
            rejects,
            bar: loader.progress.bar(what, Some(source.lines)),
            batch: Batch::default(),
            sent: VecDeque::new(),
            loaded: 0,
            stopped: None,
        }
    }

    /// Sends all lines; answers with the number of items that were applied.
    async fn through(
        mut self,
        source: Source,
        mut rows: Option<&mut Rows>,
        read: impl Fn(&str, Option<Vec<f32>>) -> Result<Item, BadLine>,
    ) -> Result<u64, LoadError> {
        let mut lines = Lines::new(source.reader);
        while let Some(line) = lines.next_line().map_err(io_error(&self.file))? {
            let row = next_row(rows.as_deref_mut())?;
            self.take(line, row, &read)?;
            if self.batch.is_full() {
                self.send().await?;
            }
            if self.stopped.is_some() {
                break;
            }
        }
        if self.stopped.is_none() && next_row(rows)?.is_some() {
            // The file grew or shrank since its lines were counted.
            let error = std::io::Error::other("it changed while it was read");
            return Err(LoadError::Io {
                file: self.file,
                error,
            });
        }
        self.finish().await
    }

    fn take(
        &mut self,
        line: Line,
        row: Option<Vec<f32>>,
        read: &impl Fn(&str, Option<Vec<f32>>) -> Result<Item, BadLine>,
    ) -> Result<(), LoadError> {
        let (text, result) = match line.text {
            Ok(text) => {
                let result = read(&text, row).map_err(|bad| (bad.code.to_owned(), bad.reason));
                (text, result)
            }
            Err(error) => (
                String::new(),
                Err(("MALFORMED_LINE".to_owned(), error.to_string())),
            ),
        };
        let origin = Origin {
            line: line.number,
            text,
        };
        match result {
            Ok(item) => {
                self.batch.add(item, origin);
                Ok(())
            }
            Err((code, reason)) => {
                self.bar.inc(1);
                self.reject(origin, code, reason)
            }
        }
    }

    async fn send(&mut self) -> Result<(), LoadError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.origins.is_empty() {
            return Ok(());
        }
        self.sent.push_back(batch.origins);
        let reports = self.importer.send(batch.memories, batch.edges).await?;
        reports
            .into_iter()
            .try_for_each(|report| self.report(report))
    }

    async fn finish(mut self) -> Result<u64, LoadError> {
        self.send().await?;
        for report in self.importer.finish().await? {
            self.report(report)?;
        }
        self.bar.finish();
        self.rejects
            .flush()
            .map_err(io_error(&self.rejects.path().display().to_string()))?;
        match self.stopped {
            None => Ok(self.loaded),
            Some(Reject {
                file,
                line,
                code,
                reason,
                ..
            }) => Err(LoadError::Stopped {
                file,
                line,
                code,
                reason,
            }),
        }
    }

    fn report(&mut self, report: BatchReport) -> Result<(), LoadError> {
        let mut origins = self.sent.pop_front().unwrap_or_default();
        self.bar.inc(origins.len() as u64);
        self.loaded += report.memories + report.edges;
        for refused in report.rejected {
            let origin = match origins.get_mut(refused.position as usize) {
                Some(origin) => Origin {
                    line: origin.line,
                    text: std::mem::take(&mut origin.text),
                },
                None => Origin {
                    line: 0,
                    text: String::new(),
                },
            };
            self.reject(origin, refused.code, refused.reason)?;
        }
        Ok(())
    }

    fn reject(&mut self, origin: Origin, code: String, reason: String) -> Result<(), LoadError> {
        let file = self.file.clone();
        let reject = Reject {
            file,
            line: origin.line,
            code,
            reason,
            record: origin.text,
        };
        if self.on_error == OnError::Stop {
            self.stopped.get_or_insert_with(|| reject.clone());
        }
        let report = self.rejects.path().display().to_string();
        self.rejects.add(reject).map_err(io_error(&report))
    }
}

fn next_row(rows: Option<&mut Rows>) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(rows) = rows else { return Ok(None) };
    rows.reader.next_row().map_err(|error| LoadError::Npy {
        file: rows.name.clone(),
        error,
    })
}
