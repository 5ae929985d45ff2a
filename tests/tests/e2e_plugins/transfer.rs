//! A file whose receiver is killed in the middle, and continued.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Pattern, Process, eventually, run};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{NOTICE, Pair};

/// Long enough to be interrupted.
const SIZE: usize = 96 << 20;
/// What has come when the receiver is killed.
const CAME: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_continued_after_its_receiver_was_killed() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (at, asks) = (pair.address.clone(), pair.asks.home.clone());

    // The command lives through it.
    let (file, contents) = source(&asks, "patient.bin", 1)?;
    let path = file.to_str().context("a path")?;
    let command = pair.asks.pilotctl_command("--json=false", &["send-file", &at, path])?;
    let sending = tokio::task::spawn_blocking(move || run("send-file", command, NOTICE * 2));
    kill_in_the_middle(&mut pair.serves).await?;
    ensure!(!sending.is_finished(), "all of it was sent before the receiver was killed");
    pair.serves.start_again()?;
    let done = sending.await??;
    ensure!(done.status.success(), "{}", done.stderr);
    ensure!(done.stderr.contains("trying again"), "{}", done.stderr);
    arrived(&pair.serves, "patient.bin", &contents)?;

    // The command is killed as well, and given again.
    let (file, contents) = source(&asks, "again.bin", 2)?;
    let path = file.to_str().context("a path")?;
    pair.serves.joined().await?;
    let mut command = pair.asks.pilotctl_command("--json", &["send-file", &at, path])?;
    let mut sending = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let killed = kill_in_the_middle(&mut pair.serves).await;
    sending.kill()?;
    sending.wait()?;
    killed?;
    pair.serves.start_again()?;
    pair.serves.joined().await?;
    let sent = eventually("the rest to be sent", async || {
        pair.asks.pilotctl(&["send-file", &at, path]).ok()
    });
    let sent = sent.await?;
    let resumed = sent["resumed"].as_u64().context("no resumed")?;
    ensure!(resumed >= CAME && resumed < SIZE as u64, "{sent}");
    arrived(&pair.serves, "again.bin", &contents)
}

fn source(folder: &Path, name: &str, seed: u64) -> Result<(PathBuf, Vec<u8>)> {
    let (file, contents) = (folder.join(name), Pattern::new(seed).bytes(SIZE));
    fs::write(&file, &contents)?;
    Ok((file, contents))
}

/// Kills a daemon when a part of a file has come.
async fn kill_in_the_middle(daemon: &mut Daemon) -> Result<()> {
    let folder = daemon.home.join("received");
    let came = eventually("a part of the file", async || {
        let unfinished = fs::read_dir(&folder).ok()?.flatten().find(|entry| {
            entry.file_name().to_string_lossy().starts_with(".incoming")
                && entry.metadata().is_ok_and(|m| m.len() >= CAME)
        });
        unfinished.map(drop)
    });
    let came = came.await;
    daemon.process.kill();
    came.with_context(|| Process::log_tail(&daemon.process))
}

/// The file is there once, whole, and nothing is left of the attempts.
fn arrived(daemon: &Daemon, name: &str, contents: &[u8]) -> Result<()> {
    let list = daemon.pilotctl(&["received"])?;
    let stem = name.trim_end_matches(".bin");
    let files: Vec<&Value> = list["files"]
        .as_array()
        .context("no list")?
        .iter()
        .filter(|file| file["name"].as_str().is_some_and(|n| n.contains(stem)))
        .collect();
    ensure!(files.len() == 1, "{list}");
    let came = fs::read(files[0]["path"].as_str().context("no path")?)?;
    ensure!(Sha256::digest(&came) == Sha256::digest(contents), "{} bytes differ", came.len());
    let left = fs::read_dir(daemon.home.join("received"))?.flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count();
    ensure!(left == 0, "{left} unfinished files are left");
    Ok(())
}
