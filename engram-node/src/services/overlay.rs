//! Anti-entropy of overlay deltas (ADR 0003): every replica exchanges what it holds with the other
//! replicas of its partitions, and the primary brings what it holds into the log.
//!
//! What must hold: whatever one replica accepted reaches all that can be dialled, whatever the
//! membership believes of them; joining twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::command::{OverlayDelta, PartitionCommand};
use engram_core::partition::{LocalError, Partition};
use engram_core::types::{GroupId, NodeId, OverlayContext, PartitionId};
use engram_proto::convert::DecodeError;
use engram_proto::peer::OverlayExchange;
use engram_proto::peer::overlay_client::OverlayClient;
use engram_proto::peer::overlay_server::Overlay;
use futures::{StreamExt as _, stream};
use tonic::{Request, Response, Status};

use crate::placement::mover::Overlays;
use crate::routing::{Links, MESSAGE_BYTES_MAX, Router};

/// Pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// A partition whose overlay is empty here is exchanged in every so many rounds only.
const QUIET_ROUNDS: u64 = 8;
/// Estimated size of the deltas of one message.
const EXCHANGE_BYTES_MAX: usize = 1 << 20;
/// Messages to one replica in one round.
const EXCHANGES_PER_ROUND_MAX: u32 = 16;
/// Messages of one handover; the next attempt sends more.
const PUSHES_MAX: u32 = 256;
/// Deltas that one command brings into the log.
const ADOPTED_PER_COMMAND_MAX: usize = 1_024;
/// How long one exchange, or one adoption, may take.
const EXCHANGE_WAIT: Duration = Duration::from_millis(2_000);
/// Partitions that are exchanged at once.
const EXCHANGES_IN_FLIGHT_MAX: usize = 8;

/// Runs the rounds until the process ends.
pub fn start(router: Router, links: Arc<dyn Links>) {
    let seams = router.seams().clone();
    let rounds = Rounds { router, links };
    seams.clone().spawn("overlay exchange", async move {
        for round in 0_u64.. {
            seams.clock.sleep(ROUND_PAUSE).await;
            rounds.run(round).await;
        }
    });
}

struct Rounds {
    router: Router,
    links: Arc<dyn Links>,
}

impl Rounds {
    async fn run(&self, round: u64) {
        let map = self.router.map();
        let due = self
            .router
            .here()
            .partitions()
            .into_iter()
            .filter(|(_, partition)| {
                let id = partition.id();
                let waiting = partition.status().overlay_deltas > 0;
                waiting || (round + id.0).is_multiple_of(QUIET_ROUNDS)
            });
        let mut work = Vec::new();
        for (group, partition) in due {
            let nodes = map.hosts(group).into_iter();
            let others: Vec<NodeId> = nodes.filter(|node| *node != self.router.local()).collect();
            work.push((group, partition, others));
        }
        stream::iter(work)
            .for_each_concurrent(
                EXCHANGES_IN_FLIGHT_MAX,
                |(group, partition, others)| async move {
                    self.one(group, &partition, others).await;
                },
            )
            .await;
    }

    /// Exchanges one partition with its other replicas, then adopts what is held here if this
    /// node leads.
    async fn one(&self, group: GroupId, partition: &Arc<Partition>, others: Vec<NodeId>) {
        for node in others {
            if let Err(reason) = self.exchange(node, partition).await {
                let partition = partition.id();
                tracing::debug!(%partition, %node, reason, "overlay exchange failed");
            }
        }
        if self.router.here().leads(group) {
            self.adopt(partition).await;
        }
    }

    /// Until neither side has anything that the other lacks, or the round's bound is reached.
    async fn exchange(&self, node: NodeId, partition: &Arc<Partition>) -> Result<(), String> {
        let channel = self.links.channel(node).ok_or("its address is not known")?;
        let mut client = OverlayClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut deltas: Vec<OverlayDelta> = Vec::new();
        for _ in 0..EXCHANGES_PER_ROUND_MAX {
            let request = message(partition, &deltas);
            let call = client.exchange(request);
            let answer = self
                .router
                .seams()
                .timeout(EXCHANGE_WAIT, Box::pin(call))
                .await;
            let answer = answer.map_err(|error| error.to_string())?;
            let answer = answer
                .map_err(|status| status.message().to_owned())?
                .into_inner();
            if answer.no_replica {
                return Ok(());
            }
            let (seen, received) = parts(answer).map_err(|error| error.to_string())?;
            let got = received.len();
            self.receive(partition, received)
                .await
                .map_err(|error| error.to_string())?;
            deltas = partition.overlay_missing_from(&seen, EXCHANGE_BYTES_MAX);
            if deltas.is_empty() && got == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn receive(
        &self,
        partition: &Arc<Partition>,
        deltas: Vec<OverlayDelta>,
    ) -> Result<(), LocalError> {
        if deltas.is_empty() {
            return Ok(());
        }
        let partition = Arc::clone(partition);
        let receive = move || partition.receive_overlay(&deltas).map(drop);
        self.router.seams().blocking(receive).await
    }

    async fn adopt(&self, partition: &Arc<Partition>) {
        let deltas = partition.adoptable(ADOPTED_PER_COMMAND_MAX);
        if deltas.is_empty() {
            return;
        }
        let command = PartitionCommand::Adopt { deltas };
        let adopted = self
            .router
            .here()
            .propose(partition.id(), command, EXCHANGE_WAIT)
            .await;
        if let Err(reason) = adopted {
            // They stay in the overlay, and the next round tries again.
            tracing::debug!(partition = %partition.id(), %reason, "overlay deltas not adopted");
        }
    }
}

/// Overlay deltas on the way out: what placement brings to another replica.
pub struct Handover {
    pub router: Router,
    pub links: Arc<dyn Links>,
}

impl Handover {
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
        let mut deltas: Vec<OverlayDelta> = Vec::new();
        for _ in 0..PUSHES_MAX {
            let call = client.exchange(message(partition, &deltas));
            let seams = self.router.seams();
            let answer = seams.timeout(EXCHANGE_WAIT, Box::pin(call)).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let answer = answer
                .map_err(|status| status.message().to_owned())?
                .into_inner();
            if answer.no_replica {
                return Err("it has no replica yet".into());
            }
            let (seen, _) = parts(answer).map_err(|error| error.to_string())?;
            deltas = partition.overlay_missing_from(&seen, EXCHANGE_BYTES_MAX);
            if deltas.is_empty() {
                return Ok(());
            }
        }
        Err("it still lacks some".into())
    }
}

#[async_trait]
impl Overlays for Handover {
    async fn push(&self, group: GroupId, to: NodeId) -> Result<(), String> {
        for partition in self.partitions(group) {
            let id = partition.id();
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

fn message(partition: &Partition, deltas: &[OverlayDelta]) -> OverlayExchange {
    OverlayExchange {
        partition: partition.id().0,
        seen: Some((&partition.overlay_context()).into()),
        deltas: deltas.iter().map(Into::into).collect(),
        no_replica: false,
    }
}

fn parts(message: OverlayExchange) -> Result<(OverlayContext, Vec<OverlayDelta>), DecodeError> {
    let seen = message
        .seen
        .ok_or(DecodeError::Missing("the context"))?
        .try_into()?;
    let deltas = message.deltas.into_iter().map(OverlayDelta::try_from);
    Ok((seen, deltas.collect::<Result<_, _>>()?))
}

/// The answering side of the exchange.
pub struct OverlayService {
    router: Router,
}

impl OverlayService {
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self { router }
    }
}

#[tonic::async_trait]
impl Overlay for OverlayService {
    async fn exchange(
        &self,
        request: Request<OverlayExchange>,
    ) -> Result<Response<OverlayExchange>, Status> {
        let request = request.into_inner();
        let id = PartitionId(request.partition);
        let Some(partition) = self.router.here().partition(id) else {
            let none = OverlayExchange {
                no_replica: true,
                ..Default::default()
            };
            return Ok(Response::new(none));
        };
        let (seen, deltas) =
            parts(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let answer = move || {
            if !deltas.is_empty() {
                partition.receive_overlay(&deltas)?;
            }
            let missing = partition.overlay_missing_from(&seen, EXCHANGE_BYTES_MAX);
            Ok::<_, LocalError>(message(&partition, &missing))
        };
        let answer = self.router.seams().blocking(answer).await;
        answer
            .map(Response::new)
            .map_err(|error| Status::unavailable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use engram_core::command::{Associate, Op};
    use engram_core::types::{ClientId, MemoryId, Relation, SlotRange, Unit};
    use tokio::sync::watch;

    use super::*;
    use crate::control::{ClusterMap, PartitionRecord, SpaceRecord};
    use crate::routing::fakes::{Held, NoGroups, NoLinks, config, partition, system_seams};
    use crate::routing::{Dialer, Groups, Here};
    use crate::services::input::Requester;
    use crate::services::writes::write_of;

    const PLACE: PartitionRecord = PartitionRecord {
        id: PartitionId(3),
        group: GroupId(4),
        slots: SlotRange::ALL,
    };

    /// A node with one replica of the partition.
    fn node(id: u64) -> (Router, Arc<Partition>) {
        let space = SpaceRecord {
            config: config(),
            replicas: 2,
            partitions: vec![PLACE],
        };
        let spaces = [(space.config.space, space)].into();
        let map = ClusterMap {
            spaces,
            ..ClusterMap::default()
        };
        let (_, map) = watch::channel(Arc::new(map));
        let (seams, replica) = (system_seams(), partition(PLACE.id, PLACE.slots));
        let groups: Arc<dyn Groups> = Arc::new(NoGroups);
        let held = Held(vec![(PLACE.group, Arc::clone(&replica))]);
        let node = NodeId(id);
        let here = Here::new(
            seams.clone(),
            node,
            map.clone(),
            Arc::clone(&groups),
            Arc::new(held),
        );
        let remote = Arc::new(Dialer::new(seams.clone(), Arc::new(NoLinks)));
        (Router::new(seams, map, groups, remote, here), replica)
    }

    async fn strengthen(router: &Router, counter: u64, to: &str) {
        let id = |text: &str| MemoryId::new(text).unwrap();
        let op = Op::Associate(Associate {
            from: id("a"),
            to: id(to),
            relation: Relation::new("r").unwrap(),
            weight: Unit::ONE,
            confidence: Unit::ONE,
        });
        let requester = Requester {
            client: ClientId([1; 16]),
            counter,
            retried: false,
        };
        let write = write_of(requester, vec![(0, op)]);
        router.here().accept_local(PLACE.id, &write).await.unwrap();
    }

    /// One message from `from` and the answer to it, as a round does it.
    async fn round(from: &Arc<Partition>, to: &Router, deltas: &[OverlayDelta]) -> OverlayContext {
        let service = OverlayService::new(to.clone());
        let answer = service
            .exchange(Request::new(message(from, deltas)))
            .await
            .unwrap();
        let (seen, deltas) = parts(answer.into_inner()).unwrap();
        from.receive_overlay(&deltas).unwrap();
        seen
    }

    #[tokio::test]
    async fn two_exchanges_make_two_replicas_equal() {
        let (one, one_replica) = node(1);
        let (two, two_replica) = node(2);
        for counter in 1..=3 {
            strengthen(&one, counter, "b").await;
        }
        strengthen(&two, 9, "c").await;
        assert_eq!(two_replica.status().overlay_deltas, 1);
        let seen = round(&one_replica, &two, &[]).await;
        let missing = one_replica.overlay_missing_from(&seen, EXCHANGE_BYTES_MAX);
        assert_eq!(missing.len(), 3);
        round(&one_replica, &two, &missing).await;
        assert_eq!(one_replica.overlay_context(), two_replica.overlay_context());
        assert_eq!(one_replica.status().overlay_deltas, 4);
        // Doubled messages change nothing.
        round(&one_replica, &two, &missing).await;
        assert_eq!(two_replica.status().overlay_deltas, 4);
    }

    #[tokio::test]
    async fn a_replica_that_goes_takes_no_more_changes_and_keeps_what_it_holds_to_hand_over() {
        let (one, replica) = node(1);
        strengthen(&one, 1, "b").await;
        let handover = Handover {
            router: one.clone(),
            links: Arc::new(NoLinks),
        };
        handover.retire(PLACE.group).await;
        let write = write_of(
            Requester {
                client: ClientId([1; 16]),
                counter: 2,
                retried: false,
            },
            vec![],
        );
        let nothing = one.here().accept_local(PLACE.id, &write).await;
        assert!(nothing.is_ok(), "no change is no harm");
        assert_eq!(replica.adoptable(10).len(), 1);
        let refused = handover.push(PLACE.group, NodeId(9)).await;
        assert!(refused.is_err(), "nobody confirmed it");
    }

    #[tokio::test]
    async fn an_answer_says_when_there_is_no_replica() {
        let (one, _) = node(1);
        let service = OverlayService::new(one);
        let stranger = OverlayExchange {
            partition: 99,
            ..OverlayExchange::default()
        };
        let answer = service.exchange(Request::new(stranger)).await.unwrap();
        assert!(answer.into_inner().no_replica);
    }
}
