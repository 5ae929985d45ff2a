//! Files of earlier layouts become files of this one: step by step, in one
//! transaction, after a copy of the file was kept beside it.

use std::fs::File;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::integrity::{Checkpoint, Head, batch_crc, row_crc};
use super::layout::{self, LAYOUT, corrupt, opening};
use super::lock::beside;
use super::reading::parse;
use crate::state::{Snapshot, State};
use crate::store::{RestoreError, StoreError};

/// Makes layout `from + 1` of layout `from`.
struct Step {
    from: i32,
    run: fn(&Path, &Transaction<'_>) -> Result<(), RestoreError>,
}

/// One for each earlier layout, in order.
const STEPS: &[Step] = &[Step { from: 1, run: from_1 }];

/// Brings the file to [`LAYOUT`]. A copy as it was stays beside it, with
/// `.layout` and its number after its name.
///
/// # Errors
/// When it is damaged, or cannot be copied or written; it is then as before.
pub(super) fn migrate(
    path: &Path,
    real: &Path,
    db: &mut Connection,
    layout: i32,
) -> Result<(), RestoreError> {
    layout::structure(path, db, "quick_check")?;
    let kept = beside(real, &format!(".layout{layout}"));
    // Nothing is left beside the file that the copy would lack.
    let busy = db
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, bool>(0))
        .map_err(|e| opening(path, e))?;
    if busy {
        return Err(StoreError::InUse(path.to_owned()).into());
    }
    keep(real, &kept).map_err(|e| StoreError::Unwritable {
        path: path.to_owned(),
        source: format!("its copy {}: {e}", kept.display()).into(),
    })?;
    let sql = |e| opening(path, e);
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let mut now = layout;
    for step in STEPS.iter().filter(|step| step.from >= layout) {
        (step.run)(path, &tx)?;
        now = step.from + 1;
    }
    debug_assert_eq!(now, LAYOUT, "a step for every layout");
    tx.pragma_update(None, "user_version", now).map_err(sql)?;
    layout::put_program(&tx).map_err(sql)?;
    tx.commit().map_err(sql)?;
    tracing::info!(
        file = %path.display(), copy = %kept.display(),
        "the state file had layout {layout} and has {LAYOUT} now; a copy was kept"
    );
    Ok(())
}

fn keep(real: &Path, kept: &Path) -> std::io::Result<()> {
    let part = beside(kept, ".part");
    match std::fs::remove_file(&part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut to = layout::private(&part)?;
    std::io::copy(&mut File::open(real)?, &mut to)?;
    to.sync_all()?;
    std::fs::rename(&part, kept)?;
    layout::sync_folder(kept)
}

/// Layout 1: the snapshot is one JSON text in parts, batches have no check sum,
/// and nothing says where the log ends.
fn from_1(path: &Path, tx: &Transaction<'_>) -> Result<(), RestoreError> {
    let sql = |e| opening(path, e);
    let state = match snapshot_1(tx).map_err(sql)? {
        bytes if bytes.is_empty() => State::default(),
        bytes => {
            let read = serde_json::from_slice::<Snapshot>(&bytes);
            let problem = |e| corrupt(path, format!("the snapshot cannot be read: {e}"));
            State::try_from(read.map_err(problem)?)?
        }
    };
    let batches = batches_1(path, tx, state.applied())?;
    let mut checkpoint = Checkpoint { applied: state.applied(), ..Checkpoint::default() };
    let mut write = || {
        tx.execute_batch("DROP TABLE snapshot; DROP TABLE log;")?;
        tx.execute_batch(layout::TABLES)?;
        let mut put =
            tx.prepare("INSERT INTO state (tbl, key, value, crc) VALUES (?1, ?2, ?3, ?4)")?;
        for row in state.all_rows() {
            let Some(value) = row.value else { continue };
            let crc = row_crc(row.table, &row.key, &value);
            put.execute(params![row.table as u8, row.key, value, crc])?;
            checkpoint.tallies.of(row.table).add(crc);
        }
        let mut put = tx.prepare("INSERT INTO log (first, commands, crc) VALUES (?1, ?2, ?3)")?;
        for (first, commands) in &batches.stored {
            put.execute(params![first, commands, batch_crc(*first, commands)])?;
        }
        layout::put_checkpoint(tx, &checkpoint)?;
        layout::put_head(tx, Head { last: batches.last, owner: 0 })
    };
    Ok(write().map_err(sql)?)
}

fn snapshot_1(tx: &Transaction<'_>) -> rusqlite::Result<Vec<u8>> {
    let mut snapshot = Vec::new();
    let mut parts = tx.prepare("SELECT bytes FROM snapshot ORDER BY part")?;
    for part in parts.query_map([], |r| r.get::<_, Vec<u8>>(0))? {
        snapshot.extend(part?);
    }
    Ok(snapshot)
}

struct Batches {
    stored: Vec<(i64, Vec<u8>)>,
    last: u64,
}

fn batches_1(path: &Path, tx: &Transaction<'_>, applied: u64) -> Result<Batches, StoreError> {
    let read = || {
        let mut log = tx.prepare("SELECT first, commands FROM log ORDER BY first")?;
        let rows = log.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        rows.collect::<rusqlite::Result<Vec<(i64, Vec<u8>)>>>()
    };
    let stored = read().map_err(|e| opening(path, e))?;
    let mut last = applied;
    for (first, bytes) in &stored {
        let (first, commands) = parse(path, *first, bytes)?;
        if first != last + 1 {
            let problem = format!("commands from {} on are missing", last + 1);
            return Err(corrupt(path, problem));
        }
        last += commands.len() as u64;
    }
    Ok(Batches { stored, last })
}
