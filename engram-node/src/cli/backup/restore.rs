//! `engram restore`: spaces of a backup, created anew with as many partitions as are wanted. Every
//! chunk is read and checked before anything is changed; each record goes to the partition that owns
//! its slot now.

use clap::Args;
use engram_client::{BatchReport, Client, types as v1};
use serde_json::{Value, json};
use v1::decay::Law;

use super::super::bulk::progress::{Progress, rate, thousands};
use super::super::context::ClientArgs;
use super::super::failure::{Exit, Failure};
use super::super::output::table;
use super::{RepositoryArgs, backup_id, checked_chunk};
use crate::backup::{DecayEntry, Directory, Manifest, Repository, SpaceEntry};
use crate::seams::Seams;

/// Chunks that may be unanswered.
const CHUNKS_IN_FLIGHT: usize = 4;
/// Refused records that are told one by one.
const REJECTS_SHOWN: usize = 10;

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub repository: RepositoryArgs,
    /// Name of the backup [default: the newest]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Space to restore, may be repeated [default: all of the backup]
    #[arg(long = "space", value_name = "NAME")]
    pub spaces: Vec<String>,
    /// Name that the space gets; with one --space
    #[arg(long = "as", value_name = "NAME", requires = "spaces")]
    pub new_name: Option<String>,
    /// Partitions that the memories are spread over [default: as in the backup]
    #[arg(long)]
    pub partitions: Option<u32>,
    /// Copies of each partition [default: as in the backup]
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Go on with a restore that was interrupted: what is there already is left alone
    #[arg(long)]
    pub resume: bool,
    /// Only check the backup and say what would be restored
    #[arg(long)]
    pub dry_run: bool,
}

/// What became of one space.
#[derive(Clone, Debug, Default)]
struct Restored {
    name: String,
    memories: u64,
    edges: u64,
    /// Records that were there already.
    present: u64,
    rejected: u64,
    first_rejects: Vec<String>,
    seconds: f64,
}

pub async fn restore(
    args: &RestoreArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let repository = args.repository.open()?;
    let _lock = repository.lock_for_reading()?;
    let manifest = manifest(args, &repository)?;
    let spaces = chosen(args, &manifest)?;
    let creations = spaces
        .iter()
        .map(|space| creation(args, space))
        .collect::<Result<Vec<_>, _>>()?;
    check(&repository, &spaces)?;
    if args.dry_run {
        return dry_run(&manifest, &spaces, &creations, client_args);
    }
    let client = client_args.connect()?;
    refuse_existing(args, &client, &creations).await?;
    let mut restored = Vec::new();
    for (space, creation) in spaces.iter().zip(creations) {
        let name = creation.name.clone();
        client.create_space(creation).await?;
        restored.push(fill(&client, &repository, space, &name, seams).await?);
    }
    report(&manifest, &restored, client_args)?;
    let refused = restored.iter().any(|space| space.rejected > 0);
    Ok(if refused { Exit::Negative } else { Exit::Ok })
}

fn manifest(args: &RestoreArgs, repository: &Directory) -> Result<Manifest, Failure> {
    let id = match &args.id {
        Some(text) => backup_id(text)?,
        None => repository.backups()?.pop().ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "there is no backup in it",
                "engram backup create DIR",
            )
        })?,
    };
    Ok(repository.manifest(&id)?)
}

fn chosen<'a>(args: &RestoreArgs, manifest: &'a Manifest) -> Result<Vec<&'a SpaceEntry>, Failure> {
    if args.new_name.is_some() && args.spaces.len() != 1 {
        let message = "--as names one space: give exactly one --space";
        return Err(Failure::usage(message, "engram restore --help"));
    }
    if args.spaces.is_empty() {
        return Ok(manifest.spaces.iter().collect());
    }
    let find = |name: &String| {
        manifest.space(name).ok_or_else(|| {
            let message = format!("backup {} has no space {name:?}", manifest.id);
            Failure::new(Exit::Refused, message, "engram backup list DIR -o json")
        })
    };
    args.spaces.iter().map(find).collect()
}

/// The space as it is to be created.
fn creation(args: &RestoreArgs, space: &SpaceEntry) -> Result<v1::CreateSpaceRequest, Failure> {
    let unknown = |what: &str, name: &str| {
        let message = format!(
            "space {}: this program knows no {what} {name:?}",
            space.name
        );
        Failure::new(Exit::Refused, message, "a newer engram")
    };
    let metric = match space.metric.as_str() {
        "cosine" => v1::Metric::Cosine,
        "dot" => v1::Metric::Dot,
        "l2" => v1::Metric::L2,
        other => return Err(unknown("metric", other)),
    };
    let quantization = match space.quantization.as_str() {
        "none" => v1::Quantization::Unspecified,
        "int8" => v1::Quantization::Int8,
        "int8-on-disk" => v1::Quantization::Int8OnDisk,
        other => return Err(unknown("quantization", other)),
    };
    let law = space.decay.as_ref().map(|decay| match *decay {
        DecayEntry::Exponential { half_life_millis } => {
            Law::Exponential(v1::decay::Exponential { half_life_millis })
        }
        DecayEntry::PowerLaw {
            scale_millis,
            exponent,
        } => Law::PowerLaw(v1::decay::PowerLaw {
            scale_millis,
            exponent,
        }),
    });
    Ok(v1::CreateSpaceRequest {
        name: args.new_name.clone().unwrap_or_else(|| space.name.clone()),
        dimension: space.dimension,
        metric: metric.into(),
        partitions: args.partitions.unwrap_or(space.partitions.len() as u32),
        replicas: args.replicas.unwrap_or(space.replicas),
        m: space.m,
        ef_construction: space.ef_construction,
        embedding_model: space.embedding_model.clone(),
        decay: law.map(|law| v1::Decay { law: Some(law) }),
        if_not_exists: args.resume,
        quantization: quantization.into(),
        local_fallback: match space.refuses_local_fallback {
            true => v1::LocalFallback::Refused.into(),
            false => v1::LocalFallback::Allowed.into(),
        },
    })
}

/// Reads every chunk: what is damaged is found before anything is changed.
fn check(repository: &Directory, spaces: &[&SpaceEntry]) -> Result<(), Failure> {
    let total = spaces
        .iter()
        .map(|space| space.chunks().count() as u64)
        .sum();
    let bar = Progress::Shown.bar("check", Some(total));
    for chunk in spaces.iter().flat_map(|space| space.chunks()) {
        checked_chunk(repository, chunk).map_err(|error| {
            let message = format!("chunk {}: {error}; nothing was restored", chunk.hash);
            Failure::new(
                Exit::Refused,
                message,
                "engram backup verify DIR, or another --id",
            )
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn refuse_existing(
    args: &RestoreArgs,
    client: &Client,
    creations: &[v1::CreateSpaceRequest],
) -> Result<(), Failure> {
    if args.resume {
        return Ok(());
    }
    let there = client.list_spaces().await?;
    let clash = creations
        .iter()
        .find(|creation| there.iter().any(|space| space.name == creation.name));
    match clash {
        None => Ok(()),
        Some(creation) => {
            let name = &creation.name;
            let message = format!("there is a space {name:?} already; nothing was restored");
            let next = format!(
                "--space {name} --as NEW-NAME; --resume to go on with an interrupted restore; or \
                 engram space drop {name} --yes"
            );
            Err(Failure::new(Exit::Refused, message, next))
        }
    }
}

async fn fill(
    client: &Client,
    repository: &Directory,
    space: &SpaceEntry,
    name: &str,
    seams: &Seams,
) -> Result<Restored, Failure> {
    let began = seams.clock.monotonic();
    let total = space.memories() + space.edges();
    let bar = Progress::Shown.bar("restore", Some(total));
    let mut restored = Restored {
        name: name.to_owned(),
        ..Restored::default()
    };
    let mut importer = client.space(name).importer().in_flight(CHUNKS_IN_FLIGHT);
    for entry in space.chunks() {
        let bytes = repository.chunk(entry.hash)?;
        let sent = importer.send_chunk(bytes).await;
        restored.take(&bar, sent.map_err(|error| interrupted(error, name))?);
    }
    let rest = importer.finish().await;
    restored.take(&bar, rest.map_err(|error| interrupted(error, name))?);
    bar.finish_and_clear();
    restored.seconds = (seams.clock.monotonic() - began).as_secs_f64();
    let answered = restored.memories + restored.edges + restored.present + restored.rejected;
    if answered != total {
        let message = format!("{answered} of {total} records were answered");
        return Err(Failure::new(
            Exit::Unavailable,
            message,
            "the same with --resume",
        ));
    }
    Ok(restored)
}

fn interrupted(error: engram_client::Error, name: &str) -> Failure {
    let mut failure = Failure::from(error);
    failure.message = format!("{}; space {name} is restored in part", failure.message);
    failure.next = "the same with --resume: what is there already is left alone".to_owned();
    failure
}

impl Restored {
    fn take(&mut self, bar: &indicatif::ProgressBar, reports: Vec<BatchReport>) {
        for report in reports {
            let rejected = report.rejected.len() as u64;
            bar.inc(report.memories + report.edges + report.present + rejected);
            self.memories += report.memories;
            self.edges += report.edges;
            self.present += report.present;
            self.rejected += rejected;
            let room = REJECTS_SHOWN.saturating_sub(self.first_rejects.len());
            let shown = report.rejected.iter().take(room);
            self.first_rejects
                .extend(shown.map(|reject| format!("{}: {}", reject.code, reject.reason)));
        }
    }

    fn json(&self) -> Value {
        json!({
            "space": self.name,
            "memories": self.memories,
            "edges": self.edges,
            "present": self.present,
            "rejected": self.rejected,
            "first_rejects": self.first_rejects,
            "seconds": self.seconds,
        })
    }
}

fn dry_run(
    manifest: &Manifest,
    spaces: &[&SpaceEntry],
    creations: &[v1::CreateSpaceRequest],
    client_args: &ClientArgs,
) -> Result<Exit, Failure> {
    let pairs = || spaces.iter().zip(creations);
    let planned = pairs().map(|(space, creation)| {
        json!({
            "space": creation.name,
            "memories": space.memories(),
            "edges": space.edges(),
            "partitions": creation.partitions,
            "replicas": creation.replicas,
        })
    });
    let value = json!({ "id": manifest.id.as_str(), "would_restore": planned.collect::<Vec<_>>() });
    client_args.output.print(&value, || {
        let rows = pairs().map(|(space, creation)| {
            vec![
                creation.name.clone(),
                thousands(space.memories()),
                thousands(space.edges()),
                creation.partitions.to_string(),
                creation.replicas.to_string(),
            ]
        });
        let headings = [
            "SPACE",
            ">MEMORIES",
            ">ASSOCIATIONS",
            ">PARTITIONS",
            ">REPLICAS",
        ];
        format!(
            "backup {} is whole; it would restore:\n\n{}",
            manifest.id,
            table(&headings, rows)
        )
    })?;
    Ok(Exit::Ok)
}

fn report(
    manifest: &Manifest,
    restored: &[Restored],
    client_args: &ClientArgs,
) -> Result<(), Failure> {
    let value = json!({
        "id": manifest.id.as_str(),
        "restored": restored.iter().map(Restored::json).collect::<Vec<_>>(),
    });
    client_args.output.print(&value, || {
        let mut lines = Vec::new();
        for space in restored {
            let time = std::time::Duration::from_secs_f64(space.seconds);
            lines.push(format!(
                "{}: {} memories and {} associations in {:.1} s ({})",
                space.name,
                thousands(space.memories),
                thousands(space.edges),
                space.seconds,
                rate(space.memories + space.edges, time),
            ));
            if space.present > 0 {
                let present = thousands(space.present);
                lines.push(format!(
                    "  {present} were there already and were left alone"
                ));
            }
            if space.rejected > 0 {
                lines.push(format!("  {} were REFUSED:", thousands(space.rejected)));
                lines.extend(space.first_rejects.iter().map(|why| format!("  {why}")));
            }
        }
        lines.join("\n")
    })
}
