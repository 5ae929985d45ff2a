//! A second, complete file, made while the first is in use.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::layout::{self, opening};
use super::lock::beside;
use super::reading::{Reader, Summary};
use crate::store::{RestoreError, StoreError};

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
            _ => return Err(StoreError::InUse(from.to_owned())),
        }
    }
    // One file that can be read from a medium that cannot be written.
    let journal = |r: &rusqlite::Row<'_>| r.get::<_, String>(0);
    copy.query_row("PRAGMA journal_mode=DELETE", [], journal).map_err(writing)?;
    copy.close().map_err(|(_, e)| writing(e))
}
