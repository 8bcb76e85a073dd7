//! `engram backup create`: pulls every partition's chunks, several partitions at once, and writes the
//! manifest when all are on disk. A stream that breaks is begun again; what came before is known by
//! then and is not sent twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use engram_client::{Client, Error, ErrorKind, types as v1};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use serde_json::json;
use v1::back_up_event::Event;
use v1::decay::Law;

use super::super::bulk::progress::{Progress, rate, thousands};
use super::super::context::ClientArgs;
use super::super::failure::{Exit, Failure};
use super::super::output::{metric_name, quantization_name};
use super::{RepositoryArgs, backup_id, manifest_json};
use crate::backup::{
    BackupId, ChunkEntry, ChunkHash, DecayEntry, Directory, Manifest, PartitionEntry, Repository,
    SpaceEntry,
};
use crate::routing::KNOWN_CHUNKS_MAX;
use crate::seams::Seams;

/// How often the stream of one partition may break without having brought a chunk.
const BARREN_STREAMS_MAX: u32 = 5;

#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub repository: RepositoryArgs,
    /// Space to back up, may be repeated [default: all of them]
    #[arg(long = "space", value_name = "NAME")]
    pub spaces: Vec<String>,
    /// Name of the backup [default: the time, in UTC]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Partitions that are fetched at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallel: u8,
}

/// What all partitions of one run share.
struct Run {
    client: Client,
    repository: Arc<Directory>,
    seams: Seams,
    bar: ProgressBar,
}

/// What a run has brought.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    /// Chunks and bytes that were not in the repository before.
    chunks: u64,
    bytes: u64,
}

pub async fn run(
    args: &CreateArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let started = seams.clock.wall_millis();
    let began = seams.clock.monotonic();
    let id = match &args.id {
        Some(text) => backup_id(text)?,
        None => BackupId::of_time(started),
    };
    let repository = Arc::new(Directory::open_or_create(&args.repository.directory)?);
    let _lock = repository.lock_for_writing()?;
    if repository.backups()?.contains(&id) {
        return Err(crate::backup::RepositoryError::BackupExists { id }.into());
    }
    let client = client_args.connect()?;
    let cluster = client.status().await?.cluster_id;
    let spaces = chosen(&client, &args.spaces).await?;
    let total: u64 = spaces
        .iter()
        .map(|space| space.memories + space.edges)
        .sum();
    let run = Run {
        client,
        repository,
        seams: seams.clone(),
        bar: Progress::Shown.bar("back up", Some(total)),
    };
    let earlier = run.earlier()?;
    let jobs = spaces.iter().flat_map(|space| {
        let name = space.space.as_ref().map_or("", |space| space.name.as_str());
        space.partitions.iter().map(move |part| (name, part.id))
    });
    let known = |name: &str| {
        let entry = earlier.as_ref().and_then(|manifest| manifest.space(name));
        entry.map(|entry| {
            entry
                .chunks()
                .map(|chunk| (chunk.hash, chunk.bytes))
                .collect()
        })
    };
    let (run_ref, known) = (&run, &known);
    let done: Vec<(PartitionEntry, Brought)> = stream::iter(jobs)
        .map(|(name, partition)| {
            run_ref.partition(name, partition, known(name).unwrap_or_default())
        })
        .buffered(usize::from(args.parallel))
        .try_collect()
        .await?;
    run.bar.finish_and_clear();
    let brought = done
        .iter()
        .fold(Brought::default(), |sum, (_, one)| Brought {
            chunks: sum.chunks + one.chunks,
            bytes: sum.bytes + one.bytes,
        });
    let mut entries = done.into_iter().map(|(entry, _)| entry);
    let spaces = spaces.iter().map(|described| {
        let partitions = entries.by_ref().take(described.partitions.len()).collect();
        space_entry(described.space.clone().unwrap_or_default(), partitions)
    });
    let manifest = Manifest {
        id,
        cluster,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_millis: started,
        finished_millis: seams.clock.wall_millis(),
        spaces: spaces.collect(),
    };
    run.repository.put_manifest(&manifest)?;
    let time = seams.clock.monotonic() - began;
    report(&manifest, brought, time, args, client_args)?;
    Ok(Exit::Ok)
}

fn report(
    manifest: &Manifest,
    brought: Brought,
    time: std::time::Duration,
    args: &CreateArgs,
    client_args: &ClientArgs,
) -> Result<(), Failure> {
    let mut value = manifest_json(manifest);
    let bytes: u64 = manifest.chunks().map(|chunk| chunk.bytes).sum();
    value["bytes"] = json!(bytes);
    value["new_chunks"] = json!(brought.chunks);
    value["new_bytes"] = json!(brought.bytes);
    value["seconds"] = json!(time.as_secs_f64());
    client_args.output.print(&value, || {
        let memories = manifest
            .spaces
            .iter()
            .map(SpaceEntry::memories)
            .sum::<u64>();
        let edges = manifest.spaces.iter().map(SpaceEntry::edges).sum::<u64>();
        let directory = args.repository.directory.display();
        format!(
            "backup {}: {} spaces, {} memories, {} associations, {} bytes, {} of them new, in \
             {:.1} s ({})\n\nto check it, and to restore it:\n  engram backup verify {directory} \
             {}\n  engram restore {directory} --id {}",
            manifest.id,
            manifest.spaces.len(),
            thousands(memories),
            thousands(edges),
            thousands(bytes),
            thousands(brought.bytes),
            time.as_secs_f64(),
            rate(memories + edges, time),
            manifest.id,
            manifest.id,
        )
    })
}

/// The spaces to back up, in the order of names.
async fn chosen(
    client: &Client,
    names: &[String],
) -> Result<Vec<v1::DescribeSpaceResponse>, Failure> {
    let names: BTreeSet<String> = match names {
        [] => {
            let spaces = client.list_spaces().await?;
            spaces.into_iter().map(|space| space.name).collect()
        }
        names => names.iter().cloned().collect(),
    };
    let mut spaces = Vec::new();
    for name in names {
        spaces.push(client.describe_space(&name).await?);
    }
    Ok(spaces)
}

fn space_entry(space: v1::Space, partitions: Vec<PartitionEntry>) -> SpaceEntry {
    let law = space.decay.as_ref().and_then(|decay| decay.law.as_ref());
    SpaceEntry {
        metric: metric_name(space.metric()).to_owned(),
        quantization: quantization_name(space.quantization()).to_owned(),
        refuses_local_fallback: space.local_fallback() == v1::LocalFallback::Refused,
        decay: law.map(|law| match law {
            Law::Exponential(law) => DecayEntry::Exponential {
                half_life_millis: law.half_life_millis,
            },
            Law::PowerLaw(law) => DecayEntry::PowerLaw {
                scale_millis: law.scale_millis,
                exponent: law.exponent,
            },
        }),
        name: space.name,
        dimension: space.dimension,
        replicas: space.replicas,
        m: space.m,
        ef_construction: space.ef_construction,
        embedding_model: space.embedding_model,
        partitions,
    }
}

/// Chunks that the repository has, with their sizes.
type Known = Vec<(ChunkHash, u64)>;

impl Run {
    /// The newest backup that can be read: what it has need not be sent again.
    fn earlier(&self) -> Result<Option<Manifest>, Failure> {
        let ids = self.repository.backups()?.into_iter().rev();
        Ok(ids
            .map(|id| self.repository.manifest(&id))
            .find_map(Result::ok))
    }

    async fn partition(
        &self,
        space: &str,
        partition: u64,
        mut known: Known,
    ) -> Result<(PartitionEntry, Brought), Failure> {
        let mut there = Known::new();
        known.truncate(KNOWN_CHUNKS_MAX);
        for (hash, bytes) in known {
            if self.repository.has_chunk(hash, bytes)? {
                there.push((hash, bytes));
            }
        }
        let (mut brought, mut barren) = (Brought::default(), 0);
        loop {
            let before = brought.chunks;
            let error = match self
                .stream(space, partition, &mut there, &mut brought)
                .await
            {
                Ok(entry) => return Ok((entry, brought)),
                Err(Broken::Failure(failure)) => return Err(failure),
                Err(Broken::Stream(error)) => error,
            };
            barren = if brought.chunks > before {
                0
            } else {
                barren + 1
            };
            let again = error.retryable || error.kind == ErrorKind::Unavailable;
            if !again || barren == BARREN_STREAMS_MAX {
                return Err(error.into());
            }
            tracing::info!(space, partition, %error, "the backup's stream broke");
            self.seams
                .clock
                .sleep(std::time::Duration::from_secs(1))
                .await;
        }
    }

    /// One stream to its end. Chunks that arrive are known from then on.
    async fn stream(
        &self,
        space: &str,
        partition: u64,
        known: &mut Known,
        brought: &mut Brought,
    ) -> Result<PartitionEntry, Broken> {
        known.truncate(KNOWN_CHUNKS_MAX);
        let hashes: Vec<u8> = known.iter().flat_map(|(hash, _)| hash.0).collect();
        let mut stream = self.client.space(space).back_up(partition, hashes).await?;
        let mut entry: Option<PartitionEntry> = None;
        while let Some(event) = stream.next().await? {
            match event.event {
                Some(Event::Begun(begun)) => {
                    if let Some(void) = &entry {
                        self.bar.dec(void.memories + void.edges);
                    }
                    entry = Some(PartitionEntry {
                        partition: begun.partition,
                        sequence: begun.sequence,
                        local_changes: begun.local_changes,
                        memories: 0,
                        edges: 0,
                        edges_without_source: 0,
                        chunks: Vec::new(),
                    });
                }
                Some(Event::Chunk(chunk)) => {
                    let entry = entry.as_mut().ok_or_else(|| unfit("a chunk of nothing"))?;
                    let kept = self.keep(chunk, known, brought).await?;
                    self.bar.inc(kept.memories + kept.edges);
                    entry.memories += kept.memories;
                    entry.edges += kept.edges;
                    entry.chunks.push(kept);
                }
                Some(Event::Done(done)) => {
                    let mut entry = entry.ok_or_else(|| unfit("an end of nothing"))?;
                    if (done.memories, done.edges) != (entry.memories, entry.edges) {
                        return Err(unfit("fewer chunks than it says").into());
                    }
                    entry.edges_without_source = done.edges_without_source;
                    return Ok(entry);
                }
                // An event of a newer server.
                None => {}
            }
        }
        Err(unfit("no end").into())
    }

    async fn keep(
        &self,
        chunk: v1::BackupChunk,
        known: &mut Known,
        brought: &mut Brought,
    ) -> Result<ChunkEntry, Failure> {
        let hash: [u8; 32] = chunk
            .hash
            .as_ref()
            .try_into()
            .map_err(|_| unfit("a hash of another length"))?;
        let hash = ChunkHash(hash);
        let entry = ChunkEntry {
            hash,
            bytes: chunk.bytes,
            memories: chunk.memories,
            edges: chunk.edges,
        };
        if chunk.data.is_empty() {
            if !known.contains(&(hash, chunk.bytes)) {
                return Err(unfit("a chunk without its data"));
            }
            return Ok(entry);
        }
        let (repository, data) = (Arc::clone(&self.repository), chunk.data);
        let bytes = data.len() as u64;
        let write =
            move || (ChunkHash::of(&data) == hash).then(|| repository.put_chunk(hash, &data));
        let written = self.seams.blocking(write).await;
        let is_new = written.ok_or_else(|| unfit("a chunk that was damaged on its way"))??;
        if is_new {
            brought.chunks += 1;
            brought.bytes += bytes;
        }
        known.insert(0, (hash, bytes));
        Ok(entry)
    }
}

/// Why one stream did not come to its end.
enum Broken {
    /// Another stream may.
    Stream(Error),
    Failure(Failure),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn unfit(what: &str) -> Failure {
    let message = format!("a node's answer to the backup makes no sense: {what}");
    Failure::new(
        Exit::Unavailable,
        message,
        "engram cluster nodes, to compare versions",
    )
}
