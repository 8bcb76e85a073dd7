//! Raft's messages between openraft's types and the peer protocol's.
//!
//! Decoding refuses what is incomplete: a missing vote or an unreadable entry is an error, never
//! an empty one.

use bytes::Bytes;
use engram_proto::peer::raft_append_answer::Answer as AppendAnswer;
use engram_proto::peer::raft_transfer_answer::Answer as TransferAnswer;
use engram_proto::peer::{
    RaftAppend, RaftAppendAnswer, RaftEntry, RaftLogEnd, RaftLogId, RaftNothing, RaftTransfer,
    RaftTransferAnswer, RaftVote, RaftVoteAnswer, RaftVoteRequest,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::codec::{LogIdRecord, VoteRecord, decode_payload, encode_payload};
use super::runtime::{Entry, LogId, Types, Vote};

/// A message that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed raft message: {0}")]
pub struct Malformed(String);

fn missing(what: &str) -> Malformed {
    Malformed(format!("{what} is missing"))
}

pub fn vote(vote: Vote) -> RaftVote {
    let VoteRecord {
        term,
        node,
        committed,
    } = vote.into();
    RaftVote {
        term,
        node,
        committed,
    }
}

pub fn read_vote(vote: Option<RaftVote>) -> Result<Vote, Malformed> {
    let RaftVote {
        term,
        node,
        committed,
    } = vote.ok_or_else(|| missing("vote"))?;
    Ok(VoteRecord {
        term,
        node,
        committed,
    }
    .into())
}

pub fn log_id(id: LogId) -> RaftLogId {
    let LogIdRecord { term, index } = id.into();
    RaftLogId { term, index }
}

pub fn read_log_id(id: RaftLogId) -> LogId {
    LogIdRecord {
        term: id.term,
        index: id.index,
    }
    .into()
}

pub fn append(request: &AppendEntriesRequest<Types>) -> RaftAppend {
    let entries = request.entries.iter().map(|entry| RaftEntry {
        id: Some(log_id(entry.log_id)),
        payload: Bytes::from(encode_payload(&entry.payload)),
    });
    RaftAppend {
        vote: Some(vote(request.vote)),
        previous: request.prev_log_id.map(log_id),
        entries: entries.collect(),
        leader_commit: request.leader_commit.map(log_id),
    }
}

pub fn read_append(request: RaftAppend) -> Result<AppendEntriesRequest<Types>, Malformed> {
    let entries = request.entries.into_iter().map(|entry| {
        let id = entry.id.ok_or_else(|| missing("entry id"))?;
        let payload = decode_payload(&entry.payload).map_err(Malformed)?;
        Ok(Entry {
            log_id: read_log_id(id),
            payload,
        })
    });
    Ok(AppendEntriesRequest {
        vote: read_vote(request.vote)?,
        prev_log_id: request.previous.map(read_log_id),
        entries: entries.collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.map(read_log_id),
    })
}

pub fn append_answer(answer: &AppendEntriesResponse<Types>) -> RaftAppendAnswer {
    let answer = match answer {
        AppendEntriesResponse::Success => AppendAnswer::Success(RaftNothing {}),
        AppendEntriesResponse::Conflict => AppendAnswer::Conflict(RaftNothing {}),
        AppendEntriesResponse::HigherVote(higher) => AppendAnswer::HigherVote(vote(*higher)),
        AppendEntriesResponse::PartialSuccess(Some(last)) => AppendAnswer::Partial(log_id(*last)),
        // Nothing was taken: the same as a conflict to the sender, who probes further back.
        AppendEntriesResponse::PartialSuccess(None) => AppendAnswer::Conflict(RaftNothing {}),
    };
    RaftAppendAnswer {
        answer: Some(answer),
    }
}

pub fn read_append_answer(
    answer: RaftAppendAnswer,
) -> Result<AppendEntriesResponse<Types>, Malformed> {
    Ok(
        match answer
            .answer
            .ok_or_else(|| missing("answer to an append"))?
        {
            AppendAnswer::Success(_) => AppendEntriesResponse::Success,
            AppendAnswer::Conflict(_) => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(vote) => {
                AppendEntriesResponse::HigherVote(read_vote(Some(vote))?)
            }
            AppendAnswer::Partial(last) => {
                AppendEntriesResponse::PartialSuccess(Some(read_log_id(last)))
            }
        },
    )
}

pub fn vote_request(request: &VoteRequest<Types>) -> RaftVoteRequest {
    RaftVoteRequest {
        vote: Some(vote(request.vote)),
        last: request.last_log_id.map(log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub fn read_vote_request(request: RaftVoteRequest) -> Result<VoteRequest<Types>, Malformed> {
    Ok(VoteRequest {
        vote: read_vote(request.vote)?,
        last_log_id: request.last.map(read_log_id),
        leadership_transfer: request.leadership_transfer,
    })
}

pub fn vote_answer(answer: &VoteResponse<Types>) -> RaftVoteAnswer {
    RaftVoteAnswer {
        vote: Some(vote(answer.vote)),
        granted: answer.vote_granted,
        last: answer.last_log_id.map(log_id),
    }
}

pub fn read_vote_answer(answer: RaftVoteAnswer) -> Result<VoteResponse<Types>, Malformed> {
    Ok(VoteResponse {
        vote: read_vote(answer.vote)?,
        vote_granted: answer.granted,
        last_log_id: answer.last.map(read_log_id),
    })
}

pub fn transfer(request: &TransferLeaderRequest<Types>) -> RaftTransfer {
    RaftTransfer {
        from_leader: Some(vote(*request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().copied().map(log_id),
    }
}

pub fn read_transfer(request: RaftTransfer) -> Result<TransferLeaderRequest<Types>, Malformed> {
    let from = read_vote(request.from_leader)?;
    Ok(TransferLeaderRequest::new(
        from,
        request.to,
        request.last.map(read_log_id),
    ))
}

pub fn transfer_answer(answer: &TransferLeaderResponse<Types>) -> RaftTransferAnswer {
    let answer = match answer {
        Ok(()) => TransferAnswer::Accepted(RaftNothing {}),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            TransferAnswer::VoteChanged(vote(*actual))
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            TransferAnswer::NotFlushed(RaftLogEnd {
                last: actual.map(log_id),
                leads: true,
                ..RaftLogEnd::default()
            })
        }
    };
    RaftTransferAnswer {
        answer: Some(answer),
    }
}

pub fn read_transfer_answer(
    request: &TransferLeaderRequest<Types>,
    answer: RaftTransferAnswer,
) -> Result<TransferLeaderResponse<Types>, Malformed> {
    Ok(
        match answer
            .answer
            .ok_or_else(|| missing("answer to a transfer"))?
        {
            TransferAnswer::Accepted(_) => Ok(()),
            TransferAnswer::VoteChanged(actual) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: read_vote(Some(actual))?,
            }),
            TransferAnswer::NotFlushed(actual) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: actual.last.map(read_log_id),
            }),
        },
    )
}
