//! Answers that arrive in parts: spread, export and backup.

use engram_proto::v1;
use tonic::Streaming;

use crate::call::{Call, Route, memories};
use crate::error::Error;
use crate::machine;
use crate::memories::SpaceClient;

/// The parts of a spread as they arrive: one event per hop, then the result.
#[derive(Debug)]
pub struct SpreadStream {
    events: Streaming<v1::SpreadEvent>,
    space: SpaceClient,
}

/// A whole spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpreadAnswer {
    pub hops: Vec<v1::HopDone>,
    pub result: v1::SpreadResult,
}

/// Batches of an export as they arrive.
#[derive(Debug)]
pub struct ExportStream {
    batches: Streaming<v1::ExportBatch>,
    space: SpaceClient,
}

/// The backup of one partition as it arrives.
#[derive(Debug)]
pub struct BackUpStream {
    events: Streaming<v1::BackUpEvent>,
    space: SpaceClient,
}

impl BackUpStream {
    /// The next event; none at the end. A second `begun` voids what came before it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<v1::BackUpEvent>, Error> {
        next(&mut self.events, &self.space, "backup").await
    }
}

impl SpreadStream {
    /// The next event; none after the result.
    ///
    /// # Errors
    /// See [`Error`]. What arrived before stays valid.
    pub async fn next(&mut self) -> Result<Option<v1::SpreadEvent>, Error> {
        let event = next(&mut self.events, &self.space, "spread").await?;
        if let Some(v1::spread_event::Event::Result(result)) =
            event.as_ref().and_then(|event| event.event.as_ref())
        {
            self.space.client.absorb(result.token.as_ref());
        }
        Ok(event)
    }
}

impl ExportStream {
    /// The next batch; none at the end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<v1::ExportBatch>, Error> {
        next(&mut self.batches, &self.space, "export").await
    }
}

/// One message, within the call's deadline: it bounds the silence, not the whole stream.
async fn next<T>(
    stream: &mut Streaming<T>,
    space: &SpaceClient,
    what: &str,
) -> Result<Option<T>, Error> {
    let limit = space.client.settings.deadline;
    match machine::within(limit, stream.message()).await {
        None => Err(Error::timed_out(what, limit)),
        Some(Ok(message)) => Ok(message),
        Some(Err(status)) => Err(Error::from_status(&status, what)),
    }
}

impl SpaceClient {
    /// Spreads activation from seeds; the events arrive hop by hop. Repeated only until the stream
    /// has begun.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn spread_stream(
        &self,
        mut request: v1::SpreadRequest,
    ) -> Result<SpreadStream, Error> {
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        let call = Call::read("spread", Route::Any);
        let events = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move { memories(channel).spread(request).await },
            )
            .await?;
        Ok(SpreadStream {
            events,
            space: self.clone(),
        })
    }

    /// Spreads activation from seeds and waits for the whole answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn spread(&self, request: v1::SpreadRequest) -> Result<SpreadAnswer, Error> {
        let mut stream = self.spread_stream(request).await?;
        let mut hops = Vec::new();
        while let Some(event) = stream.next().await? {
            match event.event {
                Some(v1::spread_event::Event::Hop(hop)) => {
                    // The query began anew: what an earlier attempt said is void.
                    hops.retain(|held: &v1::HopDone| held.attempt == hop.attempt);
                    hops.push(hop);
                }
                Some(v1::spread_event::Event::Result(result)) => {
                    return Ok(SpreadAnswer { hops, result });
                }
                // An event of a newer server.
                None => {}
            }
        }
        Err(Error::protocol("the spread ended without a result"))
    }

    /// All memories and associations of the space, in batches.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn export(&self, mut request: v1::ExportRequest) -> Result<ExportStream, Error> {
        request.space.clone_from(&self.name);
        let call = Call::read("export", Route::Any);
        // The attempt's time limit is sent along and would end a long export: so none is.
        let batches = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, mut request| async move {
                    request.metadata_mut().remove("grpc-timeout");
                    memories(channel).export(request).await
                },
            )
            .await?;
        Ok(ExportStream {
            batches,
            space: self.clone(),
        })
    }

    /// One partition of the space at one sequence, in chunks for [`crate::Importer::send_chunk`].
    /// Chunks among `known`, hashes of 32 bytes one after the other, come without their data.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn back_up(
        &self,
        partition: u64,
        known: impl Into<bytes::Bytes>,
    ) -> Result<BackUpStream, Error> {
        let request = v1::BackUpRequest {
            space: self.name.clone(),
            partition,
            known: known.into(),
        };
        let call = Call::read("back up", Route::Any);
        let events = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, mut request| async move {
                    request.metadata_mut().remove("grpc-timeout");
                    memories(channel).back_up(request).await
                },
            )
            .await?;
        Ok(BackUpStream {
            events,
            space: self.clone(),
        })
    }
}
