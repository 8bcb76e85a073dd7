//! The generations of one partition together: inserts and deaths reach all of them, jobs come from
//! each, the oldest one serves until a newer one has caught up.

use std::sync::Arc;

use arc_swap::ArcSwap;
use roaring::RoaringTreemap;

use super::crew::{Alone, Crew};
use super::graph::Graph;
use super::link::{Job, LinkedWindow, link};
use super::search::Ask;
use super::{
    GENERATIONS_HELD_MAX, Generation, Hit, IndexPosition, IndexShape, IndexStatus, NewVector,
    TopologyDigest, VectorId, search, snapshot,
};
use crate::kernel::Row;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{IndexParameters, Metric, Sequence};

/// The index of a partition. One applier calls [`insert`](Self::insert), [`kill`](Self::kill),
/// [`applied`](Self::applied) and [`begin_generation`](Self::begin_generation) in log order; all
/// else may be called by anyone at any time.
pub struct PartitionIndex {
    shape: IndexShape,
    /// Ascending, never empty: the first serves, the last is the log's newest.
    graphs: ArcSwap<Vec<Arc<Graph>>>,
    /// Held while `graphs` is replaced.
    replacing: Mutex<()>,
    /// Everything of the commands up to this one was inserted and killed.
    applied: AtomicU64,
}

impl PartitionIndex {
    /// An empty index at generation 1, with the fastest kernel of this CPU.
    #[must_use]
    pub fn new(parameters: IndexParameters, dimension: u32, metric: Metric) -> Self {
        Self::with_shape(IndexShape::new(parameters, dimension, metric))
    }

    #[must_use]
    pub fn with_shape(shape: IndexShape) -> Self {
        let graph = Arc::new(Graph::new(Generation::initial(), shape));
        Self::from_graphs(shape, vec![graph], Sequence(0))
    }

    pub(super) fn from_graphs(
        shape: IndexShape,
        graphs: Vec<Arc<Graph>>,
        applied: Sequence,
    ) -> Self {
        assert!(!graphs.is_empty(), "an index has a generation");
        let index = Self {
            shape,
            graphs: ArcSwap::from_pointee(graphs),
            replacing: Mutex::new(()),
            applied: AtomicU64::new(applied.0),
        };
        index.drop_overtaken();
        index
    }

    fn serving(&self) -> Arc<Graph> {
        Arc::clone(&self.graphs.load()[0])
    }

    fn newest(&self) -> Arc<Graph> {
        let graphs = self.graphs.load();
        Arc::clone(&graphs[graphs.len() - 1])
    }

    fn complete(&self) -> Sequence {
        Sequence(self.applied.load(Ordering::Acquire))
    }

    /// Adds a vector; searches find it when this returns.
    ///
    /// # Panics
    /// When it does not come in order of the log: the id after the last one, a sequence that was
    /// not declared [`applied`](Self::applied) yet, the space's dimension.
    pub fn insert(&self, vector: NewVector<'_>) {
        self.assert_open(vector.sequence);
        let dimension = self.shape.dimension as usize;
        assert!(
            vector.components.len() == dimension,
            "vector {} has the wrong length",
            vector.id
        );
        let row = Row::new(vector.components);
        let graphs = self.graphs.load_full();
        let level = graphs[0].level_of(vector.owner);
        for graph in graphs.iter() {
            graph.push(vector.id, &row, level, vector.sequence);
        }
    }

    /// Marks a vector dead: searches that begin later do not find it. Killing twice, or killing
    /// what no generation here holds, changes nothing.
    ///
    /// # Panics
    /// When `at` was declared [`applied`](Self::applied) already.
    pub fn kill(&self, id: VectorId, at: Sequence) {
        self.assert_open(at);
        self.graphs
            .load_full()
            .iter()
            .for_each(|graph| graph.kill(id, at));
    }

    fn assert_open(&self, at: Sequence) {
        let complete = self.complete();
        assert!(
            at > complete,
            "command {at} changes the index after {complete} was applied"
        );
    }

    /// Declares that everything of the command at `at` was inserted and killed: only then are the
    /// windows that it sealed offered as jobs, since a death at `at` itself counts for them. Call
    /// it after each command that touched the index. If that command wore the newest generation
    /// out, the next one is returned: store it with the command, then
    /// [`begin_generation`](Self::begin_generation). The answer is a pure function of the log.
    #[must_use = "a generation that is due must be stored and begun"]
    pub fn applied(&self, at: Sequence) -> Option<Generation> {
        self.applied.fetch_max(at.0, Ordering::AcqRel);
        let newest = self.newest();
        newest.is_worn().then(|| Self::next_generation(&newest, at))
    }

    /// As [`applied`](Self::applied), of a command that asks for a generation: the next one, worn
    /// out or not.
    #[must_use = "a generation that is due must be stored and begun"]
    pub fn renewed(&self, at: Sequence) -> Generation {
        self.applied.fetch_max(at.0, Ordering::AcqRel);
        Self::next_generation(&self.newest(), at)
    }

    /// The generation of what lives in the newest one.
    fn next_generation(newest: &Graph, at: Sequence) -> Generation {
        let slots = newest.published();
        let live = (0..slots)
            .filter(|slot| newest.is_live(*slot))
            .map(|slot| newest.id(slot).0);
        let base: RoaringTreemap = live.collect();
        // Of the last slot the vector says nothing: a base does not end with the newest one.
        let since = u64::from(slots).saturating_sub(newest.generation.base_len());
        let first = VectorId(newest.generation.first.0 + since);
        Generation {
            number: newest.generation.number + 1,
            start: at,
            base,
            first,
        }
    }

    /// Starts a generation that [`applied`](Self::applied) has returned. Its jobs copy the vectors
    /// of its base from the generation that serves now, which has all that lives.
    ///
    /// Jobs go to older generations first, so with [`GENERATIONS_HELD_MAX`] of them the last has
    /// begun for nothing: the new one takes its place. The one before goes on, so that one takes
    /// over at some time however often the log starts another.
    ///
    /// # Panics
    /// When it is not the next generation, or its base is not what lives here.
    pub fn begin_generation(&self, generation: Generation) {
        let number = self.newest().generation.number + 1;
        assert!(
            generation.number == number,
            "generation {number} comes next"
        );
        let graph = Graph::begin(generation, &self.serving());
        {
            let _replacing = self.replacing.lock();
            let mut graphs = self.graphs.load().to_vec();
            graphs.truncate(GENERATIONS_HELD_MAX - 1);
            graphs.push(Arc::new(graph));
            self.graphs.store(Arc::new(graphs));
        }
        self.drop_overtaken();
    }

    /// The next window to link, of the oldest generation that has one; at most one job per
    /// generation is out. Run it anywhere; when it is dropped without a commit it is offered again.
    #[must_use]
    pub fn next_job(&self) -> Option<Job> {
        let complete = self.complete();
        self.graphs.load().iter().find_map(|graph| {
            let mut progress = graph.progress.lock();
            let number = progress.digests.len();
            let window = graph
                .window(number)
                .filter(|window| window.seal <= complete)?;
            if progress.lease.strong_count() > 0 {
                return None;
            }
            let lease = Arc::new(());
            progress.lease = Arc::downgrade(&lease);
            Some(Job {
                graph: Arc::clone(graph),
                number,
                window,
                last_linked: progress.last_linked,
                digest: progress.digests.last().copied().unwrap_or_default(),
                lease,
            })
        })
    }

    /// Computes a job's links. Changes nothing; may take long; runs beside everything else.
    #[must_use]
    pub fn run(&self, job: &Job) -> LinkedWindow {
        self.run_with(job, &Alone)
    }

    /// As [`run`](Self::run), with the help of a crew: the links are the same.
    #[must_use]
    pub fn run_with(&self, job: &Job, crew: &dyn Crew) -> LinkedWindow {
        link(job, crew)
    }

    /// Puts a job's links into the graph. The result of a job that was done by another meanwhile is
    /// dropped. When this brings a newer generation up to date, it serves from now on, and the
    /// older ones go.
    #[allow(clippy::needless_pass_by_value, reason = "a result is committed once")]
    pub fn commit(&self, linked: LinkedWindow) {
        {
            let graph = &linked.graph;
            let mut progress = graph.progress.lock();
            if progress.digests.len() != linked.number {
                return;
            }
            let lists = linked.lists.iter();
            let lists = lists.map(|list| (list.slot, list.level, list.neighbours.as_slice()));
            graph.publish_links(lists, linked.entry, linked.end);
            progress.last_linked = linked.last_linked;
            progress.digests.push(linked.digest);
        }
        self.drop_overtaken();
    }

    /// Drops the generations before the newest one that has caught up.
    fn drop_overtaken(&self) {
        if self.graphs.load().len() == 1 {
            return;
        }
        let _replacing = self.replacing.lock();
        let graphs = self.graphs.load_full();
        let serving = graphs
            .iter()
            .rposition(|graph| graph.is_caught_up())
            .unwrap_or(0);
        if serving > 0 {
            self.graphs.store(Arc::new(graphs[serving..].to_vec()));
        }
    }

    /// The `limit` nearest live vectors that `accept` takes, nearest first. Approximate where the
    /// index is large; fewer than `limit` only when no more exist. `effort` (the beam's width) is
    /// at least `limit`. Under cosine the query need not be of unit length.
    ///
    /// # Panics
    /// When the query has not the space's dimension.
    pub fn search(
        &self,
        query: &[f32],
        limit: usize,
        effort: usize,
        accept: &dyn Fn(VectorId) -> bool,
    ) -> Vec<Hit> {
        self.search_stored(query, limit, effort, accept, &|_| None)
    }

    /// As [`search`](Self::search). Where the index keeps no full vectors, `stored` reads those of
    /// the vectors that are nearest by their codes; distances of what it does not give are those of
    /// the codes.
    ///
    /// # Panics
    /// When the query, or what `stored` gives, has not the space's dimension.
    pub fn search_stored(
        &self,
        query: &[f32],
        limit: usize,
        effort: usize,
        accept: &dyn Fn(VectorId) -> bool,
        stored: &dyn Fn(VectorId) -> Option<Vec<f32>>,
    ) -> Vec<Hit> {
        let ask = Ask {
            query,
            limit,
            effort,
            accept,
            stored,
        };
        search::search(&self.serving(), ask)
    }

    /// As [`search`](Self::search), exactly, by comparing with all accepted live vectors. Where the
    /// index keeps codes alone, exactly by these.
    ///
    /// # Panics
    /// When the query has not the space's dimension.
    pub fn scan(&self, query: &[f32], limit: usize, accept: &dyn Fn(VectorId) -> bool) -> Vec<Hit> {
        let ask = Ask {
            query,
            limit,
            effort: limit,
            accept,
            stored: &|_| None,
        };
        search::scan(&self.serving(), ask)
    }

    /// The newest generation of the log and the jobs sealed in it: what a verification mark
    /// records. The same on all replicas at the same point of the log.
    #[must_use]
    pub fn sealed(&self) -> IndexPosition {
        let newest = self.newest();
        IndexPosition {
            generation: newest.generation.number,
            jobs: newest.jobs_sealed() as u64,
        }
    }

    /// The digest at a position, once its job is done. None also when the generation is not held
    /// here: dropped, or older than where a rebuild began.
    #[must_use]
    pub fn digest_at(&self, position: IndexPosition) -> Option<TopologyDigest> {
        let graphs = self.graphs.load();
        let graph = graphs
            .iter()
            .find(|graph| graph.generation.number == position.generation)?;
        match usize::try_from(position.jobs).ok()?.checked_sub(1) {
            Some(last) => graph.progress.lock().digests.get(last).copied(),
            None => Some(TopologyDigest::default()),
        }
    }

    /// Where the newest generation is, and the jobs that wait in all of them.
    #[must_use]
    pub fn progress(&self) -> (IndexPosition, u64) {
        let graphs = self.graphs.load();
        let newest = &graphs[graphs.len() - 1];
        let position = IndexPosition {
            generation: newest.generation.number,
            jobs: newest.jobs_done() as u64,
        };
        let waiting = |graph: &Arc<Graph>| {
            let done = graph.jobs_done();
            graph.jobs_sealed().saturating_sub(done) as u64
        };
        (position, graphs.iter().map(waiting).sum())
    }

    /// The command after which the newest generation began.
    #[must_use]
    pub fn newest_start(&self) -> Sequence {
        self.newest().generation.start
    }

    /// The command after which the serving generation began, if it has this number.
    #[must_use]
    pub fn serving_start(&self, number: u64) -> Option<Sequence> {
        let serving = self.serving();
        (serving.generation.number == number).then_some(serving.generation.start)
    }

    /// Slots of the serving generation that every search scans.
    #[must_use]
    pub fn tail(&self) -> u32 {
        let serving = self.serving();
        // Read first: linked slots were published.
        let linked = serving.linked();
        serving.published() - linked
    }

    #[must_use]
    pub fn status(&self) -> IndexStatus {
        let graphs = self.graphs.load();
        let (serving, newest) = (&graphs[0], &graphs[graphs.len() - 1]);
        let position = |graph: &Graph| IndexPosition {
            generation: graph.generation.number,
            jobs: graph.jobs_done() as u64,
        };
        let (newest_position, jobs_waiting) = self.progress();
        let linked = serving.linked();
        let dead = serving.dead();
        let slots = serving.published();
        let bytes = graphs.iter().map(|graph| graph.bytes());
        let (walked, full) = bytes.fold((0, 0), |sum, graph| (sum.0 + graph.0, sum.1 + graph.1));
        IndexStatus {
            serving: position(serving),
            newest: newest_position,
            newest_sealed: newest.jobs_sealed() as u64,
            jobs_waiting,
            generations: graphs.len() as u32,
            tail: slots - linked,
            live: slots.saturating_sub(dead),
            dead,
            walked_bytes: walked as u64,
            bytes: (walked + full) as u64,
        }
    }

    /// Writes the links of all generations held here. Vectors and deaths are not in it: storage has
    /// them. Commits wait while their generation's links are copied to memory.
    ///
    /// # Errors
    /// When the sink does not take it.
    pub fn save(&self, sink: &mut dyn std::io::Write) -> Result<(), snapshot::SnapshotError> {
        snapshot::save(self.shape, &self.graphs.load_full(), sink)
    }
}

#[cfg(test)]
impl PartitionIndex {
    /// Linked slots of the serving generation: those that walks can reach, and all.
    pub(super) fn reachable(&self) -> (usize, usize) {
        let graph = self.serving();
        let linked = (0..graph.linked())
            .filter(|slot| graph.is_linked(*slot))
            .count();
        let mut reached = std::collections::BTreeSet::new();
        let mut open: Vec<u32> = graph.entry().into_iter().collect();
        while let Some(slot) = open.pop() {
            if reached.insert(slot) {
                open.extend(graph.neighbours(slot, 0));
            }
        }
        (reached.len(), linked)
    }
}
