//! The journal with sinks that work, fail, refuse and hang, on a real disk.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pilot_host::Failure;
use pilot_host::events::Happening;
use pilot_host::journal::{
    Attached, Deliver, Journal, JournalError, JournalLimits, SinkSettings, SinkState, Size, Span,
};
use pilot_plugin::{Batch, Delivery, Event};
use pilot_wire::{Address, NodeId};
use serde_json::json;

/// Far beyond what anything here takes; only a hang gets there.
const BOUND: Duration = Duration::from_secs(60);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn open(folder: &Path) -> Journal {
    Journal::open(folder, JournalLimits::default()).expect("a journal").0
}

fn event(n: u64) -> Happening {
    Happening::ConnEstablished {
        conn_id: n,
        dst_port: 1000,
        src_addr: Address::backbone(NodeId(7)),
        src_port: 49_152,
    }
}

fn number(event: &Event) -> Option<u64> {
    event.data.as_ref()?.get("conn_id")?.as_u64()
}

fn quick() -> SinkSettings {
    SinkSettings {
        linger: Span(Duration::ZERO),
        retry_min: Span(Duration::from_millis(1)),
        retry_max: Span(Duration::from_millis(5)),
        ..SinkSettings::default()
    }
}

type Answer = Result<Delivery, Failure>;

/// A sink that keeps what it is given, and answers from a list; then it takes
/// everything.
#[derive(Default)]
struct Sink {
    batches: Mutex<Vec<Vec<Event>>>,
    answers: Mutex<VecDeque<Answer>>,
    /// While set it fails instead.
    broken: AtomicBool,
}

impl Sink {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() })
    }

    fn broken() -> Arc<Self> {
        Arc::new(Self { broken: AtomicBool::new(true), ..Self::default() })
    }

    fn deliver(self: &Arc<Self>) -> Deliver {
        let sink = self.clone();
        Arc::new(move |batch: Batch| {
            let sink = sink.clone();
            Box::pin(async move {
                if sink.broken.load(Ordering::SeqCst) {
                    return Err(Failure::Failed("it is broken".into()));
                }
                sink.batches.lock().unwrap().push(batch.events().collect());
                sink.answers.lock().unwrap().pop_front().unwrap_or(Ok(Delivery::Ack))
            })
        })
    }

    fn events(&self) -> Vec<Event> {
        self.batches.lock().unwrap().iter().flatten().cloned().collect()
    }

    fn numbers(&self) -> Vec<u64> {
        self.events().iter().filter_map(number).collect()
    }
}

fn drained(attached: &Attached) -> bool {
    let status = attached.status();
    status.waiting == 0 && status.state == SinkState::Idle
}

#[test]
fn events_arrive_in_order_with_growing_numbers_also_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::new([]);
    for run in 0..3 {
        let journal = open(folder.path());
        journal.set_node(NodeId(40 + run));
        let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
        for n in 0..500 {
            journal.emit(event(u64::from(run) * 500 + n));
        }
        journal.flush().expect("recorded");
        until("the sink's last event", || drained(&attached));
        drop(attached);
        journal.close(BOUND);
        journal.emit(event(9));
        assert_eq!(journal.flush(), Err(JournalError::Closed));
    }
    let events = sink.events();
    assert_eq!(sink.numbers(), (0..1500).collect::<Vec<_>>());
    let ids: Vec<u64> = events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids, (1..=1500).collect::<Vec<_>>(), "no number is missing");
    assert!(events.is_sorted_by(|a, b| a.timestamp <= b.timestamp));
    assert_eq!((events[0].node_id, events[1499].node_id), (40, 42));
}

#[test]
fn events_wait_on_disk_for_a_sink_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::new([]);
    let journal = open(folder.path());
    journal.emit(event(0));
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    let again = journal.attach("siem", quick(), sink.deliver());
    assert_eq!(again.err(), Some(JournalError::Attached("siem".into())));
    journal.emit(event(1));
    journal.flush().expect("recorded");
    until("the first event", || drained(&attached));
    attached.detach();
    for n in 2..100 {
        journal.emit(event(n));
    }
    drop(journal);

    let (journal, found) = Journal::open(folder.path(), JournalLimits::default()).expect("again");
    assert_eq!(found.sinks, ["siem"]);
    let waiting = journal.status().sinks[0].clone();
    assert_eq!((waiting.state, waiting.waiting), (SinkState::Detached, 98));
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    until("the rest", || drained(&attached));
    assert_eq!(sink.numbers(), (1..100).collect::<Vec<_>>(), "new sinks start at now");
    attached.forget().expect("forgotten");
    assert!(journal.status().sinks.is_empty());
    drop(journal);
    let (_, found) = Journal::open(folder.path(), JournalLimits::default()).expect("again");
    assert!(found.sinks.is_empty());
}

#[test]
fn partial_answers_and_failures_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let retry =
        |accepted, after_ms| Ok(Delivery::Retry { accepted, after_ms, reason: "busy".into() });
    let answers = [
        retry(3, None),
        Err(Failure::Ended),
        retry(0, Some(1)),
        retry(2, Some(2)),
        Err(Failure::Crashed("boom".into())),
        Ok(Delivery::Ack),
    ];
    let sink = Sink::new(answers);
    let journal = open(folder.path());
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    attached.detach();
    (1..=10).for_each(|n| journal.emit(event(n)));
    journal.flush().expect("recorded");
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    until("all", || drained(&attached));
    let batches = sink.batches.lock().unwrap().clone();
    let seen: Vec<Vec<u64>> =
        batches.iter().map(|batch| batch.iter().filter_map(number).collect()).collect();
    let range = |from: u64| (from..=10).collect::<Vec<u64>>();
    assert_eq!(&seen[..6], [range(1), range(4), range(4), range(4), range(6), range(6)]);
    let status = attached.status();
    assert_eq!(status.last_error.as_deref(), Some("it crashed: boom"));
    assert_eq!((status.attempts, status.rejected, status.dropped), (0, 0, 0));
}

/// A panic in the call, one in the answer, and none at all count as failures of
/// that sink only.
#[test]
fn a_sink_that_panics_or_hangs_keeps_its_events() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let good = Sink::new([]);
    let good_attached = journal.attach("good", quick(), good.deliver()).expect("attached");
    let inner = Sink::new([]);
    let (deliver, calls) = (inner.deliver(), Arc::new(Mutex::new(0)));
    let bad: Deliver = Arc::new(move |batch| {
        let call = {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        match call {
            1 => panic!("in the call"),
            2 => Box::pin(async { panic!("in the answer") }),
            3 => Box::pin(std::future::pending()),
            _ => deliver(batch),
        }
    });
    let settings = SinkSettings { deliver_timeout: Span(Duration::from_millis(20)), ..quick() };
    let bad_attached = journal.attach("bad", settings, bad).expect("attached");
    (0..20).for_each(|n| journal.emit(event(n)));
    journal.flush().expect("recorded");
    let recovered = || good.events().iter().any(|event| event.event == "sink.recovered");
    until("both", || recovered() && drained(&good_attached) && drained(&bad_attached));
    assert_eq!(good.numbers(), (0..20).collect::<Vec<_>>());
    assert_eq!(inner.numbers(), (0..20).collect::<Vec<_>>());
    let names: Vec<String> = good.events().into_iter().map(|event| event.event).collect();
    let count = |name: &str| names.iter().filter(|found| *found == name).count();
    assert_eq!((count("sink.failing"), count("sink.recovered")), (1, 1), "{names:?}");
    let error = bad_attached.status().last_error.expect("an error");
    assert!(error.contains("no answer within 20 ms"), "{error}");
}

#[test]
fn a_full_queue_drops_the_oldest_and_says_how_many() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::broken();
    let journal = open(folder.path());
    let settings = SinkSettings {
        queue_bytes: Size(100_000),
        batch_bytes: Size(100_000),
        events: vec!["conn.*".into()],
        ..quick()
    };
    let attached = journal.attach("siem", settings, sink.deliver()).expect("attached");
    for n in 0..5000 {
        journal.emit(event(n));
        if n % 1000 == 0 {
            journal.flush().expect("recorded");
        }
    }
    journal.flush().expect("recorded");
    // While a batch is under way it is not dropped, so ask when none is.
    until("a pause", || attached.status().state != SinkState::Delivering);
    sink.broken.store(false, Ordering::SeqCst);
    until("the rest", || drained(&attached));
    let events = sink.events();
    let gaps: Vec<_> = events.iter().filter(|event| event.event == "events.dropped").collect();
    let counted: u64 = gaps
        .iter()
        .map(|gap| {
            let data = gap.data.as_ref().expect("data");
            assert_eq!(data["sink"], "siem");
            assert_eq!(data["last_event_id"], gap.event_id, "in the place of the last");
            data["count"].as_u64().expect("a number")
        })
        .sum();
    let arrived = sink.numbers();
    assert!(!arrived.is_empty() && counted > 3000, "{counted}");
    assert_eq!(counted + arrived.len() as u64, 5000, "every one arrived or was counted");
    assert_eq!(attached.status().dropped, counted);
    assert_eq!(arrived.last(), Some(&4999), "the newest stay");
    assert!(events.is_sorted_by(|a, b| a.event_id < b.event_id));
}

/// A sink whose queue is full, with a batch that it does not answer, takes
/// nothing from the sinks after it.
#[test]
fn a_full_queue_takes_nothing_from_other_sinks() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let tiny = SinkSettings { queue_bytes: Size(400), batch_bytes: Size(400), ..quick() };
    let stuck: Deliver = Arc::new(|_| Box::pin(std::future::pending()));
    let first = journal.attach("a-tiny", tiny, stuck).expect("attached");
    let sink = Sink::broken();
    let second = journal.attach("b-large", quick(), sink.deliver()).expect("attached");
    journal.emit(event(0));
    journal.flush().expect("recorded");
    until("a batch under way", || first.status().state == SinkState::Delivering);
    (1..500).for_each(|n| journal.emit(event(n)));
    journal.flush().expect("recorded");
    assert!(first.status().dropped > 400, "{:?}", first.status());
    sink.broken.store(false, Ordering::SeqCst);
    until("the rest", || drained(&second));
    assert_eq!(second.status().dropped, 0);
    assert_eq!(sink.numbers(), (0..500).collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_in_memory_is_a_gap_for_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let limits = JournalLimits { queue: 10, ..JournalLimits::default() };
    let (journal, _) = Journal::open(folder.path(), limits).expect("a journal");
    let sink = Sink::new([]);
    let settings = SinkSettings { events: vec!["conn.*".into()], ..quick() };
    let attached = journal.attach("siem", settings, sink.deliver()).expect("attached");
    let mut emitted = 0;
    until("a full queue", || {
        (0..2000).for_each(|n| journal.emit(event(emitted + n)));
        emitted += 2000;
        journal.status().lost > 0
    });
    journal.flush().expect("recorded");
    until("the rest", || drained(&attached));
    let lost = journal.status().lost;
    let events = sink.events();
    let mut counted = 0;
    for gap in events.iter().filter(|event| event.event == "events.dropped") {
        let data = gap.data.as_ref().expect("data");
        let id = |key: &str| data[key].as_u64().expect("a number");
        assert_eq!(id("last_event_id") + 1, gap.event_id);
        assert_eq!(id("last_event_id") - id("first_event_id") + 1, id("count"));
        counted += id("count");
    }
    assert_eq!(counted, lost);
    assert_eq!(sink.numbers().len() as u64 + lost, emitted);
}

#[test]
fn refused_events_go_to_the_dead_letters_before_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let letters = folder.path().join("letters/siem.jsonl");
    let reject = Ok(Delivery::Reject { accepted: 2, rejected: 1, reason: "schema \"x\"".into() });
    let sink = Sink::new([reject]);
    let watch = Sink::new([]);
    let journal = open(&folder.path().join("journal"));
    let settings = SinkSettings {
        dead_letter: Some(letters.clone()),
        events: vec!["conn.*".into()],
        ..quick()
    };
    let attached = journal.attach("siem", settings.clone(), sink.deliver()).expect("attached");
    attached.detach();
    let watching = SinkSettings { events: vec!["sink.*".into()], ..quick() };
    let watched = journal.attach("watch", watching, watch.deliver()).expect("attached");
    (1..=5).for_each(|n| journal.emit(event(n)));
    journal.flush().expect("recorded");
    let attached = journal.attach("siem", settings, sink.deliver()).expect("attached");
    until("the rest", || drained(&attached) && !watch.events().is_empty() && drained(&watched));
    assert_eq!(sink.numbers(), [1, 2, 3, 4, 5, 4, 5]);
    let text = std::fs::read_to_string(&letters).expect("dead letters");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["event"]["data"]["conn_id"], 3);
    assert_eq!((&lines[0]["reason"], &lines[0]["sink"]), (&json!("schema \"x\""), &json!("siem")));
    let said = watch.events();
    let data = said[0].data.clone().expect("data");
    assert_eq!((said.len(), said[0].event.as_str()), (1, "sink.rejected"));
    assert_eq!(data["event_id"], lines[0]["event"]["event_id"]);
    assert_eq!(attached.status().rejected, 1);
}

/// Dead letters that cannot be written hold the events; nothing moves on.
#[test]
fn without_its_dead_letters_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("in-the-way");
    std::fs::write(&in_the_way, "a file").unwrap();
    let sink = Sink::new((0..3).map(|_| Ok(Delivery::reject("never"))));
    let journal = open(&folder.path().join("journal"));
    let letters = in_the_way.join("siem.jsonl");
    let settings = SinkSettings { dead_letter: Some(letters), ..quick() };
    let attached = journal.attach("siem", settings, sink.deliver()).expect("attached");
    journal.emit(event(1));
    journal.flush().expect("recorded");
    until("all answers", || drained(&attached));
    assert!(sink.numbers().len() >= 4, "it came again until it was taken");
    let status = attached.status();
    assert_eq!((status.rejected, status.waiting), (0, 0));
    let error = status.last_error.expect("an error");
    assert!(error.contains("in-the-way") && error.contains("never"), "{error}");
}

#[test]
fn a_batch_is_given_up_after_the_attempts_that_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let letters = folder.path().join("siem.jsonl");
    let sink = Sink::broken();
    let journal = open(folder.path());
    let settings = SinkSettings {
        max_attempts: 4,
        batch: 1,
        dead_letter: Some(letters.clone()),
        dead_letter_bytes: Size(3000),
        ..quick()
    };
    let attached = journal.attach("siem", settings, sink.deliver()).expect("attached");
    (0..30).for_each(|n| journal.emit(event(n)));
    until("the end of all", || drained(&attached) && attached.status().rejected >= 30);
    let old = std::fs::read_to_string(letters.with_extension("jsonl.1")).expect("rotated");
    let new = std::fs::read_to_string(&letters).expect("letters");
    assert!(old.len() <= 3000 && new.len() <= 3000);
    assert!(old.contains("given up after 4 attempts: it is broken"), "{old}");
}

/// A sink that refuses everything, also the news that it refuses everything.
#[test]
fn a_sink_does_not_feed_on_its_own_failures() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let deliver: Deliver = Arc::new(move |_| {
        *counted.lock().unwrap() += 1;
        Box::pin(async { Ok(Delivery::reject("no")) })
    });
    let attached = journal.attach("siem", quick(), deliver).expect("attached");
    journal.emit(event(1));
    until("the refusal of the refusal", || attached.status().rejected == 2);
    // Whatever it might have caused would have a number by now.
    let before = journal.status().next_event_id;
    for _ in 0..20 {
        journal.flush().expect("recorded");
    }
    until("quiet", || drained(&attached));
    assert_eq!((journal.status().next_event_id, *calls.lock().unwrap()), (before, 2));
}

#[test]
fn a_reload_keeps_the_place_and_applies_the_filter_to_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let (old, new) = (Sink::broken(), Sink::new([]));
    let slow = SinkSettings { retry_min: Span(BOUND), retry_max: Span(BOUND), ..quick() };
    let attached = journal.attach("siem", slow, old.deliver()).expect("attached");
    for n in 0..100 {
        journal.emit(event(n));
        journal.emit(Happening::TrustRevoked { peer_node_id: NodeId(4) });
    }
    journal.flush().expect("recorded");
    until("a failure", || attached.status().last_error.is_some());
    let filtered = SinkSettings { events: vec!["conn.*".into()], ..quick() };
    attached.replace(filtered, new.deliver()).expect("replaced");
    until("the rest", || drained(&attached));
    assert!(old.events().is_empty());
    assert_eq!(new.numbers(), (0..100).collect::<Vec<_>>());
    assert_eq!(new.events().len(), 100, "not those that the filter holds back");
    let wrong = SinkSettings { batch: 0, ..quick() };
    let error = attached.replace(wrong, new.deliver()).expect_err("cannot be").to_string();
    assert!(error.contains("siem") && error.contains("batch"), "{error}");
}

/// The database is full: events wait in memory, then are counted, and when the
/// sink makes room everything goes on by itself.
#[test]
fn a_full_disk_is_named_and_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let limits = JournalLimits { queue: 1000, disk_bytes: 400 << 10 };
    let (journal, _) = Journal::open(folder.path(), limits).expect("a journal");
    let sink = Sink::broken();
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    let mut emitted = 0;
    until("a full disk", || {
        (0..100).for_each(|n| journal.emit(event(emitted + n)));
        emitted += 100;
        let _ = journal.flush();
        journal.status().failing.is_some() && journal.status().lost > 0
    });
    let status = journal.status();
    let failing = status.failing.expect("it fails");
    assert!(failing.contains("events.db") && failing.contains("full"), "{failing}");
    assert!(status.failing_since.is_some());
    sink.broken.store(false, Ordering::SeqCst);
    until("room", || journal.status().failing.is_none());
    journal.emit(event(emitted));
    until("all", || journal.flush().is_ok() && drained(&attached));
    let events = sink.events();
    let gap = |event: &&Event| event.event == "events.dropped";
    let counted: u64 = events
        .iter()
        .filter(gap)
        .map(|event| event.data.as_ref().expect("data")["count"].as_u64().expect("a number"))
        .sum();
    assert_eq!(counted, journal.status().lost);
    assert_eq!(sink.numbers().len() as u64 + counted, emitted + 1);
    assert!(events.is_sorted_by(|a, b| a.event_id < b.event_id));
}

#[test]
fn a_damaged_database_is_moved_aside_and_seen_as_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let sink = Sink::broken();
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    (0..3000).for_each(|n| journal.emit(event(n)));
    journal.flush().expect("recorded");
    let before = journal.status().next_event_id;
    drop(attached);
    drop(journal);
    let file = folder.path().join("events.db");
    let mut bytes = std::fs::read(&file).expect("the database");
    bytes[4096..].fill(0xAA);
    std::fs::write(&file, bytes).expect("damaged");

    let (journal, found) = Journal::open(folder.path(), JournalLimits::default()).expect("opens");
    let (aside, reason) = found.moved_aside.expect("moved aside");
    assert!(aside.exists() && !reason.is_empty(), "{aside:?} {reason}");
    assert_eq!(journal.status().moved_aside.as_deref(), Some(aside.as_path()));
    sink.broken.store(false, Ordering::SeqCst);
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    journal.emit(event(1));
    journal.flush().expect("recorded");
    until("both", || drained(&attached));
    let events = sink.events();
    let data = events[0].data.as_ref().expect("data");
    assert_eq!((events.len(), events[0].event.as_str()), (2, "events.dropped"));
    assert_eq!(data["count"], 0, "nobody knows how many");
    assert!(data["reason"].as_str().expect("text").contains("damaged"), "{data:?}");
    assert!(events[0].event_id >= before, "no number is used twice");
    assert!(events[1].event_id > events[0].event_id);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let second = Journal::open(folder.path(), JournalLimits::default()).err().expect("in use");
    assert!(matches!(second, JournalError::InUse { .. }), "{second}");
    drop(journal);
    drop(open(folder.path()));

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let inside = file.join("journal");
    let error = Journal::open(&inside, JournalLimits::default()).err().expect("no folder");
    assert!(error.to_string().contains("file/journal"), "{error}");
}

#[test]
fn an_event_that_is_too_long_is_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let sink = Sink::new([]);
    let attached = journal.attach("siem", quick(), sink.deliver()).expect("attached");
    let data = json!({ "text": "x".repeat(2 << 20) }).as_object().cloned();
    journal.emit(Happening::parse("orders.received", data).expect("an event"));
    journal.emit(event(5));
    journal.flush().expect("recorded");
    until("both", || drained(&attached));
    let names: Vec<String> = sink.events().into_iter().map(|event| event.event).collect();
    assert_eq!(names, ["events.dropped", "conn.established"]);
}

/// How fast it is stands in the output; that nothing is lost or swapped at full
/// speed is what is tested.
#[test]
fn many_events_at_full_speed() {
    const EVENTS: u64 = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let seen = Arc::new(Mutex::new((0u64, 0u64)));
    let counter = seen.clone();
    let deliver: Deliver = Arc::new(move |batch: Batch| {
        let counter = counter.clone();
        Box::pin(async move {
            let mut seen = counter.lock().unwrap();
            for line in batch.json() {
                let id = line.split("\"event_id\":").nth(1).and_then(|rest| rest.split(',').next());
                let id: u64 = id.and_then(|id| id.parse().ok()).expect("an event_id");
                assert!(id > seen.1);
                *seen = (seen.0 + 1, id);
            }
            Ok(Delivery::Ack)
        })
    });
    let attached = journal.attach("siem", quick(), deliver).expect("attached");
    let start = Instant::now();
    for n in 0..EVENTS {
        journal.emit(event(n));
        if n % 20_000 == 19_999 {
            journal.flush().expect("recorded");
        }
    }
    let recorded = start.elapsed();
    until("all", || seen.lock().unwrap().0 == EVENTS && drained(&attached));
    let all = start.elapsed();
    let rate = |time: Duration| (EVENTS as f64 / time.as_secs_f64()) as u64;
    println!("recorded {}/s, delivered {}/s", rate(recorded), rate(all));
    assert_eq!(journal.status().lost, 0);
}

#[test]
fn nothing_in_memory_means_that_all_is_on_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    let sink = Sink::broken();
    let _attached = journal.attach("s", quick(), sink.deliver()).expect("attached");
    let first = journal.status().next_event_id;
    for n in 1..=20_000 {
        journal.emit(event(n));
        let status = journal.status();
        assert!(status.in_memory > 0 || status.next_event_id >= first + n, "{n}: {status:?}");
    }
    until("the disk", || journal.status().in_memory == 0);
    assert!(journal.status().next_event_id >= first + 20_000);
}
