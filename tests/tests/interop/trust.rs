//! Trust with a published node: asked for by either side, directly or through
//! the registry, and ended by either side.

use anyhow::{Result, ensure};
use pilot_tests::harness::eventually;
use pilot_wire::service::handshake::Kind;

use super::World;

impl World {
    async fn daemon_has_pending(&self, justification: &str) -> Result<()> {
        let peer = self.peer.node();
        eventually("the request to reach the daemon", async || {
            let pending = self.client.pending().await.ok()?;
            let request = pending.iter().find(|p| p.node_id == peer)?;
            (request.justification == justification).then_some(())
        })
        .await
    }

    async fn peer_trusts(&self) -> Result<()> {
        eventually("the published peer to trust the daemon", async || {
            self.peer.trusted().contains_key(&self.node).then_some(())
        })
        .await
    }

    async fn both_reach(&self) -> Result<()> {
        self.peer_echo(b"from the peer").await?;
        self.daemon_echo(b"from the daemon").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_asks_and_the_peer_approves() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    world.befriend().await?;
    world.both_reach().await?;
    let messages = world.peer.handshake_messages();
    ensure!(messages.len() == 1 && messages[0].kind == Kind::Request, "{messages:?}");
    ensure!(!messages[0].public_key.is_empty() && !messages[0].signature.is_empty());
    ensure!(messages[0].justification == "interop");
    world.sound()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_asks_and_the_daemon_approves() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    world.peer.handshake(world.node, "let me in").await?;
    world.daemon_has_pending("let me in").await?;
    ensure!(world.peer.trusted().is_empty(), "nobody has approved yet");
    world.client.approve(world.peer.node()).await?;
    world.peer_trusts().await?;
    world.daemon_trusts(world.peer.node()).await?;
    world.both_reach().await?;
    world.sound()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ask_and_nobody_needs_to_approve() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    world.peer.handshake(world.node, "you").await?;
    world.daemon_has_pending("you").await?;
    world.client.handshake_request(world.peer.node(), "you too").await?;
    world.daemon_trusts(world.peer.node()).await?;
    world.peer_trusts().await?;
    world.both_reach().await?;
    world.sound()?;
    Ok(())
}

/// Both private: neither can resolve the other, all goes by the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_nodes_meet_through_the_registry() -> Result<()> {
    for peer_asks in [true, false] {
        let private = [("public", "false")];
        let world = World::strangers(&private, |c| c.switches.public = false).await?;
        if peer_asks {
            world.peer.handshake(world.node, "by registry").await?;
            world.daemon_has_pending("by registry").await?;
            world.client.approve(world.peer.node()).await?;
        } else {
            world.client.handshake_request(world.peer.node(), "by registry").await?;
            eventually("the request to reach the peer", async || {
                let pending = world.peer.pending();
                (pending.get(&world.node)?.justification == "by registry").then_some(())
            })
            .await?;
            world.peer.approve(world.node).await?;
        }
        world.peer_trusts().await?;
        world.daemon_trusts(world.peer.node()).await?;
        world.both_reach().await?;
        world.sound()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_reaches_the_one_who_asked() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    world.peer.handshake(world.node, "please").await?;
    world.daemon_has_pending("please").await?;
    world.client.reject(world.peer.node(), "not today").await?;
    eventually("the rejection to arrive", async || {
        let messages = world.peer.handshake_messages();
        messages.iter().any(|m| m.kind == Kind::Reject).then_some(())
    })
    .await?;
    ensure!(world.peer.trusted().is_empty() && world.client.trusted().await?.is_empty());
    Ok(())
}

/// An accept that nobody asked for. The published daemon would trust.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unasked_accept_makes_no_trust() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    world.peer.send_handshake(world.node, Kind::Accept, "").await?;
    // The messages are handled in order, so when this one is there, the other
    // one has been looked at.
    world.peer.handshake(world.node, "now properly").await?;
    world.daemon_has_pending("now properly").await?;
    ensure!(world.client.trusted().await?.is_empty(), "an unasked accept was believed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_ends_trust() -> Result<()> {
    for peer_revokes in [true, false] {
        let world = World::start().await?;
        world.both_reach().await?;
        let peer = world.peer.node();
        if peer_revokes {
            world.peer.revoke(world.node).await?;
            eventually("the daemon to end trust", async || {
                world.client.trusted().await.ok()?.is_empty().then_some(())
            })
            .await?;
        } else {
            world.client.revoke(peer).await?;
            eventually("the peer to end trust", async || {
                world.peer.trusted().is_empty().then_some(())
            })
            .await?;
        }
        let limit = std::time::Duration::from_secs(2);
        let dial = tokio::time::timeout(limit, world.peer.dial(world.node, 7)).await;
        ensure!(!matches!(dial, Ok(Ok(_))), "a stream was opened after trust had ended");
        // And again, from the start.
        world.befriend().await?;
        world.both_reach().await?;
        world.sound()?;
    }
    Ok(())
}
