//! `engram associate|strengthen|dissociate|neighbors`.

use clap::{Args, ValueEnum};
use engram_client::types as v1;
use serde_json::json;

use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::memory::consistency;
use super::output::{decimal, edge_json, table};
use super::walk::{Around, RuleArgs, around};

#[derive(Clone, Debug, Args)]
pub struct EdgeArgs {
    /// Name of the space
    pub space: String,
    /// Id of the memory that the association leaves
    pub from: String,
    /// Id of the memory that it leads to
    pub to: String,
    /// Type of the association
    #[arg(long)]
    pub relation: String,
    /// How durable an acknowledged change is
    #[arg(long, value_enum, default_value_t)]
    pub durability: DurabilityArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArg {
    /// On disk at a majority of the replicas
    #[default]
    Majority,
    /// On disk at the replica that answers; the others hear of it later
    Local,
}

#[derive(Clone, Debug, Args)]
pub struct AssociateArgs {
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// How strong, in [0, 1]
    #[arg(long, default_value_t = 1.0)]
    pub weight: f64,
    /// How sure, in [0, 1]
    #[arg(long, default_value_t = 1.0)]
    pub confidence: f64,
}

#[derive(Clone, Debug, Args)]
pub struct StrengthenArgs {
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// How sure, in [0, 1]
    #[arg(long, default_value_t = 1.0)]
    pub confidence: f64,
}

#[derive(Clone, Debug, Args)]
pub struct NeighborsArgs {
    /// Name of the space
    pub space: String,
    /// Id of the memory
    pub id: String,
    /// Which associations
    #[arg(long, value_enum, default_value_t)]
    pub direction: DirectionArg,
    /// Show the memories within so many hops, instead of the associations
    #[arg(long)]
    pub hops: Option<std::num::NonZeroU32>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
    #[command(flatten)]
    pub rules: RuleArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DirectionArg {
    #[default]
    Out,
    In,
    Both,
}

impl From<DirectionArg> for i32 {
    fn from(direction: DirectionArg) -> Self {
        use v1::neighbors_request::Direction;
        match direction {
            DirectionArg::Out => Direction::Out.into(),
            DirectionArg::In => Direction::In.into(),
            DirectionArg::Both => Direction::Both.into(),
        }
    }
}

impl EdgeArgs {
    fn edge(&self) -> v1::EdgeRef {
        v1::EdgeRef {
            from: self.from.clone(),
            to: self.to.clone(),
            relation: self.relation.clone(),
        }
    }

    fn durability(&self) -> i32 {
        match self.durability {
            DurabilityArg::Majority => v1::Durability::Majority.into(),
            DurabilityArg::Local => v1::Durability::Local.into(),
        }
    }

    fn report(
        &self,
        args: &ClientArgs,
        verb: &str,
        answer: &v1::EdgeChangeResponse,
    ) -> Result<Exit, Failure> {
        let achieved = match answer.durability() {
            v1::Durability::Local => "local",
            v1::Durability::Majority | v1::Durability::Unspecified => "majority",
        };
        let value = json!({
            "from": self.from, "to": self.to, "relation": self.relation, "durability": achieved,
        });
        args.output.print(&value, || {
            let Self {
                from, to, relation, ..
            } = self;
            let note = match achieved {
                "local" => " (on one replica so far; the others hear of it later)",
                _ => "",
            };
            format!("{verb} {from} -{relation}-> {to}{note}")
        })?;
        Ok(Exit::Ok)
    }
}

pub async fn associate(args: &AssociateArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::AssociateRequest {
        edge: Some(args.edge.edge()),
        weight: Some(args.weight),
        confidence: Some(args.confidence),
        durability: args.edge.durability(),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.edge.space)
        .associate(request)
        .await?;
    args.edge.report(client_args, "associated", &answer)
}

pub async fn strengthen(args: &StrengthenArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::StrengthenRequest {
        edge: Some(args.edge.edge()),
        confidence: Some(args.confidence),
        durability: args.edge.durability(),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.edge.space)
        .strengthen(request)
        .await?;
    args.edge.report(client_args, "strengthened", &answer)
}

pub async fn dissociate(args: &EdgeArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::DissociateRequest {
        edge: Some(args.edge()),
        durability: args.durability(),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .dissociate(request)
        .await?;
    args.report(client_args, "dissociated", &answer)
}

pub async fn neighbors(args: &NeighborsArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    if let Some(hops) = args.hops {
        let asked = Around {
            space: &args.space,
            id: &args.id,
            direction: args.direction,
            hops: hops.get(),
            limit: args.limit,
            rules: &args.rules,
        };
        return around(asked, client_args).await;
    }
    if !args.rules.filter.is_empty() {
        let message = "a filter belongs to a walk over several hops";
        return Err(Failure::usage(message, "engram neighbors --hops"));
    }
    let request = v1::NeighborsRequest {
        id: args.id.clone(),
        direction: args.direction.into(),
        relations: args.rules.relations.clone(),
        limit: args.limit,
        consistency: consistency(args.rules.stale),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .neighbors(request)
        .await?;
    let value = json!({
        "edges": answer.edges.iter().map(edge_json).collect::<Vec<_>>(),
        "truncated": answer.truncated,
    });
    client_args
        .output
        .print(&value, || neighbors_text(args, &answer))?;
    Ok(Exit::Ok)
}

fn neighbors_text(args: &NeighborsArgs, answer: &v1::NeighborsResponse) -> String {
    if answer.edges.is_empty() {
        return format!("{} has no such associations", args.id);
    }
    let rows = answer.edges.iter().map(|edge| {
        vec![
            decimal(edge.weight),
            decimal(edge.evidence),
            edge.from.clone(),
            edge.relation.clone(),
            edge.to.clone(),
        ]
    });
    let mut text = table(&[">WEIGHT", ">EVIDENCE", "FROM", "RELATION", "TO"], rows);
    if answer.truncated {
        text.push_str(&format!(
            "\n\nthere are more; try: --limit {}",
            args.limit.saturating_mul(10)
        ));
    }
    text
}
