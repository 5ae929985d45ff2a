//! The journal's database: events that some sink still wants, the sinks with
//! how far each is, and the gaps in their streams. Knows SQL and files, and
//! nothing of delivery.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::JournalError;
use super::outlet::{Entry, Gap};
use crate::events::Timestamp;

/// Name of the database in the journal's folder.
pub(super) const FILE: &str = "events.db";

/// Version of the tables, in `user_version`.
const VERSION: i64 = 1;

/// Numbers that are set aside at once: in the database while nothing is
/// written, so that not every number costs a write.
pub(super) const ID_BLOCK: u64 = 4096;

/// Numbers that are set aside at once beside the database, for when it is lost.
const ID_RESERVE: u64 = 1 << 20;

/// Bytes of a page of the database.
const PAGE: u64 = 4096;

const TABLES: &str = "
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,  -- event_id
        at INTEGER NOT NULL,     -- emitted, nanoseconds since 1970
        line TEXT NOT NULL       -- JSON
    );
    CREATE TABLE sinks (
        name TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL, -- event_id of the last event it needs no more
        settings TEXT NOT NULL   -- JSON
    ) WITHOUT ROWID;
    CREATE TABLE gaps (          -- events that a sink does not get
        sink TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        count INTEGER NOT NULL,
        at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (sink, last)
    ) WITHOUT ROWID;
    CREATE TABLE counter (next INTEGER NOT NULL); -- the next event_id
";

/// A sink as it is on disk.
pub(super) struct StoredSink {
    pub name: String,
    pub cursor: u64,
    pub settings: String,
    pub gaps: Vec<Gap>,
}

/// What one transaction changes.
#[derive(Default)]
pub(super) struct Changes {
    /// Text of all new events, one after the other.
    pub text: String,
    /// Number, time and end in `text` of each new event.
    pub events: Vec<(u64, u64, usize)>,
    /// Ranges of events that no sink wants any more.
    pub unwanted: Vec<(u64, u64)>,
    /// Next number.
    pub next: u64,
}

pub(super) struct Store {
    db: Connection,
    folder: PathBuf,
    /// Numbers below this are set aside beside the database.
    reserved: u64,
}

/// What was found when a store was opened.
pub(super) struct Found {
    pub next: u64,
    pub sinks: Vec<StoredSink>,
    /// Where a database that could not be read is now, and what was wrong.
    pub moved_aside: Option<(PathBuf, String)>,
}

impl Store {
    /// Opens the database in `folder`, or makes one. One that is damaged is
    /// moved aside.
    pub(super) fn open(folder: &Path, disk_bytes: u64) -> Result<(Self, Found), JournalError> {
        fs::create_dir_all(folder).map_err(|error| folder_error(folder, &error))?;
        let file = folder.join(FILE);
        match Self::try_open(folder, &file, disk_bytes) {
            Ok((store, next, sinks)) => Ok((store, Found { next, sinks, moved_aside: None })),
            Err(OpenError::Damaged(reason)) => {
                let aside = move_aside(&file).map_err(|error| folder_error(folder, &error))?;
                let (store, next, sinks) = Self::try_open(folder, &file, disk_bytes)
                    .map_err(|error| error.named(&file))?;
                Ok((store, Found { next, sinks, moved_aside: Some((aside, reason)) }))
            }
            Err(error) => Err(error.named(&file)),
        }
    }

    /// Moves this database aside, for an empty one to be opened in its place.
    pub(super) fn set_aside(self) -> Result<PathBuf, JournalError> {
        let Self { db, folder, .. } = self;
        drop(db);
        move_aside(&folder.join(FILE)).map_err(|error| folder_error(&folder, &error))
    }

    fn try_open(
        folder: &Path,
        file: &Path,
        disk_bytes: u64,
    ) -> Result<(Self, u64, Vec<StoredSink>), OpenError> {
        let db = Connection::open(file)?;
        db.busy_timeout(Duration::ZERO)?;
        // Exclusive: a second process must not number events of the same node.
        db.execute_batch(&format!(
            "PRAGMA page_size = {PAGE};
             PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA temp_store = MEMORY;
             PRAGMA journal_size_limit = 16777216;
             PRAGMA max_page_count = {};
             BEGIN EXCLUSIVE; COMMIT;",
            (disk_bytes / PAGE).max(64)
        ))?;
        let check: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(OpenError::Damaged(check));
        }
        match db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))? {
            0 => db.execute_batch(&format!(
                "BEGIN; {TABLES} INSERT INTO counter VALUES (1);
                 PRAGMA user_version = {VERSION}; COMMIT;"
            ))?,
            VERSION => {}
            other => return Err(OpenError::Version(other)),
        }
        let next = db.query_row("SELECT next FROM counter", [], |row| row.get::<_, i64>(0))?;
        let newest =
            db.query_row("SELECT max(id) FROM events", [], |row| row.get::<_, Option<i64>>(0))?;
        let mut next = number(next).max(newest.map_or(0, number) + 1).max(1);
        let sinks = read_sinks(&db)?;
        let reserved = read_reserved(folder);
        // What is set aside beside the database counts only when it was lost.
        if newest.is_none() && next == 1 && sinks.is_empty() {
            next = reserved.max(1);
        }
        let mut store = Self { db, folder: folder.to_owned(), reserved };
        store.reserve(next).map_err(|error| OpenError::Failed(error.to_string()))?;
        Ok((store, next, sinks))
    }

    /// Sets numbers aside beside the database when `next` comes near the end of
    /// those that are.
    pub(super) fn reserve(&mut self, next: u64) -> io::Result<()> {
        if next + ID_RESERVE / 2 <= self.reserved {
            return Ok(());
        }
        let reserved = next + ID_RESERVE;
        let (file, draft) = (self.folder.join("next-id"), self.folder.join("next-id.new"));
        let mut out = fs::File::create(&draft)?;
        writeln!(out, "{reserved}")?;
        out.sync_all()?;
        fs::rename(&draft, &file)?;
        fs::File::open(&self.folder)?.sync_all()?;
        self.reserved = reserved;
        Ok(())
    }

    /// Does `changes`, and sets cursor and gaps of `sinks`, in one transaction
    /// that is on disk when this returns.
    pub(super) fn commit<'a>(
        &mut self,
        changes: &Changes,
        sinks: impl Iterator<Item = (&'a str, u64, Vec<&'a Gap>)>,
    ) -> rusqlite::Result<()> {
        let transaction = self.db.transaction()?;
        {
            let mut remove =
                transaction.prepare_cached("DELETE FROM events WHERE id BETWEEN ?1 AND ?2")?;
            let newest = changes.events.first().map_or(u64::MAX, |(id, ..)| *id);
            // First what makes room, last what went before it was ever written.
            for (first, last) in &changes.unwanted {
                remove.execute(params![signed(*first), signed(*last)])?;
            }
            let mut insert = transaction
                .prepare_cached("INSERT INTO events (id, at, line) VALUES (?1, ?2, ?3)")?;
            let mut from = 0;
            for (id, at, to) in &changes.events {
                insert.execute(params![signed(*id), signed(*at), &changes.text[from..*to]])?;
                from = *to;
            }
            for (first, last) in &changes.unwanted {
                if *last >= newest {
                    remove.execute(params![signed(*first), signed(*last)])?;
                }
            }
            let mut cursor =
                transaction.prepare_cached("UPDATE sinks SET cursor = ?2 WHERE name = ?1")?;
            let mut forget = transaction.prepare_cached("DELETE FROM gaps WHERE sink = ?1")?;
            let mut gap = transaction.prepare_cached(
                "INSERT INTO gaps (sink, first, last, count, at, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (name, at, gaps) in sinks {
                cursor.execute(params![name, signed(at)])?;
                forget.execute(params![name])?;
                for g in gaps {
                    let (first, last, count) = (signed(g.first), signed(g.last), signed(g.count));
                    gap.execute(params![name, first, last, count, signed(g.at), g.reason])?;
                }
            }
            transaction
                .prepare_cached("UPDATE counter SET next = ?1")?
                .execute(params![signed(changes.next)])?;
        }
        transaction.commit()
    }

    /// Adds a sink or changes its settings.
    pub(super) fn put_sink(
        &mut self,
        name: &str,
        cursor: u64,
        settings: &str,
    ) -> rusqlite::Result<()> {
        self.db.execute(
            "INSERT INTO sinks (name, cursor, settings) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET settings = excluded.settings",
            params![name, signed(cursor), settings],
        )?;
        Ok(())
    }

    /// Takes a sink away.
    pub(super) fn remove_sink(&mut self, name: &str) -> rusqlite::Result<()> {
        let transaction = self.db.transaction()?;
        transaction.execute("DELETE FROM gaps WHERE sink = ?1", params![name])?;
        transaction.execute("DELETE FROM sinks WHERE name = ?1", params![name])?;
        transaction.commit()
    }

    /// Number, time, line of each event from `first` to `last`, in order.
    pub(super) fn read(
        &self,
        first: u64,
        last: u64,
        mut each: impl FnMut(u64, u64, &str),
    ) -> rusqlite::Result<()> {
        let mut select = self.db.prepare_cached(
            "SELECT id, at, line FROM events WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        )?;
        let mut rows = select.query(params![signed(first), signed(last)])?;
        while let Some(row) = rows.next()? {
            let line = row.get_ref(2)?.as_str().unwrap_or_default();
            each(number(row.get(0)?), number(row.get(1)?), line);
        }
        Ok(())
    }

    /// One line.
    pub(super) fn read_one(&self, id: u64) -> rusqlite::Result<Option<String>> {
        self.db
            .prepare_cached("SELECT line FROM events WHERE id = ?1")?
            .query_row(params![signed(id)], |row| row.get(0))
            .optional()
    }

    /// The events after `cursor` whose name `wants` says yes to.
    pub(super) fn waiting(
        &self,
        cursor: u64,
        wants: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.read(cursor + 1, i64::MAX as u64, |id, at, line| {
            if wants(name_of(line)) {
                entries.push(Entry::Event { id, at, bytes: line_bytes(line) });
            }
        })?;
        Ok(entries)
    }
}

/// What an event counts for in a queue: its line and the line's end.
pub(super) fn line_bytes(line: &str) -> u32 {
    u32::try_from(line.len() + 1).unwrap_or(u32::MAX)
}

/// The name in a line, which begins with it (`events::Json`).
pub(super) fn name_of(line: &str) -> &str {
    line.strip_prefix("{\"event\":\"").and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

/// Whether the file itself is damaged, so that trying again cannot help.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

enum OpenError {
    Damaged(String),
    Busy,
    Version(i64),
    Failed(String),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            _ if is_damage(&error) => Self::Damaged(error.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl OpenError {
    fn named(self, file: &Path) -> JournalError {
        let file = file.to_owned();
        match self {
            Self::Busy => JournalError::InUse { file },
            Self::Version(found) => JournalError::Version { file, found, known: VERSION },
            Self::Damaged(reason) | Self::Failed(reason) => JournalError::Disk { file, reason },
        }
    }
}

fn folder_error(folder: &Path, error: &io::Error) -> JournalError {
    JournalError::Disk { file: folder.to_owned(), reason: error.to_string() }
}

/// Renames a database and what belongs to it; gives its new name.
fn move_aside(file: &Path) -> io::Result<PathBuf> {
    let stamp = Timestamp::now().to_string().replace(':', "");
    let aside = file.with_file_name(format!("{FILE}.damaged-{stamp}"));
    fs::rename(file, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        match fs::rename(with(file), with(&aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

fn read_reserved(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("next-id")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn read_sinks(db: &Connection) -> rusqlite::Result<Vec<StoredSink>> {
    let mut sinks = db
        .prepare("SELECT name, cursor, settings FROM sinks ORDER BY name")?
        .query_map([], |row| {
            let (name, cursor, settings) = (row.get(0)?, number(row.get(1)?), row.get(2)?);
            Ok(StoredSink { name, cursor, settings, gaps: Vec::new() })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut gaps = db
        .prepare("SELECT first, last, count, at, reason FROM gaps WHERE sink = ?1 ORDER BY last")?;
    for sink in &mut sinks {
        sink.gaps = gaps
            .query_map(params![sink.name], |row| {
                Ok(Gap {
                    first: number(row.get(0)?),
                    last: number(row.get(1)?),
                    count: number(row.get(2)?),
                    at: number(row.get(3)?),
                    reason: row.get(4)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
    }
    Ok(sinks)
}

/// SQLite's numbers are signed; ours are far below its largest.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(signed: i64) -> u64 {
    u64::try_from(signed).unwrap_or(0)
}
