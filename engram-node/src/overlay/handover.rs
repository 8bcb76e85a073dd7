//! Edge changes on the way out: what placement brings to another replica before this one goes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::partition::Partition;
use engram_core::types::{GroupId, NodeId, OverlayContext, PartitionId};
use engram_proto::peer::OverlayExchange;
use engram_proto::peer::overlay_client::OverlayClient;

use super::parts::{self, EXCHANGE_BYTES_MAX, Part};
use super::runner::OverlayService;
use crate::placement::mover::Overlays;
use crate::routing::{Links, MESSAGE_BYTES_MAX, Router};
use crate::transport::PeerChannel;

/// Messages of one handover; the next attempt sends more.
const PUSHES_MAX: u32 = 256;
/// How long one message may take.
const PUSH_WAIT: Duration = Duration::from_millis(2_000);

/// Hands over what this node holds.
pub struct Handover {
    router: Router,
    links: Arc<dyn Links>,
    cluster: [u8; 16],
}

impl Handover {
    #[must_use]
    pub fn new(service: &OverlayService, links: Arc<dyn Links>) -> Self {
        Self {
            router: service.router().clone(),
            links,
            cluster: service.cluster(),
        }
    }

    fn partitions(&self, group: GroupId) -> Vec<Arc<Partition>> {
        let all = self.router.here().partitions().into_iter();
        all.filter(|(of, _)| *of == group)
            .map(|(_, partition)| partition)
            .collect()
    }

    /// Sends what the other replica lacks until it lacks nothing. What it sends is left alone: a
    /// retired partition takes nothing in.
    async fn push_one(&self, partition: &Arc<Partition>, to: NodeId) -> Result<(), String> {
        let channel = self.links.channel(to).ok_or("its address is not known")?;
        let mut client = OverlayClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut seen = None;
        for _ in 0..PUSHES_MAX {
            let answer = self.push_some(&mut client, partition, seen.take()).await?;
            if answer.no_replica {
                return Err("it has no replica yet".into());
            }
            let there = answer.seen.ok_or("it did not say what it has")?;
            let lacks = Arc::clone(partition);
            let asked = there.clone();
            let lacks = move || !lacks.overlay_missing_from(&asked, 1).is_empty();
            if !self.router.seams().blocking(lacks).await {
                return Ok(());
            }
            seen = Some(there);
        }
        Err("it still lacks some".into())
    }

    /// One message with what somebody who has seen this lacks.
    async fn push_some(
        &self,
        client: &mut OverlayClient<PeerChannel>,
        partition: &Arc<Partition>,
        seen: Option<OverlayContext>,
    ) -> Result<Part, String> {
        let seams = self.router.seams();
        let (held, id) = (Arc::clone(partition), partition.id());
        let part = move || {
            let mut room = EXCHANGE_BYTES_MAX;
            parts::full(&held, &held.position(), seen.as_ref(), &mut room)
        };
        let request = OverlayExchange {
            cluster: self.cluster.to_vec().into(),
            node: self.router.local().0,
            parts: vec![seams.blocking(part).await],
        };
        let call = Box::pin(client.exchange(request));
        let answer = seams.timeout(PUSH_WAIT, call).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        let parts = parts::decode(answer.into_inner().parts);
        let parts = parts.map_err(|error| error.to_string())?;
        let answered = parts.into_iter().find(|part| part.partition == id);
        answered.ok_or_else(|| "it did not answer for the partition".to_owned())
    }
}

#[async_trait]
impl Overlays for Handover {
    async fn push(&self, group: GroupId, to: NodeId) -> Result<(), String> {
        let map = self.router.map();
        // Ids are not used again: one below the next that no space has was dropped. A replica that
        // was behind in its group's log may still hold it, and nobody else needs it any more.
        let dropped = |id: PartitionId| id.0 < map.next_partition && map.partition(id).is_none();
        for partition in self.partitions(group) {
            let id = partition.id();
            if dropped(id) {
                continue;
            }
            let pushed = self.push_one(&partition, to).await;
            pushed.map_err(|reason| format!("partition {id}: {reason}"))?;
        }
        Ok(())
    }

    async fn retire(&self, group: GroupId) {
        let partitions = self.partitions(group);
        // It waits for changes that are being written.
        let retire = move || partitions.iter().for_each(|partition| partition.retire());
        self.router.seams().blocking(retire).await;
    }
}

#[cfg(test)]
mod tests {
    use engram_core::command::EdgeChange;
    use engram_core::partition::{LocalChange, LocalError};
    use engram_core::types::{
        ActorId, ClientId, Hlc, MemoryId, Relation, RequestId, SlotRange, Unit,
    };
    use tokio::sync::watch;

    use super::*;
    use crate::control::ClusterMap;
    use crate::routing::fakes::{Held, NoClocks, NoGroups, NoLinks, partition, system_seams};
    use crate::routing::{Dialer, Groups, Here};

    const GROUP: GroupId = GroupId(4);

    fn change(counter: u64) -> LocalChange {
        LocalChange {
            request: RequestId {
                client: ClientId([1; 16]),
                counter,
                index: 0,
            },
            retried: false,
            stamp: Hlc(1),
            from: MemoryId::new("a").unwrap(),
            to: MemoryId::new("b").unwrap(),
            relation: Relation::new("r").unwrap(),
            change: EdgeChange::Contribute {
                weight: Unit::ONE,
                confidence: Unit::ONE,
            },
        }
    }

    #[tokio::test]
    async fn a_replica_that_goes_takes_no_more_changes_and_keeps_what_it_holds_to_hand_over() {
        let (news, map) = watch::channel(Arc::new(ClusterMap::default()));
        let replica = partition(PartitionId(3), SlotRange::ALL);
        let (seams, groups): (_, Arc<dyn Groups>) = (system_seams(), Arc::new(NoGroups));
        let held = Arc::new(Held(vec![(GROUP, Arc::clone(&replica))]));
        let (node, others) = (NodeId(1), Arc::new(NoLinks));
        let here = Here::new(seams.clone(), node, map.clone(), Arc::clone(&groups), held);
        let remote = Arc::new(Dialer::new(
            seams.clone(),
            others.clone(),
            Arc::new(NoClocks),
        ));
        let handover = Handover {
            router: Router::new(seams, map, groups, remote, here),
            links: others,
            cluster: [1; 16],
        };
        let actor = ActorId([7; 16]);
        assert!(replica.accept_local(actor, &[change(1)]).is_ok());
        handover.retire(GROUP).await;
        let refused = replica.accept_local(actor, &[change(2)]);
        assert!(matches!(refused, Err(LocalError::Dropped { .. })));
        assert_eq!(replica.adoptable(10, usize::MAX).len(), 1);
        let refused = handover.push(GROUP, NodeId(9)).await;
        assert!(refused.is_err(), "nobody confirmed it");
        // Once the space was dropped there is nothing to hand over.
        news.send_modify(|map| Arc::make_mut(map).next_partition = 4);
        assert_eq!(handover.push(GROUP, NodeId(9)).await, Ok(()));
    }
}
