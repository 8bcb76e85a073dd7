//! The cluster as a whole: nodes, partitions, and whether all is well.

use std::collections::BTreeMap;

use engram_proto::v1::{self, node::Liveness as ApiLiveness};

use super::Services;
use super::failure::Failure;
use super::placement::api_state;
use crate::control::{PartitionRecord, SpaceRecord};
use crate::membership::Liveness;
use crate::routing::Deadline;

impl Services {
    pub(super) async fn cluster_status(
        &self,
        _request: v1::StatusRequest,
        deadline: Deadline,
    ) -> Result<v1::StatusResponse, Failure> {
        let map = self.router().map();
        let places: Vec<(&SpaceRecord, PartitionRecord)> = map.partitions().collect();
        let partitions = self.survey(&places, deadline).await;
        let headless = partitions
            .iter()
            .filter(|partition| partition.primary == 0)
            .count();
        Ok(v1::StatusResponse {
            cluster_id: map
                .cluster
                .0
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            node: self.router().local().0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control_leader: self.inner.controls.leader().map_or(0, |node| node.0),
            nodes: map.nodes.len() as u32,
            nodes_alive: self.alive_nodes(),
            spaces: map.spaces.len() as u32,
            partitions: places.len() as u32,
            partitions_without_primary: headless as u32,
            control_index: map.index,
        })
    }

    pub(super) async fn list_nodes(
        &self,
        _request: v1::ListNodesRequest,
        deadline: Deadline,
    ) -> Result<v1::ListNodesResponse, Failure> {
        let map = self.router().map();
        let places: Vec<(&SpaceRecord, PartitionRecord)> = map.partitions().collect();
        let mut primaries: BTreeMap<u64, u32> = BTreeMap::new();
        for partition in self.survey(&places, deadline).await {
            *primaries.entry(partition.primary).or_default() += 1;
        }
        let nodes = map.nodes.values().map(|node| {
            let held = places
                .iter()
                .filter(|(_, place)| map.replicas(place.group).contains(&node.id));
            v1::Node {
                id: node.id.0,
                client_address: node.client_address.clone(),
                peer_address: node.peer_address.clone(),
                http_address: node.http_address.clone(),
                zone: node.zone.clone(),
                liveness: api_liveness(self.inner.membership.liveness(node.id)).into(),
                replicas: held.count() as u32,
                primaries: primaries.get(&node.id.0).copied().unwrap_or(0),
                version: node.version.clone(),
                state: api_state(node.state).into(),
            }
        });
        Ok(v1::ListNodesResponse {
            nodes: nodes.collect(),
        })
    }

    pub(super) async fn list_partitions(
        &self,
        request: v1::ListPartitionsRequest,
        deadline: Deadline,
    ) -> Result<v1::ListPartitionsResponse, Failure> {
        if !request.space.is_empty() {
            let space = self.space(&request.space, deadline).await?;
            let places: Vec<_> = space
                .partitions
                .iter()
                .map(|place| (&space, *place))
                .collect();
            let partitions = self.survey(&places, deadline).await;
            return Ok(v1::ListPartitionsResponse { partitions });
        }
        let map = self.router().map();
        let places: Vec<_> = map.partitions().collect();
        Ok(v1::ListPartitionsResponse {
            partitions: self.survey(&places, deadline).await,
        })
    }
}

fn api_liveness(liveness: Liveness) -> ApiLiveness {
    match liveness {
        Liveness::Alive => ApiLiveness::Alive,
        Liveness::Suspect => ApiLiveness::Suspect,
        Liveness::Dead => ApiLiveness::Dead,
    }
}
