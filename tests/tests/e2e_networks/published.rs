//! A node that speaks only the published protocol, at a registry that pushes,
//! with a daemon that has a session there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network, eventually};
use pilot_tests::peer::{Config, PublishedPeer};

use super::*;

/// Both private, so that only the registry brings them together; the peer polls.
async fn strangers() -> Result<(Daemon, PublishedPeer, Network)> {
    let network = with_admin()?;
    let daemon = network.daemon("agent-a").await?;
    until_session(&daemon).await?;
    let mut config = Config::new(network.registry_addr(), Some(network.beacon_addr().parse()?));
    config.switches.heartbeat = Duration::from_millis(500);
    let peer = PublishedPeer::start_with(config).await?;
    Ok((daemon, peer, network))
}

async fn both_trust(daemon: &Daemon, peer: &PublishedPeer) -> Result<()> {
    let client = daemon.client().await?;
    let (node, other) = (daemon.node().await?, peer.node());
    eventually("trust on both sides", async || {
        let trusted = client.trusted().await.ok()?;
        let both = trusted.iter().any(|t| t.node_id == other);
        (both && peer.trusted().contains_key(&node)).then_some(())
    })
    .await
    .with_context(|| daemon.process.log_tail())?;
    let from_peer = timeout(NOTICE, peer.dial(node, 7)).await.context("the peer's dial")??;
    from_peer.write(b"published").await?;
    let back = timeout(NOTICE, from_peer.read_exact(9)).await.context("the daemon's echo")??;
    ensure!(back == b"published", "{back:?}");
    let mut from_daemon = dialled(daemon, peer).await?;
    from_daemon.write_all(b"pushed").await?;
    let mut back = [0; 6];
    timeout(NOTICE, from_daemon.read_exact(&mut back)).await.context("the peer's echo")??;
    ensure!(&back == b"pushed", "{back:?}");
    Ok(())
}

/// A stream to the peer's echo.
async fn dialled(daemon: &Daemon, peer: &PublishedPeer) -> Result<Stream> {
    let client = daemon.client().await?;
    let dial = client.dial_address(peer.address().port(7));
    Ok(timeout(NOTICE, dial).await.context("the daemon's dial")??)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_asks_by_polling_and_is_told_by_polling() -> Result<()> {
    let (daemon, peer, _network) = strangers().await?;
    let client = daemon.client().await?;
    peer.handshake(daemon.node().await?, "by registry").await?;
    eventually("the request to be pushed", async || {
        let pending = client.pending().await.ok()?;
        pending.iter().any(|p| p.justification == "by registry").then_some(())
    })
    .await?;
    client.approve(peer.node()).await?;
    both_trust(&daemon, &peer).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_asks_and_what_the_peer_revokes_is_pushed() -> Result<()> {
    let (daemon, peer, network) = strangers().await?;
    let (client, node) = (daemon.client().await?, daemon.node().await?);
    client.handshake_request(peer.node(), "by registry").await?;
    eventually("the request to be polled", async || {
        peer.pending().contains_key(&node).then_some(())
    })
    .await?;
    peer.approve(node).await?;
    both_trust(&daemon, &peer).await?;

    // It polls still, and the daemon is in a network of which it knows nothing.
    create(&network, "lab", &["--rule", "open"])?;
    daemon.pilotctl(&["network", "join", "lab", "--wait"])?;
    both_trust(&daemon, &peer).await?;

    let mut stream = dialled(&daemon, &peer).await?;
    peer.revoke(node).await?;
    breaks_off(&mut stream).await?;
    eventually("the trust to be forgotten", async || {
        client.trusted().await.ok()?.is_empty().then_some(())
    })
    .await
}
