//! What changes about a peer that nobody speaks to.

use std::time::Duration;

use anyhow::{Result, ensure};
use pilot_tests::harness::{Daemon, eventually};
use pilot_wire::NodeId;

use super::*;

/// A path that was heard within a second is not given up for what the registry
/// says: it proves itself.
const SILENCE: Duration = Duration::from_millis(1200);

/// Where a daemon knows a peer to be.
async fn known_endpoint(daemon: &Daemon, peer: NodeId) -> Option<String> {
    let info = daemon.info().await.ok()?;
    let peers = info["peer_list"].as_array()?;
    let peer = peers.iter().find(|p| p["node_id"] == json!(peer))?;
    Some(peer["endpoint"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_on_another_port_is_reached() -> Result<()> {
    let network = with_admin()?;
    let (a, mut b) = network.pair().await?;
    let node = b.node().await?;
    works(&a, &echo_of(&b).await?, 1).await?;
    for round in 2..5 {
        let before = b.udp()?;
        b.stop()?;
        // Somebody else has the port meanwhile.
        let taken = std::net::UdpSocket::bind(before)?;
        tokio::time::sleep(SILENCE).await;
        b.start_again()?;
        drop(taken);
        ensure!(b.joined().await? == node, "another node number");
        let now = b.udp()?;
        ensure!(now != before, "the same port");
        // Known before anything is sent there.
        eventually("the new endpoint", async || {
            (known_endpoint(&a, node).await? == now.to_string()).then_some(())
        })
        .await?;
        works(&a, &echo_of(&b).await?, round).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_on_another_port_is_reached() -> Result<()> {
    let network = with_admin()?;
    create(&network, "lab", &["--rule", "open"])?;
    let configured = |name: &str| network.options(name).lines("networks: [lab]\n");
    let a = network.daemon_with(configured("agent-a")).await?;
    let mut b = network.daemon_with(configured("agent-b")).await?;
    for daemon in [&a, &b] {
        until_state(daemon, "lab", "joined").await?;
    }
    works(&a, &echo_of(&b).await?, 1).await?;
    let (node, before) = (b.node().await?, b.udp()?);
    b.process.kill();
    let taken = std::net::UdpSocket::bind(before)?;
    tokio::time::sleep(SILENCE).await;
    b.start_again()?;
    b.joined().await?;
    let now = b.udp()?;
    ensure!(now != before, "the same port");
    drop(taken);
    eventually("the new endpoint", async || {
        (known_endpoint(&a, node).await? == now.to_string()).then_some(())
    })
    .await?;
    works(&a, &echo_of(&b).await?, 2).await
}

/// It says nothing about how: the push comes too early to be believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_at_once_is_reached() -> Result<()> {
    let network = with_admin()?;
    let (a, mut b) = network.pair().await?;
    for round in 1..4 {
        works(&a, &echo_of(&b).await?, round).await?;
        let before = b.udp()?;
        b.process.kill();
        let taken = std::net::UdpSocket::bind(before)?;
        b.start_again()?;
        b.joined().await?;
        ensure!(b.udp()? != before, "the same port");
        drop(taken);
    }
    works(&a, &echo_of(&b).await?, 4).await
}
