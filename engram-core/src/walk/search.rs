//! The search: layer by layer, each layer the memories that are reached by one hop more, or in a
//! stronger way than by fewer.
//!
//! Around and by hops a memory is in the first layer that meets it, and in no other. By strength it
//! is also in a later one if it is stronger there; its edges are kept, so it is not read again.
//! Weights are at most 1, so nothing that is not stronger than the path that is known can become
//! part of a better one.

use std::collections::{BTreeMap, BTreeSet};

use super::strength::Strength;
use super::{
    Ask, Expanded, FoundPath, Goal, Heading, Homes, PathBy, Reached, Start, StepEdge, WalkEdge,
    WalkEnd, WalkError, WalkOutcome, WalkParameters, WalkStep,
};
use crate::types::{MemoryHash, MemoryId, PartitionId, Relation, Unit};

/// Memories of one ask.
const ASK_MEMORIES_MAX: usize = 1_024;

/// See the module.
pub struct Walk {
    parameters: WalkParameters,
    goal: Goal,
    homes: Homes,
    memories: BTreeMap<MemoryHash, Met>,
    layers: Vec<BTreeMap<MemoryHash, Arrival>>,
    /// The layer in which the path's end is reached best.
    arrived: Option<u32>,
    starts: Vec<MemoryHash>,
    end: Option<WalkEnd>,
    edges_read: usize,
}

/// A memory that was met.
struct Met {
    home: PartitionId,
    known: Known,
    hops: u32,
    strength: Strength,
    /// Out of it or into it, as the walk goes; once it was asked.
    edges: Option<Vec<Way>>,
}

enum Known {
    Unread,
    /// It does not exist, or does not pass the filter.
    Gone,
    There(MemoryId),
}

/// A way on.
#[derive(Clone)]
struct Way {
    to: MemoryHash,
    home: PartitionId,
    edge: Edge,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    relation: Relation,
    weight: Unit,
    is_reversed: bool,
}

/// How a memory is reached in a layer.
#[derive(Clone)]
struct Arrival {
    strength: Strength,
    /// `None`: it is a start.
    from: Option<(MemoryHash, Edge)>,
}

impl Arrival {
    /// Whether it is the better one of two in the same layer.
    fn is_before(&self, other: &Self) -> bool {
        let order = other.strength.cmp(&self.strength);
        order.then_with(|| self.from.cmp(&other.from)).is_lt()
    }
}

impl Walk {
    /// # Errors
    /// When a start belongs to no partition.
    pub fn new(
        goal: Goal,
        starts: &[Start],
        parameters: WalkParameters,
        homes: Homes,
    ) -> Result<Self, WalkError> {
        let mut walk = Self {
            parameters,
            homes,
            memories: BTreeMap::new(),
            layers: vec![BTreeMap::new()],
            arrived: None,
            starts: starts.iter().map(|start| start.memory).collect(),
            end: None,
            edges_read: 0,
            goal,
        };
        for start in starts {
            let home = walk.homes.of(start.slot)?;
            walk.meet(start.memory, home, 0, Strength::ONE);
            let arrival = Arrival {
                strength: Strength::ONE,
                from: None,
            };
            walk.layers[0].insert(start.memory, arrival);
        }
        if let Goal::Path { to, .. } = walk.goal {
            let home = walk.homes.of(to.slot)?;
            walk.expect_end(to, home);
        }
        Ok(walk)
    }

    /// The end of a path is read in the first round: without it there is no path.
    fn expect_end(&mut self, to: Start, home: PartitionId) {
        self.memories.entry(to.memory).or_insert(Met {
            home,
            known: Known::Unread,
            hops: u32::MAX,
            strength: Strength::ONE,
            edges: None,
        });
    }

    fn meet(&mut self, memory: MemoryHash, home: PartitionId, hops: u32, strength: Strength) {
        self.memories.entry(memory).or_insert(Met {
            home,
            known: Known::Unread,
            hops,
            strength,
            edges: None,
        });
    }

    fn hops(&self) -> u32 {
        (self.layers.len() - 1) as u32
    }

    fn by_strength(&self) -> bool {
        let by = PathBy::Strength;
        matches!(self.goal, Goal::Path { by: given, .. } if given == by)
    }

    fn path_end(&self) -> Option<MemoryHash> {
        match self.goal {
            Goal::Around => None,
            Goal::Path { to, .. } => Some(to.memory),
        }
    }

    /// Whether the layer's memories are walked on from.
    fn goes_on(&self) -> bool {
        self.hops() < self.parameters.hops_max
    }

    /// What is to be read now, all of it in one round; nothing when the walk is over.
    #[must_use]
    pub fn round(&self) -> Vec<Ask> {
        if self.end.is_some() {
            return Vec::new();
        }
        let mut own: BTreeMap<PartitionId, Vec<MemoryHash>> = BTreeMap::new();
        let into = self.unread();
        for memory in &into {
            if let Some(met) = self.memories.get(memory) {
                own.entry(met.home).or_default().push(*memory);
            }
        }
        let direction = self.parameters.direction;
        let out_edges = self.goes_on() && direction.is_out();
        let edges_max = self.parameters.edges_max.saturating_sub(self.edges_read);
        let ask = |partition, own, out_edges, into| Ask {
            partition,
            own,
            out_edges,
            into,
            edges_max,
        };
        let mut asks = Vec::new();
        for (partition, memories) in &own {
            for own in memories.chunks(ASK_MEMORIES_MAX) {
                asks.push(ask(*partition, own.to_vec(), out_edges, Vec::new()));
            }
        }
        if let Some((end, home)) = self.unread_end() {
            asks.push(ask(home, vec![end], false, Vec::new()));
        }
        if self.goes_on() && direction.is_in() {
            for (_, partition) in &self.homes.0 {
                for into in into.chunks(ASK_MEMORIES_MAX) {
                    asks.push(ask(*partition, Vec::new(), false, into.to_vec()));
                }
            }
        }
        asks
    }

    fn is_unread(&self, memory: MemoryHash) -> bool {
        let met = self.memories.get(&memory);
        met.is_some_and(|met| matches!(met.known, Known::Unread))
    }

    /// Of the newest layer, ascending.
    fn unread(&self) -> Vec<MemoryHash> {
        let layer = self.layers.last().into_iter().flat_map(BTreeMap::keys);
        let layer = layer.copied();
        layer.filter(|memory| self.is_unread(*memory)).collect()
    }

    /// The path's end in the first round, where it is not the start too. Its edges are of no use.
    fn unread_end(&self) -> Option<(MemoryHash, PartitionId)> {
        let end = self.path_end()?;
        let met = self.memories.get(&end)?;
        let is_first = self.layers.len() == 1 && !self.layers[0].contains_key(&end);
        (is_first && self.is_unread(end)).then_some((end, met.home))
    }

    /// Takes the answers to [`Self::round`], in its order, and goes on as far as it can.
    ///
    /// # Errors
    /// When they are not the answers to it: the walk is of no use then.
    pub fn take(&mut self, answers: Vec<Expanded>) -> Result<(), WalkError> {
        let asks = self.round();
        if asks.len() != answers.len() {
            let partition = asks.first().map_or(PartitionId(0), |ask| ask.partition);
            return Err(WalkError::Unfit(partition));
        }
        let mut ways: BTreeMap<MemoryHash, Vec<Way>> = BTreeMap::new();
        let mut is_cut = false;
        for (ask, answer) in asks.into_iter().zip(answers) {
            is_cut |= answer.is_cut;
            self.edges_read = self.edges_read.saturating_add(answer.edges.len());
            if ask.own.len() != answer.ids.len() {
                return Err(WalkError::Unfit(ask.partition));
            }
            for (memory, id) in ask.own.into_iter().zip(answer.ids) {
                if let Some(met) = self.memories.get_mut(&memory) {
                    met.known = id.map_or(Known::Gone, Known::There);
                    ways.entry(memory).or_default();
                }
            }
            for edge in answer.edges {
                let at = edge.at;
                let way = self.way(ask.partition, edge)?;
                ways.entry(at).or_default().push(way);
            }
        }
        for (memory, ways) in ways {
            let met = self.memories.get_mut(&memory);
            if let Some(met) = met.filter(|met| matches!(met.known, Known::There(_))) {
                met.edges = Some(ways);
            }
        }
        if is_cut || self.edges_read > self.parameters.edges_max {
            let hops = self.hops();
            self.end = Some(WalkEnd::TooManyEdges { hops });
        }
        self.advance();
        Ok(())
    }

    fn way(&self, partition: PartitionId, edge: WalkEdge) -> Result<Way, WalkError> {
        let (home, is_reversed) = match edge.heading {
            Heading::Out(slot) => (self.homes.of(slot)?, false),
            Heading::In => (partition, true),
        };
        Ok(Way {
            to: edge.other,
            home,
            edge: Edge {
                relation: edge.relation,
                weight: edge.weight,
                is_reversed,
            },
        })
    }

    /// Layer after layer, while nothing has to be read.
    fn advance(&mut self) {
        loop {
            self.drop_gone();
            if self.is_over() {
                // Edges that were too many are not needed any more.
                self.end = Some(WalkEnd::Complete);
                return;
            }
            if self.end.is_some() {
                return;
            }
            let layer = self.next_layer();
            if layer.is_empty() {
                self.end = Some(WalkEnd::Complete);
                return;
            }
            if self.memories.len() > self.parameters.memories_max {
                let hops = self.hops();
                self.end = Some(WalkEnd::TooManyMemories { hops });
                return;
            }
            if let Some(end) = self.path_end()
                && layer.contains_key(&end)
            {
                self.arrived = Some(self.layers.len() as u32);
            }
            self.layers.push(layer);
            if !self.unread().is_empty() {
                return;
            }
        }
    }

    fn drop_gone(&mut self) {
        let memories = &self.memories;
        let is_there = |memory: &MemoryHash| {
            let met = memories.get(memory);
            met.is_some_and(|met| matches!(met.known, Known::There(_)))
        };
        if let Some(layer) = self.layers.last_mut() {
            layer.retain(|memory, _| is_there(memory));
        }
        let end = self.path_end();
        if end.is_some_and(|end| self.layers.len() == 1 && self.layers[0].contains_key(&end)) {
            self.arrived = Some(0);
        }
    }

    fn is_over(&self) -> bool {
        let is_gone = |memory| {
            let met = self.memories.get(&memory);
            met.is_some_and(|met| matches!(met.known, Known::Gone))
        };
        let is_there = self.arrived.is_some() && !self.by_strength();
        is_there || self.path_end().is_some_and(is_gone) || !self.goes_on()
    }

    fn next_layer(&mut self) -> BTreeMap<MemoryHash, Arrival> {
        let by_strength = self.by_strength();
        let end = self.path_end();
        // What does not beat the path that is known is left.
        let known = self
            .arrived
            .and_then(|_| Some(self.memories.get(&end?)?.strength));
        let layer = self.layers.last().cloned().unwrap_or_default();
        let mut next: BTreeMap<MemoryHash, Arrival> = BTreeMap::new();
        let mut homes: BTreeMap<MemoryHash, PartitionId> = BTreeMap::new();
        for (memory, arrival) in layer {
            if Some(memory) == end {
                continue;
            }
            let Some(met) = self.memories.get_mut(&memory) else {
                continue;
            };
            // Read once, used once, unless it can come again.
            let edges = if by_strength {
                met.edges.clone()
            } else {
                met.edges.take()
            };
            for way in edges.unwrap_or_default() {
                let Some(strength) = arrival.strength.times(way.edge.weight) else {
                    continue;
                };
                let best = self
                    .memories
                    .get(&way.to)
                    .filter(|met| met.hops != u32::MAX);
                let improves = match best {
                    None => true,
                    Some(best) => by_strength && strength > best.strength,
                };
                if !improves || known.is_some_and(|known| strength <= known) {
                    continue;
                }
                let candidate = Arrival {
                    strength,
                    from: Some((memory, way.edge)),
                };
                homes.insert(way.to, way.home);
                match next.get(&way.to) {
                    Some(held) if !candidate.is_before(held) => {}
                    _ => {
                        next.insert(way.to, candidate);
                    }
                }
            }
        }
        let hops = self.hops() + 1;
        for (memory, arrival) in &next {
            let home = homes.get(memory).copied().unwrap_or(PartitionId(0));
            self.meet(*memory, home, hops, arrival.strength);
            if let Some(met) = self.memories.get_mut(memory) {
                met.hops = met.hops.min(hops);
                met.strength = arrival.strength;
            }
        }
        next
    }

    /// What was found. Of a walk that is over.
    #[must_use]
    pub fn finish(self) -> WalkOutcome {
        let end = self.end.unwrap_or(WalkEnd::Complete);
        let gone = |memory: &MemoryHash| {
            let met = self.memories.get(memory);
            met.is_some_and(|met| !matches!(met.known, Known::There(_)))
        };
        let asked = self.starts.iter().copied().chain(self.path_end());
        let missing: BTreeSet<MemoryHash> = asked.filter(gone).collect();
        let hops = match end {
            WalkEnd::Complete => self.hops(),
            WalkEnd::TooManyMemories { hops } | WalkEnd::TooManyEdges { hops } => hops,
        };
        let path = self.path(&missing);
        let reached = if self.path_end().is_some() {
            Vec::new()
        } else {
            self.reached(hops)
        };
        WalkOutcome {
            end,
            missing: missing.into_iter().collect(),
            reached,
            path,
            hops,
            edges_read: self.edges_read,
        }
    }

    fn reached(&self, hops: u32) -> Vec<Reached> {
        let reached = |(memory, met): (&MemoryHash, &Met)| match &met.known {
            Known::There(id) if met.hops <= hops => Some(Reached {
                memory: *memory,
                id: id.clone(),
                hops: met.hops,
            }),
            Known::There(_) | Known::Unread | Known::Gone => None,
        };
        let mut reached: Vec<Reached> = self.memories.iter().filter_map(reached).collect();
        reached.sort_by(|one, other| {
            let order = one.hops.cmp(&other.hops);
            order.then_with(|| one.id.as_str().cmp(other.id.as_str()))
        });
        reached
    }

    /// Back from the end, one layer at a time.
    fn path(&self, missing: &BTreeSet<MemoryHash>) -> Option<FoundPath> {
        if !missing.is_empty() {
            return None;
        }
        let (mut layer, mut memory) = (self.arrived?, self.path_end()?);
        let strength = self.layers.get(layer as usize)?.get(&memory)?.strength;
        let mut steps = Vec::new();
        loop {
            let Known::There(id) = &self.memories.get(&memory)?.known else {
                return None;
            };
            let arrival = self.layers.get(layer as usize)?.get(&memory)?;
            let by = arrival.from.as_ref().map(|(_, edge)| StepEdge {
                relation: edge.relation.clone(),
                weight: edge.weight,
                is_reversed: edge.is_reversed,
            });
            steps.push(WalkStep { id: id.clone(), by });
            let Some((from, _)) = &arrival.from else {
                break;
            };
            (memory, layer) = (*from, layer.checked_sub(1)?);
        }
        steps.reverse();
        Some(FoundPath { steps, strength })
    }
}
