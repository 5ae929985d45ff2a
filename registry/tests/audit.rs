//! The audit log from outside: vectors that others can be checked by, every kind
//! of tampering, and a registry that is killed in the middle of writing.

mod client;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use client::{Client, Identity, PATIENCE, Program, config, eventually, with_registry};
use ed25519_dalek::SigningKey;
use pilot_registry::Config;
use pilot_registry::audit::chain::{Cut, SignedHead, content, hash, parse_hash};
use pilot_registry::audit::verify::{Report, Signed, verify};
use pilot_registry::audit::{AUDIT_FILE, KEY_FILE, export, public_key};
use pilot_registry::tools::audit::run;
use pilot_wire::registry::audit::AuditRecord;
use pilot_wire::registry::{FrameBuffer, PublicKey, append_frame};
use proptest::prelude::*;
use rusqlite::Connection;
use serde_json::{Value, json};

const KILLS: u32 = 8;
const CONNECTIONS: u32 = 3;
const PIPELINE: u32 = 16;

#[test]
fn vectors_of_the_chain() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../tests/vectors/audit.json")).unwrap();
    let mut seed = [0; 32];
    hex_into(vectors["seed"].as_str().unwrap(), &mut seed);
    let signing = SigningKey::from_bytes(&seed);
    let key = PublicKey(signing.verifying_key().to_bytes());
    assert_eq!(vectors["public_key"], key.to_string());
    let mut records: Vec<AuditRecord> = Vec::new();
    for link in vectors["chain"].as_array().unwrap() {
        let record: AuditRecord = serde_json::from_value(link["record"].clone()).unwrap();
        assert_eq!(String::from_utf8(content(&record)).unwrap(), link["content"]);
        let previous = parse_hash(&record.previous).unwrap();
        assert_eq!(Some(hash(&previous, &record)), parse_hash(&record.hash));
        records.push(record);
    }
    assert!(records.len() > 3);
    let heads: Vec<SignedHead> = serde_json::from_value(vectors["heads"].clone()).unwrap();
    for head in &heads {
        let again = parse_hash(&head.hash).unwrap();
        assert_eq!(SignedHead::sign(&signing, head.seq, &again, head.time), *head);
    }
    let cut: Cut = serde_json::from_value(vectors["cut"].clone()).unwrap();
    let previous = parse_hash(&cut.previous).unwrap();
    assert_eq!(Cut::sign(&signing, cut.first, &previous, cut.removed, cut.time), cut);
    let mut signed = Signed { heads, cuts: Vec::new() };
    let report = verify(&key, &signed, None, records.iter().cloned().map(Ok));
    assert!(report.is_sound(), "{report:?}");
    signed.cuts.push(cut);
    let report = verify(&key, &signed, None, records[2..].iter().cloned().map(Ok));
    assert!(report.is_sound() && report.first == 3, "{report:?}");
}

fn hex_into(text: &str, out: &mut [u8]) {
    hex::decode_to_slice(text, out).unwrap();
}

/// A registry's folder.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("registry.db")
    }

    fn log(&self) -> PathBuf {
        self.path(AUDIT_FILE)
    }

    fn key(&self) -> PublicKey {
        public_key(self.0.path()).unwrap()
    }

    fn config(&self) -> Config {
        Config { store: Some(self.store()), ..config() }
    }

    /// A folder with the same files.
    fn copy(&self) -> Self {
        let copy = Self::new();
        for entry in fs::read_dir(self.0.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                continue;
            }
            fs::copy(entry.path(), copy.path(entry.file_name().to_str().unwrap())).unwrap();
        }
        copy
    }

    /// Does something to the log that leaves its layout as it was.
    fn tamper(&self, edit: impl FnOnce(&Connection)) {
        let db = Connection::open(self.log()).unwrap();
        let sql = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'";
        let triggers: Vec<(String, String)> = db
            .prepare(sql)
            .unwrap()
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        for (name, _) in &triggers {
            db.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        edit(&db);
        for (_, sql) in &triggers {
            db.execute_batch(sql).unwrap();
        }
    }

    fn verify(&self) -> Report {
        export::verify_database(&self.log(), &self.key(), None).unwrap()
    }

    fn records(&self) -> Vec<AuditRecord> {
        let mut out = Vec::new();
        export::export(&self.log(), &self.key(), &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let records = lines.lines().filter_map(|line| line.strip_prefix("{\"record\":"));
        let record = |text: &str| serde_json::from_str(text.strip_suffix('}').unwrap()).unwrap();
        records.map(record).collect()
    }
}

/// Twenty records of many kinds, by a real registry.
fn lived_in() -> Place {
    let place = Place::new();
    with_registry(place.config(), |addr| {
        let mut client = Client::connect(addr);
        let keys: Vec<_> = (0..6).map(Identity::new).collect();
        let mut nodes = Vec::new();
        for key in &keys {
            let mut request = key.register();
            request["owner"] = "ops".into();
            request["request_id"] = "r-1".into();
            nodes.push(client.ask(request)["node_id"].as_u64().unwrap());
        }
        for (key, id) in keys.iter().zip(&nodes) {
            let peer = id % 6 + 1;
            for request in [
                key.signed("set_hostname", *id, json!({"hostname": format!("n{id}")})),
                key.about("report_trust", "report_trust", *id, peer, json!({})),
            ] {
                assert_eq!(client.ask(request.clone()).get("error"), None, "{request}");
            }
        }
        let taken = keys[0].signed("set_hostname", 1, json!({"hostname": "n2"}));
        assert_eq!(client.ask(taken)["code"], "hostname_taken");
        let revoke = keys[0].about("revoke_trust", "revoke_trust", 1, 2, json!({}));
        assert_eq!(client.ask(revoke)["type"], "revoke_trust_ok");
    });
    let report = place.verify();
    assert!(report.is_sound() && report.records == 20, "{report:?}");
    place
}

#[track_caller]
fn assert_found(place: &Place, what: &str, edit: impl FnOnce(&Connection)) {
    let copy = place.copy();
    copy.tamper(edit);
    let report = copy.verify();
    let found = report.problems.iter().any(|problem| problem.contains(what));
    assert!(found, "{what:?} is not in {:?}", report.problems);
}

#[track_caller]
fn assert_sql_is_found(place: &Place, what: &str, sql: &str) {
    assert_found(place, what, |db| db.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}")));
}

#[test]
fn every_edit_of_a_record_is_found_and_named() {
    let place = lived_in();
    // Read before: nothing of the edit itself is the reason.
    let columns: Vec<(String, String)> = Connection::open(place.log())
        .unwrap()
        .prepare("SELECT name, type FROM pragma_table_info('records')")
        .unwrap()
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(columns.len(), 21);
    for (column, kind) in &columns {
        for seq in [1, 9, 20] {
            let value = match (column.as_str(), kind.as_str()) {
                ("seq", _) => "seq + 100",
                ("result", _) => "iif(result = 'denied', 'allowed', 'denied')",
                ("address", _) => "'0:0000.0000.0063'",
                (_, "INTEGER") => "coalesce(column, 0) + 1",
                (_, "TEXT") => "coalesce(column, '') || 'x'",
                _ => "randomblob(32)",
            }
            .replace("column", column);
            let sql = format!("UPDATE records SET {column} = {value} WHERE seq = {seq}");
            let what = if column == "seq" {
                format!("record {seq} is missing")
            } else {
                format!("record {seq}: ")
            };
            // The last one has nothing behind it that would be missed.
            let what = if column == "seq" && seq == 20 { "records 20 to 119".into() } else { what };
            assert_sql_is_found(&place, &what, &sql);
        }
    }
}

#[test]
fn removing_reordering_inserting_and_doubling_are_found_and_named() {
    let place = lived_in();
    let delete = |range: &str| format!("DELETE FROM records WHERE seq {range}");
    assert_sql_is_found(&place, "record 1 is missing", &delete("= 1"));
    assert_sql_is_found(&place, "records 1 to 4 are missing", &delete("< 5"));
    assert_sql_is_found(&place, "record 11 is missing", &delete("= 11"));
    assert_sql_is_found(&place, "records 7 to 9 are missing", &delete("IN (7, 8, 9)"));
    assert_sql_is_found(&place, "records 20 to 20 are missing at the end", &delete("= 20"));
    assert_sql_is_found(&place, "records 15 to 20 are missing at the end", &delete(">= 15"));
    assert_sql_is_found(&place, "records 1 to 20 are missing at the end", &delete("> 0"));
    // Numbers closed up behind a gap.
    let closed = format!("{}; UPDATE records SET seq = seq - 1 WHERE seq > 7", delete("= 7"));
    assert_sql_is_found(&place, "record 7: it does not follow", &closed);
    let swapped = "UPDATE records SET seq = -5 WHERE seq = 5;
                   UPDATE records SET seq = 5 WHERE seq = 6;
                   UPDATE records SET seq = 6 WHERE seq = -5";
    assert_sql_is_found(&place, "record 5: it does not follow", swapped);
    let rest = "time, command, kind, name, node, address, public_key, owner, external_identity, \
                source, operation, object, result, code, rule, detail, request_id, count, \
                previous, hash";
    let copied =
        |seq: &str| format!("INSERT INTO records SELECT {seq}, {rest} FROM records WHERE seq = 3");
    assert_sql_is_found(&place, "record 21: it does not follow", &copied("21"));
    assert_sql_is_found(&place, "record 0: it stands before the first", &copied("0"));
    assert_sql_is_found(&place, "cannot be read", &copied("-1"));
    let inserted = format!(
        "UPDATE records SET seq = seq + 1000 WHERE seq > 9;
         UPDATE records SET seq = seq - 999 WHERE seq > 9; {}",
        copied("10")
    );
    assert_sql_is_found(&place, "record 10: it does not follow", &inserted);
    // Twice under one number: the table has to be another.
    let doubled = "PRAGMA writable_schema = ON;
                   CREATE TABLE more AS SELECT * FROM records;
                   INSERT INTO more SELECT * FROM records WHERE seq = 4;
                   DROP TABLE records;
                   ALTER TABLE more RENAME TO records;";
    assert_sql_is_found(&place, "record 4: it stands twice", doubled);
    assert_sql_is_found(&place, "the layout was changed: \"CREATE TABLE records\"", doubled);
}

/// Gives every record from `seq` on its hash anew.
fn chain_anew(db: &Connection, place: &Place, seq: u64, change: impl Fn(&mut AuditRecord)) {
    let records = place.records();
    let mut last = parse_hash(&records[seq as usize - 1].previous).unwrap();
    for mut record in records.into_iter().skip(seq as usize - 1) {
        if record.seq == seq {
            change(&mut record);
            db.execute("UPDATE records SET object = ?2 WHERE seq = ?1", (seq, &record.object))
                .unwrap();
        }
        let previous = last;
        last = hash(&last, &record);
        let sql = "UPDATE records SET previous = ?2, hash = ?3 WHERE seq = ?1";
        db.execute(sql, (record.seq, previous, last)).unwrap();
    }
    // The newest head names what is there now; nobody can sign that.
    db.execute("UPDATE heads SET hash = ?1 WHERE seq = 20", [hex::encode(last)]).unwrap();
}

#[test]
fn a_chain_that_was_made_anew_and_false_heads_are_found() {
    let place = lived_in();
    let other = |record: &mut AuditRecord| record.object = "node 99".to_owned();
    let heads = export::heads(&place.log()).unwrap();
    // One stays for ever, at the beginning, and there is the newest.
    assert_eq!((heads.len(), heads[1].seq), (2, 20));
    assert_found(&place, "head 20: its signature is not by the registry's key", |db| {
        chain_anew(db, &place, 12, other);
    });
    // Without it, nobody vouches for the end.
    let covered = format!("records {} to 20: no signed head covers them", heads[0].seq + 1);
    assert_found(&place, &covered, |db| {
        chain_anew(db, &place, 12, other);
        db.execute_batch("DELETE FROM heads WHERE seq = 20").unwrap();
    });
    // With the head of before it is clear which record is not the one.
    assert_found(&place, "record 20: it is not the one that a signed head names", |db| {
        chain_anew(db, &place, 12, other);
        db.execute("UPDATE heads SET hash = ?1 WHERE seq = 20", [&heads[1].hash]).unwrap();
    });
    // Signed by another key.
    let copy = place.copy();
    let intruder = SigningKey::from_bytes(&[9; 32]);
    copy.tamper(|db| {
        chain_anew(db, &place, 12, other);
        let hash: [u8; 32] =
            db.query_row("SELECT hash FROM records WHERE seq = 20", [], |r| r.get(0)).unwrap();
        let head = SignedHead::sign(&intruder, 20, &hash, heads[1].time);
        let sql = "UPDATE heads SET hash = ?1, signature = ?2 WHERE seq = 20";
        db.execute(sql, (head.hash, head.signature.to_string())).unwrap();
    });
    let report = copy.verify();
    assert!(report.problems[0].starts_with("head 20: its signature"), "{report:?}");
    let intruders = PublicKey(intruder.verifying_key().to_bytes());
    let report = export::verify_database(&copy.log(), &intruders, None).unwrap();
    assert!(report.problems[0].starts_with("head "), "the older head is another's: {report:?}");
    let untouched = export::verify_database(&place.log(), &intruders, None).unwrap();
    assert!(!untouched.is_sound());

    for sql in [
        "UPDATE heads SET time = time + 1 WHERE seq = 20",
        "UPDATE heads SET signature = 'nonsense' WHERE seq = 20",
        "UPDATE heads SET signature = (SELECT signature FROM heads WHERE seq < 20) WHERE seq = 20",
        "UPDATE heads SET hash = upper(hash) WHERE seq = 20",
    ] {
        assert_sql_is_found(&place, "head 20: its signature", sql);
    }
    assert_sql_is_found(
        &place,
        "head 19: its signature",
        "UPDATE heads SET seq = 19 WHERE seq = 20",
    );
    assert_sql_is_found(&place, "there is no signed head", "DELETE FROM heads");
    let cut = "DELETE FROM records WHERE seq < 5; INSERT INTO cuts VALUES (5, (SELECT \
               lower(hex(previous)) FROM records WHERE seq = 5), 4, 1763640095, 'none')";
    assert_sql_is_found(&place, "cut before record 5: its signature", cut);
}

#[test]
fn the_file_itself_is_looked_at() {
    let place = lived_in();
    // Triggers that are gone, an index that hides a record.
    let copy = place.copy();
    let db = Connection::open(copy.log()).unwrap();
    db.execute_batch("DROP TRIGGER records_are_not_removed").unwrap();
    drop(db);
    let problems = copy.verify().problems;
    assert!(problems[0].contains("\"CREATE TRIGGER records_are_not_removed\""), "{problems:?}");
    assert_sql_is_found(
        &place,
        "the layout was changed",
        "DROP INDEX by_owner; CREATE INDEX by_owner ON records (owner) WHERE owner = 'x'",
    );
    let spaces = "UPDATE records SET address = '0:0000.0000.00' || '0' || '1' WHERE seq = 1";
    assert_sql_is_found(&place, "record 1 cannot be read", &spaces.replace("'0' || '1'", "'zz'"));
    assert_sql_is_found(
        &place,
        "record 1 cannot be read",
        "UPDATE records SET address = replace(address, '0:', '00:') WHERE seq = 1",
    );
    assert_sql_is_found(
        &place,
        "record 5 cannot be read",
        "PRAGMA ignore_check_constraints = ON; UPDATE records SET name = '' WHERE seq = 5",
    );
    // Bytes in the middle of the file.
    let copy = place.copy();
    Connection::open(copy.log())
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let mut bytes = fs::read(copy.log()).unwrap();
    // All of them: one may lie where nothing is stored any more.
    let found = bytes.windows(12).enumerate().filter(|(_, w)| w == b"set_hostname");
    let found: Vec<usize> = found.map(|(at, _)| at).collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at] = b'S';
    }
    fs::write(copy.log(), bytes).unwrap();
    assert!(!copy.verify().is_sound());
}

/// Runs `pilot-registry audit` with these words.
fn audit(words: &[&str]) -> bool {
    run(words.iter().map(|w| (*w).to_owned())) == ExitCode::SUCCESS
}

#[test]
fn what_was_once_true_is_told_from_what_is_by_a_noted_head_or_the_state() {
    let place = lived_in();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let noted = export::heads(&place.log()).unwrap().pop().unwrap();
    let noted = format!("{}:{}", noted.seq, noted.hash);
    assert!(audit(&["verify", "-store", &text(place.store()), "-head", &noted]));
    assert!(audit(&["verify", &text(place.log()), "--head", &noted]));
    assert!(
        audit(&["heads", &text(place.log())]) && audit(&["key", "-store", &text(place.store())])
    );
    let lines = text(place.path("audit.jsonl"));
    assert!(audit(&["export", "-out", &lines, &text(place.log())]));
    assert!(!audit(&["export", "-out", &lines, &text(place.log())]), "it is there already");
    assert!(audit(&["verify", &lines]));
    for wrong in [
        &["verify"][..],
        &["verify", &lines, "-head", "x"],
        &["verify", &lines, "-key", "short"],
        &["verify", &lines, "-nonsense", "x"],
        &["verify", &lines, "-key", &PublicKey([3; 32]).to_string()],
        &["forget", &lines],
    ] {
        assert!(!audit(wrong), "{wrong:?}");
    }
    // Back to the first head that was signed.
    let copy = place.copy();
    copy.tamper(|db| {
        let rolled = "DELETE FROM heads WHERE seq > (SELECT min(seq) FROM heads);
                      DELETE FROM records WHERE seq > (SELECT min(seq) FROM heads)";
        db.execute_batch(rolled).unwrap();
    });
    assert!(copy.verify().is_sound(), "it was so once");
    assert!(!audit(&["verify", &text(copy.log()), "-head", &noted]));
    assert!(!audit(&["verify", "-store", &text(copy.store())]));
    // The state knows what must come of its commands.
    let copy = place.copy();
    fs::remove_file(copy.store()).unwrap();
    assert!(!audit(&["verify", "-store", &text(copy.store())]), "no state");
    fs::remove_file(copy.path(KEY_FILE)).unwrap();
    assert!(!audit(&["verify", &text(copy.log())]), "no key");
    let key = place.key().to_string();
    assert!(audit(&["verify", &text(copy.log()), "-key", &key]));
}

fn lines_of(text: &str) -> Vec<String> {
    text.split_inclusive('\n').map(str::to_owned).collect()
}

#[derive(Clone, Debug)]
enum Edit {
    Byte(usize, u8),
    RemoveByte(usize),
    AddByte(usize, u8),
    RemoveLine(usize),
    DoubleLine(usize, usize),
    SwapLines(usize, usize),
    CutAfter(usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    let place = 0usize..1_000_000;
    prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        1 => place.clone().prop_map(Edit::RemoveByte),
        1 => (place.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::AddByte(at, byte)),
        1 => place.clone().prop_map(Edit::RemoveLine),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Edit::DoubleLine(a, b)),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Edit::SwapLines(a, b)),
        1 => place.prop_map(Edit::CutAfter),
    ]
}

fn edited(whole: &[u8], edit: &Edit) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let mut lines = lines_of(std::str::from_utf8(whole).unwrap());
    let (size, count) = (bytes.len(), lines.len());
    match *edit {
        Edit::Byte(at, byte) => bytes[at % size] = byte,
        Edit::RemoveByte(at) => drop(bytes.remove(at % size)),
        Edit::AddByte(at, byte) => bytes.insert(at % (size + 1), byte),
        Edit::CutAfter(at) => bytes.truncate(at % size),
        Edit::RemoveLine(at) => drop(lines.remove(at % count)),
        Edit::DoubleLine(from, to) => lines.insert(to % (count + 1), lines[from % count].clone()),
        Edit::SwapLines(a, b) => lines.swap(a % count, b % count),
    }
    match edit {
        Edit::RemoveLine(_) | Edit::DoubleLine(..) | Edit::SwapLines(..) => {
            lines.concat().into_bytes()
        }
        _ => bytes,
    }
}

#[test]
fn any_single_edit_of_an_export_is_found() {
    let place = lived_in();
    let mut whole = Vec::new();
    let contents = export::export(&place.log(), &place.key(), &mut whole).unwrap();
    assert_eq!((contents.records, contents.heads, contents.first), (20, 2, 1));
    let key = place.key();
    let sound = |bytes: &[u8]| export::verify_export(bytes, &key, None).unwrap().is_sound();
    assert!(sound(&whole));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
    let checked = runner.run(&edits(), |edit| {
        let bytes = edited(&whole, &edit);
        // Some edits are none: a byte that was so, a line in its own place.
        prop_assert_eq!(sound(&bytes), bytes == whole, "{:?}", edit);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn a_running_registry_can_be_verified_and_says_who_did_what() {
    let place = Place::new();
    with_registry(place.config(), |addr| {
        let mut client = Client::connect(addr);
        let identity = Identity::new(1);
        let id = client.register(&identity);
        client.ask(identity.signed("set_visibility", id, json!({"public": true})));
        eventually("both are in the log", || place.verify().records == 2);
        let records = place.records();
        let local = client.stream.local_addr().unwrap().to_string();
        assert_eq!(records[1].source, local);
        assert_eq!(records[1].actor.public_key, identity.public());
        assert_eq!((records[1].operation.as_str(), records[1].command), ("set_visibility", 2));
        assert!(audit(&["verify", "-store", place.store().to_str().unwrap()]));
    });
    assert_eq!(place.verify().records, 2);
}

fn start(store: &Path) -> Program {
    let binary = env!("CARGO_BIN_EXE_pilot-registry");
    let store = store.to_str().unwrap();
    Program::start(binary, &["-addr", "127.0.0.1:0", "-store", store, "--register-rate=0"])
}

/// Registers nodes, 16 requests at a time, until the far end dies; returns the
/// nodes that were acknowledged.
fn write_until_killed(addr: SocketAddr, lane: u32, count: &AtomicUsize) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut input = FrameBuffer::new();
    for batch in 0u32.. {
        let mut out = Vec::new();
        for n in 0..PIPELINE {
            append_frame(&mut out, &Identity::new((lane << 20) + (batch << 4) + n).register())
                .unwrap();
        }
        if stream.write_all(&out).is_err() {
            break;
        }
        for _ in 0..PIPELINE {
            let Some(reply) = next_reply(&mut stream, &mut input) else { return acknowledged };
            assert_eq!(reply["type"], "register_ok", "{reply}");
            acknowledged.insert(reply["node_id"].as_u64().unwrap());
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    acknowledged
}

/// The next whole answer; `None` once the far end is dead.
fn next_reply(stream: &mut TcpStream, input: &mut FrameBuffer) -> Option<Value> {
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(body) = input.next_body().unwrap() {
            return Some(serde_json::from_slice(body).unwrap());
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => input.push(&chunk[..n]),
            _ => return None,
        }
    }
}

#[test]
fn kill_9_leaves_a_sound_log_with_every_acknowledged_operation() {
    let place = Place::new();
    let mut acknowledged = BTreeSet::new();
    for kill in 0..KILLS {
        let registry = start(&place.store());
        let addr = registry.addr("addr");
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..CONNECTIONS)
                .map(|lane| {
                    let (lane, count) = (1 + kill * CONNECTIONS + lane, &count);
                    scope.spawn(move || write_until_killed(addr, lane, count))
                })
                .collect();
            // Different each time, so that the kill meets different moments.
            let enough = 40 + 53 * kill as usize;
            eventually("enough writes are acknowledged", || {
                count.load(Ordering::Relaxed) >= enough
            });
            registry.kill();
            for lane in lanes {
                acknowledged.extend(lane.join().unwrap());
            }
        });
        // As it was left: it may lack the last records, but is sound.
        let report = place.verify();
        assert!(report.is_sound(), "{:?}", report.problems);
    }
    let registry = start(&place.store());
    // What was made again from the commands is there before it serves.
    let audited: BTreeSet<_> = place
        .records()
        .into_iter()
        .filter(|r| r.operation == "register")
        .map(|r| u64::from(r.actor.node_id.unwrap().0))
        .collect();
    let lost: Vec<_> = acknowledged.difference(&audited).collect();
    assert!(lost.is_empty(), "no record of nodes {lost:?}");
    assert!(place.verify().is_sound());
    assert!(registry.terminate());
    // Record for record what the commands give.
    assert!(audit(&["verify", "-store", place.store().to_str().unwrap()]));
}
