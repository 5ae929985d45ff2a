//! The log in one SQLite file: a write-ahead log, synchronous=FULL, one
//! transaction and one row for each batch. Beside the commands stands the
//! checkpoint, a row for each record, so that writing one costs what changed
//! and reading one needs no second copy of the state.
//!
//! Every row carries a check sum, every table the sum of them and its count,
//! and the file the number of its last command; so damage, missing and stale
//! rows are named when the file is read, which is once, at start. What was
//! written but not synced when the machine died is cut off by SQLite in whole
//! transactions.
//!
//! Bounds: a checkpoint is due after [`CHECKPOINT_COMMANDS`] or
//! [`CHECKPOINT_BYTES`]; SQLite's own log is written back after [`WAL_BYTES`].
//! If either fails for want of room, it is tried again after as much more.

mod copying;
mod integrity;
mod layout;
mod lock;
mod migrate;
mod reading;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};

pub use copying::backup;
pub(crate) use copying::install;
pub(crate) use layout::resolve;
pub(crate) use lock::beside;
pub use reading::{Reader, Summary};

use self::integrity::{Checkpoint, Head, batch_crc, row_crc};
use self::layout::{LAYOUT, opening};
use self::lock::Lock;
use super::{Audited, CommandLog, RestoreError, Restoring, StoreError};
use crate::state::{Command, Op, Row, Table};

/// Commands after the checkpoint that make a new one due: few enough to replay
/// in a fraction of a second.
const CHECKPOINT_COMMANDS: u64 = 65_536;
/// Their size that does, for long ones.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// Written to SQLite's log before it is written back to the file.
const WAL_BYTES: u64 = 8 << 20;
/// What a transaction writes at least, about: three pages.
const WAL_LEAST: u64 = 3 * 4096;
/// A file up to this size has its structure checked at start, which takes a
/// fifth of the time of reading it; larger ones have by `check`. Rows and
/// commands of both are read whole.
const QUICK_CHECK_BYTES: u64 = 1 << 30;

/// The open file. It is locked for as long as this lives.
#[derive(Debug)]
pub struct SqliteLog {
    path: PathBuf,
    real: PathBuf,
    db: Connection,
    head: Head,
    checkpoint: Checkpoint,
    audited: Option<Audited>,
    /// Which files these are, once it is written to.
    places: Vec<(PathBuf, (u64, u64))>,
    ended: Option<Ended>,
    logged: Amount,
    due: Amount,
    /// The next checkpoint is due at this; more than `due` after a failed one.
    next: Amount,
    unchecked: u64,
    _lock: Lock,
}

/// Commands and their size.
#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    commands: u64,
    bytes: u64,
}

/// Why nothing more is written.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Lost,
    Fenced,
}

/// Why a transaction failed.
enum Failure {
    Sql(rusqlite::Error),
    NotOurs,
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sql(e)
    }
}

impl SqliteLog {
    /// Opens or makes the file and locks it. A file of an earlier layout is
    /// brought to this one; a copy is kept.
    ///
    /// # Errors
    /// When it is in use, not writable, of a later version, or not a sound
    /// state file.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let real = layout::resolve(path)?;
        let lock = Lock::take(&real)?;
        if !real.exists() {
            layout::create(path, &real)?;
        }
        let mut db = layout::connect(path, &real, true)?;
        let layout = layout::layout(path, &db)?;
        if layout < LAYOUT {
            migrate::migrate(path, &real, &mut db, layout)?;
        }
        if real.metadata().is_ok_and(|m| m.len() <= QUICK_CHECK_BYTES) {
            layout::structure(path, &db, "quick_check")?;
        }
        let due = Amount { commands: CHECKPOINT_COMMANDS, bytes: CHECKPOINT_BYTES };
        Ok(Self {
            path: path.to_owned(),
            head: Head { last: 0, owner: 0 },
            checkpoint: Checkpoint::default(),
            audited: None,
            real,
            db,
            places: Vec::new(),
            ended: None,
            logged: Amount::default(),
            due,
            next: due,
            unchecked: 0,
            _lock: lock,
        })
    }

    /// Has a checkpoint due after so many commands.
    #[must_use]
    pub fn checkpoint_after(mut self, commands: u64) -> Self {
        self.due.commands = commands;
        self.next.commands = commands;
        self
    }

    /// Lets the file grow to so many pages, or to what it has, for tests.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        let sql = format!("PRAGMA max_page_count={pages}");
        self.db.query_row(&sql, [], |r| r.get::<_, i64>(0)).expect("pragma");
    }

    /// Journal mode and synchronous level in force.
    #[cfg(test)]
    pub(crate) fn modes(&self) -> rusqlite::Result<(String, i32)> {
        let journal = self.db.pragma_query_value(None, "journal_mode", |r| r.get(0))?;
        Ok((journal, self.db.pragma_query_value(None, "synchronous", |r| r.get(0))?))
    }

    /// Makes this the owner of the file, and notes where its parts are.
    fn own(&mut self) -> Result<(), StoreError> {
        layout::prepare_writes(&self.path, &self.db)?;
        let head = Head { owner: self.head.owner.wrapping_add(1), ..self.head };
        let own = || {
            let tx = begin(&self.db)?;
            // Whoever wrote since it was read has it.
            still_ours(&tx, self.head)?;
            layout::put_head(&tx, head)?;
            layout::put_program(&tx)?;
            Ok(tx.commit()?)
        };
        own().map_err(|e| match e {
            Failure::NotOurs => StoreError::Fenced(self.path.clone()),
            Failure::Sql(e) => opening(&self.path, e),
        })?;
        self.head = head;
        for part in [self.real.clone(), beside(&self.real, "-wal")] {
            let found = part.metadata().map(|m| identity(&m)).map_err(|e| {
                StoreError::Unwritable { path: self.path.clone(), source: e.into() }
            })?;
            self.places.push((part, found));
        }
        Ok(())
    }

    /// Fails when nothing may be written now.
    fn writable(&mut self, first: u64) -> Result<(), StoreError> {
        match self.ended {
            Some(Ended::Fenced) => return Err(StoreError::Fenced(self.path.clone())),
            Some(Ended::Lost) => {
                let source = "an earlier write failed".into();
                return Err(StoreError::Lost { path: self.path.clone(), source });
            }
            None => {}
        }
        let expected = self.head.last + 1;
        if first != expected {
            return Err(StoreError::Order { path: self.path.clone(), expected, found: first });
        }
        // SQLite goes on writing to files that nobody will find again.
        let there =
            |(part, was): &(PathBuf, _)| part.metadata().is_ok_and(|m| identity(&m) == *was);
        if !self.places.iter().all(there) {
            return Err(StoreError::Gone(self.path.clone()));
        }
        self.write_back()
    }

    /// Writes SQLite's log back to the file, if it is long. What fails here
    /// was synced in the log before and is still there, unless syncing fails.
    fn write_back(&mut self) -> Result<(), StoreError> {
        if self.unchecked < WAL_BYTES {
            return Ok(());
        }
        self.unchecked = 0;
        match self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            Ok(()) => Ok(()),
            Err(e) if is_harmless(&e) => {
                tracing::warn!("state file {}: not written back: {e}", self.path.display());
                Ok(())
            }
            Err(e) => Err(self.failed(e.into())),
        }
    }

    /// What a failed write means. For want of room SQLite has taken the
    /// transaction back; after anything else part of it may be on disk, and
    /// what the system still has in memory need not be.
    fn failed(&mut self, failure: Failure) -> StoreError {
        let path = self.path.clone();
        match failure {
            Failure::NotOurs => {
                self.ended = Some(Ended::Fenced);
                StoreError::Fenced(path)
            }
            Failure::Sql(e) if is_harmless(&e) && self.db.is_autocommit() => {
                StoreError::Write { path, source: e.into() }
            }
            Failure::Sql(e) => {
                self.ended = Some(Ended::Lost);
                StoreError::Lost { path, source: e.into() }
            }
        }
    }

    fn write_batch(&self, first: u64, next: Head, commands: &[u8]) -> Result<(), Failure> {
        let first =
            i64::try_from(first).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        let tx = begin(&self.db)?;
        still_ours(&tx, self.head)?;
        tx.prepare_cached("INSERT INTO log (first, commands, crc) VALUES (?1, ?2, ?3)")?
            .execute(params![first, commands, batch_crc(first, commands)])?;
        layout::put_head(&tx, next)?;
        Ok(tx.commit()?)
    }

    fn write_audited(&self, head: Option<&Audited>) -> Result<(), Failure> {
        let tx = begin(&self.db)?;
        still_ours(&tx, self.head)?;
        layout::put_audited(&tx, head)?;
        Ok(tx.commit()?)
    }

    fn write_checkpoint(&self, applied: u64, rows: &[Row]) -> Result<Checkpoint, Failure> {
        let mut checkpoint = Checkpoint { applied, ..self.checkpoint };
        let tx = begin(&self.db)?;
        still_ours(&tx, self.head)?;
        {
            let mut find = tx.prepare_cached("SELECT crc FROM state WHERE tbl=?1 AND key=?2")?;
            let mut put = tx.prepare_cached(
                "INSERT OR REPLACE INTO state (tbl, key, value, crc) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let mut remove = tx.prepare_cached("DELETE FROM state WHERE tbl=?1 AND key=?2")?;
            for Row { table, key, value } in rows {
                let (number, tally) = (*table as u8, checkpoint.tallies.of(*table));
                if let Some(old) = find.query(params![number, key])?.next()? {
                    tally.remove(old.get(0)?);
                }
                match value {
                    Some(value) => {
                        let crc = row_crc(*table, key, value);
                        put.execute(params![number, key, value, crc])?;
                        tally.add(crc);
                    }
                    None => {
                        remove.execute(params![number, key])?;
                    }
                }
            }
        }
        tx.execute("DELETE FROM log", [])?;
        layout::put_checkpoint(&tx, &checkpoint)?;
        tx.commit()?;
        Ok(checkpoint)
    }
}

fn begin(db: &Connection) -> rusqlite::Result<Transaction<'_>> {
    Transaction::new_unchecked(db, TransactionBehavior::Immediate)
}

/// Fails when another writer has opened the file since, or written to it.
fn still_ours(tx: &Transaction<'_>, head: Head) -> Result<(), Failure> {
    let mut select = tx.prepare_cached("SELECT value FROM meta WHERE name=?1")?;
    let found: Vec<u8> = select.query_row([layout::HEAD], |r| r.get(0))?;
    if found == head.encode() { Ok(()) } else { Err(Failure::NotOurs) }
}

/// Whether nothing was written for sure.
fn is_harmless(e: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, TooBig};
    matches!(e.sqlite_error_code(), Some(DiskFull | DatabaseBusy | DatabaseLocked | TooBig))
}

/// Which file this is.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl CommandLog for SqliteLog {
    fn restore(&mut self, into: &mut dyn Restoring) -> Result<(), RestoreError> {
        let held = reading::stream(&self.path, &self.db, into)?;
        (self.head, self.checkpoint) = (held.head, held.checkpoint);
        self.logged = Amount { commands: held.commands, bytes: held.bytes };
        self.audited = layout::audited(&self.path, &self.db)?;
        // Nothing is written to a file before it was found sound.
        Ok(self.own()?)
    }

    fn append(&mut self, first: u64, commands: &[Command]) -> Result<(), StoreError> {
        self.writable(first)?;
        let bytes = serde_json::to_vec(commands)
            .map_err(|e| StoreError::Write { path: self.path.clone(), source: e.into() })?;
        if commands.iter().any(holds_foreign_json) {
            readable::<Vec<Command>>(&self.path, &bytes)?;
        }
        let count = commands.len() as u64;
        let next = Head { last: self.head.last + count, ..self.head };
        self.write_batch(first, next, &bytes).map_err(|e| self.failed(e))?;
        self.head = next;
        self.logged.commands += count;
        self.logged.bytes += bytes.len() as u64;
        self.unchecked += WAL_LEAST + bytes.len() as u64;
        Ok(())
    }

    fn wants_checkpoint(&self) -> bool {
        self.logged.commands >= self.next.commands || self.logged.bytes >= self.next.bytes
    }

    fn checkpoint(&mut self, applied: u64, rows: &[Row]) -> Result<(), StoreError> {
        // Until it is written: a full disk must not make every batch pay for one.
        self.next = Amount {
            commands: self.logged.commands + self.due.commands,
            bytes: self.logged.bytes + self.due.bytes,
        };
        self.writable(applied + 1)?;
        for row in rows.iter().filter(|row| row.table == Table::Network) {
            if let Some(value) = &row.value {
                readable::<serde_json::Value>(&self.path, value)?;
            }
        }
        self.checkpoint = self.write_checkpoint(applied, rows).map_err(|e| self.failed(e))?;
        let size = |row: &Row| row.key.len() + row.value.as_ref().map_or(0, Vec::len);
        // At random places of the tree every row is a page, at worst.
        self.unchecked += rows.iter().map(|row| 4096.max(size(row) as u64)).sum::<u64>();
        self.logged = Amount::default();
        self.next = self.due;
        Ok(())
    }

    fn audited(&self) -> Option<&Audited> {
        self.audited.as_ref()
    }

    fn note_audited(&mut self, head: Option<Audited>) -> Result<(), StoreError> {
        if head == self.audited {
            return Ok(());
        }
        self.writable(self.head.last + 1)?;
        self.write_audited(head.as_ref()).map_err(|e| self.failed(e))?;
        self.unchecked += WAL_LEAST;
        self.audited = head;
        Ok(())
    }
}

/// Whether a command has JSON in it that only others know the shape of.
const fn holds_foreign_json(command: &Command) -> bool {
    matches!(command.op, Op::CreateNetwork { .. } | Op::UpdateNetwork { .. } | Op::Import(_))
}

/// What is written has to be read again at every start, and what nests too deep
/// is not.
fn readable<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    serde_json::from_slice::<T>(bytes).map(drop).map_err(|e| StoreError::Write {
        path: path.to_owned(),
        source: format!("it could not be read again: {e}").into(),
    })
}
