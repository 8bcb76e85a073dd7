//! Connections: one HTTP/2 channel per node, made when it is first used.
//!
//! Knows the configured endpoints and the nodes learned from the cluster map, and passes over an
//! address for a while after its connection failed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::error::{Error, ErrorKind};
use crate::machine::{Deadline, Source};

/// How long a failed address is passed over while another one is there.
const PENALTY: Duration = Duration::from_secs(2);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection with calls in flight is probed this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Flow-control windows, in bytes: bulk loads must not stall on the 64 KiB default.
const WINDOW_BYTES: u32 = 4 << 20;
/// Calls given up on one connection whose late answers are known for what they are. Others do not
/// close it: the server is trusted not to flood its client.
const GIVEN_UP_CALLS_MAX: usize = 1_024;

pub(crate) struct Pool {
    tls: Option<ClientTlsConfig>,
    source: Source,
    state: Mutex<State>,
}

struct State {
    /// Configured, in the caller's order, then learned.
    addresses: Vec<String>,
    /// Index of the address that unrouted calls go to.
    current: usize,
    channels: HashMap<String, Channel>,
    penalties: HashMap<String, Deadline>,
}

/// A node to send one attempt to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) channel: Channel,
}

impl Pool {
    /// # Errors
    /// When an address is malformed or there is none.
    pub(crate) fn new(
        endpoints: &[String],
        tls: Option<ClientTlsConfig>,
        source: Source,
    ) -> Result<Self, Error> {
        let addresses: Vec<String> = endpoints.iter().map(|text| strip_scheme(text)).collect();
        let pool = Self {
            tls,
            source,
            state: Mutex::new(State {
                addresses,
                current: 0,
                channels: HashMap::new(),
                penalties: HashMap::new(),
            }),
        };
        let addresses = pool.state.lock().addresses.clone();
        if addresses.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "NO_ENDPOINT",
                "no endpoint is configured",
            ));
        }
        for address in &addresses {
            pool.endpoint(address)?;
        }
        Ok(pool)
    }

    /// Nodes of the cluster map become endpoints to fall back to.
    pub(crate) fn learn(&self, addresses: impl IntoIterator<Item = String>) {
        let mut state = self.state.lock();
        for address in addresses {
            if !address.is_empty() && !state.addresses.contains(&address) {
                state.addresses.push(address);
            }
        }
    }

    /// The `preferred` node unless it failed lately, else the first that did not.
    pub(crate) fn pick(&self, preferred: Option<&str>) -> Result<Target, Error> {
        let address = {
            let state = self.state.lock();
            match preferred.filter(|address| !state.penalised(address)) {
                Some(address) => address.to_owned(),
                None => state.first_usable().to_owned(),
            }
        };
        let channel = self.channel(&address)?;
        Ok(Target { address, channel })
    }

    pub(crate) fn failed(&self, address: &str) {
        let mut state = self.state.lock();
        state
            .penalties
            .insert(address.to_owned(), Deadline::after(PENALTY));
    }

    pub(crate) fn answered(&self, address: &str) {
        let mut state = self.state.lock();
        state.penalties.remove(address);
        // Stay with a node that answers.
        let current = &state.addresses[state.current];
        if current != address
            && state.penalised(current)
            && let Some(position) = state.addresses.iter().position(|known| known == address)
        {
            state.current = position;
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Error> {
        if let Some(channel) = self.state.lock().channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.connect(address)?;
        let mut state = self.state.lock();
        Ok(state
            .channels
            .entry(address.to_owned())
            .or_insert(channel)
            .clone())
    }

    /// Lazily: nothing is sent before the first call.
    fn connect(&self, address: &str) -> Result<Channel, Error> {
        let endpoint = self.endpoint(address)?;
        let Some(machine) = self.source.connector() else {
            return Ok(endpoint.connect_lazy());
        };
        let address = address.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let connecting = Arc::clone(&machine).connect(&address);
            async move { connecting.await.map(TokioIo::new) }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let bad = |reason: String| {
            Error::new(
                ErrorKind::Invalid,
                "BAD_ENDPOINT",
                format!("endpoint {address:?}: {reason}"),
            )
            .with_hint("an endpoint is HOST:PORT, for example 127.0.0.1:7400")
        };
        let uri: http::Uri = format!("{scheme}://{address}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
        if uri.port().is_none() {
            return Err(bad("it has no port".to_owned()));
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .http2_max_concurrent_reset_streams(GIVEN_UP_CALLS_MAX)
            .http2_max_local_error_reset_streams(None)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        match &self.tls {
            None => Ok(endpoint),
            Some(tls) => endpoint
                .tls_config(tls.clone())
                .map_err(|error| bad(format!("TLS: {}", causes(&error)))),
        }
    }
}

impl State {
    fn penalised(&self, address: &str) -> bool {
        self.penalties
            .get(address)
            .is_some_and(|until| !until.passed())
    }

    /// From the current one on, the first without penalty; when all have one, the one whose penalty
    /// ends first, so that repeated attempts go round.
    fn first_usable(&self) -> &str {
        let count = self.addresses.len();
        let in_turn = (0..count).map(|step| &self.addresses[(self.current + step) % count]);
        let mut usable = in_turn.filter(|address| !self.penalised(address));
        usable.next().unwrap_or_else(|| self.soonest_usable())
    }

    fn soonest_usable(&self) -> &String {
        let remaining =
            |address: &&String| self.penalties.get(*address).map(|until| until.remaining());
        let first = &self.addresses[0];
        self.addresses.iter().min_by_key(remaining).unwrap_or(first)
    }
}

fn strip_scheme(endpoint: &str) -> String {
    let bare = endpoint
        .strip_prefix("http://")
        .or_else(|| endpoint.strip_prefix("https://"));
    bare.unwrap_or(endpoint).trim_end_matches('/').to_owned()
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(endpoints: &[&str]) -> Result<Pool, Error> {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        Pool::new(&endpoints, None, Source::default())
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for bad in ["", "host", "host:port", "a b:1"] {
            assert!(pool(&[bad]).is_err(), "{bad:?}");
        }
        assert!(pool(&[]).is_err());
        assert!(pool(&["http://127.0.0.1:7400/", "[::1]:7400"]).is_ok());
    }

    #[tokio::test]
    async fn a_failed_node_is_passed_over() {
        let pool = pool(&["a:1", "b:1"]).expect("valid");
        let pick = |preferred| pool.pick(preferred).map(|target| target.address);
        assert_eq!(pick(None).as_deref(), Ok("a:1"));
        assert_eq!(pick(Some("c:1")).as_deref(), Ok("c:1"));
        pool.failed("a:1");
        pool.failed("c:1");
        assert_eq!(pick(None).as_deref(), Ok("b:1"));
        assert_eq!(pick(Some("c:1")).as_deref(), Ok("b:1"));
        pool.failed("b:1");
        assert_eq!(
            pick(None).as_deref(),
            Ok("a:1"),
            "all failed: the one that failed first"
        );
        pool.learn(["d:1".to_owned(), "a:1".to_owned()]);
        assert_eq!(pick(None).as_deref(), Ok("d:1"));
    }

    #[tokio::test]
    async fn unrouted_calls_stay_with_a_node_that_answers() {
        let pool = pool(&["a:1", "b:1"]).expect("valid");
        pool.failed("a:1");
        pool.answered("b:1");
        pool.answered("a:1");
        assert_eq!(
            pool.pick(None).map(|target| target.address).as_deref(),
            Ok("b:1")
        );
    }
}
