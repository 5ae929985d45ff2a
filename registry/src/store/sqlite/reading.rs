//! Reads all that a file holds, once, in order, and checks every check sum.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::integrity::{Checkpoint, Head, Tallies, batch_crc, row_crc};
use super::layout::{self, LAYOUT, corrupt};
use super::lock::Lock;
use crate::state::{Command, Row, State, Table};
use crate::store::{Audited, Builder, RestoreError, Restoring, StoreError};
use crate::writer::Outcome;

/// What was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) head: Head,
    pub(super) checkpoint: Checkpoint,
    /// Commands after the checkpoint.
    pub(super) commands: u64,
    /// Their size in the file.
    pub(super) bytes: u64,
}

/// Gives all rows and commands to `into`.
pub(super) fn stream(
    path: &Path,
    db: &Connection,
    into: &mut dyn Restoring,
) -> Result<Held, RestoreError> {
    let head = layout::head(path, db)?;
    let checkpoint = layout::checkpoint(path, db)?;
    rows(path, db, &checkpoint, into)?;
    into.checkpoint(checkpoint.applied)?;
    let bytes = batches(path, db, checkpoint.applied, head.last, into)?;
    Ok(Held { head, checkpoint, commands: head.last - checkpoint.applied, bytes })
}

fn rows(
    path: &Path,
    db: &Connection,
    checkpoint: &Checkpoint,
    into: &mut dyn Restoring,
) -> Result<(), RestoreError> {
    let read = |e| layout::reading(path, e);
    let mut found = Tallies::default();
    let mut last: Option<(i64, Vec<u8>)> = None;
    let mut select =
        db.prepare("SELECT tbl, key, value, crc FROM state ORDER BY tbl, key").map_err(read)?;
    let mut rows = select.query([]).map_err(read)?;
    while let Some(row) = rows.next().map_err(read)? {
        let fields = || -> rusqlite::Result<(i64, Vec<u8>, Vec<u8>, u32)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let (number, key, value, crc) = fields().map_err(read)?;
        let table = u8::try_from(number)
            .ok()
            .and_then(Table::from_number)
            .ok_or_else(|| corrupt(path, format!("a row is of table {number}, which is none")))?;
        if row_crc(table, &key, &value) != crc {
            let key = hex::encode(&key);
            return Err(corrupt(path, format!("row {key} of table {table:?} is damaged")).into());
        }
        // Rows out of their place are found by no search.
        let place = (number, key);
        if last.is_some_and(|last| last >= place) {
            let problem = format!("rows of table {table:?} are out of order");
            return Err(corrupt(path, problem).into());
        }
        found.of(table).add(crc);
        into.row(Row { table, key: place.1.clone(), value: Some(value) })?;
        last = Some(place);
    }
    match checkpoint.tallies.differs(&found) {
        Some(problem) => Err(corrupt(path, problem).into()),
        None => Ok(()),
    }
}

/// Returns the size of all batches.
fn batches(
    path: &Path,
    db: &Connection,
    applied: u64,
    end: u64,
    into: &mut dyn Restoring,
) -> Result<u64, RestoreError> {
    let read = |e| layout::reading(path, e);
    let mut size = 0;
    let mut next = applied + 1;
    let mut select =
        db.prepare("SELECT first, commands, crc FROM log ORDER BY first").map_err(read)?;
    let mut rows = select.query([]).map_err(read)?;
    while let Some(row) = rows.next().map_err(read)? {
        let fields = || -> rusqlite::Result<(i64, Vec<u8>, u32)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        };
        let (number, bytes, crc) = fields().map_err(read)?;
        if batch_crc(number, &bytes) != crc {
            let problem = format!("the commands from {number} on are damaged");
            return Err(corrupt(path, problem).into());
        }
        let (first, commands) = parse(path, number, &bytes)?;
        if first < next {
            let problem = format!("command {first} comes after {}", next - 1);
            return Err(corrupt(path, problem).into());
        }
        missing(path, next, first)?;
        into.batch(first, &commands)?;
        next += commands.len() as u64;
        size += bytes.len() as u64;
    }
    if next > end + 1 {
        let problem = format!("command {} is beyond the noted end, {end}", next - 1);
        return Err(corrupt(path, problem).into());
    }
    missing(path, next, end + 1)?;
    Ok(size)
}

fn missing(path: &Path, next: u64, first: u64) -> Result<(), StoreError> {
    match first > next {
        true => Err(corrupt(path, format!("commands {next} to {} are missing", first - 1))),
        false => Ok(()),
    }
}

/// A batch as it is stored.
pub(super) fn parse(
    path: &Path,
    first: i64,
    bytes: &[u8],
) -> Result<(u64, Vec<Command>), StoreError> {
    let problem = |e: &dyn std::fmt::Display| {
        corrupt(path, format!("the commands from {first} on cannot be read: {e}"))
    };
    let commands = serde_json::from_slice(bytes).map_err(|e| problem(&e))?;
    Ok((u64::try_from(first).map_err(|e| problem(&e))?, commands))
}

/// What a file holds, for people.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Rows of each table of the checkpoint.
    pub rows: Vec<(Table, u64)>,
    /// Commands under the checkpoint.
    pub checkpoint: u64,
    /// Commands after it.
    pub commands: u64,
}

/// Reads a file as it is at one moment, also while a registry writes it, and
/// never changes it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    db: Connection,
    _lock: Option<Lock>,
}

impl Reader {
    /// Opens a file that may be in use.
    ///
    /// # Errors
    /// When it cannot be read or is no state of this version's layout.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::new(path, |_| Ok(None)).map_err(|e| match e {
            // To be in use is all right, unless it cannot even be read.
            StoreError::InUse(path) => StoreError::Busy(path),
            other => other,
        })
    }

    /// Opens a file that no registry has open.
    ///
    /// # Errors
    /// As [`Reader::open`], and when it is in use.
    pub fn exclusive(path: &Path) -> Result<Self, StoreError> {
        Self::new(path, |real| match Lock::take(real) {
            // Where no lock can be made no registry runs either.
            Err(StoreError::Unwritable { .. }) => Ok(None),
            other => other.map(Some),
        })
    }

    fn new(
        path: &Path,
        lock: impl FnOnce(&Path) -> Result<Option<Lock>, StoreError>,
    ) -> Result<Self, StoreError> {
        layout::dangling(path)?;
        let real = path
            .canonicalize()
            .map_err(|e| StoreError::Unreadable { path: path.to_owned(), source: e.into() })?;
        let lock = lock(&real)?;
        let db = layout::connect(path, &real, false)?;
        let layout = layout::layout(path, &db)?;
        if layout < LAYOUT {
            return Err(StoreError::Older { path: path.to_owned(), layout });
        }
        // One moment for all that is read.
        db.execute_batch("BEGIN").map_err(|e| layout::reading(path, e))?;
        Ok(Self { path: path.to_owned(), db, _lock: lock })
    }

    /// Has SQLite check the whole structure of the file.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn structure(&self) -> Result<(), StoreError> {
        layout::structure(&self.path, &self.db, "integrity_check")
    }

    /// Where the audit log was when this was noted last.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn audited(&self) -> Result<Option<Audited>, StoreError> {
        layout::audited(&self.path, &self.db)
    }

    /// Reads everything, with every check sum and cross-reference checked.
    ///
    /// # Errors
    /// When anything is damaged or missing.
    pub fn state(&self) -> Result<(State, Summary), RestoreError> {
        self.replay(|state, command| state.apply(command))
    }

    /// The same; `apply` is given each logged command in its turn and has to
    /// apply it.
    ///
    /// # Errors
    /// When anything is damaged or missing.
    pub(crate) fn replay(
        &self,
        mut apply: impl FnMut(&mut State, &Command) -> Outcome,
    ) -> Result<(State, Summary), RestoreError> {
        let mut builder = Builder::new(&mut apply);
        let held = stream(&self.path, &self.db, &mut builder)?;
        let rows = held.checkpoint.tallies.iter().map(|(table, tally)| (table, tally.rows));
        let summary = Summary {
            rows: rows.collect(),
            checkpoint: held.checkpoint.applied,
            commands: held.commands,
        };
        Ok((builder.finish()?, summary))
    }

    pub(super) const fn db(&self) -> &Connection {
        &self.db
    }
}
