//! Plugins in processes of their own: what kills them kills nothing else.

mod world;

use std::sync::Arc;
use std::time::Duration;

use pilot_host::{Incident, Instance, Limits, ProcessError, StartError, open_process};
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use pilot_wire::{Address, NodeId};
use serde_json::json;
use world::{World, block_on, compile, plugin, program, remote, stream, wait_for};

fn limits() -> Limits {
    Limits {
        start: Duration::from_secs(5),
        callback: Duration::from_millis(300),
        validate: Duration::from_secs(2),
        deliver: Duration::from_secs(2),
        memory: 64 << 20,
        ..Limits::default()
    }
}

fn start(world: &Arc<World>, mode: &str) -> Result<Arc<dyn Instance>, StartError> {
    program("pilot-host", "pilot-plugin-host");
    let backend = open_process(&plugin("pilot-hostile-plugin"), &limits()).unwrap();
    backend.start(&json!({ "mode": mode }), world.context("hostile", limits()))
}

fn running(mode: &str) -> (Arc<World>, Arc<dyn Instance>) {
    let world = World::new();
    let instance = start(&world, mode).unwrap();
    (world, instance)
}

fn request() -> JoinRequest {
    JoinRequest {
        rule: "hostile".into(),
        network: 3,
        network_name: "lab".into(),
        node: NodeId(77),
        address: Address::backbone(NodeId(77)),
        public_key: "a2V5".into(),
        owner: String::new(),
        hostname: String::new(),
        tags: Vec::new(),
        proof: json!("open sesame"),
        source: "127.0.0.1".into(),
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: 1,
    }
}

#[test]
fn a_plugin_in_a_child_serves_like_one_in_process() {
    let (world, instance) = running("none");
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i * 31) as u8).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (near, far) = stream(3000);
                instance.open(near);
                assert!(far.exchange(&data).unwrap() == data);
            });
        }
    });
    wait_for("all streams closed", || instance.stats().streams == 0);
    assert_eq!(block_on(instance.validate(request())), Ok(Verdict::allow()));
    let batch = Batch { sink: "hostile".to_owned(), lines: "{}\n".to_owned() };
    assert_eq!(block_on(instance.deliver(batch)), Ok(Delivery::Ack));
    instance.datagram(remote(), 3000, "ping".into());
    wait_for("the answer", || !world.datagrams.lock().unwrap().is_empty());
    wait_for("figures of the child", || instance.stats().calls > 0);
    let stats = instance.stats();
    assert!(stats.memory.unwrap() > 1 << 20, "{stats:?}");
    instance.drain(Duration::from_secs(5));
    wait_for("the end", || instance.stats().ended);
    assert!(world.incidents.lock().unwrap().is_empty(), "{:?}", world.incidents);
}

#[test]
fn many_small_writes_and_a_slow_reader_are_carried_whole() {
    let (_world, instance) = running("none");
    let (near, far) = stream(3000);
    instance.open(near);
    for i in 0..20_000u32 {
        far.send(i.to_be_bytes().to_vec()).unwrap();
        if i % 64 == 0 {
            // What comes back waits in the meantime.
            std::thread::yield_now();
        }
        if i % 1000 == 999 {
            assert!(far.recv().unwrap().is_some());
        }
    }
    far.finish();
    let rest = far.recv_all().unwrap();
    assert!(rest.ends_with(&19_999u32.to_be_bytes()));
    assert!(rest.len() <= 80_000 - 20 * 4);
}

#[test]
fn what_the_platform_does_reaches_the_child() {
    let exchange = |mode: &str| {
        let (world, instance) = running(mode);
        let (near, far) = stream(3000);
        instance.open(near);
        far.finish();
        let text = String::from_utf8(far.recv_all().unwrap()).unwrap();
        (world, text)
    };
    let (_, text) = exchange("call");
    assert!(text.starts_with(r#"{"n":1}"#), "{text}");
    assert!(text.contains("test.fail: as asked"), "{text}");
    let (world, text) = exchange("dial");
    assert!(text.contains("cannot dial nobody:9: cannot resolve nobody:9"), "{text}");
    assert_eq!(world.dialled.lock().unwrap()[0].1.recv_all().unwrap(), b"hello");
    let (_, text) = exchange("store");
    assert!(
        text.starts_with(r#"1 ["count"] Some(store: cannot write "much": the quota"#),
        "{text}"
    );
    let (world, text) = exchange("flood-events");
    assert!(text.parse::<u32>().unwrap() > 50_000);
    assert!(!world.events.lock().unwrap().is_empty());
}

#[test]
fn a_crash_costs_its_own_streams_and_says_what_it_was() {
    for (mode, wanted) in [
        ("abort-serve", "aborted (SIGABRT)"),
        ("overflow-serve", "aborted (SIGABRT)"),
        ("allocate-serve", "aborted (SIGABRT): out of memory"),
    ] {
        let (world, instance) = running(mode);
        let (near, far) = stream(3000);
        instance.open(near);
        let error = far.recv().unwrap_err().to_string();
        assert!(error.contains(wanted), "{mode}: {error}");
        wait_for("the report", || {
            world.has_incident(|i| matches!(i, Incident::Died { text } if text.contains(wanted)))
        });
        assert!(instance.stats().ended);
        let (near, far) = stream(3000);
        instance.open(near);
        assert!(far.recv().is_err());
    }
}

#[test]
fn signals_and_exits_are_told_apart() {
    program("pilot-host", "pilot-plugin-host");
    let (_dir, file) = compile("tests/plugins/hostile.c", "");
    let backend = open_process(&file, &limits()).unwrap();
    for (mode, wanted) in [
        ("segfault", "segmentation fault (SIGSEGV)"),
        ("abort", "aborted (SIGABRT)"),
        ("exit", "exited with status 3"),
        ("spin", "hangs"),
    ] {
        let world = World::new();
        let context = world.context("hostile-c", limits());
        let instance = backend.start(&json!({ "mode": mode }), context).unwrap();
        let (near, far) = stream(3001);
        instance.open(near);
        let error = far.recv().unwrap_err().to_string();
        assert!(error.contains(wanted), "{mode}: {error}");
        wait_for("the report", || !world.incidents.lock().unwrap().is_empty());
    }
}

#[test]
fn a_panic_in_a_child_is_one_stream() {
    let (world, instance) = running("panic-serve");
    for _ in 0..2 {
        let (near, far) = stream(3000);
        instance.open(near);
        let error = far.recv().unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
    }
    wait_for("the report", || {
        world.has_incident(
            |i| matches!(i, Incident::Panicked { text, .. } if text.contains("on purpose")),
        )
    });
    assert!(!instance.stats().ended);
}

#[test]
fn an_endless_loop_ends_with_its_process() {
    let (world, instance) = running("hang-serve");
    let (near, far) = stream(3000);
    instance.open(near);
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("hangs"), "{error}");
    wait_for("the report", || world.has_incident(|i| matches!(i, Incident::Hung { .. })));
    assert!(instance.stats().ended);
    assert!(block_on(instance.validate(request())).is_err());
}

#[test]
fn a_child_that_does_not_start_says_why() {
    let world = World::new();
    let refused = StartError::Refused("port 3000 is cursed".to_owned());
    assert_eq!(start(&world, "fail-start").err(), Some(refused));
    let error = start(&world, "abort-start").err().unwrap().to_string();
    assert!(error.contains("aborted (SIGABRT)"), "{error}");
    let error = start(&world, "panic-self-test").err().unwrap().to_string();
    assert!(error.contains("on purpose, in self-test"), "{error}");
}

#[test]
fn a_file_that_is_no_plugin_is_refused() {
    program("pilot-host", "pilot-plugin-host");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.so");
    std::fs::write(&path, "not a library").unwrap();
    match open_process(&path, &limits()).err() {
        Some(ProcessError::Open(text)) => {
            assert!(text.contains("text.so") && text.contains("not a shared library"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_end_of_the_handle_is_the_end_of_the_child() {
    let (_world, instance) = running("none");
    let (near, far) = stream(3000);
    instance.open(near);
    far.send("x").unwrap();
    assert_eq!(far.recv().unwrap().unwrap(), "x");
    drop(instance);
    assert!(far.recv().is_err());
}

/// Speaks while it starts, and leaves a process behind that holds everything
/// the child had.
const FORKS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pilot_plugin.h"

static const PilotHost *host;
static const PilotContext *context;

static PilotSlice text(const char *s) {
  PilotSlice slice = {(const uint8_t *)s, strlen(s)};
  return slice;
}

static int32_t start(const PilotHost *table, const PilotContext *given, PilotSlice config,
                     void **instance, PilotBuffer *error) {
  (void)error;
  host = table;
  context = given;
  *instance = &host;
  int pid = fork();
  if (pid == 0)
    for (;;) pause();
  char line[64];
  snprintf(line, sizeof line, "{\"pid\":%d}", pid);
  host->emit(context, text("forked"), text(line));
  host->call(context, 1, text("test.echo"), text("{\"early\":true}"));
  if (strstr((const char *)config.data, "abort")) abort();
  return PILOT_OK;
}

static int32_t answer(void *instance, uint64_t token, int32_t status, PilotSlice body) {
  (void)instance;
  (void)token;
  (void)status;
  host->emit(context, text("answered"), body);
  return PILOT_OK;
}

static int32_t stream_open(void *instance, uint64_t id, uint16_t port, PilotSlice peer,
                           void **user) {
  (void)instance;
  (void)id;
  (void)port;
  (void)peer;
  (void)user;
  _exit(3);
}

static int32_t stream_ready(void *instance, uint64_t id, void *user, uint32_t what) {
  (void)instance;
  (void)id;
  (void)user;
  (void)what;
  return PILOT_OK;
}

static void stop(void *instance) { (void)instance; }

const PilotPlugin *pilot_plugin_v1(void) {
  static PilotPlugin plugin;
  plugin.abi_major = PILOT_ABI_MAJOR;
  plugin.abi_minor = PILOT_ABI_MINOR;
  plugin.struct_size = sizeof plugin;
  plugin.manifest = text("{\"name\":\"forks\",\"version\":\"1\",\"services\":"
                         "[{\"name\":\"s\",\"ports\":[3001]}]}");
  plugin.start = start;
  plugin.stop = stop;
  plugin.stream_open = stream_open;
  plugin.stream_ready = stream_ready;
  plugin.answer = answer;
  return &plugin;
}
"#;

#[test]
fn what_a_child_says_early_is_heard_and_what_it_started_ends_with_it() {
    program("pilot-host", "pilot-plugin-host");
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("forks.c");
    std::fs::write(&source, FORKS).unwrap();
    let (_dir, file) = compile(source.to_str().unwrap(), "");
    let backend = open_process(&file, &limits()).unwrap();
    let world = World::new();
    let instance = backend.start(&json!({}), world.context("forks", limits())).unwrap();
    let event = |name: &str| {
        let events = world.events.lock().unwrap();
        events.iter().find(|(event, _)| event == name).map(|(_, data)| data.clone())
    };
    wait_for("the answer to the early call", || event("answered").is_some());
    assert_eq!(event("answered").unwrap()["early"], true);
    let pid = event("forked").unwrap()["pid"].as_u64().unwrap();
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // What nobody waits for stays as a zombie.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    assert!(lives());
    let (near, far) = stream(3001);
    instance.open(near);
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("exited with status 3"), "{error}");
    wait_for("the end of what it started", || !lives());

    // The same while it starts, with standard error held open.
    let config = json!({ "abort": true });
    let error = backend.start(&config, World::new().context("forks", limits())).err().unwrap();
    assert!(error.to_string().contains("aborted (SIGABRT)"), "{error}");
}
