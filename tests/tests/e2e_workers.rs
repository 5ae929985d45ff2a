//! A daemon with two workers among others: for its peers and its applications
//! it is one daemon.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::{Client, Stream};
use pilot_tests::harness::{
    Daemon, EchoApp, Network, Pattern, drain, drain_prefix, establish_trust, eventually, pour,
    round_trip,
};
use pilot_tests::peer::{Config, PublishedPeer};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long anything may take that does not wait for a timer of the protocol.
const NOTICE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// A daemon with two workers and two peers, one for each, that it trusts.
struct Star {
    hub: Daemon,
    peers: Vec<Daemon>,
    // Last: its folder must outlive what runs in it.
    _network: Network,
}

impl Star {
    async fn start() -> Result<Self> {
        let network = Network::start()?;
        // One after the other, so that their numbers follow each other and one
        // belongs to each worker.
        let peers = vec![network.daemon("peer-0").await?, network.daemon("peer-1").await?];
        let hub = network.daemon_with(network.options("hub").set("workers", "2")).await?;
        ensure!(
            peers[0].node().await?.0 % 2 != peers[1].node().await?.0 % 2,
            "one worker for both"
        );
        for peer in &peers {
            establish_trust(&hub, peer).await?;
        }
        Ok(Self { hub, peers, _network: network })
    }

    /// A stream from the hub to each peer's port, and one from each peer to
    /// the hub's.
    async fn both_ways(&self, client: &Client, port: u16) -> Result<Vec<Stream>> {
        let hub = self.hub.address().await?;
        let mut streams = Vec::new();
        for peer in &self.peers {
            streams.push(open(client, &format!("{}:{port}", peer.address().await?)).await?);
            streams.push(open(&peer.client().await?, &format!("{hub}:{port}")).await?);
        }
        Ok(streams)
    }
}

async fn open(client: &Client, to: &str) -> Result<Stream> {
    let mut last = String::new();
    let dialled = eventually("a stream to open", async || match client.dial(to).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            last = e.to_string();
            None
        }
    });
    dialled.await.with_context(|| format!("dialling {to}, last {last:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_both_workers_are_reached_and_reach_applications() -> Result<()> {
    let star = Star::start().await?;
    let client = star.hub.client().await?;
    let _echo = EchoApp::start(&client, 5000).await?;
    let mut echoes = Vec::new();
    for peer in &star.peers {
        echoes.push(EchoApp::start(&peer.client().await?, 5000).await?);
    }
    for port in [7, 5000] {
        let streams = star.both_ways(&client, port).await?;
        let rounds = streams
            .into_iter()
            .enumerate()
            .map(|(seed, stream)| tokio::spawn(round_trip(stream, seed as u64, 4 * MIB)));
        for round in rounds.collect::<Vec<_>>() {
            timeout(NOTICE, round).await.context("a round trip hangs")???;
        }
    }
    let mut datagrams = client.datagrams();
    for peer in &star.peers {
        let from = peer.node().await?;
        let to = format!("{}:6000", star.hub.address().await?);
        peer.client().await?.send_datagram(&to, b"here").await?;
        let datagram = timeout(NOTICE, datagrams.recv()).await.context("no datagram")??;
        ensure!(datagram.source.address.node == from && &datagram.data[..] == b"here");
    }
    let info = star.hub.info().await?;
    let each = info["workers"].as_array().context("no workers in info")?;
    ensure!(each.len() == 2 && each.iter().all(|w| w["peers"] == 1), "{info}");
    for peer in info["peer_list"].as_array().context("no peers")? {
        let number = peer["node_id"].as_u64().context("no number")?;
        ensure!(peer["worker"].as_u64() == Some(number % 2), "{peer}");
        ensure!(peer["encrypted"] == true && peer["relay"] == false, "{peer}");
    }
    ensure!(info["udp"]["strayed"] == 0, "the kernel does not sort: {info}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_ends_for_one_peer_and_not_for_the_other_workers() -> Result<()> {
    let star = Star::start().await?;
    let client = star.hub.client().await?;
    let listener = client.listen(5000).await?;
    let address = star.hub.address().await?;
    let mut streams = Vec::new();
    for peer in &star.peers {
        let dialled = open(&peer.client().await?, &format!("{address}:5000")).await?;
        let (accepted, _) = timeout(NOTICE, listener.accept()).await.context("no stream")??;
        streams.push((dialled, accepted));
    }
    client.revoke(star.peers[0].node().await?).await?;
    let (mut dialled, mut accepted) = streams.remove(0);
    for stream in [&mut dialled, &mut accepted] {
        let (_, _, end) =
            timeout(NOTICE, drain_prefix(stream, 1)).await.context("a revoked stream")?;
        ensure!(end.is_err(), "a revoked stream looks like an orderly end");
    }
    let (mut dialled, mut accepted) = streams.remove(0);
    let sent = pour(&mut dialled, 3, MIB).await?;
    dialled.shutdown().await?;
    let (len, got) = timeout(NOTICE, drain(&mut accepted)).await.context("the other stream")??;
    ensure!(len == MIB && got == sent, "the other peer's stream was disturbed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_with_workers_comes_back_and_so_do_its_peers() -> Result<()> {
    let mut star = Star::start().await?;
    star.hub.stop()?;
    ensure!(!star.hub.socket.exists(), "the socket file is left behind");
    star.hub.start_again()?;
    star.hub.joined().await?;
    for stream in star.both_ways(&star.hub.client().await?, 7).await? {
        timeout(NOTICE, round_trip(stream, 1, MIB)).await.context("after the restart")??;
    }
    star.hub.process.kill();
    star.hub.start_again()?;
    star.hub.joined().await?;
    for peer in &mut star.peers {
        peer.stop()?;
        peer.start_again()?;
        peer.joined().await?;
    }
    for stream in star.both_ways(&star.hub.client().await?, 7).await? {
        timeout(NOTICE, round_trip(stream, 2, MIB)).await.context("after a kill")??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_to_any_worker_arrives_although_the_daemon_ends() -> Result<()> {
    let mut star = Star::start().await?;
    let client = star.hub.client().await?;
    let mut expected = Vec::new();
    for (seed, peer) in star.peers.iter().enumerate() {
        let listener = peer.client().await?.listen(5000).await?;
        let to = format!("{}:5000", peer.address().await?);
        let mut stream = open(&client, &to).await?;
        let (accepted, _) = timeout(NOTICE, listener.accept()).await.context("no stream")??;
        let sent = pour(&mut stream, seed as u64, 3 * MIB).await?;
        expected.push((stream, accepted, sent));
    }
    star.hub.process.signal(Signal::TERM);
    for (_stream, mut accepted, sent) in expected {
        let (len, got) = timeout(NOTICE, drain(&mut accepted)).await.context("hangs")??;
        ensure!(len == 3 * MIB && got == sent, "{len} bytes arrived, or others");
    }
    let status = star.hub.process.wait(NOTICE)?;
    ensure!(status.success(), "ended with {status}: {}", star.hub.process.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_peers_of_both_workers_work() -> Result<()> {
    let network = Network::start()?;
    let options = network.options("hub").set("workers", "2").set("public", "true");
    let hub = network.daemon_with(options.set("trust-auto-approve", "true")).await?;
    let (client, node) = (hub.client().await?, hub.node().await?);
    let mut seen = [false; 2];
    for _ in 0..2 {
        let mut config = Config::new(network.registry_addr(), Some(network.beacon_addr().parse()?));
        config.switches.public = true;
        config.switches.heartbeat = Duration::from_millis(500);
        let peer = PublishedPeer::start_with(config).await?;
        seen[(peer.node().0 % 2) as usize] = true;
        client.handshake_request(peer.node(), "interop").await?;
        eventually("the request to arrive", async || {
            peer.pending().contains_key(&node).then_some(())
        })
        .await?;
        peer.approve(node).await?;
        eventually("the daemon to trust the peer", async || {
            let trusted = client.trusted().await.ok()?;
            trusted.iter().any(|t| t.node_id == peer.node()).then_some(())
        })
        .await?;
        // Without half-close, which a published peer does not know.
        let mut stream = client.dial_address(peer.address().port(7)).await?;
        let sent = Pattern::new(5).bytes(20_000);
        stream.write_all(&sent).await?;
        stream.flush().await?;
        let mut back = vec![0; sent.len()];
        timeout(NOTICE, stream.read_exact(&mut back)).await.context("to the peer")??;
        ensure!(back == sent, "the peer's echo differs");
        let stream = timeout(NOTICE, peer.dial(node, 7)).await.context("from the peer")??;
        stream.write(b"hello").await?;
        let back = timeout(NOTICE, stream.read_exact(5)).await.context("the echo")??;
        ensure!(back == b"hello", "the echo differs");
    }
    ensure!(seen == [true; 2], "both peers belong to one worker");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_with_workers_do_not_share_a_port() -> Result<()> {
    let network = Network::start()?;
    let first = network.daemon_with(network.options("first").set("workers", "2")).await?;
    let listen = first.udp()?.to_string();
    let options = network.options("second").set("workers", "2").set("listen", &listen);
    let error = match network.daemon_with(options).await {
        Ok(_) => anyhow::bail!("a second daemon took {listen}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains(&listen) && error.contains("listen"), "not named: {error}");
    Ok(())
}
