//! Printing answers: tables for people, JSON for programs.

use std::io::Write as _;

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use engram_client::types as v1;
use serde_json::{Value, json};

use super::bulk::jsonl::property_json;
use super::failure::Failure;

/// How to print the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
    /// A graph in Graphviz' language; `spread` only
    Dot,
}

/// Characters of a memory's content that a table shows.
const CONTENT_CHARACTERS: usize = 72;

impl Output {
    /// Prints `value` as JSON, or what `table` makes of the answer.
    pub fn print(self, value: &Value, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(value).unwrap_or_default(),
            Self::Table => table(),
            Self::Dot => {
                let message = "--output dot draws a spread and nothing else";
                return Err(Failure::usage(message, "--output table or --output json"));
            }
        };
        line(&text)
    }
}

/// Prints a line to standard output. A reader that has gone away is no error of ours.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A table with a line of headings. Headings that begin with '>' are of right-aligned columns.
#[must_use]
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(
        headings
            .iter()
            .map(|heading| heading.trim_start_matches('>')),
    );
    for row in rows {
        table.add_row(row);
    }
    for (position, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(position) {
            column.set_padding((if position == 0 { 0 } else { 1 }, 1));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

/// A text as Graphviz reads it.
#[must_use]
pub fn quoted(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// The beginning of a text, on one line.
#[must_use]
pub fn brief(text: &str) -> String {
    shorten(text, CONTENT_CHARACTERS)
}

#[must_use]
pub fn shorten(text: &str, characters: usize) -> String {
    let mut short: String = text
        .chars()
        .take(characters)
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if text.chars().nth(characters).is_some() {
        short.pop();
        short.push('…');
    }
    short
}

/// A number with as many digits as a reader needs.
#[must_use]
pub fn decimal(value: f64) -> String {
    format!("{value:.4}")
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[must_use]
pub fn metric_name(metric: v1::Metric) -> &'static str {
    match metric {
        v1::Metric::Unspecified | v1::Metric::Cosine => "cosine",
        v1::Metric::Dot => "dot",
        v1::Metric::L2 => "l2",
    }
}

#[must_use]
pub fn quantization_name(quantization: v1::Quantization) -> &'static str {
    match quantization {
        v1::Quantization::Unspecified => "none",
        v1::Quantization::Int8 => "int8",
        v1::Quantization::Int8OnDisk => "int8-on-disk",
    }
}

#[must_use]
pub fn memory_json(memory: &v1::Memory) -> Value {
    let properties = memory.properties.iter();
    let properties: serde_json::Map<String, Value> = properties
        .map(|(key, value)| (key.clone(), property_json(value.clone())))
        .collect();
    let mut value = json!({
        "id": memory.id,
        "content": memory.content,
        "labels": memory.labels,
        "properties": properties,
        "confidence": memory.confidence,
        "version": memory.version,
        "created_millis": memory.created_millis,
        "updated_millis": memory.updated_millis,
    });
    if !memory.embedding.is_empty() {
        value["embedding"] = memory.embedding.clone().into();
    }
    if !memory.embedding_model.is_empty() {
        value["embedding_model"] = memory.embedding_model.clone().into();
    }
    value
}

#[must_use]
pub fn edge_json(edge: &v1::Edge) -> Value {
    json!({
        "from": edge.from,
        "to": edge.to,
        "relation": edge.relation,
        "weight": edge.weight,
        "evidence": edge.evidence,
        "updated_millis": edge.updated_millis,
    })
}

#[must_use]
pub fn space_json(space: &v1::Space) -> Value {
    use v1::decay::Law;
    let decay = match space.decay.as_ref().and_then(|decay| decay.law) {
        None => Value::Null,
        Some(Law::Exponential(law)) => json!({ "half_life_millis": law.half_life_millis }),
        Some(Law::PowerLaw(law)) => {
            json!({ "scale_millis": law.scale_millis, "exponent": law.exponent })
        }
    };
    json!({
        "id": space.id,
        "name": space.name,
        "dimension": space.dimension,
        "metric": metric_name(space.metric()),
        "partitions": space.partitions,
        "replicas": space.replicas,
        "m": space.m,
        "ef_construction": space.ef_construction,
        "quantization": quantization_name(space.quantization()),
        "embedding_model": space.embedding_model,
        "decay": decay,
        "local_fallback": match space.local_fallback() {
            v1::LocalFallback::Refused => "refused",
            v1::LocalFallback::Allowed | v1::LocalFallback::Unspecified => "allowed",
        },
    })
}

#[must_use]
pub fn partition_json(partition: &v1::Partition) -> Value {
    let replicas = partition.replicas.iter().map(|replica| {
        json!({
            "node": replica.node,
            "reachable": replica.reachable,
            "sequence": replica.sequence,
            "memories": replica.memories,
            "edges": replica.edges,
            "index_tail": replica.index_tail,
            "stopped": replica.stopped,
            "overlay_deltas": replica.overlay_deltas,
            "bytes": replica.bytes,
            "overlay_bytes": replica.overlay_bytes,
            "folded_edges": replica.folded_edges,
            "edge_conflicts": replica.edge_conflicts,
            "reused_dots": replica.reused_dots,
            "index_bytes": replica.index_bytes,
            "index_generations": replica.index_generations,
            "purge_last": replica.purge_last,
            "purge_done": replica.purge_done,
        })
    });
    json!({
        "id": partition.id,
        "group": partition.group,
        "space": partition.space,
        "slot_start": partition.slot_start,
        "slot_end": partition.slot_end,
        "primary": partition.primary,
        "epoch": partition.epoch,
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_by_characters() {
        assert_eq!(shorten("héllo", 5), "héllo");
        assert_eq!(shorten("héllo!", 5), "héll…");
        assert_eq!(shorten("a\nb", 5), "a b");
    }

    #[test]
    fn tables_have_headings_and_rows() {
        let text = table(&["NAME", ">SIZE"], [vec!["a".into(), "10".into()]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("NAME") && lines[1].starts_with('a'),
            "{text}"
        );
    }
}
