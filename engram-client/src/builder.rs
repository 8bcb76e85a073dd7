//! How a [`Client`] is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::client::{Client, Inner, Settings};
use crate::error::{Error, ErrorKind};
use crate::machine::{Machine, Source};
use crate::pool::Pool;
use crate::requests::RequestIds;
use crate::retry::{BUDGET_RETRIES, Budget};
use crate::routing::Routes;
use crate::session::Session;

/// Time that a call may take, retries included, unless the caller says otherwise.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Time after which one attempt is given up in favour of another node.
const ATTEMPT_DEFAULT: Duration = Duration::from_secs(5);

/// What the client needs for TLS, as PEM.
#[derive(Clone, Default)]
pub struct TlsOptions {
    /// The authority that signed the nodes' certificates.
    pub ca_pem: Vec<u8>,
    /// The client's own certificate and key, when the nodes ask for one.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// Name to expect in the nodes' certificates instead of the endpoint's host.
    pub domain: Option<String>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Client`].
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    token: Option<String>,
    tls: Option<TlsOptions>,
    settings: Settings,
    retries: u32,
    session: bool,
    source: Source,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            token: None,
            tls: None,
            settings: Settings {
                deadline: DEADLINE_DEFAULT,
                attempt: ATTEMPT_DEFAULT,
                routing: true,
            },
            retries: BUDGET_RETRIES,
            session: false,
            source: Source::default(),
        }
    }
}

impl ClientBuilder {
    /// Adds a node's client address, `HOST:PORT`.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds several; they stand in for each other.
    pub fn endpoints<T: Into<String>>(mut self, endpoints: impl IntoIterator<Item = T>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The bearer token sent with every call.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Time that a call may take, retries included. Default 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// Time after which one attempt is given up in favour of another node. Default 5 s.
    pub fn attempt_timeout(mut self, attempt: Duration) -> Self {
        self.settings.attempt = attempt;
        self
    }

    /// Retries that the calls of this client together may make before they earn new ones: two
    /// successes earn one. With 0 every call is one attempt; imports go by their own limit. Default 256.
    pub fn retry_budget(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Whether single-memory requests go straight to the primary. Default true; switch it off when
    /// the nodes' own addresses cannot be reached from here.
    pub fn routing(mut self, routing: bool) -> Self {
        self.settings.routing = routing;
        self
    }

    /// Whether answers' tokens are collected and sent with reads of session consistency, so that
    /// any replica answers them no older than what this client has seen. Default false.
    pub fn session(mut self, session: bool) -> Self {
        self.session = session;
        self
    }

    /// The machine to run on instead of the real one, for simulations.
    pub fn machine(mut self, machine: Arc<dyn Machine>) -> Self {
        self.source = Source::of(machine);
        self
    }

    /// The client, without a word on the network. Call inside a tokio runtime.
    ///
    /// # Errors
    /// When an endpoint, the token or the TLS material is malformed.
    pub fn build(self) -> Result<Client, Error> {
        let source = self.source;
        let pool = Pool::new(&self.endpoints, self.tls.map(tls_config), source.clone())?;
        let authorization = self.token.as_deref().map(bearer).transpose()?;
        let inner = Inner {
            pool,
            authorization,
            ids: RequestIds::new(source.new_uuid().into_bytes()),
            routes: Routes::default(),
            budget: Budget::full(self.retries),
            session: self.session.then(Session::default),
            source,
        };
        Ok(Client::new(Arc::new(inner), self.settings))
    }

    /// The client, once a node has answered.
    ///
    /// # Errors
    /// As [`Self::build`], and when no node answers within the deadline.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.build()?;
        client.status().await?;
        Ok(client)
    }
}

fn tls_config(options: TlsOptions) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(options.ca_pem));
    if let Some((certificate, key)) = options.identity_pem {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    match options.domain {
        Some(domain) => config.domain_name(domain),
        None => config,
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {}", token.trim()).parse().map_err(|_| {
            Error::new(
                ErrorKind::Invalid,
                "BAD_TOKEN",
                "the token holds a byte that no header may hold",
            )
        })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bad_settings_are_refused_before_any_call() {
        assert_eq!(
            ClientBuilder::default().build().err().map(|e| e.code),
            Some("NO_ENDPOINT".into())
        );
        let with_token = |token: &str| {
            ClientBuilder::default()
                .endpoint("a:1")
                .token(token)
                .build()
        };
        assert_eq!(
            with_token("a\u{1}b").err().map(|e| e.code),
            Some("BAD_TOKEN".into())
        );
        assert!(
            with_token("secret\n").is_ok(),
            "a file's last line break is no part of the token"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let tls = TlsOptions {
            identity_pem: Some((vec![], b"KEY".to_vec())),
            ..Default::default()
        };
        assert!(!format!("{tls:?}").contains("KEY"));
    }
}
