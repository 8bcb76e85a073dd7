//! `engram recall`.

use clap::Args;
use engram_client::types as v1;
use serde_json::json;

use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::memory::{consistency, hit_table};
use super::output::memory_json;
use super::spread::{ScoringArgs, show};
use super::vector::VectorFile;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct RecallArgs {
    /// Name of the space
    pub space: String,
    /// File with the query: a JSON array of numbers, or a .npy with one row
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "like",
        conflicts_with = "like"
    )]
    pub vector_file: Option<VectorFile>,
    /// The nearest of this memory
    #[arg(long, value_name = "ID")]
    pub like: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 10)]
    pub limit: u32,
    /// Only memories for which this holds, for example 'label = "noun.animal"'
    #[arg(
        long,
        value_name = "EXPR",
        default_value = "",
        hide_default_value = true
    )]
    pub filter: String,
    /// Search effort; more finds more and takes longer [default: chosen by the server]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub effort: u32,
    /// Model that made the query's embedding
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub embedding_model: String,
    /// Multiply each score by the memory's confidence
    #[arg(long, conflicts_with = "spread")]
    pub scale_by_confidence: bool,
    /// Spread activation from what is found, and order by similarity and activation together
    #[arg(long)]
    pub spread: bool,
    /// With --spread: hops that the activation travels
    #[arg(long, default_value_t = 3, requires = "spread")]
    pub hops: u32,
    /// With --spread: how it is scored
    #[command(flatten)]
    pub scoring: ScoringArgs,
    /// Answer from any replica, however far behind
    #[arg(long)]
    pub stale: bool,
}

pub async fn run(args: &RecallArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    use v1::recall_request::Query;
    let query = match (&args.vector_file, &args.like) {
        (Some(file), _) => Query::Vector(v1::Vector {
            components: file.read()?,
        }),
        (None, like) => Query::Like(like.clone().unwrap_or_default()),
    };
    if args.spread {
        return spread(args, query, client_args).await;
    }
    if args.scoring != ScoringArgs::default() {
        let message = "--nearest and the weights belong to a spread";
        return Err(Failure::usage(message.to_owned(), "engram recall --spread"));
    }
    let request = v1::RecallRequest {
        query: Some(query),
        limit: args.limit,
        filter: args.filter.clone(),
        effort: args.effort,
        embedding_model: args.embedding_model.clone(),
        scale_by_confidence: args.scale_by_confidence,
        with_content: true,
        consistency: consistency(args.stale),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .recall(request)
        .await?;
    let hits = answer.hits.iter().map(|hit| {
        json!({ "id": hit.id, "score": hit.score, "memory": hit.memory.as_ref().map(memory_json) })
    });
    let value = json!({ "hits": hits.collect::<Vec<_>>() });
    client_args
        .output
        .print(&value, || match answer.hits.is_empty() {
            true => "nothing found".to_owned(),
            false => hit_table(&answer.hits),
        })?;
    Ok(Exit::Ok)
}

/// Hybrid recall. What is asked more of a spread than this, `engram spread` asks.
async fn spread(
    args: &RecallArgs,
    query: v1::recall_request::Query,
    client_args: &ClientArgs,
) -> Result<Exit, Failure> {
    use v1::nearest_seeds::Query as Near;
    use v1::recall_request::Query;
    let query = match query {
        Query::Vector(vector) => Near::Vector(vector),
        Query::Like(id) => Near::Like(id),
    };
    let request = v1::SpreadRequest {
        nearest: Some(v1::NearestSeeds {
            effort: args.effort,
            embedding_model: args.embedding_model.clone(),
            ..args.scoring.seeds(query)
        }),
        hops: args.hops,
        filter: args.filter.clone(),
        limit: args.limit,
        with_content: true,
        consistency: consistency(args.stale),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .spread(request)
        .await?;
    show(&answer, client_args, false)
}
