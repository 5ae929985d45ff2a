//! What the file looks like: marks, tables, and the rows that describe it.
//!
//! Every layout from 2 on keeps the table `meta` with the row `program`, so
//! that an earlier version can say which one wrote a file it does not know.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};

use super::integrity::{Checkpoint, Head, meta_crc};
use super::lock::beside;
use crate::store::{Audited, StoreError};

/// "PILT": marks the file as ours.
const APPLICATION_ID: i32 = 0x5049_4C54;
/// The layout that is written here.
pub(super) const LAYOUT: i32 = 2;
/// The tables of [`LAYOUT`].
pub(super) const TABLES: &str = "
    CREATE TABLE log (first INTEGER PRIMARY KEY, commands BLOB NOT NULL, crc INTEGER NOT NULL);
    CREATE TABLE state (
        tbl INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL,
        PRIMARY KEY (tbl, key)) WITHOUT ROWID;
    CREATE TABLE meta (
        name TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;";
/// Longest wait for another process that reads or writes the file just now.
const BUSY: Duration = Duration::from_secs(5);

/// The rows of `meta`.
pub(super) const HEAD: &str = "log";
const CHECKPOINT: &str = "checkpoint";
const PROGRAM: &str = "program";
/// Where the audit log was; it need not be there.
const AUDITED: &str = "audited";

/// Where a state file really is: links are followed, so that one file has one
/// lock however it is named.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    dangling(path)?;
    match path.canonicalize() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize();
            folder.map(|folder| folder.join(path.file_name().unwrap_or_default()))
        }
        found => found,
    }
    .map_err(|e| StoreError::Unwritable { path: path.to_owned(), source: e.into() })
}

/// Refuses a link to what is not there, as when a volume is not mounted: a new
/// file would take its place.
pub(super) fn dangling(path: &Path) -> Result<(), StoreError> {
    match path.read_link() {
        Ok(to) if !path.exists() => Err(StoreError::Dangling { path: path.to_owned(), to }),
        _ => Ok(()),
    }
}

/// Makes an empty state at `real`, whole or not at all.
pub(super) fn create(path: &Path, real: &Path) -> Result<(), StoreError> {
    if beside(real, "-wal").metadata().is_ok_and(|m| m.len() > 0) {
        let problem = "the file is gone, but not the newest part of it, in the file of the same \
                       name ending in -wal";
        return Err(corrupt(path, problem));
    }
    let unwritable =
        |e: std::io::Error| StoreError::Unwritable { path: path.to_owned(), source: e.into() };
    let new = beside(real, ".new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(unwritable(e)),
        _ => {}
    }
    private(&new).map_err(unwritable)?;
    let made = || {
        let db = Connection::open_with_flags(&new, flags(true))?;
        // The file is of no use to anybody before it is whole and renamed.
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES}
             PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={LAYOUT};"
        ))?;
        put(&db, HEAD, &Head { last: 0, owner: 0 }.encode())?;
        put(&db, CHECKPOINT, &Checkpoint::default().encode())?;
        put_program(&db)?;
        db.execute_batch("COMMIT")?;
        db.close().map_err(|(_, e)| e)
    };
    made().map_err(|e| opening(path, e))?;
    std::fs::rename(&new, real).and_then(|()| sync_folder(real)).map_err(unwritable)
}

/// Makes a file that only its owner can read; fails if there is one.
pub(super) fn private(path: &Path) -> std::io::Result<File> {
    // Made here and not by SQLite for its mode: keys and trust are private.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes names in the folder of `path` durable.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn flags(write: bool) -> OpenFlags {
    let access =
        if write { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Opens a file that is there. Nothing is written yet.
pub(super) fn connect(path: &Path, real: &Path, write: bool) -> Result<Connection, StoreError> {
    let length = real.metadata().map_err(|e| match write {
        true => StoreError::Unwritable { path: path.to_owned(), source: e.into() },
        false => StoreError::Unreadable { path: path.to_owned(), source: e.into() },
    })?;
    if length.len() == 0 {
        return Err(corrupt(path, "it is empty"));
    }
    let connect = || {
        let db = Connection::open_with_flags(real, flags(write))?;
        db.busy_timeout(if write { Duration::ZERO } else { BUSY })?;
        db.execute_batch(
            "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA cache_size=-32768;
             PRAGMA wal_autocheckpoint=0;",
        )?;
        Ok(db)
    };
    connect().map_err(|e| if write { opening(path, e) } else { reading(path, e) })
}

/// Makes every commit durable from here on, and takes the file for writing.
pub(super) fn prepare_writes(path: &Path, db: &Connection) -> Result<(), StoreError> {
    let journal = |r: &rusqlite::Row<'_>| r.get::<_, String>(0);
    let prepare = || {
        let journal = db.query_row("PRAGMA journal_mode=WAL", [], journal)?;
        db.execute_batch("PRAGMA synchronous=FULL; BEGIN IMMEDIATE; COMMIT;")?;
        db.busy_timeout(BUSY)?;
        Ok(journal)
    };
    let journal = prepare().map_err(|e| opening(path, e))?;
    if journal == "wal" {
        return Ok(());
    }
    let source = "its file system cannot hold a write-ahead log".into();
    Err(StoreError::Unwritable { path: path.to_owned(), source })
}

/// The layout of a file of ours.
pub(super) fn layout(path: &Path, db: &Connection) -> Result<i32, StoreError> {
    let pragma = |name| db.pragma_query_value(None, name, |r| r.get::<_, i32>(0));
    if pragma("application_id").map_err(|e| reading(path, e))? != APPLICATION_ID {
        return Err(corrupt(path, "it is a database of another program"));
    }
    let layout = pragma("user_version").map_err(|e| reading(path, e))?;
    if layout < 1 {
        return Err(corrupt(path, format!("there is no layout {layout}")));
    }
    if layout > LAYOUT {
        let program = get(path, db, PROGRAM).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        return Err(StoreError::Newer {
            path: path.to_owned(),
            layout,
            known: LAYOUT,
            program: program.unwrap_or_else(|| "unknown".to_owned()),
        });
    }
    Ok(layout)
}

/// SQLite's own look at the structure of the file.
pub(super) fn structure(path: &Path, db: &Connection, check: &str) -> Result<(), StoreError> {
    let verdict: String =
        db.pragma_query_value(None, check, |r| r.get(0)).map_err(|e| reading(path, e))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        // A heading may stand above what it found.
        _ => {
            let first = verdict.lines().find(|line| !line.starts_with("***"));
            Err(corrupt(path, first.unwrap_or("its structure is damaged")))
        }
    }
}

pub(super) fn head(path: &Path, db: &Connection) -> Result<Head, StoreError> {
    let bytes = get(path, db, HEAD)?;
    Head::decode(&bytes).ok_or_else(|| corrupt(path, "the end of the log is not noted"))
}

pub(super) fn checkpoint(path: &Path, db: &Connection) -> Result<Checkpoint, StoreError> {
    let bytes = get(path, db, CHECKPOINT)?;
    Checkpoint::decode(&bytes).ok_or_else(|| corrupt(path, "the checkpoint is not described"))
}

/// Number and hash of a record of the audit log.
pub(super) fn audited(path: &Path, db: &Connection) -> Result<Option<Audited>, StoreError> {
    let Some(bytes) = find(path, db, AUDITED)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    if text.is_empty() {
        return Ok(None);
    }
    let head = text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.into())));
    head.map(Some).ok_or_else(|| corrupt(path, "where the audit log was is not noted"))
}

pub(super) fn put_audited(db: &Connection, head: Option<&Audited>) -> rusqlite::Result<()> {
    let text = head.map(|(seq, hash)| format!("{seq}:{hash}")).unwrap_or_default();
    put(db, AUDITED, text.as_bytes())
}

fn get(path: &Path, db: &Connection, name: &str) -> Result<Vec<u8>, StoreError> {
    find(path, db, name)?.ok_or_else(|| corrupt(path, format!("the row {name} of meta is missing")))
}

fn find(path: &Path, db: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let row = db
        .query_row("SELECT value, crc FROM meta WHERE name=?1", [name], |r| {
            Ok((r.get::<_, Vec<u8>>(0)?, r.get::<_, u32>(1)?))
        })
        .optional()
        .map_err(|e| reading(path, e))?;
    match row {
        Some((value, crc)) if meta_crc(name, &value) == crc => Ok(Some(value)),
        Some(_) => Err(corrupt(path, format!("the row {name} of meta is damaged"))),
        None => Ok(None),
    }
}

fn put(db: &Connection, name: &str, value: &[u8]) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (name, value, crc) VALUES (?1, ?2, ?3)")?
        .execute(params![name, value, meta_crc(name, value)])?;
    Ok(())
}

pub(super) fn put_head(db: &Connection, head: Head) -> rusqlite::Result<()> {
    put(db, HEAD, &head.encode())
}

pub(super) fn put_checkpoint(db: &Connection, checkpoint: &Checkpoint) -> rusqlite::Result<()> {
    put(db, CHECKPOINT, &checkpoint.encode())
}

/// Notes which version writes the file.
pub(super) fn put_program(db: &Connection) -> rusqlite::Result<()> {
    put(db, PROGRAM, env!("CARGO_PKG_VERSION").as_bytes())
}

pub(super) fn corrupt(path: &Path, problem: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), problem: problem.into() }
}

/// What an error while reading means for people.
pub(super) fn reading(path: &Path, e: rusqlite::Error) -> StoreError {
    match opening(path, e) {
        StoreError::Unwritable { path, source } => StoreError::Unreadable { path, source },
        other => other,
    }
}

/// What an error while opening for writing means for people.
pub(super) fn opening(path: &Path, e: rusqlite::Error) -> StoreError {
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
