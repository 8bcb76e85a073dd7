//! Incoming Raft messages and snapshots: the peer port's gRPC service.
//!
//! Every message is handled in a task of its own and answered when it is done, at most
//! [`REQUESTS_MAX`] of one stream at a time. A stream that was meant for another node, or comes
//! from another cluster, is refused before its first message is looked at.

use std::sync::Arc;

use async_trait::async_trait;
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::raft_server::{Raft, RaftServer};
use engram_proto::peer::raft_snapshot_part::Part;
use engram_proto::peer::{
    RaftFrame, RaftHello, RaftMessage, RaftSnapshotAnswer, RaftSnapshotChunk, RaftSnapshotEnd,
    RaftSnapshotHead, RaftSnapshotOffset, RaftSnapshotPart,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::LocalNode;
use super::link::{FRAME_MESSAGES_MAX, FRAMES_WAITING_MAX};
use super::peers::MESSAGE_BYTES_MAX;
use crate::seams::Seams;

/// Requests of one stream that are being handled.
const REQUESTS_MAX: usize = 4_096;

/// What handles Raft's messages: `consensus`.
#[async_trait]
pub trait RaftHandler: Send + Sync + 'static {
    /// Handles a request and returns its answer.
    async fn handle(&self, from: NodeId, group: GroupId, request: Body) -> Body;

    /// Begins a snapshot, or goes on with one of which a broken stream has brought a part.
    ///
    /// # Errors
    /// When it cannot be received, or the part before its offset is not there.
    async fn begin_snapshot(
        &self,
        from: NodeId,
        head: RaftSnapshotHead,
    ) -> Result<Box<dyn SnapshotReceiver>, Status>;

    /// Bytes of that snapshot that are there from a broken stream.
    fn snapshot_offset(&self, from: NodeId, head: &RaftSnapshotHead) -> u64;

    /// A stream from `node` said something: it is alive.
    fn heard_from(&self, node: NodeId);
}

/// A snapshot that is being received. Dropped before its end, it leaves nothing behind.
#[async_trait]
pub trait SnapshotReceiver: Send {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// When it is damaged, is not the next one, or cannot be stored.
    async fn chunk(&mut self, chunk: RaftSnapshotChunk) -> Result<(), Status>;

    /// All chunks are there: checks their hash and installs the snapshot.
    ///
    /// # Errors
    /// When the hash is wrong, or the snapshot cannot be installed.
    async fn finish(self: Box<Self>, end: RaftSnapshotEnd) -> Result<RaftSnapshotAnswer, Status>;

    /// The stream broke: keeps what has come, for another stream to go on with.
    fn keep(self: Box<Self>);
}

/// The gRPC service `engram.peer.v1.Raft`.
#[derive(Clone)]
pub struct RaftService {
    seams: Seams,
    local: LocalNode,
    handler: Arc<dyn RaftHandler>,
}

impl RaftService {
    #[must_use]
    pub fn new(seams: Seams, local: LocalNode, handler: Arc<dyn RaftHandler>) -> Self {
        Self {
            seams,
            local,
            handler,
        }
    }

    /// Ready to be added to a tonic server.
    #[must_use]
    pub fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn check(&self, hello: Option<RaftHello>) -> Result<NodeId, Status> {
        let hello = hello.ok_or_else(|| Status::invalid_argument("the stream said no hello"))?;
        if hello.cluster[..] != self.local.cluster {
            return Err(Status::failed_precondition(
                "this node belongs to another cluster",
            ));
        }
        if hello.to != self.local.node.0 {
            let what = format!("this is node {}, not node {}", self.local.node, hello.to);
            return Err(Status::failed_precondition(what));
        }
        Ok(NodeId(hello.from))
    }

    /// Reads requests until the stream ends and starts each of them.
    async fn read_requests(
        self,
        from: NodeId,
        mut requests: Streaming<RaftFrame>,
        answers: mpsc::Sender<RaftMessage>,
    ) {
        let running = Arc::new(Semaphore::new(REQUESTS_MAX));
        while let Ok(Some(frame)) = requests.message().await {
            self.handler.heard_from(from);
            for message in frame.messages {
                let Ok(permit) = Arc::clone(&running).acquire_owned().await else {
                    return;
                };
                let (handler, answers) = (Arc::clone(&self.handler), answers.clone());
                self.seams.spawn("raft-request", async move {
                    let RaftMessage {
                        correlation,
                        group,
                        body,
                    } = message;
                    if let Some(request) = body {
                        let body = handler.handle(from, GroupId(group), request).await;
                        let answer = RaftMessage {
                            correlation,
                            group,
                            body: Some(body),
                        };
                        // The stream may be gone: the caller asks again.
                        drop(answers.send(answer).await);
                    }
                    drop(permit);
                });
            }
        }
    }
}

impl RaftService {
    /// The chunks of a snapshot after its head.
    async fn receive(
        self,
        from: NodeId,
        mut parts: Streaming<RaftSnapshotPart>,
        mut receiver: Box<dyn SnapshotReceiver>,
    ) -> Result<Response<RaftSnapshotAnswer>, Status> {
        loop {
            self.handler.heard_from(from);
            let part = match parts.message().await {
                Ok(part) => part.and_then(|part| part.part),
                Err(broken) => {
                    receiver.keep();
                    return Err(broken);
                }
            };
            match part {
                Some(Part::Chunk(chunk)) => receiver.chunk(chunk).await?,
                Some(Part::End(end)) => return receiver.finish(end).await.map(Response::new),
                Some(Part::Head(_)) => {
                    return Err(Status::invalid_argument("a snapshot begins once"));
                }
                None => {
                    receiver.keep();
                    return Err(Status::unavailable("a snapshot ended too early"));
                }
            }
        }
    }
}

/// Puts answers that are ready together into one frame.
async fn write_answers(
    mut answers: mpsc::Receiver<RaftMessage>,
    frames: mpsc::Sender<Result<RaftFrame, Status>>,
) {
    while let Some(first) = answers.recv().await {
        let mut messages = vec![first];
        while messages.len() < FRAME_MESSAGES_MAX
            && let Ok(next) = answers.try_recv()
        {
            messages.push(next);
        }
        if frames
            .send(Ok(RaftFrame {
                hello: None,
                messages,
            }))
            .await
            .is_err()
        {
            return;
        }
    }
}

#[async_trait]
impl Raft for RaftService {
    type MessagesStream = BoxStream<'static, Result<RaftFrame, Status>>;

    async fn messages(
        &self,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<Self::MessagesStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap_or_default();
        let from = self.check(first.hello)?;
        let (answers, ready) = mpsc::channel(REQUESTS_MAX);
        let (frames, outgoing) = mpsc::channel(FRAMES_WAITING_MAX);
        self.seams.spawn(
            "raft-requests",
            self.clone().read_requests(from, requests, answers),
        );
        self.seams
            .spawn("raft-answers", write_answers(ready, frames));
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<RaftSnapshotPart>>,
    ) -> Result<Response<RaftSnapshotAnswer>, Status> {
        let mut parts = request.into_inner();
        let Some(Part::Head(head)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let from = self.check(head.hello.clone())?;
        let receiver = self.handler.begin_snapshot(from, head).await?;
        // In a task of its own: this future is dropped with the connection, and with it would go
        // whatever chunk is just being written.
        let (answer, answered) = oneshot::channel();
        let service = self.clone();
        self.seams.spawn("raft-snapshot-receive", async move {
            drop(answer.send(service.receive(from, parts, receiver).await));
        });
        let ended = answered.await;
        ended.unwrap_or_else(|_| Err(Status::unavailable("this node is stopping")))
    }

    async fn snapshot_offset(
        &self,
        request: Request<RaftSnapshotHead>,
    ) -> Result<Response<RaftSnapshotOffset>, Status> {
        let head = request.into_inner();
        let from = self.check(head.hello.clone())?;
        let offset = self.handler.snapshot_offset(from, &head);
        Ok(Response::new(RaftSnapshotOffset { offset }))
    }
}
