//! What a published daemon would let through, and ours does not.

use std::time::Duration;

use anyhow::{Result, ensure};
use pilot_tests::harness::eventually;
use pilot_tests::peer::PublishedPeer;
use pilot_wire::packet::{Flags, Header, Protocol};
use pilot_wire::{Address, NodeId};

use super::{World, peer_config, refused, within};

/// Long enough for a SYN and a few repetitions.
const NO_ANSWER: Duration = Duration::from_secs(3);

/// RST, FIN, data and SYN in the clear, for the identity of an open stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_in_the_clear_are_counted_and_change_nothing() -> Result<()> {
    let world = World::start().await?;
    let stream = world.peer_dials(7).await?;
    stream.write(b"before").await?;
    within("the echo", stream.read_exact(6)).await??;
    let before = refused(&world.client, "unauthenticated").await?;
    let streams = world.client.info_json().await?["connections"].clone();
    let header = |flags, seq, port| Header {
        flags,
        protocol: Protocol::Stream,
        source: world.peer.address().port(port),
        destination: Address::backbone(world.node).port(7),
        seq,
        ack: 1,
        window: 512,
    };
    let port = stream.local_port();
    for (flags, seq, port) in [
        (Flags::RST, 0, port),
        (Flags::FIN, 7, port),
        (Flags::ACK, 7, port),
        (Flags::SYN, 0, 40_000),
    ] {
        world.peer.inject(header(flags, seq, port), b"clear", true).await?;
    }
    eventually("the refusals to be counted", async || {
        (refused(&world.client, "unauthenticated").await.ok()? >= before + 4).then_some(())
    })
    .await?;
    stream.write(b"after").await?;
    ensure!(within("the echo", stream.read_exact(5)).await?? == b"after");
    ensure!(world.client.info_json().await?["connections"] == streams, "a SYN was accepted");
    world.sound()?;
    Ok(())
}

/// An authenticated peer speaks for another node, or to another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inner_addresses_are_those_of_the_tunnel() -> Result<()> {
    let world = World::start().await?;
    world.peer_echo(b"before").await?;
    let before = refused(&world.client, "address_mismatch").await?;
    let own = world.peer.address();
    let ours = Address::backbone(world.node);
    let other = Address::backbone(NodeId(999));
    for (source, destination) in [(other, ours), (own, other)] {
        let header = Header {
            flags: Flags::SYN,
            protocol: Protocol::Stream,
            source: source.port(40_000),
            destination: destination.port(7),
            seq: 0,
            ack: 0,
            window: 512,
        };
        // To another destination the peer would send elsewhere.
        if destination == ours {
            world.peer.inject(header, b"", false).await?;
        } else {
            world.peer.inject_to(world.node, header, b"").await?;
        }
    }
    eventually("the refusals to be counted", async || {
        (refused(&world.client, "address_mismatch").await.ok()? >= before + 2).then_some(())
    })
    .await?;
    world.peer_echo(b"after").await?;
    world.sound()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_stranger_reaches_the_trust_port_only() -> Result<()> {
    let world = World::strangers(&[], |_| {}).await?;
    for port in [7, 1001, 4321] {
        let dial = tokio::time::timeout(NO_ANSWER, world.peer.dial(world.node, port)).await;
        match dial {
            Ok(Ok(_)) => anyhow::bail!("a stranger opened a stream to port {port}"),
            // Not even a refusal: nothing tells that anybody is there.
            Ok(Err(error)) => anyhow::bail!("a stranger was answered: {error}"),
            Err(_) => {}
        }
    }
    ensure!(refused(&world.client, "untrusted").await? >= 3);
    let stream = world.peer_dials(444).await?;
    stream.close().await;
    let counters = world.sound()?;
    ensure!(counters.resets_received == 0, "{counters:?}");
    Ok(())
}

/// A second peer announces the first one's node number with its own key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_exchange_for_another_node_is_refused() -> Result<()> {
    let world = World::start().await?;
    world.peer_echo(b"before").await?;
    let before = refused(&world.client, "bad_identity").await?;
    let thief = PublishedPeer::start_with(peer_config(&world.network)?).await?;
    let frame = thief.forged_key_exchange(world.peer.node());
    thief.send_frame(world.daemon.udp()?, &frame).await?;
    eventually("the refusal to be counted", async || {
        (refused(&world.client, "bad_identity").await.ok()? > before).then_some(())
    })
    .await?;
    world.peer_echo(b"after").await?;
    world.daemon_echo(b"and back").await?;
    world.sound()?;
    Ok(())
}
