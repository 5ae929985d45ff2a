//! Plugins as shared libraries, run for real in this process.

mod world;

use std::time::Duration;

use pilot_host::{Limits, open_native};
use serde_json::json;
use world::{World, block_on, plugin, stream, wait_for};

#[test]
fn the_echo_plugin_sends_back_every_byte() {
    let world = World::new();
    let backend = open_native(&plugin("pilot-plugin-echo")).unwrap();
    assert_eq!(backend.manifest().name, "echo");
    assert_eq!(backend.manifest().services[0].ports, [7]);
    let instance = backend.start(&json!({}), world.context("echo", Limits::default())).unwrap();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 31) as u8).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (near, far) = stream(7);
                instance.open(near);
                assert!(far.exchange(&data).unwrap() == data);
            });
        }
    });
    wait_for("all streams closed", || instance.stats().streams == 0);
    let stats = instance.stats();
    assert_eq!((stats.streams_total, stats.errors), (4, 0));
    assert!(stats.calls > 8);
    instance.drain(Duration::from_secs(10));
    wait_for("the instance ended", || instance.stats().ended);
    let (near, far) = stream(7);
    instance.open(near);
    assert!(far.recv().is_err(), "an instance that has ended takes no stream");
}

#[test]
fn what_a_plugin_does_not_provide_is_refused() {
    let world = World::new();
    let backend = open_native(&plugin("pilot-plugin-echo")).unwrap();
    let refused = backend.start(&json!({ "port": 9 }), world.context("echo", Limits::default()));
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("unknown field `port`"), "{refused}");
    let instance = backend.start(&json!({}), world.context("echo", Limits::default())).unwrap();
    let batch = pilot_plugin::Batch { sink: "none".to_owned(), lines: String::new() };
    assert_eq!(block_on(instance.deliver(batch)), Err(pilot_host::Failure::Unsupported));
}

#[test]
fn an_event_can_be_timed() {
    let context = World::new().context("echo", Limits::default());
    let time = pilot_host::time_events(&plugin("pilot-plugin-echo"), context, 100_000).unwrap();
    // How long it is depends on the machine; that it is not nothing shows that
    // something was done.
    assert!(time.call > Duration::ZERO && time.read > Duration::ZERO);
    eprintln!("events take {time:?}");
}
