//! The file: what was appended comes back, snapshots replace the log, and
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
    let state = restore(&mut log).unwrap();
    (log, state)
}

fn append(log: &mut SqliteLog, state: &mut State, commands: &[Command]) {
    log.append(state.applied() + 1, commands).unwrap();
    for command in commands {
        let _ = state.apply(command);
    }
}

#[test]
fn what_was_appended_comes_back_with_and_without_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (log, mut state) = open(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut log = log.snapshot_after(10);
    append(&mut log, &mut state, &batch(1..4));
    append(&mut log, &mut state, &batch(2..9));
    assert!(!log.wants_snapshot(state.len()));
    drop(log);
    let (log, restored) = open(&path);
    assert_eq!(restored.snapshot(), state.snapshot());
    let mut log = log.snapshot_after(10);
    append(&mut log, &mut state, &batch(20..40));
    assert!(log.wants_snapshot(1) && !log.wants_snapshot(15));
    log.replace(&state.snapshot()).unwrap();
    assert!(!log.wants_snapshot(1));
    append(&mut log, &mut state, &batch(40..50));
    drop(log);
    let (_log, restored) = open(&path);
    assert_eq!(restored.snapshot(), state.snapshot());
    assert_eq!(restored.applied(), 40);
}

#[test]
fn every_commit_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir.path().join("registry.db"));
    assert_eq!(log.modes().unwrap(), ("wal".to_owned(), 2), "2 is synchronous=FULL");
}

#[test]
fn a_locked_file_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let _first = open(&path);
    let error = SqliteLog::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    assert!(error.to_string().contains("registry.db"));
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let garbage = [&b"{\"next_node\": 5}"[..], &[0xA5; 9000]];
    for content in garbage {
        std::fs::write(&path, content).unwrap();
        let error = SqliteLog::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    let other = dir.path().join("other.db");
    let db = rusqlite::Connection::open(&other).unwrap();
    db.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(db);
    let error = SqliteLog::open(&other).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    let missing = dir.path().join("no/such/folder.db");
    assert!(matches!(SqliteLog::open(&missing), Err(StoreError::Unwritable { .. })));
}

#[test]
fn damage_inside_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    append(&mut log, &mut state, &batch(1..4));
    append(&mut log, &mut state, &batch(4..6));
    append(&mut log, &mut state, &batch(6..9));
    drop(log);
    let edit = |sql: &str| {
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let mut log = SqliteLog::open(&path).unwrap();
        restore(&mut log).unwrap_err().to_string()
    };
    assert_eq!(edit("DELETE FROM log WHERE first=4"), "commands 4 to 5 are missing");
    let text = edit("UPDATE log SET commands=x'00' WHERE first=1");
    assert!(text.contains("registry.db") && text.contains("commands from 1 on"), "{text}");
    let text = edit("INSERT INTO snapshot VALUES (0, x'7b7d')");
    assert!(text.contains("snapshot cannot be read"), "{text}");
}

/// As on a full disk: the file may grow no further.
#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (log, mut state) = open(&path);
    let mut log = log.snapshot_after(10);
    append(&mut log, &mut state, &batch(1..20));
    log.limit_pages(1);
    assert!(log.wants_snapshot(1));
    assert!(log.replace(&state.snapshot()).is_err());
    assert!(!log.wants_snapshot(1), "not again with every batch");
    let many: Vec<_> = (0..500).flat_map(|_| batch(20..30)).collect();
    let refused = log.append(state.applied() + 1, &many).unwrap_err().to_string();
    assert!(refused.contains("registry.db") && refused.contains("full"), "{refused}");
    log.limit_pages(1_000_000);
    append(&mut log, &mut state, &batch(30..45));
    assert!(log.wants_snapshot(1), "but later");
    drop(log);
    let (_log, restored) = open(&path);
    assert_eq!(restored.snapshot(), state.snapshot());
}
