//! Clients: each on a machine of its own, with the real client library.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use engram_client::{Client, ClientBuilder, Connecting, Connection, Machine};
use engram_node::seams::{Clock as _, Entropy as _};
use rand::rngs::StdRng;

use super::network::{End, Place, SimNet};
use super::node::Surroundings;
use super::process::Process;
use super::seams::{Ledger, Life, SimClock, SimEntropy, generator};

/// What a workload has of its client.
pub struct ClientContext {
    pub number: usize,
    pub client: Client,
    pub clock: ClientClock,
    /// For the workload's own draws.
    pub rng: StdRng,
    ledger: Arc<Ledger>,
}

impl ClientContext {
    /// Adds an event to the world's trace, for example an invocation or its answer.
    pub fn note(&self, what: &str) {
        self.ledger
            .event(format_args!("client {} {what}", self.number));
    }
}

/// A client's clock: the time since the world began.
#[derive(Clone)]
pub struct ClientClock(Arc<SimClock>);

impl ClientClock {
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    pub async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}

/// A machine for one client.
pub struct ClientHost {
    number: usize,
    process: Process,
    machine: Arc<SimMachine>,
    life: Arc<Life>,
    running: Arc<AtomicUsize>,
    /// Contexts handed out.
    contexts: u64,
}

/// What the client library takes from its machine.
struct SimMachine {
    clock: Arc<SimClock>,
    entropy: SimEntropy,
    net: SimNet,
}

impl Machine for SimMachine {
    fn wall_millis(&self) -> u64 {
        self.clock.wall_millis()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.entropy.fill(bytes);
    }

    fn connect(&self, address: &str) -> Connecting {
        let (net, address) = (self.net.clone(), address.to_owned());
        Box::pin(async move {
            let stream = net.connect_to(&address).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// Counts a task that runs.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(running))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ClientHost {
    pub fn new(number: usize, around: &Surroundings) -> Self {
        let offset = u16::try_from(number).unwrap_or_else(|_| panic!("too many clients"));
        let place = Place(Place::CLIENTS + offset);
        let life = Life::begin(place, 1);
        around.network.begin(&life);
        let mut seeds = generator(around.seed, "client process", number as u64);
        let process = Process::new(rand::Rng::next_u64(&mut seeds));
        let inside = process.handle().enter();
        let clock = SimClock::new(around.ledger.now(), Arc::new(AtomicI64::new(0)));
        let entropy = generator(around.seed, "client entropy", number as u64);
        let machine = SimMachine {
            clock: Arc::new(clock),
            entropy: SimEntropy::new(entropy),
            net: SimNet::new(Arc::clone(&around.network), Arc::clone(&life)),
        };
        drop(inside);
        Self {
            number,
            process,
            machine: Arc::new(machine),
            life,
            running: Arc::default(),
            contexts: 0,
        }
    }

    pub fn context(
        &mut self,
        around: &Surroundings,
        endpoints: Vec<String>,
        setup: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> ClientContext {
        let _inside = self.process.handle().enter();
        let machine: Arc<dyn Machine> = Arc::clone(&self.machine) as _;
        let builder = Client::builder().endpoints(endpoints).machine(machine);
        let client = setup(builder).build();
        let client = client.unwrap_or_else(|error| panic!("a client of the world: {error}"));
        self.contexts += 1;
        let number = (self.number as u64) << 32 | self.contexts;
        ClientContext {
            number: self.number,
            client,
            clock: ClientClock(Arc::clone(&self.machine.clock)),
            rng: generator(around.seed, "client", number),
            ledger: Arc::clone(&around.ledger),
        }
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::new(&self.running);
        self.process.spawn(async move {
            future.await;
            drop(counted);
        });
    }

    /// Tasks that are not over.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub fn run(&self, length: Duration) {
        self.process.run(length);
    }

    /// The process ends, and its connections with it.
    pub fn end(self, around: &Surroundings) {
        self.life.end();
        around.network.end(&self.life, End::Process);
    }
}
