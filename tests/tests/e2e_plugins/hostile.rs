//! Plugins that do everything wrong, in a real daemon, in process and in a
//! process of their own. After each the daemon serves on and says what was.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{VersionPlugin, binary, compile_plugin, install};
use serde_json::Value;

use crate::{Pair, ask, exchange, shown};

/// Port of the hostile plugin in Rust.
const RUST: u16 = 3000;
/// Port of the hostile plugin in C.
const C: u16 = 3001;

/// The configuration that makes the Rust one misbehave.
fn hostile(mode: &str, more: &str) -> Result<String> {
    let file = binary("libpilot_hostile_plugin.so")?;
    let file = shown(&file);
    Ok(format!("plugins:\n  hostile:\n    file: {file}\n    config: {{mode: {mode}}}\n{more}"))
}

fn contains(value: &Value, wanted: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(wanted))
}

/// Has the daemon run the plugin so, from its next generation on.
async fn misbehave(pair: &mut Pair, mode: &str, more: &str) -> Result<()> {
    let before = pair.serves.client().await?.plugin("hostile").await.unwrap_or_default();
    let before = before["generation"].as_u64().unwrap_or(0);
    pair.serves.configure(&hostile(mode, more)?)?;
    let newer = |p: &Value| p["state"] == "running" && p["generation"].as_u64() > Some(before);
    pair.serves.until_plugin("hostile", mode, newer).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_hangs_and_floods_in_process() -> Result<()> {
    let mut pair = Pair::start().await?;

    misbehave(&mut pair, "panic-serve", "").await?;
    for panics in 1..=3 {
        ensure!(ask(pair.open(RUST).await?, b"x").await.is_err(), "a panic looks like an answer");
        // The next stream is for the instance that took its place.
        let counted = |p: &Value| p["errors"].as_u64() >= Some(panics);
        pair.serves.until_plugin("hostile", "the panic", counted).await?;
        if panics < 3 {
            let replaced = |p: &Value| p["generation"].as_u64() > Some(panics);
            pair.serves.until_plugin("hostile", "a new instance", replaced).await?;
        }
    }
    let off = pair.serves.until_state("hostile", "backing-off").await?;
    ensure!(contains(&off["reason"], "on purpose, in serve"), "{off}");
    pair.still_serves().await?;
    let text = pair.serves.pilotctl_text(&["plugins", "hostile"])?;
    ensure!(text.contains("on purpose, in serve"), "{text}");
    // It is given another chance by itself.
    pair.serves.until_state("hostile", "running").await?;
    pair.still_serves().await?;

    misbehave(&mut pair, "hang-serve", "    limits: {callback: 300ms}\n").await?;
    ensure!(ask(pair.open(RUST).await?, b"x").await.is_err(), "a hang looks like an answer");
    let stuck = |p: &Value| p["hung"] == 1 && p["state"] == "running";
    let now = pair.serves.until_plugin("hostile", "a stuck thread", stuck).await?;
    ensure!(contains(&now["last_error"], "has not come back for 300 ms"), "{now}");
    let text = pair.serves.pilotctl_text(&["plugins", "hostile"])?;
    ensure!(text.contains("1 threads are stuck in it"), "{text}");
    pair.still_serves().await?;

    misbehave(&mut pair, "flood-events", "").await?;
    let refused: u32 = String::from_utf8(ask(pair.open(RUST).await?, b"x").await?)?.parse()?;
    ensure!(refused > 50_000, "only {refused} of 100000 events were refused");
    pair.still_serves().await?;

    pair.serves.configure(&hostile("fail-start", "")?)?;
    let kept = |p: &Value| contains(&p["last_reload"]["error"], "port 3000 is cursed");
    let now = pair.serves.until_plugin("hostile", "its refusal", kept).await?;
    ensure!(now["state"] == "running", "the one before does not go on: {now}");
    pair.serves.configure("")?;
    pair.until_closed(RUST).await?;
    pair.serves.configure(&hostile("fail-start", "")?)?;
    let failed = pair.serves.until_state("hostile", "failed").await?;
    ensure!(contains(&failed["reason"], "port 3000 is cursed"), "{failed}");
    let text = pair.serves.pilotctl_text(&["plugins", "hostile"])?;
    ensure!(text.contains("failed") && text.contains("port 3000 is cursed"), "{text}");
    pair.still_serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_no_plugins_or_not_ours() -> Result<()> {
    let mut pair = Pair::start().await?;
    let library = VersionPlugin::compile(pair.network.folder())?.library("00000001")?;
    let folder = pair.serves.home.join("plugins");
    let refused = |name: &'static str, wanted: &'static str| {
        let serves = &pair.serves;
        async move {
            let failed = serves.until_state(name, "failed").await?;
            ensure!(contains(&failed["reason"], wanted), "{failed}");
            let text = serves.pilotctl_text(&["plugins", name])?;
            ensure!(text.contains(wanted), "no {wanted:?} in {text}");
            anyhow::Ok(())
        }
    };
    install(&folder, "libcut.so", &library[..library.len() / 2])?;
    refused("cut", "is cut short").await?;
    install(&folder, "text.so", b"#!/bin/sh\necho not a library\n")?;
    refused("text", "is not a shared library").await?;
    install(&folder, "empty.so", b"")?;
    refused("empty", "is empty").await?;

    // Written by others: the file, and the folder that a link leads to.
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    let elsewhere = pair.network.folder().join("elsewhere");
    let target = install(&elsewhere, "libversion.so", &library)?;
    mode(&target, 0o666)?;
    fs::rename(&target, folder.join("libopen.so"))?;
    refused("open", "can be written by others (mode 666): chmod go-w it").await?;
    ensure!(pair.dial(4000).await.is_err(), "one of them was loaded");
    mode(&folder.join("libopen.so"), 0o644)?;
    ensure!(exchange(&mut pair.open(4000).await?, b"?", 8).await? == "00000001");
    fs::remove_file(folder.join("libopen.so"))?;
    pair.until_closed(4000).await?;

    let target = install(&elsewhere, "libversion.so", &library)?;
    mode(&elsewhere, 0o777)?;
    symlink(&target, folder.join("libversion.so"))?;
    refused("version", "elsewhere can be written by others (mode 777)").await?;
    symlink(folder.join("nowhere.so"), folder.join("libdangling.so"))?;
    refused("dangling", "libdangling.so cannot be opened").await?;
    symlink("/dev/zero", folder.join("libendless.so"))?;
    refused("endless", "is not a file").await?;
    mode(&elsewhere, 0o755)?;
    pair.serves.pilotctl_error(&["reload"])?;
    ensure!(exchange(&mut pair.open(4000).await?, b"?", 8).await? == "00000001");
    pair.still_serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_in_a_process_of_their_own() -> Result<()> {
    let mut pair = Pair::start().await?;
    let file = pair.network.folder().join("libhostile_c.so");
    compile_plugin("hostile.c", &file)?;
    let mut generation = 0;
    for (mode, wanted) in [
        ("segfault", "segmentation fault (SIGSEGV)"),
        ("abort", "aborted (SIGABRT)"),
        ("exit", "exited with status 3"),
        ("spin", "hangs"),
    ] {
        let lines = format!(
            "plugins:\n  hostile-c:\n    file: {}\n    isolation: process\n    \
             limits: {{callback: 500ms}}\n    config: {{mode: {mode}}}\n",
            shown(&file)
        );
        pair.serves.configure(&lines)?;
        let newer = |p: &Value| {
            p["state"] == "running"
                && p["isolation"] == "process"
                && p["generation"].as_u64() > Some(generation)
        };
        let fresh = pair.serves.until_plugin("hostile-c", mode, newer).await?;
        ensure!(fresh["memory"].as_u64() != Some(0), "{fresh}");
        let broken = ask(pair.open(C).await?, b"x").await;
        ensure!(broken.is_err(), "{mode}: a crash looks like an answer");
        let says = |p: &Value| {
            p["state"] == "running"
                && p["generation"].as_u64() > fresh["generation"].as_u64()
                && (contains(&p["last_error"], wanted) || contains(&p["reason"], wanted))
        };
        let now = pair.serves.until_plugin("hostile-c", wanted, says).await?;
        generation = now["generation"].as_u64().context("no generation")?;
        let text = pair.serves.pilotctl_text(&["plugins", "hostile-c"])?;
        ensure!(text.contains(wanted), "no {wanted:?} in {text}");
        pair.still_serves().await?;
    }

    // Memory without end, up to its limit.
    let limits = "    isolation: process\n    limits: {memory: 64M}\n";
    misbehave(&mut pair, "allocate-serve", limits).await?;
    // Its sink may crash on the way too, so that fewer streams are enough.
    let mut off = Value::Null;
    for _ in 0..3 {
        let before = pair.serves.client().await?.plugin("hostile").await?;
        ensure!(ask(pair.open(RUST).await?, b"x").await.is_err(), "out of memory, and answers");
        let follows = |p: &Value| {
            let newer = p["generation"].as_u64() > before["generation"].as_u64();
            p["state"] == "backing-off" || p["state"] == "running" && newer
        };
        off = pair.serves.until_plugin("hostile", "what follows a crash", follows).await?;
        if off["state"] == "backing-off" {
            break;
        }
    }
    ensure!(off["state"] == "backing-off" && contains(&off["reason"], "out of memory"), "{off}");
    pair.still_serves().await?;
    pair.serves.until_state("hostile", "running").await?;

    // Its children are gone with it.
    let children = |pid: u32| -> usize {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
        lists.map(|list| list.split_whitespace().count()).sum()
    };
    let pid = pair.serves.process.pid();
    ensure!(children(pid) == 1, "{} children", children(pid));
    pair.serves.configure("")?;
    pair.until_closed(RUST).await?;
    pilot_tests::harness::eventually("no child", async || (children(pid) == 0).then_some(()))
        .await?;
    pair.still_serves().await
}
