//! The messages of a spread between nodes: sending them until they are taken, and taking them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::spread::SpreadStart;
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::spread_client::SpreadClient;
use engram_proto::peer::spread_server::Spread;
use engram_proto::peer::{
    SpreadAnswer, SpreadFrameMessage, SpreadReportMessage, SpreadStartMessage,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::part::Word;
use super::{Registry, SPREAD_MESSAGE_BYTES_MAX};
use crate::routing::{Deadline, Links, Pauses};
use crate::seams::Seams;
use crate::services::WAIT_MAX;
use crate::transport::PeerChannel;

/// How long a message is offered to a node that does not take it.
const OFFER_WAIT: Duration = Duration::from_millis(2_500);

/// How much longer an offer may take for the message's size.
const ATTEMPT_BYTES_PER_MILLI: u64 = 16 << 10;

/// Sends messages of spreads to other nodes.
pub struct Messenger {
    seams: Seams,
    links: Arc<dyn Links>,
    /// How long one offer may take before the message is offered again: a connection that hangs
    /// must not use up the query's time. The receiver knows doubled messages.
    attempt_wait: Duration,
}

impl Messenger {
    #[must_use]
    pub fn new(seams: Seams, links: Arc<dyn Links>, attempt_wait: Duration) -> Self {
        Self {
            seams,
            links,
            attempt_wait,
        }
    }

    fn attempt_wait(&self, bytes: usize) -> Duration {
        self.attempt_wait + Duration::from_millis(bytes as u64 / ATTEMPT_BYTES_PER_MILLI)
    }

    fn client(&self, node: NodeId) -> Result<SpreadClient<PeerChannel>, String> {
        let channel = self.links.channel(node).ok_or("its address is not known")?;
        Ok(SpreadClient::new(channel)
            .max_decoding_message_size(SPREAD_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(SPREAD_MESSAGE_BYTES_MAX))
    }

    /// Asks a node to take part. Not repeated: the coordinator starts another attempt.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn start(
        &self,
        node: NodeId,
        start: &SpreadStart,
        positions: &HashMap<PartitionId, EdgeContext>,
        wait: Duration,
    ) -> Result<(), String> {
        let position = |(partition, position): (&PartitionId, &EdgeContext)| {
            let position = Some(position.into());
            engram_proto::peer::SpreadPosition {
                partition: partition.0,
                position,
            }
        };
        let message = SpreadStartMessage {
            start: start.encode().into(),
            wait_millis: wait.as_millis() as u64,
            positions: positions.iter().map(position).collect(),
        };
        let mut client = self.client(node)?;
        taken(
            self.seams
                .timeout(wait.min(OFFER_WAIT), Box::pin(client.start(message)))
                .await,
        )
    }

    /// Offers a word until it is taken. A node that takes none for [`OFFER_WAIT`] is as good as dead
    /// to a query.
    ///
    /// # Errors
    /// Why it was not taken in the end.
    pub async fn word(
        &self,
        node: NodeId,
        message: SpreadFrameMessage,
        deadline: Deadline,
    ) -> Result<(), String> {
        let wait = deadline
            .left(&self.seams)
            .min(self.attempt_wait(message.encoded_len()));
        self.offer(deadline, || async {
            let mut client = self.client(node)?;
            taken(
                self.seams
                    .timeout(wait, Box::pin(client.deliver(message.clone())))
                    .await,
            )
        })
        .await
    }

    /// Offers a report until it is taken.
    ///
    /// # Errors
    /// Why it was not taken in the end.
    pub async fn report(
        &self,
        node: NodeId,
        message: SpreadReportMessage,
        deadline: Deadline,
    ) -> Result<(), String> {
        let wait = deadline
            .left(&self.seams)
            .min(self.attempt_wait(message.encoded_len()));
        self.offer(deadline, || async {
            let mut client = self.client(node)?;
            taken(
                self.seams
                    .timeout(wait, Box::pin(client.report(message.clone())))
                    .await,
            )
        })
        .await
    }

    /// Repeats an attempt with pauses; taking a message twice does no harm.
    async fn offer<F: Future<Output = Result<(), String>> + Send>(
        &self,
        deadline: Deadline,
        attempt: impl Fn() -> F + Send + Sync,
    ) -> Result<(), String> {
        let offered = Deadline::after(&self.seams, OFFER_WAIT).min(deadline);
        let mut pauses = Pauses::default();
        loop {
            let reason = match attempt().await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            if offered.has_passed(&self.seams) {
                return Err(reason);
            }
            pauses.pause(&self.seams, offered).await;
        }
    }
}

fn taken<E: std::fmt::Display>(
    answer: Result<Result<Response<SpreadAnswer>, Status>, E>,
) -> Result<(), String> {
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = answer
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    if answer.refused.is_empty() {
        Ok(())
    } else {
        Err(answer.refused)
    }
}

/// The receiving side.
pub struct SpreadService {
    registry: Registry,
}

impl SpreadService {
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

fn answer(result: Result<(), String>) -> Result<Response<SpreadAnswer>, Status> {
    Ok(Response::new(SpreadAnswer {
        refused: result.err().unwrap_or_default(),
    }))
}

#[tonic::async_trait]
impl Spread for SpreadService {
    async fn start(
        &self,
        request: Request<SpreadStartMessage>,
    ) -> Result<Response<SpreadAnswer>, Status> {
        let message = request.into_inner();
        let invalid = |error: String| Status::invalid_argument(error);
        let start = SpreadStart::decode(&message.start).map_err(|e| invalid(e.to_string()))?;
        let mut positions = HashMap::new();
        for position in message.positions {
            let context = position.position.unwrap_or_default();
            let context = EdgeContext::try_from(context).map_err(|e| invalid(e.to_string()))?;
            positions.insert(PartitionId(position.partition), context);
        }
        let wait = Duration::from_millis(message.wait_millis).min(WAIT_MAX);
        answer(self.registry.start(start, &positions, wait))
    }

    async fn deliver(
        &self,
        request: Request<SpreadFrameMessage>,
    ) -> Result<Response<SpreadAnswer>, Status> {
        let word = Word::decode(request.get_ref()).map_err(Status::invalid_argument)?;
        answer(self.registry.deliver(word))
    }

    async fn report(
        &self,
        request: Request<SpreadReportMessage>,
    ) -> Result<Response<SpreadAnswer>, Status> {
        answer(self.registry.report(request.into_inner()))
    }
}
