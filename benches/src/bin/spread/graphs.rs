//! The graphs: WordNet from its files, and R-MAT from a seed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result};
use engram_core::spread::{Projection, ProjectionBuilder};
use engram_core::types::{HashSlot, MemoryHash, MemoryId, Relation, Unit};
use serde::Deserialize;

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Vertices by hash and slot; edges by their places in `vertices`.
pub struct Graph {
    vertices: Vec<(MemoryHash, HashSlot)>,
    edges: Vec<(u32, u32, u32, Unit)>,
    relations: Vec<Relation>,
}

impl Graph {
    /// The arrays, as a partition makes them.
    pub fn projection(&self) -> Result<Projection> {
        let mut order: Vec<u32> = (0..self.vertices.len() as u32).collect();
        order.sort_unstable_by_key(|vertex| self.vertices[*vertex as usize].0);
        let mut builder = ProjectionBuilder::new(false);
        for vertex in &order {
            builder.vertex(self.vertices[*vertex as usize].0, true)?;
        }
        builder.seal_vertices();
        let mut places = vec![0; order.len()];
        for (place, vertex) in order.iter().enumerate() {
            places[*vertex as usize] = place as u32;
        }
        let mut edges: Vec<_> = self
            .edges
            .iter()
            .map(|(from, to, relation, weight)| {
                (
                    places[*from as usize],
                    places[*to as usize],
                    *relation,
                    *weight,
                )
            })
            .collect();
        edges.sort_unstable();
        for (from, to, relation, weight) in edges {
            let of = |place: u32| self.vertices[order[place as usize] as usize];
            let ((from, _), (to, slot)) = (of(from), of(to));
            let relation = &self.relations[relation as usize];
            builder.edge(from, to, || slot, relation, weight, 0)?;
        }
        Ok(builder.finish())
    }
}

#[derive(Deserialize)]
struct MemoryLine {
    id: String,
}

#[derive(Deserialize)]
struct EdgeLine {
    from: String,
    to: String,
    relation: String,
    weight: f64,
}

fn lines<T: for<'de> Deserialize<'de>>(
    path: &Path,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    for line in BufReader::new(file).lines() {
        each(serde_json::from_str(&line?)?)?;
    }
    Ok(())
}

/// # Errors
/// When a file cannot be read or a line is not what it should be.
pub fn wordnet(directory: &Path) -> Result<Graph> {
    let mut graph = Graph {
        vertices: Vec::new(),
        edges: Vec::new(),
        relations: Vec::new(),
    };
    let mut vertices: HashMap<String, u32> = HashMap::new();
    let mut relations: HashMap<String, u32> = HashMap::new();
    lines(&directory.join("memories.jsonl"), |line: MemoryLine| {
        let id = MemoryId::new(line.id.clone())?;
        vertices.insert(line.id, graph.vertices.len() as u32);
        graph.vertices.push((id.hash(), id.hash_slot()));
        Ok(())
    })?;
    lines(&directory.join("edges.jsonl"), |line: EdgeLine| {
        let (from, to) = (vertices.get(&line.from), vertices.get(&line.to));
        let (from, to) = from
            .zip(to)
            .context("an edge to a memory that is not there")?;
        let number = relations.len() as u32;
        let relation = *relations.entry(line.relation.clone()).or_insert(number);
        if relation == number {
            let name = Relation::new(&line.relation).context("a relation")?;
            graph.relations.push(name);
        }
        let weight = Unit::from_f64(line.weight)?;
        graph.edges.push((*from, *to, relation, weight));
        Ok(())
    })?;
    Ok(graph)
}

/// Chakrabarti, Zhan, Faloutsos, "R-MAT" (SDM 2004), a = .57, b = c = .19: about as many distinct
/// edges as asked for, weights in [.1, 1], ids scattered.
#[must_use]
pub fn rmat(scale: u32, edges: usize, dice: &mut Dice) -> Graph {
    let vertex = |number: u32| {
        let id = MemoryId::new(format!("v{number}"));
        id.map(|id| (id.hash(), id.hash_slot()))
    };
    let vertices = (0..1 << scale).filter_map(|number| vertex(number).ok());
    let mut pairs: Vec<u64> = Vec::with_capacity(edges + edges / 8);
    while pairs.len() < edges {
        let wanted = (edges - pairs.len()) + (edges - pairs.len()) / 8 + 16;
        for _ in 0..wanted {
            let (mut from, mut to) = (0_u64, 0_u64);
            for _ in 0..scale {
                let at = dice.unit();
                let (right, below) = ((0.57..0.76).contains(&at) || at >= 0.95, at >= 0.76);
                from = from << 1 | u64::from(below);
                to = to << 1 | u64::from(right);
            }
            pairs.push(from << 32 | to);
        }
        pairs.sort_unstable();
        pairs.dedup();
    }
    // Drop the surplus evenly, not from one end.
    while pairs.len() > edges {
        let victim = dice.below(pairs.len());
        pairs.swap_remove(victim);
    }
    let edge = |pair: &u64| {
        let weight = Unit::from_f64(0.1 + 0.9 * dice.unit()).unwrap_or(Unit::ONE);
        ((pair >> 32) as u32, *pair as u32, 0, weight)
    };
    Graph {
        vertices: vertices.collect(),
        edges: pairs.iter().map(edge).collect(),
        relations: Relation::new("r").into_iter().collect(),
    }
}
