//! Scripts against the broker: events in, bytes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use pilot_plugin::wire::service::event_stream::{
    Decoder, Dropped, Event, Options, SUBSCRIBED_TOPIC, Subscription,
};
use proptest::prelude::*;

use crate::broker::{Batch, Bounds, Broker, Id, Published};
use crate::frames::Frame;

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, events: 1024 };
const ROOM: usize = 64 << 10;
const OURS: Options = Options { patterns: true, dropped: true, publish_only: false };

fn plain(broker: &mut Broker, topic: &str) -> Id {
    broker.subscribe(&Event::new(topic, ""))
}

/// A subscriber of ours, after the broker's greeting.
fn ours(broker: &mut Broker, topic: &str, options: Options) -> Id {
    let id = broker.subscribe(&Event::new(topic, options.to_payload()));
    let greeting = got(broker, id);
    assert_eq!(greeting.len(), 1);
    assert_eq!(greeting[0].topic, SUBSCRIBED_TOPIC);
    assert_eq!(Options::from_event(&greeting[0]), Some(options));
    id
}

fn publish(broker: &mut Broker, from: Id, topic: &str, payload: &str) -> Published {
    let wire = Event::new(topic, payload).encode().unwrap();
    broker.publish(from, Frame::read(&wire, 1 << 24).unwrap().unwrap())
}

/// All that waits for a subscriber.
fn got(broker: &mut Broker, id: Id) -> Vec<Event> {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    while let Some(batch) = broker.take(id, ROOM, Waker::noop()) {
        match batch {
            Batch::Many(bytes) => decoder.push(&bytes),
            Batch::One(bytes) => decoder.push(&bytes),
        }
        while let Some(event) = decoder.next_event().unwrap() {
            events.push(event);
        }
        assert!(!decoder.is_inside());
    }
    events
}

#[test]
fn events_go_to_their_topic_and_to_all_but_never_back() {
    let mut broker = Broker::new(BOUNDS);
    let a = plain(&mut broker, "alerts");
    let b = plain(&mut broker, "alerts");
    let all = plain(&mut broker, "*");
    let other = plain(&mut broker, "other");
    assert_eq!(publish(&mut broker, a, "alerts", "1").to, 2);
    assert_eq!(publish(&mut broker, other, "alerts", "2").to, 3);
    assert_eq!(publish(&mut broker, a, "*", "3").to, 1);
    assert_eq!(publish(&mut broker, all, "*", "4").to, 0);
    assert_eq!(publish(&mut broker, a, "nobody", "").to, 1);
    let alerts = |payload: &str| Event::new("alerts", payload);
    assert_eq!(got(&mut broker, a), [alerts("2")]);
    assert_eq!(got(&mut broker, b), [alerts("1"), alerts("2")]);
    assert_eq!(got(&mut broker, other), []);
    let expected = [alerts("1"), alerts("2"), Event::new("*", "3"), Event::new("nobody", "")];
    assert_eq!(got(&mut broker, all), expected);
    broker.unsubscribe(b);
    assert_eq!(publish(&mut broker, a, "alerts", "5").to, 1);
    assert_eq!(broker.len(), 3);
}

#[test]
fn an_event_goes_on_byte_for_byte() {
    let mut broker = Broker::new(BOUNDS);
    let from = plain(&mut broker, "x");
    let to = plain(&mut broker, "*");
    let wire = hex::decode("000674656d70c3a90000000200ff").unwrap();
    broker.publish(from, Frame::read(&wire, 100).unwrap().unwrap());
    assert_eq!(broker.take(to, ROOM, Waker::noop()), Some(Batch::Many(wire)));
}

#[test]
fn patterns_are_for_those_who_ask() {
    let mut broker = Broker::new(BOUNDS);
    let marked = ours(&mut broker, "sensors.*", OURS);
    let plain_one = plain(&mut broker, "sensors.*");
    let quiet = ours(&mut broker, "*", Options { publish_only: true, ..OURS });
    assert_eq!(publish(&mut broker, quiet, "sensors.temp", "1").to, 1);
    assert_eq!(publish(&mut broker, quiet, "sensors.*", "2").to, 2);
    // Notices cannot be made up.
    assert_eq!(publish(&mut broker, marked, "pilot.dropped", "{\"count\":9}").to, 0);
    assert_eq!(got(&mut broker, marked).len(), 2);
    assert_eq!(got(&mut broker, plain_one), [Event::new("sensors.*", "2")]);
    broker.unsubscribe(marked);
    assert_eq!(publish(&mut broker, quiet, "sensors.temp", "3").to, 0);
}

#[test]
fn a_slow_subscriber_loses_its_oldest_and_is_told() {
    let mut broker = Broker::new(Bounds { bytes: 1 << 20, events: 3 });
    let from = plain(&mut broker, "x");
    let slow = ours(&mut broker, "t", OURS);
    let published = plain(&mut broker, "t");
    let quick = plain(&mut broker, "t");
    for i in 0..5 {
        let done = publish(&mut broker, from, "t", &i.to_string());
        assert_eq!(done.dropped, if i < 3 { 0 } else { 2 });
        assert_eq!(got(&mut broker, quick), [Event::new("t", i.to_string())]);
    }
    let t = |payload: &str| Event::new("t", payload);
    let notice = Dropped { count: 2 }.to_event();
    assert_eq!(got(&mut broker, slow), [notice, t("2"), t("3"), t("4")]);
    assert_eq!(got(&mut broker, published), [t("2"), t("3"), t("4")]);
    // Told once.
    publish(&mut broker, from, "t", "5");
    assert_eq!(got(&mut broker, slow), [t("5")]);
}

#[test]
fn the_bytes_that_wait_are_bounded() {
    let mut broker = Broker::new(Bounds { bytes: 100, events: 1000 });
    let from = plain(&mut broker, "x");
    let to = ours(&mut broker, "t", OURS);
    // 7 bytes and the payload.
    assert_eq!(publish(&mut broker, from, "t", &"a".repeat(43)).dropped, 0);
    assert_eq!(publish(&mut broker, from, "t", &"b".repeat(43)).dropped, 0);
    assert_eq!(publish(&mut broker, from, "t", "").dropped, 1);
    // One may be longer than the bound; the others make room.
    let long = "c".repeat(200);
    assert_eq!(publish(&mut broker, from, "t", &long).dropped, 2);
    let notice = Dropped { count: 3 }.to_event();
    assert_eq!(got(&mut broker, to), [notice, Event::new("t", long)]);
}

#[test]
fn a_long_event_is_not_copied() {
    let mut broker = Broker::new(BOUNDS);
    let from = plain(&mut broker, "x");
    let (a, b) = (plain(&mut broker, "t"), plain(&mut broker, "t"));
    publish(&mut broker, from, "t", "first");
    publish(&mut broker, from, "t", &"l".repeat(ROOM));
    let mut take = |id| broker.take(id, ROOM, Waker::noop()).unwrap();
    let first = Event::new("t", "first").encode().unwrap();
    assert_eq!(take(a), Batch::Many(first.clone()));
    assert_eq!(take(b), Batch::Many(first));
    let (Batch::One(a), Batch::One(b)) = (take(a), take(b)) else { panic!("copied") };
    assert!(std::rc::Rc::ptr_eq(&a, &b));
}

#[test]
fn a_publisher_makes_way_for_subscribers_that_are_on_their_way() {
    struct Calls(AtomicUsize);
    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let calls = Arc::new(Calls(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&calls));
    let mut broker = Broker::new(Bounds { bytes: 1 << 20, events: 8 });
    let from = plain(&mut broker, "x");
    let to = plain(&mut broker, "t");
    assert_eq!(broker.take(to, ROOM, &waker), None);
    let crowded: Vec<_> = (0..4).map(|_| publish(&mut broker, from, "t", "").crowded).collect();
    assert_eq!(crowded, [false, false, false, true]);
    // Called once, however much waits.
    assert_eq!(calls.0.load(Ordering::Relaxed), 1);
    // It came and is writing: from now on it is its own fault.
    assert!(broker.take(to, ROOM, &waker).is_some());
    for _ in 0..100 {
        assert!(!publish(&mut broker, from, "t", "").crowded);
    }
    assert_eq!(calls.0.load(Ordering::Relaxed), 1);
}

proptest! {
    /// Who gets what is what the codec's subscriptions say.
    #[test]
    fn delivery_agrees_with_subscriptions(
        subscriptions in prop::collection::vec(
            (topic(), prop::option::of((any::<bool>(), any::<bool>()))), 1..8),
        events in prop::collection::vec((topic(), 0usize..8), 0..20),
    ) {
        let mut broker = Broker::new(BOUNDS);
        let mut all = Vec::new();
        for (topic, options) in subscriptions {
            let payload = options.map_or_else(Vec::new, |(patterns, publish_only)| {
                Options { patterns, dropped: true, publish_only }.to_payload()
            });
            let first = Event::new(topic, payload);
            let id = broker.subscribe(&first);
            got(&mut broker, id);
            all.push((id, Subscription::new(&first), Vec::new()));
        }
        for (i, (topic, from)) in events.into_iter().enumerate() {
            let from = from % all.len();
            publish(&mut broker, all[from].0, &topic, &i.to_string());
            for (n, (_, subscription, expected)) in all.iter_mut().enumerate() {
                if n != from && subscription.matches(topic.as_bytes()) {
                    expected.push(Event::new(topic.clone(), i.to_string()));
                }
            }
        }
        for (id, _, expected) in all {
            prop_assert_eq!(got(&mut broker, id), expected);
            broker.unsubscribe(id);
        }
        prop_assert_eq!(broker.len(), 0);
    }
}

fn topic() -> impl Strategy<Value = String> {
    let segments = prop::sample::select(vec!["a", "b", "*", "a*", ">", "", "pilot", "dropped"]);
    prop::collection::vec(segments, 1..4).prop_map(|segments| segments.join("."))
}
