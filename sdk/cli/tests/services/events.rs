//! `subscribe` and `publish`.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilot_sdk::{Client, Stream};
use pilot_wire::service::event_stream::{Decoder, Dropped, Event, PORT, Subscription};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::common::User;
use crate::mock::{Behaviour, MockDaemon};

/// A subscription and where its events go.
type Subscribers = Arc<Mutex<Vec<(Subscription, mpsc::UnboundedSender<Event>)>>>;

/// A broker; `ours` says whether it knows the extension.
struct Broker {
    subscribers: Subscribers,
}

impl Broker {
    async fn start(socket: &Path, ours: bool) -> Self {
        let subscribers = Subscribers::default();
        let client = Client::connect_to(socket).await.expect("connects");
        let listener = client.listen(PORT).await.expect("listens");
        let all = Arc::clone(&subscribers);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all), ours));
            }
        });
        Self { subscribers }
    }

    /// Waits for a subscriber that is no publisher.
    async fn subscribed(&self, topic: &str) {
        let there = || {
            let all = self.subscribers.lock().expect("subscribers");
            all.iter().any(|(s, _)| {
                s.topic() == topic.as_bytes() && s.options().is_none_or(|o| !o.publish_only)
            })
        };
        let wait = async {
            while !there() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("nobody subscribes to {topic}"));
    }

    fn send(&self, event: &Event) {
        for (_, out) in self.subscribers.lock().expect("subscribers").iter() {
            let _ = out.send(event.clone());
        }
    }

    fn end(&self) {
        self.subscribers.lock().expect("subscribers").clear();
    }
}

async fn serve(stream: Stream, all: Subscribers, ours: bool) {
    let (mut read, mut write) = stream.into_split();
    let (out, mut outgoing) = mpsc::unbounded_channel::<Event>();
    tokio::spawn(async move {
        while let Some(event) = outgoing.recv().await {
            if write.write_all(&event.encode().expect("short")).await.is_err() {
                return;
            }
        }
    });
    // The subscription alone keeps the way to the subscriber open.
    let (me, mut out) = (out.downgrade(), Some(out));
    let mut decoder = Decoder::default();
    let mut buffer = [0; 1000];
    while let Ok(n @ 1..) = read.read(&mut buffer).await {
        decoder.push(&buffer[..n]);
        while let Some(event) = decoder.next_event().expect("an event") {
            let mut all = all.lock().expect("subscribers");
            let Some(out) = out.take() else {
                for (subscription, to) in all.iter() {
                    let matches = match ours {
                        true => subscription.matches(&event.topic),
                        false => [b"*", &event.topic[..]].contains(&subscription.topic()),
                    };
                    if matches && !me.upgrade().is_some_and(|me| me.same_channel(to)) {
                        let _ = to.send(event.clone());
                    }
                }
                continue;
            };
            let subscription = Subscription::new(&event);
            if let Some(options) = subscription.options().filter(|_| ours) {
                let _ = out.send(options.to_event());
            }
            all.push((subscription, out));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_seen() {
    for ours in [true, false] {
        let daemon = MockDaemon::start(Behaviour::default());
        let (home, socket) = (daemon.dir(), daemon.socket());
        let user = User::new(home, &socket);
        let broker = Broker::start(&socket, ours).await;
        let subscribing =
            user.run(&["subscribe", "2", "alerts", "--count", "2", "--timeout", "30s"]);
        let publishing = async {
            broker.subscribed("alerts").await;
            for (topic, data) in [("other", "no"), ("alerts", "boom"), ("alerts", "bang")] {
                let run = user.run(&["publish", "2", topic, "--data", data]).await;
                assert_eq!(
                    run.data(),
                    json!({"target": "0:0000.0000.0002", "topic": topic, "bytes": data.len()})
                );
            }
        };
        let (run, ()) = tokio::join!(subscribing, publishing);
        let event = |data: &str| json!({"topic": "alerts", "data": data, "bytes": 4});
        let data = run.data();
        assert_eq!(data, json!({"events": [event("boom"), event("bang")], "timeout": false}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_and_what_was_left_out() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let broker = Broker::start(&socket, true).await;
    let subscribing =
        user.run(&["subscribe", "2", "sensors.*", "--count", "1", "--timeout", "30s"]);
    let publishing = async {
        broker.subscribed("sensors.*").await;
        broker.send(&Dropped { count: 3 }.to_event());
        user.run(&["publish", "2", "sensors.a.b", "--data", "too deep"]).await.data();
        user.run(&["publish", "2", "sensors.a", "--data", "1"]).await.data();
    };
    let (run, ()) = tokio::join!(subscribing, publishing);
    let event = json!({"topic": "sensors.a", "data": "1", "bytes": 1});
    let data = run.data();
    assert_eq!(data, json!({"events": [event], "timeout": false, "dropped": 3}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_broker_makes_no_notices() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let broker = Broker::start(&socket, false).await;
    // Somebody made it up: it is an event like any other.
    let subscribing = user.run(&["subscribe", "2", "*", "--count", "2", "--timeout", "30s"]);
    let sending = async {
        broker.subscribed("*").await;
        broker.send(&Event::new("x", "1"));
        broker.send(&Dropped { count: 3 }.to_event());
    };
    let (run, ()) = tokio::join!(subscribing, sending);
    let data = run.data();
    assert_eq!(data["events"][1]["topic"], "pilot.dropped");
    assert_eq!(data.get("dropped"), None);
    let run = user
        .run(&["--json=false", "subscribe", "2", "a.*", "--count", "1", "--timeout", "50ms"])
        .await;
    assert!(run.stderr.contains("did not say that it knows patterns"), "{run:?}");
    assert_eq!(run.stdout, "0 received, timeout\n");
    let data = user.run(&["subscribe", "2", "a", "--count", "1", "--timeout", "50ms"]).await.data();
    assert_eq!(data, json!({"events": null, "timeout": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_by_line_until_the_peer_ends() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let broker = Broker::start(&socket, true).await;
    let subscribing = user.run(&["subscribe", "2", "t"]);
    let sending = async {
        broker.subscribed("t").await;
        broker.send(&Event::new("t", "a\nb"));
        broker.send(&Dropped { count: 2 }.to_event());
        broker.end();
    };
    let (run, ()) = tokio::join!(subscribing, sending);
    assert_eq!(run.exit, 1, "{run:?}");
    let lines: Vec<serde_json::Value> =
        run.stdout.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines, [json!({"topic": "t", "data": "a\nb", "bytes": 3}), json!({"dropped": 2})]);
    assert!(run.stderr.contains("the peer ended"), "{run:?}");
    // With a count what came is told all the same.
    let broker_ends = async {
        broker.subscribed("u").await;
        broker.send(&Event::new("u", "1"));
        broker.end();
    };
    let (run, ()) = tokio::join!(user.run(&["subscribe", "2", "u", "--count", "5"]), broker_ends);
    let data = run.data();
    assert_eq!(data["events"][0]["data"], "1");
    assert_eq!(data["error"], "the peer ended");
}

#[tokio::test]
async fn wrong_use() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let error = user.run(&["publish", "2", "alerts"]).await.error();
    assert_eq!(error["message"], "--data is required");
    let long = "t".repeat(1025);
    let error = user.run(&["publish", "2", &long, "--data", "x"]).await.error();
    assert_eq!(error["message"], "event topic of 1025 bytes, the limit is 1024");
    let error = user.run(&["subscribe", "2", "x", "--timeout", "1s"]).await.error();
    assert_eq!(error["code"], "connection_failed", "nobody listens there");
}
