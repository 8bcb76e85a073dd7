//! `engram token`: bearer tokens for clients.
//!
//! A token is printed once and kept nowhere; the token file, which nodes read at start, holds its
//! hash.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::seams::Entropy;
use crate::security::tokens::{self, Role, TOKENS_MAX, Tokens};

#[derive(Clone, Debug, clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token: print it once, and add its hash to a token file
    Create {
        /// The file that nodes are started with (--token-file); made if it does not exist
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Who it is for; appears in logs
        #[arg(long)]
        name: String,
        /// What its holder may do
        #[arg(long, value_enum)]
        role: Role,
    },
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("'{name}' cannot be a token's name: {reason}")]
    Name { name: String, reason: &'static str },
    #[error("{} has a token named '{name}' already: choose another --name, or remove its line", path.display())]
    Exists { name: String, path: PathBuf },
    #[error("{} has {TOKENS_MAX} tokens, which is the limit: remove those not used any more", .0.display())]
    Full(PathBuf),
    #[error("{}: line {line}: {reason}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        reason: &'static str,
    },
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Runs `engram token` and returns the token: the caller prints it, and it is nowhere else.
///
/// # Errors
/// When the file cannot take it; the file is unchanged then.
pub fn run(args: &TokenArgs, entropy: &dyn Entropy) -> Result<String, TokenError> {
    let TokenCommand::Create {
        token_file,
        name,
        role,
    } = &args.command;
    tokens::check_name(name).map_err(|reason| TokenError::Name {
        name: name.clone(),
        reason,
    })?;
    let text = match fs::read_to_string(token_file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|source| failed("reading", token_file, source))?,
    };
    let known = Tokens::parse(&text).map_err(|(line, reason)| TokenError::Line {
        path: token_file.clone(),
        line,
        reason,
    })?;
    if known.has(name) {
        return Err(TokenError::Exists {
            name: name.clone(),
            path: token_file.clone(),
        });
    }
    if known.len() == TOKENS_MAX {
        return Err(TokenError::Full(token_file.clone()));
    }

    let token = tokens::mint(entropy);
    // The last line of a file edited by hand may lack its end.
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let line = format!("{end}{}\n", tokens::line(name, *role, &token));
    append(token_file, &line).map_err(|source| failed("writing", token_file, source))?;
    Ok(token)
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TokenError {
    TokenError::Io {
        action,
        path: path.into(),
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

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TokenArgs,
    }

    fn create(file: &Path, name: &str, role: &str) -> Result<String, TokenError> {
        let file = file.to_str().unwrap();
        let words = [
            "token",
            "create",
            "--token-file",
            file,
            "--name",
            name,
            "--role",
            role,
        ];
        let seams = os::seams(RocksOptions::default());
        run(&Line::parse_from(words).args, seams.entropy.as_ref())
    }

    #[test]
    fn tokens_are_added_and_never_stored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        let first = create(&file, "app", "read").unwrap();
        // As after an edit by hand.
        fs::write(&file, fs::read_to_string(&file).unwrap().trim_end()).unwrap();
        let second = create(&file, "root", "admin").unwrap();
        assert_ne!(first, second);

        let text = fs::read_to_string(&file).unwrap();
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.holder(first.as_bytes()), Some(("app", Role::Read)));
        assert_eq!(
            tokens.holder(second.as_bytes()),
            Some(("root", Role::Admin))
        );
        assert!(!text.contains(&first) && !text.contains(&second));
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_refused_token_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        create(&file, "app", "read").unwrap();
        let before = fs::read(&file).unwrap();
        assert!(matches!(
            create(&file, "app", "admin"),
            Err(TokenError::Exists { .. })
        ));
        assert!(matches!(
            create(&file, "a b", "read"),
            Err(TokenError::Name { .. })
        ));
        assert_eq!(fs::read(&file).unwrap(), before);

        fs::write(&file, "nonsense\n").unwrap();
        assert!(matches!(
            create(&file, "x", "read"),
            Err(TokenError::Line { line: 1, .. })
        ));
    }
}
