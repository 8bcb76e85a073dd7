//! `engram export`: a directory that `engram import` reads back.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use engram_client::types as v1;
use serde::Serialize;
use serde_json::json;

use super::bulk::jsonl::{EdgeLine, MemoryLine};
use super::bulk::npy::NpyWriter;
use super::bulk::progress::{Progress, rate, thousands};
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use crate::seams::Seams;

const MEMORIES: &str = "memories.jsonl";
const EMBEDDINGS: &str = "embeddings.f32.npy";
/// Memories that have no embedding: they have no row, so they cannot share a file with those that
/// have one.
const BARE_MEMORIES: &str = "memories-without-embedding.jsonl";
const EDGES: &str = "edges.jsonl";

#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Name of the space
    pub space: String,
    /// Directory to write to; made when it does not exist
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    pub force: bool,
}

pub async fn run(
    args: &ExportArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let client = client_args.connect()?;
    let described = client.describe_space(&args.space).await?;
    let dimension = described.space.unwrap_or_default().dimension as usize;
    let mut writer = Writer::new(&args.output_dir, dimension, args.force)?;
    let request = v1::ExportRequest {
        memories: true,
        embeddings: true,
        edges: true,
        ..Default::default()
    };
    let started = seams.clock.monotonic();
    let bar = Progress::Shown.bar("export", Some(described.memories + described.edges));
    let mut stream = client.space(&args.space).export(request).await?;
    while let Some(batch) = stream.next().await? {
        bar.inc((batch.memories.len() + batch.edges.len()) as u64);
        batch
            .memories
            .into_iter()
            .try_for_each(|memory| writer.memory(memory))?;
        batch.edges.iter().try_for_each(|edge| writer.edge(edge))?;
    }
    let written = writer.finish()?;
    bar.finish();
    let time = seams.clock.monotonic() - started;
    let directory = args.output_dir.display().to_string();
    let value = json!({
        "directory": directory,
        "memories": written.memories + written.bare,
        "edges": written.edges,
        "seconds": time.as_secs_f64(),
    });
    client_args
        .output
        .print(&value, || summary(&args.space, &directory, &written, time))?;
    Ok(Exit::Ok)
}

fn summary(space: &str, dir: &str, written: &Written, time: std::time::Duration) -> String {
    let memories = written.memories + written.bare;
    let mut text = format!(
        "{} memories and {} associations in {:.1} s ({})\n\nto read it back:\n  \
         engram import {space} --memories {dir}/{MEMORIES} --embeddings {dir}/{EMBEDDINGS} \
         --edges {dir}/{EDGES}",
        thousands(memories),
        thousands(written.edges),
        time.as_secs_f64(),
        rate(memories + written.edges, time),
    );
    if written.bare > 0 {
        text.push_str(&format!(
            "\n  engram import {space} --memories {dir}/{BARE_MEMORIES}"
        ));
    }
    text
}

/// The files of an export.
struct Writer {
    directory: PathBuf,
    dimension: usize,
    memories: BufWriter<File>,
    embeddings: NpyWriter<BufWriter<File>>,
    bare: Option<BufWriter<File>>,
    edges: BufWriter<File>,
    written: Written,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
struct Written {
    /// Memories with an embedding.
    memories: u64,
    /// Memories without one.
    bare: u64,
    edges: u64,
}

impl Writer {
    fn new(directory: &Path, dimension: usize, force: bool) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory).map_err(|error| at(directory, &error))?;
        for name in [MEMORIES, EMBEDDINGS, BARE_MEMORIES, EDGES] {
            let path = directory.join(name);
            if path.exists() && !force {
                let message = format!("{} is there already", path.display());
                return Err(Failure::usage(message, "another --output-dir, or --force"));
            }
        }
        // What an earlier export left, and this one may not need.
        drop(std::fs::remove_file(directory.join(BARE_MEMORIES)));
        let embeddings = create(directory, EMBEDDINGS)?;
        Ok(Self {
            directory: directory.to_owned(),
            dimension,
            memories: create(directory, MEMORIES)?,
            embeddings: NpyWriter::new(embeddings, dimension)?,
            bare: None,
            edges: create(directory, EDGES)?,
            written: Written::default(),
        })
    }

    fn memory(&mut self, mut memory: v1::Memory) -> Result<(), Failure> {
        let embedding = std::mem::take(&mut memory.embedding);
        let line = MemoryLine::of(memory);
        if embedding.is_empty() {
            self.written.bare += 1;
            let file = match &mut self.bare {
                Some(file) => file,
                None => self.bare.insert(create(&self.directory, BARE_MEMORIES)?),
            };
            return write_line(file, &line);
        }
        if embedding.len() != self.dimension {
            let (actual, expected) = (embedding.len(), self.dimension);
            let message = format!(
                "memory {} has {actual} components, its space {expected}",
                line.id
            );
            return Err(Failure::new(
                Exit::Unavailable,
                message,
                "engram verify SPACE --deep",
            ));
        }
        self.written.memories += 1;
        self.embeddings.write_row(&embedding)?;
        write_line(&mut self.memories, &line)
    }

    fn edge(&mut self, edge: &v1::Edge) -> Result<(), Failure> {
        self.written.edges += 1;
        EdgeLine::of(edge)
            .iter()
            .try_for_each(|line| write_line(&mut self.edges, line))
    }

    fn finish(mut self) -> Result<Written, Failure> {
        self.memories.flush()?;
        self.edges.flush()?;
        self.embeddings.finish()?;
        if let Some(bare) = &mut self.bare {
            bare.flush()?;
        }
        Ok(self.written)
    }
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(
        format!("{}: {error}", path.display()),
        "another --output-dir",
    )
}

fn create(directory: &Path, name: &str) -> Result<BufWriter<File>, Failure> {
    let path = directory.join(name);
    File::create(&path)
        .map(BufWriter::new)
        .map_err(|error| at(&path, &error))
}

fn write_line(file: &mut BufWriter<File>, line: &impl Serialize) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        serde_json::to_writer(&mut *file, line)?;
        file.write_all(b"\n")
    };
    let mut write = write;
    Ok(write()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bulk::jsonl::{Embeddings, parse};
    use crate::cli::bulk::lines::Lines;
    use crate::cli::bulk::npy::NpyReader;

    fn memory(id: &str, embedding: Vec<f32>) -> v1::Memory {
        v1::Memory {
            id: id.into(),
            content: "c".into(),
            embedding,
            ..Default::default()
        }
    }

    #[test]
    fn an_export_reads_back_row_by_line() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut writer = Writer::new(directory.path(), 2, false).expect("an empty directory");
        let memories = [
            memory("a", vec![1.0, 2.0]),
            memory("b", vec![]),
            memory("c", vec![3.0, 4.0]),
        ];
        for memory in memories.clone() {
            writer.memory(memory).expect("writable");
        }
        let edge = v1::Edge {
            from: "a".into(),
            to: "c".into(),
            relation: "r".into(),
            weight: 0.5,
            evidence: 1.5,
            ..Default::default()
        };
        writer.edge(&edge).expect("writable");
        let written = writer.finish().expect("writable");
        assert_eq!(
            written,
            Written {
                memories: 2,
                bare: 1,
                edges: 1
            }
        );

        let open = |name: &str| {
            std::io::BufReader::new(File::open(directory.path().join(name)).expect("written"))
        };
        let mut rows = NpyReader::new(open(EMBEDDINGS)).expect("a .npy");
        let mut lines = Lines::new(open(MEMORIES));
        let embeddings = Embeddings {
            dimension: 2,
            metric: engram_core::types::Metric::L2,
        };
        for expected in [&memories[0], &memories[2]] {
            let line = lines
                .next_line()
                .expect("readable")
                .expect("a line")
                .text
                .expect("text");
            let row = rows.next_row().expect("readable");
            let line = parse::<MemoryLine>(&line).expect("JSON");
            assert_eq!(line.into_memory(row, embeddings).as_ref(), Ok(expected));
        }
        assert!(rows.next_row().expect("the end").is_none());
        let again = Writer::new(directory.path(), 2, false)
            .err()
            .map(|failure| failure.exit);
        assert_eq!(
            again,
            Some(Exit::Usage),
            "files are not overwritten unasked"
        );
        assert!(Writer::new(directory.path(), 2, true).is_ok());
    }
}
