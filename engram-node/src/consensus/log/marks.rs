//! How far the log of each group was on disk: a file of its own, `DATA_DIR/log-marks`.
//!
//! ```text
//! "ENGM" | version u8 | count u32 | count x (group u64 | term u64 | index u64) | crc32c u32 of all before
//! ```
//!
//! Integers are big-endian. The store recovers its log up to the first bad record and cannot tell a
//! torn tail, which nobody was told of, from a damaged one. The mark can: a log that ends short of it
//! has lost what may have been acknowledged ([`super::super::recovery`]).
//!
//! What must hold: a mark is written only after the sync of what it marks. It may be behind: it is
//! written [`LAZY`] after a change, or before every acknowledgement when the node is told so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::GroupId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::consensus::runtime::LogId;
use crate::seams::Seams;

const MAGIC: &[u8; 4] = b"ENGM";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 4;
const ENTRY_BYTES: usize = 3 * 8;
/// How long a changed mark may stay unwritten, when marks are written lazily.
const LAZY: Duration = Duration::from_secs(1);

/// A position in a log: of two, the one of the later term is further, whatever the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub term: u64,
    pub index: u64,
}

impl From<LogId> for Mark {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

/// The marks of all groups of a node. Clones share them.
#[derive(Clone)]
pub struct Marks {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    path: PathBuf,
    before_ack: bool,
    marks: Mutex<BTreeMap<GroupId, Mark>>,
    /// Logs that are short, and where they have to come again: a short log may be cut further back on
    /// its way, but what it has to come to stays.
    required: Mutex<BTreeMap<GroupId, Mark>>,
    changed: Notify,
    /// Held while the file is written, so that an older state never replaces a newer one.
    saving: Mutex<()>,
}

impl Marks {
    /// Blocks while it reads the file.
    pub fn open(seams: &Seams, data_dir: &Path, before_ack: bool) -> Self {
        let path = data_dir.join("log-marks");
        let marks = match seams.disk.read_file(&path) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|| {
                // It is written whole or not at all: this is no crash.
                metrics::counter!("engram_log_marks_damaged_total").increment(1);
                tracing::error!(path = %path.display(), "the marks of the logs are damaged");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the marks of the logs cannot be read");
                BTreeMap::new()
            }
        };
        let shared = Shared {
            seams: seams.clone(),
            path,
            before_ack,
            marks: Mutex::new(marks),
            required: Mutex::default(),
            changed: Notify::new(),
            saving: Mutex::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Starts writing changed marks; ends with the last other clone.
    pub fn start(&self) {
        let weak = Arc::downgrade(&self.shared);
        let seams = self.shared.seams.clone();
        let clock = Arc::clone(&seams.clock);
        seams.spawn("log-marks", async move {
            loop {
                clock.sleep(LAZY).await;
                let Some(shared) = weak.upgrade() else { return };
                let marks = Self { shared };
                let changed = marks.shared.changed.notified();
                // A permit is there when something has changed since the last look.
                if futures::FutureExt::now_or_never(changed).is_none() {
                    continue;
                }
                let saving = marks.clone();
                let saved = marks.shared.seams.blocking(move || saving.save()).await;
                if let Err(error) = saved {
                    // They fall behind; what they mark is on disk all the same.
                    tracing::warn!(%error, "the marks of the logs cannot be written");
                    marks.shared.changed.notify_one();
                }
            }
        });
    }

    pub fn of(&self, group: GroupId) -> Option<Mark> {
        self.shared.marks.lock().get(&group).copied()
    }

    /// These are on disk now. Blocks when marks are written before acknowledgements.
    ///
    /// # Errors
    /// When they are to be on disk before anything is acknowledged, and cannot be written.
    pub fn reached(&self, marks: &[(GroupId, Mark)]) -> std::io::Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        for (group, mark) in marks {
            self.raise(*group, *mark);
        }
        if self.shared.before_ack {
            return self.save();
        }
        self.shared.changed.notify_one();
        Ok(())
    }

    /// The log had been there at least.
    fn raise(&self, group: GroupId, mark: Mark) {
        let mut held = self.shared.marks.lock();
        let held = held.entry(group).or_insert(mark);
        *held = (*held).max(mark);
    }

    /// The log's end was cut off on purpose: it ends there now.
    pub fn cut(&self, group: GroupId, end: Option<Mark>) {
        let required = self.shared.required.lock().get(&group).copied();
        self.set(group, end.max(required));
    }

    /// The log is short, and has to come there again.
    pub fn require(&self, group: GroupId, mark: Mark) {
        self.shared.required.lock().insert(group, mark);
    }

    /// The log has come there.
    pub fn release(&self, group: GroupId) {
        self.shared.required.lock().remove(&group);
    }

    /// All of the log is about to be deleted; it is to be brought back to `end`.
    pub fn begin_anew(&self, group: GroupId, end: Option<Mark>) {
        self.release(group);
        self.set(group, end);
    }

    fn set(&self, group: GroupId, end: Option<Mark>) {
        let mut held = self.shared.marks.lock();
        match end {
            Some(end) => drop(held.insert(group, end)),
            None => drop(held.remove(&group)),
        }
        self.shared.changed.notify_one();
    }

    /// The group is removed from this node.
    pub fn forget(&self, group: GroupId) {
        self.begin_anew(group, None);
    }

    /// Blocks. Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> std::io::Result<()> {
        let _saving = self.shared.saving.lock();
        let bytes = encode(&self.shared.marks.lock());
        self.shared.seams.disk.write_file(&self.shared.path, &bytes)
    }
}

fn encode(marks: &BTreeMap<GroupId, Mark>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + marks.len() * ENTRY_BYTES + 4);
    bytes.extend(MAGIC);
    bytes.push(VERSION);
    bytes.extend((marks.len() as u32).to_be_bytes());
    for (group, mark) in marks {
        for part in [group.0, mark.term, mark.index] {
            bytes.extend(part.to_be_bytes());
        }
    }
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<GroupId, Mark>> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let (head, entries) = body.split_at_checked(HEAD_BYTES)?;
    let count = u32::from_be_bytes(head[5..].try_into().ok()?) as usize;
    if &head[..4] != MAGIC || head[4] != VERSION || entries.len() != count * ENTRY_BYTES {
        return None;
    }
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    let entry = |entry: &[u8; ENTRY_BYTES]| {
        let (parts, _) = entry.as_chunks::<8>();
        let [group, term, index] = [0, 1, 2].map(|at| u64::from_be_bytes(parts[at]));
        (GroupId(group), Mark { term, index })
    };
    Some(entries.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use engram_core::storage::RocksOptions;

    use super::*;
    use crate::seams::os;

    const G: GroupId = GroupId(3);

    fn mark(term: u64, index: u64) -> Mark {
        Mark { term, index }
    }

    #[test]
    fn marks_read_back_and_damage_is_noticed() {
        let marks = BTreeMap::from([(G, mark(2, 9)), (GroupId(u64::MAX), mark(1, 0))]);
        let bytes = encode(&marks);
        assert_eq!(decode(&bytes), Some(marks));
        for place in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[place] ^= 4;
            assert_eq!(decode(&bent), None, "{place}");
            assert_eq!(decode(&bytes[..place]), None);
        }
    }

    #[test]
    fn a_later_term_is_further() {
        assert!(mark(3, 5) > mark(2, 9) && mark(2, 9) > mark(2, 8));
    }

    #[test]
    fn what_a_short_log_has_to_come_to_is_not_lowered_by_a_cut() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let marks = Marks::open(&os::seams(RocksOptions::default()), directory.path(), false);
        marks.reached(&[(G, mark(2, 9))]).expect("noted");
        marks.require(G, mark(2, 9));
        marks.cut(G, Some(mark(1, 4)));
        assert_eq!(marks.of(G), Some(mark(2, 9)));
        marks.release(G);
        marks.cut(G, Some(mark(1, 4)));
        assert_eq!(marks.of(G), Some(mark(1, 4)));
        marks.require(G, mark(2, 9));
        marks.begin_anew(G, Some(mark(3, 1)));
        assert_eq!(marks.of(G), Some(mark(3, 1)), "all of it is gone");
        marks.cut(G, None);
        assert_eq!(marks.of(G), None);
    }

    #[test]
    fn a_mark_goes_forward_but_for_a_cut() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let seams = os::seams(RocksOptions::default());
        let marks = Marks::open(&seams, directory.path(), true);
        assert_eq!(marks.of(G), None);
        marks.reached(&[(G, mark(2, 9))]).expect("written");
        marks.reached(&[(G, mark(2, 7))]).expect("written");
        let again = Marks::open(&seams, directory.path(), false);
        assert_eq!(again.of(G), Some(mark(2, 9)), "on disk when it returned");
        marks.cut(G, Some(mark(2, 4)));
        marks.save().expect("written");
        assert_eq!(
            Marks::open(&seams, directory.path(), false).of(G),
            Some(mark(2, 4))
        );
        marks.forget(G);
        marks.save().expect("written");
        assert_eq!(Marks::open(&seams, directory.path(), false).of(G), None);
    }
}
