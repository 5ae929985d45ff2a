//! Files that must not be loaded, and what is said of them.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use pilot_host::{Isolation, ManagerOptions, State};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::fake::{World, elf, library, library_with, script, text, until};

fn unwatched(world: &World) -> ManagerOptions {
    ManagerOptions { watch: false, ..world.options() }
}

/// Starts a manager with this configuration, and says why `one` does not run.
fn refusal(world: &mut World, config: &str) -> String {
    world.config(config);
    world.start(unwatched(world));
    let status = world.status("one");
    assert_eq!(status.state, State::Failed, "{status:?}");
    assert!(world.made("one").is_empty());
    let event = world.process.events("plugin.reload_failed", "one").pop().unwrap();
    let reason = status.reason.unwrap();
    assert_eq!(event["reason"], reason);
    assert_eq!(status.last_reload.unwrap().error, Some(reason.clone()));
    reason
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn written_by_others() {
    let mut world = World::new();
    let file = world.path("plugins/one.so");
    library(&file, "one", &[7]);
    mode(&file, 0o666);
    let reason = refusal(&mut world, "");
    assert!(reason.contains("one.so can be written by others (mode 666): chmod"), "{reason}");
    // And then it is put right.
    mode(&file, 0o644);
    world.reload();
    assert_eq!(world.status("one").state, State::Running);
    // What runs is not ended when its file is opened to others, but they are
    // told of it; nor is it loaded again when that is put right.
    mode(&file, 0o646);
    world.reload();
    let status = world.status("one");
    assert_eq!(status.state, State::Running);
    assert!(status.last_reload.unwrap().error.unwrap().contains("written by others"));
    mode(&file, 0o644);
    world.reload();
    assert_eq!(world.made("one").len(), 1);
}

#[test]
fn in_a_folder_that_others_may_write() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one", &[7]);
    mode(&world.path("plugins"), 0o777);
    let reason = refusal(&mut world, "");
    assert!(reason.contains("plugins can be written by others"), "{reason}");
}

#[test]
fn a_link_is_as_good_as_both_its_ends() {
    let mut world = World::new();
    let away = world.path("away");
    std::fs::create_dir(&away).unwrap();
    library(&away.join("real.so"), "one", &[7]);
    symlink(away.join("real.so"), world.path("plugins/one.so")).unwrap();
    mode(&away.join("real.so"), 0o622);
    assert!(refusal(&mut world, "").contains("real.so can be written by others"));
    mode(&away.join("real.so"), 0o600);
    mode(&away, 0o770);
    world.reload();
    assert!(world.status("one").reason.unwrap().contains("away can be written by others"));
    mode(&away, 0o700);
    mode(&world.path("plugins"), 0o770);
    world.reload();
    assert!(world.status("one").reason.unwrap().contains("plugins can be written by others"));
    mode(&world.path("plugins"), 0o700);
    world.reload();
    assert_eq!(world.status("one").state, State::Running);
}

#[test]
fn of_another_user() {
    let mut world = World::new();
    let file = world.path("plugins/one.so");
    library(&file, "one", &[7]);
    // Only root can give a file away; others cannot have this case.
    if std::os::unix::fs::chown(&file, Some(54_321), None).is_ok() {
        let reason = refusal(&mut world, "");
        assert!(reason.contains("belongs to user 54321"), "{reason}");
    }
}

#[test]
fn what_is_not_a_library() {
    let cases: [(&[u8], &str); 4] = [
        (b"#!/bin/sh\necho hello\n", "no ELF header"),
        (b"", "is empty"),
        (&elf()[..30], "cut short"),
        (&[0x7f, b'E', b'L', b'F', 1, 1, 1, 0], "another kind of machine"),
    ];
    for (bytes, expected) in cases {
        let mut world = World::new();
        std::fs::write(world.path("plugins/one.so"), bytes).unwrap();
        let reason = refusal(&mut world, "");
        assert!(reason.contains(expected) && reason.contains("one.so"), "{reason}");
        assert!(world.loader.opened.lock().unwrap().is_empty());
    }
}

/// A real library, cut at many places, is never given to the linker.
#[test]
fn a_library_that_is_cut_short() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().find_map(|line| line.find('/').map(|at| &line[at..]));
    let libc = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .find(|path| path.contains(".so"))
        .or(libc)
        .expect("this process has a file");
    let whole = std::fs::read(libc).unwrap();
    for part in [16, 8, 4, 2] {
        let mut world = World::new();
        std::fs::write(world.path("plugins/one.so"), &whole[..whole.len() - whole.len() / part])
            .unwrap();
        assert!(refusal(&mut world, "").contains("cut short"));
    }
    // The whole one passes that check; the loader of these tests refuses it.
    let mut world = World::new();
    std::fs::write(world.path("plugins/one.so"), &whole).unwrap();
    assert!(refusal(&mut world, "").contains("cannot be loaded"));
}

#[test]
fn a_folder_or_a_pipe() {
    let mut world = World::new();
    std::fs::create_dir(world.path("plugins/x")).unwrap();
    let reason = refusal(&mut world, "plugins: {one: {file: plugins/x}}\n");
    assert!(reason.contains("is not a file"), "{reason}");
}

#[test]
fn another_hash_than_the_configuration_wants() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one", &[7]);
    let sha256 = hex::encode(Sha256::digest(std::fs::read(world.path("plugins/one.so")).unwrap()));
    let wrong = "a".repeat(64);
    let reason = refusal(&mut world, &format!("plugins: {{one: {{sha256: {wrong}}}}}\n"));
    assert!(reason.contains(&wrong) && reason.contains(&sha256), "{reason}");
    world.config(&format!("plugins: {{one: {{sha256: {}}}}}\n", sha256.to_uppercase()));
    world.reload();
    let status = world.status("one");
    assert_eq!((status.state, status.sha256), (State::Running, Some(sha256)));
    // A change of the file is refused until the configuration has it.
    library(&world.path("plugins/one.so"), "two", &[7]);
    world.reload();
    assert_eq!(world.status("one").generation, 1);
    assert!(world.status("one").last_reload.unwrap().error.unwrap().contains("SHA-256"));
}

#[test]
fn signatures() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let other = SigningKey::from_bytes(&[8; 32]);
    let trusted = STANDARD.encode(key.verifying_key().as_bytes());
    let sign = |key: &SigningKey, path: &Path| {
        STANDARD.encode(key.sign(&std::fs::read(path).unwrap()).to_bytes())
    };
    let mut world = World::new();
    let file = world.path("plugins/one.so");
    library(&file, "one", &[7]);
    let config = format!("trusted-keys: [\"{trusted}\"]\n");
    let reason = refusal(&mut world, &config);
    assert!(reason.contains("is not signed") && reason.contains("one.so.sig"), "{reason}");
    let beside = world.path("plugins/one.so.sig");
    for (signature, expected) in [
        ("not base64!".to_owned(), "not an Ed25519 signature"),
        (sign(&other, &file), "not by one of the trusted-keys"),
    ] {
        std::fs::write(&beside, signature).unwrap();
        world.reload();
        let reason = world.status("one").reason.unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
    std::fs::write(&beside, sign(&key, &file) + "\n").unwrap();
    world.reload();
    assert_eq!(world.status("one").state, State::Running);
    // The signature is for these bytes and no others.
    library(&file, "two", &[7]);
    world.reload();
    assert_eq!(world.status("one").generation, 1);
    std::fs::remove_file(&beside).unwrap();
    let entry = format!("plugins: {{one: {{signature: {}}}}}\n", sign(&key, &file));
    world.config(&(config.clone() + &entry));
    world.reload();
    assert_eq!((world.status("one").generation, world.last("one").label.as_str()), (2, "two"));
    // What comes with Pilot needs a signature as well, or its hash in the
    // configuration.
    let shipped = world.path("shipped/libpilot_plugin_extra.so");
    library(&shipped, "extra", &[9]);
    let with = |more: &str| format!("{config}plugins: {{extra: {{{more}}}}}\n");
    world.config(&with(""));
    world.reload();
    assert!(world.status("extra").reason.unwrap().contains("or pin it with sha256"));
    let sha256 = hex::encode(Sha256::digest(std::fs::read(&shipped).unwrap()));
    world.config(&with(&format!("sha256: {sha256}")));
    world.reload();
    assert_eq!(world.status("extra").state, State::Running);
}

#[test]
fn what_runs_is_a_private_copy() {
    let mut world = World::new();
    let cache = world.path("data/plugin-cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join("old-0123.so"), "stale").unwrap();
    library(&world.path("plugins/one.so"), "one", &[7]);
    world.start(unwatched(&world));
    let (path, isolation) = world.loader.opened.lock().unwrap()[0].clone();
    let sha256 = world.status("one").sha256.unwrap();
    assert_eq!(path, cache.join(format!("one-{sha256}.so")));
    assert_eq!(isolation, Isolation::None);
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(world.path("plugins/one.so")).unwrap());
    assert_eq!(std::fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let left: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn defaults_run_unless_they_are_switched_off() {
    let mut world = World::new();
    for (name, port) in [("echo", 7), ("nameserver", 53), ("more", 99)] {
        let path = world.path("shipped").join(format!("libpilot_plugin_{name}.so"));
        library_with(&path, name, &[port], &json!({ "needs": ["node.names"] }));
    }
    script(&world.path("shipped/chat.lua"), "chat", &[5]);
    world.config("plugins: {nameserver: {enabled: false}}\nscripts: {chat: {}}\n");
    let mut options = unwatched(&world);
    options.defaults = vec!["echo".to_owned(), "nameserver".to_owned()];
    world.start(options);
    let state = |name: &str| world.manager().status(name).map(|s| s.state);
    assert_eq!(state("echo"), Some(State::Running));
    assert_eq!(state("nameserver"), Some(State::Off));
    assert_eq!(state("more"), None);
    assert_eq!(state("chat"), Some(State::Running));
    // What comes with Pilot may call what it needs.
    assert_eq!(*world.last("echo").context.granted, ["node.names".to_owned()]);
}

#[test]
fn a_named_plugin_without_a_file() {
    let mut world = World::new();
    let reason = refusal(&mut world, "plugins: {one: }\n");
    assert!(reason.contains("there is no file") && reason.contains("plugins"), "{reason}");
}

#[test]
fn libraries_are_capped_and_counted_by_content() {
    let mut world = World::new();
    let file = world.path("plugins/one.so");
    library(&file, "v0", &[7]);
    let mut options = unwatched(&world);
    options.generations = 3;
    world.start(options);
    for version in ["v1", "v2", "v0", "v1"] {
        library(&file, version, &[7]);
        world.reload();
        assert_eq!(world.last("one").label, version);
    }
    assert_eq!(world.loader.opened.lock().unwrap().len(), 3);
    library(&file, "v3", &[7]);
    world.reload();
    let status = world.status("one");
    assert_eq!((status.state, status.generation), (State::Running, 5));
    assert!(status.last_reload.unwrap().error.unwrap().contains("restart"));
    // Also not by taking the file away in between.
    std::fs::remove_file(&file).unwrap();
    world.last("one").finish();
    until("it is gone", || {
        world.reload();
        world.manager().status("one").is_none()
    });
    library(&file, "v3", &[7]);
    world.reload();
    assert_eq!(world.status("one").state, State::Failed);
    library(&file, "v2", &[7]);
    world.reload();
    let status = world.status("one");
    assert_eq!((status.state, status.generation), (State::Running, 6));
    assert_eq!(world.loader.opened.lock().unwrap().len(), 3);
    // Scripts can be unloaded.
    for version in 0..6 {
        script(&world.path("scripts/two.lua"), &format!("v{version}"), &[8]);
        world.reload();
    }
    assert_eq!(world.status("two").generation, 6);
    // They keep their name, and the copies of earlier ones are gone.
    let copies: Vec<_> = world.loader.opened.lock().unwrap().iter().map(|o| o.0.clone()).collect();
    let there = |path: &&std::path::PathBuf| path.ends_with("two.lua") && path.exists();
    assert_eq!(copies.iter().filter(there).count(), 1);
}

#[test]
fn libraries_that_fail_to_open_count() {
    let mut world = World::new();
    let file = world.path("plugins/one.so");
    library(&file, "v0", &[7]);
    let mut options = unwatched(&world);
    options.generations = 3;
    world.start(options);
    for version in 1..6 {
        library_with(&file, &format!("v{version}"), &[7], &json!({ "fails": "open" }));
        world.reload();
    }
    assert_eq!(world.loader.opened.lock().unwrap().len(), 3);
    assert!(world.status("one").last_reload.unwrap().error.unwrap().contains("restart"));
}

#[test]
fn copies_of_scripts_that_fail_are_removed() {
    let mut world = World::new();
    script(&world.path("scripts/two.lua"), "v0", &[8]);
    world.start(unwatched(&world));
    for fails in ["open", "start", "self-test"] {
        let text = text("bad", &[8], &json!({ "fails": fails }));
        std::fs::write(world.path("scripts/two.lua"), text).unwrap();
        world.reload();
        assert!(world.status("two").last_reload.unwrap().error.is_some());
    }
    let copies: Vec<_> = world.loader.opened.lock().unwrap().iter().map(|o| o.0.exists()).collect();
    assert_eq!(copies, [true, false, false, false]);
}

/// Opening one would wait for a writer.
#[test]
fn pipes_in_a_folder_hold_nothing_up() {
    let mut world = World::new();
    for pipe in ["plugins/one.so", "scripts/two.lua"] {
        let made = std::process::Command::new("mkfifo").arg(world.path(pipe)).status().unwrap();
        assert!(made.success());
    }
    library(&world.path("plugins/three.so"), "three", &[7]);
    let pipe = world.path("plugins/three.so.sig");
    assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let key = STANDARD.encode(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes());
    world.config(&format!("trusted-keys: [\"{key}\"]\n"));
    world.start(unwatched(&world));
    for name in ["one", "two"] {
        assert!(world.status(name).reason.unwrap().contains("is not a file"));
    }
    assert!(world.status("three").reason.unwrap().contains("is not signed"));
}

/// What runs goes on: nobody knows that its file is gone.
#[test]
fn a_folder_that_cannot_be_read_has_not_lost_its_files() {
    let mut world = World::new();
    library(&world.path("plugins/one.so"), "one", &[7]);
    world.start(unwatched(&world));
    std::fs::rename(world.path("plugins"), world.path("away")).unwrap();
    std::fs::write(world.path("plugins"), "in the way").unwrap();
    world.reload();
    assert_eq!(world.status("one").state, State::Running);
    assert_eq!(world.open(7).wrote.lock().unwrap().as_slice(), ["1"]);
    std::fs::remove_file(world.path("plugins")).unwrap();
    std::fs::rename(world.path("away"), world.path("plugins")).unwrap();
    world.reload();
    assert_eq!(world.status("one").state, State::Running);
    assert_eq!(world.made("one").len(), 1);
}
