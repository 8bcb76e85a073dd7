//! This node's part in the spreads that run: participants with their inboxes, frames that came
//! before their start, and the channels by which reports reach the coordinators here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::filter::Filter;
use engram_core::partition::PartitionAdjacency;
use engram_core::planted;
use engram_core::spread::{Frame, Participant, ParticipantError, QueryId, SpreadStart, Step};
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::spread_report_message::Content;
use engram_proto::peer::{SpreadFault, SpreadReportMessage};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::messages::Messenger;
use crate::routing::{Deadline, Links, Router};
use crate::seams::Seams;

/// Queries in which a node takes part at once.
const PARTICIPANTS_MAX: usize = 128;
/// Frames that wait for one participant.
const INBOX_FRAMES_MAX: usize = 1_024;
/// Queries whose frames came before their start, frames of one of them, and how long they wait.
const EARLY_QUERIES_MAX: usize = 256;
const EARLY_FRAMES_MAX: usize = 64;
const EARLY_WAIT: Duration = Duration::from_millis(5_000);
/// Reports that wait for one coordinator.
const REPORTS_MAX: usize = 256;

/// Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    messenger: Messenger,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: HashMap<QueryId, Running>,
    early: HashMap<QueryId, Early>,
    coordinators: HashMap<QueryId, mpsc::Sender<SpreadReportMessage>>,
}

struct Running {
    attempt: u32,
    inbox: mpsc::Sender<Frame>,
}

struct Early {
    until: Deadline,
    frames: Vec<Frame>,
}

type Part = Participant<PartitionAdjacency>;
type StepResult = Result<Step, ParticipantError<engram_core::partition::ReadError>>;

/// The end of a coordinator's listening: reports that come later are dropped.
pub struct Listening {
    registry: Registry,
    query: QueryId,
    pub reports: mpsc::Receiver<SpreadReportMessage>,
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
    pub fn new(router: Router, links: Arc<dyn Links>) -> Self {
        let messenger = Messenger::new(router.seams().clone(), links);
        Self {
            inner: Arc::new(Inner {
                router,
                messenger,
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
    pub(super) fn listen(&self, query: QueryId) -> Listening {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        self.inner.state.lock().coordinators.insert(query, sender);
        Listening {
            registry: self.clone(),
            query,
            reports,
        }
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
        let participant = self.participant(start.clone(), positions)?;
        let (sender, inbox) = mpsc::channel(INBOX_FRAMES_MAX);
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
                let now = |frame: &mut Frame| frame.attempt <= start.attempt;
                for frame in early.frames.extract_if(.., now) {
                    // An inbox holds more frames than may come early.
                    drop(sender.try_send(frame));
                }
            }
            state.early.retain(|_, early| !early.frames.is_empty());
            let running = Running {
                attempt: start.attempt,
                inbox: sender,
            };
            state.running.insert(start.query, running);
        }
        let deadline = Deadline::after(self.seams(), wait);
        let registry = self.clone();
        self.seams().spawn("spread participant", async move {
            registry.run(start, participant, inbox, deadline).await;
        });
        Ok(())
    }

    fn participant(
        &self,
        start: SpreadStart,
        positions: &HashMap<PartitionId, EdgeContext>,
    ) -> Result<Part, String> {
        let here = self.inner.router.here();
        let node = here.node();
        let filter = (!start.filter.is_empty()).then(|| Filter::parse(&start.filter));
        let filter = filter.transpose().map_err(|error| error.to_string())?;
        let own = start
            .participants
            .iter()
            .find(|participant| participant.node == node);
        let own = own.ok_or_else(|| format!("node {node} is not among the participants"))?;
        let mut partitions = Vec::new();
        for plan in &own.partitions {
            let id = plan.partition;
            let replica = here.partition(id);
            let replica = replica.ok_or_else(|| format!("no replica of partition {id}"))?;
            if positions
                .get(&id)
                .is_some_and(|position| !here.covers(&replica, position))
                && !planted!("spread-from-any-state")
            {
                return Err(format!("the replica of partition {id} fell back"));
            }
            let relations = start.parameters.relations.clone();
            partitions.push((
                id,
                replica.adjacency(filter.clone(), relations, start.now_millis),
            ));
        }
        Participant::new(start, node, partitions).map_err(|error| error.to_string())
    }

    /// Gives a frame to its participant, or keeps it for one that has not started.
    ///
    /// # Errors
    /// Why it was not taken; the sender tries again.
    pub fn deliver(&self, frame: Frame) -> Result<(), String> {
        let seams = self.seams();
        let mut state = self.inner.state.lock();
        if let Some(running) = state.running.get(&frame.query) {
            if running.attempt > frame.attempt {
                return Ok(());
            }
            if running.attempt == frame.attempt {
                return match running.inbox.try_send(frame) {
                    Err(mpsc::error::TrySendError::Full(_)) => Err("its inbox is full".into()),
                    // A participant that is over needs no more frames.
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
                };
            }
        }
        state
            .early
            .retain(|_, early| !early.until.has_passed(seams));
        if !state.early.contains_key(&frame.query) && state.early.len() >= EARLY_QUERIES_MAX {
            return Err(format!(
                "{EARLY_QUERIES_MAX} queries wait for their start already"
            ));
        }
        let until = Deadline::after(seams, EARLY_WAIT);
        let early = state.early.entry(frame.query);
        let early = early.or_insert_with(|| Early {
            until,
            frames: Vec::new(),
        });
        if early.frames.len() >= EARLY_FRAMES_MAX {
            return Err(format!(
                "{EARLY_FRAMES_MAX} frames wait for the start already"
            ));
        }
        early.frames.push(frame);
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
        match coordinator.try_send(report) {
            Err(mpsc::error::TrySendError::Full(_)) => Err("too many reports wait".into()),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Runs a participant until it is over, replaced by a later attempt, or out of time.
    async fn run(
        &self,
        start: SpreadStart,
        participant: Part,
        mut inbox: mpsc::Receiver<Frame>,
        deadline: Deadline,
    ) {
        let (mut participant, mut step) = self.stepped(participant, |part| part.begin()).await;
        loop {
            match step {
                Ok(step) => self.send(&start, step, deadline),
                Err(ParticipantError::BadFrame {
                    source_node,
                    reason,
                }) => {
                    tracing::warn!(node = %source_node, reason, "a spread frame makes no sense");
                }
                Err(error) => {
                    let exhausted = matches!(error, ParticipantError::TooManyTargets);
                    self.give_up(&start, error.to_string(), exhausted, deadline);
                }
            }
            if participant.is_over() {
                break;
            }
            let left = deadline.left(self.seams());
            let Ok(Some(frame)) = self.seams().timeout(left, inbox.recv()).await else {
                break;
            };
            (participant, step) = self.stepped(participant, |part| part.on_frame(frame)).await;
        }
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
    async fn stepped(
        &self,
        mut participant: Part,
        step: impl FnOnce(&mut Part) -> StepResult + Send + 'static,
    ) -> (Part, StepResult) {
        self.seams()
            .blocking(move || {
                let result = step(&mut participant);
                (participant, result)
            })
            .await
    }

    /// Sends what a step emitted, each message by a task of its own, until it is taken.
    fn send(&self, start: &SpreadStart, step: Step, deadline: Deadline) {
        for (node, frame) in step.frames {
            let (registry, start) = (self.clone(), start.clone());
            self.seams().spawn("spread frame", async move {
                let sent = registry.inner.messenger.frame(node, &frame, deadline).await;
                if let Err(reason) = sent {
                    let reason = format!("node {node} takes no frames: {reason}");
                    registry.give_up(&start, reason, false, deadline);
                }
            });
        }
        if let Some(report) = step.report {
            self.tell(start, Content::Report(report.encode().into()), deadline);
        }
    }

    fn give_up(&self, start: &SpreadStart, reason: String, exhausted: bool, deadline: Deadline) {
        self.tell(
            start,
            Content::Fault(SpreadFault { reason, exhausted }),
            deadline,
        );
    }

    /// Tells the coordinator, who may be here.
    fn tell(&self, start: &SpreadStart, content: Content, deadline: Deadline) {
        let message = SpreadReportMessage {
            query: start.query.0.to_vec().into(),
            attempt: start.attempt,
            source: self.inner.router.local().0,
            content: Some(content),
        };
        let (registry, coordinator): (Self, NodeId) = (self.clone(), start.coordinator);
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
}
