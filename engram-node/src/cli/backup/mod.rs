//! `engram backup create|list|verify|remove`, `engram restore`.
//!
//! The client pulls the chunks of each partition and writes the repository where it runs: nodes need
//! no access to it, and no path is ever sent to a node. Formats are in [`crate::backup`].

mod create;
mod restore;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use engram_core::command::Op;
use engram_proto::convert::decode_chunk;
use serde_json::{Value, json};

pub use restore::{RestoreArgs, restore};

use super::bulk::progress::{Progress, thousands};
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::output::table;
use crate::backup::{
    BackupId, ChunkEntry, Directory, Manifest, Repository, RepositoryError, SpaceEntry,
};
use crate::routing::CHUNK_RECORDS_MAX;
use crate::seams::Seams;

#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub command: BackupCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BackupCommand {
    /// Back up spaces, each partition at one sequence; what an earlier backup has is not sent again
    Create(create::CreateArgs),
    /// List the backups of a repository
    List(RepositoryArgs),
    /// Read a backup's chunks and check each
    Verify {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Name of the backup [default: all of them]
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// Delete damaged chunks, so that the next backup fetches them again
        #[arg(long)]
        remove_damaged: bool,
    },
    /// Delete a backup, and the chunks that no other backup needs
    Remove {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Name of the backup
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct RepositoryArgs {
    /// Directory that holds the backups
    #[arg(value_name = "DIR", value_parser = local_directory)]
    pub directory: PathBuf,
}

/// A path, and nothing that looks like a place on another machine.
fn local_directory(text: &str) -> Result<PathBuf, String> {
    if text.contains("://") {
        return Err("backups are kept in directories: give a path, not an address".to_owned());
    }
    if text.is_empty() {
        return Err("the path of a directory".to_owned());
    }
    Ok(PathBuf::from(text))
}

impl RepositoryArgs {
    fn open(&self) -> Result<Directory, Failure> {
        Ok(Directory::open(&self.directory)?)
    }
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        use RepositoryError as E;
        let (exit, next) = match &error {
            E::Io { .. } => (Exit::Usage, ""),
            E::NotARepository { .. } => (Exit::Usage, "a directory that is empty or not there yet"),
            E::NoBackup { .. } => (Exit::Refused, "engram backup list DIR"),
            E::BackupExists { .. } => (Exit::Refused, "the same again in a second"),
            E::Locked { .. } => (Exit::Refused, "the same when the other command has ended"),
            E::Newer { .. } => (Exit::Refused, "a newer engram"),
            E::Unsafe { .. } | E::TooLarge { .. } => (
                Exit::Refused,
                "a copy of the repository made of plain files",
            ),
            E::NoChunk { .. } | E::DamagedChunk { .. } | E::Manifest { .. } => {
                (Exit::Refused, "engram backup verify DIR")
            }
        };
        Self::new(exit, error.to_string(), next)
    }
}

pub async fn run(
    args: &BackupArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    match &args.command {
        BackupCommand::Create(create) => create::run(create, client_args, seams).await,
        BackupCommand::List(repository) => list(repository, client_args),
        BackupCommand::Verify {
            repository,
            id,
            remove_damaged,
        } => verify(repository, id.as_deref(), *remove_damaged, client_args),
        BackupCommand::Remove { repository, id } => remove(repository, id, client_args),
    }
}

fn backup_id(text: &str) -> Result<BackupId, Failure> {
    BackupId::new(text).ok_or_else(|| {
        let message = format!("{text:?} is not the name of a backup");
        Failure::usage(message, "engram backup list DIR")
    })
}

/// A manifest, or why it cannot be read.
type Listed = (BackupId, Result<Manifest, RepositoryError>);

/// All manifests, the newest last.
fn manifests(repository: &dyn Repository) -> Result<Vec<Listed>, Failure> {
    let ids = repository.backups()?.into_iter();
    Ok(ids
        .map(|id| {
            let manifest = repository.manifest(&id);
            (id, manifest)
        })
        .collect())
}

fn list(args: &RepositoryArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let repository = args.open()?;
    let _lock = repository.lock_for_reading()?;
    let mut seen = BTreeSet::new();
    let (mut values, mut rows) = (Vec::new(), Vec::new());
    for (id, manifest) in manifests(&repository)? {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                values.push(json!({ "id": id.as_str(), "error": error.to_string() }));
                rows.push(vec![id.to_string(), error.to_string()]);
                continue;
            }
        };
        let bytes: u64 = manifest.chunks().map(|chunk| chunk.bytes).sum();
        let new: u64 = manifest
            .chunks()
            .filter(|chunk| seen.insert(chunk.hash))
            .map(|chunk| chunk.bytes)
            .sum();
        let names: Vec<&str> = manifest
            .spaces
            .iter()
            .map(|space| space.name.as_str())
            .collect();
        let memories: u64 = manifest.spaces.iter().map(SpaceEntry::memories).sum();
        let edges: u64 = manifest.spaces.iter().map(SpaceEntry::edges).sum();
        rows.push(vec![
            id.to_string(),
            names.join(","),
            thousands(memories),
            thousands(edges),
            thousands(bytes),
            thousands(new),
        ]);
        let mut value = manifest_json(&manifest);
        value["bytes"] = json!(bytes);
        value["new_bytes"] = json!(new);
        values.push(value);
    }
    client_args
        .output
        .print(&json!({ "backups": values }), || {
            if rows.is_empty() {
                return "no backups yet; try: engram backup create DIR".to_owned();
            }
            let headings = [
                "ID",
                "SPACES",
                ">MEMORIES",
                ">ASSOCIATIONS",
                ">BYTES",
                ">NEW",
            ];
            table(&headings, rows)
        })?;
    Ok(Exit::Ok)
}

fn manifest_json(manifest: &Manifest) -> Value {
    let partition = |part: &crate::backup::PartitionEntry| {
        json!({
            "partition": part.partition,
            "sequence": part.sequence,
            "memories": part.memories,
            "edges": part.edges,
            "local_changes": part.local_changes,
            "edges_without_source": part.edges_without_source,
        })
    };
    let space = |space: &SpaceEntry| {
        json!({
            "name": space.name,
            "memories": space.memories(),
            "edges": space.edges(),
            "partitions": space.partitions.iter().map(partition).collect::<Vec<_>>(),
        })
    };
    json!({
        "id": manifest.id.as_str(),
        "cluster": manifest.cluster,
        "version": manifest.version,
        "started_millis": manifest.started_millis,
        "finished_millis": manifest.finished_millis,
        "spaces": manifest.spaces.iter().map(space).collect::<Vec<_>>(),
    })
}

/// Reads a chunk and checks that it holds what the manifest says. Its records, in order.
fn checked_chunk(
    repository: &dyn Repository,
    entry: &ChunkEntry,
) -> Result<(Vec<u8>, Vec<Op>), ChunkDamage> {
    let bytes = repository.chunk(entry.hash)?;
    let ops = decode_chunk(&bytes, CHUNK_RECORDS_MAX)
        .map_err(|error| ChunkDamage::Content(error.to_string()))?;
    let memories = ops
        .iter()
        .filter(|op| matches!(op, Op::RestoreMemory(_)))
        .count() as u64;
    let edges = ops.len() as u64 - memories;
    if (memories, edges, bytes.len() as u64) != (entry.memories, entry.edges, entry.bytes) {
        return Err(ChunkDamage::Content(
            "it does not hold as much as the manifest says".to_owned(),
        ));
    }
    Ok((bytes, ops))
}

/// What is wrong with a chunk.
#[derive(Debug, thiserror::Error)]
enum ChunkDamage {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("{0}")]
    Content(String),
}

impl ChunkDamage {
    /// Whether the chunk's file is what is wrong, so that another copy would help.
    fn is_of_the_file(&self) -> bool {
        matches!(
            self,
            Self::Repository(
                RepositoryError::DamagedChunk { .. } | RepositoryError::TooLarge { .. }
            )
        )
    }
}

fn verify(
    args: &RepositoryArgs,
    id: Option<&str>,
    remove_damaged: bool,
    client_args: &ClientArgs,
) -> Result<Exit, Failure> {
    let repository = args.open()?;
    let _lock = match remove_damaged {
        true => repository.lock_for_writing()?,
        false => repository.lock_for_reading()?,
    };
    let wanted = id.map(backup_id).transpose()?;
    let found = match &wanted {
        Some(id) => vec![(id.clone(), Ok(repository.manifest(id)?))],
        None => manifests(&repository)?,
    };
    let mut damage: Vec<(String, String)> = Vec::new();
    let mut chunks: Vec<&ChunkEntry> = Vec::new();
    for (id, manifest) in &found {
        match manifest {
            Ok(manifest) => chunks.extend(manifest.chunks()),
            Err(error) => damage.push((format!("backup {id}"), error.to_string())),
        }
    }
    chunks.sort_by_key(|chunk| chunk.hash);
    chunks.dedup();
    let bar = Progress::Shown.bar("verify", Some(chunks.len() as u64));
    let mut bytes = 0;
    for entry in &chunks {
        bar.inc(1);
        bytes += entry.bytes;
        if let Err(error) = checked_chunk(&repository, entry) {
            let removed = remove_damaged && error.is_of_the_file();
            if removed {
                repository.remove_chunk(entry.hash)?;
            }
            let what = if removed { " (removed)" } else { "" };
            damage.push((format!("chunk {}", entry.hash), format!("{error}{what}")));
        }
    }
    bar.finish_and_clear();
    let listed = damage
        .iter()
        .map(|(what, why)| json!({ "what": what, "why": why }));
    let value = json!({
        "backups": found.len(),
        "chunks": chunks.len(),
        "bytes": bytes,
        "damage": listed.collect::<Vec<_>>(),
    });
    client_args.output.print(&value, || {
        let (count, all) = (chunks.len() as u64, thousands(bytes));
        let mut lines = vec![format!(
            "{} backups, {} chunks, {all} bytes: {}",
            found.len(),
            thousands(count),
            if damage.is_empty() {
                "whole"
            } else {
                "DAMAGED"
            }
        )];
        lines.extend(damage.iter().map(|(what, why)| format!("{what}: {why}")));
        lines.join("\n")
    })?;
    Ok(match damage.is_empty() {
        true => Exit::Ok,
        false => Exit::Negative,
    })
}

fn remove(args: &RepositoryArgs, id: &str, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let repository = args.open()?;
    let _lock = repository.lock_for_writing()?;
    let id = backup_id(id)?;
    let mut needed = BTreeSet::new();
    for (other, manifest) in manifests(&repository)? {
        if other != id {
            // One that cannot be read may need any chunk: nothing is removed then.
            needed.extend(manifest?.chunks().map(|chunk| chunk.hash));
        }
    }
    repository.remove_manifest(&id)?;
    let mut removed = 0_u64;
    for hash in repository.chunks()? {
        if !needed.contains(&hash) {
            repository.remove_chunk(hash)?;
            removed += 1;
        }
    }
    let value = json!({ "removed": id.as_str(), "chunks_removed": removed });
    client_args.output.print(&value, || {
        format!("removed backup {id} and {} chunks", thousands(removed))
    })?;
    Ok(Exit::Ok)
}
