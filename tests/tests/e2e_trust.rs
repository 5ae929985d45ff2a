//! Dark by default, seen from outside: who is not trusted gets nothing, and who
//! no longer is loses what it had.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::Client;
use pilot_tests::harness::{Daemon, EchoApp, Network, drain_prefix, eventually, round_trip};
use serde_json::Value;
use tokio::time::timeout;

/// Long enough for a SYN and a few repetitions.
const NO_ANSWER: Duration = Duration::from_secs(3);
const NOTICE: Duration = Duration::from_secs(20);

async fn refused(daemon: &Daemon, rule: &str) -> Result<u64> {
    let info: Value = daemon.info().await?;
    info["refused"][rule].as_u64().with_context(|| format!("no counter {rule} in {info}"))
}

async fn cannot_open(client: &Client, target: &str) -> Result<()> {
    match timeout(NO_ANSWER, client.dial(target)).await {
        Ok(Ok(_)) => anyhow::bail!("a stream to {target} was opened"),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_opens_nothing_and_sends_no_datagram() -> Result<()> {
    let network = Network::start()?;
    // Public, so that the stranger learns the endpoint and gets as far as the
    // tunnel; what then stops it is the daemon.
    let b = network.daemon_with(network.options("agent-b").set("public", "true")).await?;
    let c = network.daemon("stranger").await?;
    let server = b.client().await?;
    let _echo = EchoApp::start(&server, 5000).await?;
    let mut inbox = server.datagrams();
    let stranger = c.client().await?;
    let address = b.address().await?;
    for port in [7, 1001, 5000] {
        let before = refused(&b, "untrusted").await?;
        cannot_open(&stranger, &format!("{address}:{port}")).await?;
        eventually("the refusal to be counted", async || {
            (refused(&b, "untrusted").await.ok()? > before).then_some(())
        })
        .await?;
    }
    let before = refused(&b, "untrusted").await?;
    eventually("the datagram to be counted as refused", async || {
        stranger.send_datagram(&format!("{address}:5000"), b"psst").await.ok()?;
        (refused(&b, "untrusted").await.ok()? > before).then_some(())
    })
    .await?;
    ensure!(
        timeout(Duration::from_millis(200), inbox.recv()).await.is_err(),
        "a stranger's datagram was delivered"
    );
    // The one port that is open to strangers.
    stranger.handshake_request(b.node().await?, "may I?").await?;
    let node_c = c.node().await?;
    eventually("the request to arrive", async || {
        let pending = server.pending().await.ok()?;
        pending.iter().any(|p| p.node_id == node_c).then_some(())
    })
    .await?;
    // Asking alone opens nothing.
    cannot_open(&stranger, &format!("{address}:7")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_node_is_not_found_by_strangers() -> Result<()> {
    let network = Network::start()?;
    let b = network.daemon("agent-b").await?;
    let c = network.daemon("stranger").await?;
    let target = format!("{}:7", b.address().await?);
    let dialled = timeout(NOTICE, c.client().await?.dial(&target)).await.context("dial hangs")?;
    ensure!(dialled.is_err(), "a private node was reached without trust");
    let info = b.info().await?;
    ensure!(info["peers"] == 0, "the stranger knows where the node is: {info}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_trust_ends_open_streams() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let server = b.client().await?;
    let listener = server.listen(5000).await?;
    let client = a.client().await?;
    let target = format!("{}:5000", b.address().await?);
    let mut dialled = client.dial(&target).await?;
    let (mut accepted, _) = listener.accept().await?;
    let echo = client.dial(&format!("{}:7", b.address().await?)).await?;
    round_trip(echo, 1, 100_000).await?;

    server.revoke(node_a).await?;
    let (_, _, here) =
        timeout(NOTICE, drain_prefix(&mut accepted, 1)).await.context("the revoker's stream")?;
    ensure!(here.is_err(), "a revoked stream looks like an orderly end");
    let (_, _, there) =
        timeout(NOTICE, drain_prefix(&mut dialled, 1)).await.context("the revoked stream")?;
    ensure!(there.is_err(), "a revoked stream looks like an orderly end at the other side");
    for (client, other) in [(&server, node_a), (&client, node_b)] {
        eventually("both sides to have forgotten the trust", async || {
            let trusted = client.trusted().await.ok()?;
            (!trusted.iter().any(|t| t.node_id == other)).then_some(())
        })
        .await?;
    }
    cannot_open(&client, &target).await?;

    // Trust can be given again.
    pilot_tests::harness::establish_trust(&a, &b).await?;
    let again = eventually("a stream to open again", async || {
        client.dial(&format!("{}:7", b.address().await.ok()?)).await.ok()
    })
    .await?;
    timeout(NOTICE, round_trip(again, 2, 100_000)).await.context("after trusting again")?
}
