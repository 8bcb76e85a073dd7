//! Who calls, and whether they may: the layer in front of the client port's services.
//!
//! Every method needs a role; [`METHODS`] has them all (a test compares it with the protocol).
//! Health and reflection are open, so that probes and tools need no token. A method that is not in
//! the table needs `admin`: a forgotten line refuses instead of admitting.

use std::sync::Arc;
use std::task::{Context, Poll};

use engram_proto::v1::ErrorDetail;
use engram_proto::v1::error_detail::Outcome;
use futures::future::{Either, Ready, ready};
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::tokens::{Role, Tokens};

/// The role that each method of the public API needs.
const METHODS: &[(&str, Role)] = &[
    ("/engram.v1.Memories/Remember", Role::Write),
    ("/engram.v1.Memories/Get", Role::Read),
    ("/engram.v1.Memories/Forget", Role::Write),
    ("/engram.v1.Memories/Associate", Role::Write),
    ("/engram.v1.Memories/Strengthen", Role::Write),
    ("/engram.v1.Memories/Dissociate", Role::Write),
    ("/engram.v1.Memories/Neighbors", Role::Read),
    ("/engram.v1.Memories/Neighborhood", Role::Read),
    ("/engram.v1.Memories/FindPath", Role::Read),
    ("/engram.v1.Memories/Recall", Role::Read),
    ("/engram.v1.Memories/Spread", Role::Read),
    ("/engram.v1.Memories/Import", Role::Write),
    ("/engram.v1.Memories/Export", Role::Read),
    ("/engram.v1.Memories/BackUp", Role::Admin),
    ("/engram.v1.Spaces/CreateSpace", Role::Admin),
    ("/engram.v1.Spaces/ListSpaces", Role::Read),
    ("/engram.v1.Spaces/DescribeSpace", Role::Read),
    ("/engram.v1.Spaces/DropSpace", Role::Admin),
    ("/engram.v1.Spaces/AlterSpace", Role::Admin),
    ("/engram.v1.Cluster/Status", Role::Read),
    ("/engram.v1.Cluster/ListNodes", Role::Read),
    ("/engram.v1.Cluster/ListPartitions", Role::Read),
    ("/engram.v1.Cluster/Verify", Role::Read),
    ("/engram.v1.Cluster/ListConflicts", Role::Read),
    ("/engram.v1.Cluster/SetNodeState", Role::Admin),
    ("/engram.v1.Cluster/Rebalance", Role::Admin),
    ("/engram.v1.Cluster/MoveReplica", Role::Admin),
    ("/engram.v1.Cluster/TransferPrimary", Role::Admin),
    ("/engram.v1.Cluster/ListMoves", Role::Read),
    ("/engram.v1.Cluster/CancelMoves", Role::Admin),
    ("/engram.v1.Cluster/Probe", Role::Write),
];

/// Services that anyone who reaches the port may call.
const OPEN: &[&str] = &[
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// The caller of a request, in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: Arc<str>,
    pub role: Role,
}

/// Admits requests by token and role; with no tokens configured, all of them.
#[derive(Clone, Debug)]
pub struct Authenticator {
    tokens: Option<Arc<Tokens>>,
}

impl Authenticator {
    #[must_use]
    pub fn new(tokens: Option<Arc<Tokens>>) -> Self {
        Self { tokens }
    }

    /// `None`: admitted without a name.
    fn admit(&self, path: &str, headers: &http::HeaderMap) -> Result<Option<Caller>, Refusal> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let Some(needed) = required_role(path) else {
            return Ok(None);
        };
        let token = bearer(headers)?;
        let (name, role) = tokens.holder(token).ok_or(Refusal::UnknownToken)?;
        if role < needed {
            return Err(Refusal::Role {
                name: name.to_owned(),
                role,
                needed,
            });
        }
        Ok(Some(Caller {
            name: name.into(),
            role,
        }))
    }
}

/// For calls that need more than their method does, because of what they say.
///
/// # Errors
/// When the caller's role is too low.
pub fn require_role<T>(request: &tonic::Request<T>, needed: Role) -> Result<(), Status> {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.role < needed => Err(Status::from(Refusal::Role {
            name: caller.name.to_string(),
            role: caller.role,
            needed,
        })),
        Some(_) | None => Ok(()),
    }
}

/// The role that `path` needs; `None` when it is open.
fn required_role(path: &str) -> Option<Role> {
    if OPEN.iter().any(|service| path.starts_with(service)) {
        return None;
    }
    let listed = METHODS.iter().find(|(method, _)| *method == path);
    Some(listed.map_or(Role::Admin, |(_, role)| *role))
}

fn bearer(headers: &http::HeaderMap) -> Result<&[u8], Refusal> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refusal::NoToken);
    };
    match value.as_bytes().split_at_checked("Bearer ".len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty() => {
            Ok(token)
        }
        _ => Err(Refusal::NoToken),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("this cluster asks for a token: send 'authorization: Bearer <token>'")]
    NoToken,
    #[error("the token is not one of this node's")]
    UnknownToken,
    #[error("'{name}' has the role {}, this call needs {}", role.name(), needed.name())]
    Role {
        name: String,
        role: Role,
        needed: Role,
    },
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, name, hint) = match refusal {
            Refusal::NoToken => (
                Code::Unauthenticated,
                "TOKEN_REQUIRED",
                "pass --token-file or ENGRAM_TOKEN",
            ),
            Refusal::UnknownToken => (
                Code::Unauthenticated,
                "TOKEN_UNKNOWN",
                "make one with 'engram token create'",
            ),
            Refusal::Role { .. } => (
                Code::PermissionDenied,
                "ROLE_TOO_LOW",
                "use a token with a greater role",
            ),
        };
        let detail = ErrorDetail {
            code: name.to_owned(),
            outcome: Outcome::NotApplied.into(),
            retryable: false,
            leader_hint: String::new(),
            hint: hint.to_owned(),
        };
        Self::with_details(code, refusal.to_string(), detail.encode_to_vec().into())
    }
}

impl<S> Layer<S> for Authenticator {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated {
            authenticator: self.clone(),
            inner,
        }
    }
}

/// A service behind an [`Authenticator`].
#[derive(Clone, Debug)]
pub struct Authenticated<S> {
    authenticator: Authenticator,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Authenticated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self
            .authenticator
            .admit(request.uri().path(), request.headers())
        {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Left(self.inner.call(request))
            }
            Err(refusal) => Either::Right(ready(Ok(Status::from(refusal).into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::{HeaderMap, HeaderValue};
    use prost_types::FileDescriptorSet;

    use super::super::tokens;
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let value = HeaderValue::from_str(authorization).unwrap();
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
    }

    fn authenticator() -> Authenticator {
        let text = [
            tokens::line("reader", Role::Read, "r"),
            tokens::line("writer", Role::Write, "w"),
            tokens::line("root", Role::Admin, "a"),
        ]
        .join("\n");
        Authenticator::new(Some(Arc::new(Tokens::parse(&text).unwrap())))
    }

    /// Fails when a method of the public API has no line in the table, or a line no method.
    #[test]
    fn every_method_has_a_role() {
        let set = FileDescriptorSet::decode(engram_proto::DESCRIPTORS).unwrap();
        let mut methods = BTreeSet::new();
        for file in set.file.iter().filter(|file| file.package() == "engram.v1") {
            for service in &file.service {
                for method in &service.method {
                    methods.insert(format!("/engram.v1.{}/{}", service.name(), method.name()));
                }
            }
        }
        let listed: BTreeSet<_> = METHODS
            .iter()
            .map(|(method, _)| (*method).to_owned())
            .collect();
        assert_eq!(listed.len(), METHODS.len(), "a method is listed twice");
        assert_eq!(listed, methods);
    }

    #[test]
    fn a_role_admits_what_needs_it_or_less() {
        let auth = authenticator();
        for (method, needed) in METHODS {
            for (token, role) in [("r", Role::Read), ("w", Role::Write), ("a", Role::Admin)] {
                let admitted = auth.admit(method, &headers(&format!("Bearer {token}")));
                assert_eq!(admitted.is_ok(), role >= *needed, "{method} as {role:?}");
            }
        }
    }

    #[test]
    fn without_a_known_token_only_open_services_answer() {
        let auth = authenticator();
        let get = "/engram.v1.Memories/Get";
        assert_eq!(auth.admit(get, &HeaderMap::new()), Err(Refusal::NoToken));
        for bad in ["", "Bearer", "Bearer ", "Basic r", "r"] {
            assert_eq!(
                auth.admit(get, &headers(bad)),
                Err(Refusal::NoToken),
                "{bad}"
            );
        }
        assert_eq!(
            auth.admit(get, &headers("Bearer x")),
            Err(Refusal::UnknownToken)
        );
        assert!(
            auth.admit(get, &headers("bearer r")).is_ok(),
            "the scheme has no case"
        );
        let mut twice = headers("Bearer r");
        twice.append(
            http::header::AUTHORIZATION,
            HeaderValue::from_static("Bearer a"),
        );
        assert_eq!(auth.admit(get, &twice), Err(Refusal::NoToken));
        assert_eq!(
            auth.admit("/grpc.health.v1.Health/Check", &HeaderMap::new()),
            Ok(None)
        );
    }

    #[test]
    fn an_unlisted_method_needs_admin() {
        let auth = authenticator();
        for path in [
            "/engram.v1.Memories/Wipe",
            "/engram.peer.v1.Raft/Frames",
            "/",
            "",
        ] {
            assert!(matches!(
                auth.admit(path, &headers("Bearer w")),
                Err(Refusal::Role { .. })
            ));
            assert!(auth.admit(path, &headers("Bearer a")).is_ok());
        }
    }

    #[test]
    fn no_tokens_configured_admits_all() {
        let open = Authenticator::new(None);
        assert_eq!(
            open.admit("/engram.v1.Spaces/DropSpace", &HeaderMap::new()),
            Ok(None)
        );
    }
}
