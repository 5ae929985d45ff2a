//! Endpoints that do not answer: everything goes through the beacon.

use std::net::UdpSocket;

use anyhow::{Result, ensure};

use super::{PORT, World, exchange, within};

/// Bound and never read, so that what is sent there vanishes.
fn nowhere() -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?.to_string();
    Ok((socket, address))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_behind_a_dead_endpoint_is_reached_through_the_beacon() -> Result<()> {
    let (_dead, address) = nowhere()?;
    let advertise = address.parse()?;
    let world = World::start_with(&[], |c| c.switches.advertise = Some(advertise)).await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let near = world.daemon_dials(PORT).await?;
    let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    exchange(near, &far, 256 * 1024).await?;
    world.daemon_echo(b"again").await?;
    world.peer_echo(b"and back").await?;
    let counters = world.sound()?;
    ensure!(counters.relayed_received > 0, "{counters:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_behind_a_dead_endpoint_is_reached_through_the_beacon() -> Result<()> {
    let (_dead, address) = nowhere()?;
    let world = World::strangers(&[("endpoint", &address)], |_| {}).await?;
    // Three SYNs to nowhere, the fourth through the beacon.
    let stream = world.peer_dials(444).await?;
    stream.close().await;
    let counters = world.sound()?;
    ensure!(counters.relay_marks == 1 && counters.relayed_sent > 0, "{counters:?}");
    world.befriend().await?;
    world.peer_echo(b"relayed for ever").await?;
    world.daemon_echo(b"and back").await?;
    world.sound()?;
    Ok(())
}
