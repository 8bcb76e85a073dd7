//! `engram cert`: TLS material for a cluster, as files.
//!
//! ```text
//! DIR/ca.crt, ca.key, cluster.key                     create-ca: keep ca.key away from the nodes
//! DIR/NAME/ca.crt, node.crt, node.key, cluster.key    create-node: copy to that node
//! DIR/NAME/ca.crt, client.crt, client.key             create-client: copy to that client
//! ```
//!
//! What must hold: nothing that exists is overwritten, and only the owner may read what is written.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::seams::Seams;
use crate::security::files;
use crate::security::issue::{self, CA_VALID_DAYS, IssueError, Issued, LEAF_VALID_DAYS, Validity};
use crate::security::tokens::check_name;

const SECRET_BYTES: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub struct CertArgs {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum CertCommand {
    /// Make a certificate authority and a cluster key in DIR: once per cluster
    #[command(name = "create-ca")]
    Ca {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Days that the authority is valid
        #[arg(long, default_value_t = CA_VALID_DAYS)]
        days: u32,
    },
    /// Make what one node needs, in DIR/NAME, with the authority in DIR
    #[command(name = "create-node")]
    Node {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long)]
        name: String,
        /// Host name or address that clients dial; repeat it for each one
        #[arg(long = "host", value_name = "HOST", required = true)]
        hosts: Vec<String>,
        #[arg(long, default_value_t = LEAF_VALID_DAYS)]
        days: u32,
    },
    /// Make a client's certificate, in DIR/NAME, with the authority in DIR
    #[command(name = "create-client")]
    Client {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long)]
        name: String,
        #[arg(long, default_value_t = LEAF_VALID_DAYS)]
        days: u32,
    },
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("{} exists already, and nothing is overwritten: choose another --dir or --name, or move it away", .0.display())]
    Exists(PathBuf),
    #[error("there is no certificate authority in {}: make one with 'engram cert create-ca --dir {}'", .0.display(), .0.display())]
    NoAuthority(PathBuf),
    #[error("'{name}' cannot be a name here: {reason}")]
    Name { name: String, reason: &'static str },
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Runs `engram cert` and says what was written and what to do with it.
///
/// # Errors
/// When something is in the way or cannot be written; what was written before stays.
pub fn run(args: &CertArgs, seams: &Seams) -> Result<String, CertError> {
    let validity = |days| Validity {
        now_millis: seams.clock.wall_millis(),
        days,
    };
    match &args.command {
        CertCommand::Ca { dir, days } => create_ca(dir, validity(*days), seams),
        CertCommand::Node {
            dir,
            name,
            hosts,
            days,
        } => create_node(dir, name, hosts, validity(*days)),
        CertCommand::Client { dir, name, days } => create_client(dir, name, validity(*days)),
    }
}

fn create_ca(dir: &Path, validity: Validity, seams: &Seams) -> Result<String, CertError> {
    let Issued { certificate, key } = issue::ca(validity)?;
    let mut secret = [0; SECRET_BYTES];
    seams.entropy.fill(&mut secret);
    let secret = blake3::Hash::from_bytes(secret).to_hex().to_string() + "\n";
    let written = write_all(
        dir,
        &[
            (files::CA_CERTIFICATE, &certificate),
            (files::CA_KEY, &key),
            (files::CLUSTER_KEY, &secret),
        ],
    )?;
    Ok(format!(
        "{written}Next, for each node: engram cert create-node --dir {} --name NAME --host HOST\n",
        dir.display()
    ))
}

fn create_node(
    dir: &Path,
    name: &str,
    hosts: &[String],
    validity: Validity,
) -> Result<String, CertError> {
    let target = target(dir, name)?;
    let ca = Authority::read(dir)?;
    let secret = read(&dir.join(files::CLUSTER_KEY))?;
    let Issued { certificate, key } = issue::node(&ca.key, name, hosts, validity)?;
    let written = write_all(
        &target,
        &[
            (files::CA_CERTIFICATE, &ca.certificate),
            (files::NODE_CERTIFICATE, &certificate),
            (files::NODE_KEY, &key),
            (files::CLUSTER_KEY, &secret),
        ],
    )?;
    Ok(format!(
        "{written}Next: copy {0} to that node, and start it with: engram start --tls-dir {0} ...\n",
        target.display()
    ))
}

fn create_client(dir: &Path, name: &str, validity: Validity) -> Result<String, CertError> {
    let target = target(dir, name)?;
    let ca = Authority::read(dir)?;
    let Issued { certificate, key } = issue::client(&ca.key, name, validity)?;
    write_all(
        &target,
        &[
            (files::CA_CERTIFICATE, &ca.certificate),
            (files::CLIENT_CERTIFICATE, &certificate),
            (files::CLIENT_KEY, &key),
        ],
    )
}

struct Authority {
    certificate: String,
    key: String,
}

impl Authority {
    fn read(dir: &Path) -> Result<Self, CertError> {
        let (certificate, key) = (dir.join(files::CA_CERTIFICATE), dir.join(files::CA_KEY));
        if !certificate.exists() || !key.exists() {
            return Err(CertError::NoAuthority(dir.into()));
        }
        Ok(Self {
            certificate: read(&certificate)?,
            key: read(&key)?,
        })
    }
}

/// The directory of a node or client: one plain component below `dir`.
fn target(dir: &Path, name: &str) -> Result<PathBuf, CertError> {
    let refused = |reason| CertError::Name {
        name: name.to_owned(),
        reason,
    };
    check_name(name).map_err(refused)?;
    if name.starts_with(['.', '-']) {
        return Err(refused("it begins with a letter, a digit, _ or @"));
    }
    Ok(dir.join(name))
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(failed("reading", path))
}

/// Writes the files, none if one of them exists, and lists them.
fn write_all(dir: &Path, contents: &[(&str, &str)]) -> Result<String, CertError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("making", dir))?;
    let taken = contents
        .iter()
        .map(|(name, _)| dir.join(name))
        .find(|path| path.exists());
    if let Some(path) = taken {
        return Err(CertError::Exists(path));
    }
    let mut written = String::new();
    for (name, content) in contents {
        let path = dir.join(name);
        write_new(&path, content).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CertError::Exists(path.clone()),
            _ => CertError::Io {
                action: "writing",
                path: path.clone(),
                source,
            },
        })?;
        writeln!(written, "wrote {}", path.display())
            .unwrap_or_else(|_| unreachable!("a string takes all"));
    }
    Ok(written)
}

fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, content.as_bytes())?;
    file.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CertError {
    let path = path.to_owned();
    move |source| CertError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;
    use engram_core::storage::RocksOptions;

    use super::*;
    use crate::seams::os;
    use crate::security::{Security, SecurityOptions};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CertArgs,
    }

    fn cert(words: &[&str]) -> Result<String, CertError> {
        let line = Line::parse_from([&["cert"], words].concat());
        run(&line.args, &os::seams(RocksOptions::default()))
    }

    #[test]
    fn a_node_starts_with_what_was_made_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("certs");
        let path = root.to_str().unwrap();
        cert(&["create-ca", "--dir", path]).unwrap();
        cert(&[
            "create-node",
            "--dir",
            path,
            "--name",
            "n1",
            "--host",
            "127.0.0.1",
        ])
        .unwrap();
        cert(&["create-client", "--dir", path, "--name", "app"]).unwrap();

        let options = SecurityOptions {
            tls_dir: Some(root.join("n1")),
            ..Default::default()
        };
        let seams = os::seams(RocksOptions::default());
        let security = Security::load(&options, seams.disk.as_ref()).unwrap();
        assert!(security.protection().tls && security.protection().cluster_key);

        for file in ["ca.key", "cluster.key", "n1/node.key", "app/client.key"] {
            let mode = fs::metadata(root.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(
            !root.join("n1/ca.key").exists(),
            "the authority's key stays where it was made"
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        cert(&["create-ca", "--dir", path]).unwrap();
        let before = fs::read(dir.path().join("ca.key")).unwrap();
        assert!(matches!(
            cert(&["create-ca", "--dir", path]),
            Err(CertError::Exists(_))
        ));
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);

        let node = [
            "create-node",
            "--dir",
            path,
            "--name",
            "n1",
            "--host",
            "n1.example",
        ];
        cert(&node).unwrap();
        assert!(matches!(cert(&node), Err(CertError::Exists(_))));
    }

    #[test]
    fn unusable_input_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let client = ["create-client", "--dir", path, "--name", "app"];
        assert!(matches!(cert(&client), Err(CertError::NoAuthority(_))));
        cert(&["create-ca", "--dir", path]).unwrap();
        for name in ["", "..", "a/b", "-x"] {
            let name = format!("--name={name}");
            let result = cert(&["create-client", "--dir", path, &name]);
            assert!(matches!(result, Err(CertError::Name { .. })), "{name}");
        }
        let bad_host = [
            "create-node",
            "--dir",
            path,
            "--name",
            "n1",
            "--host",
            "härte",
        ];
        assert!(matches!(
            cert(&bad_host),
            Err(CertError::Issue(IssueError::Host(_)))
        ));
        let bad_days = [
            "create-client",
            "--dir",
            path,
            "--name",
            "app",
            "--days",
            "0",
        ];
        assert!(matches!(
            cert(&bad_days),
            Err(CertError::Issue(IssueError::Validity(0)))
        ));
        assert!(!dir.path().join("n1").exists());
    }
}
