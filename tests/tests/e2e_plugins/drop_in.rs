//! Files put into the folders of a running daemon, replaced and taken away, and
//! its configuration edited.

use std::fs;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{VersionPlugin, install};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Pair, ask, exchange, shown};

/// Port of `tests/plugins/version.c`.
const PORT: u16 = 4000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_is_dropped_in_replaced_and_taken_away() -> Result<()> {
    let mut pair = Pair::start().await?;
    let plugin = VersionPlugin::compile(pair.network.folder())?;
    let folder = pair.serves.home.join("plugins");
    ensure!(folder.is_dir(), "the daemon has not made {}", folder.display());
    let file = install(&folder, "libversion.so", &plugin.library("00000001")?)?;
    let mut old = pair.open(PORT).await?;
    ensure!(exchange(&mut old, b"?", 8).await? == "00000001");

    install(&folder, "libversion.so", &plugin.library("00000002")?)?;
    let now = pair.serves.until_plugin("version", "the second one", |p| p["generation"] == 2);
    let draining = json!([{ "generation": 1, "streams": 1 }]);
    let now = now.await?;
    ensure!(now["draining"] == draining && now["state"] == "running", "{now}");
    ensure!(now["last_reload"]["cause"] == "file", "{now}");
    let mut new = pair.open(PORT).await?;
    ensure!(exchange(&mut new, b"?", 8).await? == "00000002");
    ensure!(exchange(&mut old, b"?", 8).await? == "00000001", "an open stream changed hands");
    drop(old);
    pair.serves.until_plugin("version", "one version", |p| p["draining"] == json!([])).await?;

    // One that is bad changes nothing, and says why.
    install(&folder, "libversion.so", &plugin.library("X0000003")?)?;
    let kept = |p: &Value| p["last_reload"]["result"] == "kept";
    let now = pair.serves.until_plugin("version", "refused", kept).await?;
    ensure!(now["generation"] == 2 && now["state"] == "running", "{now}");
    let why = now["last_reload"]["error"].as_str().unwrap_or_default();
    ensure!(why.contains("this version is known to be bad"), "{now}");
    let text = pair.serves.pilotctl_text(&["plugins", "version"])?;
    ensure!(text.contains("known to be bad") && text.contains("kept (file)"), "{text}");
    ensure!(exchange(&mut pair.open(PORT).await?, b"?", 8).await? == "00000002");

    fs::remove_file(&file)?;
    pair.until_closed(PORT).await?;
    ensure!(exchange(&mut new, b"?", 8).await? == "00000002", "an open stream was cut");
    drop(new);
    pair.serves.until_plugin("version", "gone", Value::is_null).await?;
    ensure!(pair.serves.pilotctl_error(&["plugins", "version"])?["code"] == "not_found");
    pair.still_serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_is_dropped_in_replaced_and_taken_away() -> Result<()> {
    let mut pair = Pair::start().await?;
    let folder = pair.serves.home.join("scripts");
    let script = |answer: &str| {
        format!(
            "return {{ kind = 'service', port = 4100, serve = function(stream, peer)
               local line = stream:read_line()
               stream:write('{answer} ' .. line .. ' of ' .. peer.address)
             end }}"
        )
    };
    let own = pair.asks.address().await?;
    let file = install(&folder, "greet.lua", script("hello").as_bytes())?;
    let answer = ask(pair.open(4100).await?, b"world\n").await?;
    ensure!(answer == format!("hello world of {own}").into_bytes(), "{answer:?}");

    install(&folder, "greet.lua", script("good day").as_bytes())?;
    pair.serves.until_plugin("greet", "the second one", |p| p["generation"] == 2).await?;
    let answer = ask(pair.open(4100).await?, b"world\n").await?;
    ensure!(answer.starts_with(b"good day world"), "{answer:?}");

    install(&folder, "greet.lua", b"return {\n  kind = 'service' port = 4100\n}")?;
    let kept = |p: &Value| p["last_reload"]["result"] == "kept";
    let now = pair.serves.until_plugin("greet", "refused", kept).await?;
    let why = now["last_reload"]["error"].as_str().unwrap_or_default();
    ensure!(why.contains("greet.lua:2"), "{now}");
    let answer = ask(pair.open(4100).await?, b"world\n").await?;
    ensure!(answer.starts_with(b"good day world"), "{answer:?}");

    // An error while it serves is one stream, and is shown with its line.
    install(&folder, "greet.lua", script("' .. nothing.here .. '").as_bytes())?;
    pair.serves.until_plugin("greet", "the third one", |p| p["generation"] == 3).await?;
    ensure!(ask(pair.open(4100).await?, b"world\n").await.is_err(), "half an answer looks whole");
    let failed = |p: &Value| p["last_error"].as_str().is_some_and(|e| e.contains("greet.lua:3"));
    pair.serves.until_plugin("greet", "its error", failed).await?;

    fs::remove_file(&file)?;
    pair.until_closed(4100).await?;
    pair.still_serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_configuration_is_applied() -> Result<()> {
    let mut pair = Pair::start().await?;
    let plugin = VersionPlugin::compile(pair.network.folder())?;
    install(&pair.serves.home.join("plugins"), "libversion.so", &plugin.library("00000001")?)?;
    pair.open(PORT).await?;
    let site = pair.network.folder().join("site");
    fs::create_dir(&site)?;
    fs::write(site.join("hello.txt"), "from the folder")?;

    let served =
        format!("  http:\n    ports: [80, 8080]\n    config:\n      folder: {}\n", shown(&site));
    pair.serves.configure(&format!("plugins:\n  version:\n    ports: [4001]\n{served}"))?;
    ensure!(exchange(&mut pair.open(4001).await?, b"?", 8).await? == "00000001");
    pair.until_closed(PORT).await?;
    let request = b"GET /hello.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut stream = pair.open(8080).await?;
    let answer = exchange(&mut stream, request, 15).await?;
    ensure!(answer == "HTTP/1.1 200 OK", "{answer}");

    pair.serves.configure(&format!("plugins:\n  echo:\n    enabled: false\n{served}"))?;
    pair.until_closed(7).await?;
    pair.serves.until_state("echo", "off").await?;
    pair.open(PORT).await?;
    pair.until_closed(4001).await?;

    // Refused: everything stays as it was, and it is said where the fault is.
    pair.serves.configure(&format!("plugins:\n  echo:\n    enabeld: true\n{served}"))?;
    let error = pair.serves.pilotctl_error(&["reload"])?;
    let reason = error["reason"].as_str().context("no reason")?;
    let file = pair.serves.home.join("daemon.yaml");
    let text = fs::read_to_string(&file)?;
    let line = text.lines().position(|l| l.contains("enabeld")).context("not there")? + 1;
    for part in [format!("{} line {line}", file.display()), "enabeld".into(), "enabled".into()] {
        ensure!(reason.contains(&part), "no {part} in {reason}");
    }
    pair.serves.until_state("echo", "off").await?;
    ensure!(exchange(&mut pair.open(8080).await?, request, 15).await? == "HTTP/1.1 200 OK");
    // So is what a plugin's own schema refuses, for that plugin alone.
    pair.serves
        .configure(&served.replace("  http", "plugins:\n  http").replace("folder", "fodler"))?;
    let error = pair.serves.pilotctl_error(&["reload"])?;
    let reason = error["reason"].as_str().context("no reason")?;
    let text = fs::read_to_string(&file)?;
    let line = text.lines().position(|l| l.contains("fodler")).context("not there")? + 1;
    ensure!(reason.contains("http") && reason.contains("fodler"), "{reason}");
    ensure!(reason.contains(&format!("{} line {line}", file.display())), "{reason}");
    ensure!(exchange(&mut pair.open(8080).await?, request, 15).await? == "HTTP/1.1 200 OK");
    pair.serves.until_state("echo", "running").await?;
    pair.serves.configure("")?;
    pair.until_closed(8080).await?;
    let done = pair.serves.pilotctl(&["reload"])?;
    ensure!(done["config_error"].is_null(), "{done}");
    pair.still_serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_watch_sees_is_found_by_a_signal_and_by_a_command() -> Result<()> {
    let mut pair = Pair::start().await?;
    for (name, port) in [("one", 8081), ("other", 8082)] {
        // It starts only when the folder is there, which nobody watches.
        let site = pair.network.folder().join(name);
        let lines = format!(
            "plugins:\n  http:\n    ports: [{port}]\n    config:\n      folder: {}\n",
            shown(&site)
        );
        pair.serves.configure(&lines)?;
        let refused = |p: &Value| {
            p["last_reload"]["error"].as_str().is_some_and(|e| e.contains(&*site.to_string_lossy()))
        };
        let now = pair.serves.until_plugin("http", "refused", refused).await?;
        ensure!(now["state"] == "running", "the one before does not go on: {now}");
        // It is not what the configuration wants, so it is tried each time.
        let error = pair.serves.pilotctl_error(&["reload"])?;
        ensure!(error.to_string().contains("is not a folder"), "{error}");
        fs::create_dir(&site)?;
        match name {
            "one" => pair.serves.process.signal(Signal::HUP),
            _ => {
                let done = pair.serves.pilotctl(&["reload"])?;
                ensure!(done.to_string().contains("reloaded"), "{done}");
            }
        }
        pair.open(port).await?;
    }
    pair.still_serves().await
}
