//! The services of `engram.v1` as tonic calls them: admit, carry out, answer. Nothing else.

use engram_proto::v1::cluster_server::Cluster;
use engram_proto::v1::memories_server::Memories;
use engram_proto::v1::spaces_server::Spaces;
use engram_proto::v1::{
    AlterSpaceRequest, AlterSpaceResponse, AssociateRequest, BackUpEvent, BackUpRequest,
    CancelMovesRequest, CancelMovesResponse, CreateSpaceRequest, DescribeSpaceRequest,
    DescribeSpaceResponse, DissociateRequest, DropSpaceRequest, DropSpaceResponse,
    EdgeChangeResponse, ExportBatch, ExportRequest, FindPathRequest, FindPathResponse,
    ForgetRequest, ForgetResponse, GetRequest, GetResponse, ImportAck, ImportBatch,
    ListConflictsRequest, ListConflictsResponse, ListMovesRequest, ListMovesResponse,
    ListNodesRequest, ListNodesResponse, ListPartitionsRequest, ListPartitionsResponse,
    ListSpacesRequest, ListSpacesResponse, MoveReplicaRequest, MoveReplicaResponse,
    NeighborhoodRequest, NeighborhoodResponse, NeighborsRequest, NeighborsResponse, ProbeRequest,
    ProbeResponse, RebalanceRequest, RebalanceResponse, RecallRequest, RecallResponse,
    RememberRequest, RememberResponse, SetNodeStateRequest, SetNodeStateResponse, Space,
    SpreadEvent, SpreadRequest, StatusRequest, StatusResponse, StrengthenRequest,
    TransferPrimaryRequest, TransferPrimaryResponse, VerifyRequest, VerifyResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use super::bulk::Answers;
use crate::security::{Role, require_role};

/// Admits a call, runs the method on it with its deadline, and turns a failure into a status.
macro_rules! serve {
    ($services:ident, $request:ident, $method:ident) => {{
        let admitted = $services
            .admit(&$request)
            .map_err(|failure| $services.status(&failure))?;
        let result = Box::pin($services.$method($request.into_inner(), admitted.deadline)).await;
        $services.answer(stringify!($method), &admitted, result)
    }};
}

#[tonic::async_trait]
impl Memories for Services {
    type SpreadStream = Answers<SpreadEvent>;
    type ImportStream = Answers<ImportAck>;
    type ExportStream = Answers<ExportBatch>;
    type BackUpStream = Answers<BackUpEvent>;

    async fn remember(
        &self,
        request: Request<RememberRequest>,
    ) -> Result<Response<RememberResponse>, Status> {
        serve!(self, request, remember)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        serve!(self, request, get)
    }

    async fn forget(
        &self,
        request: Request<ForgetRequest>,
    ) -> Result<Response<ForgetResponse>, Status> {
        serve!(self, request, forget)
    }

    async fn associate(
        &self,
        request: Request<AssociateRequest>,
    ) -> Result<Response<EdgeChangeResponse>, Status> {
        serve!(self, request, associate)
    }

    async fn strengthen(
        &self,
        request: Request<StrengthenRequest>,
    ) -> Result<Response<EdgeChangeResponse>, Status> {
        serve!(self, request, strengthen)
    }

    async fn dissociate(
        &self,
        request: Request<DissociateRequest>,
    ) -> Result<Response<EdgeChangeResponse>, Status> {
        serve!(self, request, dissociate)
    }

    async fn neighbors(
        &self,
        request: Request<NeighborsRequest>,
    ) -> Result<Response<NeighborsResponse>, Status> {
        serve!(self, request, neighbors)
    }

    async fn neighborhood(
        &self,
        request: Request<NeighborhoodRequest>,
    ) -> Result<Response<NeighborhoodResponse>, Status> {
        serve!(self, request, neighborhood)
    }

    async fn find_path(
        &self,
        request: Request<FindPathRequest>,
    ) -> Result<Response<FindPathResponse>, Status> {
        serve!(self, request, find_path)
    }

    async fn recall(
        &self,
        request: Request<RecallRequest>,
    ) -> Result<Response<RecallResponse>, Status> {
        serve!(self, request, recall)
    }

    async fn spread(
        &self,
        request: Request<SpreadRequest>,
    ) -> Result<Response<Self::SpreadStream>, Status> {
        if request.get_ref().reinforcement.is_some() {
            require_role(&request, Role::Write)?;
        }
        serve!(self, request, spread)
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportBatch>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        Ok(Response::new(self.import_stream(request.into_inner())))
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        serve!(self, request, export)
    }

    async fn back_up(
        &self,
        request: Request<BackUpRequest>,
    ) -> Result<Response<Self::BackUpStream>, Status> {
        serve!(self, request, back_up)
    }
}

#[tonic::async_trait]
impl Spaces for Services {
    async fn create_space(
        &self,
        request: Request<CreateSpaceRequest>,
    ) -> Result<Response<Space>, Status> {
        serve!(self, request, create_space)
    }

    async fn list_spaces(
        &self,
        _request: Request<ListSpacesRequest>,
    ) -> Result<Response<ListSpacesResponse>, Status> {
        Ok(Response::new(self.list_spaces()))
    }

    async fn describe_space(
        &self,
        request: Request<DescribeSpaceRequest>,
    ) -> Result<Response<DescribeSpaceResponse>, Status> {
        serve!(self, request, describe_space)
    }

    async fn drop_space(
        &self,
        request: Request<DropSpaceRequest>,
    ) -> Result<Response<DropSpaceResponse>, Status> {
        serve!(self, request, drop_space)
    }

    async fn alter_space(
        &self,
        request: Request<AlterSpaceRequest>,
    ) -> Result<Response<AlterSpaceResponse>, Status> {
        serve!(self, request, alter_space)
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        serve!(self, request, cluster_status)
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        serve!(self, request, list_nodes)
    }

    async fn list_partitions(
        &self,
        request: Request<ListPartitionsRequest>,
    ) -> Result<Response<ListPartitionsResponse>, Status> {
        serve!(self, request, list_partitions)
    }

    async fn list_conflicts(
        &self,
        request: Request<ListConflictsRequest>,
    ) -> Result<Response<ListConflictsResponse>, Status> {
        serve!(self, request, list_conflicts)
    }

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<VerifyResponse>, Status> {
        serve!(self, request, verify)
    }

    async fn set_node_state(
        &self,
        request: Request<SetNodeStateRequest>,
    ) -> Result<Response<SetNodeStateResponse>, Status> {
        serve!(self, request, set_node_state)
    }

    async fn rebalance(
        &self,
        request: Request<RebalanceRequest>,
    ) -> Result<Response<RebalanceResponse>, Status> {
        serve!(self, request, rebalance)
    }

    async fn move_replica(
        &self,
        request: Request<MoveReplicaRequest>,
    ) -> Result<Response<MoveReplicaResponse>, Status> {
        serve!(self, request, move_replica)
    }

    async fn transfer_primary(
        &self,
        request: Request<TransferPrimaryRequest>,
    ) -> Result<Response<TransferPrimaryResponse>, Status> {
        serve!(self, request, transfer_primary)
    }

    async fn list_moves(
        &self,
        request: Request<ListMovesRequest>,
    ) -> Result<Response<ListMovesResponse>, Status> {
        serve!(self, request, list_moves)
    }

    async fn cancel_moves(
        &self,
        request: Request<CancelMovesRequest>,
    ) -> Result<Response<CancelMovesResponse>, Status> {
        serve!(self, request, cancel_moves)
    }

    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        serve!(self, request, probe)
    }
}
