//! The file: what comes back, what is refused at the start, what is removed, who
//! is told, and that nothing is acknowledged that cannot be audited.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{RwLock, mpsc};
use std::time::Instant;

use pilot_host::Deliver;
use pilot_plugin::Delivery;
use pilot_wire::Address;
use pilot_wire::registry::audit::{AuditActor, AuditResult};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::store::MemoryLog;
use crate::writer::{Followers, Writer};

/// A folder and the state file that would be in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("registry.db")
    }

    fn open(&self) -> Audit {
        self.try_open(Retention::default()).unwrap()
    }

    fn try_open(&self, retention: Retention) -> Result<Audit, AuditError> {
        Audit::open(Some(&self.store()), retention)
    }

    fn log(&self) -> PathBuf {
        self.0.path().join(AUDIT_FILE)
    }

    #[track_caller]
    fn assert_sound(&self) -> verify::Report {
        let key = public_key(self.0.path()).unwrap();
        let report = export::verify_database(&self.log(), &key, None).unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
        report
    }
}

/// A record of one of few actors, operations and objects.
fn record(n: u64) -> AuditRecord {
    let node = n % 5;
    let node_id = (node > 0).then(|| NodeId(u32::try_from(node).unwrap()));
    AuditRecord {
        time: 1000 + n / 3,
        command: n + 1,
        actor: AuditActor {
            kind: "node".to_owned(),
            name: if node == 0 { "root".to_owned() } else { String::new() },
            node_id,
            address: node_id.map(Address::backbone),
            public_key: node_id
                .map(|id| PublicKey([id.0 as u8; 32]).to_string())
                .unwrap_or_default(),
            owner: if n.is_multiple_of(3) { "ops".to_owned() } else { String::new() },
            external_identity: if n.is_multiple_of(7) {
                "x@example.com".to_owned()
            } else {
                String::new()
            },
        },
        source: "192.0.2.1:5".to_owned(),
        operation: ["register", "set_tags", "rotate_key"][(n % 3) as usize].to_owned(),
        object: format!("node {}", n % 4),
        result: if n % 6 == 1 { AuditResult::Denied } else { AuditResult::Allowed },
        request_id: format!("c{}", n + 1),
        count: 1,
        ..AuditRecord::default()
    }
}

fn all(audit: &Audit) -> Vec<AuditRecord> {
    let mut records = Vec::new();
    let mut filter = AuditFilter { limit: Some(MAX_LIMIT), ..AuditFilter::default() };
    loop {
        let page = audit.page(&filter).unwrap();
        records.extend(page.records);
        let Some(next) = page.next else { return records };
        filter.after = Some(next);
    }
}

fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !attempt() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_was_brought_comes_back_in_a_chain() {
    let place = Place::new();
    let audit = place.open();
    for name in [AUDIT_FILE, KEY_FILE] {
        let mode = std::fs::metadata(place.0.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(audit.head(), None);
    let mut live = audit.subscribe().unwrap();
    audit.append(3, (0..3).map(record).collect());
    audit.append(4, Vec::new());
    audit.append(9, (3..9).map(record).collect());
    audit.flush().unwrap();
    let records = all(&audit);
    for (n, (kept, seq)) in records.iter().zip(1..).enumerate() {
        let unplaced =
            AuditRecord { seq: 0, previous: String::new(), hash: String::new(), ..kept.clone() };
        assert_eq!((unplaced, kept.seq), (record(n as u64), seq));
        assert_eq!(*live.try_recv().unwrap(), *kept);
    }
    assert_eq!(records.len(), 9);
    let head = audit.head().unwrap();
    assert_eq!((head.seq, &head.hash), (9, &records[8].hash));
    assert!(head.is_by(&audit.public_key().unwrap()));
    assert_eq!(place.assert_sound().records, 9, "beside who writes it");
    audit.close();
    assert_eq!(audit.flush(), Err(AuditError::Closed));
    drop(audit);
    let audit = place.open();
    assert_eq!((audit.last_command(), audit.head()), (9, Some(head)));
    audit.append(10, vec![record(9)]);
    drop(audit);
    assert_eq!(place.assert_sound().last.0, 10, "what was brought is written at the end");
}

#[test]
fn replay_gives_what_is_missing_byte_for_byte() {
    let mut world = World::default();
    let mut batches = Vec::new();
    for key in 1..40 {
        batches.push(world.apply(Op::Register(register(key))));
        batches.push(world.apply(Op::SetVisibility { by: by(key), public: key % 2 == 0 }));
    }
    let registered_by = |n| world.state.node(NodeId(n)).unwrap().record.registered_by;
    // Several records of one command.
    let silent = (1..9).map(|n| (NodeId(n), registered_by(n))).collect();
    batches.push(world.apply(Op::Reap { silent }));
    let whole = Place::new();
    let audit = whole.open();
    let applied = world.commands.len() as u64;
    audit.append(applied, batches.concat());
    audit.flush().unwrap();
    let expected = all(&audit);
    assert!(expected.len() > 60);
    for kept in [0, 1, 7, batches.len() - 1, batches.len()] {
        let place = Place::new();
        // The same key is of no consequence for hashes.
        let audit = place.open();
        for (batch, number) in batches[..kept].iter().zip(1..) {
            audit.append(number, batch.clone());
        }
        drop(audit);
        let audit = place.open();
        let mut state = State::default();
        let mut replay = Replay::new(&audit);
        for command in &world.commands {
            let _ = replay.apply(&mut state, command);
        }
        replay.end(&state).unwrap();
        assert!(all(&audit) == expected, "after {kept} commands");
        place.assert_sound();
    }
}

#[test]
fn commands_that_cannot_be_audited_any_more_are_a_record() {
    let place = Place::new();
    let audit = place.open();
    let mut world = World::default();
    world.apply(Op::Register(register(1)));
    // A state that was there before the log.
    Replay::new(&audit).end(&world.state).unwrap();
    let records = all(&audit);
    assert_eq!((records.len(), records[0].operation.as_str()), (1, "audit_gap"));
    assert!(records[0].detail.contains("commands 1 to 1 have no records"), "{records:?}");
    audit.append(9, (1..9).map(record).collect());
    drop(audit);
    // Nothing is missing now; but then the state comes from a backup.
    let audit = place.open();
    Replay::new(&audit).end(&world.state).unwrap();
    let records = all(&audit);
    let note = records.last().unwrap();
    assert_eq!((note.operation.as_str(), note.command), ("audit_state_restored", 1));
    assert_eq!(records.len(), 10);
    drop(audit);
    let audit = place.open();
    Replay::new(&audit).end(&world.state).unwrap();
    assert_eq!(all(&audit).len(), 10, "it is said once");
    place.assert_sound();
}

#[test]
fn what_does_not_fit_is_refused_at_the_start() {
    let place = Place::new();
    let audit = place.open();
    let in_use = place.try_open(Retention::default()).unwrap_err().to_string();
    assert!(in_use.contains(KEY_FILE) && in_use.contains("in use"), "{in_use}");
    audit.append(2, (0..2).map(record).collect());
    drop(audit);
    let key = place.0.path().join(KEY_FILE);
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let gone = place.try_open(Retention::default()).unwrap_err();
    assert!(matches!(gone, AuditError::KeyGone(_)), "{gone}");
    assert!(!key.exists(), "no other key is made");
    std::fs::write(&key, "nonsense\n").unwrap();
    let wrong = place.try_open(Retention::default()).unwrap_err().to_string();
    assert!(wrong.contains("it is not a key"), "{wrong}");
    std::fs::write(&key, PublicKey([3; 32]).to_string()).unwrap();
    let other = place.try_open(Retention::default()).unwrap_err().to_string();
    assert!(other.contains("not signed by the key"), "{other}");
    std::fs::write(&key, good).unwrap();
    assert_eq!(all(&place.open()).len(), 2);
    let db = Connection::open(place.log()).unwrap();
    for refused in ["DELETE FROM records", "UPDATE records SET time = 0"] {
        let text = db.execute(refused, []).unwrap_err().to_string();
        assert!(text.contains("audit records are not"), "{text}");
    }
    db.execute_batch("INSERT INTO removal VALUES (1); DELETE FROM records WHERE seq = 2").unwrap();
    drop(db);
    let cut = place.try_open(Retention::default()).unwrap_err();
    assert!(matches!(cut, AuditError::Altered { .. }), "{cut}");
    std::fs::write(place.log(), "not a database, but long enough to be looked at").unwrap();
    let garbage = place.try_open(Retention::default()).unwrap_err();
    assert!(matches!(garbage, AuditError::Unusable { .. }), "{garbage}");
}

/// As on a full disk: the file may grow no further.
#[test]
fn a_full_disk_stops_acknowledging_and_leaves_no_gap() {
    let place = Place::new();
    let audit = place.open();
    let state = Arc::new(RwLock::new(State::default()));
    let followers = Followers { audit: audit.clone(), ..Followers::default() };
    let (writer, thread) =
        Writer::start(Arc::clone(&state), Box::<MemoryLog>::default(), followers).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut keys = 0u32;
    let mut submit = |count: u32| {
        let commands = (0..count).map(|_| {
            keys += 1;
            let mut key = [9; 32];
            key[..4].copy_from_slice(&keys.to_be_bytes());
            let register = Register { key: PublicKey(key), ..register(0) };
            Command::own(u64::from(keys), Op::Register(register))
        });
        let outcomes = runtime.block_on(writer.submit(commands.collect()));
        outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64
    };
    let mut acknowledged = submit(20);
    assert_eq!(acknowledged, 20);
    audit.flush().unwrap();
    audit.ask(Ask::Grow(0));
    eventually("it is refused", || {
        let done = submit(50);
        acknowledged += done;
        done == 0
    });
    assert!(!audit.is_healthy());
    assert_eq!(submit(3), 0);
    assert!(matches!(audit.flush(), Err(AuditError::Unwritable(_))));
    assert_eq!(state.read().unwrap().applied(), acknowledged, "what is refused is not done");
    audit.ask(Ask::Grow(1_000_000));
    eventually("it is done again", || {
        let done = submit(1);
        acknowledged += done;
        done == 1
    });
    assert!(audit.is_healthy());
    drop(writer);
    thread.join().unwrap();
    audit.flush().unwrap();
    let commands: Vec<_> = all(&audit).iter().map(|record| record.command).collect();
    assert_eq!(commands, (1..=acknowledged).collect::<Vec<_>>());
    place.assert_sound();
}

#[test]
fn old_records_go_and_the_rest_verifies() {
    let place = Place::new();
    let age = Some(Duration::from_secs(100));
    let audit = place.try_open(Retention { age, bytes: None }).unwrap();
    audit.append(600, (0..600).map(record).collect());
    // Those of the times 1000 to 1049.
    audit.ask(Ask::Retain(1150));
    audit.flush().unwrap();
    let records = all(&audit);
    assert_eq!((records[0].seq, records[0].time), (151, 1050));
    let note = records.last().unwrap();
    assert_eq!((note.operation.as_str(), note.seq), ("audit_retention", 601));
    assert_eq!(note.object, "audit records 1 to 150");
    let report = place.assert_sound();
    assert_eq!((report.first, report.records, report.last.0), (151, 451, 601));
    audit.ask(Ask::Retain(1150));
    audit.ask(Ask::Retain(1160));
    audit.flush().unwrap();
    assert_eq!(place.assert_sound().first, 181);
    // Everything is too old: the newest one stays.
    audit.ask(Ask::Retain(1_000_000));
    audit.flush().unwrap();
    assert!(place.assert_sound().records >= 1);
    audit.append(601, vec![record(600)]);
    drop(audit);
    let audit = place.open();
    assert_eq!(audit.last_command(), 601);
    place.assert_sound();
    drop(audit);
    // A removal that nobody signed.
    let db = Connection::open(place.log()).unwrap();
    db.execute_batch("DELETE FROM cuts").unwrap();
    let key = public_key(place.0.path()).unwrap();
    let report = export::verify_database(&place.log(), &key, None).unwrap();
    assert!(report.problems[0].starts_with("records 1 to "), "{report:?}");
}

#[test]
fn a_thread_that_failed_holds_up_nobody() {
    let place = Place::new();
    let audit = place.open();
    audit.append(3, (0..3).map(record).collect());
    audit.flush().unwrap();
    audit.ask(Ask::Panic);
    assert_eq!(audit.flush(), Err(AuditError::Closed));
    eventually("it is known", || !audit.is_healthy());
    assert_eq!(audit.flush(), Err(AuditError::Closed));
    audit.append(4, vec![record(3)]);
    assert_eq!(all(&audit).len(), 3);
    audit.close();
    drop(audit);
    assert_eq!(place.open().last_command(), 3);
}

#[test]
fn retention_can_change() {
    let place = Place::new();
    let audit = place.open();
    audit.append(600, (0..600).map(record).collect());
    audit.ask(Ask::Retain(1150));
    audit.flush().unwrap();
    assert_eq!(all(&audit).len(), 600);
    audit.set_retention(Retention { age: Some(Duration::from_secs(100)), bytes: None });
    audit.ask(Ask::Retain(1150));
    audit.flush().unwrap();
    assert_eq!(all(&audit)[0].seq, 151);
}

#[test]
fn a_log_without_its_end_is_refused_and_a_new_one_is_not() {
    let place = Place::new();
    let audit = place.open();
    audit.append(4, (0..4).map(record).collect());
    audit.flush().unwrap();
    let hashes: Vec<_> = all(&audit).into_iter().map(|r| (r.seq, r.hash)).collect();
    assert_eq!(audit.continues(&hashes[1]), Ok(true));
    assert_eq!(audit.continues(&hashes[3]), Ok(true));
    for (noted, problem) in [
        ((6, hashes[3].1.clone()), "records 5 to 6 are missing at the end"),
        ((2, hashes[3].1.clone()), "record 2: it is not the one"),
    ] {
        let refused = audit.continues(&noted).unwrap_err().to_string();
        assert!(refused.contains(problem), "{refused}");
    }
    let new = Place::new();
    assert_eq!(new.open().continues(&hashes[3]), Ok(false));
}

#[test]
fn a_large_log_shrinks() {
    let place = Place::new();
    let bytes = 1 << 20;
    let audit = place.try_open(Retention { age: None, bytes: Some(bytes) }).unwrap();
    for batch in 0..12 {
        let records = (batch * 1000..(batch + 1) * 1000).map(record).collect();
        audit.append((batch + 1) * 1000, records);
        audit.flush().unwrap();
    }
    audit.ask(Ask::Retain(5));
    audit.flush().unwrap();
    let report = place.assert_sound();
    assert!(report.first > 1000 && report.records > 500, "{report:?}");
    audit.close();
    assert!(std::fs::metadata(place.log()).unwrap().len() <= bytes + bytes / 4);
}

#[test]
fn without_a_store_the_newest_records_are_there() {
    let audit = Audit::open(None, Retention { age: None, bytes: Some(1 << 20) }).unwrap();
    for batch in 0..8 {
        audit.append(batch, (batch * 1000..(batch + 1) * 1000).map(record).collect());
    }
    audit.flush().unwrap();
    // What is removed after the first is removed before the second.
    audit.flush().unwrap();
    let records = all(&audit);
    assert!(records[0].seq > 1 && records.len() > 500);
    let signed = verify::Signed { heads: vec![audit.head().unwrap()], cuts: Vec::new() };
    let first = records[0].seq;
    let report =
        verify::verify(&audit.public_key().unwrap(), &signed, None, records.into_iter().map(Ok));
    // Cuts cannot be had of it; the rest is a chain up to its head.
    let missing = format!("records 1 to {} are missing", first - 1);
    assert_eq!(report.problems[0], missing);
    assert_eq!(report.problems.len(), 2, "{report:?}");
    let nothing = Audit::default();
    assert!(nothing.is_healthy() && nothing.head().is_none());
    assert_eq!(nothing.query(&AuditFilter::default()), Ok(Vec::new()));
}

#[test]
fn sinks_are_told_everything_also_what_was_kept_before() {
    let place = Place::new();
    let events = || Events::open(&place.0.path().join("events")).unwrap();
    let (heard, hears) = mpsc::channel();
    let deliver: Deliver = Arc::new(move |batch| {
        for event in batch.events() {
            // The test may have ended.
            let _ = heard.send((event.event, json!(event.data)));
        }
        Box::pin(async { Ok(Delivery::Ack) })
    });
    let next = || -> Value {
        let (name, data) = hears.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(name, "registry.audit");
        data
    };
    let audit = place.open();
    audit.append(5, (0..5).map(record).collect());
    drop(audit);
    let first = events();
    let attach = |events: &Events| {
        let sinks = events.sinks().unwrap();
        let sink = sinks.attach("siem", &Value::Null, Arc::clone(&deliver)).unwrap();
        (sinks, sink)
    };
    let attached = attach(&first);
    let audit = place.open();
    audit.follow(first.clone());
    for kept in all(&audit) {
        let data = next();
        assert_eq!((&data["seq"], &data["hash"]), (&json!(kept.seq), &json!(kept.hash)));
        assert_eq!(data["actor_owner"], kept.actor.owner.as_str());
        let address = kept.actor.address.map(|a| a.to_string()).unwrap_or_default();
        assert_eq!(data["actor_address"], address.as_str());
    }
    audit.append(8, (5..8).map(record).collect());
    assert_eq!(
        [next(), next(), next()].map(|data| data["seq"].clone()),
        [6, 7, 8].map(Value::from)
    );
    audit.close();
    drop((audit, attached, first));
    // What they have, they are not told again; what comes then, they are.
    let second = events();
    let _attached = attach(&second);
    let audit = place.open();
    audit.follow(second.clone());
    audit.append(9, vec![record(8)]);
    assert_eq!(next()["seq"], 9);
}

fn texts() -> impl Strategy<Value = Option<String>> {
    let some = [
        "1",
        "4",
        "9",
        "0:0000.0000.0002",
        "3:0003.0000.0003",
        "ops",
        "root",
        "x@example.com",
        "nobody",
    ];
    let key = PublicKey([2; 32]).to_string();
    proptest::option::of(proptest::sample::select(
        some.iter().map(|s| (*s).to_owned()).chain([key]).collect::<Vec<_>>(),
    ))
}

fn filters() -> impl Strategy<Value = AuditFilter> {
    let time = || proptest::option::of(995u64..1060);
    let operation =
        proptest::option::of(proptest::sample::select(vec!["register", "set_tags", "x"]));
    let object = proptest::option::of(0u8..5);
    let result = proptest::option::of(any::<bool>());
    let after = proptest::option::of(0u64..180);
    let limit = proptest::option::of(prop_oneof![Just(0u32), 1u32..20, Just(5000)]);
    (time(), time(), texts(), operation, object, result, after, limit).prop_map(
        |(since, until, actor, operation, object, result, after, limit)| AuditFilter {
            since,
            until,
            actor,
            operation: operation.map(str::to_owned),
            object: object.map(|n| format!("node {n}")),
            result: result.map(
                |denied| {
                    if denied { AuditResult::Denied } else { AuditResult::Allowed }
                },
            ),
            after,
            limit,
        },
    )
}

/// What a filter means, one record at a time.
fn fits(filter: &AuditFilter, record: &AuditRecord) -> bool {
    let actor = |text: &String| {
        let a = &record.actor;
        let node = text.parse().ok().or_else(|| Some(text.parse::<Address>().ok()?.node.0));
        [&a.name, &a.public_key, &a.owner, &a.external_identity].contains(&text)
            || node.is_some_and(|node| a.node_id == Some(NodeId(node)))
    };
    filter.since.is_none_or(|t| record.time >= t)
        && filter.until.is_none_or(|t| record.time < t)
        && filter.actor.as_ref().is_none_or(actor)
        && filter.operation.as_ref().is_none_or(|o| *o == record.operation)
        && filter.object.as_ref().is_none_or(|o| *o == record.object)
        && filter.result.is_none_or(|r| r == record.result)
        && filter.after.is_none_or(|seq| record.seq > seq)
}

#[test]
fn queries_give_what_a_model_gives_page_by_page() {
    let place = Place::new();
    let audit = place.open();
    audit.append(160, (0..160).map(record).collect());
    audit.flush().unwrap();
    let everything = all(&audit);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let mut sizes = BTreeMap::new();
    let checked = runner.run(&filters(), |filter| {
        let expected: Vec<_> = everything.iter().filter(|r| fits(&filter, r)).cloned().collect();
        let limit = filter.limit.unwrap_or(100).clamp(1, MAX_LIMIT) as usize;
        let (mut found, mut filter) = (Vec::new(), filter);
        loop {
            let page = audit.page(&filter).unwrap();
            prop_assert!(page.records.len() <= limit);
            prop_assert!(page.next.is_none() || page.records.len() == limit);
            found.extend(page.records);
            filter.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        prop_assert_eq!(found, expected);
        Ok(())
    });
    checked.unwrap();
    for actor in ["ops", "root", "x@example.com", "2", &PublicKey([2; 32]).to_string()] {
        let filter = AuditFilter { actor: Some(actor.to_owned()), ..AuditFilter::default() };
        sizes.insert(actor.to_owned(), audit.query(&filter).unwrap().len());
    }
    assert!(sizes.values().all(|size| *size > 10), "{sizes:?}");
}

/// Every part of a query by actor goes along an index.
#[test]
fn actors_are_found_along_indexes() {
    let place = Place::new();
    drop(place.open());
    let db = Connection::open(place.log()).unwrap();
    for (condition, index) in [
        ("node = 5", "by_node"),
        ("name = 'x'", "by_name"),
        ("owner = 'x'", "by_owner"),
        ("external_identity = 'x'", "by_external"),
        ("substr(public_key, 1, 1) = 'A' AND public_key = 'AB'", "by_key"),
        ("operation = 'x'", "by_operation"),
        ("object = 'x'", "by_object"),
    ] {
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT seq FROM records WHERE {condition} AND seq > 3 \
             ORDER BY seq LIMIT 5"
        );
        let plan: String = db.query_row(&sql, [], |r| r.get(3)).unwrap();
        assert!(plan.contains(index), "{condition}: {plan}");
    }
}
