//! `engram remember|get|forget`.

use clap::Args;
use engram_client::types as v1;
use serde_json::{Value, json};

use super::bulk::jsonl::{Embeddings, MemoryLine};
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::output::{brief, decimal, memory_json, table};
use super::vector::{VectorFile, metric_of};

#[derive(Clone, Debug, Args)]
pub struct RememberArgs {
    /// Name of the space
    pub space: String,
    /// What to remember
    #[arg(default_value = "", hide_default_value = true)]
    pub content: String,
    /// Id of the memory, 1 to 512 bytes [default: a new one]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub id: String,
    /// File with the embedding: a JSON array or a .npy
    #[arg(long, value_name = "FILE")]
    pub vector_file: Option<VectorFile>,
    /// Label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub labels: Vec<String>,
    /// Property; the value is read as JSON where it is any, else as text; may be repeated
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = parse_property)]
    pub properties: Vec<(String, Value)>,
    /// How sure it is, in [0, 1]
    #[arg(long)]
    pub confidence: Option<f64>,
    /// Association that the memory begins with; may be repeated
    #[arg(long = "edge", value_name = "RELATION:TO[=WEIGHT]", value_parser = parse_edge)]
    pub edges: Vec<v1::OutEdge>,
    /// Write only over this version; 0: only when there is none
    #[arg(long, value_name = "VERSION")]
    pub expected_version: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Name of the space
    pub space: String,
    /// Ids of the memories
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Also the embedding (with --output json)
    #[arg(long)]
    pub with_embedding: bool,
    /// Answer from any replica, however far behind
    #[arg(long)]
    pub stale: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ForgetArgs {
    /// Name of the space
    pub space: String,
    /// Id of the memory
    pub id: String,
    /// Forget only this version
    #[arg(long, value_name = "VERSION")]
    pub expected_version: Option<u64>,
    /// Remove it from index, log and snapshots of every replica, too; `engram space describe` tells
    /// when that is done. Backups are not covered
    #[arg(long)]
    pub purge: bool,
}

fn parse_property(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("a property is KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}

fn parse_edge(text: &str) -> Result<v1::OutEdge, String> {
    let (relation, target) = text
        .split_once(':')
        .ok_or("an edge is RELATION:TO or RELATION:TO=WEIGHT")?;
    let (to, weight) = split_number(target);
    let relation = relation.to_owned();
    Ok(v1::OutEdge {
        to,
        relation,
        weight,
        confidence: None,
    })
}

/// `TEXT=NUMBER` in its parts; a text whose end is no number is taken whole, since ids may hold '='.
pub fn split_number(text: &str) -> (String, Option<f64>) {
    if let Some((head, number)) = text.rsplit_once('=')
        && let Ok(number) = number.parse()
    {
        return (head.to_owned(), Some(number));
    }
    (text.to_owned(), None)
}

pub fn consistency(stale: bool) -> i32 {
    match stale {
        true => v1::Consistency::Stale.into(),
        false => v1::Consistency::Linearizable.into(),
    }
}

pub async fn remember(args: &RememberArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let client = client_args.connect()?;
    let line = MemoryLine {
        // An empty id is filled in by the client; for the check it has to be one.
        id: if args.id.is_empty() {
            "-".to_owned()
        } else {
            args.id.clone()
        },
        content: args.content.clone(),
        labels: args.labels.clone(),
        properties: args.properties.iter().cloned().collect(),
        confidence: args.confidence,
        ..Default::default()
    };
    let row = args
        .vector_file
        .as_ref()
        .map(VectorFile::read)
        .transpose()?;
    let space = client
        .describe_space(&args.space)
        .await?
        .space
        .unwrap_or_default();
    let embeddings = Embeddings {
        dimension: space.dimension,
        metric: metric_of(space.metric()),
    };
    let checked = line.into_memory(row, embeddings);
    let mut memory =
        checked.map_err(|bad| Failure::new(Exit::Refused, bad.reason, "engram remember --help"))?;
    memory.id.clone_from(&args.id);
    let request = v1::RememberRequest {
        memory: Some(memory),
        edges: args.edges.clone(),
        expected_version: args.expected_version,
        ..Default::default()
    };
    let answer = client.space(&args.space).remember_with(request).await?;
    let value = json!({ "id": answer.id, "version": answer.version, "created": answer.created });
    client_args.output.print(&value, || {
        let verb = if answer.created {
            "remembered"
        } else {
            "replaced"
        };
        format!("{verb} {} (version {})", answer.id, answer.version)
    })?;
    Ok(Exit::Ok)
}

pub async fn get(args: &GetArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::GetRequest {
        ids: args.ids.clone(),
        with_embedding: args.with_embedding,
        consistency: consistency(args.stale),
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .get_with(request)
        .await?;
    let value = json!({
        "memories": answer.memories.iter().map(memory_json).collect::<Vec<_>>(),
        "missing": answer.missing,
    });
    client_args.output.print(&value, || get_text(&answer))?;
    Ok(if answer.missing.is_empty() {
        Exit::Ok
    } else {
        Exit::Negative
    })
}

fn get_text(answer: &v1::GetResponse) -> String {
    let mut parts: Vec<String> = answer.memories.iter().map(memory_text).collect();
    parts.extend(
        answer
            .missing
            .iter()
            .map(|id| format!("{id}: no such memory")),
    );
    parts.join("\n\n")
}

fn memory_text(memory: &v1::Memory) -> String {
    let mut rows = vec![
        vec!["id".to_owned(), memory.id.clone()],
        vec!["content".to_owned(), memory.content.clone()],
        vec!["labels".to_owned(), memory.labels.join(", ")],
    ];
    let mut properties: Vec<_> = memory.properties.iter().collect();
    properties.sort_by_key(|(key, _)| *key);
    for (key, value) in properties {
        let value = super::bulk::jsonl::property_json(value.clone());
        rows.push(vec![key.clone(), value.to_string()]);
    }
    rows.push(vec![
        "confidence".to_owned(),
        decimal(memory.confidence.unwrap_or(1.0)),
    ]);
    rows.push(vec!["version".to_owned(), memory.version.to_string()]);
    rows.iter()
        .map(|row| format!("{:<12} {}", row[0], row[1]))
        .collect::<Vec<_>>()
        .join("\n")
}

pub async fn forget(args: &ForgetArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let request = v1::ForgetRequest {
        id: args.id.clone(),
        expected_version: args.expected_version,
        purge: args.purge,
        ..Default::default()
    };
    let answer = client_args
        .connect()?
        .space(&args.space)
        .forget_with(request)
        .await?;
    let value = json!({ "id": args.id, "existed": answer.existed, "purging": args.purge });
    client_args.output.print(&value, || {
        let forgot = match answer.existed {
            true => format!("forgot {}", args.id),
            false => format!("{}: no such memory", args.id),
        };
        match args.purge {
            true => format!(
                "{forgot}\nthe purge is under way; try: engram space describe {}\nbackups are not covered",
                args.space
            ),
            false => forgot,
        }
    })?;
    Ok(if answer.existed {
        Exit::Ok
    } else {
        Exit::Negative
    })
}

/// Memories as rows.
#[must_use]
pub fn hit_table(hits: &[v1::Hit]) -> String {
    let rows = hits.iter().map(|hit| {
        let content = hit.memory.as_ref().map(|memory| brief(&memory.content));
        vec![
            decimal(hit.score),
            hit.id.clone(),
            content.unwrap_or_default(),
        ]
    });
    table(&[">SCORE", "ID", "CONTENT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_split_off_only_when_they_are_numbers() {
        assert_eq!(split_number("dog=0.5"), ("dog".into(), Some(0.5)));
        assert_eq!(split_number("a=b"), ("a=b".into(), None));
        assert_eq!(split_number("a=b=1"), ("a=b".into(), Some(1.0)));
    }

    #[test]
    fn property_values_are_json_or_text() {
        assert_eq!(parse_property("a=1"), Ok(("a".into(), json!(1))));
        assert_eq!(parse_property("a=[\"x\"]"), Ok(("a".into(), json!(["x"]))));
        assert_eq!(
            parse_property("a=plain text"),
            Ok(("a".into(), json!("plain text")))
        );
        assert!(parse_property("a").is_err());
    }
}
