//! Plugins that panic, hang, die, or use more than they may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_host::{Incident, ManagerOptions, State};
use serde_json::json;

use crate::fake::{World, library, library_with, until};

fn world(more: &serde_json::Value, config: &str) -> World {
    let mut world = World::new();
    library_with(&world.path("plugins/one.so"), "one", &[7], more);
    world.config(config);
    let options =
        ManagerOptions { watch: false, drain: Duration::from_millis(100), ..world.options() };
    world.start(options);
    world
}

#[test]
fn a_panic_replaces_the_instance_and_its_streams_go_on() {
    let world = world(&json!({}), "");
    let stream = world.open(7);
    world.last("one").panicked();
    until("it was replaced", || world.made("one").len() == 2);
    until("it takes streams", || world.status("one").generation == 2);
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["2"]);
    let first = Arc::clone(&world.made("one")[0]);
    until("the old one drains", || first.is_drained());
    assert_eq!(*first.drained.lock().unwrap(), Some(Duration::from_millis(100)));
    assert_eq!(*stream.reset.lock().unwrap(), None);
    let event = world.process.events("plugin.panicked", "one").pop().unwrap();
    assert_eq!(event["generation"], 1);
    assert!(event["reason"].as_str().unwrap().contains("serve panicked: oh"));
    assert_eq!(world.status("one").last_reload.unwrap().cause, "panicked");
    // What it says later changes nothing.
    first.panicked();
    first.finish();
    until("it is over", || world.status("one").draining.is_empty());
    assert_eq!(world.made("one").len(), 2);
    assert_eq!(world.status("one").streams_total, 2);
}

#[test]
fn several_incidents_switch_it_off_for_a_while() {
    let world = world(&json!({}), "");
    for incident in 1..=3 {
        until("it runs", || world.status("one").generation == incident);
        world.last("one").report(Incident::Died { text: "signal 11".to_owned() });
    }
    until("it is off", || world.status("one").state == State::BackingOff);
    let off = Instant::now();
    let reason = world.refused(7);
    assert!(reason.contains("plugin one") && reason.contains("several times"), "{reason}");
    assert!(world.status("one").reason.unwrap().contains("signal 11"));
    assert_eq!(world.process.events("plugin.switched_off", "one").len(), 1);
    assert_eq!(world.process.events("plugin.died", "one").len(), 3);
    until("it is back", || world.status("one").state == State::Running);
    assert!(off.elapsed() < Duration::from_secs(30));
    assert_eq!(world.status("one").last_reload.unwrap().cause, "back-off");
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["4"]);
}

#[test]
fn an_instance_that_ends_or_hangs_unheard_is_noticed() {
    let world = world(&json!({}), "plugins: {one: {limits: {callback: 50ms}}}\n");
    world.last("one").stats.lock().unwrap().ended = true;
    until("it was replaced", || world.status("one").generation == 2);
    assert_eq!(world.process.events("plugin.died", "one").len(), 1);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    world.last("one").stats.lock().unwrap().running = Some(("serve", long_ago));
    until("it was replaced", || world.status("one").generation == 3);
    let event = world.process.events("plugin.hung", "one").pop().unwrap();
    assert!(event["reason"].as_str().unwrap().contains("serve takes longer than 50 ms"));
    assert_eq!(world.status("one").hung, 1);
    // Told again by the instance itself, it is the same thread.
    world.made("one")[1].report(Incident::Hung { callback: "serve" });
    world.reload();
    assert_eq!((world.status("one").hung, world.status("one").generation), (1, 3));
}

#[test]
fn too_many_stuck_threads_are_the_end() {
    let world = world(&json!({}), "");
    for generation in 1..=8 {
        until("it runs", || {
            // Each third one switches it off for a while; trying again is allowed.
            if world.status("one").state == State::BackingOff {
                world.reload();
            }
            world.status("one").generation == generation
        });
        world.last("one").report(Incident::Hung { callback: "serve" });
    }
    until("it is off", || world.status("one").state == State::Off);
    assert_eq!(world.status("one").hung, 8);
    assert!(world.refused(7).contains("started again"));
    library(&world.path("plugins/one.so"), "better", &[7]);
    world.reload();
    assert_eq!(world.status("one").state, State::Off);
    assert_eq!(world.made("one").len(), 8);
}

/// Also those that never finished loading or starting, and whether or not the
/// file was taken away in between.
#[test]
fn stuck_starts_count_also_over_removals() {
    let world = world(&json!({}), "");
    let file = world.path("plugins/one.so");
    for round in 0..8 {
        let fails = if round % 2 == 0 { "timeout" } else { "hang" };
        library_with(&file, &format!("v{round}"), &[7], &json!({ "fails": fails }));
        world.reload();
        if round == 3 {
            std::fs::remove_file(&file).unwrap();
            world.last("one").finish();
            until("it is gone", || {
                world.reload();
                world.manager().status("one").is_none()
            });
        }
    }
    let status = world.status("one");
    assert_eq!((status.state, status.hung), (State::Off, 8));
    assert!(status.reason.unwrap().contains("started again"));
    std::fs::remove_file(&file).unwrap();
    world.reload();
    library(&file, "better", &[7]);
    world.reload();
    assert_eq!(world.status("one").state, State::Off);
    assert_eq!(world.made("one").len(), 1);
}

#[test]
fn over_its_budget_it_gets_no_new_streams() {
    let world = world(&json!({}), "plugins: {one: {limits: {queue: 10}}}\n");
    let fake = world.last("one");
    fake.stats.lock().unwrap().queue = 10;
    until("it is over", || world.status("one").state == State::OverBudget);
    let reason = world.refused(7);
    assert!(reason.contains("plugin one") && reason.contains("budget"), "{reason}");
    assert!(reason.contains("its limit is 10"), "{reason}");
    assert_eq!(fake.opened.load(std::sync::atomic::Ordering::SeqCst), 0);
    fake.stats.lock().unwrap().queue = 5;
    until("it is back", || world.status("one").state == State::Running);
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["1"]);
    assert_eq!(world.process.events("plugin.over_budget", "one").len(), 1);
    assert_eq!(world.made("one").len(), 1);
}

#[test]
fn one_that_does_not_end_at_its_deadline_counts_as_hung() {
    let world = world(&json!({ "stuck": true }), "");
    world.open(7);
    library(&world.path("plugins/one.so"), "next", &[7]);
    world.reload();
    assert_eq!(world.status("one").draining.len(), 1);
    assert_eq!(*world.made("one")[0].drained.lock().unwrap(), Some(Duration::from_millis(100)));
    until("it was given up", || world.status("one").hung == 1);
    let status = world.status("one");
    assert_eq!((status.state, status.generation, status.draining.len()), (State::Running, 2, 0));
    assert_eq!(status.streams_total, 1);
    let event = world.process.events("plugin.hung", "one").pop().unwrap();
    assert!(event["reason"].as_str().unwrap().contains("drain deadline"), "{event:?}");
}
