//! The nameserver, the event stream and the task service as shared libraries,
//! with several peers at their ports.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use pilot_host::{
    BoxFuture, BoxStream, CallError, Context, HostStream, Incident, Instance, Limits, Platform,
    PortService, open_native,
};
use pilot_plugin::Peer;
use pilot_wire::service::event_stream::{Decoder, Dropped, Event, Options};
use pilot_wire::service::tasks::{self, Kind, Submit, TaskFile, TaskId};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};
use world::{Far, World, plugin, wait_for};

/// A world with several nodes around this one, and a registry.
struct Net {
    world: Arc<World>,
    scores: Mutex<BTreeMap<u64, i64>>,
    /// Folder of tasks.
    tasks: PathBuf,
    /// Hostnames that the registry was asked for.
    asked: Mutex<Vec<String>>,
}

impl Net {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            world: World::new(),
            scores: Mutex::default(),
            tasks: PathBuf::new(),
            asked: Mutex::default(),
        })
    }

    fn start(self: &Arc<Self>, package: &str, config: &Value) -> Arc<dyn Instance> {
        let context = Context {
            platform: Arc::clone(self) as _,
            ..self.world.context(package, Limits { events: 1_000_000, ..Limits::default() })
        };
        open_native(&plugin(package)).unwrap().start(config, context).unwrap()
    }

    fn events(&self, name: &str) -> Vec<Map<String, Value>> {
        let events = self.world.events.lock().unwrap();
        events.iter().filter(|(n, _)| n == name).map(|(_, data)| data.clone()).collect()
    }

    fn failures(&self) -> Vec<String> {
        let incidents = self.world.incidents.lock().unwrap();
        incidents
            .iter()
            .map(|(_, incident)| match incident {
                Incident::Failed { text } => text.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

impl Platform for Net {
    fn address(&self) -> Option<Address> {
        self.world.address()
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        let key = Some(format!("key {}", remote.address.node));
        Peer { public_key: key, networks: vec![5], ..Peer::at(remote) }
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        self.world.dial(to)
    }

    fn send_datagram(&self, to: SocketAddress, port: u16, data: Bytes) -> Result<(), String> {
        self.world.send_datagram(to, port, data)
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        let node = request["node_id"].as_u64().unwrap_or_default();
        let mut scores = self.scores.lock().unwrap();
        let score = scores.entry(node).or_default();
        let answer = match method {
            "node.folders" => Ok(json!({ "tasks": self.tasks })),
            "registry.polo_score" => Ok(json!({ "node_id": node, "polo_score": *score })),
            "registry.update_polo_score" => {
                *score += request["delta"].as_i64().unwrap();
                Ok(json!({ "node_id": node, "polo_score": *score }))
            }
            "registry.resolve_hostname" => {
                let name = request["hostname"].as_str().unwrap().to_owned();
                let known = name == "known";
                self.asked.lock().unwrap().push(name);
                let answer = json!({ "node_id": 9, "address": "0:0000.0000.0009" });
                known.then_some(answer).ok_or(CallError::Failed("not found".to_owned()))
            }
            _ => return self.world.call(method, request),
        };
        Box::pin(std::future::ready(answer))
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        self.world.emit(name, data);
    }

    fn tell(&self, happening: pilot_host::events::Happening) {
        self.world.tell(happening);
    }

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, _: u16) {}
}

/// A stream of another peer than the world's.
struct From(BoxStream, SocketAddress);

impl HostStream for From {
    fn remote(&self) -> SocketAddress {
        self.1
    }

    fn local_port(&self) -> u16 {
        self.0.local_port()
    }

    fn poll_read(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.0.poll_read(cx)
    }

    fn poll_room(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<usize>> {
        self.0.poll_room(cx)
    }

    fn write(&mut self, data: Bytes) {
        self.0.write(data);
    }

    fn shutdown(&mut self) {
        self.0.shutdown();
    }

    fn reset(&mut self, reason: &str) {
        self.0.reset(reason);
    }
}

/// A stream of `node` to a port.
fn open(instance: &Arc<dyn Instance>, port: u16, node: u32) -> Far {
    let (near, far) = world::stream(port);
    let from = Address::backbone(NodeId(node)).port(49_152);
    instance.open(Box::new(From(near, from)));
    far
}

/// Sends one request as published; the answer.
fn ask(instance: &Arc<dyn Instance>, node: u32, text: &str) -> String {
    let far = open(instance, 53, node);
    far.send(text.to_owned()).unwrap();
    String::from_utf8(far.recv_all().unwrap()).unwrap()
}

#[test]
fn names_are_registered_found_and_kept() {
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records.json");
    let config = json!({ "records-file": file });
    let names = net.start("pilot-plugin-nameserver", &config);
    assert_eq!(ask(&names, 7, "REGISTER A web 0:0000.0000.0007"), "OK");
    assert_eq!(ask(&names, 8, "QUERY A web"), "A web 0:0000.0000.0007");
    let refused = "ERR name \"web\" belongs to another node";
    assert_eq!(ask(&names, 8, "REGISTER A web 0:0000.0000.0008"), refused);
    // The registry's hostnames, asked for once, and this node's own.
    for _ in 0..2 {
        assert_eq!(ask(&names, 8, "QUERY A known"), "A known 0:0000.0000.0009");
        assert_eq!(ask(&names, 8, "QUERY A unknown"), "ERR name \"unknown\" not found");
    }
    assert_eq!(*net.asked.lock().unwrap(), ["web", "known", "unknown"]);
    let own = || net.events("name.registered").iter().any(|data| data["name"] == "near");
    wait_for("this node's own name", own);
    assert_eq!(ask(&names, 8, "QUERY A near"), "A near 0:0000.0000.0001");
    // Several requests on one stream, cut anywhere.
    let far = open(&names, 53, 8);
    far.send("QUERY A web\nREGISTER S api 0:0000.0000.0008 5 80\nQUERY S 5").unwrap();
    far.send(" 80\nQUERY A known").unwrap();
    far.finish();
    assert_eq!(
        String::from_utf8(far.recv_all().unwrap()).unwrap(),
        "A web 0:0000.0000.0007\nOK\nS api 0:0000.0000.0008 80\n\nA known 0:0000.0000.0009\n"
    );
    wait_for("the records file", || file.exists());
    let records: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(records["a_records"][1], json!({ "name": "web", "address": "0:0000.0000.0007" }));
    let registered = net.events("name.registered");
    let web = json!({ "name": "web", "record": "A", "address": "0:0000.0000.0007",
        "from": "0:0000.0000.0007:49152" });
    assert!(registered.iter().any(|data| Value::Object(data.clone()) == web), "{registered:?}");
    let told = net.events("name.refused");
    assert_eq!(told[0]["from"], "0:0000.0000.0008:49152");
    assert_eq!(told[0]["reason"], refused["ERR ".len()..]);
    // A new generation has them from the store.
    names.drain(Duration::from_secs(10));
    wait_for("the instance ended", || names.stats().ended);
    let names = net.start("pilot-plugin-nameserver", &json!({ "hostnames": false }));
    assert_eq!(ask(&names, 8, "QUERY A web"), "A web 0:0000.0000.0007");
    assert_eq!(ask(&names, 8, "REGISTER N web 1"), refused);
    assert_eq!(net.failures(), [""; 0]);
}

#[test]
fn many_questions_on_one_stream() {
    let net = Net::new();
    let names = net.start("pilot-plugin-nameserver", &json!({}));
    assert_eq!(ask(&names, 7, "REGISTER A web 0:0000.0000.0007"), "OK");
    let count = 400_000;
    let far = open(&names, 53, 7);
    let began = std::time::Instant::now();
    let answers = far.exchange(&b"QUERY A web\n".repeat(count)).unwrap();
    // For people: `cargo test -- --nocapture`.
    println!("{:.0} questions a second", count as f64 / began.elapsed().as_secs_f64());
    assert!(answers == b"A web 0:0000.0000.0007\n".repeat(count));
}

/// A subscriber at the port.
struct Subscriber {
    far: Far,
    decoder: Decoder,
}

impl Subscriber {
    fn new(instance: &Arc<dyn Instance>, node: u32, first: &Event) -> Self {
        let far = open(instance, 1002, node);
        far.send(first.encode().unwrap()).unwrap();
        Self { far, decoder: Decoder::default() }
    }

    fn publish(&self, topic: &str, payload: &str) {
        self.far.send(Event::new(topic, payload).encode().unwrap()).unwrap();
    }

    fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.decoder.next_event().unwrap() {
                return event;
            }
            let data = self.far.recv().unwrap().expect("the stream ended");
            self.decoder.push(&data);
        }
    }
}

fn ours() -> Vec<u8> {
    Options { patterns: true, dropped: true, publish_only: false }.to_payload()
}

#[test]
fn events_reach_their_subscribers() {
    let net = Net::new();
    let config = json!({ "publish": [{ "topics": ["alerts", "a.*"], "networks": [5] }] });
    let events = net.start("pilot-plugin-event-stream", &config);
    let mut plain = Subscriber::new(&events, 7, &Event::new("alerts", ""));
    let mut pattern = Subscriber::new(&events, 8, &Event::new("a.*", ours()));
    assert!(Options::from_event(&pattern.next()).unwrap().patterns);
    wait_for("both", || net.events("pubsub.subscribed").len() == 2);
    let from = Subscriber::new(&events, 9, &Event::new("none", ""));
    from.publish("forbidden", "0");
    from.publish("alerts", "1");
    from.publish("a.b", "2");
    assert_eq!(plain.next(), Event::new("alerts", "1"));
    assert_eq!(pattern.next(), Event::new("a.b", "2"));
    from.far.finish();
    assert_eq!(from.far.recv_all().unwrap(), b"");
    wait_for("the end is told", || net.events("pubsub.unsubscribed").len() == 1);
    let told = |name: &str| Value::Object(net.events(name)[0].clone());
    let remote = "0:0000.0000.0007:49152";
    assert_eq!(told("pubsub.subscribed"), json!({ "topic": "alerts", "remote": remote }));
    let from = "0:0000.0000.0009:49152";
    assert_eq!(told("pubsub.published"), json!({ "topic": "alerts", "size": 1, "from": from }));
    assert_eq!(told("pubsub.unsubscribed"), json!({ "topic": "none", "remote": from }));
    assert_eq!(net.events("pubsub.published").len(), 2);
    // A new generation has other subscribers: those of the old one connect again.
    events.drain(Duration::from_secs(10));
    assert_eq!(plain.far.recv_all().unwrap(), b"");
    assert_eq!(pattern.far.recv_all().unwrap(), b"");
    wait_for("the instance ended", || events.stats().ended);
    assert_eq!(net.events("pubsub.unsubscribed").len(), 3);
    assert_eq!(net.failures(), [""; 0]);
}

#[test]
fn who_misses_events_is_told_how_many() {
    const EVENTS: u64 = 100_000;
    let net = Net::new();
    let events = net.start("pilot-plugin-event-stream", &json!({}));
    let mut slow = Subscriber::new(&events, 6, &Event::new("*", ours()));
    let mut quick = Subscriber::new(&events, 7, &Event::new("t", ours()));
    quick.next();
    wait_for("both", || net.events("pubsub.subscribed").len() == 2);
    let from = Subscriber::new(&events, 9, &Event::new("none", ""));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0;
            while sent < EVENTS {
                let mut piece = Vec::new();
                while piece.len() < 60_000 && sent < EVENTS {
                    piece.extend_from_slice(&Event::new("t", sent.to_string()).encode().unwrap());
                    sent += 1;
                }
                from.far.send(piece).unwrap();
            }
        });
        // This one reads all the time; what it misses it is told.
        let mut next = 0;
        while next < EVENTS {
            let event = quick.next();
            if let Some(Dropped { count }) = Dropped::from_event(&event) {
                next += count;
                continue;
            }
            assert_eq!(event.payload, next.to_string().into_bytes());
            next += 1;
        }
        assert_eq!(next, EVENTS);
    });
    // That one begins now. It holds what a stream takes, and the newest.
    slow.next();
    let (mut next, mut dropped) = (0, 0);
    while next < EVENTS {
        let event = slow.next();
        if let Some(Dropped { count }) = Dropped::from_event(&event) {
            dropped += count;
            next += count;
            continue;
        }
        assert_eq!(event.payload, next.to_string().into_bytes());
        next += 1;
    }
    assert_eq!(next, EVENTS);
    assert!(dropped > 0, "it was slow");
}

#[test]
fn what_may_not_be_published_can_reset_the_connection() {
    let net = Net::new();
    let config = json!({ "publish": [], "reset-refused": true, "max-per-node": 2 });
    let events = net.start("pilot-plugin-event-stream", &config);
    let from = Subscriber::new(&events, 9, &Event::new("t", ""));
    from.publish("t", "1");
    assert!(from.far.recv().is_err());
    let long = Subscriber::new(&events, 9, &Event::new("t", ""));
    long.far.send(vec![0, 0, 1, 0, 0, 1]).unwrap();
    assert!(long.far.recv().is_err());
    wait_for("both have left", || net.events("pubsub.unsubscribed").len() == 2);
    let _two = [(); 2].map(|()| Subscriber::new(&events, 9, &Event::new("t", "")));
    let third = open(&events, 1002, 9);
    assert!(third.recv().is_err());
    wait_for("three failures", || net.failures().len() == 3);
    let failures = net.failures();
    assert!(failures[0].contains("may not publish on \"t\""), "{failures:?}");
    assert!(failures[1].contains("16777217"), "{failures:?}");
    assert!(failures[2].contains("more than 2 connections of node 9"), "{failures:?}");
}

#[test]
fn tasks_are_taken_answered_and_rewarded() {
    let dir = tempfile::tempdir().unwrap();
    let net = Arc::new(Net {
        world: World::new(),
        scores: Mutex::default(),
        tasks: dir.path().join("tasks"),
        asked: Mutex::default(),
    });
    let service = net.start("pilot-plugin-tasks", &json!({ "max-per-node": 1 }));
    let exchange = |node, frame: Vec<u8>| {
        let far = open(&service, 1003, node);
        far.send(frame).unwrap();
        far.recv_all()
    };
    let id = |n| TaskId::from_random([n; 16]);
    let submit = |n| Submit {
        task_id: id(n),
        task_description: "add".to_owned(),
        from_addr: "0:0000.0000.0007".to_owned(),
        to_addr: "0:0000.0000.0001".to_owned(),
    };
    let answer = |node, n| {
        let frame = exchange(node, tasks::frame(Kind::Submit, &submit(n)).unwrap()).unwrap();
        tasks::parse::<tasks::SubmitAnswer>(&frame[8..]).unwrap()
    };
    let taken = answer(7, 1);
    assert_eq!((taken.status, taken.message.as_str()), (200, "Task received with status NEW"));
    let at = dir.path().join(format!("tasks/received/{}.json", id(1)));
    let file: TaskFile = serde_json::from_slice(&fs::read(at).unwrap()).unwrap();
    assert_eq!((file.from.as_str(), file.status), ("0:0000.0000.0007", tasks::Status::New));
    assert_eq!(answer(8, 1).message, "The task is known already");
    assert_eq!(answer(7, 2).message, "Too many tasks of one submitter waiting: at most 1");
    net.scores.lock().unwrap().insert(1, 3);
    let poor = answer(8, 3);
    let why = "Polo score too low: submitter=0, receiver=3";
    assert_eq!((poor.status, poor.message.as_str()), (400, why));
    assert_eq!(net.events("task.received").len(), 1);
    assert_eq!(net.events("task.refused").len(), 3);

    // A task of ours, done by node 8; node 9 would like to have done it.
    let sent =
        TaskFile::new(id(4), "d", "2025-01-02T03:04:05Z", "0:0000.0000.0001", "0:0000.0000.0008");
    fs::write(dir.path().join(format!("tasks/submitted/{}.json", id(4))), sent.to_text()).unwrap();
    let results = json!({ "task_id": id(4), "result_type": "text", "result_text": "done",
        "completed_at": "2025-01-02T04:04:05Z", "time_cpu_ms": 600_000 });
    let results = tasks::frame(Kind::SendResults, &results).unwrap();
    assert_eq!(exchange(9, results.clone()).unwrap(), b"");
    assert_eq!(exchange(8, results.clone()).unwrap(), b"");
    assert_eq!(exchange(8, results).unwrap(), b"");
    let at = dir.path().join(format!("tasks/results/{}_result.txt", id(4)));
    assert_eq!(fs::read(at).unwrap(), b"done");
    wait_for("points", || net.scores.lock().unwrap().get(&8) == Some(&4));
    assert_eq!(net.scores.lock().unwrap()[&1], 2);
    let done = net.events("task.completed");
    assert_eq!(done.len(), 1);
    let whole = json!({ "task_id": id(4), "from": "0:0000.0000.0001" });
    assert_eq!(Value::Object(done[0].clone()), whole);
    assert_eq!(net.events("task.refused").len(), 5);

    // What waits outlives a restart.
    service.drain(Duration::from_secs(10));
    wait_for("the instance ended", || service.stats().ended);
    let service = net.start("pilot-plugin-tasks", &json!({ "max-per-node": 1 }));
    net.scores.lock().unwrap().clear();
    let far = open(&service, 1003, 7);
    far.send(tasks::frame(Kind::Submit, &submit(5)).unwrap()).unwrap();
    let frame = far.recv_all().unwrap();
    let answer = tasks::parse::<tasks::SubmitAnswer>(&frame[8..]).unwrap();
    assert_eq!(answer.message, "Too many tasks of one submitter waiting: at most 1");
    let exchange = |node, frame: Vec<u8>| {
        let far = open(&service, 1003, node);
        far.send(frame).unwrap();
        far.recv_all()
    };

    // What is no frame of ours, and what is cut.
    assert_eq!(exchange(8, vec![0, 0, 0, 9, 0, 0, 0, 0]).unwrap(), b"");
    assert!(exchange(8, vec![0, 0, 0, 3, 1, 0, 0, 0]).is_err());
    let cut = open(&service, 1003, 8);
    cut.send(vec![0, 0, 0, 1, 0, 0, 0, 9, b'{']).unwrap();
    cut.finish();
    assert!(cut.recv().is_err());
}
