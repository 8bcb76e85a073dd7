//! Loading: lines become batches, batches are sent, refused lines are reported.
//!
//! What must hold: memory is bounded by the batches in flight and those that wait for their turn.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use engram_client::{BatchReport, Importer, SpaceClient};
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use super::batches::{Batch, Item, Origin, Refused, batches};
use super::jsonl::{EdgeLine, Embeddings, MemoryLine, parse};
use super::lines::count;
use super::npy::{NpyError, NpyReader};
use super::progress::Progress;
use super::rejects::{Reject, Rejects};
use crate::seams::Seams;

/// Batches that may be unanswered, unless the caller says otherwise.
pub const IN_FLIGHT_DEFAULT: usize = 8;

/// Lines to load, with their number when it is known.
pub struct Source {
    pub name: String,
    pub lines: u64,
    pub(super) reader: Box<dyn BufRead + Send>,
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

pub(super) fn io_error(file: &str) -> impl Fn(std::io::Error) -> LoadError {
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

    pub(super) fn next(&mut self) -> Result<Option<Vec<f32>>, LoadError> {
        self.reader.next_row().map_err(|error| LoadError::Npy {
            file: self.name.clone(),
            error,
        })
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
    pub seams: Seams,
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
            embeddings: rows,
            edges,
        } = input;
        if let Some(source) = memories {
            let started = self.seams.clock.monotonic();
            let embeddings = self.embeddings;
            let read = move |line: &str, row| {
                parse::<MemoryLine>(line)?
                    .into_memory(row, embeddings)
                    .map(Item::Memory)
            };
            let run = Run::new(self, "memories", &source, rejects);
            let batches = batches(&self.seams, source, rows, self.on_error, read);
            loaded.memories = run.through(batches).await?;
            loaded.memories_time = self.seams.clock.monotonic() - started;
        }
        if let Some(source) = edges {
            let started = self.seams.clock.monotonic();
            let read = |line: &str, _| parse::<EdgeLine>(line)?.into_edge().map(Item::Edge);
            let run = Run::new(self, "edges", &source, rejects);
            let batches = batches(&self.seams, source, None, self.on_error, read);
            loaded.edges = run.through(batches).await?;
            loaded.edges_time = self.seams.clock.monotonic() - started;
        }
        Ok(loaded)
    }
}

/// One source on its way into the space.
struct Run<'a> {
    file: String,
    importer: Importer,
    on_error: OnError,
    rejects: &'a mut Rejects,
    bar: ProgressBar,
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
            sent: VecDeque::new(),
            loaded: 0,
            stopped: None,
        }
    }

    /// Sends all batches; answers with the number of items that were applied.
    async fn through(
        mut self,
        mut batches: mpsc::Receiver<Result<Batch, LoadError>>,
    ) -> Result<u64, LoadError> {
        loop {
            let Some(batch) = batches.recv().await else {
                return Err(LoadError::Io {
                    file: self.file,
                    error: std::io::Error::other("reading it ended before its end: a defect"),
                });
            };
            let batch = batch?;
            let is_last = batch.is_last;
            self.send(batch).await?;
            if is_last || self.stopped.is_some() {
                break;
            }
        }
        self.finish().await
    }

    async fn send(&mut self, batch: Batch) -> Result<(), LoadError> {
        for refused in batch.refused {
            self.bar.inc(1);
            self.reject(refused)?;
        }
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
            self.reject(Refused {
                origin,
                code: refused.code,
                reason: refused.reason,
            })?;
        }
        Ok(())
    }

    fn reject(&mut self, refused: Refused) -> Result<(), LoadError> {
        let reject = Reject {
            file: self.file.clone(),
            line: refused.origin.line,
            code: refused.code,
            reason: refused.reason,
            record: refused.origin.text,
        };
        if self.on_error == OnError::Stop {
            self.stopped.get_or_insert_with(|| reject.clone());
        }
        let report = self.rejects.path().display().to_string();
        self.rejects.add(reject).map_err(io_error(&report))
    }
}
