//! One call: attempts at one node after another until an answer, a final refusal or the deadline.

use std::future::Future;
use std::time::Duration;

use engram_proto::v1;
use engram_proto::v1::cluster_client::ClusterClient;
use engram_proto::v1::memories_client::MemoriesClient;
use engram_proto::v1::spaces_client::SpacesClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::MESSAGE_BYTES_MAX;
use crate::client::{Client, Inner};
use crate::error::{Error, ErrorKind, Outcome};
use crate::machine::{self, Deadline};
use crate::pool::Target;
use crate::retry::{self, Next, Safety};
use crate::routing::Found;

/// Longest wait for the cluster map; without it the request goes unrouted.
const LEARN_LIMIT: Duration = Duration::from_secs(1);

/// What is called, where it belongs and whether it may be repeated.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// For messages: what was being done.
    pub(crate) what: &'static str,
    pub(crate) route: Route<'a>,
    pub(crate) safety: Safety,
    /// The node itself waits for something: an attempt may take all of the call's time.
    pub(crate) waits: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    /// Any node.
    Any,
    /// The primary of this memory's partition.
    Memory { space: &'a str, id: &'a str },
}

impl<'a> Call<'a> {
    pub(crate) fn read(what: &'static str, route: Route<'a>) -> Self {
        Self {
            what,
            route,
            safety: Safety::Read,
            waits: false,
        }
    }

    pub(crate) fn write(what: &'static str, route: Route<'a>) -> Self {
        Self {
            what,
            route,
            safety: Safety::Repeatable,
            waits: false,
        }
    }

    /// A read for which the node waits until others have come so far.
    pub(crate) fn waiting(what: &'static str, route: Route<'a>) -> Self {
        Self {
            waits: true,
            ..Self::read(what, route)
        }
    }
}

pub(crate) fn memories(channel: Channel) -> MemoriesClient<Channel> {
    MemoriesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn spaces(channel: Channel) -> SpacesClient<Channel> {
    SpacesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// What a call remembers from its failed attempts.
#[derive(Default)]
struct History {
    attempts: u32,
    unknown: bool,
    /// Address that the next attempt follows.
    hint: Option<String>,
}

impl Client {
    /// Runs a call. `request` makes the message of an attempt; its argument says whether it is a
    /// repetition.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome of a mutation unknown.
    pub(crate) async fn call<Q, R, F>(
        &self,
        call: Call<'_>,
        request: impl Fn(bool) -> Q,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Deadline::after(self.settings.deadline);
        let mut history = History::default();
        loop {
            let followed = history.hint.is_some();
            let target = self
                .target(call.route, history.hint.take(), deadline)
                .await?;
            let message = request(history.attempts > 0);
            let limit = match call.waits {
                true => deadline.remaining(),
                false => deadline.remaining().min(self.settings.attempt),
            };
            let attempt = send(target.channel.clone(), self.inner.envelope(message, limit));
            let error = match machine::within(limit, attempt).await {
                Some(Ok(response)) => {
                    self.inner.pool.answered(&target.address);
                    self.inner.budget.succeeded();
                    return Ok(response.into_inner());
                }
                Some(Err(status)) => Error::from_status(&status, &target.address),
                None => Error::timed_out(&format!("{} at {}", call.what, target.address), limit),
            };
            debug!(what = call.what, node = %target.address, %error, "attempt failed");
            self.note_failure(call.route, &target, &error);
            self.settle(call, &mut history, error, followed, deadline)
                .await?;
        }
    }

    /// Waits until the next attempt, or ends the call with the error to report.
    async fn settle(
        &self,
        call: Call<'_>,
        history: &mut History,
        mut error: Error,
        followed: bool,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let next = retry::next(&error, call.safety, history.attempts, followed);
        let wait = match next {
            Next::GiveUp => None,
            Next::Follow => Some(Duration::ZERO),
            Next::Wait(limit) => Some(self.inner.source.jittered(limit)),
        };
        error.outcome = retry::outcome(&error, history.unknown, call.safety);
        let Some(wait) = wait.filter(|wait| *wait < deadline.remaining()) else {
            return Err(error);
        };
        if !self.inner.budget.take() {
            let limit = self.inner.budget.most();
            error.message = format!(
                "{}; the client's budget of {limit} retries is spent",
                error.message
            );
            return Err(error);
        }
        history.unknown |= error.outcome == Outcome::Unknown;
        history.attempts += 1;
        history.hint = error.leader_hint.take();
        machine::sleep(wait).await;
        Ok(())
    }

    /// The node for the next attempt: the hinted one, else the primary, else any.
    pub(crate) async fn target(
        &self,
        route: Route<'_>,
        hint: Option<String>,
        deadline: Deadline,
    ) -> Result<Target, Error> {
        let preferred = match (hint, route) {
            (Some(hint), _) => Some(hint),
            (None, Route::Memory { space, id }) if self.settings.routing => {
                self.primary(space, id, deadline).await
            }
            (None, _) => None,
        };
        self.inner.pool.pick(preferred.as_deref())
    }

    async fn primary(&self, space: &str, id: &str, deadline: Deadline) -> Option<String> {
        if self.inner.routes.find(space, id) == Found::Learn {
            self.learn(space, deadline.remaining().min(LEARN_LIMIT))
                .await;
        }
        match self.inner.routes.find(space, id) {
            Found::Route(primary) => primary,
            Found::Learn => None,
        }
    }

    /// Learns the map of a space; when another caller is at it, or it fails, leaves it as it is.
    async fn learn(&self, space: &str, limit: Duration) {
        let Ok(_learning) = self.inner.routes.learning.try_lock() else {
            return;
        };
        let Ok(target) = self.inner.pool.pick(None) else {
            return;
        };
        let mut client = cluster(target.channel);
        let nodes = self.inner.envelope(v1::ListNodesRequest {}, limit);
        let request = v1::ListPartitionsRequest {
            space: space.to_owned(),
        };
        let partitions = self.inner.envelope(request, limit);
        let both = async {
            let nodes = client.list_nodes(nodes).await?.into_inner().nodes;
            let partitions = client
                .list_partitions(partitions)
                .await?
                .into_inner()
                .partitions;
            Ok::<_, Status>((nodes, partitions))
        };
        match machine::within(limit, both).await {
            Some(Ok((nodes, partitions))) => {
                self.inner
                    .pool
                    .learn(nodes.iter().map(|node| node.client_address.clone()));
                self.inner.routes.learned(space, &nodes, &partitions);
            }
            Some(Err(status)) => {
                let error = Error::from_status(&status, &target.address);
                if error.is_connection() {
                    self.inner.pool.failed(&target.address);
                }
                debug!(%error, "the cluster map could not be learned");
            }
            None => self.inner.pool.failed(&target.address),
        }
    }

    /// Connections that failed are passed over; a map that led astray is learned again.
    pub(crate) fn note_failure(&self, route: Route<'_>, target: &Target, error: &Error) {
        let unreachable = error.is_connection() || error.kind == ErrorKind::DeadlineExceeded;
        if unreachable {
            self.inner.pool.failed(&target.address);
        }
        if let Route::Memory { space, .. } = route
            && (unreachable || error.leader_hint.is_some())
        {
            self.inner.routes.stale(space);
        }
    }
}

impl Inner {
    /// A message with the caller's credentials and the time that it has.
    pub(crate) fn envelope<Q>(&self, message: Q, limit: Duration) -> Request<Q> {
        let mut request = self.streaming_envelope(message);
        request.set_timeout(limit);
        request
    }

    /// The same without a limit, for streams that live as long as there is progress.
    pub(crate) fn streaming_envelope<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        request
    }
}
