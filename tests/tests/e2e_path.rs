//! The whole path with real programs: the demo's steps, many connections at
//! once, a gigabyte in one stream, datagrams.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{
    Daemon, EchoApp, LIFTED, Network, Pattern, drain, eventually, pour, round_trip,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

fn lists(list: &Value, node: u32) -> bool {
    list.as_array().is_some_and(|l| l.iter().any(|e| e["node_id"] == node))
}

/// Sends a file with pilotctl and checks it at the other end.
fn send_file(a: &Daemon, b: &Daemon, name: &str, len: usize) -> Result<()> {
    let content = Pattern::new(len as u64).bytes(len);
    let path = a.home.join(name);
    std::fs::write(&path, &content)?;
    let received = b.home.join("received");
    let list = || -> HashSet<_> {
        let entries = std::fs::read_dir(&received).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    };
    let before = list();
    let sent = a.pilotctl(&["send-file", &b.name, path.to_str().context("path")?])?;
    ensure!(sent["bytes"] == len, "{sent}");
    let ack = sent["ack"].as_str().unwrap_or_default();
    ensure!(ack == format!("ACK FILE {len} bytes"), "{sent}");
    let after = list();
    let mut new = after.difference(&before);
    let arrived = new.next().context("no file arrived")?;
    ensure!(new.next().is_none(), "more than one file arrived: {after:?}");
    ensure!(
        Sha256::digest(std::fs::read(arrived)?) == Sha256::digest(&content),
        "the file arrived changed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_meet_with_pilotctl() -> Result<()> {
    let network = Network::start()?;
    let a = network.daemon("agent-a").await?;
    let b = network.daemon("agent-b").await?;
    let (node_a, node_b) = (a.node().await?.0, b.node().await?.0);

    let asked = a.pilotctl(&["handshake", "agent-b", "we should talk"])?;
    ensure!(asked["status"] == "sent" && asked["node_id"] == node_b, "{asked}");
    eventually("the request to arrive", async || {
        let pending = b.pilotctl(&["pending"]).ok()?;
        lists(&pending["pending"], node_a).then_some(())
    })
    .await?;
    b.pilotctl(&["approve", &node_a.to_string()])?;
    for (one, other) in [(&a, node_b), (&b, node_a)] {
        eventually("mutual trust", async || {
            let trust = one.pilotctl(&["trust"]).ok()?;
            lists(&trust["trusted"], other).then_some(())
        })
        .await?;
    }

    let ping = a.pilotctl(&["ping", "agent-b", "--count", "2"])?;
    let results = ping["results"].as_array().context("results")?;
    ensure!(results.len() == 2 && results.iter().all(|r| r["rtt_ms"].is_number()), "{ping}");

    let said = a.pilotctl(&["connect", "agent-b", "7", "--message", "hello"])?;
    ensure!(said["response"] == "hello", "{said}");

    // One published frame, and one file beyond what that can carry.
    send_file(&a, &b, "small.bin", 1 << 20)?;
    send_file(&a, &b, "empty.bin", 0)?;
    send_file(&a, &b, "large.bin", 20 << 20)?;

    let found = a.pilotctl(&["find", "agent-b"])?;
    ensure!(found["node_id"] == node_b && found["hostname"] == "agent-b", "{found}");
    let looked_up = a.pilotctl(&["lookup", &node_b.to_string()])?;
    ensure!(looked_up["node_id"] == node_b, "{looked_up}");
    let peers = a.pilotctl(&["peers"])?;
    let peer = peers["peers"].as_array().and_then(|p| p.iter().find(|p| p["node_id"] == node_b));
    let peer = peer.with_context(|| format!("{peers}"))?;
    ensure!(peer["encrypted"] == true && peer["authenticated"] == true, "{peers}");

    b.pilotctl(&["set-hostname", "renamed"])?;
    eventually("the new name", async || a.pilotctl(&["find", "renamed"]).ok()).await?;
    let wrong = a.pilotctl_error(&["ping", "nobody-has-this-name"])?;
    ensure!(wrong["code"] == "not_found", "{wrong}");
    let message = wrong["message"].as_str().unwrap_or_default();
    ensure!(message.contains("nobody-has-this-name"), "{wrong}");
    Ok(())
}

/// `count` streams at once, each with its own data in both directions.
async fn at_once(a: &Daemon, b: &Daemon, count: u64) -> Result<()> {
    let server = b.client().await?;
    let _echo = EchoApp::start(&server, 5000).await?;
    let client = a.client().await?;
    let target = format!("{}:5000", b.address().await?);
    let mut tasks = JoinSet::new();
    for seed in 0..count {
        let (client, target) = (client.clone(), target.clone());
        tasks.spawn(async move {
            let stream = client.dial(&target).await.with_context(|| format!("dial {seed}"))?;
            round_trip(stream, seed, 40_000 + seed).await.with_context(|| format!("stream {seed}"))
        });
    }
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    timeout(Duration::from_secs(60), all).await.context("still not done")??;
    eventually("both daemons to have no stream left", async || {
        let (a, b) = (a.info().await.ok()?, b.info().await.ok()?);
        (a["connections"] == 0 && b["connections"] == 0).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_connections_at_once_with_default_limits() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    at_once(&a, &b, 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_connections_at_once() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair_with(&LIFTED).await?;
    at_once(&a, &b, 500).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_in_one_stream() -> Result<()> {
    const LEN: u64 = 1 << 30;
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let server = b.client().await?;
    let listener = server.listen(5000).await?;
    let reader = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let got = drain(&mut stream).await?;
        stream.shutdown().await?;
        anyhow::Ok(got)
    });
    let client = a.client().await?;
    let mut stream = client.dial(&format!("{}:5000", b.address().await?)).await?;
    let transfer = async {
        let sent = pour(&mut stream, 1, LEN).await?;
        stream.shutdown().await?;
        let (len, got) = reader.await??;
        ensure!(len == LEN, "{len} of {LEN} bytes arrived");
        ensure!(got == sent, "the content arrived changed");
        ensure!(drain(&mut stream).await?.0 == 0, "bytes came back");
        Ok(())
    };
    timeout(Duration::from_secs(120), transfer).await.context("a gigabyte takes two minutes")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_arrive_with_their_source() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (client_a, client_b) = (a.client().await?, b.client().await?);
    let mut inbox = client_b.datagrams();
    let target = format!("{}:6000", b.address().await?);
    let source = a.address().await?;
    // Datagrams may be lost; one of some must arrive.
    let arrived = eventually("a datagram to arrive", async || {
        client_a.send_datagram(&target, b"are you there?").await.ok()?;
        timeout(Duration::from_millis(500), inbox.recv()).await.ok()?.ok()
    })
    .await?;
    ensure!(arrived.data[..] == b"are you there?"[..], "{arrived:?}");
    ensure!(arrived.destination_port == 6000, "{arrived:?}");
    ensure!(arrived.source.address.to_string() == source, "{arrived:?}");
    Ok(())
}
