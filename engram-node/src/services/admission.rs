//! What every call passes first: a place among the calls under way, a deadline, its space, and for
//! mutations a request id.

use std::time::Duration;

use engram_core::types::ClientId;
use engram_proto::v1;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status};

use super::failure::Failure;
use super::input::Requester;
use super::token::Freshness;
use super::{REQUESTS_IN_FLIGHT_MAX, Services, WAIT_DEFAULT, WAIT_MAX, status};
use crate::control::{ClusterMap, SpaceRecord};
use crate::routing::{Deadline, ReadError};
use crate::seams::Seams;

/// What a server keeps of a call's time, so that its answer arrives before the caller gives up.
const RETURN_TRIP: Duration = Duration::from_millis(50);

/// How long a node waits for its map to show a space that it does not know: another node may have
/// created it a moment ago.
const SPACE_WAIT: Duration = Duration::from_millis(500);

/// Requests that one identity of the server makes, fewer than a partition remembers.
const COUNTERS_PER_IDENTITY: u64 = 512;

/// A call that was let in.
pub struct Admitted {
    pub deadline: Deadline,
    /// When it came, in the node's monotonic time.
    at: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Services {
    /// # Errors
    /// When too many calls are under way.
    pub fn admit<T>(&self, request: &Request<T>) -> Result<Admitted, Failure> {
        let wait = wait_of(request);
        let permit = std::sync::Arc::clone(&self.inner.requests).try_acquire_owned();
        let permit = permit.map_err(|_| {
            metrics::counter!("engram_requests_refused_total").increment(1);
            Failure::Busy {
                what: "requests",
                limit: REQUESTS_IN_FLIGHT_MAX,
            }
        })?;
        let at = self.router().seams().clock.monotonic();
        Ok(Admitted {
            deadline: self.router().deadline(wait),
            at,
            _permit: permit,
        })
    }

    /// A place among the calls under way, waited for.
    ///
    /// # Errors
    /// When the server is going away.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let places = std::sync::Arc::clone(&self.inner.requests);
        places.acquire_owned().await.map_err(|_| Failure::Busy {
            what: "requests",
            limit: REQUESTS_IN_FLIGHT_MAX,
        })
    }

    /// The end of a call, counted and timed.
    pub(super) fn answer<T>(
        &self,
        method: &'static str,
        admitted: &Admitted,
        result: Result<T, Failure>,
    ) -> Result<Response<T>, Status> {
        let took = self
            .router()
            .seams()
            .clock
            .monotonic()
            .saturating_sub(admitted.at);
        let code = result.as_ref().err().map_or("OK", status::code);
        metrics::counter!("engram_requests_total", "method" => method, "code" => code).increment(1);
        metrics::histogram!("engram_request_seconds", "method" => method).record(took);
        result
            .map(Response::new)
            .map_err(|failure| self.status(&failure))
    }

    pub(super) fn status(&self, failure: &Failure) -> Status {
        status::status(failure, &self.router().map())
    }

    /// The space of that name. One that was created a moment ago is waited for.
    ///
    /// # Errors
    /// When there is none.
    pub async fn space(&self, name: &str, deadline: Deadline) -> Result<SpaceRecord, Failure> {
        if let Some(space) = self.router().map().space(name) {
            return Ok(space.clone());
        }
        let seams = self.router().seams();
        let mut map = self.router().watch_map();
        let wait = deadline.left(seams).min(SPACE_WAIT);
        let found = map.wait_for(|map| map.space(name).is_some());
        if let Ok(Ok(map)) = seams.timeout(wait, found).await
            && let Some(space) = map.space(name)
        {
            return Ok(space.clone());
        }
        Err(Failure::UnknownSpace {
            name: name.to_owned(),
        })
    }

    /// As [`Self::space`], for a read. A session that has seen a partition which this node's map does
    /// not know yet is not shown what that map has under the name: it may have been dropped since.
    ///
    /// # Errors
    /// When there is none, or the map does not come to know the partition in time.
    pub async fn space_for(
        &self,
        name: &str,
        freshness: &Freshness,
        deadline: Deadline,
    ) -> Result<SpaceRecord, Failure> {
        if let Some(partition) = freshness.newest_partition()
            && !self
                .wait_for_map(deadline, |map| map.next_partition > partition.0)
                .await
        {
            let cause = "this node's map does not know it yet".into();
            return Err(Failure::Read(ReadError::Behind { partition, cause }));
        }
        self.space(name, deadline).await
    }

    /// Waits until this node's map is as wanted; false when the deadline came first.
    pub async fn wait_for_map(
        &self,
        deadline: Deadline,
        wanted: impl Fn(&ClusterMap) -> bool + Send,
    ) -> bool {
        let seams = self.router().seams();
        let mut map = self.router().watch_map();
        let reached = map.wait_for(|map| wanted(map));
        let waited = seams.timeout(deadline.left(seams), reached).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Who asks: the client, or this server in the name of one that cannot repeat its call.
    ///
    /// # Errors
    /// When the client's request id cannot be used.
    pub fn requester(&self, id: Option<&v1::RequestId>) -> Result<Requester, Failure> {
        let seams = self.router().seams();
        match id {
            Some(id) => Ok(Requester::from_client(id, seams.clock.wall_millis())?),
            None => Ok(self.inner.own.next(seams)),
        }
    }
}

/// How long a call may take: its `grpc-timeout`, less what the answer needs to get back.
fn wait_of<T>(request: &Request<T>) -> Duration {
    let header = request.metadata().get("grpc-timeout");
    let given = header
        .and_then(|value| value.to_str().ok())
        .and_then(parse_timeout);
    let wait = given.map_or(WAIT_DEFAULT, |wait| {
        wait.saturating_sub(RETURN_TRIP.min(wait / 10))
    });
    wait.min(WAIT_MAX)
}

/// At most 8 digits and a unit (the gRPC protocol over HTTP/2).
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Request ids for calls that bring none. An identity is left after so few requests that its
/// oldest can never fall below what partitions remember of it.
#[derive(Default)]
pub struct OwnRequests {
    current: Mutex<Option<Requester>>,
}

impl OwnRequests {
    fn next(&self, seams: &Seams) -> Requester {
        let mut current = self.current.lock();
        let next = match *current {
            Some(last) if last.counter < COUNTERS_PER_IDENTITY => Requester {
                counter: last.counter + 1,
                ..last
            },
            _ => Requester {
                client: new_client(seams),
                counter: 1,
                retried: false,
            },
        };
        *current = Some(next);
        next
    }
}

/// A fresh UUIDv7.
fn new_client(seams: &Seams) -> ClientId {
    let mut random = [0; 10];
    seams.entropy.fill(&mut random);
    let millis = seams.clock.wall_millis();
    ClientId(
        uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("7S"), Some(Duration::from_secs(7)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for bad in ["", "m", "1", "-1S", "123456789S", "1x", "1.5S", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_call_has_a_deadline_whatever_it_says() {
        let mut request = Request::new(());
        assert_eq!(wait_of(&request), WAIT_DEFAULT);
        request
            .metadata_mut()
            .insert("grpc-timeout", "9H".parse().unwrap());
        assert_eq!(wait_of(&request), WAIT_MAX);
        request
            .metadata_mut()
            .insert("grpc-timeout", "1S".parse().unwrap());
        assert_eq!(wait_of(&request), Duration::from_millis(950));
    }
}
