//! Steering a cluster: states of nodes, moves, transfers, rebalancing, probing.
//!
//! All of these may be repeated without harm: each says what is to be, not what is to change.

use engram_proto::v1;

use crate::call::{Call, Route, cluster, spaces};
use crate::client::Client;
use crate::error::Error;

impl Client {
    /// Changes the number of a space's replicas; the moves that follow go on by themselves. What
    /// stands in the way is an answer and not an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn alter_space(
        &self,
        request: v1::AlterSpaceRequest,
    ) -> Result<v1::AlterSpaceResponse, Error> {
        let call = Call::write("alter space", Route::Any);
        self.call(
            call,
            |_| request.clone(),
            |channel, request| async move { spaces(channel).alter_space(request).await },
        )
        .await
    }

    /// Drains a node, takes it into maintenance or out of the cluster, or back. What stands in the
    /// way is an answer and not an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_node_state(
        &self,
        request: v1::SetNodeStateRequest,
    ) -> Result<v1::SetNodeStateResponse, Error> {
        let call = Call::write("set node state", Route::Any);
        self.call(
            call,
            |_| request,
            |channel, request| async move { cluster(channel).set_node_state(request).await },
        )
        .await
    }

    /// Plans moves that spread replicas, primaries and bytes evenly, and starts them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rebalance(
        &self,
        request: v1::RebalanceRequest,
    ) -> Result<v1::RebalanceResponse, Error> {
        let call = Call::write("rebalance", Route::Any);
        self.call(
            call,
            |_| request,
            |channel, request| async move { cluster(channel).rebalance(request).await },
        )
        .await
    }

    /// Moves one replica of a partition's group to another node; it goes on by itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_replica(
        &self,
        request: v1::MoveReplicaRequest,
    ) -> Result<v1::MoveReplicaResponse, Error> {
        let call = Call::write("move replica", Route::Any);
        self.call(
            call,
            |_| request,
            |channel, request| async move { cluster(channel).move_replica(request).await },
        )
        .await
    }

    /// Makes another replica of a partition's group the primary; it follows in a moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_primary(
        &self,
        request: v1::TransferPrimaryRequest,
    ) -> Result<v1::TransferPrimaryResponse, Error> {
        let call = Call::write("transfer primary", Route::Any);
        self.call(
            call,
            |_| request,
            |channel, request| async move { cluster(channel).transfer_primary(request).await },
        )
        .await
    }

    /// Moves under way, and those that wait for their turn.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn moves(&self) -> Result<Vec<v1::Move>, Error> {
        let call = Call::read("list moves", Route::Any);
        let answer = self
            .call(
                call,
                |_| v1::ListMovesRequest {},
                |channel, request| async move { cluster(channel).list_moves(request).await },
            )
            .await?;
        Ok(answer.moves)
    }

    /// Ends moves of these groups, or all: the replicas go back to where they were.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_moves(
        &self,
        request: v1::CancelMovesRequest,
    ) -> Result<v1::CancelMovesResponse, Error> {
        let call = Call::write("cancel moves", Route::Any);
        self.call(
            call,
            |_| request.clone(),
            |channel, request| async move { cluster(channel).cancel_moves(request).await },
        )
        .await
    }

    /// One linearizable round trip through every partition.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn probe(&self, request: v1::ProbeRequest) -> Result<v1::ProbeResponse, Error> {
        let call = Call::read("probe", Route::Any);
        self.call(
            call,
            |_| request.clone(),
            |channel, request| async move { cluster(channel).probe(request).await },
        )
        .await
    }
}
