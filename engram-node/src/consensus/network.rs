//! What openraft sends, over the node's links. One [`Network`] per group and target; all of them
//! share the target's one stream.

use std::future::Future;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_client::RaftClient;
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::raft_snapshot_part::Part;
use engram_proto::peer::{
    RaftSnapshotAnswer, RaftSnapshotChunk, RaftSnapshotEnd, RaftSnapshotHead, RaftSnapshotPart,
};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::runtime::{PeerNode, Snapshot, Types, Vote};
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::{codec, wire};
use crate::seams::Seams;
use crate::transport::{CallError, Link, Links, PeerChannel};

/// Bytes of a snapshot in one part, and parts that wait for the connection.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_WAITING_MAX: usize = 4;
/// Streams in a row that may break without having brought a part of a snapshot.
const BARREN_STREAMS_MAX: u32 = 3;
/// How long a target may take to say what it has of a snapshot.
const OFFSET_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses before an unreachable target is tried again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Makes the networks of one group.
#[derive(Clone)]
pub struct Networks {
    pub group: GroupId,
    pub links: Links,
    pub seams: Seams,
    pub snapshots: SnapshotStore,
    /// How long a follower may take to store entries.
    pub append_timeout: Duration,
    pub snapshot_timeout: Duration,
}

impl RaftNetworkFactory<Types> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Network {
        // The cluster map knows better when a node has moved since it became a member.
        self.links
            .peers()
            .suggest_address(NodeId(target), &node.address);
        Network {
            target: NodeId(target),
            link: self.links.to(NodeId(target)),
            networks: self.clone(),
        }
    }
}

/// One group's way to one node.
pub struct Network {
    target: NodeId,
    link: Link,
    networks: Networks,
}

type Rpc<T> = Result<T, RPCError<Types>>;

impl Network {
    async fn call(&self, action: RPCTypes, body: Body, wait: Duration) -> Rpc<Body> {
        match self.link.call(self.networks.group, body, wait).await {
            Ok(Body::Failure(failure)) => Err(RPCError::Unreachable(Unreachable::from_string(
                failure.reason,
            ))),
            Ok(body) => Ok(body),
            Err(error @ CallError::Unreachable { .. }) => {
                Err(RPCError::Unreachable(Unreachable::from_string(error)))
            }
            Err(CallError::Timeout { waited, .. }) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.networks.links.local().node.0,
                target: self.target.0,
                timeout: waited,
            })),
        }
    }

    async fn ask_vote(&self, body: Body, option: &RPCOption) -> Rpc<VoteResponse<Types>> {
        match self.call(RPCTypes::Vote, body, option.soft_ttl()).await? {
            Body::VoteAnswer(answer) => wire::read_vote_answer(answer).map_err(malformed),
            _ => Err(unexpected()),
        }
    }

    /// The messages of a snapshot's transfer: what the file holds from the head's offset on, in
    /// chunks, and the hash of all of it.
    fn send_parts(
        &self,
        head: RaftSnapshotHead,
        file: SnapshotFile,
    ) -> mpsc::Receiver<RaftSnapshotPart> {
        let (parts, outgoing) = mpsc::channel(CHUNKS_WAITING_MAX);
        let (seams, snapshots) = (self.networks.seams.clone(), self.networks.snapshots.clone());
        let (group, target, begin) = (self.networks.group, self.target, head.offset);
        let sending = async move {
            if parts.send(part(Part::Head(head))).await.is_err() {
                return;
            }
            let disk = std::sync::Arc::clone(snapshots.disk());
            let opened = seams.blocking(move || disk.open_file(&file.path)).await;
            // Without its end part the receiver refuses the snapshot: dropping `parts` is enough.
            let Ok(mut reader) = opened else { return };
            let (mut offset, mut hash) = (0, blake3::Hasher::new());
            loop {
                let read = seams
                    .blocking(move || (read_chunk(reader.as_mut()), reader))
                    .await;
                let (Ok(data), returned) = read else { return };
                reader = returned;
                if data.is_empty() {
                    break;
                }
                hash.update(&data);
                let (at, length) = (offset, data.len() as u64);
                offset += length;
                if at < begin {
                    // The receiver has it.
                    continue;
                }
                let crc32c = crc32c::crc32c(&data);
                let chunk = RaftSnapshotChunk {
                    offset: at,
                    crc32c,
                    data,
                };
                snapshots.await_turn(group, target, length).await;
                if parts.send(part(Part::Chunk(chunk))).await.is_err() {
                    return;
                }
            }
            let hash = Bytes::copy_from_slice(hash.finalize().as_bytes());
            let end = RaftSnapshotEnd {
                bytes: offset,
                hash,
            };
            drop(parts.send(part(Part::End(end))).await);
        };
        self.networks.seams.spawn("raft-snapshot-send", sending);
        outgoing
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (group, store) = (self.networks.group, &self.networks.snapshots);
        let answer = self.stream_until_there(vote, &snapshot).await;
        store.forget_sent(group, self.target);
        let vote = wire::read_vote(answer?.vote).map_err(|error| NetworkError::new(&error))?;
        Ok(SnapshotResponse::new(vote))
    }

    /// Sends a snapshot over as many streams as it takes, while each brings something.
    async fn stream_until_there(
        &self,
        vote: Vote,
        snapshot: &Snapshot,
    ) -> Result<RaftSnapshotAnswer, Unreachable<Types>> {
        let (group, store) = (self.networks.group, &self.networks.snapshots);
        let mut head = RaftSnapshotHead {
            hello: Some(self.networks.links.local().hello_to(self.target)),
            group: group.0,
            vote: Some(wire::vote(vote)),
            meta: Bytes::from(codec::encode_meta(&snapshot.meta)),
            id: snapshot_id(&snapshot.snapshot),
            offset: 0,
        };
        let (mut reached, mut barren) = (0, 0);
        head.offset = self.offset(&head).await?;
        // Whoever cannot be reached keeps no log from being cut.
        let _transfer = store.begin_transfer(group, &snapshot.snapshot);
        loop {
            match head.offset {
                0 => store.forget_sent(group, self.target),
                offset => store.resume_sent(group, self.target, offset),
            }
            let status = match self.stream_snapshot(head.clone(), snapshot).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            barren = if head.offset > reached { 0 } else { barren + 1 };
            reached = head.offset;
            if !may_go_on(status.code()) || barren == BARREN_STREAMS_MAX {
                return Err(Unreachable::new(&status));
            }
            let (target, offset) = (self.target, head.offset);
            tracing::info!(%group, %target, offset, %status, "a snapshot's stream broke");
            self.networks.seams.clock.sleep(BACKOFF_MAX).await;
            head.offset = self.offset(&head).await?;
        }
    }

    fn client(&self) -> Result<RaftClient<PeerChannel>, Unreachable<Types>> {
        let channel = self.networks.links.peers().channel(self.target);
        let channel = channel.map_err(|error| Unreachable::new(&error))?;
        Ok(RaftClient::new(channel))
    }

    /// Bytes of the snapshot that the target has already.
    async fn offset(&self, head: &RaftSnapshotHead) -> Result<u64, Unreachable<Types>> {
        let mut client = self.client()?;
        let asking = client.snapshot_offset(head.clone());
        match self.networks.seams.timeout(OFFSET_TIMEOUT, asking).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().offset),
            Ok(Err(status)) => Err(Unreachable::new(&status)),
            Err(timed_out) => Err(Unreachable::new(&timed_out)),
        }
    }

    async fn stream_snapshot(
        &self,
        head: RaftSnapshotHead,
        snapshot: &Snapshot,
    ) -> Result<RaftSnapshotAnswer, Status> {
        let mut client = self
            .client()
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let parts = self.send_parts(head, snapshot.snapshot.clone());
        let answer = client.install_snapshot(ReceiverStream::new(parts)).await?;
        Ok(answer.into_inner())
    }
}

/// Tells this node's snapshots apart: each has a random name.
fn snapshot_id(file: &SnapshotFile) -> Bytes {
    let name = file.path.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_encoded_bytes());
    Bytes::copy_from_slice(&hash.as_bytes()[..16])
}

/// Whether the stream broke, rather than the receiver refusing the snapshot.
fn may_go_on(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DataLoss
    )
}

fn part(part: Part) -> RaftSnapshotPart {
    RaftSnapshotPart { part: Some(part) }
}

fn read_chunk(reader: &mut dyn Read) -> std::io::Result<Bytes> {
    let mut data = Vec::with_capacity(CHUNK_BYTES);
    reader.take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
    Ok(Bytes::from(data))
}

fn malformed(error: wire::Malformed) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(error))
}

fn unexpected() -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string("the answer is of another kind"))
}

impl RaftNetworkV2<Types> for Network {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        // openraft's limit is one heartbeat interval. A follower that stores entries on a busy
        // disk needs longer; giving up on it would only send the same entries again.
        let wait = if request.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(self.networks.append_timeout)
        };
        let body = Body::Append(wire::append(&request));
        match self.call(RPCTypes::AppendEntries, body, wait).await? {
            Body::AppendAnswer(answer) => {
                let answer = wire::read_append_answer(answer).map_err(malformed)?;
                // Nothing conflicts with the beginning of the log; openraft relies on it.
                if answer.is_conflict() && request.prev_log_id.is_none() {
                    return Err(unexpected());
                }
                Ok(answer)
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.ask_vote(Body::Vote(wire::vote_request(&request)), &option)
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.ask_vote(Body::PreVote(wire::vote_request(&request)), &option)
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let limit = self.networks.snapshot_timeout;
        let sending = self
            .networks
            .seams
            .timeout(limit, self.send_snapshot(vote, snapshot));
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent.unwrap_or_else(|timed_out| {
                Err(StreamingError::Network(NetworkError::new(&timed_out)))
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        let body = Body::Transfer(wire::transfer(&request));
        match self
            .call(RPCTypes::TransferLeader, body, option.soft_ttl())
            .await?
        {
            Body::TransferAnswer(answer) => {
                wire::read_transfer_answer(&request, answer).map_err(malformed)
            }
            _ => Err(unexpected()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let doubling = std::iter::successors(Some(BACKOFF_MIN), |pause| {
            Some((*pause * 2).min(BACKOFF_MAX))
        });
        Some(Backoff::new(doubling))
    }
}
