//! A partition's part of a walk (`crate::walk`): which of its memories are there, and the edges at
//! them. Read as spreading reads: from the arrays where there are any, both ways.

use super::adjacency::PartitionAdjacency;
use super::view::ReadError;
use crate::spread::Adjacency as _;
use crate::types::MemoryHash;
use crate::walk::{Ask, Expanded, Heading, WalkEdge};

impl PartitionAdjacency {
    /// Answers what a walk asks of this partition.
    ///
    /// # Errors
    /// When storage cannot be read.
    pub fn expand(&self, ask: &Ask) -> Result<Expanded, ReadError> {
        let mut expanded = Expanded::default();
        for memory in &ask.own {
            let id = self.name(*memory)?;
            let is_there = id.is_some();
            expanded.ids.push(id);
            if is_there && ask.out_edges && !expanded.is_cut {
                self.expand_out(*memory, ask.edges_max, &mut expanded)?;
            }
        }
        for memory in &ask.into {
            if expanded.is_cut {
                break;
            }
            self.in_edges(*memory, |edge| {
                expanded.edges.push(WalkEdge {
                    at: *memory,
                    other: edge.from,
                    heading: Heading::In,
                    relation: edge.relation,
                    weight: edge.weight,
                });
            })?;
            expanded.cut(ask.edges_max);
        }
        Ok(expanded)
    }

    fn expand_out(
        &self,
        memory: MemoryHash,
        edges_max: usize,
        expanded: &mut Expanded,
    ) -> Result<(), ReadError> {
        let mut edges = Vec::new();
        self.out_edges(memory, &mut edges)?;
        expanded
            .edges
            .extend(edges.into_iter().map(|edge| WalkEdge {
                at: memory,
                other: edge.to,
                heading: Heading::Out(edge.slot),
                relation: edge.relation,
                weight: edge.weight,
            }));
        expanded.cut(edges_max);
        Ok(())
    }
}

impl Expanded {
    fn cut(&mut self, edges_max: usize) {
        if self.edges.len() > edges_max {
            self.edges.truncate(edges_max);
            self.is_cut = true;
        }
    }
}
