//! What happens to a log, step by step, and what is asked of it.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use engram_core::storage::{Damage, Family, MemoryStorage, Reader as _, StorageError};
use engram_node::consensus::runtime::{
    Command, CommittedLeaderId, Entry, LogId, Payload, Types, Vote,
};
use openraft::RaftLogReader as _;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use openraft::type_config::alias::OneshotReceiverOf;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::Report;
use super::machine::Machine;
use super::model::{Content, Model};

/// Bytes of the key of a log entry.
const RECORD_KEY_BYTES: usize = 17;
/// Greatest content of an entry: a few of them fill what stays decoded.
const CONTENT_BYTES: usize = 60;
/// Indexes that a snapshot is ahead of a log that it replaces.
const AHEAD: u64 = 3;
/// Chance of a crash before each piece of work that an operation waits for.
const CRASH_WITHIN: f64 = 0.03;
/// So often tasks get a turn before the disk does.
const TURNS: usize = 4;

/// Entries that will be reported durable, by the number of their operation.
type Reports = Vec<(usize, OneshotReceiverOf<Types, io::Result<()>>)>;

pub struct World {
    /// A sync fails, or has failed: errors are to be expected until the next start.
    fails: bool,
    rng: StdRng,
    storage: MemoryStorage,
    machine: Machine,
    model: Model,
    /// What the log was last told to be committed.
    committed: Option<LogId>,
    reports: Reports,
    term: u64,
    pub report: Report,
}

/// The machine died, or its disk failed, before an operation was through.
struct Died;

/// What a process says of a log with a record that reads wrong.
#[derive(Debug)]
enum Damaged {
    AtStart,
    WhenRead,
    /// Anything but that it is damaged.
    Unsaid(String),
}

fn is_corrupt(error: &io::Error) -> bool {
    let source = error.get_ref().and_then(|source| source.downcast_ref());
    matches!(source, Some(StorageError::Corrupt { .. }))
}

/// What a future has to say now.
fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

async fn turns() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let storage = MemoryStorage::new();
        let machine = Machine::start(&storage);
        Self {
            fails: false,
            rng: StdRng::seed_from_u64(seed),
            machine: machine.unwrap_or_else(|error| panic!("an empty log: {error}")),
            storage,
            model: Model::of(Content::default()),
            committed: None,
            reports: Vec::new(),
            term: 1,
            report: Report::default(),
        }
    }

    pub async fn step(&mut self) {
        let done = match self.rng.random_range(0..100) {
            0..=34 => self.append().await,
            35..=57 => {
                self.work().await;
                Ok(())
            }
            58..=59 => self.note_committed().await,
            60..=69 => self.read().await,
            70..=77 => self.vote().await,
            78..=83 => self.cut().await,
            84..=88 => self.purge().await,
            89..=92 => Err(Died),
            93 => {
                let visible = self.rng.random_bool(0.5);
                self.storage.fail_next_sync(visible);
                self.fails = true;
                Ok(())
            }
            _ => self.damage().await,
        };
        turns().await;
        self.take_reports();
        match done {
            Ok(()) => self.ask_ends().await,
            Err(Died) => self.crash().await,
        }
    }

    fn violation(&mut self, what: String) {
        self.report.violations.push(what);
    }

    /// The result of an operation, for which the disk works meanwhile, unless the machine dies.
    async fn until<T>(
        &mut self,
        operation: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Died> {
        let mut operation = pin!(operation);
        loop {
            match poll_once(operation.as_mut()) {
                Some(Ok(value)) => return Ok(value),
                Some(Err(error)) => {
                    if self.fails {
                        self.report.failed_syncs += 1;
                    } else {
                        self.violation(format!("with a disk that works: {error}"));
                    }
                    return Err(Died);
                }
                None => {}
            }
            if self.rng.random_bool(CRASH_WITHIN) {
                self.report.crashes_within += 1;
                return Err(Died);
            }
            self.machine.work();
            turns().await;
        }
    }

    /// The disk does something; where there is nothing to do, all reports were made.
    async fn work(&mut self) {
        if self.machine.work() {
            return;
        }
        turns().await;
        self.take_reports();
        if !self.machine.work() && !self.reports.is_empty() && !self.fails {
            let open: Vec<usize> = self.reports.iter().map(|(number, _)| *number).collect();
            self.violation(format!("the disk is idle and nothing is said of {open:?}"));
        }
    }

    /// Notes what was reported durable. With a disk that works, nothing else is reported.
    fn take_reports(&mut self) {
        let (mut open, mut failed) = (Vec::new(), Vec::new());
        for (operation, mut report) in std::mem::take(&mut self.reports) {
            match poll_once(Pin::new(&mut report)) {
                None => open.push((operation, report)),
                Some(Ok(Ok(()))) => self.model.note_durable(operation),
                Some(other) => failed.push(format!("{operation}: {other:?}")),
            }
        }
        self.reports = open;
        if !failed.is_empty() && !self.fails {
            self.violation(format!("reported with a disk that works: {failed:?}"));
        }
    }

    // ---- what Raft does -------------------------------------------------------------------------

    fn next_entry(&mut self, index: u64) -> Entry {
        let mut bytes = vec![0; self.rng.random_range(0..CONTENT_BYTES)];
        self.rng.fill_bytes(&mut bytes);
        let payload = match self.rng.random_bool(0.1) {
            true => Payload::Blank,
            false => Payload::Normal(Command(Bytes::from(bytes))),
        };
        Entry {
            log_id: LogId::new(CommittedLeaderId::new(self.term), index),
            payload,
        }
    }

    async fn append(&mut self) -> Result<(), Died> {
        let from = self.model.newest().next_index();
        let count = self.rng.random_range(1..=4);
        let entries: Vec<Entry> = (from..from + count).map(|at| self.next_entry(at)).collect();
        let operation = self.model.begin(|content| {
            let added = entries
                .iter()
                .map(|entry| (entry.log_id.index, entry.clone()));
            content.entries.extend(added);
        });
        self.report.appended += entries.len();
        let (sender, receiver) = Types::oneshot();
        self.reports.push((operation, receiver));
        let mut log = self.machine.log.clone();
        self.until(async { log.append(entries, IOFlushed::signal(sender)).await })
            .await
    }

    async fn vote(&mut self) -> Result<(), Died> {
        self.term += u64::from(self.rng.random_bool(0.5));
        let vote = Vote::new(self.term, self.rng.random_range(0..3));
        let operation = self.model.begin(|content| content.vote = Some(vote));
        self.report.votes += 1;
        let mut log = self.machine.log.clone();
        self.until(async { log.save_vote(&vote).await }).await?;
        self.model.note_durable(operation);
        match self.machine.log.saved_vote() == Some(vote) {
            true => Ok(()),
            false => {
                self.violation(format!("{vote} was saved and is not there"));
                Ok(())
            }
        }
    }

    /// A later leader's entries are others.
    async fn cut(&mut self) -> Result<(), Died> {
        let content = self.model.newest();
        let after = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        // What is committed stays.
        let first = after(content.purged).max(after(self.committed));
        let end = content.next_index();
        if first >= end {
            return Ok(());
        }
        let new_end = self.rng.random_range(first..end);
        let content = self.model.newest();
        let before = new_end.checked_sub(1);
        let last = before.and_then(|before| content.entries.get(&before));
        let last = last.map(|entry| entry.log_id).or(content.purged);
        self.term += 1;
        let operation = self.model.begin(|content| {
            content.entries.retain(|index, _| *index < new_end);
        });
        self.report.cut += 1;
        let mut log = self.machine.log.clone();
        self.until(async { log.truncate_after(last).await }).await?;
        self.model.note_durable(operation);
        Ok(())
    }

    /// Now and then beyond the end: a snapshot has all of it.
    async fn purge(&mut self) -> Result<(), Died> {
        let content = self.model.newest();
        let end = content.next_index();
        let beyond = self.rng.random_bool(0.1);
        let upto = match content.entries.first_key_value() {
            _ if beyond => LogId::new(CommittedLeaderId::new(self.term), end + AHEAD),
            Some((first, _)) => {
                let at = self.rng.random_range(*first..end);
                content.entries[&at].log_id
            }
            None => return Ok(()),
        };
        self.model.begin(|content| {
            content.entries.retain(|index, _| *index > upto.index);
            content.purged = Some(upto);
        });
        self.report.purged += 1;
        let mut log = self.machine.log.clone();
        self.until(async { log.purge(upto).await }).await
    }

    /// A hint, which travels with other writes.
    async fn note_committed(&mut self) -> Result<(), Died> {
        let committed = self.model.newest().last();
        self.committed = committed;
        let mut log = self.machine.log.clone();
        self.until(async { log.save_committed(committed).await })
            .await
    }

    async fn read(&mut self) -> Result<(), Died> {
        let end = self.model.newest().next_index();
        let from = self.rng.random_range(0..=end);
        let to = self.rng.random_range(from..=end);
        let mut log = self.machine.log.clone();
        let read = self.until(async { log.try_get_log_entries(from..to).await });
        let read = read.await?;
        let expected = self.model.newest().entries.range(from..to);
        if !expected.map(|(_, entry)| entry).eq(&read) {
            self.violation(format!("entries {from} to {to} are read as {read:?}"));
        }
        Ok(())
    }

    /// What the log says of itself without reading its entries.
    async fn ask_ends(&mut self) {
        let mut log = self.machine.log.clone();
        let (state, committed) = (log.get_log_state().await, log.read_committed().await);
        let (state, committed) = match (state, committed) {
            (Ok(state), Ok(committed)) => (state, committed),
            told => return self.violation(format!("the log says nothing of itself: {told:?}")),
        };
        let content = self.model.newest();
        let expected = (content.purged, content.last(), content.vote);
        let said = (
            state.last_purged_log_id,
            state.last_log_id,
            self.machine.log.saved_vote(),
        );
        if said != expected {
            self.violation(format!("the log is {said:?}, not {expected:?}"));
        }
        if committed != self.committed {
            let expected = self.committed;
            self.violation(format!(
                "{committed:?} is said to be committed, not {expected:?}"
            ));
        }
    }

    // ---- what happens to it ---------------------------------------------------------------------

    fn start(&mut self) -> Result<(), StorageError> {
        let machine = Machine::start(&self.storage)?;
        std::mem::replace(&mut self.machine, machine).end();
        self.fails = false;
        Ok(())
    }

    /// All that a process that has just started finds, read whole.
    async fn content(&mut self) -> io::Result<Content> {
        let mut log = self.machine.log.clone();
        let state = log.get_log_state().await?;
        let mut entries = pin!(async { log.try_get_log_entries(0..u64::MAX).await });
        let entries = loop {
            if let Some(entries) = poll_once(entries.as_mut()) {
                break entries?;
            }
            self.machine.work();
            turns().await;
        };
        let numbered = entries.into_iter().map(|it| (it.log_id.index, it));
        Ok(Content {
            vote: self.machine.log.saved_vote(),
            purged: state.last_purged_log_id,
            entries: numbered.collect(),
        })
    }

    async fn crash(&mut self) {
        let kept = self.rng.random_range(0..=self.storage.unsynced_batches());
        self.storage = self.storage.crash(kept);
        self.reports.clear();
        self.report.crashes += 1;
        let found = match self.start() {
            Ok(()) => self.content().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(found) if self.model.allows(&found) => {
                self.look_at_hint(&found).await;
                self.model = Model::of(found);
                self.ask_ends().await;
            }
            Ok(found) => {
                let model = &self.model;
                let what = format!("after a crash the log holds {found:?}; allowed: {model:?}");
                self.violation(what);
            }
            Err(error) => self.violation(format!("after a crash: {error}")),
        }
    }

    /// The hint travels with other writes: an earlier one may be left, but none beyond the end.
    async fn look_at_hint(&mut self, found: &Content) {
        let hint = self.machine.log.clone().read_committed().await;
        match hint {
            Ok(hint) if hint <= self.committed && hint <= found.last() => self.committed = hint,
            other => {
                let (told, last) = (self.committed, found.last());
                self.violation(format!(
                    "{told:?} was committed and {last:?} is last: {other:?}"
                ));
            }
        }
    }

    /// A record reads wrong under a process that has just started, until it reads right again.
    async fn damage(&mut self) -> Result<(), Died> {
        self.crash().await;
        let mut keys = self.storage.keys_on_disk(Family::Log);
        keys.retain(|key| key.len() == RECORD_KEY_BYTES);
        if keys.is_empty() || !self.report.violations.is_empty() {
            return Ok(());
        }
        let key = &keys[self.rng.random_range(0..keys.len())];
        let value = self.storage.get(Family::Log, key);
        let bits = value.ok().flatten().map_or(1, |value| value.len() * 8);
        let damage = match self.rng.random_bool(0.8) {
            true => Damage::FlippedBit(self.rng.random_range(0..bits)),
            false => Damage::Unreadable,
        };
        self.storage.damage(Family::Log, key, damage);
        self.report.damaged += 1;
        match self.look_at_damage().await {
            Damaged::AtStart => self.report.refused_at_start += 1,
            Damaged::WhenRead => self.report.refused_when_read += 1,
            Damaged::Unsaid(what) => {
                self.violation(format!("{damage:?} in record {key:?}: {what}"));
            }
        }
        self.storage.heal();
        if let Err(error) = self.start() {
            self.violation(format!("after a repair: {error}"));
        }
        Ok(())
    }

    async fn look_at_damage(&mut self) -> Damaged {
        match self.start() {
            Ok(()) => {}
            Err(StorageError::Corrupt { .. }) => return Damaged::AtStart,
            Err(error) => return Damaged::Unsaid(error.to_string()),
        }
        // It may not know yet, but what it says until then must be right.
        self.ask_ends().await;
        match self.content().await {
            Err(error) if is_corrupt(&error) => Damaged::WhenRead,
            Err(error) => Damaged::Unsaid(error.to_string()),
            Ok(seen) => Damaged::Unsaid(format!("it is read as {seen:?}")),
        }
    }
}
