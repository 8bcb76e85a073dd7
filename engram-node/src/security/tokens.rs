//! The bearer tokens of clients: a file of hashes, read at start.
//!
//! ```text
//! # name  role   BLAKE3 of the token, hexadecimal
//! ingest  write  6f0c...
//! ```
//!
//! A token is 32 random bytes, so a plain hash of it cannot be searched. `engram token create`
//! adds lines; `Authenticator` asks. What must hold: how long a comparison takes says nothing
//! about the tokens in the file.

use std::fmt::Write as _;
use std::path::Path;

use subtle::ConstantTimeEq as _;

use super::{SecurityError, read};
use crate::seams::{Disk, Entropy};

/// Tokens in one file: each request is compared with all of them.
pub const TOKENS_MAX: usize = 1_024;
/// Length of a token's name, in bytes.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// What every token begins with, so that scanners for leaked secrets can find it.
const PREFIX: &str = "engram_";
const SECRET_BYTES: usize = 32;

/// What a caller may do. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Role {
    /// Read memories, associations, spaces and the cluster's state.
    Read,
    /// Also change memories and associations.
    Write,
    /// Also create and drop spaces and change the cluster.
    Admin,
}

impl Role {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Admin]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// A new token: given to its user once, and kept only as its hash.
#[must_use]
pub fn mint(entropy: &dyn Entropy) -> String {
    let mut secret = [0; SECRET_BYTES];
    entropy.fill(&mut secret);
    secret.iter().fold(PREFIX.to_owned(), |mut token, byte| {
        write!(token, "{byte:02x}").unwrap_or_else(|_| unreachable!("a string takes all"));
        token
    })
}

/// The line of a token file for `token`.
#[must_use]
pub fn line(name: &str, role: Role, token: &str) -> String {
    format!(
        "{name} {} {}",
        role.name(),
        blake3::hash(token.as_bytes()).to_hex()
    )
}

/// Whether `name` can stand in a token file.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > TOKEN_NAME_BYTES_MAX {
        return Err("a name has 1 to 64 bytes");
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
    {
        return Err("a name consists of letters, digits and -_.@");
    }
    Ok(())
}

#[derive(Debug)]
struct Entry {
    name: String,
    role: Role,
    hash: [u8; blake3::OUT_LEN],
}

/// The tokens that a node accepts.
#[derive(Debug, Default)]
pub struct Tokens {
    entries: Vec<Entry>,
}

impl Tokens {
    /// # Errors
    /// When the file cannot be read, or a line is not a token.
    pub fn load(path: &Path, disk: &dyn Disk) -> Result<Self, SecurityError> {
        const WHAT: &str = "token file";
        let text =
            String::from_utf8(read(WHAT, path, disk)?).map_err(|_| SecurityError::Unusable {
                what: WHAT,
                path: path.into(),
                reason: "not UTF-8".into(),
            })?;
        Self::parse(&text).map_err(|(line, reason)| SecurityError::Token {
            path: path.into(),
            line,
            reason,
        })
    }

    /// # Errors
    /// The number of the first line that is not a token, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut tokens = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = parse_line(line).map_err(|reason| (number, reason))?;
            if tokens.has(&entry.name) {
                return Err((number, "an earlier line has the same name"));
            }
            if tokens.entries.len() == TOKENS_MAX {
                return Err((number, "more than 1024 tokens"));
            }
            tokens.entries.push(entry);
        }
        Ok(tokens)
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name and role of the holder of `token`. Every entry is compared, whichever one matches.
    #[must_use]
    pub fn holder(&self, token: &[u8]) -> Option<(&str, Role)> {
        let hash = blake3::hash(token);
        let mut found = None;
        for entry in &self.entries {
            if bool::from(entry.hash.ct_eq(hash.as_bytes())) {
                found = Some((entry.name.as_str(), entry.role));
            }
        }
        found
    }
}

fn parse_line(line: &str) -> Result<Entry, &'static str> {
    let mut fields = line.split_ascii_whitespace();
    let (Some(name), Some(role), Some(hash), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err("expected three fields: name, role, hash");
    };
    check_name(name)?;
    let role = Role::parse(role).ok_or("the role is not read, write or admin")?;
    let hash = blake3::Hash::from_hex(hash).map_err(|_| "the hash is not 64 hexadecimal digits")?;
    Ok(Entry {
        name: name.to_owned(),
        role,
        hash: *hash.as_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_written_line_accepts_its_token_and_no_other() {
        let text = format!(
            "# comment\n\n{}\n  {}  \n",
            line("ingest", Role::Write, "engram_a"),
            line("ops@site", Role::Admin, "engram_b"),
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.holder(b"engram_a"), Some(("ingest", Role::Write)));
        assert_eq!(tokens.holder(b"engram_b"), Some(("ops@site", Role::Admin)));
        assert_eq!(tokens.holder(b"engram_c"), None);
        assert_eq!(tokens.holder(b""), None);
        assert!(!text.contains("engram_a"), "a file holds hashes only");
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = line("a", Role::Read, "t");
        let hash = blake3::hash(b"t").to_hex();
        for bad in [
            "a read".to_owned(),
            format!("{good} more"),
            format!("a root {hash}"),
            "a read 12".to_owned(),
            format!("a/b read {hash}"),
            format!("{} read {hash}", "n".repeat(TOKEN_NAME_BYTES_MAX + 1)),
            good.clone(),
        ] {
            let error = Tokens::parse(&format!("{good}\n{bad}\n")).map(|t| t.len());
            assert_eq!(error.map_err(|(line, _)| line), Err(2), "{bad}");
        }
    }

    #[test]
    fn the_number_of_tokens_is_bounded() {
        let text: String = (0..=TOKENS_MAX)
            .map(|i| line(&format!("n{i}"), Role::Read, "t") + "\n")
            .collect();
        let error = Tokens::parse(&text).map(|t| t.len());
        assert_eq!(error.map_err(|(line, _)| line), Err(TOKENS_MAX + 1));
    }

    #[test]
    fn each_role_includes_those_before_it() {
        assert!(Role::Read < Role::Write && Role::Write < Role::Admin);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*(\n\\PC*){0,4}") {
            let _ = Tokens::parse(&text);
        }
    }
}
