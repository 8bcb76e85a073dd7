//! This node's part in the spreads that run: participants with their inboxes, words that came
//! before their start, and the channels by which reports reach the coordinators here. Metrics, for
//! each participant that ended: `engram_spread_sent_bytes`, `engram_spread_sent_messages`,
//! `engram_spread_steps`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::spread::{Control, HopStats, QueryId, SpreadStart};
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::spread_report_message::Content;
use engram_proto::peer::{SpreadFault, SpreadReportMessage};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;

use super::messages::Messenger;
use super::part::{Doing, Part, Trouble, Word};
use crate::replica::Hands;
use crate::routing::{Deadline, Links, Router};
use crate::seams::Seams;

/// Queries in which a node takes part at once.
const PARTICIPANTS_MAX: usize = 128;
/// Queries that a node coordinates at once.
const COORDINATORS_MAX: usize = 256;
/// Words that wait for one participant.
const INBOX_WORDS_MAX: usize = 1_024;
/// Queries whose words came before their start, words of one of them, and how long they wait.
const EARLY_QUERIES_MAX: usize = 256;
const EARLY_WORDS_MAX: usize = 64;
const EARLY_WAIT: Duration = Duration::from_millis(5_000);
/// Reports that wait for one coordinator.
const REPORTS_MAX: usize = 256;
/// How long a word of a coordinator is offered to a participant.
const CONTROL_WAIT: Duration = Duration::from_millis(2_500);

/// Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    messenger: Messenger,
    /// Cores for the hops.
    hands: Arc<Hands>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: HashMap<QueryId, Running>,
    early: HashMap<QueryId, Early>,
    coordinators: HashMap<QueryId, mpsc::Sender<Heard>>,
}

struct Running {
    attempt: u32,
    inbox: mpsc::Sender<Word>,
}

struct Early {
    until: Deadline,
    words: Vec<Word>,
}

/// What reaches a coordinator.
pub enum Heard {
    Report(SpreadReportMessage),
    /// A hop that is complete everywhere, as this node's participant learned it.
    Hop {
        attempt: u32,
        stats: HopStats,
    },
}

/// What one participant has sent.
#[derive(Default)]
struct Traffic {
    bytes: u64,
    messages: u64,
    steps: u64,
}

impl Traffic {
    fn record(&self) {
        metrics::histogram!("engram_spread_sent_bytes").record(self.bytes as f64);
        metrics::histogram!("engram_spread_sent_messages").record(self.messages as f64);
        metrics::histogram!("engram_spread_steps").record(self.steps as f64);
    }
}

/// The end of a coordinator's listening: reports that come later are dropped.
pub struct Listening {
    registry: Registry,
    query: QueryId,
    pub heard: mpsc::Receiver<Heard>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.registry
            .inner
            .state
            .lock()
            .coordinators
            .remove(&self.query);
    }
}

impl Registry {
    #[must_use]
    pub fn new(router: Router, links: Arc<dyn Links>, attempt_wait: Duration) -> Self {
        let messenger = Messenger::new(router.seams().clone(), links, attempt_wait);
        Self {
            inner: Arc::new(Inner {
                router,
                messenger,
                hands: Arc::new(Hands::new(
                    std::thread::available_parallelism().map_or(1, usize::from),
                )),
                state: Mutex::default(),
            }),
        }
    }

    fn seams(&self) -> &Seams {
        self.inner.router.seams()
    }

    pub(super) fn messenger(&self) -> &Messenger {
        &self.inner.messenger
    }

    /// Listens for the reports of a query that this node coordinates.
    ///
    /// # Errors
    /// When it coordinates too many already.
    pub(super) fn listen(&self, query: QueryId) -> Result<Listening, String> {
        let (sender, heard) = mpsc::channel(REPORTS_MAX);
        let mut state = self.inner.state.lock();
        if state.coordinators.len() >= COORDINATORS_MAX {
            return Err(format!(
                "the node coordinates {COORDINATORS_MAX} spreads already"
            ));
        }
        state.coordinators.insert(query, sender);
        Ok(Listening {
            registry: self.clone(),
            query,
            heard,
        })
    }

    /// Takes part in a query from now on. A later attempt replaces an earlier one.
    ///
    /// # Errors
    /// Why this node cannot take part.
    pub fn start(
        &self,
        start: SpreadStart,
        positions: &HashMap<PartitionId, EdgeContext>,
        wait: Duration,
    ) -> Result<(), String> {
        let crew: Arc<Hands> = Arc::clone(&self.inner.hands);
        let part = Part::new(self.inner.router.here(), start.clone(), positions, crew)?;
        let (sender, inbox) = mpsc::channel(INBOX_WORDS_MAX);
        {
            let mut state = self.inner.state.lock();
            let held = state
                .running
                .get(&start.query)
                .map(|running| running.attempt);
            if held.is_some_and(|attempt| attempt >= start.attempt) {
                // The start came twice, or late.
                return Ok(());
            }
            if held.is_none() && state.running.len() >= PARTICIPANTS_MAX {
                return Err(format!(
                    "{PARTICIPANTS_MAX} spreads run on the node already"
                ));
            }
            if let Some(early) = state.early.get_mut(&start.query) {
                let now = |word: &mut Word| word.attempt() <= start.attempt;
                for word in early.words.extract_if(.., now) {
                    // An inbox holds more words than may come early.
                    drop(sender.try_send(word));
                }
            }
            state.early.retain(|_, early| !early.words.is_empty());
            let running = Running {
                attempt: start.attempt,
                inbox: sender,
            };
            state.running.insert(start.query, running);
        }
        let deadline = Deadline::after(self.seams(), wait);
        let registry = self.clone();
        self.seams().spawn("spread participant", async move {
            registry.run(start, part, inbox, deadline).await;
        });
        Ok(())
    }

    /// Gives a word to its participant, or keeps it for one that has not started.
    ///
    /// # Errors
    /// Why it was not taken; the sender tries again.
    pub fn deliver(&self, word: Word) -> Result<(), String> {
        let seams = self.seams();
        let (query, attempt) = (word.query(), word.attempt());
        let mut state = self.inner.state.lock();
        if let Some(running) = state.running.get(&query) {
            if running.attempt > attempt {
                return Ok(());
            }
            if running.attempt == attempt {
                return match running.inbox.try_send(word) {
                    Err(mpsc::error::TrySendError::Full(_)) => Err("its inbox is full".into()),
                    // A participant that is over needs no more words.
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
                };
            }
        }
        state
            .early
            .retain(|_, early| !early.until.has_passed(seams));
        if let Word::Control(control) = &word
            && control.is_over
        {
            // The query ended before it began here.
            return Ok(());
        }
        if !state.early.contains_key(&query) && state.early.len() >= EARLY_QUERIES_MAX {
            return Err(format!(
                "{EARLY_QUERIES_MAX} queries wait for their start already"
            ));
        }
        let until = Deadline::after(seams, EARLY_WAIT);
        let early = state.early.entry(query);
        let early = early.or_insert_with(|| Early {
            until,
            words: Vec::new(),
        });
        if early.words.len() >= EARLY_WORDS_MAX {
            return Err(format!(
                "{EARLY_WORDS_MAX} words wait for the start already"
            ));
        }
        early.words.push(word);
        Ok(())
    }

    /// Gives a report to the coordinator here; none listens any more when the query is over.
    ///
    /// # Errors
    /// When too many wait; the sender tries again.
    pub fn report(&self, report: SpreadReportMessage) -> Result<(), String> {
        let Ok(query) = report.query.as_ref().try_into() else {
            return Err("the query's id must have 16 bytes".into());
        };
        let state = self.inner.state.lock();
        let Some(coordinator) = state.coordinators.get(&QueryId(query)) else {
            return Ok(());
        };
        match coordinator.try_send(Heard::Report(report)) {
            Err(mpsc::error::TrySendError::Full(_)) => Err("too many reports wait".into()),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Runs a participant until its coordinator lets it go, a later attempt replaces it, or its time
    /// is up.
    async fn run(
        &self,
        start: SpreadStart,
        mut part: Part,
        mut inbox: mpsc::Receiver<Word>,
        deadline: Deadline,
    ) {
        let (mut word, mut traffic) = (None, Traffic::default());
        loop {
            let result;
            (part, result) = self.stepped(part, word.take()).await;
            traffic.steps += 1;
            match result {
                Ok(doing) => self.send(&start, doing, deadline, &mut traffic),
                Err(Trouble::BadWord { source, reason }) => {
                    tracing::warn!(node = %source, reason, "a word of a spread makes no sense");
                }
                Err(Trouble::Lost { reason, exhausted }) => {
                    let node = self.inner.router.local();
                    self.give_up(&start, node, reason, exhausted, deadline);
                    break;
                }
            }
            if part.is_forgotten() {
                break;
            }
            word = if part.has_work() {
                inbox.try_recv().ok()
            } else {
                let left = deadline.left(self.seams());
                match self.seams().timeout(left, inbox.recv()).await {
                    Ok(Some(word)) => Some(word),
                    Ok(None) | Err(_) => break,
                }
            };
        }
        traffic.record();
        let mut state = self.inner.state.lock();
        if state
            .running
            .get(&start.query)
            .is_some_and(|held| held.attempt == start.attempt)
        {
            state.running.remove(&start.query);
        }
    }

    /// One step off the async threads: it reads the store.
    async fn stepped(&self, mut part: Part, word: Option<Word>) -> (Part, Result<Doing, Trouble>) {
        self.seams()
            .blocking(move || {
                let result = part.step(word);
                (part, result)
            })
            .await
    }

    /// Sends what a step emitted, each message by a task of its own, until it is taken.
    fn send(&self, start: &SpreadStart, doing: Doing, deadline: Deadline, traffic: &mut Traffic) {
        for (node, word) in doing.words {
            let message = word.message();
            traffic.bytes += message.encoded_len() as u64;
            traffic.messages += 1;
            let (registry, start) = (self.clone(), start.clone());
            self.seams().spawn("spread word", async move {
                let messenger = &registry.inner.messenger;
                if let Err(reason) = messenger.word(node, message, deadline).await {
                    let reason = format!("node {node} takes no words: {reason}");
                    registry.give_up(&start, node, reason, false, deadline);
                }
            });
        }
        let attempt = start.attempt;
        for stats in doing.hops {
            let state = self.inner.state.lock();
            if let Some(coordinator) = state.coordinators.get(&start.query) {
                // A hop that nobody hears of now is told with the result.
                drop(coordinator.try_send(Heard::Hop { attempt, stats }));
            }
        }
        if let Some(report) = doing.report {
            self.tell(start, report, deadline, traffic);
        }
    }

    /// Says that `node` is to blame for what cannot go on.
    fn give_up(
        &self,
        start: &SpreadStart,
        node: NodeId,
        reason: String,
        exhausted: bool,
        deadline: Deadline,
    ) {
        let fault = SpreadFault {
            reason,
            exhausted,
            node: node.0,
        };
        let mut traffic = Traffic::default();
        self.tell(start, Content::Fault(fault), deadline, &mut traffic);
    }

    /// Tells the coordinator, who may be here.
    fn tell(
        &self,
        start: &SpreadStart,
        content: Content,
        deadline: Deadline,
        traffic: &mut Traffic,
    ) {
        let message = SpreadReportMessage {
            query: start.query.0.to_vec().into(),
            attempt: start.attempt,
            source: self.inner.router.local().0,
            content: Some(content),
        };
        let (registry, coordinator): (Self, NodeId) = (self.clone(), start.coordinator);
        if coordinator != self.inner.router.local() {
            traffic.bytes += message.encoded_len() as u64;
            traffic.messages += 1;
        }
        self.seams().spawn("spread report", async move {
            let told = if coordinator == registry.inner.router.local() {
                registry.report(message)
            } else {
                registry
                    .inner
                    .messenger
                    .report(coordinator, message, deadline)
                    .await
            };
            if let Err(reason) = told {
                tracing::debug!(node = %coordinator, reason, "a spread report was not taken");
            }
        });
    }

    /// Sends words of a coordinator here, each by a task of its own. One that is not taken is not
    /// missed: the participant has gone, or goes at its deadline.
    pub(super) fn direct(&self, controls: Vec<(NodeId, Control)>) {
        let deadline = Deadline::after(self.seams(), CONTROL_WAIT);
        for (node, control) in controls {
            let (registry, word) = (self.clone(), Word::Control(control));
            self.seams().spawn("spread control", async move {
                let told = if node == registry.inner.router.local() {
                    registry.deliver(word)
                } else {
                    let message = word.message();
                    let messenger = &registry.inner.messenger;
                    messenger.word(node, message, deadline).await
                };
                if let Err(reason) = told {
                    tracing::debug!(node = %node, reason, "a word to a participant was not taken");
                }
            });
        }
    }

    /// Queries that this node has a part in or coordinates, and words that wait for their start.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let state = self.inner.state.lock();
        (
            state.running.len(),
            state.coordinators.len(),
            state.early.len(),
        )
    }
}
