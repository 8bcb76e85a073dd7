//! Backups at rest (ADR 0010): a repository of chunks, named by what they hold, and of manifests that
//! list them. The command line writes and reads it; nodes never do.
//!
//! ```text
//! REPOSITORY/engram-backups       what this directory is
//!            lock                 held while somebody writes (exclusive) or reads (shared)
//!            chunks/ab/abcd...    one chunk, named by its BLAKE3
//!            backups/ID           one backup: a header with its hash, then JSON
//! ```
//!
//! What must hold: a backup is there, whole and on disk, or not at all; chunks are never overwritten
//! and belong to all backups that name them; whatever a repository holds, reading it follows no link,
//! leaves the directory by no name, and allocates no more than the stated bounds.

mod directory;
mod manifest;

use std::io;
use std::path::PathBuf;

pub use directory::{Directory, Lock};
pub use manifest::{
    BackupId, ChunkEntry, ChunkHash, DecayEntry, Manifest, ManifestError, PartitionEntry,
    SpaceEntry,
};

/// Largest file of a chunk, in bytes: chunks are cut at 4 MiB, behind their last record.
pub const CHUNK_FILE_BYTES_MAX: u64 = 8 << 20;
/// Largest manifest, in bytes: about a million and a half chunks.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Where backups are kept. Blocking. A directory is one; an object store would be another.
pub trait Repository: Send + Sync {
    /// Keeps a chunk, durable before the next manifest is; one that is there already is not written
    /// again. True when it was new.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    fn put_chunk(&self, hash: ChunkHash, bytes: &[u8]) -> Result<bool, RepositoryError>;
    /// Whether there is a chunk of that name and size. Its bytes are not looked at.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    fn has_chunk(&self, hash: ChunkHash, bytes: u64) -> Result<bool, RepositoryError>;
    /// The chunk's bytes, which have that hash.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    fn chunk(&self, hash: ChunkHash) -> Result<Vec<u8>, RepositoryError>;
    /// # Errors
    /// See [`RepositoryError`].
    fn remove_chunk(&self, hash: ChunkHash) -> Result<(), RepositoryError>;
    /// All chunks, in order.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    fn chunks(&self) -> Result<Vec<ChunkHash>, RepositoryError>;
    /// Makes a backup visible: the last step of its creation, durable on return.
    ///
    /// # Errors
    /// See [`RepositoryError`]; one that exists already is not replaced.
    fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError>;
    /// # Errors
    /// See [`RepositoryError`].
    fn manifest(&self, id: &BackupId) -> Result<Manifest, RepositoryError>;
    /// # Errors
    /// See [`RepositoryError`].
    fn remove_manifest(&self, id: &BackupId) -> Result<(), RepositoryError>;
    /// All backups, the oldest first.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    fn backups(&self) -> Result<Vec<BackupId>, RepositoryError>;
}

/// Why a repository cannot be used. No message shows what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is no repository of backups, and it is not empty")]
    NotARepository { path: PathBuf },
    #[error("{path} is of a newer format than this program knows")]
    Newer { path: PathBuf },
    #[error("{path} is {what}: only plain files and directories without links are read")]
    Unsafe { path: PathBuf, what: &'static str },
    #[error("{path} has {bytes} bytes, at most {max} are read")]
    TooLarge { path: PathBuf, bytes: u64, max: u64 },
    #[error("chunk {hash} is not there")]
    NoChunk { hash: ChunkHash },
    #[error("chunk {hash} is damaged: its bytes have another hash")]
    DamagedChunk { hash: ChunkHash },
    #[error("there is no backup {id}")]
    NoBackup { id: BackupId },
    #[error("there is a backup {id} already")]
    BackupExists { id: BackupId },
    #[error("backup {id}: {why}")]
    Manifest { id: BackupId, why: ManifestError },
    #[error("another command is writing to {path}")]
    Locked { path: PathBuf },
}
