//! One operation, or many of one request, to the partitions that own them.

use engram_core::command::{Op, OpOutcome, Write};
use engram_core::types::{Hlc, PartitionId};
use engram_proto::v1;

use super::Services;
use super::failure::{Failure, InputError};
use super::input::{self, Requester};
use super::token::Positions;
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::Deadline;

impl Services {
    pub(super) async fn remember(
        &self,
        request: v1::RememberRequest,
        deadline: Deadline,
    ) -> Result<v1::RememberResponse, Failure> {
        let space = self.space(&request.space, deadline).await?;
        let requester = self.requester(request.request.as_ref())?;
        let memory = request.memory.ok_or(InputError::Missing("the memory"))?;
        let expected = input::expected(request.expected_version);
        let (id, config) = (requester.request_id(0), &space.config);
        let op = input::remember(config, id, memory, &request.edges, expected)?;
        let id = op.id.as_str().to_owned();
        let (outcome, token) = self
            .write_one(&space, requester, Op::Remember(op), deadline)
            .await?;
        match outcome {
            OpOutcome::Remembered { version, created } => Ok(v1::RememberResponse {
                id,
                version: version.0,
                created,
                token: Some(token),
            }),
            other => Err(unfit(&other)),
        }
    }

    pub(super) async fn forget(
        &self,
        request: v1::ForgetRequest,
        deadline: Deadline,
    ) -> Result<v1::ForgetResponse, Failure> {
        let space = self.space(&request.space, deadline).await?;
        let requester = self.requester(request.request.as_ref())?;
        let op = Op::Forget(input::forget(
            &request.id,
            request.expected_version,
            request.purge,
        )?);
        match self.write_one(&space, requester, op, deadline).await? {
            (OpOutcome::Forgotten { existed }, token) => Ok(v1::ForgetResponse {
                existed,
                token: Some(token),
            }),
            (other, _) => Err(unfit(&other)),
        }
    }

    /// The outcome of a request's only operation.
    async fn write_one(
        &self,
        space: &SpaceRecord,
        requester: Requester,
        op: Op,
        deadline: Deadline,
    ) -> Result<(OpOutcome, v1::SessionToken), Failure> {
        let place = home_of(space, &op);
        let write = write_of(requester, vec![(0, op)]);
        let applied = self.router().write(place, write, deadline).await?;
        let token = Positions::written(place.id, applied.sequence).token();
        Ok((only_outcome(place.id, applied.outcomes)?, token))
    }
}

/// The partition that takes an operation.
pub fn home_of(space: &SpaceRecord, op: &Op) -> PartitionRecord {
    space.partition_of(input::home(op).hash_slot())
}

/// A write whose stamp and contexts the proposing leader fills in.
pub fn write_of(requester: Requester, ops: Vec<(u32, Op)>) -> Write {
    let Requester {
        client,
        counter,
        retried,
    } = requester;
    Write {
        client,
        counter,
        retried,
        stamp: Hlc::default(),
        ops,
    }
}

/// The outcome of a write of one operation; a rejection is a failure.
pub fn only_outcome(
    partition: PartitionId,
    outcomes: Vec<(u32, OpOutcome)>,
) -> Result<OpOutcome, Failure> {
    match outcomes.into_iter().next() {
        Some((_, OpOutcome::Rejected(rejection))) => Err(rejection.into()),
        Some((_, outcome)) => Ok(outcome),
        None => Err(Failure::Internal(format!(
            "partition {partition} applied nothing"
        ))),
    }
}

pub fn unfit(outcome: &OpOutcome) -> Failure {
    Failure::Internal(format!("the operation was answered with {outcome:?}"))
}
