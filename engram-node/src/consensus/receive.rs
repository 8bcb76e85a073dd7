//! Raft's messages from other nodes, handed to the groups they are for.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_failure::Kind;
use engram_proto::peer::raft_message::Body;
use engram_proto::peer::{RaftFailure, RaftSnapshotAnswer, RaftSnapshotHead};
use tonic::Status;

use super::group::Group;
use super::runtime::{Snapshot, SnapshotMeta, Vote};
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
    async fn answer(&self, group: &Group, request: Body) -> Result<Body, Refusal> {
        let raft = &group.raft;
        Ok(match request {
            Body::Append(request) => {
                let request = wire::read_append(request)?;
                let answer = raft.append_entries(request).await.map_err(stopped)?;
                Body::AppendAnswer(wire::append_answer(&answer))
            }
            Body::Vote(request) => {
                let request = wire::read_vote_request(request)?;
                let answer = raft.vote(request).await.map_err(stopped)?;
                Body::VoteAnswer(wire::vote_answer(&answer))
            }
            Body::PreVote(request) => {
                let request = wire::read_vote_request(request)?;
                let answer = raft.pre_vote(request).await.map_err(stopped)?;
                Body::VoteAnswer(wire::vote_answer(&answer))
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
            | Body::Failure(_) => failure(Kind::Malformed, "an answer was sent as a request"),
        })
    }
}

#[async_trait]
impl RaftHandler for Inner {
    async fn handle(&self, _from: NodeId, group: GroupId, request: Body) -> Body {
        let Some(group) = self.group(group) else {
            return failure(
                Kind::NoReplica,
                format_args!("no replica of group {group} here"),
            );
        };
        match self.answer(&group, request).await {
            Ok(answer) => answer,
            Err(Refusal::Malformed(error)) => failure(Kind::Malformed, error),
            Err(Refusal::Stopped(reason)) => failure(Kind::Stopped, reason),
        }
    }

    async fn begin_snapshot(
        &self,
        head: RaftSnapshotHead,
    ) -> Result<Box<dyn SnapshotReceiver>, Status> {
        let group = GroupId(head.group);
        let vote = wire::read_vote(head.vote)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let meta = codec::decode_meta(&head.meta)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let group = self
            .group(group)
            .ok_or_else(|| Status::not_found(format!("no replica of group {group} here")))?;
        let path = self.snapshots.staging_path(group.id);
        let (disk, staged) = (Arc::clone(self.snapshots.disk()), path.clone());
        let file = self.seams.blocking(move || disk.create_file(&staged)).await;
        let file = file.map_err(storage_status)?;
        let seams = self.seams.clone();
        Ok(Box::new(Receiving {
            seams,
            group,
            vote,
            meta,
            path,
            file: Some(file),
        }))
    }

    fn heard_from(&self, node: NodeId) {
        self.lost.lock().remove(&node);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn storage_status(error: std::io::Error) -> Status {
    Status::internal(format!("storing a snapshot: {error}"))
}

/// A snapshot on its way into the staging directory.
struct Receiving {
    seams: Seams,
    group: Arc<Group>,
    vote: Vote,
    meta: SnapshotMeta,
    path: PathBuf,
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
    async fn chunk(&mut self, data: Bytes) -> Result<(), Status> {
        let mut file = self.take_file()?;
        let written = self
            .seams
            .blocking(move || file.write_all(&data).map(|()| file))
            .await;
        self.file = Some(written.map_err(storage_status)?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<RaftSnapshotAnswer, Status> {
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
}
