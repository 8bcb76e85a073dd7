//! The rule that a node without protection stays on loopback.

use std::net::IpAddr;

/// What stands between a node's ports and whoever reaches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    pub tls: bool,
    pub tokens: bool,
    pub cluster_key: bool,
    /// The operator has said aloud that nothing is wanted.
    pub insecure: bool,
}

/// A listen address would offer an unprotected node to other machines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to listen on {address}, which other machines may reach, without {missing}. \
     Make them with 'engram cert' and 'engram token' and name them with --tls-dir and \
     --token-file, or listen on 127.0.0.1, or accept with --insecure that anyone who reaches \
     the port may read and change everything"
)]
pub struct ExposureError {
    pub address: String,
    /// Which protection is not there.
    pub missing: String,
}

/// Checks all listen addresses (`host:port`) of a node before any of them is bound.
///
/// # Errors
/// For the first address beyond loopback, unless all protection is there or waived.
pub fn check_exposure(addresses: &[&str], protection: Protection) -> Result<(), ExposureError> {
    let missing: Vec<&str> = [
        (protection.tls, "TLS"),
        (protection.tokens, "client tokens"),
        (protection.cluster_key, "a cluster key"),
    ]
    .iter()
    .filter_map(|(there, name)| (!there).then_some(*name))
    .collect();
    if protection.insecure || missing.is_empty() {
        return Ok(());
    }
    match addresses.iter().find(|address| !is_loopback(address)) {
        None => Ok(()),
        Some(address) => Err(ExposureError {
            address: (*address).to_owned(),
            missing: missing.join(", "),
        }),
    }
}

/// A name other than `localhost` counts as reachable: what it resolves to may change.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Protection = Protection {
        tls: false,
        tokens: false,
        cluster_key: false,
        insecure: false,
    };
    const ALL: Protection = Protection {
        tls: true,
        tokens: true,
        cluster_key: true,
        insecure: false,
    };

    #[test]
    fn loopback_needs_no_protection() {
        let loopback = [
            "127.0.0.1:7400",
            "127.8.0.9:0",
            "[::1]:7401",
            "localhost:1",
            "[::ffff:127.0.0.1]:1",
        ];
        assert_eq!(check_exposure(&loopback, NONE), Ok(()));
    }

    #[test]
    fn anything_else_needs_all_of_it() {
        for address in [
            "0.0.0.0:7400",
            "[::]:7400",
            "192.0.2.1:1",
            "node1:7400",
            ":7400",
            "localhost.x:1",
        ] {
            let error = check_exposure(&["127.0.0.1:1", address], NONE);
            assert_eq!(error.map_err(|e| e.address), Err(address.to_owned()));
            assert_eq!(check_exposure(&[address], ALL), Ok(()));
        }
        for (half, missing) in [
            (Protection { tls: false, ..ALL }, "TLS"),
            (
                Protection {
                    tokens: false,
                    ..ALL
                },
                "client tokens",
            ),
            (
                Protection {
                    cluster_key: false,
                    ..ALL
                },
                "a cluster key",
            ),
        ] {
            let error = check_exposure(&["0.0.0.0:1"], half);
            assert_eq!(error.map_err(|e| e.missing), Err(missing.to_owned()));
        }
    }

    #[test]
    fn insecure_waives_it() {
        assert_eq!(
            check_exposure(
                &["0.0.0.0:1"],
                Protection {
                    insecure: true,
                    ..NONE
                }
            ),
            Ok(())
        );
    }
}
