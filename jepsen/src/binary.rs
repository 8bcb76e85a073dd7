//! Which `engram` is put to the test.

use std::path::{Path, PathBuf};

/// No binary was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no engram binary at {0}; name one in ENGRAM_BIN, or run: cargo build -p engram-node")]
pub struct NoBinary(String);

/// The one that `ENGRAM_BIN` names, else the one that was built beside this program.
///
/// # Errors
/// When it is not there.
pub fn find() -> Result<PathBuf, NoBinary> {
    let path = match std::env::var_os("ENGRAM_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .map(|here| beside(&here))
            .unwrap_or_default(),
    };
    match path.is_file() {
        true => Ok(path),
        false => Err(NoBinary(path.display().to_string())),
    }
}

/// Test programs lie in `deps`, below the directory of the binaries.
fn beside(here: &Path) -> PathBuf {
    let directory = here.parent().unwrap_or(Path::new("."));
    let directory = match directory.ends_with("deps") {
        true => directory.parent().unwrap_or(directory),
        false => directory,
    };
    directory.join("engram")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_lies_beside_tests_and_programs() {
        assert_eq!(
            beside(Path::new("/t/debug/deps/kill-1a2b")),
            Path::new("/t/debug/engram")
        );
        assert_eq!(
            beside(Path::new("/t/debug/jepsen")),
            Path::new("/t/debug/engram")
        );
    }
}
