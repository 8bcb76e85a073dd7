//! The client against a server that misbehaves: what is repeated, with which request id, and what
//! the caller is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use engram_client::{Client, ErrorKind, Outcome, types as v1};
use futures::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use v1::memories_server::{Memories, MemoriesServer};

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers to `remember` in order, then success; and what was seen.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    answers: VecDeque<Status>,
    requests: Vec<v1::RememberRequest>,
    /// Batches acknowledged before the stream breaks; empty: it never does.
    breaks: VecDeque<usize>,
    batches: Vec<v1::RequestId>,
}

fn status(
    code: Code,
    name: &str,
    outcome: v1::error_detail::Outcome,
    retryable: bool,
    to: &str,
) -> Status {
    let detail = v1::ErrorDetail {
        code: name.into(),
        outcome: outcome.into(),
        retryable,
        leader_hint: to.into(),
        hint: String::new(),
    };
    Status::with_details(code, name, detail.encode_to_vec().into())
}

fn unsupported() -> Status {
    Status::unimplemented("not part of this test")
}

#[tonic::async_trait]
impl Memories for Fake {
    async fn remember(
        &self,
        request: Request<v1::RememberRequest>,
    ) -> Result<Response<v1::RememberResponse>, Status> {
        let request = request.into_inner();
        let id = request.memory.clone().unwrap_or_default().id;
        let mut seen = self.0.lock();
        seen.requests.push(request);
        match seen.answers.pop_front() {
            Some(status) => Err(status),
            None => Ok(Response::new(v1::RememberResponse {
                id,
                version: 1,
                ..Default::default()
            })),
        }
    }

    type ImportStream = Boxed<v1::ImportAck>;

    async fn import(
        &self,
        request: Request<Streaming<v1::ImportBatch>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let seen = self.0.clone();
        let mut left = seen.lock().breaks.pop_front();
        let acks = request.into_inner().map(move |batch| {
            let batch = batch?;
            let id = batch.request.unwrap_or_default();
            seen.lock().batches.push(id.clone());
            match &mut left {
                Some(0) => return Err(Status::unavailable("the stream broke")),
                Some(left) => *left -= 1,
                None => {}
            }
            Ok(v1::ImportAck {
                counter: id.counter,
                memories: batch.memories.len() as u64,
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(acks)))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(unsupported())
    }
    async fn forget(
        &self,
        _: Request<v1::ForgetRequest>,
    ) -> Result<Response<v1::ForgetResponse>, Status> {
        Err(unsupported())
    }
    async fn associate(
        &self,
        _: Request<v1::AssociateRequest>,
    ) -> Result<Response<v1::EdgeChangeResponse>, Status> {
        Err(unsupported())
    }
    async fn strengthen(
        &self,
        _: Request<v1::StrengthenRequest>,
    ) -> Result<Response<v1::EdgeChangeResponse>, Status> {
        Err(unsupported())
    }
    async fn dissociate(
        &self,
        _: Request<v1::DissociateRequest>,
    ) -> Result<Response<v1::EdgeChangeResponse>, Status> {
        Err(unsupported())
    }
    async fn neighbors(
        &self,
        _: Request<v1::NeighborsRequest>,
    ) -> Result<Response<v1::NeighborsResponse>, Status> {
        Err(unsupported())
    }
    async fn neighborhood(
        &self,
        _: Request<v1::NeighborhoodRequest>,
    ) -> Result<Response<v1::NeighborhoodResponse>, Status> {
        Err(unsupported())
    }
    async fn find_path(
        &self,
        _: Request<v1::FindPathRequest>,
    ) -> Result<Response<v1::FindPathResponse>, Status> {
        Err(unsupported())
    }
    async fn recall(
        &self,
        _: Request<v1::RecallRequest>,
    ) -> Result<Response<v1::RecallResponse>, Status> {
        Err(unsupported())
    }
    type SpreadStream = Boxed<v1::SpreadEvent>;
    async fn spread(
        &self,
        _: Request<v1::SpreadRequest>,
    ) -> Result<Response<Self::SpreadStream>, Status> {
        Err(unsupported())
    }
    type BackUpStream = Boxed<v1::BackUpEvent>;
    type ExportStream = Boxed<v1::ExportBatch>;
    async fn back_up(
        &self,
        _: Request<v1::BackUpRequest>,
    ) -> Result<Response<Self::BackUpStream>, Status> {
        Err(unsupported())
    }

    async fn export(
        &self,
        _: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Err(unsupported())
    }
}

#[allow(clippy::disallowed_methods, reason = "the fake server is no node")]
async fn serve(fake: Fake) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    let service = MemoriesServer::new(fake);
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        drop(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await,
        );
    });
    address
}

fn client(endpoints: &[SocketAddr]) -> Client {
    let endpoints = endpoints.iter().map(ToString::to_string);
    Client::builder()
        .endpoints(endpoints)
        .deadline(Duration::from_secs(20))
        .build()
        .expect("valid")
}

fn memory(id: &str) -> v1::Memory {
    v1::Memory {
        id: id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_repeated_mutation_keeps_its_request_id() {
    use v1::error_detail::Outcome as Wire;
    let fake = Fake::default();
    fake.0.lock().answers.extend([
        status(Code::Unavailable, "NO_PRIMARY", Wire::NotApplied, true, ""),
        status(Code::DeadlineExceeded, "TIMED_OUT", Wire::Unknown, true, ""),
    ]);
    let space = client(&[serve(fake.clone()).await]).space("s");
    space
        .remember(memory("a"))
        .await
        .expect("the third attempt succeeds");
    space
        .remember(memory("b"))
        .await
        .expect("the first attempt succeeds");
    let seen = fake.0.lock();
    let ids: Vec<v1::RequestId> = seen
        .requests
        .iter()
        .map(|request| request.request.clone().expect("an id"))
        .collect();
    assert_eq!(
        ids.iter()
            .map(|id| (id.counter, id.retried))
            .collect::<Vec<_>>(),
        [(1, false), (1, true), (1, true), (2, false)]
    );
    assert!(
        ids.iter()
            .all(|id| id.client == ids[0].client && id.client.len() == 16)
    );
    assert!(seen.requests.iter().all(|request| request.space == "s"));
}

#[tokio::test]
async fn a_refusal_is_final_and_typed() {
    let fake = Fake::default();
    let refusal = status(
        Code::InvalidArgument,
        "WRONG_DIMENSION",
        v1::error_detail::Outcome::NotApplied,
        false,
        "",
    );
    fake.0.lock().answers.push_back(refusal);
    let space = client(&[serve(fake.clone()).await]).space("s");
    let error = space.remember(memory("a")).await.expect_err("refused");
    assert_eq!(
        (error.kind, error.code.as_str()),
        (ErrorKind::Invalid, "WRONG_DIMENSION")
    );
    assert_eq!(
        (error.outcome, error.retryable),
        (Outcome::NotApplied, false)
    );
    assert_eq!(fake.0.lock().requests.len(), 1);
}

#[tokio::test]
async fn a_hint_is_followed() {
    let (first, second) = (Fake::default(), Fake::default());
    let other = serve(second.clone()).await;
    let moved = status(
        Code::Unavailable,
        "NOT_PRIMARY",
        v1::error_detail::Outcome::NotApplied,
        true,
        &other.to_string(),
    );
    first.0.lock().answers.push_back(moved);
    let space = client(&[serve(first.clone()).await]).space("s");
    space
        .remember(memory("a"))
        .await
        .expect("the hinted node answers");
    assert_eq!(
        (
            first.0.lock().requests.len(),
            second.0.lock().requests.len()
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn another_endpoint_stands_in_for_a_dead_one() {
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound")
    };
    let fake = Fake::default();
    let space = client(&[dead, serve(fake.clone()).await]).space("s");
    space
        .remember(memory("a"))
        .await
        .expect("the living node answers");
    assert_eq!(fake.0.lock().requests.len(), 1);
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_changed_nothing() {
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound")
    };
    let space = client(&[dead])
        .with_deadline(Duration::from_millis(200))
        .space("s");
    let error = space
        .remember(memory("a"))
        .await
        .expect_err("nobody is there");
    assert_eq!(
        (error.kind, error.outcome),
        (ErrorKind::Unavailable, Outcome::NotApplied),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_import_goes_on_where_it_was() {
    let fake = Fake::default();
    fake.0.lock().breaks.extend([3, 0]);
    let space = client(&[serve(fake.clone()).await]).space("s");
    let mut importer = space.importer().in_flight(4);
    let mut reports = Vec::new();
    for number in 0..10 {
        let batch = vec![memory(&format!("m{number}"))];
        reports.extend(importer.send(batch, vec![]).await.expect("sent"));
    }
    reports.extend(importer.finish().await.expect("finished"));
    let numbers: Vec<u64> = reports.iter().map(|report| report.number).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<u64>>());
    let seen = fake.0.lock();
    let repeated = seen.batches.iter().filter(|id| id.retried).count();
    assert!(
        repeated > 0 && seen.batches.len() > 10,
        "{:?}",
        seen.batches
    );
    for counter in 1..=10 {
        // The first may be a repetition, too: what was sent on a stream that broke is not all read.
        let mut arrived = seen.batches.iter().filter(|id| id.counter == counter);
        assert!(arrived.next().is_some(), "batch {counter}");
        assert!(arrived.all(|id| id.retried), "batch {counter}");
    }
}
