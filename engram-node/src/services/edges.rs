//! Changes of edges: through the log, or accepted by one replica, where the caller asks for that
//! or no majority can be reached.

use engram_core::command::{Applied, Op, OpOutcome, Write};
use engram_core::planted;
use engram_core::types::EdgeContext;
use engram_proto::convert::DecodeError;
use engram_proto::v1::{self, Durability};

use super::Services;
use super::failure::{Failure, InputError};
use super::input;
use super::token::Positions;
use super::writes::{home_of, only_outcome, unfit, write_of};
use crate::control::{LocalFallback, PartitionRecord};
use crate::routing::{Deadline, WriteError};

/// Share of a call's time that the attempt at a majority may take; the rest is for one replica.
const MAJORITY_SHARE: (u32, u32) = (4, 5);

/// A change of one edge, whatever call it came by.
struct EdgeCall {
    space: String,
    request: Option<v1::RequestId>,
    op: Op,
    durability: i32,
}

impl Services {
    pub(super) async fn associate(
        &self,
        request: v1::AssociateRequest,
        deadline: Deadline,
    ) -> Result<v1::EdgeChangeResponse, Failure> {
        let edge = request.edge.as_ref();
        let op = input::associate(edge, request.weight, request.confidence)?;
        let v1::AssociateRequest {
            space,
            request,
            durability,
            ..
        } = request;
        let op = Op::Associate(op);
        self.change_edge(
            EdgeCall {
                space,
                request,
                op,
                durability,
            },
            deadline,
        )
        .await
    }

    /// A contribution of weight 1.
    pub(super) async fn strengthen(
        &self,
        request: v1::StrengthenRequest,
        deadline: Deadline,
    ) -> Result<v1::EdgeChangeResponse, Failure> {
        let op = input::associate(request.edge.as_ref(), None, request.confidence)?;
        let v1::StrengthenRequest {
            space,
            request,
            durability,
            ..
        } = request;
        let op = Op::Associate(op);
        self.change_edge(
            EdgeCall {
                space,
                request,
                op,
                durability,
            },
            deadline,
        )
        .await
    }

    pub(super) async fn dissociate(
        &self,
        request: v1::DissociateRequest,
        deadline: Deadline,
    ) -> Result<v1::EdgeChangeResponse, Failure> {
        let op = Op::Dissociate(input::dissociate(request.edge.as_ref())?);
        let v1::DissociateRequest {
            space,
            request,
            durability,
            ..
        } = request;
        self.change_edge(
            EdgeCall {
                space,
                request,
                op,
                durability,
            },
            deadline,
        )
        .await
    }

    async fn change_edge(
        &self,
        call: EdgeCall,
        deadline: Deadline,
    ) -> Result<v1::EdgeChangeResponse, Failure> {
        let local_only = match Durability::try_from(call.durability) {
            Ok(Durability::Unspecified | Durability::Majority) => false,
            Ok(Durability::Local) => true,
            Err(_) => {
                let error = DecodeError::NotUnderstood("the durability");
                return Err(InputError::Decode(error).into());
            }
        };
        let space = self.space(&call.space, deadline).await?;
        let requester = self.requester(call.request.as_ref())?;
        let place = home_of(&space, &call.op);
        let write = write_of(requester, vec![(0, call.op)]);
        if local_only {
            let position = self.router().write_local(place, &write, deadline).await?;
            return Ok(accepted_locally(place, &position));
        }
        if space.local_fallback == LocalFallback::Refused {
            let applied = self.router().write(place, write, deadline).await?;
            return accepted_by_majority(place, applied);
        }
        self.majority_else_local(place, write, deadline).await
    }

    /// Nothing is refused because of a network split, unless the space wants it so: without a
    /// majority one replica's word is what can be given. The attempt that may yet be applied is a
    /// twin of it and counts once.
    async fn majority_else_local(
        &self,
        place: PartitionRecord,
        mut write: Write,
        deadline: Deadline,
    ) -> Result<v1::EdgeChangeResponse, Failure> {
        let (part, whole) = MAJORITY_SHARE;
        let wait = deadline.left(self.router().seams()) * part / whole;
        let majority = self.router().deadline(wait);
        let error = match self.router().write(place, write.clone(), majority).await {
            Ok(applied) => return accepted_by_majority(place, applied),
            Err(error) => error,
        };
        if !matches!(
            error,
            WriteError::NotApplied { .. } | WriteError::Unknown { .. }
        ) {
            return Err(error.into());
        }
        write.retried |= matches!(error, WriteError::Unknown { .. });
        if planted!("fallback-new-request") {
            write.counter += 1 << 32;
        }
        match self.router().write_local(place, &write, deadline).await {
            Ok(position) => {
                metrics::counter!("engram_edges_fell_back_total").increment(1);
                Ok(accepted_locally(place, &position))
            }
            Err(local) => Err(Failure::NowhereAccepted {
                majority: error,
                local,
            }),
        }
    }
}

fn accepted_by_majority(
    place: PartitionRecord,
    applied: Applied,
) -> Result<v1::EdgeChangeResponse, Failure> {
    let token = Positions::written(place.id, applied.sequence).token();
    match only_outcome(place.id, applied.outcomes)? {
        OpOutcome::EdgeChanged => Ok(v1::EdgeChangeResponse {
            durability: Durability::Majority.into(),
            token: Some(token),
        }),
        other => Err(unfit(&other)),
    }
}

fn accepted_locally(place: PartitionRecord, position: &EdgeContext) -> v1::EdgeChangeResponse {
    let mut positions = Positions::default();
    positions.note(place.id, position);
    v1::EdgeChangeResponse {
        durability: Durability::Local.into(),
        token: Some(positions.token()),
    }
}
