//! Damage to the file, wherever it is: opening it names the problem, or gives
//! exactly the state that was there; never another one, and never a panic.

mod client;
mod stored;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use client::{Client, Identity, Program};
use pilot_registry::store::{CommandLog as _, Reader, SqliteLog, restore};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use stored::{Rows, command, open, rows, write};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");
/// Damaged copies that are read, and that are opened for writing.
const FLIPS: (usize, usize) = (4000, 300);

/// The state, or what is wrong, in one line that names the file.
fn read(path: &Path) -> Result<Rows, String> {
    let read = Reader::open(path)
        .map_err(|e| e.to_string())
        .and_then(|reader| reader.state().map_err(|e| e.to_string()));
    read.map(|(state, _)| rows(&state))
}

fn load(path: &Path) -> Result<Rows, String> {
    let mut log = SqliteLog::open(path).map_err(|e| e.to_string())?;
    restore(&mut log, &Default::default()).map(|state| rows(&state)).map_err(|e| e.to_string())
}

/// A closed file with a checkpoint, commands after it, and free pages inside.
fn closed(path: &Path) -> Rows {
    let (mut log, mut state) = open(path);
    write(&mut log, &mut state, 0..400, 40);
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    write(&mut log, &mut state, 400..430, 10);
    rows(&state)
}

#[test]
fn a_flipped_byte_is_named_or_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let expected = closed(&path);
    let good = std::fs::read(&path).unwrap();
    let copy = dir.path().join("copy.db");
    let mut random = StdRng::seed_from_u64(11);
    let mut named = 0;
    let mut attempt = |n: usize, look: &dyn Fn(&Path) -> Result<Rows, String>| {
        // The first page says the most; every byte of its head has its turn.
        let at = if n < 200 { n } else { random.random_range(0..good.len()) };
        let mut bad = good.clone();
        bad[at] ^= random.random_range(1..=255u8);
        for ending in ["-wal", "-shm", ".lock", ".layout1"] {
            let _ = std::fs::remove_file(dir.path().join(format!("copy.db{ending}")));
        }
        std::fs::write(&copy, &bad).unwrap();
        match look(&copy) {
            Ok(found) => assert!(found == expected, "byte {at} changed the state unseen"),
            Err(text) => {
                assert_eq!(text.lines().count(), 1, "byte {at}: {text}");
                named += 1;
            }
        }
    };
    (0..FLIPS.0).for_each(|n| attempt(n, &read));
    (0..FLIPS.1).for_each(|n| attempt(n, &load));
    assert!(named > FLIPS.0 / 4, "much of the file matters: {named}");
}

#[test]
fn a_truncated_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    closed(&path);
    let good = std::fs::read(&path).unwrap();
    for length in (0..good.len()).step_by(1021).chain([good.len() - 1]) {
        std::fs::write(&path, &good[..length]).unwrap();
        for look in [read, load] {
            let text = look(&path).unwrap_err();
            assert!(text.contains("registry.db"), "{length}: {text}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), good[..length], "it was left as it is");
    }
}

/// What was not synced when the machine died is cut off somewhere: what is left
/// is the state after some whole batch, and a longer file never gives less.
#[test]
fn a_torn_log_is_cut_at_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    let mut after = vec![rows(&state)];
    let mut next = 0;
    for batch in 0..12 {
        write(&mut log, &mut state, next..next + 4 + 3 * batch, 64);
        next += 4 + 3 * batch;
        after.push(rows(&state));
        if batch == 6 {
            log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
        }
    }
    let main = std::fs::read(&path).unwrap();
    let wal = std::fs::read(dir.path().join("registry.db-wal")).unwrap();
    let copy = dir.path().join("copy.db");
    let torn = dir.path().join("copy.db-wal");
    let look = |bytes: &[u8]| {
        let _ = std::fs::remove_file(dir.path().join("copy.db-shm"));
        std::fs::write(&copy, &main).unwrap();
        std::fs::write(&torn, bytes).unwrap();
        read(&copy)
    };
    let mut at = 0;
    for length in (0..wal.len()).step_by(487).chain([wal.len()]) {
        let found = look(&wal[..length]);
        // Before the file was first written it had no name.
        let Ok(found) = found else { panic!("{length}: {}", found.unwrap_err()) };
        if found.is_empty() {
            assert_eq!(at, 0, "{length}");
            continue;
        }
        let place = after.iter().position(|rows| *rows == found);
        let place = place.unwrap_or_else(|| panic!("{length}: half a batch"));
        assert!(place >= at, "{length}");
        at = place;
    }
    assert_eq!(at, 12, "the whole file gives all");
    // Bits that flip in it cut it off there, or are named.
    let mut random = StdRng::seed_from_u64(12);
    for _ in 0..300 {
        let mut bad = wal.clone();
        bad[random.random_range(0..wal.len())] ^= random.random_range(1..=255u8);
        if let Ok(found) = look(&bad) {
            assert!(found.is_empty() || after.contains(&found), "never what never was");
        }
    }
}

#[test]
fn a_file_taken_away_is_named_and_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let registry = Program::start(
        REGISTRY,
        &["-addr", "127.0.0.1:0", "-register-rate=0", "-store", path.to_str().unwrap()],
    );
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!(client.register(&Identity::new(1)), 1);
    let away = dir.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    let refused = client.ask(Identity::new(2).register());
    assert_eq!(refused["code"], "storage", "{refused}");
    // What is known can still be asked.
    assert_eq!(client.ask(json!({"type": "lookup", "node_id": 1}))["node_id"], 1);
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(client.register(&Identity::new(3)), 2, "back in its place");
    assert!(registry.terminate());
    let (state, _) = Reader::open(&path).unwrap().state().unwrap();
    assert_eq!(state.len(), 2);
}

/// A limit on the size of files fails in the middle of a write: what is on disk
/// then is unknown, so the registry ends, and says so.
#[test]
fn a_write_that_fails_half_way_ends_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    drop(open(&path));
    let limited = format!(
        "trap '' XFSZ; ulimit -f 512; exec {REGISTRY} -addr 127.0.0.1:0 -register-rate 0 -store {}",
        path.display()
    );
    let mut child = Process::new("sh")
        .args(["-c", &limited])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let registry = client::ready_line(&mut child);
    let mut client = Client::connect(registry["addr"].as_str().unwrap().parse().unwrap());
    assert_eq!(client.register(&Identity::new(1)), 1);
    let mut acknowledged = 1;
    for _ in 0..4000 {
        // A command that the audit log, which is under the limit too, has
        // nothing to say of.
        let request = json!({"type": "set_polo_score", "node_id": 1, "polo_score": 0});
        client.send_raw(request.to_string().as_bytes());
        match client.receive() {
            Some(reply) if reply["type"] == "set_polo_score_ok" => acknowledged += 1,
            Some(reply) => {
                assert_eq!(reply["code"], "storage", "{reply}");
                break;
            }
            None => break,
        }
    }
    assert!((2..4000).contains(&acknowledged), "{acknowledged} before the limit");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("registry.db") && last.contains("start it again"), "{text}");
    let (state, _) = Reader::open(&path).unwrap().state().unwrap();
    assert!(state.applied() >= acknowledged, "{acknowledged} were acknowledged");
    assert!(state.applied() <= acknowledged + 1, "what was refused is there, or is not");
    // And goes on where there is room.
    let (mut log, mut state) = open(&path);
    log.append(state.applied() + 1, &[command(1)]).unwrap();
    let _ = state.apply(&command(1));
}

/// The one line of a registry that does not start, run so that modes count.
fn failure(program: &Path, path: &Path) -> String {
    let mut process = Process::new(program);
    process.args(["-addr", "127.0.0.1:0", "-log-level", "error", "-store"]).arg(path);
    if is_root() {
        process.uid(65534).gid(65534);
    }
    let output = process.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    text
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

#[test]
fn a_read_only_file_or_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // Where others can run it.
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("pilot-registry");
    std::fs::copy(REGISTRY, &program).unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(programs.path(), 0o755);
    mode(&program, 0o755);
    let path = dir.path().join("registry.db");
    drop(open(&path));
    std::fs::remove_file(dir.path().join("registry.db.lock")).unwrap();
    mode(&path, 0o444);
    mode(dir.path(), 0o555);
    let before = std::fs::read(&path).unwrap();
    for name in ["registry.db", "new.db"] {
        let text = failure(&program, &dir.path().join(name));
        assert!(text.contains(name) && text.contains("check the folder"), "{text}");
    }
    mode(dir.path(), 0o777);
    let text = failure(&program, &path);
    assert!(text.contains("registry.db") && text.contains("cannot be opened"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    mode(dir.path(), 0o755);
}
