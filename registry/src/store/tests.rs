//! The file: what was appended comes back, checkpoints replace the log, and
//! whatever is wrong is one clear refusal that leaves the file alone.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use pilot_wire::registry::PublicKey;

use super::*;
use crate::state::{Op, Register};

fn batch(keys: std::ops::Range<u8>) -> Vec<Command> {
    let register = |n| Register {
        key: PublicKey([n; 32]),
        endpoint: SocketAddr::from(([127, 0, 0, 1], 1)),
        owner: String::new(),
        hostname: format!("n{n}"),
        proven: false,
        takeover: false,
    };
    keys.map(|n| Command::own(5, Op::Register(register(n)))).collect()
}

fn open(path: &Path) -> (SqliteLog, State) {
    let mut log = SqliteLog::open(path).unwrap();
    let state = restore(&mut log, &Default::default()).unwrap();
    (log, state)
}

fn append(log: &mut SqliteLog, state: &mut State, commands: &[Command]) {
    log.append(state.applied() + 1, commands).unwrap();
    for command in commands {
        let _ = state.apply(command);
    }
}

fn rows(state: &State) -> Vec<Row> {
    let mut rows: Vec<_> = state.all_rows().collect();
    rows.sort();
    rows
}

#[test]
fn what_was_appended_comes_back_with_and_without_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (log, mut state) = open(&path);
    assert_eq!(state.epoch().len(), 16, "a new state has a name");
    for file in ["registry.db", "registry.db-wal", "registry.db.lock"] {
        let mode = dir.path().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let mut log = log.checkpoint_after(20);
    append(&mut log, &mut state, &batch(1..4));
    append(&mut log, &mut state, &batch(2..9));
    assert!(!log.wants_checkpoint());
    drop(log);
    let (log, mut restored) = open(&path);
    assert_eq!(rows(&restored), rows(&state));
    assert_eq!(restored.epoch(), state.epoch());
    // What was replayed is part of the next checkpoint.
    let mut log = log.checkpoint_after(20);
    append(&mut log, &mut restored, &batch(20..30));
    assert!(log.wants_checkpoint());
    log.checkpoint(restored.applied(), &restored.take_dirty()).unwrap();
    assert!(!log.wants_checkpoint());
    append(&mut log, &mut restored, &batch(40..50));
    log.checkpoint(restored.applied(), &restored.take_dirty()).unwrap();
    append(&mut log, &mut restored, &batch(50..55));
    drop(log);
    let (_log, again) = open(&path);
    assert_eq!(rows(&again), rows(&restored));
    assert_eq!(again.applied(), 35);
}

#[test]
fn every_commit_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir.path().join("registry.db"));
    assert_eq!(log.modes().unwrap(), ("wal".to_owned(), 2), "2 is synchronous=FULL");
}

#[test]
fn a_locked_file_is_in_use_by_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let first = open(&path);
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let error = SqliteLog::open(name).unwrap_err();
        assert!(matches!(error, RestoreError::Store(StoreError::InUse(_))), "{error}");
        assert!(matches!(Reader::exclusive(name), Err(StoreError::InUse(_))));
        assert_eq!(Reader::open(name).unwrap().state().unwrap().0.applied(), 0);
    }
    drop(first);
    open(&link);
}

/// An earlier version takes SQLite's own lock, and knows of no other.
#[test]
fn sqlite_s_own_lock_counts_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    drop(open(&path));
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN IMMEDIATE; COMMIT").unwrap();
    let error = SqliteLog::open(&path).unwrap_err();
    assert!(matches!(error, RestoreError::Store(StoreError::InUse(_))), "{error}");
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let garbage = [&b"{\"next_node\": 5}"[..], &[0xA5; 9000], b""];
    for content in garbage {
        std::fs::write(&path, content).unwrap();
        let error = SqliteLog::open(&path).unwrap_err();
        assert!(matches!(error, RestoreError::Store(StoreError::Corrupt { .. })), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    let other = dir.path().join("other.db");
    let db = rusqlite::Connection::open(&other).unwrap();
    db.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(db);
    let before = std::fs::read(&other).unwrap();
    let error = SqliteLog::open(&other).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    assert_eq!(std::fs::read(&other).unwrap(), before);
    let missing = dir.path().join("no/such/folder.db");
    let error = SqliteLog::open(&missing).unwrap_err();
    assert!(matches!(error, RestoreError::Store(StoreError::Unwritable { .. })), "{error}");
}

#[test]
fn a_file_that_lost_its_main_part_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    std::fs::copy(dir.path().join("registry.db-wal"), dir.path().join("b.db-wal")).unwrap();
    let error = SqliteLog::open(&dir.path().join("b.db")).unwrap_err().to_string();
    assert!(error.contains("b.db") && error.contains("-wal"), "{error}");
    assert!(!dir.path().join("b.db").exists());
}

#[test]
fn damage_inside_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    append(&mut log, &mut state, &batch(4..6));
    append(&mut log, &mut state, &batch(6..9));
    append(&mut log, &mut state, &batch(9..11));
    drop(log);
    let good = std::fs::read(&path).unwrap();
    let after = |sql: &str| {
        std::fs::write(&path, &good).unwrap();
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let opened = SqliteLog::open(&path)
            .and_then(|mut log| restore(&mut log, &Default::default()).map(drop));
        let text = opened.unwrap_err().to_string();
        assert!(text.contains("registry.db") && text.contains("backup"), "{sql}: {text}");
        text
    };
    for (sql, problem) in [
        ("DELETE FROM log WHERE first=6", "commands 6 to 8 are missing"),
        ("DELETE FROM log WHERE first=9", "commands 9 to 10 are missing"),
        ("DELETE FROM log", "commands 4 to 10 are missing"),
        ("UPDATE log SET commands=x'00' WHERE first=4", "commands from 4 on are damaged"),
        ("UPDATE log SET first=7 WHERE first=6", "commands from 7 on are damaged"),
        ("DELETE FROM state WHERE tbl=1 AND key=x'00000002'", "Node has 2 rows, and should have 3"),
        ("UPDATE state SET value=x'7b7d' WHERE tbl=2", "of table Key is damaged"),
        ("UPDATE state SET key=x'0000000a' WHERE tbl=1 AND key=x'00000002'", "is damaged"),
        ("UPDATE state SET tbl=99 WHERE tbl=2", "of table 99, which is none"),
        ("DELETE FROM state", "rows, and should have"),
        ("DELETE FROM meta WHERE name='log'", "row log of meta is missing"),
        ("UPDATE meta SET value=zeroblob(16) WHERE name='log'", "row log of meta is damaged"),
        ("DELETE FROM meta WHERE name='checkpoint'", "row checkpoint of meta is missing"),
        ("DROP TABLE state", "no such table"),
        ("PRAGMA application_id=7", "another program"),
    ] {
        let text = after(sql);
        assert!(text.contains(problem), "{sql}: {text}");
    }
}

/// A row that is whole, but an older one of the same key.
#[test]
fn a_stale_row_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE old AS SELECT * FROM state").unwrap();
    append(&mut log, &mut state, &batch(1..2));
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    drop(log);
    db.execute_batch("REPLACE INTO state SELECT * FROM old WHERE tbl=1; DROP TABLE old").unwrap();
    drop(db);
    let text = restore(&mut SqliteLog::open(&path).unwrap(), &Default::default()).unwrap_err();
    assert!(text.to_string().contains("Node are not those of the last checkpoint"), "{text}");
}

/// As on a full disk: the file may grow no further.
#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (log, mut state) = open(&path);
    let mut log = log.checkpoint_after(10);
    append(&mut log, &mut state, &batch(1..200));
    log.limit_pages(1);
    assert!(log.wants_checkpoint());
    let owed = state.take_dirty();
    let refused = log.checkpoint(state.applied(), &owed).unwrap_err();
    assert!(!refused.ends_the_log(), "{refused}");
    assert!(!log.wants_checkpoint(), "not again with every batch");
    let many: Vec<_> = (0..500).flat_map(|_| batch(20..30)).collect();
    let refused = log.append(state.applied() + 1, &many).unwrap_err();
    assert!(!refused.ends_the_log(), "{refused}");
    let refused = refused.to_string();
    assert!(refused.contains("registry.db") && refused.contains("full"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    log.limit_pages(1_000_000);
    append(&mut log, &mut state, &batch(200..215));
    assert!(log.wants_checkpoint(), "but later");
    let mut rows_due = owed;
    rows_due.retain(|row| row.table != crate::state::Table::Meta);
    rows_due.extend(state.take_dirty());
    log.checkpoint(state.applied(), &rows_due).unwrap();
    drop(log);
    let (_log, restored) = open(&path);
    assert_eq!(rows(&restored), rows(&state));
}

#[test]
fn another_writer_fences_this_one_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    // Somebody took the lock file away, and the other did not see this one.
    std::fs::remove_file(dir.path().join("registry.db.lock")).unwrap();
    let (mut second, mut other) = open(&path);
    append(&mut second, &mut other, &batch(4..6));
    for _ in 0..2 {
        let error = log.append(state.applied() + 1, &batch(6..7)).unwrap_err();
        assert!(matches!(error, StoreError::Fenced(_)) && error.ends_the_log(), "{error}");
        let error = log.checkpoint(state.applied(), &state.take_dirty()).unwrap_err();
        assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    }
    append(&mut second, &mut other, &batch(7..8));
    drop((log, second));
    let (_log, restored) = open(&path);
    assert_eq!(rows(&restored), rows(&other));
}

#[test]
fn nothing_is_written_to_a_file_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    let away = dir.path().join("away");
    for file in ["registry.db", "registry.db-wal"] {
        let file = dir.path().join(file);
        std::fs::rename(&file, &away).unwrap();
        let error = log.append(state.applied() + 1, &batch(4..5)).unwrap_err();
        assert!(matches!(error, StoreError::Gone(_)) && !error.ends_the_log(), "{error}");
        assert!(error.to_string().contains("registry.db"));
        // Another file of that name is not it.
        std::fs::copy(&away, &file).unwrap();
        assert!(log.append(state.applied() + 1, &batch(4..5)).is_err());
        std::fs::rename(&away, &file).unwrap();
    }
    append(&mut log, &mut state, &batch(4..5));
    drop(log);
    let (_log, restored) = open(&path);
    assert_eq!(rows(&restored), rows(&state));
}

#[test]
fn numbers_have_to_follow() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut state) = open(&dir.path().join("registry.db"));
    append(&mut log, &mut state, &batch(1..4));
    for first in [1, 3, 5] {
        let error = log.append(first, &batch(5..6)).unwrap_err();
        assert!(matches!(error, StoreError::Order { expected: 4, .. }), "{error}");
    }
    let error = log.checkpoint(2, &[]).unwrap_err();
    assert!(matches!(error, StoreError::Order { .. }), "{error}");
    append(&mut log, &mut state, &batch(5..6));
}

#[test]
fn a_later_layout_says_who_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    drop(open(&path));
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("UPDATE meta SET value='9.8.7' WHERE name='program'").unwrap();
    db.execute_batch("PRAGMA user_version=3").unwrap();
    drop(db);
    let text = SqliteLog::open(&path).unwrap_err().to_string();
    assert!(text.contains("layout 3") && text.contains("run that version"), "{text}");
}

/// Who follows the history that went on must not take this one for it.
#[test]
fn a_state_put_back_gets_another_name_once() {
    use crate::audit::{Audit, Retention};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let audited = || Audit::open(Some(&path), Retention::default()).unwrap();
    let start = || {
        let audit = audited();
        let mut log = SqliteLog::open(&path).unwrap();
        let state = restore(&mut log, &audit).unwrap();
        audit.close();
        (log, state)
    };
    let (log, old) = start();
    drop(log);
    std::fs::copy(&path, dir.path().join("old.db")).unwrap();
    let (mut log, mut state) = start();
    append(&mut log, &mut state, &batch(1..9));
    drop(log);
    assert_eq!(start().1.epoch(), old.epoch(), "the same, gone on");
    for part in ["registry.db", "registry.db-wal", "registry.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(part));
    }
    std::fs::rename(dir.path().join("old.db"), &path).unwrap();
    let put_back = start().1;
    assert_eq!(put_back.applied(), 0);
    assert_ne!(put_back.epoch(), old.epoch());
    assert_eq!(start().1.epoch(), put_back.epoch(), "durably");
}

#[test]
fn a_copy_gets_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = (dir.path().join("registry.db"), dir.path().join("copy.db"));
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..9));
    backup(&path, &to).unwrap();
    let copy = open(&to).1;
    assert_eq!((copy.applied(), copy.epoch().len()), (8, 16));
    assert_ne!(copy.epoch(), state.epoch());
    assert_eq!(open(&to).1.epoch(), copy.epoch());
    drop(log);
    assert_eq!(open(&path).1.epoch(), state.epoch());
}

#[test]
fn a_link_that_leads_nowhere_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (link, to) = (dir.path().join("registry.db"), dir.path().join("volume/registry.db"));
    std::os::unix::fs::symlink(&to, &link).unwrap();
    let text = SqliteLog::open(&link).unwrap_err().to_string();
    assert!(text.contains("is a link to") && text.contains("volume/registry.db"), "{text}");
    assert!(Reader::open(&link).is_err());
    assert_eq!(link.read_link().unwrap(), to);
    std::fs::create_dir(dir.path().join("volume")).unwrap();
    assert!(SqliteLog::open(&link).is_err(), "the folder alone is not it");
    drop(open(&to));
    open(&link);
}

/// Opens the file between the reading and the owning of another.
struct Intruder<'a>(&'a Path);

impl Restoring for Intruder<'_> {
    fn row(&mut self, _row: Row) -> Result<(), RestoreError> {
        Ok(())
    }

    fn checkpoint(&mut self, _applied: u64) -> Result<(), RestoreError> {
        std::fs::remove_file(self.0.with_extension("db.lock")).unwrap();
        drop(open(self.0));
        Ok(())
    }

    fn batch(&mut self, _first: u64, _commands: &[Command]) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[test]
fn what_was_owned_by_another_meanwhile_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    drop(log);
    let mut log = SqliteLog::open(&path).unwrap();
    let error = log.restore(&mut Intruder(&path)).unwrap_err();
    assert!(matches!(error, RestoreError::Store(StoreError::Fenced(_))), "{error}");
    drop(log);
    assert_eq!(rows(&open(&path).1), rows(&state));
}

#[test]
fn without_a_store_nothing_is_noted() {
    let mut state = restore(&mut MemoryLog, &Default::default()).unwrap();
    for command in batch(1..20) {
        state.apply(&command).unwrap();
    }
    assert_eq!(state.take_dirty_keys(), [crate::state::RowKey::Meta]);
}

#[test]
fn what_cannot_be_read_again_is_not_written() {
    use crate::state::Actor;
    use pilot_wire::registry::network::{BroadcastRight, JoinPolicy};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    let network = |depth: usize| {
        let mut join = JoinPolicy::of("open");
        join.rules[0].config = serde_json::json!({});
        for _ in 0..depth {
            join.rules[0].config = serde_json::json!([join.rules[0].config]);
        }
        let (by, name) = (Actor::Registry, format!("n{depth}"));
        let broadcast = BroadcastRight::default();
        Command::own(5, Op::CreateNetwork { by, name, join, broadcast })
    };
    let refused = log.append(1, &[network(200)]).unwrap_err();
    assert!(matches!(refused, StoreError::Write { .. }) && !refused.ends_the_log(), "{refused}");
    append(&mut log, &mut state, &[network(20)]);
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    drop(log);
    assert_eq!(rows(&open(&path).1), rows(&state));
}

#[test]
fn a_command_that_cannot_be_applied_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..6));
    drop(log);
    let mut log = SqliteLog::open(&path).unwrap();
    let mut apply = |state: &mut State, command: &Command| {
        assert!(state.applied() < 3, "out of range");
        state.apply(command)
    };
    let error = log.restore(&mut Builder::new(&mut apply)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, RestoreError::Failed { command: 4, .. }), "{text}");
    assert!(text.contains("out of range") && text.contains("restore a backup"), "{text}");
    drop(log);
    assert_eq!(open(&path).1.applied(), 5);
}

#[test]
fn where_the_audit_log_was_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, _) = open(&path);
    assert_eq!(log.audited(), None);
    log.note_audited(Some((7, "ab".to_owned()))).unwrap();
    drop(log);
    assert_eq!(Reader::open(&path).unwrap().audited().unwrap(), Some((7, "ab".to_owned())));
    let mut log = SqliteLog::open(&path).unwrap();
    // No log at all: it is not missed.
    restore(&mut log, &Default::default()).unwrap();
    assert_eq!(log.audited(), None);
}
