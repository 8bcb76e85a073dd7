//! `engram path|component`, and `engram neighbors --hops`.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use engram_client::types as v1;
use serde_json::{Value, json};

use super::bulk::progress::thousands;
use super::context::ClientArgs;
use super::edge::DirectionArg;
use super::failure::{Exit, Failure};
use super::memory::consistency;
use super::output::{Output, decimal, line, quoted, table};

#[derive(Clone, Debug, Args)]
pub struct PathArgs {
    /// Name of the space
    pub space: String,
    /// Id of the memory where the path begins
    pub from: String,
    /// Id of the memory where it ends
    pub to: String,
    /// Which path is the best
    #[arg(long, value_enum, default_value_t)]
    pub by: ByArg,
    /// Which way associations are followed
    #[arg(long, value_enum, default_value_t)]
    pub direction: DirectionArg,
    /// At most so many hops
    #[arg(long, value_name = "HOPS", default_value_t = 8)]
    pub max_hops: u32,
    #[command(flatten)]
    pub rules: RuleArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ByArg {
    /// The fewest hops; of these the strongest
    #[default]
    Hops,
    /// The greatest product of weights
    Strength,
}

#[derive(Clone, Debug, Args)]
pub struct ComponentArgs {
    /// Name of the space
    pub space: String,
    /// Id of a memory of the component
    pub id: String,
    /// Which way associations are followed
    #[arg(long, value_enum, default_value_t = DirectionArg::Both)]
    pub direction: DirectionArg,
    /// At most so many memories
    #[arg(long, default_value_t = 1_000)]
    pub limit: u32,
    #[command(flatten)]
    pub rules: RuleArgs,
}

/// What all walks know.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct RuleArgs {
    /// Only this relation; may be repeated
    #[arg(long = "relation", value_name = "RELATION")]
    pub relations: Vec<String>,
    /// Only through memories for which this holds
    #[arg(
        long,
        value_name = "EXPR",
        default_value = "",
        hide_default_value = true
    )]
    pub filter: String,
    /// Answer from any replica, however far behind
    #[arg(long)]
    pub stale: bool,
}

/// What `neighbors --hops` and `component` ask.
pub struct Around<'a> {
    pub space: &'a str,
    pub id: &'a str,
    pub direction: DirectionArg,
    /// 0: as far as it goes.
    pub hops: u32,
    pub limit: u32,
    pub rules: &'a RuleArgs,
}

pub async fn path(args: &PathArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    use v1::find_path_request::By;
    let by = match args.by {
        ByArg::Hops => By::Hops,
        ByArg::Strength => By::Strength,
    };
    let request = v1::FindPathRequest {
        from: args.from.clone(),
        to: args.to.clone(),
        direction: args.direction.into(),
        by: by.into(),
        hops_max: args.max_hops,
        relations: args.rules.relations.clone(),
        filter: args.rules.filter.clone(),
        consistency: consistency(args.rules.stale),
        ..Default::default()
    };
    let space = client_args.connect()?.space(&args.space);
    let answer = space.find_path(request).await?;
    match client_args.output {
        Output::Dot => line(&dot(&answer))?,
        output => output.print(&path_json(&answer), || path_text(args, &answer))?,
    }
    Ok(if answer.steps.is_empty() {
        Exit::Negative
    } else {
        Exit::Ok
    })
}

fn path_json(answer: &v1::FindPathResponse) -> Value {
    let step = |step: &v1::WalkStep| {
        json!({
            "id": step.id,
            "relation": step.relation,
            "weight": step.weight,
            "reversed": step.reversed,
        })
    };
    json!({
        "steps": answer.steps.iter().map(step).collect::<Vec<_>>(),
        "strength": answer.strength,
        "missing": answer.missing,
        "edges_read": answer.edges_read,
    })
}

fn path_text(args: &PathArgs, answer: &v1::FindPathResponse) -> String {
    if !answer.missing.is_empty() {
        return format!("no such memory: {}", answer.missing.join(", "));
    }
    if answer.steps.is_empty() {
        let PathArgs {
            from, to, max_hops, ..
        } = args;
        return format!("no path from {from} to {to} within {max_hops} hops");
    }
    let mut text = String::new();
    for step in &answer.steps {
        let (relation, id) = (&step.relation, &step.id);
        let _ = match (relation.is_empty(), step.reversed) {
            (true, _) => write!(text, "{id}"),
            (false, false) => write!(text, " -{relation}-> {id}"),
            (false, true) => write!(text, " <-{relation}- {id}"),
        };
    }
    let hops = answer.steps.len() - 1;
    let strength = decimal(answer.strength);
    let edges = thousands(answer.edges_read);
    let _ = write!(
        text,
        "\n\n{hops} hops, strength {strength}; {edges} associations read"
    );
    text
}

fn dot(answer: &v1::FindPathResponse) -> String {
    let mut text = String::from("digraph path {\n  rankdir=LR;\n  node [shape=box];\n");
    for step in &answer.steps {
        let _ = writeln!(text, "  {};", quoted(&step.id));
    }
    for pair in answer.steps.windows(2) {
        let [before, step] = pair else { continue };
        let (from, to) = match step.reversed {
            false => (&before.id, &step.id),
            true => (&step.id, &before.id),
        };
        let label = format!("{} {}", step.relation, decimal(step.weight));
        let (from, to, label) = (quoted(from), quoted(to), quoted(&label));
        let _ = writeln!(text, "  {from} -> {to} [label={label}];");
    }
    text.push('}');
    text
}

pub async fn component(args: &ComponentArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let asked = Around {
        space: &args.space,
        id: &args.id,
        direction: args.direction,
        hops: 0,
        limit: args.limit,
        rules: &args.rules,
    };
    around(asked, client_args).await
}

pub async fn around(asked: Around<'_>, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::NeighborhoodRequest {
        ids: vec![asked.id.to_owned()],
        direction: asked.direction.into(),
        hops: asked.hops,
        relations: asked.rules.relations.clone(),
        filter: asked.rules.filter.clone(),
        limit: asked.limit,
        consistency: consistency(asked.rules.stale),
        ..Default::default()
    };
    let space = client_args.connect()?.space(asked.space);
    let answer = space.neighborhood(request).await?;
    let member = |member: &v1::NeighborhoodMember| json!({ "id": member.id, "hops": member.hops });
    let value = json!({
        "members": answer.members.iter().map(member).collect::<Vec<_>>(),
        "truncated": answer.truncated,
        "complete_hops": answer.complete_hops,
        "missing": answer.missing,
        "edges_read": answer.edges_read,
    });
    client_args.output.print(&value, || around_text(&answer))?;
    Ok(if answer.missing.is_empty() {
        Exit::Ok
    } else {
        Exit::Negative
    })
}

fn around_text(answer: &v1::NeighborhoodResponse) -> String {
    if !answer.missing.is_empty() {
        return format!("no such memory: {}", answer.missing.join(", "));
    }
    let members = answer.members.iter();
    let rows = members.map(|member| vec![member.hops.to_string(), member.id.clone()]);
    let mut text = table(&[">HOPS", "ID"], rows);
    let count = thousands(answer.members.len() as u64);
    let edges = thousands(answer.edges_read);
    let _ = write!(text, "\n\n{count} memories, {edges} associations read");
    if answer.truncated {
        let hops = answer.complete_hops;
        let _ = write!(
            text,
            "; there are more (read completely within {hops} hops)"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> v1::FindPathResponse {
        let step = |id: &str, relation: &str, reversed| v1::WalkStep {
            id: id.into(),
            relation: relation.into(),
            weight: 0.5,
            reversed,
        };
        v1::FindPathResponse {
            steps: vec![
                step("dog", "", false),
                step("canine", "is", false),
                step("wolf", "is", true),
            ],
            strength: 0.25,
            edges_read: 1_234,
            ..Default::default()
        }
    }

    fn args() -> PathArgs {
        PathArgs {
            space: "s".into(),
            from: "dog".into(),
            to: "wolf".into(),
            by: ByArg::Hops,
            direction: DirectionArg::Both,
            max_hops: 3,
            rules: RuleArgs {
                relations: Vec::new(),
                filter: String::new(),
                stale: false,
            },
        }
    }

    #[test]
    fn a_path_shows_which_way_its_associations_run() {
        let text = path_text(&args(), &found());
        assert!(text.starts_with("dog -is-> canine <-is- wolf\n"), "{text}");
        assert!(text.contains("2 hops"), "{text}");
        let drawing = dot(&found());
        assert!(drawing.contains("\"wolf\" -> \"canine\""), "{drawing}");
        let none = path_text(&args(), &v1::FindPathResponse::default());
        assert_eq!(none, "no path from dog to wolf within 3 hops");
    }

    #[test]
    fn a_neighbourhood_says_when_there_is_more() {
        let answer = v1::NeighborhoodResponse {
            members: vec![v1::NeighborhoodMember {
                id: "dog".into(),
                hops: 0,
            }],
            truncated: true,
            complete_hops: 2,
            ..Default::default()
        };
        let text = around_text(&answer);
        assert!(text.contains("within 2 hops"), "{text}");
    }
}
