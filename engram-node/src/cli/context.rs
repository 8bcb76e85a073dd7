//! What every command that talks to a cluster needs: where it is, who asks, and how to print.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use engram_client::{Client, TlsOptions};

use super::failure::Failure;
use super::output::Output;

// Options of every command that talks to a cluster. No doc comment, for the same reason as below.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClientArgs {
    /// Client address of a node; several, separated by commas, stand in for each other
    #[arg(
        long,
        env = "ENGRAM_ENDPOINT",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        global = true
    )]
    pub endpoint: Vec<String>,
    /// Bearer token
    #[arg(
        long,
        env = "ENGRAM_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        global = true
    )]
    pub token: Option<String>,
    /// File that holds the bearer token
    #[arg(
        long,
        env = "ENGRAM_CLIENT_TOKEN_FILE",
        value_name = "FILE",
        global = true
    )]
    pub token_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority that signed the nodes' certificates; switches TLS on
    #[arg(long, env = "ENGRAM_CA", value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM)
    #[arg(
        long,
        env = "ENGRAM_CERT",
        value_name = "FILE",
        requires = "key",
        global = true
    )]
    pub cert: Option<PathBuf>,
    /// This client's private key (PEM)
    #[arg(
        long,
        env = "ENGRAM_KEY",
        value_name = "FILE",
        requires = "cert",
        global = true
    )]
    pub key: Option<PathBuf>,
    /// Time that a call may take, retries included, for example 500ms, 10s, 2m
    #[arg(long, env = "ENGRAM_DEADLINE", value_name = "TIME", default_value = "10s",
          value_parser = parse_duration, global = true)]
    pub deadline: Duration,
    /// How to print the answer
    #[arg(
        long,
        short,
        env = "ENGRAM_OUTPUT",
        value_enum,
        default_value_t,
        global = true
    )]
    pub output: Output,
}

// A command's arguments together with `ClientArgs`. No doc comment: clap would show it as the help
// of every command.
#[derive(Clone, Debug, Args)]
pub struct WithClient<T: Args> {
    #[command(flatten)]
    pub args: T,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl ClientArgs {
    /// The client, without a word on the network yet.
    pub fn connect(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder()
            .endpoints(self.endpoint.iter().cloned())
            .deadline(self.deadline);
        if let Some(token) = self.token()? {
            builder = builder.token(token);
        }
        if let Some(tls) = self.tls()? {
            builder = builder.tls(tls);
        }
        Ok(builder.build()?)
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.token_file {
            let bytes = read(path)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| Failure::usage(format!("{}: it is not text", path.display()), ""))?;
            return Ok(Some(text.trim().to_owned()));
        }
        Ok(self.token.clone())
    }

    fn tls(&self) -> Result<Option<TlsOptions>, Failure> {
        let Some(ca) = &self.ca else {
            if self.cert.is_some() {
                return Err(Failure::usage("--cert needs --ca", "--ca FILE"));
            }
            return Ok(None);
        };
        let identity_pem = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Some(TlsOptions {
            ca_pem: read(ca)?,
            identity_pem,
            domain: None,
        }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display()), ""))
}

/// A number with a unit: ms, s, m or h.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let millis: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time has a unit: ms, s, m or h, for example 10s".to_owned()),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("{digits:?} is no whole number"))?;
    match count
        .checked_mul(millis)
        .filter(|total| (1..=86_400_000).contains(total))
    {
        Some(total) => Ok(Duration::from_millis(total)),
        None => Err("a time is between 1ms and 24h".to_owned()),
    }
}

/// Longest half-life, in days.
const HALF_LIFE_DAYS_MAX: u64 = 36_500;

/// How fast associations fade; zero when they do not.
pub fn parse_half_life(text: &str) -> Result<Duration, String> {
    if text == "none" {
        return Ok(Duration::ZERO);
    }
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let seconds: u64 = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("a half-life has a unit: s, m, h or d, for example 24h; or none".into()),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("{digits:?} is no whole number"))?;
    count
        .checked_mul(seconds)
        .filter(|total| (1..=HALF_LIFE_DAYS_MAX * 86_400).contains(total))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("a half-life is between 1s and {HALF_LIFE_DAYS_MAX}d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_half_life("30d"), Ok(Duration::from_secs(2_592_000)));
        assert_eq!(parse_half_life("none"), Ok(Duration::ZERO));
        for bad in [
            "",
            "0s",
            "7",
            "1y",
            "36501d",
            "-1s",
            "99999999999999999999d",
        ] {
            assert!(parse_half_life(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "25h",
            "1d",
            "99999999999999999999h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
