//! Plugins in C: the example, and one that breaks the contract of the ABI.

mod world;

use std::fs;
use std::time::Duration;

use pilot_host::{Limits, OpenError, StartError, open_native};
use pilot_plugin::{JoinRequest, Verdict};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};
use world::{World, block_on, compile, stream, wait_for};

#[test]
fn the_example_in_c_serves() {
    let (_dir, file) = compile("examples/plugins/upper.c", "");
    let world = World::new();
    let backend = open_native(&file).unwrap();
    let instance = backend.start(&Value::Null, world.context("upper", Limits::default())).unwrap();
    let (near, far) = stream(2001);
    instance.open(near);
    let text = "all work and no play ".repeat(100_000);
    let answer = far.exchange(text.as_bytes()).unwrap();
    assert!(answer == text.to_uppercase().into_bytes());
    let (near, far) = stream(2001);
    instance.open(near);
    far.send("open when it ends").unwrap();
    assert_eq!(far.recv().unwrap().unwrap(), "OPEN WHEN IT ENDS");
    instance.drain(Duration::ZERO);
    assert!(far.recv().is_err());
    wait_for("the end", || instance.stats().ended);
    assert_eq!(instance.stats().errors, 0);
}

#[test]
fn tables_that_cannot_be_used_are_refused_with_what_to_do() {
    for (define, wanted) in [
        ("WRONG_MAJOR", "was built for plugin ABI 2.5, this host has 1.0; rebuild it"),
        ("SMALL", "its table has 16 bytes, that of ABI 1.0 has"),
        ("NO_TABLE", "refuses to load"),
        ("NO_SYMBOL", "exports no symbol pilot_plugin_v1"),
        ("LONG_MANIFEST", "its manifest is not valid"),
        ("BAD_MANIFEST", "the name of the plugin is \"../etc\""),
    ] {
        let (_dir, file) = compile("tests/plugins/hostile.c", define);
        let error = open_native(&file).err().expect(define).to_string();
        assert!(error.contains(wanted), "{define}: {error}");
        assert!(error.contains("libplugin.so"), "{define}: {error}");
    }
}

#[test]
fn files_that_are_no_libraries_are_refused() {
    let (dir, file) = compile("tests/plugins/hostile.c", "");
    let whole = fs::read(&file).unwrap();
    let check = |name: &str, contents: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let error = open_native(&path).err().expect(name);
        assert!(matches!(error, OpenError::Load { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    };
    check("truncated.so", &whole[..whole.len() / 3]);
    check("head.so", &whole[..64]);
    check("text.so", b"#!/bin/sh\necho not a library\n");
    check("empty.so", b"");
    assert!(matches!(open_native(&dir.path().join("none.so")), Err(OpenError::Load { .. })));
}

#[test]
fn a_newer_minor_version_loads_and_a_table_without_start_does_not_run() {
    let world = World::new();
    let (_dir, file) = compile("tests/plugins/hostile.c", "NEWER");
    let backend = open_native(&file).unwrap();
    backend.start(&json!({}), world.context("newer", Limits::default())).unwrap();
    let (_dir, file) = compile("tests/plugins/hostile.c", "EMPTY");
    let backend = open_native(&file).unwrap();
    let error = backend.start(&json!({}), world.context("empty", Limits::default())).err();
    let wanted = StartError::Refused("it has no start callback".to_owned());
    assert_eq!(error, Some(wanted));
}

#[test]
fn calls_that_make_no_sense_are_refused_and_do_no_harm() {
    let (_dir, file) = compile("tests/plugins/hostile.c", "");
    let backend = open_native(&file).unwrap();
    for mode in ["lengths", "numbers", "threads", "wakes"] {
        let world = World::new();
        let context = world.context("hostile-c", Limits::default());
        let instance = backend.start(&json!({ "mode": mode }), context).unwrap();
        let (near, far) = stream(3001);
        instance.open(near);
        assert_eq!(far.recv_all().unwrap(), b"survived", "{mode}");
        assert!(world.events.lock().unwrap().is_empty(), "{mode}");
        assert_eq!(instance.stats().streams, 0, "{mode}");
    }
    let world = World::new();
    let context = world.context("hostile-c", Limits::default());
    let instance = backend.start(&json!({ "mode": "status" }), context).unwrap();
    let (near, far) = stream(3001);
    instance.open(near);
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("stream_open returned status 4711"), "{error}");
    let failed = backend.start(&json!("no-error-text"), world.context("x", Limits::default()));
    let wanted = StartError::Refused("status -77, no reason given".to_owned());
    assert_eq!(failed.err(), Some(wanted));
}

#[test]
fn an_answer_counts_once_and_must_be_one() {
    let (_dir, file) = compile("tests/plugins/hostile.c", "");
    let backend = open_native(&file).unwrap();
    let ask = |mode: &str| {
        let context = World::new().context("hostile-c", Limits::default());
        let instance = backend.start(&json!({ "mode": mode }), context).unwrap();
        let node = NodeId(9);
        block_on(instance.validate(JoinRequest {
            rule: "r".into(),
            network: 1,
            network_name: String::new(),
            node,
            address: Address::backbone(node),
            public_key: String::new(),
            owner: String::new(),
            hostname: String::new(),
            tags: Vec::new(),
            proof: Value::Null,
            source: String::new(),
            config: serde_json::Value::Null,
            kept: serde_json::Value::Null,
            at_ms: 0,
        }))
    };
    assert_eq!(ask("twice"), Ok(Verdict::deny("first")));
    let error = ask("maybe").unwrap_err().to_string();
    assert!(error.contains("the answer is not a verdict"), "{error}");
}
