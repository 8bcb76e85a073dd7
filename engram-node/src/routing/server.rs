//! The receiver's side of `engram.peer.v1.Forward`: serves here, or refuses.

use std::sync::Arc;
use std::time::Duration;

use engram_core::command::{PartitionCommand, Write};
use engram_core::types::{EdgeContext, PartitionId};
use engram_proto::peer::forward_server::Forward;
use engram_proto::peer::{
    AcceptLocalRequest, AcceptLocalResponse, Expiry, ProposeRequest, ProposeResponse, ReadLevel,
    ReadRequest, ReadResponse, Served, accept_local_response, propose_response, read_response,
};
use tonic::{Request, Response, Status};

use super::here::Here;
use super::reads::ReadAt;
use super::refusal::Refusal;
use crate::liveness::{Clocks, TOO_LATE, time_left};
use crate::services::WAIT_MAX;

/// Serves what other nodes forward.
pub struct ForwardService {
    here: Here,
    clocks: Arc<dyn Clocks>,
}

impl ForwardService {
    #[must_use]
    pub fn new(here: Here, clocks: Arc<dyn Clocks>) -> Self {
        Self { here, clocks }
    }

    fn in_time(&self, wait: Duration, expires: Option<&Expiry>) -> Result<Duration, Refusal> {
        let left = time_left(&*self.clocks, wait, expires);
        match left.is_zero() {
            true => Err(Refusal::Stopped(TOO_LATE.into())),
            false => Ok(left),
        }
    }

    async fn propose_here(
        &self,
        request: ProposeRequest,
    ) -> Result<engram_core::command::Applied, Refusal> {
        let invalid = |reason: String| Refusal::Invalid(reason);
        let command = request
            .command
            .ok_or_else(|| invalid("no command".into()))?;
        let command = PartitionCommand::try_from(command).map_err(|e| invalid(e.to_string()))?;
        let partition = PartitionId(request.partition);
        let wait = self.in_time(wait(request.wait_millis), request.expires.as_ref())?;
        self.here.propose(partition, command, wait).await
    }

    async fn read_here(&self, request: ReadRequest) -> Result<Served, Refusal> {
        let invalid = |reason: &str| Refusal::Invalid(reason.into());
        let position = request.position.map(EdgeContext::try_from).transpose();
        let position = position.map_err(|error| Refusal::Invalid(error.to_string()))?;
        let at = match ReadLevel::try_from(request.level) {
            Ok(ReadLevel::Leader) => ReadAt::Linearizable,
            Ok(ReadLevel::Covering) => {
                ReadAt::Session(position.ok_or_else(|| invalid("no position"))?)
            }
            Ok(ReadLevel::Any) => ReadAt::Stale,
            Ok(ReadLevel::Unspecified) | Err(_) => return Err(invalid("unknown read level")),
        };
        let query = request.query.ok_or_else(|| invalid("no query"))?;
        let partition = PartitionId(request.partition);
        self.here
            .read(partition, query, &at, wait(request.wait_millis))
            .await
    }

    async fn accept_here(&self, request: AcceptLocalRequest) -> Result<EdgeContext, Refusal> {
        let write = request
            .write
            .ok_or_else(|| Refusal::Invalid("no write".into()))?;
        let write = Write::try_from(write).map_err(|error| Refusal::Invalid(error.to_string()))?;
        self.in_time(WAIT_MAX, request.expires.as_ref())?;
        self.here
            .accept_local(PartitionId(request.partition), &write)
            .await
    }
}

fn wait(millis: u64) -> Duration {
    Duration::from_millis(millis).min(WAIT_MAX)
}

#[tonic::async_trait]
impl Forward for ForwardService {
    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        use propose_response::Answer;
        let answer = match self.propose_here(request.into_inner()).await {
            Ok(applied) => Answer::Applied((&applied).into()),
            Err(refusal) => Answer::NotServed(refusal.into()),
        };
        Ok(Response::new(ProposeResponse {
            answer: Some(answer),
        }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        use read_response::Answer;
        let answer = match self.read_here(request.into_inner()).await {
            Ok(served) => Answer::Served(served),
            Err(refusal) => Answer::NotServed(refusal.into()),
        };
        Ok(Response::new(ReadResponse {
            answer: Some(answer),
        }))
    }

    async fn accept_local(
        &self,
        request: Request<AcceptLocalRequest>,
    ) -> Result<Response<AcceptLocalResponse>, Status> {
        use accept_local_response::Answer;
        let answer = match self.accept_here(request.into_inner()).await {
            Ok(position) => Answer::Position((&position).into()),
            Err(refusal) => Answer::NotServed(refusal.into()),
        };
        Ok(Response::new(AcceptLocalResponse {
            answer: Some(answer),
        }))
    }
}
