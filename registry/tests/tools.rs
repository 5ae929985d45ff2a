//! The sub-commands, as programs.

mod client;
mod stored;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command as Process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use client::{Client, Identity, Program, eventually};
use pilot_registry::store::Reader;
use serde_json::{Value, json};
use stored::{open, rows, write};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");

/// Status, standard output and standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Process::new(REGISTRY).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn good(args: &[&str]) -> String {
    let (status, out, err) = run(args);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{args:?}");
    out
}

/// One line that says what is wrong.
fn bad(args: &[&str]) -> String {
    let (status, out, err) = run(args);
    assert_eq!((status, out.as_str(), err.lines().count()), (Some(1), "", 1), "{args:?}: {err}");
    err
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn vector() -> Value {
    let path = format!("{}/../tests/vectors/registry_requests.json", env!("CARGO_MANIFEST_DIR"));
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    vectors["snapshot_file_after"].clone()
}

#[test]
fn every_sub_command_explains_itself() {
    let overview = good(&["help"]);
    for name in ["check", "backup", "export", "import"] {
        assert!(overview.contains(&format!("  {name} ")), "{overview}");
        for help in ["-help", "--help"] {
            assert!(good(&[name, help]).contains(&format!("{name}: ")), "{name}");
        }
        let text = bad(&[name]);
        assert!(text.contains(name) && text.contains("is missing"), "{text}");
        let text = bad(&[name, "-stor", "x"]);
        assert!(text.contains("did you mean store?"), "{text}");
    }
    assert!(overview.contains("  audit ") && good(&["audit", "-help"]).contains("verify"));
    assert!(good(&["-help"]).contains("-addr") && good(&["-help"]).contains("  check "));
    let text = bad(&["chekc", "-store", "x"]);
    assert!(text.contains("no such sub-command") && text.contains("backup"), "{text}");
}

#[test]
fn check_says_what_there_is_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let store = path.to_str().unwrap();
    let text = bad(&["check", "-store", store]);
    assert!(text.contains("registry.db") && text.contains("cannot be read"), "{text}");
    assert!(!path.exists());

    let (mut log, mut state) = open(&path);
    write(&mut log, &mut state, 0..100, 10);
    let text = bad(&["check", "-store", store]);
    assert!(text.contains("in use") && text.contains("pilot-registry backup"), "{text}");
    drop(log);
    let before = std::fs::read(&path).unwrap();
    let text = good(&["check", "-store", store]);
    assert!(text.contains("sound") && text.contains("100 commands after it"), "{text}");
    assert!(text.contains(&format!("{} nodes registered", state.len())), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let mut damaged = before.clone();
    let at = damaged.windows(6).position(|w| w == b"\"n75\"}" || w == b"\"n75\",").unwrap();
    damaged[at + 2] = b'8';
    std::fs::write(&path, &damaged).unwrap();
    let text = bad(&["check", "-store", store]);
    assert!(text.contains("registry.db") && text.contains("are damaged"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), damaged);
}

/// A page that no table reaches any more is of no consequence yet; SQLite's
/// list of free pages is, later.
#[test]
fn check_looks_at_the_structure_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    write(&mut log, &mut state, 0..2000, 500);
    use pilot_registry::store::CommandLog as _;
    log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
    drop(log);
    let mut bytes = std::fs::read(&path).unwrap();
    let free = u32::from_be_bytes(bytes[36..40].try_into().unwrap());
    assert!(free > 2, "there are free pages");
    bytes[39] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let text = bad(&["check", "-store", path.to_str().unwrap()]);
    assert!(text.contains("registry.db") && text.contains("reelist"), "{text}");
}

#[test]
fn a_backup_of_a_running_registry_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db").to_str().unwrap().to_owned();
    let registry =
        Program::start(REGISTRY, &["-addr", "127.0.0.1:0", "-register-rate=0", "-store", &store]);
    let addr = registry.addr("addr");
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for lane in 0..3u32 {
            let (stop, count) = (&stop, &count);
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                for batch in 0u32.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let requests: Vec<_> = (0..16)
                        .map(|n| Identity::new((lane << 20) + (batch << 4) + n).register())
                        .collect();
                    for reply in client.ask_all(&requests) {
                        assert_eq!(reply["type"], "register_ok", "{reply}");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for n in 0..3 {
            let before = count.load(Ordering::Relaxed);
            eventually("more is written", || count.load(Ordering::Relaxed) > before + 50);
            let acknowledged = count.load(Ordering::Relaxed);
            let to = dir.path().join(format!("backup-{n}.db"));
            let text = good(&["backup", "-store", &store, "-to", to.to_str().unwrap()]);
            assert!(text.contains("complete and sound"), "{text}");
            assert_eq!(mode(&to), 0o600);
            let (state, _) = Reader::open(&to).unwrap().state().unwrap();
            assert!(state.len() as u64 >= acknowledged, "all that was acknowledged before");
            assert!(good(&["check", "-store", to.to_str().unwrap()]).contains("sound"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // A backup is never written over anything.
    let text = bad(&["backup", "-store", &store, "-to", &store]);
    assert!(text.contains("there is such a file already"), "{text}");
    assert!(registry.terminate());
    // And a registry runs on one.
    let to = dir.path().join("backup-2.db");
    let registry =
        Program::start(REGISTRY, &["-addr", "127.0.0.1:0", "-store", to.to_str().unwrap()]);
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!(client.ask(json!({"type": "lookup", "node_id": 1}))["node_id"], 1);
    assert!(registry.terminate());
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_backup_of_a_damaged_file_fails_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let (mut log, mut state) = open(&path);
    write(&mut log, &mut state, 0..100, 10);
    drop(log);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("DELETE FROM log WHERE first=11").unwrap();
    drop(db);
    let to = dir.path().join("backup.db");
    let text = bad(&["backup", "-store", path.to_str().unwrap(), "-to", to.to_str().unwrap()]);
    assert!(text.contains("commands 11 to 20 are missing"), "{text}");
    let left = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n.to_string_lossy().contains("backup")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Times are not kept by a state, or are those of the writing; the order of
/// members says nothing.
fn without_times(mut file: Value) -> Value {
    for node in file["nodes"].as_object_mut().unwrap().values_mut() {
        let seen = node["last_seen"].take();
        assert!(seen.as_str().is_some_and(|text| text.ends_with('Z')), "{seen}");
    }
    for network in file["networks"].as_object_mut().unwrap().values_mut() {
        network["created"].take();
        network["members"].as_array_mut().unwrap().sort_by_key(Value::as_u64);
    }
    for table in ["handshake_inbox", "handshake_responses"] {
        let Some(inboxes) = file.get_mut(table) else { continue };
        for entry in inboxes.as_object_mut().unwrap().values_mut() {
            for entry in entry.as_array_mut().unwrap() {
                // To the second.
                let text = entry["timestamp"].as_str().unwrap()[..19].to_owned();
                entry["timestamp"] = text.into();
            }
        }
    }
    file
}

#[test]
fn the_published_file_goes_in_and_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut published = vector();
    published["handshake_inbox"] = json!({"2": [
        {"from_node_id": 4, "justification": "h\u{e9}llo <&>", "timestamp": "2026-11-20T12:19:14.5Z"}]});
    // A node that was removed keeps its key.
    let gone = Identity::new(77).public();
    published["pub_key_idx"][&gone] = 5.into();
    published["next_node"] = 6.into();
    std::fs::write(path("in.json"), published.to_string()).unwrap();
    let text = good(&["import", "-store", &path("new.db"), "-from", &path("in.json")]);
    assert!(text.contains("4 nodes registered, 5 keys, 1 trust pairs"), "{text}");
    assert_eq!(mode(&dir.path().join("new.db")), 0o600);
    good(&["check", "-store", &path("new.db")]);

    std::fs::write(path("out.json"), "an older one").unwrap();
    good(&["export", "-store", &path("new.db"), "-to", &path("out.json")]);
    assert_eq!(mode(&dir.path().join("out.json")), 0o600);
    let out: Value = serde_json::from_slice(&std::fs::read(path("out.json")).unwrap()).unwrap();
    assert_eq!(without_times(out), without_times(published));

    // The same again from what came out.
    good(&["import", "-store", &path("again.db"), "-from", &path("out.json")]);
    let state = |name: &str| Reader::open(path(name).as_ref()).unwrap().state().unwrap().0;
    assert_eq!(rows(&state("again.db")), rows(&state("new.db")));

    // And it is served: known keys keep their numbers, new ones get the next.
    let registry = Program::start(
        REGISTRY,
        &["-addr", "127.0.0.1:0", "-register-rate=0", "-store", &path("new.db")],
    );
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!(client.ask(json!({"type": "lookup", "node_id": 3}))["polo_score"], -7);
    assert_eq!(client.register(&Identity::new(77)), 5);
    assert_eq!(client.register(&Identity::new(78)), 6);
    // Also while it runs.
    good(&["export", "-store", &path("new.db"), "-to", &path("live.json")]);
    assert!(registry.terminate());
    let live: Value = serde_json::from_slice(&std::fs::read(path("live.json")).unwrap()).unwrap();
    assert_eq!((&live["next_node"], live["nodes"].as_object().unwrap().len()), (&7.into(), 6));
}

#[test]
fn what_cannot_be_imported_is_named_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let edit = |edit: &dyn Fn(&mut Value)| {
        let mut file = vector();
        edit(&mut file);
        file.to_string()
    };
    let cases = [
        ("{".to_owned(), "not a published state file"),
        (edit(&|f| f["nodes"]["2"]["public_key"] = "AAAA".into()), "node 2: its public_key"),
        (edit(&|f| f["nodes"]["2"]["hostname"] = "a_b".into()), "node 2: hostname must be"),
        (edit(&|f| f["trust_pairs"][0] = "1-3".into()), "trust_pairs \"1-3\""),
        (
            edit(&|f| f["nodes"]["4"]["public_key"] = f["nodes"]["2"]["public_key"].clone()),
            "two of them have one public_key",
        ),
    ];
    for (text, problem) in cases {
        std::fs::write(path("in.json"), text).unwrap();
        let text = bad(&["import", "-store", &path("new.db"), "-from", &path("in.json")]);
        assert!(text.contains("in.json") && text.contains(problem), "{text}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    std::fs::write(path("in.json"), vector().to_string()).unwrap();
    std::fs::write(path("new.db"), "mine").unwrap();
    let text = bad(&["import", "-store", &path("new.db"), "-from", &path("in.json")]);
    assert!(text.contains("new.db") && text.contains("there is such a file"), "{text}");
    // What a registry has of a file there stays, and nothing is left over.
    std::fs::write(path("part.db-wal"), "mine").unwrap();
    let text = bad(&["import", "-store", &path("part.db"), "-from", &path("in.json")]);
    assert!(text.contains("part.db-wal is there"), "{text}");
    assert_eq!(std::fs::read(path("part.db-wal")).unwrap(), b"mine");
    std::fs::remove_file(path("part.db-wal")).unwrap();
    good(&["import", "-store", &path("part.db"), "-from", &path("in.json")]);
    assert!(good(&["check", "-store", &path("part.db")]).contains("sound"));
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains(".part"), "{name}");
    }
    assert_eq!(std::fs::read(path("new.db")).unwrap(), b"mine");
    let text = bad(&["export", "-store", &path("none.db"), "-to", &path("out.json")]);
    assert!(text.contains("none.db") && !Path::new(&path("out.json")).exists(), "{text}");
}
