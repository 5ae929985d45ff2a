//! The sinks that ship with Pilot, as shared libraries.

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use pilot_host::{Instance, Limits, open_native};
use pilot_plugin::{Batch, Delivery};
use serde_json::json;
use world::{World, block_on, plugin, wait_for};

const EVENTS: &str = concat!(
    r#"{"event":"conn.fin","node_id":2,"timestamp":"2026-11-20T12:01:50Z","event_id":1}"#,
    "\n",
    r#"{"event":"conn.rst","node_id":2,"timestamp":"2026-11-20T12:01:51Z","event_id":2}"#,
    "\n",
);

fn batch(sink: &str) -> Batch {
    Batch { sink: sink.to_owned(), lines: EVENTS.to_owned() }
}

fn end(instance: &dyn Instance) {
    instance.drain(Duration::from_secs(10));
    wait_for("the instance ended", || instance.stats().ended);
}

/// Answers requests on one connection until it is closed; gives their bodies.
fn receive(stream: TcpStream) -> Vec<String> {
    let mut stream = BufReader::new(stream);
    let mut bodies = Vec::new();
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap() == 0 {
                return bodies;
            }
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        bodies.push(String::from_utf8(body).unwrap());
        stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    }
}

#[test]
fn the_webhook_sink_posts_events_and_leaves_no_thread_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let receiver = std::thread::spawn(move || receive(listener.accept().unwrap().0));
    let world = World::new();
    let backend = open_native(&plugin("pilot-plugin-sink-webhook")).unwrap();
    assert_eq!(backend.manifest().sinks[0].name, "webhook");
    let context = world.context("sink-webhook", Limits::default());
    let instance = backend.start(&json!({ "url": url }), context).unwrap();
    assert_eq!(block_on(instance.deliver(batch("webhook"))), Ok(Delivery::Ack));
    assert_eq!(block_on(instance.deliver(batch("webhook"))), Ok(Delivery::Ack));
    assert_eq!(instance.stats().errors, 0);
    assert_eq!(posting_threads(), 1);
    end(&*instance);
    // The connection is closed by then, and the thread has ended.
    let bodies = receiver.join().unwrap();
    assert!(bodies.iter().map(String::as_str).eq(EVENTS.lines().chain(EVENTS.lines())));
    assert_eq!(posting_threads(), 0);
}

/// Threads of webhook sinks in this process (Linux).
fn posting_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One that ends meanwhile has no name.
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().filter(|name| name.trim_end() == "webhook-post").count()
}

#[test]
fn a_webhook_sink_without_a_url_keeps_events_and_one_with_a_wrong_url_does_not_start() {
    let world = World::new();
    let backend = open_native(&plugin("pilot-plugin-sink-webhook")).unwrap();
    let context = || world.context("sink-webhook-off", Limits::default());
    let instance = backend.start(&json!({}), context()).unwrap();
    match block_on(instance.deliver(batch("webhook"))).unwrap() {
        Delivery::Retry { accepted: 0, reason, .. } => assert!(reason.contains("no url")),
        other => panic!("{other:?}"),
    }
    end(&*instance);
    let refused = backend.start(&json!({ "url": "hooks.example" }), context()).err().unwrap();
    assert!(refused.to_string().contains("`url`"), "{refused}");
}

#[test]
fn the_file_sink_appends_events() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let world = World::new();
    let backend = open_native(&plugin("pilot-plugin-sink-file")).unwrap();
    assert_eq!(backend.manifest().sinks[0].name, "file");
    let context = world.context("sink-file", Limits::default());
    let instance = backend.start(&json!({ "path": path }), context).unwrap();
    assert_eq!(block_on(instance.deliver(batch("file"))), Ok(Delivery::Ack));
    assert_eq!(block_on(instance.deliver(batch("file"))), Ok(Delivery::Ack));
    end(&*instance);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), EVENTS.repeat(2));
}
