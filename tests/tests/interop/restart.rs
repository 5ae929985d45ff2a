//! Either side loses its state, and the other gets through to it again.

use anyhow::{Result, ensure};
use pilot_tests::peer::PublishedPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PORT, World, within};

impl World {
    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.start_again()?;
        ensure!(self.daemon.joined().await? == self.node, "the same node after the restart");
        self.client = self.daemon.client().await?;
        Ok(())
    }

    async fn restart_peer(self) -> Result<Self> {
        let Self { network, daemon, client, peer, node } = self;
        let known = peer.node();
        let peer = PublishedPeer::start_with(peer.kill().await).await?;
        ensure!(peer.node() == known, "the same node after the restart");
        Ok(Self { network, daemon, client, peer, node })
    }
}

/// A UDP port that is free now and stays the daemon's.
fn fixed_port() -> Result<String> {
    Ok(std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_daemon_dials_and_is_dialled() -> Result<()> {
    let listen = fixed_port()?;
    let mut world = World::start_with(&[("listen", &listen)], |_| {}).await?;
    world.peer_echo(b"before").await?;
    world.restart_daemon().await?;
    world.daemon_echo(b"the daemon speaks first").await?;
    world.peer_echo(b"then the peer").await?;
    // Now the peer, whose key the daemon does not hold, speaks first. A
    // published daemon would stay deaf.
    world.restart_daemon().await?;
    world.peer_echo(b"the peer speaks first").await?;
    world.daemon_echo(b"then the daemon").await?;
    let counters = world.sound()?;
    ensure!(counters.relay_marks == 0, "{counters:?}");
    Ok(())
}

/// The peer sends to the old port, then through the beacon, and takes no key
/// from there, since first contact was direct.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_comes_back_on_another_port_is_reached() -> Result<()> {
    let mut world = World::start().await?;
    world.peer_echo(b"before").await?;
    let before = world.daemon.udp()?;
    world.restart_daemon().await?;
    ensure!(world.daemon.udp()? != before, "the port did not change");
    world.peer_echo(b"the peer speaks first").await?;
    world.daemon_echo(b"then the daemon").await?;
    let counters = world.sound()?;
    ensure!(counters.relay_marks == 1, "{counters:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_published_peer_dials_and_is_dialled() -> Result<()> {
    let world = World::start().await?;
    world.daemon_echo(b"before").await?;
    // The daemon sends under a key that the peer has lost, and hears nothing.
    let world = world.restart_peer().await?;
    world.daemon_echo(b"the daemon speaks first").await?;
    world.peer_echo(b"then the peer").await?;
    let world = world.restart_peer().await?;
    world.peer_echo(b"the peer speaks first").await?;
    world.daemon_echo(b"then the daemon").await?;
    world.sound()?;
    Ok(())
}

/// With initial number 0 and port 49152 after every start, the new dial has
/// the identity of the old stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_with_the_identity_of_a_stale_stream_opens_a_new_one() -> Result<()> {
    let world = World::start().await?;
    let world = world.restart_peer().await?;
    let old = world.peer_dials(7).await?;
    old.write(&[1; 100_000]).await?;
    within("the echo", old.read_exact(100_000)).await??;
    let port = old.local_port();
    let world = world.restart_peer().await?;
    let new = world.peer_dials(7).await?;
    ensure!(new.local_port() == port, "{} instead of {port}", new.local_port());
    new.write(b"fresh").await?;
    ensure!(within("the echo", new.read_exact(5)).await?? == b"fresh");
    world.sound()?;
    Ok(())
}

/// The peer drops endpoint and key of the daemon, as published revocation
/// does, while a stream is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_survives_that_the_peer_forgets_the_tunnel() -> Result<()> {
    let world = World::start().await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let mut near = world.daemon_dials(PORT).await?;
    let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    near.write_all(b"before").await?;
    within("data before", far.read_exact(6)).await??;
    let accepted_keys = world.peer.counters().auth_keys_accepted;
    world.peer.forget(world.node).await?;
    near.write_all(b"after").await?;
    ensure!(within("data after", far.read_exact(5)).await?? == b"after");
    far.write(b"and back").await?;
    let mut back = [0; 8];
    within("the answer", near.read_exact(&mut back)).await??;
    ensure!(&back == b"and back");
    let counters = world.sound()?;
    ensure!(counters.keyless > 0 && counters.auth_keys_accepted > accepted_keys, "{counters:?}");
    Ok(())
}

/// A published daemon that ends says FIN on every stream and deregisters; ours
/// delivers what was written, and tells the peer one way or the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_of_either_side_ends_the_streams_of_the_other() -> Result<()> {
    let mut world = World::start().await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let mut near = world.daemon_dials(PORT).await?;
    let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    near.write_all(b"last words").await?;
    near.flush().await?;
    world.daemon.stop()?;
    let words = within("the last words", far.read_exact(10)).await??;
    ensure!(words == b"last words", "{words:?}");
    // FIN or RST: the peer does not wait for ever.
    let end = within("the end at the peer", far.read()).await?;
    ensure!(!matches!(end, Ok(Some(_))), "{end:?}");
    drop(near);
    world.restart_daemon().await?;
    let mut near = world.daemon_dials(PORT).await?;
    within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    world.sound()?;
    world.peer.stop().await?;
    let mut rest = Vec::new();
    within("the end at the daemon", near.read_to_end(&mut rest)).await??;
    ensure!(rest.is_empty());
    Ok(())
}
