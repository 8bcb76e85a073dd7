//! A repository in a directory. Every name below it is made from a hash or a [`BackupId`], and opened
//! step by step without following links, so neither what a manifest says nor what somebody put into
//! the directory leads out of it. The directory itself is the operator's choice, links included.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::manifest::{BackupId, ChunkHash, Manifest};
use super::{CHUNK_FILE_BYTES_MAX, MANIFEST_BYTES_MAX, Repository, RepositoryError};

const MARKER: &str = "engram-backups";
const MARKER_TEXT: &str = "A repository of Engram backups, format 1.\n";
const MARKER_BYTES_MAX: u64 = 128;
const LOCK: &str = "lock";
const CHUNKS: &str = "chunks";
const BACKUPS: &str = "backups";
/// What a file is called until it is whole. No hash and no backup is named like this.
const UNFINISHED: &str = ".unfinished";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A directory with backups.
pub struct Directory {
    path: PathBuf,
    root: OwnedFd,
}

/// Keeps others from writing, or from writing and reading, while it lives.
pub struct Lock {
    _file: OwnedFd,
}

impl Directory {
    /// Opens a repository.
    ///
    /// # Errors
    /// When there is none, or it is of another format.
    pub fn open(path: &Path) -> Result<Self, RepositoryError> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty());
        let repository = Self {
            path: path.to_owned(),
            root: root.map_err(|errno| io_error(path, errno))?,
        };
        let at = repository.path.join(MARKER);
        let text = match repository.read(&repository.root, MARKER, &at, MARKER_BYTES_MAX) {
            Ok(text) => text,
            Err(RepositoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let path = path.to_owned();
                return Err(RepositoryError::NotARepository { path });
            }
            Err(error) => return Err(error),
        };
        if text == MARKER_TEXT.as_bytes() {
            Ok(repository)
        } else {
            Err(RepositoryError::Newer { path: at })
        }
    }

    /// Opens a repository, or makes one in a directory that is empty or not there.
    ///
    /// # Errors
    /// When it is a directory of something else, or cannot be made.
    pub fn open_or_create(path: &Path) -> Result<Self, RepositoryError> {
        let io = |source| RepositoryError::Io {
            path: path.to_owned(),
            source,
        };
        match Self::open(path) {
            Err(RepositoryError::NotARepository { .. }) => {}
            Err(RepositoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(path).map_err(io)?;
            }
            opened => return opened,
        }
        let not_empty = std::fs::read_dir(path).map_err(io)?.next().is_some();
        if not_empty {
            let path = path.to_owned();
            return Err(RepositoryError::NotARepository { path });
        }
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty());
        let root = root.map_err(|errno| io_error(path, errno))?;
        let new = Self {
            path: path.to_owned(),
            root,
        };
        new.make_directory(&new.root, CHUNKS, &path.join(CHUNKS))?;
        new.make_directory(&new.root, BACKUPS, &path.join(BACKUPS))?;
        new.write(
            &new.root,
            MARKER,
            &path.join(MARKER),
            MARKER_TEXT.as_bytes(),
        )?;
        Ok(new)
    }

    /// Held by who adds or removes backups.
    ///
    /// # Errors
    /// When somebody else writes or reads.
    pub fn lock_for_writing(&self) -> Result<Lock, RepositoryError> {
        self.lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// Held by who reads backups, so that nobody removes them meanwhile.
    ///
    /// # Errors
    /// When somebody writes.
    pub fn lock_for_reading(&self) -> Result<Lock, RepositoryError> {
        self.lock(FlockOperation::NonBlockingLockShared)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock, RepositoryError> {
        let path = self.path.join(LOCK);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // A medium that cannot be written has no writers to wait for.
        let made = flags | OFlags::CREATE;
        let file = match rustix::fs::openat(&self.root, LOCK, made, mode(0o644)) {
            Err(Errno::ROFS | Errno::ACCESS) => {
                rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty())
            }
            opened => opened,
        };
        let file = file.map_err(|errno| io_error(&path, errno))?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(RepositoryError::Locked {
                path: self.path.clone(),
            }),
            Err(errno) => Err(io_error(&path, errno)),
        }
    }

    fn make_directory(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &Path,
    ) -> Result<(), RepositoryError> {
        match rustix::fs::mkdirat(parent, name, mode(0o755)) {
            Ok(()) => sync(parent, path),
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(io_error(path, errno)),
        }
    }

    /// A directory of the repository, which must be one, and no link.
    fn directory(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &Path,
    ) -> Result<OwnedFd, RepositoryError> {
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(parent, name, flags, Mode::empty());
        opened.map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => RepositoryError::Unsafe {
                path: path.to_owned(),
                what: "a link, or no directory",
            },
            errno => io_error(path, errno),
        })
    }

    /// Reads a plain file with one name.
    fn read(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &Path,
        bytes_max: u64,
    ) -> Result<Vec<u8>, RepositoryError> {
        let (file, bytes) = self.plain_file(parent, name, path)?;
        let too_large = |bytes| RepositoryError::TooLarge {
            path: path.to_owned(),
            bytes,
            max: bytes_max,
        };
        if bytes > bytes_max {
            return Err(too_large(bytes));
        }
        let mut content = Vec::with_capacity(bytes as usize);
        let read = file.take(bytes_max + 1).read_to_end(&mut content);
        read.map_err(|source| RepositoryError::Io {
            path: path.to_owned(),
            source,
        })?;
        // It may have grown since.
        if content.len() as u64 > bytes_max {
            return Err(too_large(content.len() as u64));
        }
        Ok(content)
    }

    /// Opens a file and says how large it is.
    fn plain_file(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &Path,
    ) -> Result<(File, u64), RepositoryError> {
        let unsafe_file = |what| RepositoryError::Unsafe {
            path: path.to_owned(),
            what,
        };
        // Opening a pipe or a device must not wait for anybody.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty());
        let file = File::from(file.map_err(|errno| match errno {
            Errno::LOOP => unsafe_file("a symbolic link"),
            errno => io_error(path, errno),
        })?);
        let metadata = file.metadata().map_err(|source| RepositoryError::Io {
            path: path.to_owned(),
            source,
        })?;
        if !metadata.is_file() {
            return Err(unsafe_file("no plain file"));
        }
        if metadata.nlink() > 1 {
            return Err(unsafe_file("a file with several names (hard links)"));
        }
        Ok((file, metadata.len()))
    }

    /// Writes a file whole and durably under its name, or not at all.
    fn write(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &Path,
        bytes: &[u8],
    ) -> Result<(), RepositoryError> {
        let at = |errno| io_error(path, errno);
        let unfinished = format!("{UNFINISHED}-{}-{name}", std::process::id());
        // Left by a process of that id that was killed.
        match rustix::fs::unlinkat(parent, &*unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(at(errno)),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, &*unfinished, flags, mode(0o644)).map_err(at)?;
        let mut file = File::from(file);
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // The write is what failed.
            let _ = rustix::fs::unlinkat(parent, &*unfinished, AtFlags::empty());
            let path = path.to_owned();
            return Err(RepositoryError::Io { path, source });
        }
        rustix::fs::renameat(parent, &*unfinished, parent, name).map_err(at)?;
        sync(parent, path)
    }

    fn names(&self, directory: &OwnedFd, path: &Path) -> Result<Vec<String>, RepositoryError> {
        let at = |errno| io_error(path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(at)? {
            let entry = entry.map_err(at)?;
            let name = entry.file_name().to_bytes();
            // What is not named as we name things is not ours.
            if let Ok(name) = std::str::from_utf8(name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The directory of a chunk, the chunk's name in it, and its path for messages.
    fn chunk_place(&self, hash: ChunkHash) -> Result<(OwnedFd, String, PathBuf), RepositoryError> {
        let name = hash.to_string();
        let prefix = name[..2].to_owned();
        let path = self.path.join(CHUNKS);
        let chunks = self.directory(&self.root, CHUNKS, &path)?;
        let path = path.join(&prefix);
        let directory = self.directory(&chunks, &prefix, &path)?;
        let path = path.join(&name);
        Ok((directory, name, path))
    }

    fn backups_directory(&self) -> Result<OwnedFd, RepositoryError> {
        self.directory(&self.root, BACKUPS, &self.path.join(BACKUPS))
    }

    fn manifest_path(&self, id: &BackupId) -> PathBuf {
        self.path.join(BACKUPS).join(OsStr::new(id.as_str()))
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

fn io_error(path: &Path, errno: Errno) -> RepositoryError {
    RepositoryError::Io {
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn is_missing(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn sync(directory: &OwnedFd, path: &Path) -> Result<(), RepositoryError> {
    rustix::fs::fsync(directory).map_err(|errno| io_error(path, errno))
}

impl Repository for Directory {
    fn put_chunk(&self, hash: ChunkHash, bytes: &[u8]) -> Result<bool, RepositoryError> {
        if self.has_chunk(hash, bytes.len() as u64)? {
            return Ok(false);
        }
        let name = hash.to_string();
        let path = self.path.join(CHUNKS);
        let chunks = self.directory(&self.root, CHUNKS, &path)?;
        self.make_directory(&chunks, &name[..2], &path.join(&name[..2]))?;
        let (directory, name, path) = self.chunk_place(hash)?;
        self.write(&directory, &name, &path, bytes)?;
        Ok(true)
    }

    fn has_chunk(&self, hash: ChunkHash, bytes: u64) -> Result<bool, RepositoryError> {
        let found = self
            .chunk_place(hash)
            .and_then(|(directory, name, path)| self.plain_file(&directory, &name, &path));
        match found {
            // One of another size is damaged, and written again.
            Ok((_, size)) => Ok(size == bytes),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn chunk(&self, hash: ChunkHash) -> Result<Vec<u8>, RepositoryError> {
        let read = self.chunk_place(hash).and_then(|(directory, name, path)| {
            self.read(&directory, &name, &path, CHUNK_FILE_BYTES_MAX)
        });
        match read {
            Ok(bytes) if ChunkHash::of(&bytes) == hash => Ok(bytes),
            Ok(_) => Err(RepositoryError::DamagedChunk { hash }),
            Err(error) if is_missing(&error) => Err(RepositoryError::NoChunk { hash }),
            Err(error) => Err(error),
        }
    }

    fn remove_chunk(&self, hash: ChunkHash) -> Result<(), RepositoryError> {
        let (directory, name, path) = self.chunk_place(hash)?;
        match rustix::fs::unlinkat(&directory, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io_error(&path, errno)),
        }
    }

    fn chunks(&self) -> Result<Vec<ChunkHash>, RepositoryError> {
        let path = self.path.join(CHUNKS);
        let chunks = self.directory(&self.root, CHUNKS, &path)?;
        let mut found = Vec::new();
        let is_prefix =
            |name: &String| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        for prefix in self
            .names(&chunks, &path)?
            .iter()
            .filter(|name| is_prefix(name))
        {
            let path = path.join(prefix);
            let directory = self.directory(&chunks, prefix, &path)?;
            let names = self.names(&directory, &path)?;
            found.extend(names.iter().filter_map(|name| ChunkHash::parse(name)));
        }
        Ok(found)
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let (directory, path) = (self.backups_directory()?, self.manifest_path(&manifest.id));
        let name = manifest.id.as_str();
        match self.plain_file(&directory, name, &path) {
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let id = manifest.id.clone();
                return Err(RepositoryError::BackupExists { id });
            }
        }
        self.write(&directory, name, &path, &manifest.encode())
    }

    fn manifest(&self, id: &BackupId) -> Result<Manifest, RepositoryError> {
        let (directory, path) = (self.backups_directory()?, self.manifest_path(id));
        let bytes = match self.read(&directory, id.as_str(), &path, MANIFEST_BYTES_MAX) {
            Err(error) if is_missing(&error) => {
                return Err(RepositoryError::NoBackup { id: id.clone() });
            }
            read => read?,
        };
        Manifest::decode(id, &bytes).map_err(|why| RepositoryError::Manifest {
            id: id.clone(),
            why,
        })
    }

    fn remove_manifest(&self, id: &BackupId) -> Result<(), RepositoryError> {
        let (directory, path) = (self.backups_directory()?, self.manifest_path(id));
        match rustix::fs::unlinkat(&directory, id.as_str(), AtFlags::empty()) {
            Ok(()) => sync(&directory, &path),
            Err(Errno::NOENT) => Err(RepositoryError::NoBackup { id: id.clone() }),
            Err(errno) => Err(io_error(&path, errno)),
        }
    }

    fn backups(&self) -> Result<Vec<BackupId>, RepositoryError> {
        let directory = self.backups_directory()?;
        let names = self.names(&directory, &self.path.join(BACKUPS))?;
        Ok(names
            .iter()
            .filter_map(|name| BackupId::new(name))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::backup::manifest::tests::manifest;

    fn repository() -> (tempfile::TempDir, Directory) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let repository = Directory::open_or_create(&directory.path().join("r")).expect("new");
        (directory, repository)
    }

    fn chunk_path(repository: &Directory, hash: ChunkHash) -> PathBuf {
        let name = hash.to_string();
        repository.path.join(CHUNKS).join(&name[..2]).join(&name)
    }

    #[test]
    fn what_is_kept_reads_back() {
        let (outer, repository) = repository();
        let hash = ChunkHash::of(b"one");
        assert!(repository.put_chunk(hash, b"one").expect("written"));
        assert!(!repository.put_chunk(hash, b"one").expect("there"));
        assert_eq!(repository.chunk(hash).expect("readable"), b"one");
        assert_eq!(repository.chunks().expect("readable"), [hash]);
        repository.put_manifest(&manifest("b")).expect("written");
        repository.put_manifest(&manifest("a")).expect("written");
        let again = repository.put_manifest(&manifest("a"));
        assert!(matches!(again, Err(RepositoryError::BackupExists { .. })));

        let opened = Directory::open(&outer.path().join("r")).expect("a repository");
        let ids = opened.backups().expect("readable");
        let names: Vec<&str> = ids.iter().map(BackupId::as_str).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(opened.manifest(&ids[0]).expect("whole"), manifest("a"));
        opened.remove_manifest(&ids[0]).expect("removed");
        assert!(matches!(
            opened.manifest(&ids[0]),
            Err(RepositoryError::NoBackup { .. })
        ));
        opened.remove_chunk(hash).expect("removed");
        assert!(matches!(
            opened.chunk(hash),
            Err(RepositoryError::NoChunk { .. })
        ));
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("thesis.tex"), "x").expect("writable");
        for opened in [
            Directory::open_or_create(directory.path()),
            Directory::open(directory.path()),
        ] {
            let refused = matches!(opened, Err(RepositoryError::NotARepository { .. }));
            assert!(refused);
        }
        std::fs::write(directory.path().join(MARKER), "format 2").expect("writable");
        assert!(matches!(
            Directory::open(directory.path()),
            Err(RepositoryError::Newer { .. })
        ));
    }

    #[test]
    fn damage_is_told_and_mended_by_the_next_backup() {
        let (_outer, repository) = repository();
        let hash = ChunkHash::of(b"one");
        repository.put_chunk(hash, b"one").expect("written");
        std::fs::write(chunk_path(&repository, hash), "two").expect("writable");
        assert!(matches!(
            repository.chunk(hash),
            Err(RepositoryError::DamagedChunk { .. })
        ));
        std::fs::write(chunk_path(&repository, hash), "on").expect("writable");
        assert!(repository.put_chunk(hash, b"one").expect("written again"));
        assert_eq!(repository.chunk(hash).expect("whole"), b"one");
    }

    #[test]
    fn links_pipes_and_giants_are_refused() {
        let (outer, repository) = repository();
        let secret = outer.path().join("secret");
        std::fs::write(&secret, "one").expect("writable");
        let hash = ChunkHash::of(b"one");
        let path = chunk_path(&repository, hash);
        let refused = |why: &str| {
            let read = repository.chunk(hash);
            let what = matches!(read, Err(RepositoryError::Unsafe { .. }));
            assert!(what, "{why}: {read:?}");
            let text = read.err().map(|error| error.to_string());
            assert!(!text.unwrap_or_default().contains("one"), "{why}");
        };
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        symlink(&secret, &path).expect("a link");
        refused("a symbolic link");
        std::fs::remove_file(&path).expect("removed");
        std::fs::hard_link(&secret, &path).expect("a link");
        refused("a hard link");
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        refused("a directory");
        std::fs::remove_dir(&path).expect("removed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            mode(0o600),
            0,
        )
        .expect("a pipe");
        refused("a pipe");
        std::fs::remove_file(&path).expect("removed");
        let giant = File::create(&path).expect("made");
        giant.set_len(CHUNK_FILE_BYTES_MAX + 1).expect("sparse");
        assert!(matches!(
            repository.chunk(hash),
            Err(RepositoryError::TooLarge { .. })
        ));
        // A link in place of a directory on the way.
        let elsewhere = outer.path().join("elsewhere");
        std::fs::rename(path.parent().expect("a parent"), &elsewhere).expect("moved");
        symlink(&elsewhere, path.parent().expect("a parent")).expect("a link");
        refused("a linked directory");
        let backups = repository.path.join(BACKUPS);
        std::fs::remove_dir(&backups).expect("empty");
        symlink(outer.path(), &backups).expect("a link");
        assert!(matches!(
            repository.backups(),
            Err(RepositoryError::Unsafe { .. })
        ));
    }

    #[test]
    fn one_writes_or_many_read() {
        let (outer, repository) = repository();
        let other = Directory::open(&outer.path().join("r")).expect("a repository");
        let writing = repository.lock_for_writing().expect("free");
        assert!(matches!(
            other.lock_for_reading(),
            Err(RepositoryError::Locked { .. })
        ));
        drop(writing);
        let _reading = repository.lock_for_reading().expect("free");
        let _too = other.lock_for_reading().expect("shared");
        assert!(matches!(
            other.lock_for_writing(),
            Err(RepositoryError::Locked { .. })
        ));
    }
}
