//! `make demo`: a rendezvous and two daemons on this machine, trust, a ping, a
//! large file and a web page, with the programs that a user runs. Everything
//! lives in one temporary folder and is gone afterwards, however it ends.

mod network;
mod payload;
mod report;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use network::{Agent, Network, poll_until};
use report::{Protection, Report, complain, say};
use tokio::signal::unix::{SignalKind, signal};

/// Bytes of the generated file.
const FILE_LEN: u64 = 256 << 20;
/// How long any one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::default();
    let folder = match tempfile::Builder::new().prefix("pilot-demo-").tempdir() {
        Ok(folder) => folder,
        Err(e) => {
            complain(format_args!(
                "demo: no temporary folder can be made: {e} (is TMPDIR writable?)"
            ));
            return ExitCode::FAILURE;
        }
    };
    let mut network = Network::new(folder.path());
    let interrupted = tokio::select! {
        () = steps(&mut network, &mut report) => false,
        name = stop_signal() => {
            complain(format_args!("\ndemo: {name}, cleaning up"));
            true
        }
    };
    network.stop().await;
    if report.failed() > 0 {
        network.show_logs();
    }
    if let Err(e) = folder.close() {
        complain(format_args!("demo: the temporary folder could not be removed: {e}"));
    }
    if interrupted {
        report.fail("run to the end", "interrupted".to_owned());
    }
    report.print();
    if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for Ctrl-C, SIGTERM or the end of the terminal, and names it.
async fn stop_signal() -> &'static str {
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        // Without handlers the signals end the process as usual.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => "interrupted",
        _ = term.recv() => "asked to end",
        _ = hup.recv() => "the terminal has gone",
    }
}

/// What a step moved, for the table.
enum Moved {
    Nothing,
    Bytes(u64),
}

/// Runs one step, times it and notes how it went.
async fn step(
    report: &mut Report,
    name: &str,
    work: impl Future<Output = Result<(String, Moved)>>,
) -> bool {
    let started = Instant::now();
    let result = match tokio::time::timeout(STEP_LIMIT, work).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("not done after {} s", STEP_LIMIT.as_secs())),
    };
    match result {
        Ok((note, moved)) => {
            let bytes = match moved {
                Moved::Bytes(n) => Some(n),
                Moved::Nothing => None,
            };
            report.pass(name, started.elapsed(), bytes, note);
            true
        }
        Err(e) => {
            report.fail(name, format!("{e:#}"));
            false
        }
    }
}

async fn steps(network: &mut Network, report: &mut Report) {
    const REST: [&str; 6] = [
        "establish trust",
        "ping",
        "send 256 MiB",
        "send README.md",
        "fetch a web page",
        "check the tunnel",
    ];
    let folder = network.folder().to_owned();
    say(format_args!("Starting a rendezvous and two daemons under {}", folder.display()));
    // Made while the daemons start; it is ready long before it is needed.
    let file = folder.join("generated.bin");
    let generated = tokio::task::spawn_blocking({
        let file = file.clone();
        move || payload::generate(&file, FILE_LEN)
    });

    if !step(report, "start", start(network)).await {
        report.skip(&REST, "the network did not start");
        return;
    }
    let (a, b) = match (network.agent("agent-a"), network.agent("agent-b")) {
        (Ok(a), Ok(b)) => (a, b),
        _ => {
            report.skip(&REST, "the network did not start");
            return;
        }
    };
    if !step(report, REST[0], trust(a, b)).await {
        report.skip(&REST[1..], "there is no trust");
        return;
    }
    step(report, REST[1], ping(a, b)).await;
    let hash = match generated.await {
        Ok(Ok(hash)) => Ok(hash),
        Ok(Err(e)) => Err(format!("cannot write {}: {e}", file.display())),
        Err(e) => Err(e.to_string()),
    };
    match hash {
        Ok(hash) => step(report, REST[2], send(a, b, &file, hash)).await,
        Err(e) => {
            report.fail(REST[2], e);
            false
        }
    };
    let readme = readme();
    step(report, REST[3], async {
        let readme = readme?;
        let hash = payload::hash(&readme)?;
        send(a, b, &readme, hash).await
    })
    .await;
    step(report, REST[4], page(a, b, network)).await;
    let protection = protection(a, b).await;
    if let Ok(protection) = &protection {
        report.protect(*protection);
    }
    step(report, REST[5], async {
        let p = protection?;
        ensure!(p.encrypted, "the daemons do not report the tunnel as encrypted");
        ensure!(p.authenticated, "the daemons do not report the tunnel as authenticated");
        Ok(("AES-256-GCM, both identities proven".to_owned(), Moved::Nothing))
    })
    .await;
}

async fn start(network: &mut Network) -> Result<(String, Moved)> {
    network.start_rendezvous().await?;
    for name in ["agent-a", "agent-b"] {
        network.start_daemon(name).await?;
    }
    let mut addresses = Vec::new();
    for name in ["agent-a", "agent-b"] {
        let agent = network.agent(name)?;
        say(format_args!("  {name}  {}  node {}", agent.address, agent.node));
        addresses.push(format!("{name} is {}", agent.address));
    }
    Ok((addresses.join(", "), Moved::Nothing))
}

/// `a` asks, `b` sees the request and approves it, both end up trusting.
async fn trust(a: &Agent, b: &Agent) -> Result<(String, Moved)> {
    a.pilotctl(&["handshake", &b.node.to_string(), "make demo"]).await?;
    poll_until("agent-b to see the request", || async {
        let pending = b.pilotctl(&["pending"]).await?;
        Ok(has_node(&pending["pending"], a.node))
    })
    .await?;
    b.pilotctl(&["approve", &a.node.to_string()]).await?;
    for (one, other) in [(a, b), (b, a)] {
        poll_until("both agents to trust each other", || async {
            let trusted = one.pilotctl(&["trust"]).await?;
            Ok(has_node(&trusted["trusted"], other.node))
        })
        .await?;
    }
    Ok(("requested by agent-a, approved by agent-b".to_owned(), Moved::Nothing))
}

fn has_node(list: &serde_json::Value, node: u64) -> bool {
    list.as_array().is_some_and(|l| l.iter().any(|e| e["node_id"].as_u64() == Some(node)))
}

async fn ping(a: &Agent, b: &Agent) -> Result<(String, Moved)> {
    let pings = a.pilotctl(&["ping", &b.name, "--count", "2"]).await?;
    let results = pings["results"].as_array().context("no results")?;
    ensure!(!results.is_empty(), "no results");
    let mut best = f64::INFINITY;
    for result in results {
        match result["rtt_ms"].as_f64() {
            Some(rtt) => best = best.min(rtt),
            None => bail!("no answer: {result}"),
        }
    }
    Ok((format!("{best:.2} ms, connection set-up included"), Moved::Nothing))
}

/// Sends `file` to `b` and compares what arrived there.
async fn send(a: &Agent, b: &Agent, file: &Path, hash: String) -> Result<(String, Moved)> {
    let received = b.home.join("received");
    let before = files(&received);
    let len = std::fs::metadata(file)?.len();
    let path = file.to_str().context("the folder's name is not UTF-8")?;
    let sent = a.pilotctl(&["send-file", &b.name, path]).await?;
    let ack = sent["ack"].as_str().unwrap_or_default();
    ensure!(ack.starts_with("ACK"), "agent-b answered {ack:?}");
    let new: Vec<PathBuf> = files(&received).into_iter().filter(|f| !before.contains(f)).collect();
    let [arrived] = new.as_slice() else {
        bail!("expected one new file in {}, found {}", received.display(), new.len());
    };
    let arrived = arrived.clone();
    let there = tokio::task::spawn_blocking(move || payload::hash(&arrived)).await??;
    ensure!(there == hash, "the hashes differ: {hash} sent, {there} arrived");
    Ok((format!("SHA-256 {}... at both ends", &hash[..16]), Moved::Bytes(len)))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| {
            p.is_file() && !p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
        })
        .collect()
}

/// Agent B serves HTTP with hyper on its port 80; agent A gets a page.
async fn page(a: &Agent, b: &Agent, network: &Network) -> Result<(String, Moved)> {
    let mut server = network.http_server(b).await?;
    let page = a.http_get(&format!("{}:80/", b.name)).await;
    server.stop().await;
    let page = page?;
    ensure!(!page.is_empty(), "the page is empty");
    Ok((format!("{} bytes over HTTP/1.1 on port 80", page.len()), Moved::Nothing))
}

/// What both daemons say of the tunnel between them.
async fn protection(a: &Agent, b: &Agent) -> Result<Protection> {
    let mut both = Protection { encrypted: true, authenticated: true };
    for (one, other) in [(a, b), (b, a)] {
        let peers = one.pilotctl(&["peers"]).await?;
        let peer = peers["peers"]
            .as_array()
            .and_then(|l| l.iter().find(|p| p["node_id"].as_u64() == Some(other.node)))
            .with_context(|| format!("{} does not list {}", one.name, other.name))?;
        both.encrypted &= peer["encrypted"].as_bool() == Some(true);
        both.authenticated &= peer["authenticated"].as_bool() == Some(true);
    }
    Ok(both)
}

/// This repository's README: beside the sources when run from there.
fn readme() -> Result<PathBuf> {
    let here = PathBuf::from("README.md");
    if here.is_file() {
        return Ok(here);
    }
    let beside_sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    ensure!(beside_sources.is_file(), "no README.md: run the demo in the repository");
    Ok(beside_sources)
}
