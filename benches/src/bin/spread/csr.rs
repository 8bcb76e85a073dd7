//! The yardstick: a loop over CSR arrays with float activation, no rules, no names. Few active
//! vertices are kept in a list, many are found by looking at all; what was touched is put back.

use engram_core::spread::Projection;

use crate::graphs::Dice;

const DECAY: f32 = 0.5;
/// One in so many vertices must be a target for a hop to be dense.
const DENSE_SHARE: usize = 8;

/// A graph as arrays; weights are shares of their source's sum.
pub struct Csr {
    starts: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl Csr {
    #[must_use]
    pub fn new(projection: &Projection) -> Self {
        let mut csr = Self {
            starts: vec![0],
            targets: Vec::new(),
            weights: Vec::new(),
        };
        for vertex in 0..projection.vertices() {
            let edges: Vec<_> = projection.out_edges(vertex).collect();
            let sum: f64 = edges.iter().map(|edge| edge.weight.to_f64()).sum();
            for edge in edges {
                csr.targets.push(edge.to);
                csr.weights.push((edge.weight.to_f64() / sum) as f32);
            }
            csr.starts.push(csr.targets.len() as u32);
        }
        csr
    }

    fn vertices(&self) -> usize {
        self.starts.len() - 1
    }

    /// (from, to, share of the source's sum) of every edge.
    pub fn edges(&self) -> impl Iterator<Item = (u32, u32, f32)> + '_ {
        (0..self.vertices()).flat_map(move |vertex| {
            let range = self.starts[vertex] as usize..self.starts[vertex + 1] as usize;
            range.map(move |edge| (vertex as u32, self.targets[edge], self.weights[edge]))
        })
    }

    fn degree(&self, vertex: usize) -> u32 {
        self.starts[vertex + 1] - self.starts[vertex]
    }

    /// Random vertices with at least three out-edges.
    pub fn seeds(&self, count: usize, dice: &mut Dice) -> Vec<u32> {
        let mut seeds = Vec::new();
        while seeds.len() < count {
            let vertex = dice.below(self.vertices());
            if self.degree(vertex) >= 3 {
                seeds.push(vertex as u32);
            }
        }
        seeds
    }

    /// The vertex with most out-edges, and how many.
    pub fn hub(&self) -> (u32, u32) {
        let degrees = (0..self.vertices()).map(|vertex| (self.degree(vertex), vertex as u32));
        let (degree, vertex) = degrees.max().unwrap_or_default();
        (vertex, degree)
    }
}

/// The loop and its memory.
pub struct Loop<'a> {
    csr: &'a Csr,
    current: Vec<f32>,
    next: Vec<f32>,
    total: Vec<f32>,
    frontier: Vec<u32>,
    touched: Vec<u32>,
    activated: Vec<u32>,
}

impl<'a> Loop<'a> {
    #[must_use]
    pub fn new(csr: &'a Csr) -> Self {
        let zeros = || vec![0.0; csr.vertices()];
        Self {
            csr,
            current: zeros(),
            next: zeros(),
            total: zeros(),
            frontier: Vec::new(),
            touched: Vec::new(),
            activated: Vec::new(),
        }
    }

    /// Edges followed, and the most activated.
    pub fn spread(&mut self, seed: u32, hops: u32, answer: usize) -> (u64, Vec<(u32, f32)>) {
        let vertices = self.csr.vertices();
        self.frontier.push(seed);
        self.current[seed as usize] = 1.0;
        let (mut edges, mut is_dense) = (0, false);
        for hop in 0..=hops {
            if is_dense {
                self.frontier.clear();
                let found = (0..vertices as u32).filter(|v| self.current[*v as usize] > 0.0);
                self.frontier.extend(found);
            }
            let mut degrees = 0;
            for vertex in &self.frontier {
                let vertex = *vertex as usize;
                if self.total[vertex] == 0.0 {
                    self.activated.push(vertex as u32);
                }
                self.total[vertex] += self.current[vertex];
                degrees += self.csr.degree(vertex) as usize;
            }
            if hop == hops {
                break;
            }
            edges += degrees as u64;
            is_dense = degrees >= vertices / DENSE_SHARE;
            if is_dense {
                self.push_unlisted();
            } else {
                self.push_listed();
            }
            for vertex in self.frontier.drain(..) {
                self.current[vertex as usize] = 0.0;
            }
            std::mem::swap(&mut self.current, &mut self.next);
            std::mem::swap(&mut self.frontier, &mut self.touched);
        }
        for vertex in self.frontier.drain(..) {
            self.current[vertex as usize] = 0.0;
        }
        (edges, self.answer(answer))
    }

    fn push_listed(&mut self) {
        for vertex in &self.frontier {
            let vertex = *vertex as usize;
            let amount = self.current[vertex] * DECAY;
            let range = self.csr.starts[vertex] as usize..self.csr.starts[vertex + 1] as usize;
            let edges = self.csr.targets[range.clone()]
                .iter()
                .zip(&self.csr.weights[range]);
            for (target, weight) in edges {
                let held = &mut self.next[*target as usize];
                if *held == 0.0 {
                    self.touched.push(*target);
                }
                *held += amount * weight;
            }
        }
    }

    fn push_unlisted(&mut self) {
        for vertex in &self.frontier {
            let vertex = *vertex as usize;
            let amount = self.current[vertex] * DECAY;
            let range = self.csr.starts[vertex] as usize..self.csr.starts[vertex + 1] as usize;
            let edges = self.csr.targets[range.clone()]
                .iter()
                .zip(&self.csr.weights[range]);
            for (target, weight) in edges {
                self.next[*target as usize] += amount * weight;
            }
        }
    }

    fn answer(&mut self, limit: usize) -> Vec<(u32, f32)> {
        let totals = self.activated.drain(..);
        let mut best: Vec<(u32, f32)> = totals
            .map(|vertex| (vertex, std::mem::take(&mut self.total[vertex as usize])))
            .collect();
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if best.len() > limit {
            best.select_nth_unstable_by(limit, descending);
            best.truncate(limit);
        }
        best.sort_unstable_by(descending);
        best
    }
}
