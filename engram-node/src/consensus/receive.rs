//! Raft's messages from other nodes, handed to the groups they are for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_failure::Kind;
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::{
    RaftFailure, RaftLogEnd, RaftSnapshotAnswer, RaftSnapshotChunk, RaftSnapshotEnd,
    RaftSnapshotHead,
};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{VoteRequest, VoteResponse};
use parking_lot::Mutex;
use tonic::Status;

use super::group::Group;
use super::runtime::{Snapshot, SnapshotMeta, Types, Vote};
use super::snapshot::SnapshotFile;
use super::{Inner, codec, wire};
use crate::seams::{FileWriter, Seams};
use crate::transport::{RaftHandler, SnapshotReceiver};

fn failure(kind: Kind, reason: impl std::fmt::Display) -> Body {
    Body::Failure(RaftFailure {
        kind: kind.into(),
        reason: reason.to_string(),
    })
}

/// How long a leader may take to prove that it leads.
const PROOF_WAIT: Duration = Duration::from_millis(500);

/// Why a request has no answer of its own kind.
enum Refusal {
    Malformed(wire::Malformed),
    Stopped(String),
}

impl From<wire::Malformed> for Refusal {
    fn from(malformed: wire::Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

fn stopped<E: std::fmt::Display>(error: E) -> Refusal {
    Refusal::Stopped(error.to_string())
}

impl Inner {
    async fn answer(&self, from: NodeId, group: &Group, request: Body) -> Result<Body, Refusal> {
        let raft = &group.raft;
        let recovery = group.recovery.as_ref();
        Ok(match request {
            Body::Append(_) if recovery.is_some_and(|it| !it.admits_entries(from)) => {
                return Err(stopped(
                    "this log went back, and the sender does not know it yet",
                ));
            }
            Body::Append(request) => {
                let request = wire::read_append(request)?;
                let answer = raft.append_entries(request).await.map_err(stopped)?;
                Body::AppendAnswer(wire::append_answer(&answer))
            }
            Body::Vote(request) => {
                let request = wire::read_vote_request(request)?;
                if !admits(group, &request) {
                    return Ok(Body::VoteAnswer(wire::vote_answer(&refused_vote(group))));
                }
                let answer = raft.vote(request).await.map_err(stopped)?;
                Body::VoteAnswer(wire::vote_answer(&answer))
            }
            Body::PreVote(request) => {
                let request = wire::read_vote_request(request)?;
                if !admits(group, &request) {
                    return Ok(Body::VoteAnswer(wire::vote_answer(&refused_vote(group))));
                }
                let answer = raft.pre_vote(request).await.map_err(stopped)?;
                Body::VoteAnswer(wire::vote_answer(&answer))
            }
            Body::Transfer(_)
                if recovery
                    .is_some_and(|it| !it.may_campaign(group.log_end(), &group.voters())) =>
            {
                return Err(stopped("this log has lost its end"));
            }
            Body::Recovering(_) => {
                // Of no effect where the group is not led.
                drop(raft.trigger().allow_next_revert(&from.0, true).await);
                let last = group.log_end_id().map(wire::log_id);
                let led = group.leadership().leader == Some(self.config.node);
                let proved = led && group.read_barrier(PROOF_WAIT).await.is_ok();
                // Those of a leader, as of now; nobody's who has just lost it.
                let members = group.members().filter(|_| proved);
                let end = RaftLogEnd {
                    last,
                    leads: members.is_some(),
                    voters: group.voters().into_iter().map(|node| node.0).collect(),
                    learners: members
                        .into_iter()
                        .flat_map(|members| members.learners)
                        .map(|node| node.0)
                        .collect(),
                };
                Body::RecoveringAnswer(end)
            }
            Body::Transfer(request) => {
                let request = wire::read_transfer(request)?;
                let answer = raft
                    .handle_transfer_leader(request)
                    .await
                    .map_err(stopped)?;
                Body::TransferAnswer(wire::transfer_answer(&answer))
            }
            Body::AppendAnswer(_)
            | Body::VoteAnswer(_)
            | Body::TransferAnswer(_)
            | Body::RecoveringAnswer(_)
            | Body::Failure(_) => failure(Kind::Malformed, "an answer was sent as a request"),
        })
    }
}

/// Whether the replica may vote for a candidate at all; Raft's own rules come after that.
fn admits(group: &Group, request: &VoteRequest<Types>) -> bool {
    let last = request.last_log_id.map(Into::into);
    let recovery = group.recovery.as_ref();
    recovery.is_none_or(|recovery| recovery.admits_candidate(last, &group.voters()))
}

fn refused_vote(group: &Group) -> VoteResponse<Types> {
    let vote = group.raft.server_metrics().borrow_watched().vote;
    VoteResponse::new(vote, group.log_end_id(), false)
}

#[async_trait]
impl RaftHandler for Inner {
    async fn handle(&self, from: NodeId, group: GroupId, request: Body) -> Body {
        let Some(group) = self.group(group) else {
            return failure(
                Kind::NoReplica,
                format_args!("no replica of group {group} here"),
            );
        };
        match self.answer(from, &group, request).await {
            Ok(answer) => answer,
            Err(Refusal::Malformed(error)) => failure(Kind::Malformed, error),
            Err(Refusal::Stopped(reason)) => failure(Kind::Stopped, reason),
        }
    }

    async fn begin_snapshot(
        &self,
        from: NodeId,
        head: RaftSnapshotHead,
    ) -> Result<Box<dyn SnapshotReceiver>, Status> {
        let part = self.parts.take(from, &head);
        if head.offset > 0 {
            let whole = part.filter(|part| part.received == head.offset);
            let part = whole.ok_or_else(|| Status::data_loss("the part before it is not here"))?;
            return Ok(Box::new(part));
        }
        // Whatever there was: it begins anew.
        drop(part);
        let invalid = |error: String| Status::invalid_argument(error);
        let vote = wire::read_vote(head.vote).map_err(|error| invalid(error.to_string()))?;
        let meta = codec::decode_meta(&head.meta).map_err(|error| invalid(error.to_string()))?;
        let group = GroupId(head.group);
        let group = self
            .group(group)
            .ok_or_else(|| Status::not_found(format!("no replica of group {group} here")))?;
        let path = self.snapshots.staging_path(group.id);
        let (disk, staged) = (Arc::clone(self.snapshots.disk()), path.clone());
        let file = self.seams.blocking(move || disk.create_file(&staged)).await;
        let file = file.map_err(storage_status)?;
        Ok(Box::new(Receiving {
            parts: Arc::clone(&self.parts),
            seams: self.seams.clone(),
            key: Key::of(from, &head),
            group,
            vote,
            meta,
            path,
            received: 0,
            hash: blake3::Hasher::new(),
            file: Some(file),
        }))
    }

    fn snapshot_offset(&self, from: NodeId, head: &RaftSnapshotHead) -> u64 {
        self.parts.received(&Key::of(from, head))
    }

    fn heard_from(&self, node: NodeId) {
        self.lost.lock().remove(&node);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn storage_status(error: std::io::Error) -> Status {
    Status::internal(format!("storing a snapshot: {error}"))
}

/// Parts of snapshots that broken streams have brought. Bounds: [`PARTS_MAX`] of them, each for
/// [`PART_KEPT`] at most; they do not outlive the process.
#[derive(Default)]
pub struct Parts {
    kept: Mutex<BTreeMap<Key, Kept>>,
}

/// Parts that are kept.
const PARTS_MAX: usize = 8;
/// How long a part is kept for the stream that goes on with it.
const PART_KEPT: Duration = Duration::from_secs(120);

/// Whose snapshot it is, and which.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: NodeId,
    group: GroupId,
    id: Bytes,
}

struct Kept {
    part: Receiving,
    since: Duration,
}

impl Key {
    fn of(from: NodeId, head: &RaftSnapshotHead) -> Self {
        Self {
            from,
            group: GroupId(head.group),
            id: head.id.clone(),
        }
    }
}

impl Parts {
    fn received(&self, key: &Key) -> u64 {
        let kept = self.kept.lock();
        kept.get(key).map_or(0, |kept| kept.part.received)
    }

    /// The part that a stream with this head goes on with. Others of that sender and group go.
    fn take(&self, from: NodeId, head: &RaftSnapshotHead) -> Option<Receiving> {
        let key = Key::of(from, head);
        let mut kept = self.kept.lock();
        let part = kept.remove(&key);
        kept.retain(|other, _| (other.from, other.group) != (key.from, key.group));
        part.map(|kept| kept.part)
    }

    fn keep(&self, part: Receiving) {
        let since = part.seams.clock.monotonic();
        let mut kept = self.kept.lock();
        kept.retain(|_, kept| since.saturating_sub(kept.since) < PART_KEPT);
        if kept.len() >= PARTS_MAX {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.since);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                kept.remove(&oldest);
            }
        }
        let (key, seams) = (part.key.clone(), part.seams.clone());
        let parts = Arc::clone(&part.parts);
        kept.insert(key.clone(), Kept { part, since });
        let clock = Arc::clone(&seams.clock);
        seams.spawn("snapshot-part", async move {
            clock.sleep(PART_KEPT).await;
            let mut kept = parts.kept.lock();
            if kept.get(&key).is_some_and(|kept| kept.since == since) {
                kept.remove(&key);
            }
        });
    }
}

/// A snapshot on its way into the staging directory.
struct Receiving {
    parts: Arc<Parts>,
    seams: Seams,
    key: Key,
    group: Arc<Group>,
    vote: Vote,
    meta: SnapshotMeta,
    path: PathBuf,
    received: u64,
    /// Of all that was received.
    hash: blake3::Hasher,
    /// `None` only after a failed write.
    file: Option<Box<dyn FileWriter>>,
}

impl Receiving {
    fn take_file(&mut self) -> Result<Box<dyn FileWriter>, Status> {
        self.file
            .take()
            .ok_or_else(|| Status::internal("a write of this snapshot failed"))
    }
}

#[async_trait]
impl SnapshotReceiver for Receiving {
    async fn chunk(&mut self, chunk: RaftSnapshotChunk) -> Result<(), Status> {
        let RaftSnapshotChunk {
            offset,
            crc32c,
            data,
        } = chunk;
        if offset != self.received || crc32c::crc32c(&data) != crc32c {
            return Err(Status::data_loss(format!("bad chunk at {}", self.received)));
        }
        let mut file = self.take_file()?;
        self.received += data.len() as u64;
        self.hash.update(&data);
        let written = self
            .seams
            .blocking(move || file.write_all(&data).map(|()| file))
            .await;
        self.file = Some(written.map_err(storage_status)?);
        Ok(())
    }

    async fn finish(
        mut self: Box<Self>,
        end: RaftSnapshotEnd,
    ) -> Result<RaftSnapshotAnswer, Status> {
        let hash = self.hash.finalize();
        if end.bytes != self.received || end.hash[..] != hash.as_bytes()[..] {
            return Err(Status::data_loss("the snapshot's hash is wrong"));
        }
        let file = self.take_file()?;
        self.seams
            .blocking(move || file.finish())
            .await
            .map_err(storage_status)?;
        let file = SnapshotFile {
            path: self.path.clone(),
        };
        let snapshot = Snapshot {
            meta: self.meta,
            snapshot: file,
        };
        let installed = self
            .group
            .raft
            .install_full_snapshot(self.vote, snapshot)
            .await;
        // Installed, it has been moved away; refused, nobody wants it.
        let (disk, path) = (Arc::clone(&self.seams.disk), self.path);
        self.seams
            .blocking(move || disk.remove_file(&path))
            .await
            .map_err(storage_status)?;
        let answer = installed.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(RaftSnapshotAnswer {
            vote: Some(wire::vote(answer.vote)),
        })
    }

    fn keep(self: Box<Self>) {
        // Without its file a write failed: there is nothing to go on with.
        if self.file.is_some() && self.received > 0 {
            let parts = Arc::clone(&self.parts);
            parts.keep(*self);
        }
    }
}
