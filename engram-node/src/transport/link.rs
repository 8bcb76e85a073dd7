//! Outgoing Raft messages: one stream to each node, shared by all groups.
//!
//! ```text
//! idle --first message--> connecting --stream open--> up --stream broken--+
//!            ^                 |                                          |
//!            +-- wait 50..200 ms, refusing messages <-- failed -----------+
//! ```
//!
//! Messages that are ready together travel in one frame, small ones before great ones. Each call
//! waits for its own answer: a group whose answer is late delays no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_client::RaftClient;
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::{RaftFrame, RaftMessage};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::LocalNode;
use super::peers::{MESSAGE_BYTES_MAX, Peers};
use crate::seams::Seams;

/// Messages that wait to be sent to one node.
const SMALL_QUEUE_MAX: usize = 4_096;
const GREAT_QUEUE_MAX: usize = 256;
/// A message of at least so many bytes is a great one.
const GREAT_BYTES: usize = 64 << 10;
/// Bytes of messages in one frame before it is closed.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Messages in one frame.
pub(super) const FRAME_MESSAGES_MAX: usize = 1_024;
/// Frames that wait for the connection.
pub(super) const FRAMES_WAITING_MAX: usize = 4;
/// How long a stream may take to open.
const OPEN_WAIT: Duration = Duration::from_millis(1_000);
/// Pause after a failed or broken connection: the first, and what doubling ends at.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Why a call had no answer. Whether it had an effect is unknown in each case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable { node: NodeId, reason: String },
    #[error("node {node} did not answer within {waited:?}")]
    Timeout { node: NodeId, waited: Duration },
}

/// The links to all nodes, made when first used. Clones share them.
#[derive(Clone)]
pub struct Links {
    seams: Seams,
    peers: Peers,
    local: LocalNode,
    links: Arc<Mutex<BTreeMap<NodeId, Link>>>,
}

impl Links {
    #[must_use]
    pub fn new(seams: Seams, peers: Peers, local: LocalNode) -> Self {
        Self {
            seams,
            peers,
            local,
            links: Arc::default(),
        }
    }

    #[must_use]
    pub fn to(&self, node: NodeId) -> Link {
        let mut links = self.links.lock();
        links
            .entry(node)
            .or_insert_with(|| Link::start(self, node))
            .clone()
    }

    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    #[must_use]
    pub fn local(&self) -> LocalNode {
        self.local
    }
}

/// The stream to one node. Clones share it; it ends when all are gone.
#[derive(Clone)]
pub struct Link {
    node: NodeId,
    seams: Seams,
    small: mpsc::Sender<RaftMessage>,
    great: mpsc::Sender<RaftMessage>,
    waiting: Arc<Waiting>,
}

/// Calls without an answer yet, by correlation.
#[derive(Default)]
struct Waiting {
    next: AtomicU64,
    calls: Mutex<HashMap<u64, oneshot::Sender<Result<Body, String>>>>,
}

impl Waiting {
    fn contains(&self, correlation: u64) -> bool {
        self.calls.lock().contains_key(&correlation)
    }

    fn answer(&self, message: RaftMessage) {
        let call = self.calls.lock().remove(&message.correlation);
        if let (Some(call), Some(body)) = (call, message.body) {
            // The caller may just have given up.
            drop(call.send(Ok(body)));
        }
    }

    fn fail_all(&self, reason: &str) {
        for (_, call) in std::mem::take(&mut *self.calls.lock()) {
            drop(call.send(Err(reason.to_owned())));
        }
    }
}

/// Forgets a call when its caller goes away.
struct Forget<'a>(&'a Waiting, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.calls.lock().remove(&self.1);
    }
}

impl Link {
    fn start(links: &Links, node: NodeId) -> Self {
        let (small, small_receiver) = mpsc::channel(SMALL_QUEUE_MAX);
        let (great, great_receiver) = mpsc::channel(GREAT_QUEUE_MAX);
        let waiting = Arc::new(Waiting::default());
        let task = Task {
            node,
            seams: links.seams.clone(),
            peers: links.peers.clone(),
            local: links.local,
            small: small_receiver,
            great: great_receiver,
            waiting: Arc::clone(&waiting),
        };
        links.seams.spawn("raft-link", task.run());
        Self {
            node,
            seams: links.seams.clone(),
            small,
            great,
            waiting,
        }
    }

    /// Sends a request of a group and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`]; whether the request had an effect is unknown then.
    pub async fn call(
        &self,
        group: GroupId,
        body: Body,
        wait: Duration,
    ) -> Result<Body, CallError> {
        let correlation = self.waiting.next.fetch_add(1, Ordering::Relaxed);
        let message = RaftMessage {
            correlation,
            group: group.0,
            body: Some(body),
        };
        let (sender, answer) = oneshot::channel();
        self.waiting.calls.lock().insert(correlation, sender);
        let _forget = Forget(&self.waiting, correlation);
        let queue = if message.encoded_len() < GREAT_BYTES {
            &self.small
        } else {
            &self.great
        };
        if queue.try_send(message).is_err() {
            metrics::counter!("engram_raft_link_queue_full_total").increment(1);
            return Err(self.unreachable("too many messages wait for it"));
        }
        match self.seams.timeout(wait, answer).await {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(reason))) => Err(self.unreachable(&reason)),
            Ok(Err(_)) => Err(self.unreachable("the link has ended")),
            Err(timed_out) => Err(CallError::Timeout {
                node: self.node,
                waited: timed_out.0,
            }),
        }
    }

    fn unreachable(&self, reason: &str) -> CallError {
        CallError::Unreachable {
            node: self.node,
            reason: reason.to_owned(),
        }
    }
}

struct Task {
    node: NodeId,
    seams: Seams,
    peers: Peers,
    local: LocalNode,
    small: mpsc::Receiver<RaftMessage>,
    great: mpsc::Receiver<RaftMessage>,
    waiting: Arc<Waiting>,
}

impl Task {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        while let Some(first) = self.next_message().await {
            let began = self.seams.clock.monotonic();
            let Err(reason) = self.session(first).await else {
                return;
            };
            tracing::debug!(node = %self.node, reason, "raft stream ended");
            self.waiting.fail_all(&reason);
            // A stream that held for a while was a good one: begin with a short pause again.
            let held = self.seams.clock.monotonic().saturating_sub(began);
            pause = if held > OPEN_WAIT * 2 {
                PAUSE_MIN
            } else {
                pause
            };
            self.refuse_during(pause, &reason).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn next_message(&mut self) -> Option<RaftMessage> {
        tokio::select! {
            biased;
            message = self.small.recv() => message,
            message = self.great.recv() => message,
        }
    }

    /// Opens a stream and sends until it breaks, or until the link is given up (`Ok`).
    async fn session(&mut self, first: RaftMessage) -> Result<(), String> {
        let opening_at = self.seams.clock.monotonic();
        let channel = self
            .peers
            .channel(self.node)
            .map_err(|error| error.to_string())?;
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (frames, outgoing) = mpsc::channel(FRAMES_WAITING_MAX);
        let hello = RaftFrame {
            hello: Some(self.local.hello_to(self.node)),
            messages: vec![],
        };
        frames
            .send(hello)
            .await
            .map_err(|error| error.to_string())?;
        let opening = client.messages(ReceiverStream::new(outgoing));
        let answers = self.seams.timeout(OPEN_WAIT, opening).await;
        let answers = answers.map_err(|late| {
            self.peers.dial_again(self.node, opening_at);
            format!("the stream did not open within {:?}", late.0)
        })?;
        let answers = answers.map_err(|status| describe(&status))?.into_inner();
        let (ended, mut end) = oneshot::channel();
        let reading = read_answers(answers, Arc::clone(&self.waiting), ended);
        self.seams.spawn("raft-link-answers", reading);

        let mut first = Some(first);
        loop {
            let message = match first.take() {
                Some(message) => message,
                None => tokio::select! {
                    biased;
                    reason = &mut end => return Err(end_reason(reason)),
                    message = self.next_message() => match message {
                        Some(message) => message,
                        None => return Ok(()),
                    },
                },
            };
            let frame = self.frame(message);
            tokio::select! {
                biased;
                reason = &mut end => return Err(end_reason(reason)),
                sent = frames.send(frame) => sent.map_err(|_| "the stream was closed")?,
            }
        }
    }

    /// One frame of `first` and what else is ready. Calls that were given up are left out.
    fn frame(&mut self, first: RaftMessage) -> RaftFrame {
        let mut bytes = first.encoded_len();
        let mut messages = vec![first];
        while bytes < FRAME_BYTES_MAX && messages.len() < FRAME_MESSAGES_MAX {
            let Ok(next) = self.small.try_recv().or_else(|_| self.great.try_recv()) else {
                break;
            };
            bytes += next.encoded_len();
            messages.push(next);
        }
        messages.retain(|message| self.waiting.contains(message.correlation));
        metrics::histogram!("engram_raft_frame_messages").record(messages.len() as f64);
        RaftFrame {
            hello: None,
            messages,
        }
    }

    /// Answers everything with `reason` until the pause is over.
    async fn refuse_during(&mut self, pause: Duration, reason: &str) {
        let clock = Arc::clone(&self.seams.clock);
        let mut over = clock.sleep(pause);
        loop {
            tokio::select! {
                biased;
                () = &mut over => return,
                message = self.next_message() => match message {
                    Some(_) => self.waiting.fail_all(reason),
                    // The link was given up: `run` sees it next.
                    None => return,
                },
            }
        }
    }
}

async fn read_answers(
    mut answers: Streaming<RaftFrame>,
    waiting: Arc<Waiting>,
    ended: oneshot::Sender<String>,
) {
    let reason = loop {
        match answers.message().await {
            Ok(Some(frame)) => frame
                .messages
                .into_iter()
                .for_each(|answer| waiting.answer(answer)),
            Ok(None) => break "the stream was closed".to_owned(),
            Err(status) => break describe(&status),
        }
    };
    waiting.fail_all(&reason);
    drop(ended.send(reason));
}

fn end_reason(reason: Result<String, oneshot::error::RecvError>) -> String {
    reason.unwrap_or_else(|_| "the stream's reader has ended".to_owned())
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
