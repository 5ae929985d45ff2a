//! The audit log: who did what, and what was refused, in a chain of hashes.
//!
//! A record follows from a command and the state before and after it alone
//! (`Draft`), so replaying commands gives the same records again. The file may
//! therefore lag behind the command log: after a crash what is missing is made
//! from the commands that are replayed (`Replay`), and the command log forgets
//! nothing before `Audit::flush` has made the records of it durable.
//!
//! A thread of its own writes (`keeper`). While it cannot, [`Audit::is_healthy`]
//! says so, and nothing is admitted that would have to be audited.

pub mod chain;
mod draft;
pub mod export;
mod file;
mod keeper;
mod key;
#[cfg(test)]
mod tests;
mod told;
pub mod verify;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pilot_wire::registry::audit::{AuditFilter, AuditRecord};
use pilot_wire::registry::{AuditPage, PublicKey};
use rusqlite::Connection;
use tokio::sync::broadcast;

use crate::events::Events;
use crate::state::{Command, State};
use crate::store::Audited;
use crate::writer::Outcome;
use keeper::{Ask, Keeper, MAX_WAITING, Queue, Shared, lock, unix_now};

pub use chain::{Cut, SignedHead};
pub(crate) use draft::Draft;
pub use file::AUDIT_FILE;
pub use key::{KEY_FILE, KeyError, public_key};

/// Most records that a query gives at a time.
pub const MAX_LIMIT: u32 = 1000;
/// How many it gives when none is said.
const DEFAULT_LIMIT: u32 = 100;
/// New records that wait for one who looks on; who is slower misses the oldest.
const LIVE: usize = 1024;
/// Size of a log that is in memory only; the oldest records make room.
const MEMORY_BYTES: u64 = 16 << 20;
/// What a command's records wait for at a time when there is no room; then it is
/// looked again whether waiting has a use.
const ROOM_WAIT: Duration = Duration::from_millis(200);
/// Records of replayed commands brought at a time.
const REPLAY_CHUNK: usize = 1024;

/// Why records cannot be kept or read. Each names the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// There is no key to sign with.
    #[error("key of the audit log: {0}")]
    Key(String),
    /// The log is signed, and the key is gone.
    #[error(
        "audit log {}: it is signed, but its key {KEY_FILE} is gone; restore the key, or move \
         the log away to begin a new one", .0.display()
    )]
    KeyGone(PathBuf),
    /// It cannot be opened.
    #[error("audit log {}: {problem}; restore it from a backup, or move it away to begin a new one", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// What was signed last is not there, or not by this key.
    #[error(
        "audit log {}: {problem}; look at it with \"pilot-registry audit verify\", and move it \
         away to begin a new one", path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A write failed; it is tried again.
    #[error("audit log {}: it cannot be written now; see the log of the registry", .0.display())]
    Unwritable(PathBuf),
    /// It cannot be read.
    #[error("audit log {}: it cannot be read: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The log was closed.
    #[error("the audit log is closed")]
    Closed,
}

/// What is kept for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Records are removed after this time; none for never.
    pub age: Option<Duration>,
    /// The oldest are removed beyond this size; none for any size.
    pub bytes: Option<u64>,
}

/// A way to the audit log. Cheap to clone; by default nothing is kept.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Handle>>);

/// When it is dropped, what was brought is written and the thread ends.
struct Handle {
    shared: Arc<Shared>,
    /// For queries, so that they never hold up writing; in memory the same.
    reader: Arc<Mutex<Connection>>,
    in_memory: bool,
    /// Where the file ended when it was opened.
    opened_at: Opened,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy)]
struct Opened {
    /// Command of the last record.
    command: u64,
    /// Up to this command nothing was missing.
    complete: u64,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&self.0.as_ref().map(|h| &h.shared.path)).finish()
    }
}

impl Audit {
    /// Opens the log and the key beside the state file `store`, which are made
    /// when they are missing; without a store both are in memory, bounded to the
    /// newest 16 MiB of records.
    ///
    /// # Errors
    /// When they cannot be used, or do not fit each other.
    pub fn open(store: Option<&Path>, retention: Retention) -> Result<Self, AuditError> {
        let Some(store) = store else {
            let key = key::RegistryKey::in_memory().map_err(|e| AuditError::Key(e.to_string()))?;
            let path = PathBuf::from("(in memory)");
            let db = file::open_in_memory().map_err(|e| unusable(&path, &e))?;
            let db = Arc::new(Mutex::new(db));
            return Self::start(path, key, Arc::clone(&db), db, in_memory(retention));
        };
        let folder = folder(store);
        let path = folder.join(AUDIT_FILE);
        let there = path.exists();
        let key = match key::RegistryKey::open(&folder, false) {
            Err(KeyError::Missing(_)) if !there => key::RegistryKey::open(&folder, true),
            Err(KeyError::Missing(_)) => return Err(AuditError::KeyGone(path)),
            opened => opened,
        };
        let key = key.map_err(|e| AuditError::Key(e.to_string()))?;
        let open = || {
            let db = file::open(&path)?;
            Ok((db, file::open_to_read(&path)?))
        };
        let (db, reader) = open().map_err(|e: rusqlite::Error| unusable(&path, &e))?;
        file::check(&db).map_err(|problem| AuditError::Unusable { path: path.clone(), problem })?;
        Self::start(path, key, Arc::new(Mutex::new(db)), Arc::new(Mutex::new(reader)), retention)
    }

    fn start(
        path: PathBuf,
        key: key::RegistryKey,
        db: Arc<Mutex<Connection>>,
        reader: Arc<Mutex<Connection>>,
        retention: Retention,
    ) -> Result<Self, AuditError> {
        let unusable = |e: rusqlite::Error| unusable(&path, &e);
        let (end, complete) = {
            let db = lock(&db);
            let complete = file::meta(&db, "complete").map_err(unusable)?;
            (file::end(&db).map_err(unusable)?, complete.unwrap_or(0))
        };
        let head = file::heads(&lock(&db)).map_err(unusable)?.pop();
        let altered = |problem: String| AuditError::Altered { path: path.clone(), problem };
        match (&end, &head) {
            (None, None) => {}
            (_, Some(head)) if !head.is_by(&key.public()) => {
                let (seq, key) = (head.seq, key.public());
                return Err(altered(format!("head {seq} is not signed by the key {key}")));
            }
            (Some(end), Some(head))
                if end.seq == head.seq && hex::encode(end.hash) == head.hash => {}
            _ => return Err(altered("its last record is not the one that was signed".to_owned())),
        }
        let shared = Arc::new(Shared {
            path: path.clone(),
            db,
            key,
            retention: Mutex::new(retention),
            queue: Mutex::new(Queue { applied: complete, ..Queue::default() }),
            work: Condvar::new(),
            room: Condvar::new(),
            healthy: AtomicBool::new(true),
            head: Mutex::new(head),
            live: broadcast::channel(LIVE).0,
        });
        let alive = keeper::Alive(Arc::clone(&shared));
        let keeper = Keeper::new(Arc::clone(&shared), end).map_err(unusable)?;
        let thread = std::thread::Builder::new()
            .name("registry-audit".to_owned())
            .spawn(move || {
                let _alive = alive;
                keeper.run();
            })
            .map_err(|e| AuditError::Unusable { path, problem: format!("no thread: {e}") })?;
        let in_memory = Arc::ptr_eq(&shared.db, &reader);
        let opened_at = Opened { command: end.map_or(0, |end| end.command), complete };
        let thread = Mutex::new(Some(thread));
        Ok(Self(Some(Arc::new(Handle { shared, reader, in_memory, opened_at, thread }))))
    }

    /// Number of the last command of which there was a record when the log was
    /// opened.
    pub fn last_command(&self) -> u64 {
        self.0.as_ref().map_or(0, |handle| handle.opened_at.command)
    }

    /// Whether this is the log, or what is left of it, that had a record of this
    /// number and hash; not if it is a new one.
    ///
    /// # Errors
    /// When it is the log without its end, or another.
    pub(crate) fn continues(&self, noted: &Audited) -> Result<bool, AuditError> {
        let Some(handle) = &self.0 else { return Ok(false) };
        let path = &handle.shared.path;
        let found = file::compare(&lock(&handle.reader), noted)
            .map_err(|e| AuditError::Unreadable { path: path.clone(), problem: e.to_string() })?;
        match found {
            file::Compared::Empty => Ok(false),
            file::Compared::Same => Ok(true),
            file::Compared::Differs(problem) => {
                Err(AuditError::Altered { path: path.clone(), problem })
            }
        }
    }

    /// Keeps records for another time from now on.
    pub(crate) fn set_retention(&self, retention: Retention) {
        let Some(handle) = &self.0 else { return };
        let retention = if handle.in_memory { in_memory(retention) } else { retention };
        *lock(&handle.shared.retention) = retention;
    }

    /// Whether records are being written. While they are not, nothing may be
    /// done that would have to be audited; it is tried again all the time.
    pub fn is_healthy(&self) -> bool {
        self.0.as_ref().is_none_or(|handle| handle.shared.is_healthy())
    }

    /// The registry's public key; none where nothing is kept.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.0.as_ref().map(|handle| handle.shared.key.public())
    }

    /// The newest signed head; none before the first record.
    pub fn head(&self) -> Option<SignedHead> {
        lock(&self.0.as_ref()?.shared.head).clone()
    }

    /// Records from now on, as they are written. Who is too slow misses some,
    /// and is told how many.
    pub fn subscribe(&self) -> Option<broadcast::Receiver<Arc<AuditRecord>>> {
        Some(self.0.as_ref()?.shared.live.subscribe())
    }

    /// Records that fit, in the order of their numbers: at most as many as asked
    /// for and [`MAX_LIMIT`]. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn query(&self, filter: &AuditFilter) -> Result<Vec<AuditRecord>, AuditError> {
        self.page(filter).map(|page| page.records)
    }

    /// [`Audit::query`], and whether there are more.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn page(&self, filter: &AuditFilter) -> Result<AuditPage, AuditError> {
        let Some(handle) = &self.0 else {
            return Ok(AuditPage { records: Vec::new(), next: None });
        };
        let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
        let mut records = file::query(&lock(&handle.reader), filter, limit).map_err(|e| {
            let problem = e.to_string();
            AuditError::Unreadable { path: handle.shared.path.clone(), problem }
        })?;
        let more = records.len() > limit as usize;
        records.truncate(limit as usize);
        let next = records.last().filter(|_| more).map(|record| record.seq);
        Ok(AuditPage { records, next })
    }

    /// Takes the records of all commands up to `applied` since the last call, in
    /// order, without their places in the chain. Waits while too many wait to be
    /// written, unless writing fails.
    pub(crate) fn append(&self, applied: u64, records: Vec<AuditRecord>) {
        let Some(handle) = &self.0 else { return };
        let shared = &handle.shared;
        let mut queue = shared.queue();
        queue.applied = applied;
        if records.is_empty() {
            return;
        }
        while queue.records >= MAX_WAITING && shared.is_healthy() && !queue.stop {
            let waited = shared.room.wait_timeout(queue, ROOM_WAIT);
            queue = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        queue.records += records.len();
        queue.batches.push_back(records);
        shared.work.notify_one();
    }

    /// Waits until all that was taken is durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn flush(&self) -> Result<(), AuditError> {
        let Some(handle) = &self.0 else { return Ok(()) };
        let (reply, answer) = sync_channel(1);
        handle.ask(Ask::Flush(reply))?;
        answer.recv().unwrap_or(Err(AuditError::Closed))
    }

    /// Tells event sinks from now on, beginning with what they were not told.
    pub(crate) fn follow(&self, events: Events) {
        if let Some(handle) = &self.0 {
            // Closed: there is nothing to tell.
            let _ = handle.ask(Ask::Follow(events));
        }
    }

    /// Writes what was brought, as far as it can be, and ends the thread.
    /// Queries go on.
    pub(crate) fn close(&self) {
        let Some(handle) = &self.0 else { return };
        if let Err(e) = self.flush() {
            tracing::error!("{e}; at the next start the missing records are made again");
        }
        handle.end();
    }

    #[cfg(test)]
    fn ask(&self, ask: Ask) {
        self.0.as_ref().expect("a log").ask(ask).expect("it runs");
    }
}

impl Handle {
    fn ask(&self, ask: Ask) -> Result<(), AuditError> {
        let mut queue = self.shared.queue();
        if queue.stop {
            return Err(AuditError::Closed);
        }
        queue.asked.push(ask);
        self.shared.work.notify_one();
        Ok(())
    }

    fn end(&self) {
        self.shared.queue().stop = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the audit thread failed");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Applies commands that were found in the command log, and completes the audit
/// log by what it lacks of them.
pub(crate) struct Replay<'a> {
    audit: &'a Audit,
    /// What was applied before the first command.
    base: Option<u64>,
    records: Vec<AuditRecord>,
}

impl<'a> Replay<'a> {
    pub(crate) const fn new(audit: &'a Audit) -> Self {
        Self { audit, base: None, records: Vec::new() }
    }

    /// Applies one.
    pub(crate) fn apply(&mut self, state: &mut State, command: &Command) -> Outcome {
        self.begin(state.applied());
        if state.applied() < self.audit.last_command() {
            return state.apply(command);
        }
        let draft = Draft::look(state, command);
        let outcome = state.apply(command);
        if let Some(draft) = draft {
            draft.finish(state, &outcome, &mut self.records);
        }
        if self.records.len() >= REPLAY_CHUNK {
            self.audit.append(state.applied(), std::mem::take(&mut self.records));
        }
        outcome
    }

    /// All are applied.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(crate) fn end(mut self, state: &State) -> Result<(), AuditError> {
        let applied = state.applied();
        self.begin(applied);
        let last = self.audit.last_command();
        if last > applied {
            self.note("audit_state_restored", applied, format!(
                "the state is that after command {applied}, as from a backup; records before this \
                 one tell of commands up to {last}"
            ));
        }
        self.audit.append(applied, self.records);
        self.audit.flush()
    }

    /// Says when there are commands that can be audited no more.
    fn begin(&mut self, applied: u64) {
        if self.base.is_some() {
            return;
        }
        self.base = Some(applied);
        let Some(handle) = &self.audit.0 else { return };
        let known = handle.opened_at.complete.max(handle.opened_at.command);
        if applied > known {
            let from = known + 1;
            self.note(
                "audit_gap",
                applied,
                format!(
                    "commands {from} to {applied} have no records: they were applied without this \
                 audit log"
                ),
            );
        }
    }

    fn note(&mut self, operation: &str, command: u64, detail: String) {
        tracing::warn!("audit log: {detail}");
        self.records.push(AuditRecord {
            time: unix_now(),
            command,
            actor: draft::registry(),
            operation: operation.to_owned(),
            object: "registry".to_owned(),
            detail,
            count: 1,
            ..AuditRecord::default()
        });
    }
}

/// What is kept without a file.
fn in_memory(retention: Retention) -> Retention {
    let bytes = Some(retention.bytes.unwrap_or(MEMORY_BYTES).min(MEMORY_BYTES));
    Retention { bytes, ..retention }
}

/// The folder of a state file.
pub fn folder(store: &Path) -> PathBuf {
    match store.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn unusable(path: &Path, e: &rusqlite::Error) -> AuditError {
    AuditError::Unusable { path: path.to_owned(), problem: e.to_string() }
}
