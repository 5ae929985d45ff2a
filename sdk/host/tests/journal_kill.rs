//! A process that is killed at any moment loses no event that it reported as
//! recorded, and no number is used for two events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pilot_host::events::Happening;
use pilot_host::journal::{Deliver, Journal, JournalLimits, SinkSettings, Size, Span};
use pilot_plugin::{Batch, Delivery};
use serde_json::json;

const FOLDER: &str = "PILOT_TEST_JOURNAL";
const START: &str = "PILOT_TEST_START";
const ROUNDS: u64 = 12;

fn settings() -> SinkSettings {
    SinkSettings {
        batch: 20,
        linger: Span(Duration::ZERO),
        retry_min: Span(Duration::from_millis(1)),
        retry_max: Span(Duration::from_millis(2)),
        queue_bytes: Size(1 << 30),
        ..SinkSettings::default()
    }
}

fn event(n: u64) -> Happening {
    let data = json!({ "n": n }).as_object().cloned();
    Happening::parse("orders.received", data).expect("an event")
}

/// What the killed process does; a test only in name.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut n: u64 = std::env::var(START).expect("a start").parse().expect("a number");
    let (journal, _) =
        Journal::open(Path::new(&folder), JournalLimits::default()).expect("a journal");
    say("");
    let calls = Arc::new(Mutex::new(0));
    let deliver: Deliver = Arc::new(move |batch: Batch| {
        let mut calls = calls.lock().expect("not poisoned");
        *calls += 1;
        let takes = *calls % 3 != 0;
        Box::pin(async move {
            if !takes {
                return Ok(Delivery::retry("not now"));
            }
            for event in batch.events() {
                let n = event.data.map_or(0, |data| data["n"].as_u64().unwrap_or(0));
                say(&format!("got {} {n}", event.event_id));
            }
            Ok(Delivery::Ack)
        })
    });
    let _attached = journal.attach("siem", settings(), deliver).expect("attached");
    loop {
        for _ in 0..1 + n % 37 {
            journal.emit(event(n));
            n += 1;
        }
        journal.flush().expect("recorded");
        say(&format!("recorded {n}"));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more when the parent is gone.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

#[test]
fn nothing_that_was_recorded_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    // Which event a number was for, over all processes.
    let mut given: BTreeMap<u64, u64> = BTreeMap::new();
    let mut note = |id: u64, n: u64| {
        assert_eq!(*given.entry(id).or_insert(n), n, "{id} was used twice");
    };
    let mut recorded: Vec<std::ops::Range<u64>> = Vec::new();
    for round in 0..ROUNDS {
        let start = round * 1_000_000;
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .env(START, start.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let (mut end, mut reports, mut killed) = (start, 0, false);
        let mut line = String::new();
        loop {
            line.clear();
            let length = lines.read_line(&mut line).expect("a line");
            if length == 0 || !line.ends_with('\n') {
                break;
            }
            let mut words = line.split_whitespace();
            let what = words.next();
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            match what {
                Some("recorded") => {
                    end = number().expect("a number");
                    reports += 1;
                }
                Some("got") => note(number().expect("an id"), number().expect("a number")),
                _ => {}
            }
            // At another place every time: the reports of both threads race.
            if reports > 3 + round * 7 % 40 && !killed {
                std::thread::sleep(Duration::from_micros(round * 377 % 2000));
                child.kill().expect("killed");
                killed = true;
            }
        }
        child.wait().expect("ended");
        assert!(killed, "the child ended by itself in round {round}");
        recorded.push(start..end);
    }

    let (journal, found) =
        Journal::open(folder.path(), JournalLimits::default()).expect("opens again");
    assert_eq!((found.sinks, found.moved_aside), (vec!["siem".to_owned()], None));
    let rest = Arc::new(Mutex::new(Vec::new()));
    let into = rest.clone();
    let deliver: Deliver = Arc::new(move |batch: Batch| {
        let into = into.clone();
        Box::pin(async move {
            let mut into = into.lock().expect("not poisoned");
            for event in batch.events() {
                let n = event.data.map_or(0, |data| data["n"].as_u64().unwrap_or(0));
                into.push((event.event_id, n));
            }
            Ok(Delivery::Ack)
        })
    });
    let attached = journal.attach("siem", settings(), deliver).expect("attached");
    let end = Instant::now() + Duration::from_secs(120);
    while attached.status().waiting > 0 {
        assert!(Instant::now() < end, "the rest does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    let rest = rest.lock().expect("not poisoned").clone();
    assert!(rest.is_sorted_by(|a, b| a < b), "order and numbers grow together");
    for (id, n) in rest {
        note(id, n);
    }
    // Numbers and events grow together over all processes, and no recorded one
    // is missing.
    let all: Vec<u64> = given.values().copied().collect();
    assert!(all.is_sorted_by(|a, b| a < b));
    let mut count = 0;
    for range in recorded {
        for n in range {
            assert!(all.binary_search(&n).is_ok(), "{n} was recorded and did not arrive");
            count += 1;
        }
    }
    assert!(count > 1000, "only {count} events were recorded");
}
