//! The calls on the memories of one space.

use engram_proto::v1;

use crate::call::{Call, Route, memories};
use crate::client::Client;
use crate::error::Error;

/// The memories of one space. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SpaceClient {
    pub(crate) client: Client,
    pub(crate) name: String,
}

/// A mutation: `$call` with the request id of the attempt filled in.
macro_rules! mutate {
    ($self:ident, $what:literal, $id:expr, $request:ident, $method:ident) => {{
        let ticket = $self.client.inner.ids.issue().await;
        $request.space = $self.name.clone();
        let id = $id.clone();
        let call = Call::write(
            $what,
            Route::Memory {
                space: &$self.name,
                id: &id,
            },
        );
        let answer = $self
            .client
            .call(
                call,
                |retried| {
                    let mut request = $request.clone();
                    request.request = Some(ticket.id(retried));
                    request
                },
                |channel, request| async move { memories(channel).$method(request).await },
            )
            .await?;
        $self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }};
}

impl SpaceClient {
    pub(crate) fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    // ---- writes ---------------------------------------------------------------------------

    /// Stores a memory. One without an id gets a UUIDv7.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remember(&self, memory: v1::Memory) -> Result<v1::RememberResponse, Error> {
        let memory = Some(memory);
        self.remember_with(v1::RememberRequest {
            memory,
            ..Default::default()
        })
        .await
    }

    /// Stores a memory with its out-edges, all or nothing, or under a version condition.
    ///
    /// # Errors
    /// See [`Error`]; among them `Conflict` when `expected_version` does not hold.
    pub async fn remember_with(
        &self,
        mut request: v1::RememberRequest,
    ) -> Result<v1::RememberResponse, Error> {
        let memory = request.memory.get_or_insert_default();
        if memory.id.is_empty() {
            memory.id = self.client.inner.source.new_uuid().to_string();
        }
        let id = memory.id.clone();
        mutate!(self, "remember", id, request, remember)
    }

    /// Removes a memory and its out-edges.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn forget(&self, id: &str) -> Result<v1::ForgetResponse, Error> {
        self.forget_with(v1::ForgetRequest {
            id: id.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Removes a memory under a version condition.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn forget_with(
        &self,
        mut request: v1::ForgetRequest,
    ) -> Result<v1::ForgetResponse, Error> {
        mutate!(self, "forget", request.id, request, forget)
    }

    /// Adds a contribution to an association.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn associate(
        &self,
        mut request: v1::AssociateRequest,
    ) -> Result<v1::EdgeChangeResponse, Error> {
        mutate!(self, "associate", source(&request.edge), request, associate)
    }

    /// Adds a contribution of weight 1 and the given confidence.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn strengthen(
        &self,
        mut request: v1::StrengthenRequest,
    ) -> Result<v1::EdgeChangeResponse, Error> {
        mutate!(
            self,
            "strengthen",
            source(&request.edge),
            request,
            strengthen
        )
    }

    /// Removes an association as it is known to the node that answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn dissociate(
        &self,
        mut request: v1::DissociateRequest,
    ) -> Result<v1::EdgeChangeResponse, Error> {
        mutate!(
            self,
            "dissociate",
            source(&request.edge),
            request,
            dissociate
        )
    }

    // ---- reads ----------------------------------------------------------------------------

    /// The memory, or none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, id: &str) -> Result<Option<v1::Memory>, Error> {
        let ids = vec![id.to_owned()];
        let answer = self
            .get_with(v1::GetRequest {
                ids,
                ..Default::default()
            })
            .await?;
        Ok(answer.memories.into_iter().next())
    }

    /// Several memories, at a chosen consistency.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_with(&self, mut request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        let route = match request.ids.as_slice() {
            [id] => Route::Memory {
                space: &self.name,
                id,
            },
            _ => Route::Any,
        };
        let answer = self
            .client
            .call(
                Call::read("get", route),
                |_| request.clone(),
                |channel, request| async move { memories(channel).get(request).await },
            )
            .await?;
        self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }

    /// The associations of a memory, strongest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn neighbors(
        &self,
        mut request: v1::NeighborsRequest,
    ) -> Result<v1::NeighborsResponse, Error> {
        use v1::neighbors_request::Direction;
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        // Out-edges live with the memory; in-edges with their sources, anywhere.
        let route = match request.direction() {
            Direction::Unspecified | Direction::Out => Route::Memory {
                space: &self.name,
                id: &request.id,
            },
            Direction::In | Direction::Both => Route::Any,
        };
        let call = Call::read("neighbors", route);
        let answer = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move { memories(channel).neighbors(request).await },
            )
            .await?;
        self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }

    /// The memories within some hops of others; without a number of hops, their component.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn neighborhood(
        &self,
        mut request: v1::NeighborhoodRequest,
    ) -> Result<v1::NeighborhoodResponse, Error> {
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        let call = Call::read("neighborhood", Route::Any);
        let answer = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move { memories(channel).neighborhood(request).await },
            )
            .await?;
        self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }

    /// The shortest or the strongest path between two memories.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_path(
        &self,
        mut request: v1::FindPathRequest,
    ) -> Result<v1::FindPathResponse, Error> {
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        let call = Call::read("find_path", Route::Any);
        let answer = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move { memories(channel).find_path(request).await },
            )
            .await?;
        self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }

    /// The memories nearest to a vector or to another memory.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn recall(
        &self,
        mut request: v1::RecallRequest,
    ) -> Result<v1::RecallResponse, Error> {
        request.space.clone_from(&self.name);
        request.token = self.session_for(request.token, request.consistency);
        let call = Call::read("recall", Route::Any);
        let answer = self
            .client
            .call(
                call,
                |_| request.clone(),
                |channel, request| async move { memories(channel).recall(request).await },
            )
            .await?;
        self.client.absorb(answer.token.as_ref());
        Ok(answer)
    }

    /// The token to send: the caller's own, else the session's with reads of session consistency.
    pub(crate) fn session_for(
        &self,
        own: Option<v1::SessionToken>,
        consistency: i32,
    ) -> Option<v1::SessionToken> {
        let session = consistency == i32::from(v1::Consistency::Session);
        own.or_else(|| session.then(|| self.client.session_token()).flatten())
    }
}

/// Edges live in the partition of their source.
fn source(edge: &Option<v1::EdgeRef>) -> String {
    edge.as_ref()
        .map(|edge| edge.from.clone())
        .unwrap_or_default()
}
