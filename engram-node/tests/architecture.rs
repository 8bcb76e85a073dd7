//! The rules of docs/architecture.md that a compiler does not check, checked on the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_path_buf()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Code lines (comments left out) of all files below `root` that hold one of `words`.
fn mentions(root: &Path, words: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    rust_files(root, &mut files);
    files.retain(|file| {
        let text = fs::read_to_string(file).expect("a readable file");
        let code = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or(""));
        code.into_iter()
            .any(|line| words.iter().any(|word| line.contains(word)))
    });
    files
}

fn assert_only_in(words: &[&str], root: &str, allowed: &[&str]) {
    let root = workspace().join(root);
    for file in mentions(&root, words) {
        let inside = allowed
            .iter()
            .any(|place| file.starts_with(root.join(place)));
        assert!(
            inside,
            "{} speaks of {words:?}; only {allowed:?} may",
            file.display()
        );
    }
}

#[test]
fn only_consensus_speaks_openraft() {
    assert_only_in(
        &["openraft::", "openraft_rt_tokio::"],
        "engram-node/src",
        &["consensus"],
    );
}

#[test]
fn only_membership_speaks_foca() {
    assert_only_in(&["foca::"], "engram-node/src", &["membership"]);
}

#[test]
fn only_the_seams_touch_the_machine() {
    let words = [
        "TcpListener",
        "TcpStream",
        "UdpSocket",
        "SystemTime::now",
        "Instant::now",
    ];
    assert_only_in(&words, "engram-node/src", &["seams", "cli", "demo"]);
}

#[test]
fn the_core_is_sans_io() {
    let words = [
        "tokio",
        "tonic",
        "openraft",
        "std::thread",
        "SystemTime",
        "Instant::now",
        "HashMap",
    ];
    // Tests may have threads: that readers and the applier do not disturb each other is theirs to show.
    assert_only_in(
        &words,
        "engram-core/src",
        &[
            "index/tests",
            "kernel/tests.rs",
            "partition/tests",
            "spread/tests",
        ],
    );
    let manifest =
        fs::read_to_string(workspace().join("engram-core/Cargo.toml")).expect("manifest");
    for dependency in ["tokio", "tonic", "openraft"] {
        assert!(
            !manifest.contains(dependency),
            "engram-core must not depend on {dependency}"
        );
    }
}

/// The checker itself must be able to fail.
#[test]
#[should_panic(expected = "only [\"nowhere\"] may")]
fn a_rule_that_is_broken_is_reported() {
    assert_only_in(&["openraft"], "engram-node/src", &["nowhere"]);
}
