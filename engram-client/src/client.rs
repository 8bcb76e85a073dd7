//! The client itself: what it shares between calls, and the calls on spaces and the cluster.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use engram_proto::v1;
use tonic::metadata::{Ascii, MetadataValue};

use crate::builder::ClientBuilder;
use crate::call::{Call, Route};
use crate::error::Error;
use crate::machine::Source;
use crate::memories::SpaceClient;
use crate::pool::Pool;
use crate::requests::RequestIds;
use crate::retry::{Budget, Safety};
use crate::routing::Routes;
use crate::session::Session;

/// A connection to a cluster. Cheap to clone; clones share connections, request ids and map.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    pub(crate) settings: Settings,
}

/// What all clones share.
pub(crate) struct Inner {
    pub(crate) source: Source,
    pub(crate) pool: Pool,
    pub(crate) authorization: Option<MetadataValue<Ascii>>,
    pub(crate) ids: Arc<RequestIds>,
    pub(crate) routes: Routes,
    pub(crate) budget: Budget,
    pub(crate) session: Option<Session>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) attempt: Duration,
    pub(crate) routing: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn new(inner: Arc<Inner>, settings: Settings) -> Self {
        Self { inner, settings }
    }

    /// The same client with another deadline per call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let settings = Settings {
            deadline,
            ..self.settings
        };
        Self {
            inner: self.inner.clone(),
            settings,
        }
    }

    /// The memories of one space. Says nothing on the network.
    #[must_use]
    pub fn space(&self, name: impl Into<String>) -> SpaceClient {
        SpaceClient::new(self.clone(), name.into())
    }

    /// Positions in the logs of all that this client has read and written; none when it was built
    /// without a session.
    #[must_use]
    pub fn session_token(&self) -> Option<v1::SessionToken> {
        self.inner.session.as_ref().map(Session::token)
    }

    /// Goes on with what another client has read and written, given its token: reads of session
    /// consistency then show that, too. Says nothing to a client that was built without a session.
    pub fn absorb(&self, token: Option<&v1::SessionToken>) {
        if let (Some(session), Some(token)) = (&self.inner.session, token) {
            session.merge(token);
        }
    }

    // ---- spaces ---------------------------------------------------------------------------

    /// Creates a space. Repeated after an unknown outcome only with `if_not_exists`.
    ///
    /// # Errors
    /// See [`Error`]; among them `AlreadyExists` when the name is taken.
    pub async fn create_space(&self, request: v1::CreateSpaceRequest) -> Result<v1::Space, Error> {
        let safety = if request.if_not_exists {
            Safety::Repeatable
        } else {
            Safety::Once
        };
        let call = Call {
            what: "create space",
            route: Route::Any,
            safety,
            waits: false,
        };
        self.call(call, |_| request.clone(), |channel, request| async move {
            crate::call::spaces(channel).create_space(request).await
        })
        .await
    }

    /// # Errors
    /// See [`Error`].
    pub async fn list_spaces(&self) -> Result<Vec<v1::Space>, Error> {
        let call = Call::read("list spaces", Route::Any);
        let answer = self
            .call(
                call,
                |_| v1::ListSpacesRequest {},
                |channel, request| async move {
                    crate::call::spaces(channel).list_spaces(request).await
                },
            )
            .await?;
        Ok(answer.spaces)
    }

    /// # Errors
    /// See [`Error`].
    pub async fn describe_space(&self, name: &str) -> Result<v1::DescribeSpaceResponse, Error> {
        let request = v1::DescribeSpaceRequest {
            name: name.to_owned(),
        };
        let call = Call::read("describe space", Route::Any);
        self.call(call, |_| request.clone(), |channel, request| async move {
            crate::call::spaces(channel).describe_space(request).await
        })
        .await
    }

    /// Drops a space with all that it holds. Not repeated after an unknown outcome, since a space
    /// of that name may have been made anew.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn drop_space(&self, name: &str) -> Result<(), Error> {
        let request = v1::DropSpaceRequest {
            name: name.to_owned(),
        };
        let call = Call {
            what: "drop space",
            route: Route::Any,
            safety: Safety::Once,
            waits: false,
        };
        self.call(call, |_| request.clone(), |channel, request| async move {
            crate::call::spaces(channel).drop_space(request).await
        })
        .await?;
        self.inner.routes.forget(name);
        Ok(())
    }

    // ---- cluster --------------------------------------------------------------------------

    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        let call = Call::read("cluster status", Route::Any);
        self.call(
            call,
            |_| v1::StatusRequest {},
            |channel, request| async move { crate::call::cluster(channel).status(request).await },
        )
        .await
    }

    /// # Errors
    /// See [`Error`].
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        let call = Call::read("list nodes", Route::Any);
        let answer = self
            .call(
                call,
                |_| v1::ListNodesRequest {},
                |channel, request| async move {
                    crate::call::cluster(channel).list_nodes(request).await
                },
            )
            .await?;
        self.inner
            .pool
            .learn(answer.nodes.iter().map(|node| node.client_address.clone()));
        Ok(answer.nodes)
    }

    /// The partitions of a space, or of all spaces.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn partitions(&self, space: Option<&str>) -> Result<Vec<v1::Partition>, Error> {
        let request = v1::ListPartitionsRequest {
            space: space.unwrap_or_default().to_owned(),
        };
        let call = Call::read("list partitions", Route::Any);
        let answer = self
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move {
                    crate::call::cluster(channel).list_partitions(request).await
                },
            )
            .await?;
        Ok(answer.partitions)
    }

    /// Changes of associations that came too late to be decided: the newest of each partition, up
    /// to `limit` (0: 100).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn conflicts(
        &self,
        space: &str,
        limit: u32,
    ) -> Result<v1::ListConflictsResponse, Error> {
        let request = v1::ListConflictsRequest {
            space: space.to_owned(),
            limit,
        };
        let call = Call::read("list conflicts", Route::Any);
        self.call(
            call,
            |_| request.clone(),
            |channel, request| async move {
                crate::call::cluster(channel).list_conflicts(request).await
            },
        )
        .await
    }

    /// Compares the digests of every replica, per partition at one sequence. `deep` also
    /// recomputes the digests of records from disk.
    ///
    /// # Errors
    /// See [`Error`]. Unequal replicas are an answer and not an error.
    pub async fn verify(&self, space: &str, deep: bool) -> Result<v1::VerifyResponse, Error> {
        let request = v1::VerifyRequest {
            space: space.to_owned(),
            deep,
        };
        let call = Call::waiting("verify", Route::Any);
        self.call(
            call,
            |_| request.clone(),
            |channel, request| async move { crate::call::cluster(channel).verify(request).await },
        )
        .await
    }
}
