//! Streaming import: many batches over one stream, a bounded number of them unanswered.
//!
//! The stream may break at any time; the importer opens another, at another node if need be, and
//! sends again what was not acknowledged. Each batch keeps its request id, so it applies once.

use std::collections::VecDeque;
use std::time::Duration;

use engram_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::call::{Route, memories};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome};
use crate::machine::{self, Deadline};
use crate::memories::SpaceClient;
use crate::pool::Target;
use crate::requests::Ticket;
use crate::retry;

/// Batches that may be unanswered, unless the caller says otherwise.
const IN_FLIGHT_DEFAULT: usize = 8;
const IN_FLIGHT_MAX: usize = 256;
/// Time without any acknowledgement after which the import fails.
const STALL_LIMIT_DEFAULT: Duration = Duration::from_secs(60);

/// Loads batches into a space. Dropping it before [`Importer::finish`] leaves the outcome of the
/// unanswered batches unknown.
pub struct Importer {
    space: SpaceClient,
    in_flight: usize,
    stall_limit: Duration,
    stream: Option<OpenStream>,
    unanswered: VecDeque<Pending>,
    /// Number of the next batch.
    next: u64,
}

struct OpenStream {
    target: Target,
    batches: mpsc::Sender<v1::ImportBatch>,
    acks: Streaming<v1::ImportAck>,
}

struct Pending {
    number: u64,
    ticket: Ticket,
    /// Whether it has been sent before.
    sent: bool,
    batch: v1::ImportBatch,
}

/// What became of one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchReport {
    /// Batches are numbered from 0 in the order of sending.
    pub number: u64,
    pub memories: u64,
    pub edges: u64,
    /// Items that were refused; the others of the batch were applied.
    pub rejected: Vec<v1::ImportReject>,
    /// Records of a backup's chunk that were there already, and were left alone.
    pub present: u64,
}

impl SpaceClient {
    /// Starts an import. Says nothing on the network until the first batch.
    #[must_use]
    pub fn importer(&self) -> Importer {
        Importer {
            space: self.clone(),
            in_flight: IN_FLIGHT_DEFAULT,
            stall_limit: STALL_LIMIT_DEFAULT,
            stream: None,
            unanswered: VecDeque::new(),
            next: 0,
        }
    }
}

impl Importer {
    /// Batches that may be unanswered, 1 to 256. Default 8.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches.clamp(1, IN_FLIGHT_MAX);
        self
    }

    /// Time without any acknowledgement after which the import fails. Default 60 s.
    #[must_use]
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = limit;
        self
    }

    /// Sends a batch and answers with the reports that came in meanwhile, in order. Waits while too
    /// many batches are unanswered.
    ///
    /// # Errors
    /// See [`Error`]; the import is over then, and batches without report are of unknown outcome.
    pub async fn send(
        &mut self,
        memories: Vec<v1::Memory>,
        edges: Vec<v1::ImportEdge>,
    ) -> Result<Vec<BatchReport>, Error> {
        self.send_batch(v1::ImportBatch {
            memories,
            edges,
            ..Default::default()
        })
        .await
    }

    /// As [`Self::send`], for a chunk of a backup: what is there already is left alone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send_chunk(
        &mut self,
        chunk: impl Into<bytes::Bytes>,
    ) -> Result<Vec<BatchReport>, Error> {
        self.send_batch(v1::ImportBatch {
            chunk: chunk.into(),
            ..Default::default()
        })
        .await
    }

    async fn send_batch(&mut self, batch: v1::ImportBatch) -> Result<Vec<BatchReport>, Error> {
        let mut reports = Vec::new();
        while self.unanswered.len() >= self.in_flight {
            reports.push(self.wait_for_ack().await?);
        }
        let ticket = self.space.client.inner.ids.issue().await;
        let batch = v1::ImportBatch {
            space: self.space.name.clone(),
            request: Some(ticket.id(false)),
            ..batch
        };
        let sent = self.stream.is_some();
        self.unanswered.push_back(Pending {
            number: self.next,
            ticket,
            sent,
            batch: batch.clone(),
        });
        self.next += 1;
        match &self.stream {
            // A closed stream is found, and replaced, when its acknowledgements are read.
            Some(stream) => drop(stream.batches.send(batch).await),
            None => self.open_early().await?,
        }
        Ok(reports)
    }

    /// Waits for all batches sent so far and answers with their reports, in order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish(&mut self) -> Result<Vec<BatchReport>, Error> {
        let mut reports = Vec::new();
        while !self.unanswered.is_empty() {
            reports.push(self.wait_for_ack().await?);
        }
        Ok(reports)
    }

    /// The report of the oldest unanswered batch.
    async fn wait_for_ack(&mut self) -> Result<BatchReport, Error> {
        let deadline = Deadline::after(self.stall_limit);
        let mut attempt = 0;
        loop {
            let error = match self.next_ack(deadline).await {
                Ok(ack) => return self.accept(ack),
                Err(error) => error,
            };
            if let Some(stream) = self.stream.take() {
                self.space
                    .client
                    .note_failure(Route::Any, &stream.target, &error);
            }
            let wait = self
                .space
                .client
                .inner
                .source
                .jittered(retry::backoff(attempt));
            if !error.retryable || wait >= deadline.remaining() {
                return Err(Error {
                    outcome: Outcome::Unknown,
                    ..error
                });
            }
            attempt += 1;
            machine::sleep(wait).await;
        }
    }

    async fn next_ack(&mut self, deadline: Deadline) -> Result<v1::ImportAck, Error> {
        if self.stream.is_none() {
            self.open(deadline).await?;
        }
        let stream = self
            .stream
            .as_mut()
            .ok_or_else(|| Error::protocol("no stream is open"))?;
        match machine::within(deadline.remaining(), stream.acks.message()).await {
            None => Err(Error::timed_out("import", self.stall_limit)),
            Some(Err(status)) => Err(Error::from_status(&status, &stream.target.address)),
            Some(Ok(Some(ack))) => {
                self.space
                    .client
                    .inner
                    .pool
                    .answered(&stream.target.address);
                Ok(ack)
            }
            Some(Ok(None)) => {
                let mut error = Error::new(
                    ErrorKind::Unavailable,
                    "STREAM_ENDED",
                    format!(
                        "{} ended the import before its last batch",
                        stream.target.address
                    ),
                );
                error.retryable = true;
                Err(error)
            }
        }
    }

    /// Opens a stream so that the first batches travel at once. A failure that may pass is met
    /// again, and dealt with, when the acknowledgements are read.
    async fn open_early(&mut self) -> Result<(), Error> {
        match self.open(Deadline::after(self.stall_limit)).await {
            Err(error) if !error.retryable => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens a stream and sends all unanswered batches on it.
    async fn open(&mut self, deadline: Deadline) -> Result<(), Error> {
        let client: &Client = &self.space.client;
        let target = client.target(Route::Any, None, deadline).await?;
        let (batches, outgoing) = mpsc::channel(IN_FLIGHT_MAX);
        for pending in &mut self.unanswered {
            let mut batch = pending.batch.clone();
            batch.request = Some(pending.ticket.id(pending.sent));
            pending.sent = true;
            drop(batches.send(batch).await);
        }
        let request = client
            .inner
            .streaming_envelope(ReceiverStream::new(outgoing));
        let mut service = memories(target.channel.clone());
        let opening = service.import(request);
        let limit = deadline.remaining().min(client.settings.attempt);
        let result = match machine::within(limit, opening).await {
            None => Err(Error::timed_out("import", limit)),
            Some(Err(status)) => Err(Error::from_status(&status, &target.address)),
            Some(Ok(response)) => Ok(response.into_inner()),
        };
        match result {
            Ok(acks) => {
                self.stream = Some(OpenStream {
                    target,
                    batches,
                    acks,
                });
                Ok(())
            }
            Err(error) => {
                client.note_failure(Route::Any, &target, &error);
                Err(error)
            }
        }
    }

    /// Acknowledgements come in the order of the batches.
    fn accept(&mut self, ack: v1::ImportAck) -> Result<BatchReport, Error> {
        let expected = self
            .unanswered
            .front()
            .map(|pending| pending.ticket.counter());
        if expected != Some(ack.counter) {
            let message = format!(
                "acknowledgement of batch {}, expected {expected:?}",
                ack.counter
            );
            return Err(Error::protocol(message));
        }
        let number = self
            .unanswered
            .pop_front()
            .map_or(0, |pending| pending.number);
        Ok(BatchReport {
            number,
            memories: ack.memories,
            edges: ack.edges,
            rejected: ack.rejected,
            present: ack.present,
        })
    }
}
