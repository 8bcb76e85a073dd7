//! The router's loops against nodes that fail on purpose. Time passes only where the router
//! sleeps, so no test depends on how fast the machine is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::command::{Applied, Op, OpOutcome, Write};
use engram_core::types::{
    ClientId, GroupId, Hlc, NodeId, PartitionId, Sequence, SlotRange, SpaceId,
};
use engram_proto::peer::{
    AcceptLocalRequest, AcceptLocalResponse, GetAnswer, ProposeRequest, ProposeResponse,
    ReadRequest, ReadResponse, Served, accept_local_response, propose_response, read_response,
    served,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::fakes::{Held, NoGroups, config, still_seams};
use super::*;
use crate::control::{GroupRecord, PartitionRecord, SpaceRecord};

const HERE: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const GROUP: GroupId = GroupId(5);
const PLACE: PartitionRecord = PartitionRecord {
    id: PartitionId(9),
    group: GROUP,
    slots: SlotRange::ALL,
};

/// What a node does with the requests it gets, in order; the last one for ever.
#[derive(Clone)]
enum Act {
    Serve,
    Refuse(Refusal),
    Unreachable,
    Lose,
}

#[derive(Default)]
struct Script {
    acts: Mutex<HashMap<NodeId, Vec<Act>>>,
    asked: Mutex<Vec<(NodeId, Option<bool>)>>,
}

impl Script {
    fn next(&self, node: NodeId, retried: Option<bool>) -> Result<Option<Refusal>, LinkError> {
        self.asked.lock().push((node, retried));
        let mut acts = self.acts.lock();
        let of_node = acts.get_mut(&node);
        let act = match of_node {
            Some(acts) if acts.len() > 1 => acts.remove(0),
            Some(acts) => acts[0].clone(),
            None => Act::Unreachable,
        };
        let reason = "scripted".to_owned();
        match act {
            Act::Serve => Ok(None),
            Act::Refuse(refusal) => Ok(Some(refusal)),
            Act::Unreachable => Err(LinkError::NotSent { node, reason }),
            Act::Lose => Err(LinkError::Lost { node, reason }),
        }
    }

    fn asked(&self) -> Vec<NodeId> {
        self.asked.lock().iter().map(|(node, _)| *node).collect()
    }
}

#[async_trait]
impl Remote for Script {
    async fn propose(
        &self,
        node: NodeId,
        request: ProposeRequest,
        _wait: Duration,
    ) -> Result<ProposeResponse, LinkError> {
        use engram_proto::log::partition_command::Command;
        let command = request.command.and_then(|command| command.command);
        let Some(Command::Write(write)) = command else {
            panic!("only writes are sent here")
        };
        let answer = match self.next(node, Some(write.retried))? {
            None => propose_response::Answer::Applied((&applied()).into()),
            Some(refusal) => propose_response::Answer::NotServed(refusal.into()),
        };
        Ok(ProposeResponse {
            answer: Some(answer),
        })
    }

    async fn read(
        &self,
        node: NodeId,
        _request: ReadRequest,
        _wait: Duration,
    ) -> Result<ReadResponse, LinkError> {
        let answer = match self.next(node, None)? {
            None => read_response::Answer::Served(Served {
                position: Some(Default::default()),
                answer: Some(served::Answer::Get(GetAnswer::default())),
            }),
            Some(refusal) => read_response::Answer::NotServed(refusal.into()),
        };
        Ok(ReadResponse {
            answer: Some(answer),
        })
    }

    async fn accept_local(
        &self,
        node: NodeId,
        _request: AcceptLocalRequest,
        _wait: Duration,
    ) -> Result<AcceptLocalResponse, LinkError> {
        let answer = match self.next(node, None)? {
            None => accept_local_response::Answer::Position(Default::default()),
            Some(refusal) => accept_local_response::Answer::NotServed(refusal.into()),
        };
        Ok(AcceptLocalResponse {
            answer: Some(answer),
        })
    }
}

fn applied() -> Applied {
    Applied {
        sequence: Sequence(4),
        outcomes: vec![(0, OpOutcome::EdgeChanged)],
    }
}

fn map() -> ClusterMap {
    let space = SpaceRecord {
        config: config(),
        replicas: 2,
        partitions: vec![PLACE],
        local_fallback: Default::default(),
    };
    let group = GroupRecord {
        id: GROUP,
        replicas: vec![B, C],
        shared: false,
        founders: vec![B, C],
        change: None,
    };
    ClusterMap {
        spaces: BTreeMap::from([(SpaceId(1), space)]),
        groups: BTreeMap::from([(GROUP, group)]),
        ..ClusterMap::default()
    }
}

struct Rig {
    router: Router,
    script: Arc<Script>,
    map: watch::Sender<Arc<ClusterMap>>,
}

fn rig(acts: impl IntoIterator<Item = (NodeId, Vec<Act>)>) -> Rig {
    let (sender, map) = watch::channel(Arc::new(map()));
    let seams = still_seams();
    let groups: Arc<dyn Groups> = Arc::new(NoGroups);
    let here = Here::new(
        seams.clone(),
        HERE,
        map.clone(),
        Arc::clone(&groups),
        Arc::new(Held::default()),
    );
    let script = Arc::new(Script::default());
    *script.acts.lock() = acts.into_iter().collect();
    let remote = Arc::clone(&script) as Arc<dyn Remote>;
    Rig {
        router: Router::new(seams, map, groups, remote, here),
        script,
        map: sender,
    }
}

impl Rig {
    async fn write(&self) -> Result<Applied, WriteError> {
        let deadline = self.router.deadline(Duration::from_secs(10));
        self.router.write(PLACE, write(), deadline).await
    }

    async fn read(&self, at: &ReadAt) -> Result<Read, ReadError> {
        let query = engram_proto::peer::ReadQuery::default();
        let deadline = self.router.deadline(Duration::from_secs(10));
        self.router.read(PLACE, &query, at, deadline).await
    }
}

fn write() -> Write {
    let ops: Vec<(u32, Op)> = Vec::new();
    Write {
        client: ClientId([1; 16]),
        counter: 1,
        retried: false,
        stamp: Hlc::default(),
        ops,
    }
}

fn not_leader(hint: Option<NodeId>) -> Act {
    Act::Refuse(Refusal::NotLeader { hint })
}

#[tokio::test]
async fn a_hint_leads_to_the_leader_which_is_remembered() {
    let rig = rig([(B, vec![not_leader(Some(C))]), (C, vec![Act::Serve])]);
    assert_eq!(rig.write().await, Ok(applied()));
    assert_eq!(rig.write().await, Ok(applied()));
    assert_eq!(rig.script.asked(), [B, C, C]);
}

#[tokio::test]
async fn a_write_waits_for_a_new_leader() {
    let refusals = || {
        vec![
            not_leader(None),
            not_leader(None),
            not_leader(None),
            Act::Serve,
        ]
    };
    let rig = rig([(B, refusals()), (C, vec![not_leader(None)])]);
    assert_eq!(rig.write().await, Ok(applied()));
}

#[tokio::test]
async fn a_lost_attempt_is_repeated_as_a_retry() {
    let rig = rig([
        (B, vec![Act::Lose, not_leader(None)]),
        (C, vec![Act::Serve]),
    ]);
    assert_eq!(rig.write().await, Ok(applied()));
    assert_eq!(
        *rig.script.asked.lock(),
        [(B, Some(false)), (C, Some(true))]
    );
}

#[tokio::test]
async fn at_the_deadline_the_outcome_is_said_honestly() {
    let nobody = rig([(B, vec![Act::Unreachable]), (C, vec![not_leader(None)])]);
    let error = nobody.write().await.unwrap_err();
    assert!(
        matches!(
            error,
            WriteError::NotApplied {
                partition: PartitionId(9),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("partition 9"));
    let lost = rig([
        (B, vec![Act::Lose, Act::Unreachable]),
        (C, vec![Act::Unreachable]),
    ]);
    let error = lost.write().await.unwrap_err();
    assert!(matches!(error, WriteError::Unknown { .. }), "{error}");
    let unknown = Act::Refuse(Refusal::Unknown("no answer of a majority".into()));
    let unsure = rig([
        (B, vec![unknown, not_leader(None)]),
        (C, vec![not_leader(None)]),
    ]);
    assert!(matches!(
        unsure.write().await,
        Err(WriteError::Unknown { .. })
    ));
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_not_repeated() {
    let invalid = Act::Refuse(Refusal::Invalid("too long".into()));
    let rig = rig([(B, vec![invalid]), (C, vec![Act::Serve])]);
    assert_eq!(
        rig.write().await,
        Err(WriteError::Invalid("too long".into()))
    );
    assert_eq!(rig.script.asked(), [B]);
}

#[tokio::test]
async fn a_dropped_space_is_gone() {
    let rig = rig([(B, vec![not_leader(None)]), (C, vec![not_leader(None)])]);
    rig.map.send_replace(Arc::default());
    assert_eq!(
        rig.write().await,
        Err(WriteError::Gone {
            partition: PLACE.id
        })
    );
}

#[tokio::test]
async fn stale_reads_take_any_replica_and_sessions_one_that_is_far_enough() {
    let behind = || Act::Refuse(Refusal::Behind);
    let stale = rig([(B, vec![Act::Unreachable]), (C, vec![Act::Serve])]);
    assert_eq!(
        stale.read(&ReadAt::Stale).await.map(|read| read.node),
        Ok(C)
    );
    let session = ReadAt::Session(Default::default());
    let late = rig([
        (B, vec![behind()]),
        (C, vec![behind(), behind(), Act::Serve]),
    ]);
    assert_eq!(late.read(&session).await.map(|read| read.node), Ok(C));
    let never = rig([(B, vec![behind()]), (C, vec![Act::Unreachable])]);
    assert!(matches!(
        never.read(&session).await,
        Err(ReadError::Behind { .. })
    ));
}

#[tokio::test]
async fn a_linearizable_read_needs_the_leader() {
    let rig = rig([(B, vec![not_leader(Some(C))]), (C, vec![Act::Serve])]);
    assert_eq!(
        rig.read(&ReadAt::Linearizable).await.map(|read| read.node),
        Ok(C)
    );
    let alone = self::rig([(B, vec![not_leader(None)]), (C, vec![Act::Unreachable])]);
    let error = alone.read(&ReadAt::Linearizable).await.unwrap_err();
    assert!(error.to_string().contains("partition 9"), "{error}");
}

#[tokio::test]
async fn a_local_change_goes_to_whoever_answers() {
    let rig = rig([(B, vec![Act::Unreachable]), (C, vec![Act::Serve])]);
    let deadline = rig.router.deadline(Duration::from_secs(1));
    assert!(
        rig.router
            .write_local(PLACE, &write(), deadline)
            .await
            .is_ok()
    );
    let nobody = self::rig([(B, vec![Act::Lose]), (C, vec![Act::Unreachable])]);
    let deadline = nobody.router.deadline(Duration::from_secs(1));
    let refused = nobody.router.write_local(PLACE, &write(), deadline).await;
    assert!(matches!(refused, Err(LocalWriteError::NotAccepted { .. })));
}
