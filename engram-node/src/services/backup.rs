//! The backup of one partition: a view pinned where it is led, walked page by page, streamed to the
//! client. Restoring is an import of chunks (`bulk`).
//!
//! What must hold: everything between a `begun` and its `done` is of one view. When the view is lost
//! with its node, or the node with its replica, another one is opened and `begun` is said again.

use engram_core::types::{NodeId, PartitionId};
use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{BackUpOpenQuery, BackUpPageAnswer, BackUpPageQuery, ReadQuery};
use engram_proto::v1::{self, back_up_event::Event};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Services;
use super::bulk::Answers;
use super::failure::{Failure, InputError};
use super::reads::{Reading, unfit};
use super::token::Freshness;
use crate::control::{PartitionRecord, SpaceRecord};
use crate::routing::{ATTEMPT_MAX, Deadline, KNOWN_CHUNKS_MAX, Pauses, ReadAt};

/// How long one page may take, attempts included, before the view counts as lost.
const PAGE_WAIT: std::time::Duration = std::time::Duration::from_secs(15);
/// How long a view is tried to be opened.
const OPEN_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Views that one backup of a partition may lose.
const VIEWS_LOST_MAX: u32 = 8;

/// One backup of one partition on its way.
struct Walk {
    services: Services,
    space: SpaceRecord,
    place: PartitionRecord,
    known: bytes::Bytes,
    /// Views lost so far.
    lost: u32,
    stage: Stage,
}

enum Stage {
    Open,
    Walking(View),
    End,
}

struct View {
    node: NodeId,
    handle: u64,
    after: bytes::Bytes,
    totals: v1::BackUpDone,
}

impl Services {
    pub(super) async fn back_up(
        &self,
        request: v1::BackUpRequest,
        deadline: Deadline,
    ) -> Result<Answers<v1::BackUpEvent>, Failure> {
        let hashes = request.known.len().div_ceil(32);
        super::input::at_most("known chunks", "chunks", hashes, KNOWN_CHUNKS_MAX)?;
        if !request.known.len().is_multiple_of(32) {
            return Err(InputError::Missing("a part of a known chunk's hash").into());
        }
        let space = self.space(&request.space, deadline).await?;
        let id = PartitionId(request.partition);
        let place = space.partitions.iter().find(|place| place.id == id);
        let place = *place.ok_or(InputError::Missing("the partition of that space"))?;
        let walk = Walk {
            services: self.clone(),
            space,
            place,
            known: request.known,
            lost: 0,
            stage: Stage::Open,
        };
        let pages = stream::try_unfold(walk, |mut walk| async move {
            let events = walk.step().await;
            let events = events.map_err(|failure| walk.services.status(&failure))?;
            Ok::<_, tonic::Status>(events.map(|events| (events, walk)))
        });
        let events = pages
            .map_ok(|events| stream::iter(events).map(Ok))
            .try_flatten();
        Ok(Box::pin(events))
    }
}

impl Walk {
    /// The next events; none at the end.
    async fn step(&mut self) -> Result<Option<Vec<v1::BackUpEvent>>, Failure> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::End => return Ok(None),
                Stage::Open => {
                    let (view, begun) = self.open().await?;
                    self.stage = Stage::Walking(view);
                    return Ok(Some(vec![event(Event::Begun(begun))]));
                }
                Stage::Walking(view) => match self.page(&view).await {
                    Ok(page) => return Ok(Some(self.take(view, page))),
                    Err(failure) if self.lost == VIEWS_LOST_MAX => return Err(failure),
                    Err(failure) => {
                        tracing::info!(partition = %self.place.id, %failure, "a backup's view was lost");
                        metrics::counter!("engram_backup_views_lost_total").increment(1);
                        self.lost += 1;
                        self.stage = Stage::Open;
                    }
                },
            }
        }
    }

    async fn open(&self) -> Result<(View, v1::BackUpBegun), Failure> {
        let services = &self.services;
        let reading = Reading {
            space: &self.space,
            freshness: &Freshness::Linearizable,
            deadline: services.router().deadline(OPEN_WAIT),
        };
        let known = self.known.clone();
        let query = Query::BackUpOpen(BackUpOpenQuery { known });
        let (_, read) = services.ask(&reading, self.place, query).await?;
        let Answer::BackUpOpen(opened) = read.answer else {
            return Err(unfit("the start of a backup"));
        };
        let mut begun = opened.begun.unwrap_or_default();
        begun.node = read.node.0;
        let view = View {
            node: read.node,
            handle: opened.view,
            after: bytes::Bytes::new(),
            totals: v1::BackUpDone::default(),
        };
        Ok((view, begun))
    }

    /// The page after the last one, from the node that holds the view; asked for again while there
    /// is time, since a page changes nothing.
    async fn page(&self, view: &View) -> Result<BackUpPageAnswer, Failure> {
        let router = self.services.router();
        let (deadline, mut pauses) = (router.deadline(PAGE_WAIT), Pauses::default());
        let query = page_query(view, false);
        loop {
            let asked = router.read_at(
                view.node,
                self.place.id,
                &query,
                &ReadAt::Stale,
                ATTEMPT_MAX,
            );
            let why = match asked.await.map(|read| read.answer) {
                Ok(Answer::BackUpPage(page)) if page.gone => "it has let go of the view".to_owned(),
                Ok(Answer::BackUpPage(page)) => return Ok(page),
                Ok(_) => return Err(unfit("a page of a backup")),
                Err(refusal) => {
                    if !deadline.has_passed(router.seams()) {
                        pauses.pause(router.seams(), deadline).await;
                        continue;
                    }
                    refusal.to_string()
                }
            };
            return Err(crate::routing::ReadError::Unavailable {
                partition: self.place.id,
                cause: format!("node {}: {why}", view.node),
                leader: None,
            }
            .into());
        }
    }

    /// A page as events, and what comes next.
    fn take(&mut self, mut view: View, page: BackUpPageAnswer) -> Vec<v1::BackUpEvent> {
        view.totals.edges_without_source += page.edges_without_source;
        for chunk in &page.chunks {
            view.totals.memories += chunk.memories;
            view.totals.edges += chunk.edges;
            metrics::counter!("engram_backup_bytes_total").increment(chunk.data.len() as u64);
        }
        let mut events: Vec<_> = page
            .chunks
            .into_iter()
            .map(|chunk| event(Event::Chunk(chunk)))
            .collect();
        if page.next.is_empty() {
            events.push(event(Event::Done(view.totals)));
            self.close(&view);
        } else {
            view.after = page.next;
            self.stage = Stage::Walking(view);
        }
        events
    }

    /// Lets the node know that the view is not needed any more; else it finds out by itself.
    fn close(&self, view: &View) {
        let (router, place) = (self.services.router().clone(), self.place.id);
        let (node, query) = (view.node, page_query(view, true));
        let seams = router.seams().clone();
        seams.spawn("backup-close", async move {
            let closing = router.read_at(node, place, &query, &ReadAt::Stale, ATTEMPT_MAX);
            drop(closing.await);
        });
    }
}

fn page_query(view: &View, close: bool) -> ReadQuery {
    let (view, after) = (view.handle, view.after.clone());
    ReadQuery {
        query: Some(Query::BackUpPage(BackUpPageQuery { view, after, close })),
    }
}

fn event(event: Event) -> v1::BackUpEvent {
    v1::BackUpEvent { event: Some(event) }
}
