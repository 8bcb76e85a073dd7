//! A whole cluster in one thread: real nodes and real clients on a simulated network, simulated disks
//! and clocks that stand still between two ticks.
//!
//! ```text
//! step: due faults begin and end -> due messages arrive -> each process works for one tick, in order
//! ```
//!
//! A run makes a [`World`] from its plan, [`starts`](World::start) it, gives clients their work
//! ([`World::spawn_client`]), steps it while looking at the nodes ([`World::observe`]), ends all
//! faults ([`World::heal`]), and steps on until everything is well again. Run it inside
//! [`on_own_thread`](crate::thread::on_own_thread).
//!
//! What must hold: whatever happens follows from the plan; a process's work in a tick is seen by the
//! others in a later one.

mod client;
mod coverage;
mod disk;
mod faults;
mod network;
mod node;
mod observe;
mod process;
mod seams;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_client::ClientBuilder;
use engram_client::types::{CreateSpaceRequest, Metric};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;

pub use client::{ClientClock, ClientContext};
pub use coverage::Coverage;

use self::client::ClientHost;
use self::faults::Action;
use self::network::{End, Network};
use self::node::{Node, Surroundings, client_address};
use self::seams::{Ledger, generator};
use crate::plan::{Host, NetworkPlan, Plan, SpacePlan};
use crate::{libc_seam, thread};

/// Simulated time in which a cluster must be up, and its spaces ready.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A node whose process ended by itself is started again after this, as by a supervisor.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(2);
/// Clients work in steps of at least this length: they wait for most of the time, and each step of
/// each of them costs.
const CLIENT_STEP_MIN: Duration = Duration::from_millis(10);
/// The client that creates the spaces: no workload's.
const ADMIN: usize = 60_000;

/// A whole cluster with its clients.
pub struct World {
    plan: Plan,
    around: Surroundings,
    now: Duration,
    /// When the phase with faults began.
    safety_began: Option<Duration>,
    nodes: Vec<Node>,
    clients: BTreeMap<usize, ClientHost>,
    /// Until when the clients have worked.
    clients_at: Duration,
    generator: StdRng,
    actions: BTreeMap<(Duration, u64), Action>,
    next_action: u64,
    /// Nodes that are to start again when their orderly stop is over, and after what pause.
    restarting: BTreeMap<Host, Duration>,
    /// Nodes that are to die at a write, for how long, and by which fault.
    trapped: BTreeMap<Host, (Duration, &'static str)>,
    faults_injected: u64,
    faults_by_kind: BTreeMap<&'static str, u64>,
    panics: Vec<String>,
    healed: bool,
}

/// The cluster did not come up.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the cluster is not up after {waited:?}: {reason}")]
pub struct StartError {
    pub waited: Duration,
    pub reason: String,
}

impl World {
    /// A world in which nothing has happened yet. Its thread must be one of
    /// [`on_own_thread`](crate::thread::on_own_thread).
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let ledger = Ledger::new();
        let network = Network::new(
            plan.network,
            plan.tick,
            generator(plan.seed, "network", 0),
            Arc::clone(&ledger),
        );
        let mut world = Self {
            around: Surroundings {
                seed: plan.seed,
                tick: plan.tick,
                disk: plan.disk,
                options: plan.options,
                spread_attempt_wait: plan.spread_attempt_wait,
                network: Arc::new(network),
                ledger,
            },
            now: Duration::ZERO,
            safety_began: None,
            nodes: Vec::new(),
            clients: BTreeMap::new(),
            clients_at: Duration::ZERO,
            generator: generator(plan.seed, "world", 0),
            actions: BTreeMap::new(),
            next_action: 0,
            restarting: BTreeMap::new(),
            trapped: BTreeMap::new(),
            faults_injected: 0,
            faults_by_kind: BTreeMap::new(),
            panics: Vec::new(),
            healed: false,
            plan: plan.clone(),
        };
        for _ in 0..plan.nodes {
            world.new_node();
        }
        world
    }

    /// Also writes every event of the trace to `copy`, one line each. To be called first.
    pub fn copy_trace(&mut self, copy: Box<dyn std::io::Write + Send>) {
        self.around.ledger.trace().copy_to(copy);
    }

    /// Founds the cluster, has the other nodes join, creates the plan's spaces, and waits until each
    /// has its primaries. The plan's faults count from the end of it.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn start(&mut self) -> Result<(), StartError> {
        self.start_node(Host(0));
        self.wait("the founder", |world| world.nodes[0].is_serving())?;
        for number in 1..self.nodes.len() {
            self.start_node(Host(number));
        }
        self.wait("the nodes that join", |world| {
            world.nodes.iter().all(Node::is_serving)
        })?;
        self.create_spaces()?;
        self.wait("the spaces' replicas", Self::is_placed)?;
        self.safety_began = Some(self.now);
        for event in self.plan.faults.clone() {
            self.schedule(self.now + event.at, Action::Begin(event.fault));
        }
        Ok(())
    }

    fn wait(&mut self, what: &str, ready: impl Fn(&Self) -> bool) -> Result<(), StartError> {
        let begun = self.now;
        while !ready(self) {
            if self.now - begun > START_LIMIT {
                let failures = self.nodes.iter().filter_map(|node| node.failure.clone());
                let failures: Vec<String> = failures.chain(self.panics.clone()).collect();
                return Err(StartError {
                    waited: self.now - begun,
                    reason: format!("{what}; {failures:?}"),
                });
            }
            self.step();
        }
        Ok(())
    }

    fn create_spaces(&mut self) -> Result<(), StartError> {
        let spaces = self.plan.spaces.clone();
        let context = self.client(ADMIN);
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let noted = Arc::clone(&failure);
        self.spawn_client(ADMIN, async move {
            for space in &spaces {
                let request = create_request(space);
                let client = context.client.with_deadline(START_LIMIT);
                if let Err(error) = client.create_space(request).await {
                    *noted.lock() = Some(format!("{}: {error}", space.name));
                }
            }
        });
        self.wait("the spaces", |world| world.client_tasks() == 0)?;
        self.dismiss_clients(ADMIN..=ADMIN);
        match failure.lock().take() {
            None => Ok(()),
            Some(reason) => Err(StartError {
                waited: Duration::ZERO,
                reason,
            }),
        }
    }

    /// Whether every node knows every node, and every group has its replicas as voters and one
    /// primary among them.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        let nodes = self.observe();
        let Some(newest) = nodes
            .iter()
            .filter_map(|node| node.map.as_ref())
            .max_by_key(|map| map.index)
        else {
            return false;
        };
        let all_know = nodes.iter().all(|node| {
            let known = node.map.as_ref().map_or(0, |map| map.nodes.len());
            known == self.nodes.len()
        });
        let placed = newest.groups.iter().all(|(group, replicas)| {
            let wanted: BTreeSet<_> = replicas.iter().copied().collect();
            let here = nodes.iter().flat_map(|node| &node.groups);
            let here: Vec<_> = here.filter(|replica| replica.group == *group).collect();
            let whole = here.len() == wanted.len()
                && here.iter().all(|replica| {
                    replica.stopped.is_none()
                        && replica.voters.iter().copied().collect::<BTreeSet<_>>() == wanted
                });
            whole && here.iter().filter(|replica| replica.leads).count() == 1
        });
        let served = newest
            .partitions
            .iter()
            .all(|(partition, (_, _, replicas))| {
                let here = nodes.iter().flat_map(|node| &node.partitions);
                here.filter(|replica| replica.partition == *partition)
                    .count()
                    == *replicas as usize
            });
        all_know && placed && served
    }

    /// Goes one tick on.
    pub fn step(&mut self) {
        self.act();
        self.around.network.deliver();
        for number in 0..self.nodes.len() {
            self.run_node(number);
        }
        self.now += self.plan.tick;
        let behind = self.now - self.clients_at;
        if behind >= CLIENT_STEP_MIN {
            for client in self.clients.values() {
                client.run(behind);
            }
            self.clients_at = self.now;
        }
        self.panics.extend(thread::take_panics());
        self.around.ledger.set_now(self.now);
        libc_seam::set_time(self.now);
    }

    fn run_node(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let (host, was_up) = (node.host, node.is_up());
        let trapped = node.run(&self.around);
        if !was_up || node.is_up() {
            return;
        }
        let down = if trapped {
            self.around.ledger.count("deaths at a write", 1);
            self.trapped.remove(&host).map(|(down, fault)| {
                self.count_fault(fault);
                down
            })
        } else {
            self.restarting.remove(&host)
        };
        if down.is_none() {
            self.around.ledger.count("processes ended by themselves", 1);
        }
        let down = down.unwrap_or(SUPERVISOR_PAUSE);
        self.schedule(self.now + down, Action::Start(host));
    }

    /// Ends all faults and starts every node: from here on everything must become well.
    pub fn heal(&mut self) {
        self.around.ledger.event(format_args!("heal"));
        self.healed = true;
        self.actions.clear();
        self.trapped.clear();
        self.around.network.end_all_faults();
        self.around.network.set_weather(NetworkPlan {
            loss: 0.0,
            ..self.plan.network
        });
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            node.set_slowness(1);
            node.resume(self.now);
            if node.platter.calm() {
                // The store refuses everything until it is opened again.
                self.crash_node(Host(number), End::Process);
            }
            self.start_node(Host(number));
        }
    }

    // ---- time and results -----------------------------------------------------------------

    /// Since the world began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Since the phase with faults began; zero before.
    #[must_use]
    pub fn safety_elapsed(&self) -> Duration {
        self.safety_began
            .map_or(Duration::ZERO, |began| self.now - began)
    }

    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Hash of everything that has happened, hexadecimal.
    #[must_use]
    pub fn trace(&self) -> String {
        self.around.ledger.trace().hash()
    }

    /// Events in the trace.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.around.ledger.trace().events()
    }

    /// Adds an event to the trace.
    pub fn note(&self, what: &str) {
        self.around.ledger.event(format_args!("{what}"));
    }

    /// What the run came by so far, the node's own counters included.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let mut coverage = self.around.ledger.coverage();
        for (name, count) in thread::probes().counts() {
            coverage.add(name, count);
        }
        coverage
    }

    /// Faults that found something to harm, by kind.
    #[must_use]
    pub fn faults(&self) -> &BTreeMap<&'static str, u64> {
        &self.faults_by_kind
    }

    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.faults_injected
    }

    /// Panics in nodes and clients, where and why. None are expected, ever.
    #[must_use]
    pub fn panics(&self) -> &[String] {
        &self.panics
    }

    // ---- clients --------------------------------------------------------------------------

    /// A client on the machine of number `number` (below 60,000), with the library's settings.
    pub fn client(&mut self, number: usize) -> ClientContext {
        // Each client begins with another node.
        self.client_with(number, number, |builder| builder)
    }

    /// As [`World::client`], beginning with a given node, and with other settings.
    pub fn client_with(
        &mut self,
        number: usize,
        first: usize,
        setup: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> ClientContext {
        let mut endpoints: Vec<String> = self
            .nodes
            .iter()
            .map(|node| client_address(node.host))
            .collect();
        let first = first % endpoints.len().max(1);
        endpoints.rotate_left(first);
        let around = &self.around;
        let host = self
            .clients
            .entry(number)
            .or_insert_with(|| ClientHost::new(number, around));
        host.context(around, endpoints, setup)
    }

    /// Runs something on a client's machine.
    pub fn spawn_client(&mut self, number: usize, work: impl Future<Output = ()> + Send + 'static) {
        let around = &self.around;
        let host = self
            .clients
            .entry(number)
            .or_insert_with(|| ClientHost::new(number, around));
        host.spawn(work);
    }

    /// Ends the processes of clients that have nothing more to do.
    pub fn dismiss_clients(&mut self, numbers: std::ops::RangeInclusive<usize>) {
        let numbers: Vec<usize> = self.clients.range(numbers).map(|(at, _)| *at).collect();
        for number in numbers {
            if let Some(host) = self.clients.remove(&number) {
                host.end(&self.around);
            }
        }
    }

    /// Tasks of clients that are not over.
    #[must_use]
    pub fn client_tasks(&self) -> usize {
        self.clients.values().map(ClientHost::running).sum()
    }

    // ---- nodes ----------------------------------------------------------------------------

    /// Nodes that there are, whether up or down.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that serve clients now.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_serving()).count()
    }

    #[must_use]
    pub fn is_up(&self, host: Host) -> bool {
        self.nodes
            .get(host.0)
            .is_some_and(|node| node.is_up() && !node.is_paused())
    }

    /// Why a node's last process ended by itself, if one did.
    #[must_use]
    pub fn failure(&self, host: Host) -> Option<&str> {
        self.nodes.get(host.0)?.failure.as_deref()
    }

    fn new_node(&mut self) -> Host {
        let host = Host(self.nodes.len());
        let offset = self.plan.clock_offsets.get(host.0).copied();
        self.nodes.push(Node::new(host, offset.unwrap_or_default()));
        host
    }

    fn add_node(&mut self) {
        let host = self.new_node();
        self.start_node(host);
    }

    fn node_mut(&mut self, host: Host) -> Option<&mut Node> {
        self.nodes.get_mut(host.0)
    }

    fn start_node(&mut self, host: Host) {
        let peers = self.nodes.len();
        if let Some(node) = self.nodes.get_mut(host.0) {
            node.start(&self.around, peers);
        }
    }

    fn crash_node(&mut self, host: Host, end: End) {
        if let Some(node) = self.nodes.get_mut(host.0) {
            node.crash(&self.around, end);
        }
    }

    fn resume_node(&mut self, host: Host) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(host.0) {
            node.resume(now);
        }
    }

    /// A generator for one use that draws an unknown number of times.
    fn draw_generator(&mut self) -> StdRng {
        generator(self.generator.random(), "drawn", 0)
    }

    fn coin(&mut self) -> bool {
        self.generator.random_bool(0.5)
    }
}

fn create_request(space: &SpacePlan) -> CreateSpaceRequest {
    CreateSpaceRequest {
        name: space.name.clone(),
        dimension: space.dimension,
        metric: Metric::Cosine.into(),
        partitions: space.partitions,
        replicas: space.replicas,
        if_not_exists: true,
        ..Default::default()
    }
}
