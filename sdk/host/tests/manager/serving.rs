//! Ports, rules and sinks while generations come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pilot_host::{ManagerOptions, ReloadResult, State};
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use serde_json::{Value, json};

use crate::fake::{Seen, Stream, World, block, library, library_with, script};

fn unwatched(world: &World) -> ManagerOptions {
    ManagerOptions { watch: false, ..world.options() }
}

#[test]
fn a_port_belongs_to_the_first() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one", &[7, 8]);
    library(&world.path("plugins/two.so"), "two", &[8]);
    world.start(unwatched(&world));
    assert_eq!(world.status("one").state, State::Running);
    let status = world.status("two");
    assert_eq!(status.state, State::Failed);
    let reason = status.reason.unwrap();
    for word in ["port 8", "plugin one", "plugin two"] {
        assert!(reason.contains(word), "{reason}");
    }
    // Given back, it goes to the other, in the same reload.
    library(&world.path("plugins/one.so"), "one", &[7]);
    let report = world.reload();
    let result = |name: &str| report.plugins.iter().find(|p| p.name == name).unwrap().result;
    assert_eq!((result("one"), result("two")), (ReloadResult::Reloaded, ReloadResult::Started));
    assert_eq!(world.process.port(8).unwrap().name(), "two");
    // A wish for more is refused as a whole.
    library(&world.path("plugins/one.so"), "one more", &[6, 7, 8]);
    world.reload();
    assert!(world.process.port(6).is_none());
    assert_eq!(world.made("one").len(), 2);
    // And comes true when the other goes.
    std::fs::remove_file(world.path("plugins/two.so")).unwrap();
    world.reload();
    assert_eq!(world.last("one").label, "one more");
    assert_eq!(world.process.port(8).unwrap().name(), "one");
}

#[test]
fn a_process_without_ports_has_rules_and_sinks() {
    let mut world = World::new();
    let more = json!({ "rules": [{ "name": "gate" }] });
    library_with(&world.path("plugins/one.so"), "one", &[7], &more);
    // The same port, which nobody gets.
    let more = json!({ "rules": [{ "name": "door" }] });
    library_with(&world.path("plugins/two.so"), "two", &[7], &more);
    library(&world.path("plugins/three.so"), "three", &[8]);
    let no_ports = Some("a test has no ports");
    world.start(ManagerOptions { no_ports, ..unwatched(&world) });
    for name in ["one", "two"] {
        let status = world.status(name);
        assert_eq!(status.state, State::Running, "{status:?}");
        assert!(status.provides.services.iter().all(|service| service.ports.is_empty()));
        assert!(!status.provides.services.is_empty());
    }
    assert_eq!(world.manager().rules(), ["door", "gate"]);
    assert!(world.process.port(7).is_none());
    let status = world.status("three");
    assert_eq!(status.state, State::Failed);
    let reason = status.reason.unwrap();
    assert!(reason.contains("nothing but services") && reason.contains("a test has no ports"));
}

#[test]
fn ports_of_the_configuration() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one", &[7]);
    let two =
        json!({ "services": [{ "name": "a", "ports": [20] }, { "name": "b", "datagrams": true }] });
    library_with(&world.path("plugins/two.so"), "two", &[], &two);
    world.config("plugins:\n  one: {ports: [70, 71]}\n  two: {ports: {b: [21]}}\n");
    world.start(unwatched(&world));
    let ports =
        |world: &World| world.process.ports.lock().unwrap().keys().copied().collect::<Vec<_>>();
    assert_eq!(ports(&world), [20, 21, 70, 71]);
    let listened = world.process.listened.load(Ordering::SeqCst);
    assert!(!world.process.port(20).unwrap().takes_datagrams());
    assert!(world.process.port(21).unwrap().takes_datagrams());
    let from = "0:0000.0000.0001:9".parse().unwrap();
    world.process.port(20).unwrap().datagram(from, 20, Bytes::from("x"));
    assert_eq!(world.status("two").streams_total, 0);
    world.process.port(21).unwrap().datagram(from, 21, Bytes::from("x"));
    assert_eq!(world.status("two").streams_total, 1);
    // A new version on the same ports is nothing to the process.
    library(&world.path("plugins/one.so"), "one-b", &[7]);
    world.reload();
    assert_eq!(world.process.listened.load(Ordering::SeqCst), listened);
    for (config, expected) in [
        ("plugins:\n  two: {ports: [3]}\n", "map from service to list"),
        ("plugins:\n  two: {ports: {c: [3]}}\n", "no service \"c\""),
        ("plugins:\n  two: {ports: {a: [3], b: [3]}}\n", "port 3 is given twice"),
    ] {
        world.config(config);
        world.reload();
        let error = world.status("two").last_reload.unwrap().error.unwrap();
        assert!(error.contains(expected), "{error}");
    }
    // What the process refuses is undone.
    world.process.refuses.store(true, Ordering::SeqCst);
    world.config("plugins:\n  two: {ports: {a: [20, 30]}}\n");
    world.reload();
    let status = world.status("two");
    let error = status.last_reload.unwrap().error.unwrap();
    assert!(error.contains("port 30") && error.contains("an agent has it"), "{error}");
    assert_eq!(status.generation, 1);
    assert!(world.last("two").is_drained() && !world.made("two")[0].is_drained());
}

fn request(rule: &str, owner: &str) -> JoinRequest {
    let address = "0:0000.0000.0001".parse::<pilot_wire::Address>().unwrap();
    JoinRequest {
        rule: rule.to_owned(),
        network: 3,
        network_name: String::new(),
        node: address.node,
        address,
        public_key: String::new(),
        owner: owner.to_owned(),
        hostname: String::new(),
        tags: Vec::new(),
        proof: Value::Null,
        source: String::new(),
        at_ms: 0,
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
    }
}

#[test]
fn join_rules_fail_closed() {
    let mut world = World::new();
    let rule = |name: &str, fails: &str| json!({ "rules": [{ "name": name }], "fails": fails });
    library_with(&world.path("plugins/good.so"), "", &[], &rule("friends", ""));
    library_with(&world.path("plugins/crash.so"), "", &[], &rule("crash", "validate"));
    library_with(&world.path("plugins/silent.so"), "", &[], &rule("silent", "silence"));
    library_with(&world.path("plugins/z-same.so"), "", &[], &rule("friends", ""));
    world.config("plugins: {silent: {limits: {validate: 30ms}}}\n");
    world.start(unwatched(&world));
    assert_eq!(world.manager().rules(), ["crash", "friends", "silent"]);
    let ask = |rule: &str, owner: &str| block(world.manager().validate(request(rule, owner)));
    assert_eq!(ask("friends", "friend"), Verdict::allow());
    assert_eq!(ask("friends", "stranger"), Verdict::deny("not a friend"));
    let denied = |rule: &str, words: &[&str]| match ask(rule, "friend") {
        Verdict::Deny { reason } => {
            for word in words.iter().chain([&rule]) {
                assert!(reason.contains(word), "{reason}");
            }
        }
        verdict => panic!("{verdict:?}"),
    };
    denied("nobody", &["no plugin provides"]);
    denied("crash", &["crashed: oh", "plugin crash"]);
    denied("silent", &["within 30 ms", "plugin silent"]);
    let reason = world.status("z-same").reason.unwrap();
    assert!(reason.contains("\"friends\"") && reason.contains("plugin good"), "{reason}");
    // Off is no verdict either; the other one of that name takes its place.
    world.config("plugins: {good: {enabled: false}, z-same: {enabled: false}}\n");
    world.reload();
    denied("friends", &["no plugin provides"]);
    world.config("plugins: {good: {enabled: false}}\n");
    world.reload();
    assert_eq!(ask("friends", "friend"), Verdict::allow());
}

#[test]
fn sinks_stay_attached_while_generations_change() {
    let mut world = World::new();
    let sink = json!({ "sinks": [{ "name": "hook" }] });
    library_with(&world.path("plugins/one.so"), "one-a", &[], &sink);
    world.config("plugins: {one: {events: {filter: x}}}\n");
    world.start(unwatched(&world));
    let log = || std::mem::take(&mut *world.journal.log.lock().unwrap());
    assert_eq!(log(), ["attach one"]);
    let (settings, deliver) = world.journal.sinks.lock().unwrap()["one"].clone();
    assert_eq!(settings, json!({ "filter": "x" }));
    let batch = || Batch { sink: "one".to_owned(), lines: "{}".to_owned() };
    assert_eq!(block(deliver(batch())), Ok(Delivery::retry("one-a has hook")));
    library_with(&world.path("plugins/one.so"), "one-b", &[], &sink);
    world.reload();
    assert_eq!(log(), Vec::<String>::new());
    assert_eq!(block(deliver(batch())), Ok(Delivery::retry("one-b has hook")));
    assert_eq!(world.status("one").sink_status["one"], json!({ "waiting": 0 }));
    // Settings that the journal refuses keep everything.
    world.config("plugins: {one: {events: {bad: x}}}\n");
    world.reload();
    let error = world.status("one").last_reload.unwrap().error.unwrap();
    assert!(error.contains("bad") && error.contains("events"), "{error}");
    assert_eq!(world.journal.sinks.lock().unwrap()["one"].0, json!({ "filter": "x" }));
    world.config("plugins: {one: {events: {filter: y}}}\n");
    world.reload();
    assert_eq!(world.journal.sinks.lock().unwrap()["one"].0, json!({ "filter": "y" }));
    // What the manifest says of batches counts unless the configuration does.
    let small = json!({ "sinks": [{ "name": "hook", "max_batch": 9 }] });
    library_with(&world.path("plugins/one.so"), "one-c", &[], &small);
    world.reload();
    let settings = || world.journal.sinks.lock().unwrap()["one"].0.clone();
    assert_eq!(settings(), json!({ "filter": "y", "batch": 9 }));
    world.config("plugins: {one: {events: {batch: 3}}}\n");
    world.reload();
    assert_eq!(settings(), json!({ "batch": 3 }));
    log();
    world.config("plugins: {one: {enabled: false}}\n");
    world.reload();
    assert_eq!(log(), ["detach one"]);
    assert!(block(deliver(batch())).is_err());
}

/// Two hundred versions under streams that keep coming: each stream goes to one
/// instance, and never to one that had been replaced when it came.
#[test]
fn two_hundred_reloads_under_streams() {
    let mut world = World::new();
    let file = world.path("scripts/one.lua");
    script(&file, "0", &[7]);
    world.start(unwatched(&world));
    let port = world.process.port(7).unwrap();
    let (reported, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let openers: Vec<_> = (0..3)
        .map(|_| {
            let (port, reported, stop) =
                (Arc::clone(&port), Arc::clone(&reported), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut opened = 0_usize;
                while !stop.load(Ordering::SeqCst) {
                    let at_least = reported.load(Ordering::SeqCst);
                    let seen = Arc::new(Seen::default());
                    port.open(Box::new(Stream(Arc::clone(&seen))));
                    assert_eq!(*seen.reset.lock().unwrap(), None);
                    let wrote = seen.wrote.lock().unwrap();
                    assert_eq!(wrote.len(), 1, "one instance, and one only");
                    assert!(wrote[0].parse::<u64>().unwrap() >= at_least);
                    opened += 1;
                    if opened.is_multiple_of(16) {
                        std::thread::yield_now();
                    }
                }
                opened
            })
        })
        .collect();
    for version in 1..=200 {
        script(&file, &version.to_string(), &[7]);
        let report = world.reload();
        let done = report.plugins.iter().find(|p| p.name == "one").unwrap();
        assert_eq!((done.result, done.generation), (ReloadResult::Reloaded, version + 1));
        reported.store(done.generation, Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    let opened: usize = openers.into_iter().map(|o| o.join().unwrap()).sum();
    let made = world.made("one");
    let arrived: usize = made.iter().map(|f| f.opened.load(Ordering::SeqCst)).sum();
    assert_eq!((made.len(), arrived), (201, opened));
    assert_eq!(made.iter().map(|f| f.late()).sum::<usize>(), 0, "none came to a drained one");
    assert!(opened > 1000, "{opened} streams");
    // Old generations are let go: of those with streams, so many may finish.
    assert!(world.status("one").draining.len() <= 200);
    assert_eq!(world.process.listened.load(Ordering::SeqCst), 1);
    made.iter().for_each(|f| f.finish());
    crate::fake::until("they are over", || world.status("one").draining.is_empty());
    assert_eq!(world.status("one").streams_total, opened as u64);
    block(world.manager().shutdown(Duration::ZERO));
}
