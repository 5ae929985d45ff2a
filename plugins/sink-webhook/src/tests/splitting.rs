//! Order and counts of a delivery, against a receiver without a network.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use pilot_plugin::Delivery;
use pilot_plugin::json::{self, Value};

use super::events;
use crate::deliver::{Post, Posted, deliver};
use crate::format::Format;

const LONG: Duration = Duration::from_secs(3600);

/// Takes JSON arrays unless one of the bad events is in them, or they are too
/// many.
#[derive(Default)]
struct Receiver {
    bad: BTreeSet<u64>,
    most: Option<usize>,
    /// Posts after which it is down.
    down_after: Option<usize>,
    posts: usize,
    ids: Vec<String>,
    taken: Vec<u64>,
}

impl Post for Receiver {
    fn post(&mut self, id: &str, body: Bytes) -> impl Future<Output = Posted> + Send {
        self.ids.push(id.to_owned());
        let value: Value = json::from_slice(&body).unwrap();
        let events = value.as_array().cloned().unwrap_or_else(|| vec![value]);
        let numbers: Vec<u64> =
            events.iter().map(|event| event["event_id"].as_u64().unwrap()).collect();
        let posted = if self.down_after == Some(self.posts) {
            Posted::Later { after: Some(Duration::from_millis(1500)), reason: "down".to_owned() }
        } else if numbers.iter().any(|number| self.bad.contains(number))
            || self.most.is_some_and(|most| numbers.len() > most)
        {
            self.posts += 1;
            Posted::Refused { reason: "bad".to_owned() }
        } else {
            self.posts += 1;
            self.taken.extend(numbers);
            Posted::Accepted
        };
        std::future::ready(posted)
    }
}

fn run(receiver: &mut Receiver, format: Format, events: &[String], budget: Duration) -> Delivery {
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    deliver(receiver, format, &events, budget).now_or_never().unwrap()
}

/// Delivers as a host does, until everything is delivered or rejected; gives
/// the rejected ones.
fn host(receiver: &mut Receiver, format: Format, count: usize) -> Vec<u64> {
    let all = events(count);
    let (mut at, mut rejected) = (0, Vec::new());
    while at < count {
        match run(receiver, format, &all[at..], LONG) {
            Delivery::Ack => at = count,
            Delivery::Reject { accepted, rejected: refused, .. } => {
                assert_eq!(refused, 1);
                at += accepted;
                rejected.push(at as u64 + 1);
                at += 1;
            }
            other @ Delivery::Retry { .. } => panic!("{other:?}"),
        }
    }
    rejected
}

#[test]
fn any_bad_events_are_found_and_the_rest_arrives_once_in_order() {
    for count in 1..=9_usize {
        for pattern in 0..1_u64 << count {
            let bad: BTreeSet<u64> =
                (1..=count as u64).filter(|n| pattern >> (n - 1) & 1 == 1).collect();
            for format in [Format::JsonArray, Format::Single] {
                let mut receiver = Receiver { bad: bad.clone(), ..Receiver::default() };
                let rejected = host(&mut receiver, format, count);
                assert!(rejected.iter().eq(&bad), "{bad:?}: {rejected:?}");
                let good = (1..=count as u64).filter(|n| !bad.contains(n));
                assert!(receiver.taken.iter().copied().eq(good), "{bad:?}: {:?}", receiver.taken);
            }
        }
    }
}

#[test]
fn one_bad_event_of_a_thousand_costs_few_posts() {
    let mut receiver = Receiver { bad: BTreeSet::from([637]), ..Receiver::default() };
    assert_eq!(host(&mut receiver, Format::JsonArray, 1000), [637]);
    assert_eq!(receiver.taken.len(), 999);
    assert!(receiver.posts <= 13, "{}", receiver.posts);
}

#[test]
fn a_receiver_that_takes_fewer_events_gets_smaller_bodies() {
    let mut receiver = Receiver { most: Some(10), ..Receiver::default() };
    assert!(host(&mut receiver, Format::JsonArray, 100).is_empty());
    assert!(receiver.taken.iter().copied().eq(1..=100));
}

#[test]
fn what_arrived_before_a_failure_is_counted() {
    for down_after in 0..5 {
        let mut receiver = Receiver { down_after: Some(down_after), ..Receiver::default() };
        let delivery = run(&mut receiver, Format::Single, &events(5), LONG);
        let reason = "down".to_owned();
        let expected = Delivery::Retry { accepted: down_after, after_ms: Some(1500), reason };
        assert_eq!(delivery, expected);
        assert_eq!(receiver.taken.len(), down_after);
    }
    // In the middle of a search.
    let mut receiver =
        Receiver { bad: BTreeSet::from([8]), down_after: Some(2), ..Receiver::default() };
    let delivery = run(&mut receiver, Format::JsonArray, &events(8), LONG);
    let reason = "down".to_owned();
    assert_eq!(delivery, Delivery::Retry { accepted: 4, after_ms: Some(1500), reason });
    assert_eq!(receiver.ids, ["evt_2_1_8", "evt_2_1_4", "evt_2_5_6"]);
}

#[test]
fn a_delivery_beyond_its_time_says_how_far_it_got() {
    let mut receiver = Receiver::default();
    match run(&mut receiver, Format::Single, &events(3), Duration::ZERO) {
        Delivery::Retry { accepted: 1, after_ms: Some(0), reason } => {
            assert_eq!(reason, "1 of 3 events arrived so far");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_delivered_at_once() {
    let mut receiver = Receiver::default();
    assert_eq!(run(&mut receiver, Format::JsonArray, &[], LONG), Delivery::Ack);
    assert_eq!(receiver.posts, 0);
}
