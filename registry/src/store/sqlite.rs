//! The log in one SQLite file: WAL, synchronous=FULL, one transaction and one
//! row per batch. The file is locked for as long as it is open.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::{CommandLog, Restored, StoreError};
use crate::state::{Command, Snapshot};

/// "PILT": marks the file as ours.
const APPLICATION_ID: i32 = 0x5049_4C54;
const SCHEMA_VERSION: i32 = 1;
/// A snapshot is written when the log holds more commands than this and than
/// twice the records, so that replay stays short and writing stays amortised.
const MIN_SNAPSHOT_COMMANDS: u64 = 65_536;
/// Bytes per row of a snapshot.
const PART: usize = 8 << 20;

/// Number of the first command of a batch, and the batch as JSON.
type Row = (i64, Vec<u8>);

/// The open file.
#[derive(Debug)]
pub struct SqliteLog {
    path: PathBuf,
    db: Connection,
    logged: u64,
    snapshot_after: u64,
    /// After a snapshot that could not be written, the next is tried when the
    /// log holds this many commands; 0 otherwise.
    retry_at: u64,
}

impl SqliteLog {
    /// Opens or makes the file and locks it.
    ///
    /// # Errors
    /// When it is in use, not writable, or not a sound state file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // Made here and not by SQLite for its mode: keys and trust are private.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| StoreError::Unwritable { path: path.to_owned(), source: e.into() })?;
        let db = Self::prepare(path).map_err(|e| opening(path, e))?;
        let log = Self {
            path: path.to_owned(),
            db,
            logged: 0,
            snapshot_after: MIN_SNAPSHOT_COMMANDS,
            retry_at: 0,
        };
        log.check()?;
        Ok(log)
    }

    /// Writes a snapshot after so many commands already, for tests.
    #[cfg(test)]
    pub(crate) fn snapshot_after(mut self, commands: u64) -> Self {
        self.snapshot_after = commands;
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

    fn prepare(path: &Path) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(std::time::Duration::ZERO)?;
        db.execute_batch(
            "PRAGMA locking_mode=EXCLUSIVE;
             PRAGMA journal_mode=WAL;
             PRAGMA synchronous=FULL;
             BEGIN IMMEDIATE; COMMIT;",
        )?;
        let empty: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        if empty == 0 {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE log (first INTEGER PRIMARY KEY, commands BLOB NOT NULL);
                 CREATE TABLE snapshot (part INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
                 PRAGMA application_id={APPLICATION_ID};
                 PRAGMA user_version={SCHEMA_VERSION};
                 COMMIT;"
            ))?;
        }
        Ok(db)
    }

    fn check(&self) -> Result<(), StoreError> {
        let pragma = |name| self.db.pragma_query_value(None, name, |r| r.get::<_, i32>(0));
        let application = pragma("application_id").map_err(|e| opening(&self.path, e))?;
        if application != APPLICATION_ID {
            return Err(self.corrupt("it is a database of another program"));
        }
        let version = pragma("user_version").map_err(|e| opening(&self.path, e))?;
        if version != SCHEMA_VERSION {
            return Err(self.corrupt(format!("its layout {version} is not known to this version")));
        }
        let verdict: String = self
            .db
            .pragma_query_value(None, "quick_check", |r| r.get(0))
            .map_err(|e| opening(&self.path, e))?;
        if verdict != "ok" {
            return Err(self.corrupt(verdict.lines().next().unwrap_or("damaged")));
        }
        Ok(())
    }

    fn corrupt(&self, problem: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), problem: problem.into() }
    }

    fn read(&self) -> rusqlite::Result<(Vec<u8>, Vec<Row>)> {
        let mut snapshot = Vec::new();
        let mut parts = self.db.prepare("SELECT bytes FROM snapshot ORDER BY part")?;
        for part in parts.query_map([], |r| r.get::<_, Vec<u8>>(0))? {
            snapshot.extend(part?);
        }
        let mut log = self.db.prepare("SELECT first, commands FROM log ORDER BY first")?;
        let batches = log.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        Ok((snapshot, batches.collect::<rusqlite::Result<_>>()?))
    }

    fn write_batch(&mut self, first: u64, commands: &[u8]) -> rusqlite::Result<()> {
        let first =
            i64::try_from(first).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        let tx = self.db.transaction()?;
        tx.prepare_cached("INSERT INTO log (first, commands) VALUES (?1, ?2)")?
            .execute(params![first, commands])?;
        tx.commit()
    }

    fn write_snapshot(&mut self, bytes: &[u8]) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        tx.execute_batch("DELETE FROM snapshot; DELETE FROM log;")?;
        for (number, part) in (0i64..).zip(bytes.chunks(PART)) {
            tx.execute(
                "INSERT INTO snapshot (part, bytes) VALUES (?1, ?2)",
                params![number, part],
            )?;
        }
        tx.commit()
    }

    fn writing(&self, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        StoreError::Write { path: self.path.clone(), source: e.into() }
    }
}

impl CommandLog for SqliteLog {
    fn restore(&mut self) -> Result<Restored, StoreError> {
        let (snapshot, rows) = self.read().map_err(|e| opening(&self.path, e))?;
        let snapshot = match snapshot.as_slice() {
            [] => None,
            bytes => Some(
                serde_json::from_slice(bytes)
                    .map_err(|e| self.corrupt(format!("the snapshot cannot be read: {e}")))?,
            ),
        };
        let mut batches = Vec::with_capacity(rows.len());
        for (first, commands) in rows {
            let problem = |e: &dyn std::fmt::Display| {
                self.corrupt(format!("the commands from {first} on cannot be read: {e}"))
            };
            let commands: Vec<Command> =
                serde_json::from_slice(&commands).map_err(|e| problem(&e))?;
            batches.push((u64::try_from(first).map_err(|e| problem(&e))?, commands));
        }
        self.logged = batches.iter().map(|(_, c)| c.len() as u64).sum();
        Ok(Restored { snapshot, batches })
    }

    fn append(&mut self, first: u64, commands: &[Command]) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(commands).map_err(|e| self.writing(e))?;
        self.write_batch(first, &bytes).map_err(|e| self.writing(e))?;
        self.logged += commands.len() as u64;
        Ok(())
    }

    fn wants_snapshot(&self, records: usize) -> bool {
        self.logged > self.snapshot_after.max(2 * records as u64) && self.logged >= self.retry_at
    }

    fn replace(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        // Until it is written: a full disk must not make every batch pay for one.
        self.retry_at = self.logged + self.snapshot_after;
        let bytes = serde_json::to_vec(snapshot).map_err(|e| self.writing(e))?;
        self.write_snapshot(&bytes).map_err(|e| self.writing(e))?;
        self.logged = 0;
        self.retry_at = 0;
        Ok(())
    }
}

/// What an error while opening or reading means for people.
fn opening(path: &Path, e: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(path),
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure,
        ) => StoreError::Unwritable { path, source: e.into() },
        _ => StoreError::Corrupt { path, problem: e.to_string() },
    }
}
