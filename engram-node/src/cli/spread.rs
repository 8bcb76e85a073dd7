//! `engram spread`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engram_client::{SpreadAnswer, types as v1};
use serde_json::{Value, json};

use super::bulk::progress::thousands;
use super::context::{ClientArgs, parse_half_life};
use super::failure::{Exit, Failure};
use super::memory::{consistency, split_number};
use super::output::{Output, brief, line, memory_json, quoted, table};
use super::vector::VectorFile;

/// Activation that a seed of 1.0 injects.
const UNIT: f64 = 4_294_967_296.0;

#[derive(Clone, Debug, Args)]
pub struct SpreadArgs {
    /// Name of the space
    pub space: String,
    /// Memory to start from, with its activation; may be repeated
    #[arg(
        long = "seed",
        value_name = "ID[=A]",
        required_unless_present_any = ["vector_file", "like"],
        value_parser = parse_seed
    )]
    pub seeds: Vec<v1::Seed>,
    #[command(flatten)]
    pub nearest: NearestArgs,
    /// Hops that the activation travels
    #[arg(long, default_value_t = 3)]
    pub hops: u32,
    /// How to compute it
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Share of a memory's activation that travels on, in [0, 1] [default: 0.5]
    #[arg(long)]
    pub decay: Option<f64>,
    /// Activation below which a memory neither counts nor sends
    #[arg(long, default_value_t = 0.0)]
    pub threshold: f64,
    /// How a memory's activation is shared out
    #[arg(long, value_enum, default_value_t)]
    pub normalization: NormalizationArg,
    /// Follow only this relation; may be repeated
    #[arg(long = "relation", value_name = "RELATION")]
    pub relations: Vec<String>,
    /// Factor in [0, 1] on a relation; may be repeated
    #[arg(long = "relation-factor", value_name = "RELATION=F", value_parser = parse_factor)]
    pub relation_factors: Vec<(String, f64)>,
    /// Factor in [0, 1] on a memory that was activated in an earlier hop
    #[arg(long, value_name = "F")]
    pub revisit_factor: Option<f64>,
    /// Hops during which a memory that has sent does not send again
    #[arg(long, value_name = "HOPS", default_value_t = 0)]
    pub refractory_hops: u32,
    /// Strongest associations of a memory that are followed; 0: all
    #[arg(long, value_name = "EDGES", default_value_t = 0)]
    pub fan_limit: u32,
    /// Activate only memories for which this holds
    #[arg(
        long,
        value_name = "EXPR",
        default_value = "",
        hide_default_value = true
    )]
    pub filter: String,
    /// Memories shown
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
    /// Show the strongest path to each memory
    #[arg(long)]
    pub explain: bool,
    /// Answer from any replicas, however far behind
    #[arg(long)]
    pub stale: bool,
    /// Async: an activation below it counts and does not travel on
    #[arg(long, value_name = "A", default_value_t = 0.0)]
    pub cut_off: f64,
    /// Fail when a partition cannot be reached, instead of answering without it
    #[arg(long)]
    pub require_complete: bool,
    /// Associations lose half their weight in this time, whatever the space says; none: they keep it
    #[arg(long, value_name = "TIME", value_parser = parse_half_life)]
    pub half_life: Option<Duration>,
    /// Strengthen the associations that carried the activation; C is the confidence for the one
    /// that carried most [default: 0.05]
    #[arg(long, value_name = "C", num_args = 0..=1, default_missing_value = "0.05")]
    pub reinforce: Option<f64>,
}

/// Hybrid recall: a spread that starts from what a recall finds.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct NearestArgs {
    /// Start from the memories nearest to the vector in this file: a JSON array of numbers, or a
    /// .npy with one row
    #[arg(long, value_name = "FILE", conflicts_with = "like")]
    pub vector_file: Option<VectorFile>,
    /// Start from the memories nearest to this one
    #[arg(long, value_name = "ID")]
    pub like: Option<String>,
    #[command(flatten)]
    pub scoring: ScoringArgs,
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
}

/// How a hybrid recall is scored.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[group(skip)]
pub struct ScoringArgs {
    /// Nearest memories that the activation starts from [default: 10]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub nearest: u32,
    /// Weight of similarity in the combined score, in [0, 1] [default: 0.5]
    #[arg(long, value_name = "W")]
    pub similarity_weight: Option<f64>,
    /// Weight of activation in the combined score, in [0, 1] [default: 0.5]
    #[arg(long, value_name = "W")]
    pub activation_weight: Option<f64>,
}

impl ScoringArgs {
    pub fn seeds(&self, query: v1::nearest_seeds::Query) -> v1::NearestSeeds {
        v1::NearestSeeds {
            query: Some(query),
            count: self.nearest,
            similarity_weight: self.similarity_weight,
            activation_weight: self.activation_weight,
            ..Default::default()
        }
    }
}

impl NearestArgs {
    fn seeds(&self) -> Result<Option<v1::NearestSeeds>, Failure> {
        use v1::nearest_seeds::Query;
        let query = match (&self.vector_file, &self.like) {
            (Some(file), _) => Query::Vector(v1::Vector {
                components: file.read()?,
            }),
            (None, Some(like)) => Query::Like(like.clone()),
            (None, None) => return Ok(None),
        };
        Ok(Some(v1::NearestSeeds {
            effort: self.effort,
            embedding_model: self.embedding_model.clone(),
            ..self.scoring.seeds(query)
        }))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Hop by hop: the same answer on every layout
    #[default]
    Exact,
    /// Without waiting for each other: linear rules only, with a bound on what the answer lacks
    Async,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NormalizationArg {
    /// Split over the associations by weight
    #[default]
    Fan,
    /// Every association carries activation times weight
    None,
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a value parser")]
fn parse_seed(text: &str) -> Result<v1::Seed, String> {
    let (id, activation) = split_number(text);
    Ok(v1::Seed { id, activation })
}

fn parse_factor(text: &str) -> Result<(String, f64), String> {
    match split_number(text) {
        (relation, Some(factor)) => Ok((relation, factor)),
        _ => Err("a factor is RELATION=NUMBER".to_owned()),
    }
}

fn edge_decay(half_life: Duration) -> v1::Decay {
    use v1::decay::{Exponential, Law};
    let half_life_millis = half_life.as_millis() as u64;
    let law = (half_life_millis > 0).then_some(Law::Exponential(Exponential { half_life_millis }));
    v1::Decay { law }
}

impl SpreadArgs {
    fn request(&self, explain: bool) -> Result<v1::SpreadRequest, Failure> {
        Ok(v1::SpreadRequest {
            seeds: self.seeds.clone(),
            nearest: self.nearest.seeds()?,
            hops: self.hops,
            mode: match self.mode {
                ModeArg::Exact => v1::SpreadMode::Exact.into(),
                ModeArg::Async => v1::SpreadMode::Async.into(),
            },
            decay: self.decay,
            threshold: self.threshold,
            normalization: match self.normalization {
                NormalizationArg::Fan => v1::Normalization::Fan.into(),
                NormalizationArg::None => v1::Normalization::None.into(),
            },
            relations: self.relations.clone(),
            relation_factors: self.relation_factors.iter().cloned().collect(),
            revisit_factor: self.revisit_factor,
            refractory_hops: self.refractory_hops,
            fan_limit: self.fan_limit,
            filter: self.filter.clone(),
            limit: self.limit,
            explain,
            consistency: consistency(self.stale),
            cut_off: self.cut_off,
            require_complete: self.require_complete,
            edge_decay: self.half_life.map(edge_decay),
            reinforcement: self.reinforce.map(|confidence| v1::Reinforcement {
                confidence: Some(confidence),
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

pub async fn run(args: &SpreadArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    // A drawing is made of the paths, where there are any.
    let is_drawing = client_args.output == Output::Dot && args.mode == ModeArg::Exact;
    let explain = args.explain || is_drawing;
    let request = args.request(explain)?;
    let answer = client_args
        .connect()?
        .space(&args.space)
        .spread(request)
        .await?;
    show(&answer, client_args, args.explain)
}

/// Prints an answer as the user wants it.
pub fn show(
    answer: &SpreadAnswer,
    client_args: &ClientArgs,
    explain: bool,
) -> Result<Exit, Failure> {
    match client_args.output {
        Output::Dot => line(&dot(&answer.result))?,
        output => output.print(&json(answer), || text(answer, explain))?,
    }
    Ok(if answer.result.missing_seeds.is_empty() {
        Exit::Ok
    } else {
        Exit::Negative
    })
}

fn json(answer: &SpreadAnswer) -> Value {
    let hops = answer.hops.iter().map(|hop| {
        json!({
            "hop": hop.hop,
            "active_memories": hop.active_memories,
            "edges_followed": hop.edges_followed,
        })
    });
    let step = |step: &v1::PathStep| json!({ "id": step.id, "relation": step.relation, "share": step.share });
    let activated = answer.result.activated.iter().map(|memory| {
        json!({
            "id": memory.id,
            "activation": memory.activation,
            "score": memory.score,
            "path": memory.path.iter().map(step).collect::<Vec<_>>(),
            "activation_at_most": memory.activation_at_most,
            "certain_before_next": memory.certain_before_next,
            "similarity": memory.similarity,
            "combined": memory.combined,
            "memory": memory.memory.as_ref().map(memory_json),
        })
    });
    json!({
        "hops": hops.collect::<Vec<_>>(),
        "activated": activated.collect::<Vec<_>>(),
        "activated_total": answer.result.activated_total,
        "edges_followed": answer.result.edges_followed,
        "missing_seeds": answer.result.missing_seeds,
        "reinforced": answer.result.reinforced,
        "accounting": answer.result.accounting.as_ref().map(accounting_json),
        "hybrid": answer.result.hybrid.as_ref().map(hybrid_json),
    })
}

fn hybrid_json(hybrid: &v1::HybridScoring) -> Value {
    let seed = |seed: &v1::NearestSeed| json!({ "id": seed.id, "similarity": seed.similarity, "activation": seed.activation });
    json!({
        "similarity_weight": hybrid.similarity_weight,
        "activation_weight": hybrid.activation_weight,
        "seeds": hybrid.seeds.iter().map(seed).collect::<Vec<_>>(),
        "unsearched_partitions": hybrid.unsearched_partitions,
    })
}

fn accounting_json(accounting: &v1::SpreadAccounting) -> Value {
    let cell = |cell: &v1::MissingActivation| {
        json!({
            "from_partition": cell.from_partition,
            "to_partition": cell.to_partition,
            "remaining_hops": cell.remaining_hops,
            "activation": cell.activation,
        })
    };
    json!({
        "confidence": accounting.confidence,
        "lost_share": accounting.lost_share,
        "injected": accounting.injected,
        "missing": accounting.missing,
        "cells": accounting.cells.iter().map(cell).collect::<Vec<_>>(),
        "excluded_partitions": accounting.excluded_partitions,
        "error_bound": accounting.error_bound,
        "error_bound_per_memory": accounting.error_bound_per_memory,
        "pruned": accounting.pruned,
        "attempts": accounting.attempts,
    })
}

/// What a partial answer lacks; nothing about a whole one.
fn loss(accounting: &v1::SpreadAccounting) -> Option<String> {
    if accounting.missing <= 0.0 && accounting.excluded_partitions.is_empty() {
        return None;
    }
    let partitions = accounting.excluded_partitions.iter();
    let partitions: Vec<String> = partitions.map(u64::to_string).collect();
    let bound = match accounting.error_bound {
        Some(bound) => format!("all totals together lack at most {bound:.6}"),
        None => "these rules allow no bound".to_owned(),
    };
    Some(format!(
        "partial: confidence {:.4}; {:.6} of {:.6} is missing; without partitions {}; {bound}",
        accounting.confidence,
        accounting.missing,
        accounting.injected,
        partitions.join(", "),
    ))
}

/// The most activated memories, and how far the activation got.
#[must_use]
pub fn text(answer: &SpreadAnswer, explain: bool) -> String {
    let result = &answer.result;
    let is_hybrid = result.hybrid.is_some();
    let with_content = result.activated.iter().any(|one| one.memory.is_some());
    let mut headings = Vec::new();
    if is_hybrid {
        headings.extend([">COMBINED", ">SIMILARITY"]);
    }
    headings.extend([">ACTIVATION", "ID"]);
    if with_content {
        headings.push("CONTENT");
    }
    if explain {
        headings.push("STRONGEST PATH");
    }
    let score = |score: Option<f64>| score.map(|score| format!("{score:.4}"));
    let rows = result.activated.iter().map(|memory| {
        let mut row = Vec::new();
        if is_hybrid {
            let scores = [memory.combined, memory.similarity];
            row.extend(scores.map(|one| score(one).unwrap_or_default()));
        }
        row.push(format!("{:.6}", activation(memory.activation)));
        row.push(memory.id.clone());
        if with_content {
            let content = memory.memory.as_ref().map(|memory| brief(&memory.content));
            row.push(content.unwrap_or_default());
        }
        if explain {
            row.push(path(&memory.path));
        }
        row
    });
    let mut text = table(&headings, rows);
    let total = thousands(result.activated_total);
    let edges = thousands(result.edges_followed);
    let hops = answer.hops.len();
    let _ = write!(
        text,
        "\n\n{} of {total} activated memories; {edges} associations followed in {hops} hops",
        result.activated.len()
    );
    if let Some(hybrid) = &result.hybrid {
        let _ = write!(
            text,
            "\nstarted from the {} nearest; combined = {} x nearness + {} x activation / greatest",
            hybrid.seeds.len(),
            hybrid.similarity_weight,
            hybrid.activation_weight,
        );
        if !hybrid.unsearched_partitions.is_empty() {
            let partitions = hybrid.unsearched_partitions.iter();
            let partitions: Vec<String> = partitions.map(u64::to_string).collect();
            let _ = write!(text, "; not searched: partitions {}", partitions.join(", "));
        }
    }
    if result.reinforced > 0 {
        let _ = write!(text, "\n{} associations strengthened", result.reinforced);
    }
    for seed in &result.missing_seeds {
        let _ = write!(text, "\nseed {seed}: no such memory");
    }
    if let Some(loss) = result.accounting.as_ref().and_then(loss) {
        let _ = write!(text, "\n{loss}");
    }
    text
}

fn activation(integer: u64) -> f64 {
    integer as f64 / UNIT
}

/// `dog -hypernym-> canine -hypernym-> carnivore`.
#[must_use]
pub fn path(steps: &[v1::PathStep]) -> String {
    let mut text = String::new();
    for step in steps {
        if step.relation.is_empty() {
            text.push_str(&step.id);
        } else {
            let _ = write!(text, " -{}-> {}", step.relation, step.id);
        }
    }
    text
}

/// The strongest paths as a graph: memories by activation, edges by what they carried.
fn dot(result: &v1::SpreadResult) -> String {
    let mut text = String::from("digraph spread {\n  rankdir=LR;\n  node [shape=box];\n");
    for memory in &result.activated {
        let label = format!("{}\n{:.4}", memory.id, activation(memory.activation));
        let _ = writeln!(text, "  {} [label={}];", quoted(&memory.id), quoted(&label));
    }
    let mut drawn = BTreeSet::new();
    for memory in &result.activated {
        for pair in memory.path.windows(2) {
            let [from, to] = pair else { continue };
            if drawn.insert((&from.id, &to.relation, &to.id)) {
                let (from, to_id) = (quoted(&from.id), quoted(&to.id));
                let _ = writeln!(
                    text,
                    "  {from} -> {to_id} [label={}];",
                    quoted(&to.relation)
                );
            }
        }
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str, relation: &str) -> v1::PathStep {
        v1::PathStep {
            id: id.into(),
            relation: relation.into(),
            share: 1,
        }
    }

    fn result() -> v1::SpreadResult {
        let steps = vec![step("dog", ""), step("say \"cat\"", "r")];
        let activated = vec![v1::Activated {
            id: "say \"cat\"".into(),
            activation: 1 << 31,
            score: 0.5,
            path: steps,
            ..Default::default()
        }];
        v1::SpreadResult {
            activated,
            activated_total: 9,
            ..Default::default()
        }
    }

    #[test]
    fn paths_read_from_seed_to_memory() {
        assert_eq!(path(&result().activated[0].path), "dog -r-> say \"cat\"");
    }

    #[test]
    fn drawings_escape_ids() {
        let text = dot(&result());
        assert!(
            text.contains(r#""dog" -> "say \"cat\"" [label="r"];"#),
            "{text}"
        );
        assert!(text.contains(r#"[label="say \"cat\"\n0.5000"]"#), "{text}");
    }

    #[test]
    fn a_partial_answer_says_what_it_lacks() {
        let mut result = result();
        result.accounting = Some(v1::SpreadAccounting {
            confidence: 0.75,
            injected: 1.0,
            missing: 0.25,
            excluded_partitions: vec![7],
            error_bound: Some(0.4375),
            ..Default::default()
        });
        let hops = vec![];
        let text = text(&SpreadAnswer { hops, result }, false);
        let expected = "partial: confidence 0.7500; 0.250000 of 1.000000 is missing; without partitions 7; all totals together lack at most 0.437500";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_hybrid_recall_states_its_weights() {
        let mut result = result();
        result.activated[0].similarity = Some(0.75);
        result.activated[0].combined = Some(0.625);
        result.activated[0].memory = Some(v1::Memory {
            content: "a cat".into(),
            ..Default::default()
        });
        result.hybrid = Some(v1::HybridScoring {
            similarity_weight: 0.5,
            activation_weight: 0.25,
            seeds: vec![v1::NearestSeed::default(); 3],
            unsearched_partitions: vec![4],
        });
        let hops = vec![];
        let text = text(&SpreadAnswer { hops, result }, false);
        for part in [
            "COMBINED",
            "0.6250",
            "0.7500",
            "a cat",
            "started from the 3 nearest; combined = 0.5 x nearness + 0.25 x activation / greatest",
            "not searched: partitions 4",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn missing_seeds_are_named() {
        let mut answer = SpreadAnswer {
            hops: vec![],
            result: result(),
        };
        answer.result.missing_seeds.push("nobody".into());
        let text = text(&answer, true);
        assert!(
            text.contains("1 of 9 activated") && text.contains("seed nobody"),
            "{text}"
        );
    }
}
