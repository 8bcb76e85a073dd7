//! `engram import`.

use std::path::{Path, PathBuf};

use clap::Args;
use engram_client::{Client, types as v1};
use engram_core::types::SlotRange;
use serde_json::json;

use super::bulk::colocate::{Colocated, colocate};
use super::bulk::jsonl::{Embeddings, MemoryLine, parse};
use super::bulk::lines::Lines;
use super::bulk::load::{IN_FLIGHT_DEFAULT, Input, Loaded, Loader, OnError};
use super::bulk::progress::{Progress, rate, thousands};
use super::bulk::rejects::Rejects;
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::space::ShapeArgs;
use super::vector::metric_of;
use crate::seams::Seams;

#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// Name of the space
    pub space: String,
    /// Memories, one JSON object per line
    #[arg(long, value_name = "FILE.jsonl", required_unless_present = "edges")]
    pub memories: Option<PathBuf>,
    /// Their embeddings, row by row
    #[arg(long, value_name = "FILE.npy", requires = "memories")]
    pub embeddings: Option<PathBuf>,
    /// Associations, one JSON object per line
    #[arg(long, value_name = "FILE.jsonl")]
    pub edges: Option<PathBuf>,
    /// Place memories that are associated in one partition: ids become {tag}id, in memories and
    /// associations alike; the files that are imported, and one that says what became of each id,
    /// are written to this directory
    #[arg(long, value_name = "DIR", requires = "memories", requires = "edges")]
    pub colocate: Option<PathBuf>,
    /// What to do with a line that is refused
    #[arg(long, value_enum, default_value_t)]
    pub on_error: OnError,
    /// Where refused lines are written [default: SPACE-rejected.jsonl]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Batches that may be unanswered
    #[arg(long, value_name = "BATCHES", default_value_t = IN_FLIGHT_DEFAULT)]
    pub in_flight: usize,
    /// Create the space when there is none
    #[arg(long)]
    pub create: bool,
    /// Components of an embedding, with --create [default: as in the data]
    #[arg(long, requires = "create")]
    pub dimension: Option<u32>,
    #[command(flatten)]
    pub shape: ShapeArgs,
}

pub async fn run(
    args: &ImportArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let input = Input::open(
        args.memories.as_deref(),
        args.embeddings.as_deref(),
        args.edges.as_deref(),
    )?;
    let client = client_args.connect()?;
    if args.create {
        create(args, &client, &input).await?;
    }
    let described = client.describe_space(&args.space).await?;
    let space = described.space.unwrap_or_default();
    let colocated = colocated(args, &described.partitions)?;
    let input = match &colocated {
        None => input,
        Some(written) => Input::open(
            Some(&written.memories),
            args.embeddings.as_deref(),
            Some(&written.edges),
        )?,
    };
    let loader = Loader {
        space: client.space(&args.space),
        embeddings: Embeddings {
            dimension: space.dimension,
            metric: metric_of(space.metric()),
        },
        on_error: args.on_error,
        in_flight: args.in_flight,
        progress: Progress::Shown,
        seams: seams.clone(),
    };
    let default_report =
        || PathBuf::from(format!("{}-rejected.jsonl", args.space.replace('/', "_")));
    let mut rejects = Rejects::new(args.report.clone().unwrap_or_else(default_report));
    let loaded = loader.load(input, &mut rejects).await?;
    report(args, client_args, &loaded, &rejects, colocated.as_ref())?;
    Ok(Exit::Ok)
}

/// The files rewritten for the partitions that there are, where it is asked for.
fn colocated(
    args: &ImportArgs,
    partitions: &[v1::Partition],
) -> Result<Option<Colocated>, Failure> {
    let (Some(directory), Some(memories), Some(edges)) =
        (&args.colocate, &args.memories, &args.edges)
    else {
        return Ok(None);
    };
    let range = |partition: &v1::Partition| {
        let start = u16::try_from(partition.slot_start).ok()?;
        let end = u16::try_from(partition.slot_end).ok()?;
        Some(SlotRange { start, end })
    };
    let ranges: Option<Vec<SlotRange>> = partitions.iter().map(range).collect();
    let ranges = ranges.filter(|ranges| !ranges.is_empty());
    let ranges = ranges.ok_or_else(|| {
        Failure::usage(
            "the partitions of the space are not known",
            "engram cluster partitions",
        )
    })?;
    let written = colocate(memories, edges, &ranges, directory);
    let written = written.map_err(|error| Failure::usage(error.to_string(), ""))?;
    Ok(Some(written))
}

async fn create(args: &ImportArgs, client: &Client, input: &Input) -> Result<(), Failure> {
    let from_data = match (&input.embeddings, &args.memories) {
        (Some(rows), _) => Some(rows.dimension() as u32),
        (None, Some(path)) => dimension_of_first(path)?,
        (None, None) => None,
    };
    let Some(dimension) = args.dimension.or(from_data) else {
        let message = "the data does not tell the dimension of its embeddings";
        return Err(Failure::usage(message, "--dimension N"));
    };
    let request = v1::CreateSpaceRequest {
        if_not_exists: true,
        ..args.shape.request(&args.space, dimension)
    };
    client.create_space(request).await?;
    Ok(())
}

/// The dimension of the first line that has an embedding and can be read.
fn dimension_of_first(path: &Path) -> Result<Option<u32>, Failure> {
    let mut lines = Lines::new(std::io::BufReader::new(std::fs::File::open(path)?));
    while let Some(line) = lines.next_line()? {
        let memory = line
            .text
            .ok()
            .and_then(|text| parse::<MemoryLine>(&text).ok());
        match memory.map(|memory| memory.embedding.len() as u32) {
            None | Some(0) => {}
            dimension => return Ok(dimension),
        }
    }
    Ok(None)
}

fn report(
    args: &ImportArgs,
    client_args: &ClientArgs,
    loaded: &Loaded,
    rejects: &Rejects,
    colocated: Option<&Colocated>,
) -> Result<(), Failure> {
    let rejected = rejects.count();
    let value = json!({
        "space": args.space,
        "memories": loaded.memories,
        "memories_seconds": loaded.memories_time.as_secs_f64(),
        "edges": loaded.edges,
        "edges_seconds": loaded.edges_time.as_secs_f64(),
        "rejected": rejected,
        "report": (rejected > 0).then(|| rejects.path()),
        "colocated": colocated,
    });
    client_args.output.print(&value, || {
        let mut text = summary(args, loaded, rejects);
        if let Some(colocated) = colocated {
            text.push('\n');
            text += &placement(colocated);
        }
        text
    })
}

fn placement(colocated: &Colocated) -> String {
    let all = colocated.associations.max(1) as f64;
    let share = |crossing: u64| crossing as f64 * 100.0 / all;
    format!(
        "{:.1} % of the associations join two partitions, {:.1} % by the hash of ids; the fullest partition has {:.2} of the mean\nwhat became of each id: {}",
        share(colocated.crossing),
        share(colocated.crossing_by_hash),
        colocated.fullest,
        colocated.mapping.display(),
    )
}

fn summary(args: &ImportArgs, loaded: &Loaded, rejects: &Rejects) -> String {
    let mut lines = Vec::new();
    let parts = [
        (
            "memories",
            args.memories.is_some(),
            loaded.memories,
            loaded.memories_time,
        ),
        (
            "associations",
            args.edges.is_some(),
            loaded.edges,
            loaded.edges_time,
        ),
    ];
    for (what, asked, count, time) in parts {
        if asked {
            let (count_text, seconds) = (thousands(count), time.as_secs_f64());
            lines.push(format!(
                "{count_text} {what} in {seconds:.1} s ({})",
                rate(count, time)
            ));
        }
    }
    match rejects.first() {
        None => lines.push("nothing was refused".to_owned()),
        Some(first) => {
            let (count, report) = (thousands(rejects.count()), rejects.path().display());
            let (file, line, reason) = (&first.file, first.line, &first.reason);
            lines.push(format!("{count} lines were refused; they are in {report}"));
            lines.push(format!("the first: {file}, line {line}: {reason}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dimension_is_that_of_the_first_embedding() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("m.jsonl");
        let dimension = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            dimension_of_first(&path).expect("readable")
        };
        assert_eq!(
            dimension("nonsense\n{\"id\":\"a\"}\n{\"id\":\"b\",\"embedding\":[1,2,3]}\n"),
            Some(3)
        );
        assert_eq!(dimension("{\"id\":\"a\"}\n"), None);
    }
}
