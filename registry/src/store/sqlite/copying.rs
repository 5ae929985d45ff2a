//! A second, complete file, made while the first is in use.

use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::integrity::row_crc;
use super::layout::{self, opening};
use super::lock::{Lock, beside};
use super::reading::{Reader, Summary};
use crate::state::Table;
use crate::store::{RestoreError, StoreError};

/// Puts a whole state file in its place, `to`, which is free; nothing else is
/// ever replaced. `part` is in the same folder and stays.
///
/// # Errors
/// When there is a file, or a part of one, or somebody is about to make it.
pub(crate) fn install(part: &Path, to: &Path) -> Result<(), StoreError> {
    let unwritable =
        |e: std::io::Error| StoreError::Unwritable { path: to.to_owned(), source: e.into() };
    let real = layout::resolve(to)?;
    // A registry that starts now would make an empty file there.
    let _lock = Lock::take(&real)?;
    for rest in ["-wal", "-journal"] {
        let rest = beside(&real, rest);
        if rest.symlink_metadata().is_ok() {
            let there = format!("{} is there, a part of another file", rest.display());
            return Err(unwritable(std::io::Error::other(there)));
        }
    }
    std::fs::File::open(part).and_then(|f| f.sync_all()).map_err(unwritable)?;
    // Unlike a rename this never takes the place of a file.
    std::fs::hard_link(part, &real).and_then(|()| layout::sync_folder(&real)).map_err(unwritable)
}

/// Copies the state file at `from`, as it is at one moment, to the new file
/// `to`, and reads it all to see that it is sound.
///
/// # Errors
/// When either cannot be read or written, or the state is damaged; there is
/// then no file `to`.
pub fn backup(from: &Path, to: &Path) -> Result<Summary, RestoreError> {
    let unwritable =
        |e: std::io::Error| StoreError::Unwritable { path: to.to_owned(), source: e.into() };
    let source = Reader::open(from)?;
    let real = layout::resolve(to)?;
    if real.symlink_metadata().is_ok() {
        let there = std::io::Error::other("there is such a file already; a backup is a new one");
        return Err(unwritable(there).into());
    }
    let part = beside(&real, &format!(".{}.part", std::process::id()));
    layout::private(&part).map_err(unwritable)?;
    let made = (|| -> Result<Summary, RestoreError> {
        copy(from, &source, to, &part)?;
        let copied = Reader::open(&part)?;
        copied.structure()?;
        let (_, summary) = copied.state()?;
        std::fs::File::open(&part).and_then(|f| f.sync_all()).map_err(unwritable)?;
        // Unlike a rename this never takes the place of a file.
        std::fs::hard_link(&part, &real).map_err(unwritable)?;
        Ok(summary)
    })();
    // What is left of it is of no use to anybody.
    let _ = std::fs::remove_file(&part);
    let summary = made?;
    layout::sync_folder(&real).map_err(unwritable)?;
    Ok(summary)
}

/// Takes the name of the history from a copy, so that a registry that starts
/// with it gives it a new one: the history that was copied goes on elsewhere. A
/// damaged row is left as it is, to be found.
fn forget_name(path: &Path, copy: &mut Connection) -> rusqlite::Result<()> {
    let tx = copy.transaction()?;
    let select = "SELECT value, crc FROM state WHERE tbl=?1 AND key=x''";
    let row = tx.query_row(select, [Table::Meta as u8], |r| Ok((r.get(0)?, r.get(1)?)));
    let Some((old, crc)): Option<(Vec<u8>, u32)> = row.optional()? else { return Ok(()) };
    let Ok(mut checkpoint) = layout::checkpoint(path, &tx) else { return Ok(()) };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&old) else { return Ok(()) };
    if row_crc(Table::Meta, &[], &old) != crc || value.get("epoch").is_none() {
        return Ok(());
    }
    value["epoch"] = "".into();
    let new = value.to_string().into_bytes();
    let new_crc = row_crc(Table::Meta, &[], &new);
    let update = "UPDATE state SET value=?1, crc=?2 WHERE tbl=?3 AND key=x''";
    tx.execute(update, params![new, new_crc, Table::Meta as u8])?;
    let tally = checkpoint.tallies.of(Table::Meta);
    tally.remove(crc);
    tally.add(new_crc);
    layout::put_checkpoint(&tx, &checkpoint)?;
    tx.commit()
}

fn copy(from: &Path, source: &Reader, to: &Path, part: &Path) -> Result<(), StoreError> {
    let writing = |e| match opening(to, e) {
        StoreError::Corrupt { problem, .. } => {
            StoreError::Unwritable { path: to.to_owned(), source: problem.into() }
        }
        other => other,
    };
    let mut copy = Connection::open(part).map_err(writing)?;
    {
        let backup = Backup::new(source.db(), &mut copy).map_err(writing)?;
        // All at once: steps would begin again whenever the registry writes.
        match backup.step(-1).map_err(writing)? {
            StepResult::Done => {}
            _ => return Err(StoreError::Busy(from.to_owned())),
        }
    }
    // One file that can be read from a medium that cannot be written.
    let journal = |r: &rusqlite::Row<'_>| r.get::<_, String>(0);
    copy.query_row("PRAGMA journal_mode=DELETE", [], journal).map_err(writing)?;
    forget_name(to, &mut copy).map_err(writing)?;
    copy.close().map_err(|(_, e)| writing(e))
}
