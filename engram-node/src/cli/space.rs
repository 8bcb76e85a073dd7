//! `engram space create|list|describe|alter|drop`.

use clap::{Args, Subcommand, ValueEnum};
use engram_client::{Client, types as v1};
use serde_json::json;

use super::bulk::progress::thousands;
use super::cluster::operate::Operator;
use super::cluster::watch::WaitArgs;
use super::context::{ClientArgs, parse_half_life};
use super::failure::{Exit, Failure};
use super::output::{line, metric_name, partition_json, quantization_name, space_json, table};
use crate::seams::Seams;

#[derive(Clone, Debug, Args)]
pub struct SpaceArgs {
    #[command(subcommand)]
    pub command: SpaceCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SpaceCommand {
    /// Create a space
    Create(CreateArgs),
    /// List the spaces
    List,
    /// Show a space, its partitions and replicas
    Describe {
        /// Name of the space
        name: String,
    },
    /// Change how many replicas each partition of a space has
    Alter {
        /// Name of the space
        name: String,
        /// Copies of each partition
        #[arg(long)]
        replicas: u32,
        /// Only say what would be moved
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Drop a space with everything in it
    Drop {
        /// Name of the space
        name: String,
        /// Do not ask for the name again
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MetricArg {
    #[default]
    Cosine,
    Dot,
    L2,
}

impl From<MetricArg> for v1::Metric {
    fn from(metric: MetricArg) -> Self {
        match metric {
            MetricArg::Cosine => Self::Cosine,
            MetricArg::Dot => Self::Dot,
            MetricArg::L2 => Self::L2,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum QuantizationArg {
    /// Compare embeddings as they are
    #[default]
    None,
    /// Compare codes of a byte for each component, then the full embeddings of what is found
    Int8,
    /// As int8, with the full embeddings on disk alone
    Int8OnDisk,
}

impl From<QuantizationArg> for v1::Quantization {
    fn from(quantization: QuantizationArg) -> Self {
        match quantization {
            QuantizationArg::None => Self::Unspecified,
            QuantizationArg::Int8 => Self::Int8,
            QuantizationArg::Int8OnDisk => Self::Int8OnDisk,
        }
    }
}

// What shapes a space, whoever creates it. (A doc comment would become the help of its users.)
#[derive(Clone, Debug, Args)]
pub struct ShapeArgs {
    /// How embeddings are compared
    #[arg(long, value_enum, default_value_t)]
    pub metric: MetricArg,
    /// Partitions that the memories are spread over
    #[arg(long, default_value_t = 1)]
    pub partitions: u32,
    /// Copies of each partition [default: 3, or 1 on fewer than 3 nodes]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub replicas: u32,
    /// Model that makes the embeddings, for example all-MiniLM-L6-v2@1
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub embedding_model: String,
}

#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Name of the space
    pub name: String,
    /// Components of an embedding
    #[arg(long)]
    pub dimension: u32,
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Links of a memory in the index [default: 16]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub m: u32,
    /// Effort when the index is built [default: 200]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub ef_construction: u32,
    /// In which form the index compares embeddings
    #[arg(long, value_enum, default_value_t)]
    pub quantization: QuantizationArg,
    /// Associations lose half their weight in this time, for example 24h
    #[arg(long, value_name = "TIME", value_parser = parse_half_life)]
    pub half_life: Option<std::time::Duration>,
    /// Changes of associations fail when no majority answers, instead of being accepted by one
    /// replica
    #[arg(long)]
    pub refuse_local_fallback: bool,
    /// Succeed when the space exists with this configuration
    #[arg(long)]
    pub if_not_exists: bool,
}

pub async fn run(
    args: &SpaceArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let client = client_args.connect()?;
    match &args.command {
        SpaceCommand::Alter {
            name,
            replicas,
            dry_run,
            wait,
        } => {
            let operator = Operator {
                client: &client,
                args: client_args,
                seams,
            };
            return operator.alter(name, *replicas, *dry_run, wait).await;
        }
        SpaceCommand::Create(create) => {
            let space = client.create_space(create.request()).await?;
            client_args.output.print(&space_json(&space), || {
                format!("created space {} ({})", space.name, summary(&space))
            })?;
        }
        SpaceCommand::List => list(&client, client_args).await?,
        SpaceCommand::Describe { name } => describe(&client, client_args, name).await?,
        SpaceCommand::Drop { name, yes } => {
            if !yes {
                let message = format!("dropping {name} deletes everything in it");
                return Err(Failure::usage(
                    message,
                    format!("engram space drop {name} --yes"),
                ));
            }
            client.drop_space(name).await?;
            client_args
                .output
                .print(&json!({ "dropped": name }), || format!("dropped {name}"))?;
        }
    }
    Ok(Exit::Ok)
}

impl CreateArgs {
    fn request(&self) -> v1::CreateSpaceRequest {
        let half_life = self.half_life.filter(|half_life| !half_life.is_zero());
        let decay = half_life.map(|half_life| v1::Decay {
            law: Some(v1::decay::Law::Exponential(v1::decay::Exponential {
                half_life_millis: half_life.as_millis() as u64,
            })),
        });
        v1::CreateSpaceRequest {
            m: self.m,
            ef_construction: self.ef_construction,
            quantization: v1::Quantization::from(self.quantization).into(),
            decay,
            local_fallback: match self.refuse_local_fallback {
                true => v1::LocalFallback::Refused.into(),
                false => v1::LocalFallback::Allowed.into(),
            },
            if_not_exists: self.if_not_exists,
            ..self.shape.request(&self.name, self.dimension)
        }
    }
}

impl ShapeArgs {
    pub fn request(&self, name: &str, dimension: u32) -> v1::CreateSpaceRequest {
        v1::CreateSpaceRequest {
            name: name.to_owned(),
            dimension,
            metric: v1::Metric::from(self.metric).into(),
            partitions: self.partitions,
            replicas: self.replicas,
            embedding_model: self.embedding_model.clone(),
            ..Default::default()
        }
    }
}

fn summary(space: &v1::Space) -> String {
    let quantization = match space.quantization() {
        v1::Quantization::Unspecified => String::new(),
        quantization => format!("{}, ", quantization_name(quantization)),
    };
    format!(
        "dimension {}, {}, {quantization}{} partitions x {} replicas",
        space.dimension,
        metric_name(space.metric()),
        space.partitions,
        space.replicas
    )
}

async fn list(client: &Client, args: &ClientArgs) -> Result<(), Failure> {
    let spaces = client.list_spaces().await?;
    let value = json!({ "spaces": spaces.iter().map(space_json).collect::<Vec<_>>() });
    args.output.print(&value, || {
        if spaces.is_empty() {
            return "no spaces yet; try: engram space create NAME --dimension N".to_owned();
        }
        let headings = [
            "NAME",
            ">DIMENSION",
            "METRIC",
            ">PARTITIONS",
            ">REPLICAS",
            "MODEL",
        ];
        let rows = spaces.iter().map(|space| {
            vec![
                space.name.clone(),
                space.dimension.to_string(),
                metric_name(space.metric()).to_owned(),
                space.partitions.to_string(),
                space.replicas.to_string(),
                space.embedding_model.clone(),
            ]
        });
        table(&headings, rows)
    })
}

/// A line about purges that are not done.
fn purging(partitions: &[u64]) -> String {
    let ids: Vec<String> = partitions.iter().map(u64::to_string).collect();
    match ids.is_empty() {
        true => String::new(),
        false => format!("\npurges under way in partitions {}", ids.join(", ")),
    }
}

async fn describe(client: &Client, args: &ClientArgs, name: &str) -> Result<(), Failure> {
    let answer = client.describe_space(name).await?;
    let space = answer.space.unwrap_or_default();
    let value = json!({
        "space": space_json(&space),
        "confirmed": answer.confirmed,
        "memories": answer.memories,
        "edges": answer.edges,
        "index_bytes": answer.index_bytes,
        "purging": answer.purging,
        "partitions": answer.partitions.iter().map(partition_json).collect::<Vec<_>>(),
    });
    args.output.print(&value, || {
        let memories = thousands(answer.memories);
        let edges = thousands(answer.edges);
        let index = format!(
            "index: {:.1} MiB of memory on all replicas{}",
            answer.index_bytes as f64 / f64::from(1 << 20),
            purging(&answer.purging)
        );
        format!(
            "{} ({})\n{memories} memories, {edges} associations\n{index}\n\n{}",
            space.name,
            summary(&space),
            super::cluster::partition_table(&answer.partitions)
        )
    })?;
    if !answer.confirmed && args.output == super::output::Output::Table {
        line(
            "\nnot confirmed by a majority: this is what one node knows; try: engram cluster status",
        )?;
    }
    if answer.memories == 0 && args.output == super::output::Output::Table {
        line(&format!(
            "\nempty; try: engram import {name} --memories FILE.jsonl"
        ))?;
    }
    Ok(())
}
