//! Files of layout 1, as earlier versions wrote them, become files of this
//! layout, all or nothing, and are kept.

mod client;
mod stored;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use pilot_registry::store::{Reader, SqliteLog, StoreError, restore};
use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use serde_json::{Value, json};
use stored::{open, rows};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");

fn key(n: u8) -> String {
    PublicKey([n; 32]).to_string()
}

fn snapshot() -> Value {
    json!({
        "version": 1, "applied": 40, "next_node": 6,
        "nodes": [
            {"id": 1, "key": key(1), "endpoint": "127.0.0.1:4000", "registered_by": 3,
             "owner": "alice@example.org", "hostname": "alice", "public": true,
             "tags": ["gpu", "web"], "polo_score": -7, "task_exec": true},
            {"id": 2, "key": key(2), "endpoint": "[::1]:5", "registered_by": 9},
            {"id": 4, "key": key(4), "endpoint": "10.0.0.1:1", "registered_by": 12},
        ],
        "keys": [[key(1), 1, true], [key(2), 2, false], [key(3), 3, false], [key(4), 4, false]],
        "owners": [["alice@example.org", 1], ["gone@example.org", 3]],
        "trust": [[1, 2, true, true], [1, 4, false, true]],
        "withdrawn": [[2, 4]],
        "requests": [[1, [{"from_node_id": 4, "justification": "hello", "timestamp": 99}]]],
        "answers": [[2, [{"from_node_id": 1, "accept": true, "timestamp": 100}]]],
    })
}

fn register(n: u8, hostname: &str) -> Value {
    json!({"at": 200, "op": {"register": {
        "key": key(n), "endpoint": "127.0.0.1:9", "owner": "", "hostname": hostname,
        "proven": false, "takeover": false}}})
}

/// A file of layout 1: a snapshot in two parts, and two batches after it.
fn layout_1(path: &Path) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL;
         CREATE TABLE log (first INTEGER PRIMARY KEY, commands BLOB NOT NULL);
         CREATE TABLE snapshot (part INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
         PRAGMA application_id=1346980948;
         PRAGMA user_version=1;",
    )
    .unwrap();
    let snapshot = snapshot().to_string().into_bytes();
    let (a, b) = snapshot.split_at(300);
    for (part, bytes) in [(0, a), (1, b)] {
        db.execute("INSERT INTO snapshot VALUES (?1, ?2)", rusqlite::params![part, bytes]).unwrap();
    }
    let batches = [
        (41, json!([register(20, "twenty"), register(3, "three")])),
        (43, json!([register(21, "")])),
    ];
    for (first, commands) in batches {
        let commands = commands.to_string().into_bytes();
        db.execute("INSERT INTO log VALUES (?1, ?2)", rusqlite::params![first, commands]).unwrap();
    }
}

fn kept(path: &Path) -> PathBuf {
    path.with_file_name("registry.db.layout1")
}

#[test]
fn layout_1_becomes_layout_2_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    layout_1(&path);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(Reader::open(&path), Err(StoreError::Older { layout: 1, .. })));

    let (log, state) = open(&path);
    assert_eq!((state.applied(), state.len()), (43, 6));
    let alice = state.named("alice").unwrap();
    assert_eq!((alice.record.id, alice.record.polo_score), (NodeId(1), -7));
    assert_eq!(alice.record.tags, ["gpu", "web"]);
    assert_eq!(state.named("three").unwrap().record.id, NodeId(3), "a key keeps its number");
    assert_eq!(state.named("twenty").unwrap().record.id, NodeId(6));
    assert!(state.is_mutual(NodeId(1), NodeId(2)) && !state.is_mutual(NodeId(1), NodeId(4)));
    assert!(state.has_stated(NodeId(4), NodeId(1)) && state.has_withdrawn(NodeId(2), NodeId(4)));
    assert!(state.has_handshakes(NodeId(1)) && state.has_handshakes(NodeId(2)));
    assert!(state.key(&PublicKey([1; 32])).unwrap().proven);
    assert!(!state.epoch().is_empty());

    assert_eq!(std::fs::read(kept(&path)).unwrap(), before, "the copy is the file as it was");
    assert_eq!(kept(&path).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(log);
    let (_log, again) = open(&path);
    assert_eq!((rows(&again), again.epoch()), (rows(&state), state.epoch()));
}

/// An empty file of layout 1 has neither snapshot nor commands.
#[test]
fn an_empty_file_of_layout_1_is_one_of_layout_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    layout_1(&path);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("DELETE FROM log; DELETE FROM snapshot").unwrap();
    drop(db);
    let (_log, state) = open(&path);
    assert_eq!((state.applied(), state.len()), (0, 0));
}

#[test]
fn a_damaged_file_of_layout_1_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    for (sql, problem) in [
        ("UPDATE snapshot SET bytes=x'00' WHERE part=1", "snapshot cannot be read"),
        ("DELETE FROM log WHERE first=41", "commands from 41 on are missing"),
        ("UPDATE log SET commands=x'5b' WHERE first=43", "commands from 43 on cannot be read"),
        ("DROP TABLE snapshot", "no such table"),
    ] {
        for file in ["registry.db", "registry.db-wal", "registry.db-shm"] {
            let _ = std::fs::remove_file(dir.path().join(file));
        }
        layout_1(&path);
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = std::fs::read(&path).unwrap();
        let text = SqliteLog::open(&path).unwrap_err().to_string();
        assert!(text.contains(problem), "{sql}: {text}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "{sql}");
    }
}

/// Killed at any moment, the file has one layout or the other, and gives the
/// same state.
#[test]
fn a_migration_that_is_cut_off_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    layout_1(&path);
    // As after a kill between the copy and the commit.
    std::fs::write(kept(&path), "half a copy").unwrap();
    std::fs::write(path.with_file_name("registry.db.layout1.part"), "half a copy").unwrap();
    let before = std::fs::read(&path).unwrap();
    let mut log = SqliteLog::open(&path).unwrap();
    assert_eq!(std::fs::read(kept(&path)).unwrap(), before);
    assert_eq!(restore(&mut log, &Default::default()).unwrap().applied(), 43);
}

#[test]
fn the_program_migrates_and_refuses_what_is_newer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    layout_1(&path);
    let store = path.to_str().unwrap();
    let registry = client::Program::start(REGISTRY, &["-addr", "127.0.0.1:0", "-store", store]);
    let mut client = client::Client::connect(registry.addr("addr"));
    let reply = client.ask(json!({"type": "resolve_hostname", "hostname": "twenty"}));
    assert_eq!(reply["node_id"], 6, "{reply}");
    assert!(registry.terminate());
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version=9").unwrap();
    let before = std::fs::read(&path).unwrap();
    let output = Process::new(REGISTRY)
        .args(["-addr", "127.0.0.1:0", "-log-level", "error", "-store", store])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    let written = format!("layout 9, written by version {}", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&written) && text.contains("run that version"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
