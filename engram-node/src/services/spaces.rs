//! Spaces: creating, listing, describing and dropping them.

use std::time::Duration;

use engram_core::limits::{DIMENSION_MAX, DIMENSION_MIN, PARTITIONS_MAX, REPLICAS_MAX};
use engram_core::planted;
use engram_core::types::{IndexParameters, SpaceConfig, SpaceId};
use engram_proto::convert::{
    DecodeError, decay_from_api, decay_to_api, metric_from_api, quantization_from_api,
};
use engram_proto::v1;
use futures::future::{join, join_all};

use super::ControlFailure;
use super::Services;
use super::failure::{Failure, InputError};
use super::survey::status_query;
use crate::control::{
    ControlCommand, ControlOutcome, ControlRefusal, LocalFallback, NewSpace, SpaceRecord,
};
use crate::membership::Liveness;
use crate::placement::planner::plan_space;
use crate::routing::{Deadline, ReadAt, ReadError};

/// Replicas of a space that names none, where the cluster has so many nodes.
const REPLICAS_DEFAULT: u32 = 3;
/// How long the creation of a space waits for its partitions to have primaries.
const READY_WAIT: Duration = Duration::from_secs(8);
/// How long the description of a space waits for a majority to confirm that the space is there.
const CONFIRM_WAIT: Duration = Duration::from_secs(2);

/// What is known of a space that this node's map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It was there when it was asked for.
    Confirmed,
    /// No majority of its first partition answered in time.
    Unclear,
    /// It was dropped, and this node's map has come to know it.
    Gone,
}

impl Services {
    pub(super) async fn create_space(
        &self,
        request: v1::CreateSpaceRequest,
        deadline: Deadline,
    ) -> Result<v1::Space, Failure> {
        let mut seed = [0; 8];
        self.router().seams().entropy.fill(&mut seed);
        let config = config_of(&request, u64::from_le_bytes(seed))?;
        let map = self.router().map();
        let liveness = self.inner.membership.view();
        let partitions = request.partitions.max(1);
        let replicas = match request.replicas {
            0 if map.nodes.len() >= REPLICAS_DEFAULT as usize => REPLICAS_DEFAULT,
            0 => 1,
            replicas => replicas,
        };
        in_range("partitions", partitions, 1, PARTITIONS_MAX)?;
        in_range("replicas", replicas, 1, REPLICAS_MAX)?;
        let placement = plan_space(&map, &liveness, partitions, replicas)?;
        let wanted = NewSpace {
            config,
            replicas,
            placement,
            local_fallback: local_fallback_of(&request)?,
        };
        let (id, existed) = self.create_when_free(&wanted, deadline).await?;
        if existed && !request.if_not_exists {
            return Err(exists(&request.name));
        }
        // Not by its name: this node's map may be behind, and know an earlier space under it.
        let ready = self.router().deadline(self.ready_wait(deadline));
        if self
            .wait_for_map(ready, |map| map.spaces.contains_key(&id))
            .await
            && let Some(space) = self.router().map().spaces.get(&id)
        {
            self.wait_ready(space, deadline).await;
        }
        let partitions = wanted.placement.len();
        let config = SpaceConfig {
            space: id,
            ..wanted.config
        };
        let shape = (partitions, replicas, wanted.local_fallback);
        Ok(api_space(&config, shape))
    }

    /// Executes the creation once no dropped space has the name any more; the space's id, and
    /// whether it was there before.
    async fn create_when_free(
        &self,
        wanted: &NewSpace,
        deadline: Deadline,
    ) -> Result<(SpaceId, bool), Failure> {
        let name = wanted.config.name.as_str();
        let command = ControlCommand::CreateSpace(wanted.clone());
        loop {
            let wait = deadline.left(self.router().seams());
            let reply = self.inner.controls.execute(command.clone(), wait).await?;
            match reply.outcome {
                // The seed is this call's own: with another one, the space was there before.
                Ok(ControlOutcome::SpaceCreated { space, existed }) => {
                    return Ok((space, existed));
                }
                Err(ControlRefusal::SpaceBeingDropped { .. })
                    if self
                        .wait_for_map(deadline, |map| {
                            map.index >= reply.index && map.being_dropped(name).is_none()
                        })
                        .await => {}
                Ok(_) => {
                    return Err(Failure::Internal(
                        "a creation was answered with else".into(),
                    ));
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    fn ready_wait(&self, deadline: Deadline) -> Duration {
        deadline.left(self.router().seams()).min(READY_WAIT) * 9 / 10
    }

    /// Gives the partitions time to get their primaries, so that the first write finds them. It is
    /// a courtesy: writes wait by themselves.
    async fn wait_ready(&self, space: &SpaceRecord, deadline: Deadline) {
        let ready = self.router().deadline(self.ready_wait(deadline));
        let query = status_query();
        let places = space.partitions.iter();
        let asked = places.map(|place| {
            self.router()
                .read(*place, &query, &ReadAt::Linearizable, ready)
        });
        join_all(asked).await;
    }

    pub(super) fn list_spaces(&self) -> v1::ListSpacesResponse {
        let map = self.router().map();
        v1::ListSpacesResponse {
            spaces: map.spaces.values().map(api_space_of).collect(),
        }
    }

    pub(super) async fn describe_space(
        &self,
        request: v1::DescribeSpaceRequest,
        deadline: Deadline,
    ) -> Result<v1::DescribeSpaceResponse, Failure> {
        let (space, partitions, confirmed) = loop {
            let space = self.space(&request.name, deadline).await?;
            let places: Vec<_> = space
                .partitions
                .iter()
                .map(|place| (&space, *place))
                .collect();
            let asked = join(
                self.survey(&places, deadline),
                self.standing(&space, deadline),
            );
            match asked.await {
                (_, Standing::Gone) => {}
                (partitions, standing) => {
                    break (space, partitions, standing == Standing::Confirmed);
                }
            }
        };
        let newest = |partition: &v1::Partition| {
            let reachable = partition
                .replicas
                .iter()
                .filter(|replica| replica.reachable);
            reachable
                .max_by_key(|replica| replica.sequence)
                .cloned()
                .unwrap_or_default()
        };
        Ok(v1::DescribeSpaceResponse {
            purging: partitions
                .iter()
                .filter(|partition| is_purging(partition))
                .map(|partition| partition.id)
                .collect(),
            space: Some(api_space_of(&space)),
            memories: partitions
                .iter()
                .map(|partition| newest(partition).memories)
                .sum(),
            edges: partitions
                .iter()
                .map(|partition| newest(partition).edges)
                .sum(),
            index_bytes: partitions
                .iter()
                .flat_map(|partition| &partition.replicas)
                .map(|replica| replica.index_bytes)
                .sum(),
            partitions,
            confirmed,
        })
    }

    /// Whether the space is what its name stands for now, and not only in this node's map, which may
    /// be old. A name is used again when each partition of the earlier space was dropped in the log
    /// of its group (ADR 0009), so that a read of one of them, confirmed by a majority, is enough.
    async fn standing(&self, space: &SpaceRecord, deadline: Deadline) -> Standing {
        let Some(place) = space.partitions.first() else {
            return Standing::Unclear;
        };
        if planted!("space-by-hearsay") {
            return Standing::Confirmed;
        }
        let query = status_query();
        let wait = deadline.left(self.router().seams()).min(CONFIRM_WAIT);
        let by = self.router().deadline(wait);
        let read = self
            .router()
            .read(*place, &query, &ReadAt::Linearizable, by);
        match read.await {
            Ok(_) => Standing::Confirmed,
            Err(ReadError::Gone { .. }) => Standing::Gone,
            Err(
                ReadError::Unavailable { .. } | ReadError::Behind { .. } | ReadError::Invalid(_),
            ) => Standing::Unclear,
        }
    }

    pub(super) async fn drop_space(
        &self,
        request: v1::DropSpaceRequest,
        deadline: Deadline,
    ) -> Result<v1::DropSpaceResponse, Failure> {
        let wait = deadline.left(self.router().seams());
        let command = ControlCommand::DropSpace { name: request.name };
        let reply = self.inner.controls.execute(command, wait).await?;
        let ControlOutcome::SpaceDropped { space } = reply.outcome? else {
            return Err(Failure::Internal("a drop was answered with else".into()));
        };
        // Who hears that it is gone may make it again, through any node. So no node may serve it any
        // more, however old its map is.
        let gone = self.wait_for_map(deadline, |map| {
            map.index >= reply.index && !map.dropping.contains_key(&space)
        });
        if gone.await {
            return Ok(v1::DropSpaceResponse {});
        }
        Err(Failure::Control(ControlFailure {
            unknown: true,
            leader: self.inner.controls.leader(),
            reason: "the space is being dropped, not all of its groups have learned it yet".into(),
        }))
    }

    pub(super) fn alive_nodes(&self) -> u32 {
        let (map, view) = (self.router().map(), self.inner.membership.view());
        let alive = |node: &&engram_core::types::NodeId| view.get(node) == Some(&Liveness::Alive);
        map.nodes.keys().filter(alive).count() as u32
    }
}

fn exists(name: &str) -> Failure {
    let reason = format!("{name:?}; ask with if_not_exists to have it as it is");
    ControlRefusal::SpaceExistsDifferent { reason }.into()
}

pub(super) fn in_range(
    what: &'static str,
    actual: u32,
    min: u32,
    max: u32,
) -> Result<(), InputError> {
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    let [actual, min, max] = [actual, min, max].map(f64::from);
    Err(InputError::OutOfRange {
        what,
        actual,
        min,
        max,
    })
}

fn local_fallback_of(request: &v1::CreateSpaceRequest) -> Result<LocalFallback, InputError> {
    use v1::LocalFallback as Api;
    match Api::try_from(request.local_fallback) {
        Ok(Api::Unspecified | Api::Allowed) => Ok(LocalFallback::Allowed),
        Ok(Api::Refused) => Ok(LocalFallback::Refused),
        Err(_) => Err(DecodeError::NotUnderstood("the local fallback").into()),
    }
}

/// The configuration that a request asks for, checked.
fn config_of(request: &v1::CreateSpaceRequest, seed: u64) -> Result<SpaceConfig, InputError> {
    in_range(
        "the dimension",
        request.dimension,
        DIMENSION_MIN,
        DIMENSION_MAX,
    )?;
    let mut index = IndexParameters::new(seed);
    if request.m != 0 {
        index.m = request.m;
    }
    if request.ef_construction != 0 {
        index.ef_construction = request.ef_construction;
    }
    index.quantization = quantization_from_api(request.quantization)?;
    let config = SpaceConfig {
        space: SpaceId(0),
        name: request.name.clone(),
        dimension: request.dimension,
        metric: metric_from_api(request.metric)?,
        index,
        embedding_model: request.embedding_model.clone(),
        decay: decay_from_api(request.decay)?,
    };
    config.check()?;
    Ok(config)
}

/// A space as the API shows it.
pub fn api_space_of(space: &SpaceRecord) -> v1::Space {
    let shape = (space.partitions.len(), space.replicas, space.local_fallback);
    api_space(&space.config, shape)
}

fn api_space(
    config: &SpaceConfig,
    (partitions, replicas, local_fallback): (usize, u32, LocalFallback),
) -> v1::Space {
    v1::Space {
        id: config.space.0,
        name: config.name.clone(),
        dimension: config.dimension,
        metric: v1::Metric::from(config.metric).into(),
        partitions: partitions as u32,
        replicas,
        m: config.index.m,
        ef_construction: config.index.ef_construction,
        embedding_model: config.embedding_model.clone(),
        decay: decay_to_api(config.decay),
        quantization: v1::Quantization::from(config.index.quantization).into(),
        local_fallback: match local_fallback {
            LocalFallback::Allowed => v1::LocalFallback::Allowed,
            LocalFallback::Refused => v1::LocalFallback::Refused,
        }
        .into(),
    }
}

/// Whether a replica may still hold something of what was purged. One that does not answer may,
/// whenever anything was.
fn is_purging(partition: &v1::Partition) -> bool {
    let replicas = &partition.replicas;
    let last = replicas.iter().map(|replica| replica.purge_last).max();
    last.is_some_and(|last| replicas.iter().any(|replica| replica.purge_done < last))
}

#[cfg(test)]
mod tests {
    use engram_core::types::{Metric, SpaceConfigError};

    use super::*;

    fn request() -> v1::CreateSpaceRequest {
        v1::CreateSpaceRequest {
            name: "words".into(),
            dimension: 384,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = config_of(&request(), 9).unwrap();
        assert_eq!(config.metric, Metric::Cosine);
        assert_eq!(config.index, IndexParameters::new(9));
    }

    #[test]
    fn impossible_spaces_are_refused() {
        let check = |request: v1::CreateSpaceRequest| config_of(&request, 1).unwrap_err();
        let nameless = check(v1::CreateSpaceRequest {
            name: String::new(),
            ..request()
        });
        assert_eq!(nameless, InputError::Config(SpaceConfigError::Name));
        let flat = check(v1::CreateSpaceRequest {
            dimension: 0,
            ..request()
        });
        assert!(matches!(flat, InputError::OutOfRange { .. }));
        let wide = check(v1::CreateSpaceRequest {
            m: 1_000,
            ..request()
        });
        assert!(matches!(wide, InputError::Config(_)));
        let metric = check(v1::CreateSpaceRequest {
            metric: 17,
            ..request()
        });
        assert!(matches!(metric, InputError::Decode(_)));
    }
}
