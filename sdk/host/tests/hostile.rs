//! Plugins that do everything wrong, in this process: the host goes on, says
//! what happened, and the next instance works.

mod world;

use std::sync::Arc;
use std::time::Duration;

use pilot_host::{Backend, Failure, Incident, Instance, Limits, StartError, open_native};
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};
use world::{World, block_on, plugin, remote, stream, wait_for};

fn limits() -> Limits {
    Limits {
        start: Duration::from_millis(500),
        callback: Duration::from_millis(200),
        validate: Duration::from_millis(300),
        deliver: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn backend() -> Arc<dyn Backend> {
    open_native(&plugin("pilot-hostile-plugin")).unwrap()
}

fn start(world: &Arc<World>, mode: &str) -> Result<Arc<dyn Instance>, StartError> {
    backend().start(&json!({ "mode": mode }), world.context("hostile", limits()))
}

fn running(mode: &str) -> (Arc<World>, Arc<dyn Instance>) {
    let world = World::new();
    let instance = start(&world, mode).unwrap();
    (world, instance)
}

/// The host still works: a well-behaved instance serves.
fn the_host_works() {
    let (_, instance) = running("none");
    let (near, far) = stream(3000);
    instance.open(near);
    assert_eq!(far.exchange(b"still here").unwrap(), b"still here");
}

fn request(proof: Value) -> JoinRequest {
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
        proof,
        source: "127.0.0.1".into(),
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: 1,
    }
}

fn batch() -> Batch {
    Batch { sink: "hostile".to_owned(), lines: "{}\n".to_owned() }
}

#[test]
fn a_panic_at_the_start_is_said() {
    let world = World::new();
    for (mode, what) in [("panic-start", "in start"), ("panic-self-test", "in self-test")] {
        match start(&world, mode).err() {
            Some(StartError::Crashed(text)) => {
                assert!(text.contains(what) && text.contains("lib.rs:"), "{text}");
            }
            other => panic!("{mode}: {other:?}"),
        }
    }
    the_host_works();
}

#[test]
fn a_refusal_at_the_start_is_said() {
    let world = World::new();
    let refused = StartError::Refused("port 3000 is cursed".to_owned());
    assert_eq!(start(&world, "fail-start").err(), Some(refused));
    let failed = StartError::SelfTest("two and two are five".to_owned());
    assert_eq!(start(&world, "fail-self-test").err(), Some(failed));
    the_host_works();
}

#[test]
fn a_start_that_hangs_is_left_behind() {
    let world = World::new();
    for mode in ["hang-start", "hang-self-test"] {
        assert_eq!(start(&world, mode).err(), Some(StartError::Timeout(limits().start)), "{mode}");
    }
    the_host_works();
}

#[test]
fn a_panic_resets_its_stream_and_is_reported() {
    let (world, instance) = running("panic-serve");
    for _ in 0..3 {
        let (near, far) = stream(3000);
        instance.open(near);
        let error = far.recv().unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
    }
    wait_for("three reports", || {
        let incidents = world.incidents.lock().unwrap();
        let panics = incidents.iter().filter(|(_, i)| {
            matches!(i, Incident::Panicked { text, .. } if text.contains("on purpose, in serve"))
        });
        panics.count() == 3
    });
    let stats = instance.stats();
    assert_eq!(stats.streams, 0);
    assert!(stats.last_error.unwrap().contains("on purpose"));
    the_host_works();
}

#[test]
fn panics_of_other_callbacks_are_reported() {
    let (world, instance) = running("panic-datagram");
    instance.datagram(remote(), 3000, "x".into());
    wait_for("the report", || {
        world.has_incident(
            |i| matches!(i, Incident::Panicked { text, .. } if text.contains("datagram")),
        )
    });
    let (world, _instance) = running("panic-timer");
    wait_for("the report", || {
        world.has_incident(
            |i| matches!(i, Incident::Panicked { text, .. } if text.contains("timer")),
        )
    });
    let (world, instance) = running("panic-drain");
    instance.drain(Duration::ZERO);
    wait_for("the end", || instance.stats().ended);
    assert!(world.has_incident(|i| matches!(i, Incident::Panicked { .. })));
    let (_world, instance) = running("panic-stop");
    instance.drain(Duration::ZERO);
    wait_for("the end", || instance.stats().ended);
    let (world, instance) = running("panic-blocking");
    let (near, far) = stream(3000);
    instance.open(near);
    assert!(far.recv().is_err());
    wait_for("the report", || world.has_incident(|i| matches!(i, Incident::Panicked { .. })));
    the_host_works();
}

#[test]
fn destructors_that_panic_end_nothing_else() {
    let (_world, instance) = running("bombs");
    let (near, far) = stream(3000);
    instance.open(near);
    assert_eq!(far.exchange(b"x").unwrap(), b"x");
    instance.drain(Duration::ZERO);
    wait_for("the end", || instance.stats().ended);
    let (world, instance) = running("bomb-payload");
    let (near, far) = stream(3000);
    instance.open(near);
    assert!(far.recv().is_err());
    instance.drain(Duration::ZERO);
    wait_for("the end", || instance.stats().ended);
    assert!(world.has_incident(|i| matches!(i, Incident::Panicked { .. })));
    match start(&World::new(), "panic-spawned").err() {
        Some(StartError::Crashed(text)) => assert!(text.contains("a future of start"), "{text}"),
        other => panic!("{other:?}"),
    }
    the_host_works();
}

#[test]
fn a_rule_that_does_not_answer_has_not_allowed() {
    for (mode, wanted) in [
        ("panic-validate", "it crashed: panicked"),
        ("fail-validate", "cannot read the list"),
        ("never-validate", "no answer within 300 ms"),
        ("hang-validate", "it crashed: validate has not come back"),
    ] {
        let (_world, instance) = running(mode);
        let failure = block_on(instance.validate(request(json!("open sesame")))).unwrap_err();
        let text = failure.to_string();
        // A rule that hangs is late and then hangs, in the order of its limits.
        let late = mode == "hang-validate" && matches!(failure, Failure::Timeout(_));
        assert!(text.starts_with(wanted) || late, "{mode}: {text}");
    }
    let (_world, instance) = running("none");
    assert_eq!(block_on(instance.validate(request(json!("open sesame")))), Ok(Verdict::allow()));
    let denied = Verdict::deny("wrong word");
    assert_eq!(block_on(instance.validate(request(json!(7)))), Ok(denied));
}

#[test]
fn a_sink_that_does_not_answer_has_not_taken() {
    for mode in ["panic-deliver", "never-deliver", "hang-deliver"] {
        let (_world, instance) = running(mode);
        assert!(block_on(instance.deliver(batch())).is_err(), "{mode}");
    }
    let (_world, instance) = running("slow-deliver");
    assert_eq!(block_on(instance.deliver(batch())), Ok(Delivery::Ack));
    let empty = Batch { sink: "hostile".to_owned(), lines: String::new() };
    let (_world, instance) = running("none");
    assert_eq!(block_on(instance.deliver(empty)), Ok(Delivery::reject("empty")));
}

#[test]
fn a_callback_that_hangs_ends_its_instance_alone() {
    let (world, instance) = running("hang-serve");
    let (_other_world, other) = running("none");
    let (near, far) = stream(3000);
    instance.open(near);
    let (behind, far_behind) = stream(3000);
    instance.open(behind);
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("plugin hostile hangs"), "{error}");
    assert!(far_behind.recv().is_err(), "streams that wait are reset as well");
    wait_for("the report", || world.has_incident(|i| matches!(i, Incident::Hung { .. })));
    assert!(instance.stats().ended);
    let (near, far) = stream(3000);
    other.open(near);
    assert_eq!(far.exchange(b"fine").unwrap(), b"fine");
}

#[test]
fn half_an_answer_is_not_taken_for_a_whole_one() {
    let (world, instance) = running("fail-serve");
    let (near, far) = stream(3000);
    instance.open(near);
    far.finish();
    let error = far.recv_all().unwrap_err().to_string();
    assert!(error.contains("lost the other half"), "{error}");
    wait_for("the report", || {
        world
            .has_incident(|i| matches!(i, Incident::Failed { text } if text.contains("other half")))
    });
    assert_eq!(instance.stats().errors, 1);
}

#[test]
fn floods_are_bounded() {
    let (world, instance) = running("flood-events");
    let (near, far) = stream(3000);
    instance.open(near);
    let refused: u32 = String::from_utf8(far.recv_all().unwrap()).unwrap().parse().unwrap();
    let kept = world.events.lock().unwrap().len();
    assert_eq!(kept + refused as usize, 100_000);
    assert!(refused > 50_000, "{refused}");
    let (_world, instance) = running("flood-log");
    let (near, far) = stream(3000);
    instance.open(near);
    assert_eq!(far.exchange(b"after the flood").unwrap(), b"after the flood");
}

#[test]
fn a_future_that_is_always_ready_does_not_starve_the_others() {
    let (_world, instance) = running("spin");
    for _ in 0..3 {
        let (near, far) = stream(3000);
        instance.open(near);
        assert_eq!(far.exchange(b"my turn").unwrap(), b"my turn");
    }
}

#[test]
fn what_is_kept_beyond_the_end_does_no_harm() {
    let (_world, instance) = running("keep-waker");
    let (near, far) = stream(3000);
    instance.open(near);
    assert_eq!(far.exchange(b"x").unwrap(), b"x");
    instance.drain(Duration::ZERO);
    wait_for("the end", || instance.stats().ended);
    drop(instance);
    let (_world, instance) = running("thread-local");
    drop(instance);
    the_host_works();
    // The waker is used for a second from its start on.
    std::thread::sleep(Duration::from_millis(300));
    the_host_works();
}

#[test]
fn a_drain_waits_for_streams_until_its_deadline() {
    let (_world, instance) = running("none");
    let (near, far) = stream(3000);
    instance.open(near);
    far.send("a").unwrap();
    assert_eq!(far.recv().unwrap().unwrap(), "a");
    instance.drain(Duration::from_secs(60));
    far.send("b").unwrap();
    assert_eq!(far.recv().unwrap().unwrap(), "b");
    assert!(!instance.stats().ended);
    instance.drain(Duration::ZERO);
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("plugin hostile ends"), "{error}");
    wait_for("the end", || instance.stats().ended);
}

#[test]
fn the_host_serves_calls_dials_stores_and_threads() {
    let exchange = |mode: &str| {
        let (world, instance) = running(mode);
        let (near, far) = stream(3000);
        instance.open(near);
        far.finish();
        let text = String::from_utf8(far.recv_all().unwrap()).unwrap();
        (world, instance, text)
    };
    let (_, _, text) = exchange("call");
    assert!(text.starts_with(r#"{"n":1}"#), "{text}");
    assert!(text.contains("test.fail: as asked"), "{text}");
    assert!(text.contains(r#"there is no method "test.none" here"#), "{text}");
    let (world, _, text) = exchange("dial");
    assert!(text.contains("cannot dial nobody:9: cannot resolve nobody:9"), "{text}");
    let dialled = world.dialled.lock().unwrap();
    assert_eq!(dialled[0].0, "friend:9");
    assert_eq!(dialled[0].1.recv_all().unwrap(), b"hello");
    let (world, instance, text) = exchange("store");
    assert!(
        text.starts_with(r#"1 ["count"] Some(store: cannot write "much": the quota"#),
        "{text}"
    );
    drop(instance);
    let instance = start(&world, "store").unwrap();
    let (near, far) = stream(3000);
    instance.open(near);
    assert!(far.recv_all().unwrap().starts_with(b"2 "), "the store outlives the instance");
    assert_eq!(exchange("blocking").2, "499500");
    let (_world, instance) = running("slow");
    let (near, far) = stream(3000);
    instance.open(near);
    assert_eq!(far.recv_all().unwrap(), b"none");
    let (world, instance) = running("none");
    instance.datagram(remote(), 3000, "ping".into());
    wait_for("the answer", || !world.datagrams.lock().unwrap().is_empty());
    assert_eq!(world.datagrams.lock().unwrap()[0], (remote(), 3000, "ping".into()));
}

#[test]
fn a_limit_on_streams_holds() {
    let world = World::new();
    let limits = Limits { streams: 2, ..limits() };
    let instance =
        backend().start(&json!({ "mode": "none" }), world.context("hostile", limits)).unwrap();
    let open: Vec<_> = (0..2).map(|_| stream(3000)).collect();
    let mut kept = Vec::new();
    for (near, far) in open {
        instance.open(near);
        far.send("x").unwrap();
        assert_eq!(far.recv().unwrap().unwrap(), "x");
        kept.push(far);
    }
    let (near, far) = stream(3000);
    instance.open(near);
    assert!(far.recv().unwrap_err().to_string().contains("2 streams, its limit"));
    drop(kept);
}
