//! Forwarding over gRPC: the caller's side of `engram.peer.v1.Forward`.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::types::NodeId;
use engram_proto::peer::forward_client::ForwardClient;
use engram_proto::peer::{
    AcceptLocalRequest, AcceptLocalResponse, ProposeRequest, ProposeResponse, ReadRequest,
    ReadResponse,
};
use tonic::{Code, Response, Status};

use super::MESSAGE_BYTES_MAX;
use super::ports::{LinkError, Links, Remote};
use crate::liveness::Clocks;
use crate::seams::Seams;
use crate::transport::PeerChannel;

/// How much longer than the receiver the caller waits, so that the receiver's own answer that
/// its time is up arrives.
const GRACE: Duration = Duration::from_millis(100);

/// Calls other nodes over the shared connections.
pub struct Dialer {
    seams: Seams,
    links: Arc<dyn Links>,
    clocks: Arc<dyn Clocks>,
}

impl Dialer {
    #[must_use]
    pub fn new(seams: Seams, links: Arc<dyn Links>, clocks: Arc<dyn Clocks>) -> Self {
        Self {
            seams,
            links,
            clocks,
        }
    }

    fn client(&self, node: NodeId) -> Result<ForwardClient<PeerChannel>, LinkError> {
        let channel = self.links.channel(node).ok_or_else(|| LinkError::NotSent {
            node,
            reason: "its address is not known".into(),
        })?;
        Ok(ForwardClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    async fn answer<T>(
        &self,
        node: NodeId,
        wait: Duration,
        call: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<T, LinkError> {
        match self.seams.timeout(wait + GRACE, Box::pin(call)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(link_error(node, &status)),
            Err(timed_out) => Err(LinkError::Lost {
                node,
                reason: timed_out.to_string(),
            }),
        }
    }
}

/// A connection that was never made has carried nothing, and the peer port's guard lets nothing
/// through that it refuses; the services themselves refuse in their answers.
pub fn link_error(node: NodeId, status: &Status) -> LinkError {
    let reason = status.message().to_owned();
    if matches!(
        status.code(),
        Code::FailedPrecondition | Code::PermissionDenied
    ) {
        return LinkError::NotSent { node, reason };
    }
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return LinkError::NotSent { node, reason };
        }
        source = error.source();
    }
    LinkError::Lost { node, reason }
}

#[async_trait]
impl Remote for Dialer {
    async fn propose(
        &self,
        node: NodeId,
        mut request: ProposeRequest,
        wait: Duration,
    ) -> Result<ProposeResponse, LinkError> {
        request.expires = self.clocks.there(node, wait);
        let mut client = self.client(node)?;
        self.answer(node, wait, client.propose(request)).await
    }

    async fn read(
        &self,
        node: NodeId,
        request: ReadRequest,
        wait: Duration,
    ) -> Result<ReadResponse, LinkError> {
        let mut client = self.client(node)?;
        self.answer(node, wait, client.read(request)).await
    }

    async fn accept_local(
        &self,
        node: NodeId,
        mut request: AcceptLocalRequest,
        wait: Duration,
    ) -> Result<AcceptLocalResponse, LinkError> {
        request.expires = self.clocks.there(node, wait);
        let mut client = self.client(node)?;
        self.answer(node, wait, client.accept_local(request)).await
    }
}
