//! Each cause of a reload is one reload, of the plugin it is about.

use std::os::unix::fs::symlink;
use std::time::Duration;

use pilot_host::{ReloadResult, State};
use serde_json::json;

use crate::fake::{World, library, library_with, script, until};

/// A world with a watched library `one` on port 7 and a script `two`.
fn world() -> World {
    let mut world = World::new();
    library(&world.path("plugins/libpilot_plugin_one.so"), "one-a", &[7]);
    script(&world.path("scripts/two.lua"), "two-a", &[8]);
    world.start(world.options());
    world.settle(0);
    assert_eq!((world.made("one").len(), world.made("two").len()), (1, 1));
    world
}

fn labels(world: &World, name: &str) -> Vec<String> {
    world.made(name).iter().map(|f| f.label.clone()).collect()
}

#[test]
fn a_new_file() {
    let world = world();
    library(&world.path("plugins/three.so"), "three-a", &[9]);
    until("three runs", || world.manager().status("three").is_some_and(|s| s.streams == 0));
    world.settle(1);
    assert_eq!(labels(&world, "three"), ["three-a"]);
    assert_eq!(labels(&world, "one"), ["one-a"]);
    assert_eq!(labels(&world, "two"), ["two-a"]);
    let status = world.status("three");
    assert_eq!((status.state, status.generation), (State::Running, 1));
    assert_eq!(status.last_reload.unwrap().cause, "file");
    assert_eq!(world.process.events("plugin.loaded", "three").len(), 1);
}

#[test]
fn a_changed_file() {
    let world = world();
    library(&world.path("plugins/libpilot_plugin_one.so"), "one-b", &[7]);
    until("one was reloaded", || labels(&world, "one").len() == 2);
    world.settle(1);
    assert_eq!(labels(&world, "one"), ["one-a", "one-b"]);
    assert_eq!(labels(&world, "two"), ["two-a"]);
    assert!(world.made("one")[0].is_drained());
    let last = world.status("one").last_reload.unwrap();
    assert_eq!((last.cause.as_str(), last.result), ("file", ReloadResult::Reloaded));
    assert_eq!(world.process.events("plugin.reloaded", "one").len(), 1);
    // The port was opened once and stays.
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["2"]);
}

#[test]
fn a_removed_file_drains_and_goes() {
    let world = world();
    world.open(7);
    std::fs::remove_file(world.path("plugins/libpilot_plugin_one.so")).unwrap();
    until("one drains", || world.last("one").is_drained());
    until("it is seen", || world.status("one").state == State::Draining);
    assert!(world.process.port(7).is_none());
    assert_eq!(world.status("one").draining.len(), 1);
    world.last("one").finish();
    until("one is gone", || world.manager().status("one").is_none());
    world.settle(1);
    assert_eq!(labels(&world, "one"), ["one-a"]);
    assert_eq!(world.process.events("plugin.removed", "one").len(), 1);
}

#[test]
fn editors_that_replace_a_file() {
    let world = world();
    let file = world.path("scripts/two.lua");
    // A new file is renamed over the old one.
    script(&world.path("scripts/.two.lua.swp"), "two-b", &[8]);
    std::fs::rename(world.path("scripts/.two.lua.swp"), &file).unwrap();
    until("two was reloaded", || labels(&world, "two").len() == 2);
    world.settle(1);
    // The old one is moved away first, and the new one written in parts.
    std::fs::rename(&file, world.path("scripts/two.lua~")).unwrap();
    std::fs::write(&file, "").unwrap();
    script(&file, "two-c", &[8]);
    std::fs::remove_file(world.path("scripts/two.lua~")).unwrap();
    until("two was reloaded", || labels(&world, "two").len() == 3);
    world.settle(2);
    assert_eq!(labels(&world, "two"), ["two-a", "two-b", "two-c"]);
    assert_eq!(labels(&world, "one"), ["one-a"]);
    assert_eq!(world.process.events("plugin.reload_failed", "two").len(), 0);
    assert_eq!(world.process.events("plugin.removed", "two").len(), 0);
}

#[test]
fn a_touched_file_is_left_alone() {
    let world = world();
    let file = world.path("plugins/libpilot_plugin_one.so");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    world.settle(1);
    let copy = world.path("plugins/copy.tmp");
    std::fs::write(&copy, &bytes).unwrap();
    std::fs::rename(&copy, &file).unwrap();
    world.settle(2);
    assert_eq!(labels(&world, "one"), ["one-a"]);
    assert_eq!(labels(&world, "two"), ["two-a"]);
}

/// As volumes of a cluster are mounted: files are links through a link, which
/// is swapped.
#[test]
fn a_link_inside_a_folder_that_is_swapped() {
    let mut world = World::new();
    for (version, label) in [("v1", "a"), ("v2", "b")] {
        let folder = world.path("scripts").join(version);
        std::fs::create_dir(&folder).unwrap();
        script(&folder.join("two.lua"), &format!("two-{label}"), &[8]);
        script(&folder.join("same.lua"), "same", &[9]);
    }
    symlink("v1", world.path("scripts/..data")).unwrap();
    for name in ["two.lua", "same.lua"] {
        symlink(format!("..data/{name}"), world.path("scripts").join(name)).unwrap();
    }
    world.start(world.options());
    world.settle(0);
    assert_eq!(labels(&world, "two"), ["two-a"]);
    symlink("v2", world.path("scripts/..new")).unwrap();
    std::fs::rename(world.path("scripts/..new"), world.path("scripts/..data")).unwrap();
    until("two was reloaded", || labels(&world, "two").len() == 2);
    world.settle(1);
    assert_eq!(labels(&world, "two"), ["two-a", "two-b"]);
    assert_eq!(labels(&world, "same"), ["same"]);
}

#[test]
fn a_folder_that_is_a_swapped_link() {
    let mut world = World::new();
    std::fs::remove_dir(world.path("plugins")).unwrap();
    for label in ["a", "b"] {
        let folder = world.path("versions").join(label);
        std::fs::create_dir_all(&folder).unwrap();
        library(&folder.join("one.so"), &format!("one-{label}"), &[7]);
        library(&folder.join("same.so"), "same", &[9]);
    }
    symlink("versions/a", world.path("plugins")).unwrap();
    world.start(world.options());
    world.settle(0);
    symlink("versions/b", world.path("next")).unwrap();
    std::fs::rename(world.path("next"), world.path("plugins")).unwrap();
    until("one was reloaded", || labels(&world, "one").len() == 2);
    world.settle(1);
    assert_eq!(labels(&world, "one"), ["one-a", "one-b"]);
    assert_eq!(labels(&world, "same"), ["same"]);
    // The folder behind the link is the one that is watched now.
    library(&world.path("versions/b/one.so"), "one-c", &[7]);
    until("one was reloaded", || labels(&world, "one").len() == 3);
    library(&world.path("versions/a/one.so"), "one-d", &[7]);
    world.settle(2);
    assert_eq!(labels(&world, "one"), ["one-a", "one-b", "one-c"]);
}

#[test]
fn a_changed_configuration_reloads_what_it_is_about() {
    let mut world = World::new();
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } },
                         "additionalProperties": false });
    let more = json!({ "config_schema": schema });
    library_with(&world.path("plugins/one.so"), "one", &[7], &more);
    library_with(&world.path("plugins/two.so"), "two", &[8], &more);
    let config = |n: u32| format!("plugins:\n  one:\n    config: {{n: {n}}}\n  two:\n");
    world.config(&config(1));
    world.start(world.options());
    assert_eq!(world.last("one").config, json!({ "n": 1 }));
    // Whoever reads the rest of the file may change that.
    world.config(&format!("{}keepalive: 5s\n# a remark\n", config(1)));
    world.settle(0);
    assert_eq!((labels(&world, "one").len(), labels(&world, "two").len()), (1, 1));
    world.config(&config(2));
    until("one was reloaded", || labels(&world, "one").len() == 2);
    world.settle(1);
    assert_eq!(world.last("one").config, json!({ "n": 2 }));
    assert_eq!((labels(&world, "one").len(), labels(&world, "two").len()), (2, 1));
    assert_eq!(world.status("one").last_reload.unwrap().cause, "config");
    // The same file: it is not opened again.
    assert_eq!(world.loader.opened.lock().unwrap().len(), 2 + 2);
    // One that does not fit the schema keeps what runs.
    world.config("plugins:\n  one:\n    config:\n      m: 2\n  two:\n");
    until("it was refused", || !world.process.events("plugin.reload_failed", "one").is_empty());
    let last = world.status("one").last_reload.unwrap();
    assert_eq!(last.result, ReloadResult::Kept);
    let error = last.error.unwrap();
    assert!(error.contains("pilot.yaml line 6") && error.contains("one.config.m"), "{error}");
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["2"]);
    // Switched off, and on.
    world.config("plugins:\n  one: {enabled: false}\n  two:\n");
    until("one is off", || world.status("one").state == State::Off);
    assert!(world.process.port(7).is_none());
    world.config(&config(3));
    until("one is on", || world.status("one").state == State::Running);
    assert_eq!(world.last("one").config, json!({ "n": 3 }));
}

#[test]
fn a_configuration_that_does_not_parse_keeps_everything() {
    let world = world();
    world.config("plugins:\n  one:\n    enabeld: false\n");
    until("it was refused", || !world.process.events("config.refused", "").is_empty());
    let report = world.reload();
    let error = report.config_error.unwrap();
    assert!(error.contains("line 5") && error.contains("plugins.one.enabeld"), "{error}");
    assert!(error.contains("did you mean enabled?"), "{error}");
    assert_eq!(labels(&world, "one"), ["one-a"]);
    assert!(!world.made("one")[0].is_drained());
    assert_eq!(world.process.events("config.refused", "").len(), 1);
    world.config("");
    until("it is fine again", || !world.process.events("config.reloaded", "").is_empty());
    assert_eq!(world.reload().config_error, None);
    assert_eq!(labels(&world, "one"), ["one-a"]);
}

#[test]
fn a_bad_file_keeps_what_runs() {
    let world = world();
    let file = world.path("plugins/libpilot_plugin_one.so");
    for (round, fails) in ["open", "start", "self-test", "panic"].into_iter().enumerate() {
        library_with(&file, "bad", &[7], &json!({ "fails": fails }));
        until("it was refused", || {
            world.process.events("plugin.reload_failed", "one").len() == round + 1
        });
        let status = world.status("one");
        assert_eq!((status.state, status.generation), (State::Running, 1), "{fails}");
        let last = status.last_reload.unwrap();
        assert_eq!(last.result, ReloadResult::Kept);
        assert!(last.error.is_some());
        assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["1"]);
    }
    world.settle(1);
    assert_eq!(world.process.events("plugin.reload_failed", "one").len(), 4);
    // What runs is put back: nothing is to be done.
    library(&file, "one-a", &[7]);
    world.settle(2);
    assert_eq!(labels(&world, "one"), ["one-a"]);
}

#[test]
fn a_named_plugin_whose_file_vanishes_goes_on() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one-a", &[7]);
    world.config("plugins:\n  one:\n");
    world.start(world.options());
    std::fs::remove_file(world.path("plugins/one.so")).unwrap();
    until("it was told", || !world.process.events("plugin.reload_failed", "one").is_empty());
    let status = world.status("one");
    assert_eq!(status.state, State::Running);
    assert!(status.last_reload.unwrap().error.unwrap().contains("there is no file"));
    library(&world.path("plugins/one.so"), "one-b", &[7]);
    until("one was reloaded", || labels(&world, "one").len() == 2);
}

#[test]
fn reload_by_command() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one-a", &[7]);
    library_with(&world.path("plugins/two.so"), "two-a", &[8], &json!({ "fails": "start" }));
    let mut options = world.options();
    options.watch = false;
    world.start(options);
    assert_eq!(world.status("two").state, State::Failed);
    assert!(world.status("two").reason.unwrap().contains("did not start: no"));
    library(&world.path("plugins/one.so"), "one-b", &[7]);
    library(&world.path("plugins/three.so"), "three-a", &[9]);
    let report = world.reload();
    let result = |name: &str| report.plugins.iter().find(|p| p.name == name).unwrap().result;
    assert_eq!(result("one"), ReloadResult::Reloaded);
    assert_eq!(result("two"), ReloadResult::Failed);
    assert_eq!(result("three"), ReloadResult::Started);
    std::fs::remove_file(world.path("plugins/three.so")).unwrap();
    let report = world.reload();
    let result = |name: &str| report.plugins.iter().find(|p| p.name == name).unwrap().result;
    assert_eq!(result("one"), ReloadResult::Unchanged);
    assert_eq!(result("two"), ReloadResult::Failed);
    assert_eq!(result("three"), ReloadResult::Removed);
    assert_eq!(labels(&world, "one"), ["one-a", "one-b"]);
}

#[test]
fn an_entry_set_at_run_time() {
    let mut world = World::new();
    let schema = json!({ "type": "object", "properties": { "url": { "type": "string" } },
                         "additionalProperties": false });
    let more = json!({ "config_schema": schema });
    library_with(&world.path("shipped/libpilot_plugin_sink_webhook.so"), "hook", &[], &more);
    world.start(world.options());
    assert!(world.manager().status("sink-webhook").is_none());
    let set = |entry| crate::fake::block(world.manager().set_entry("sink-webhook", entry));
    let error = set(json!({ "enabled": true, "config": { "uri": "x" } })).unwrap_err();
    assert!(error.contains("did you mean url?"), "{error}");
    assert!(world.manager().status("sink-webhook").is_none());
    let error = set(json!({ "enabeld": true })).unwrap_err();
    assert!(error.contains("did you mean enabled?"), "{error}");
    let done = set(json!({ "enabled": true, "config": { "url": "http://h/" } })).unwrap();
    assert_eq!(done.result, ReloadResult::Started);
    assert_eq!(world.last("sink-webhook").config, json!({ "url": "http://h/" }));
    // It is kept when the configuration changes.
    world.config("plugins:\n  sink-webhook: {limits: {streams: 3}}\n");
    until("it was reloaded", || world.made("sink-webhook").len() == 2);
    let last = world.last("sink-webhook");
    assert_eq!(last.config, json!({ "url": "http://h/" }));
    assert_eq!(last.context.limits.streams, 3);
    assert!(set(json!({ "config": { "url": 3 } })).is_err());
    assert_eq!(world.status("sink-webhook").state, State::Running);
    let done = crate::fake::block(world.manager().clear_entry("sink-webhook")).unwrap();
    assert_eq!(done.result, ReloadResult::Reloaded);
    assert_eq!(world.last("sink-webhook").config, json!({}));
    assert!(crate::fake::block(world.manager().clear_entry("nothing")).is_err());
}

#[test]
fn shutdown_gives_streams_their_time() {
    let mut world = world();
    world.open(7);
    let manager = world.manager.take().unwrap();
    let fake = world.last("one");
    let finishing = std::thread::spawn({
        let fake = std::sync::Arc::clone(&fake);
        move || {
            until("it drains", || fake.is_drained());
            fake.finish();
        }
    });
    crate::fake::block(manager.shutdown(Duration::from_secs(60)));
    finishing.join().unwrap();
    assert_eq!(*fake.drained.lock().unwrap(), Some(Duration::from_secs(60)));
    assert!(world.process.ports.lock().unwrap().is_empty());
    assert_eq!(manager.status("one").unwrap().state, State::Off);
    assert!(crate::fake::block(manager.reload()).config_error.is_some());
}
