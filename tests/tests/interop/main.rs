//! The real programs with a peer and a driver that speak only the published
//! protocol, in both directions.

mod driver;
mod rekey;
mod relay;
mod restart;
mod security;
mod streams;
mod trust;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::{Client, Stream};
use pilot_tests::harness::{Daemon, Network, Pattern, eventually};
use pilot_tests::peer::{self, Config, Counters, PublishedPeer};
use pilot_wire::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long anything may take that does not wait for a timer of the protocol.
const LIMIT: Duration = Duration::from_secs(45);
/// Streams and datagrams of the tests go here.
const PORT: u16 = 5000;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(LIMIT, future).await.with_context(|| format!("waited too long: {what}"))
}

/// A daemon and a published peer that trust each other.
struct World {
    network: Network,
    daemon: Daemon,
    client: Client,
    peer: PublishedPeer,
    /// The daemon's node.
    node: NodeId,
}

/// A published peer on this network: public, and quick to poll the registry.
fn peer_config(network: &Network) -> Result<Config> {
    let mut config = Config::new(network.registry_addr(), Some(network.beacon_addr().parse()?));
    config.switches.public = true;
    config.switches.heartbeat = Duration::from_millis(500);
    Ok(config)
}

impl World {
    async fn start() -> Result<Self> {
        Self::start_with(&[], |_| {}).await
    }

    async fn start_with(
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let world = Self::strangers(settings, change).await?;
        world.befriend().await?;
        Ok(world)
    }

    async fn strangers(
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let network = Network::start()?;
        let mut options = network.options("agent-a").set("public", "true");
        for (key, value) in settings {
            options = options.set(key, value);
        }
        let daemon = network.daemon_with(options).await?;
        let mut config = peer_config(&network)?;
        change(&mut config);
        let peer = PublishedPeer::start_with(config).await?;
        let client = daemon.client().await?;
        let node = daemon.node().await?;
        Ok(Self { network, daemon, client, peer, node })
    }

    /// The daemon asks, the peer approves.
    async fn befriend(&self) -> Result<()> {
        let peer = self.peer.node();
        self.client.handshake_request(peer, "interop").await?;
        eventually("the request to reach the published peer", async || {
            self.peer.pending().contains_key(&self.node).then_some(())
        })
        .await
        .with_context(|| self.diagnosis())?;
        self.peer.approve(self.node).await?;
        self.daemon_trusts(peer).await
    }

    async fn daemon_trusts(&self, peer: NodeId) -> Result<()> {
        eventually("the daemon to trust the published peer", async || {
            let trusted = self.client.trusted().await.ok()?;
            trusted.iter().any(|t| t.node_id == peer).then_some(())
        })
        .await
        .with_context(|| self.diagnosis())
    }

    /// A stream to a port of the peer, dialled by the daemon.
    async fn daemon_dials(&self, port: u16) -> Result<Stream> {
        let to = self.peer.address().port(port);
        within("the daemon's dial", self.client.dial_address(to))
            .await?
            .with_context(|| self.diagnosis())
    }

    /// A stream to a port of the daemon, dialled by the peer.
    async fn peer_dials(&self, port: u16) -> Result<peer::Stream> {
        within("the published peer's dial", self.peer.dial(self.node, port))
            .await?
            .with_context(|| self.diagnosis())
    }

    /// A few bytes through the daemon's echo service and back.
    async fn peer_echo(&self, text: &[u8]) -> Result<()> {
        let stream = self.peer_dials(7).await?;
        stream.write(text).await?;
        let back = within("the daemon's echo", stream.read_exact(text.len())).await??;
        ensure!(back == text, "the echo differs");
        stream.close().await;
        Ok(())
    }

    /// A few bytes through the peer's echo service and back.
    async fn daemon_echo(&self, text: &[u8]) -> Result<()> {
        let mut stream = self.daemon_dials(7).await?;
        stream.write_all(text).await?;
        stream.flush().await?;
        let mut back = vec![0; text.len()];
        within("the peer's echo", stream.read_exact(&mut back))
            .await?
            .with_context(|| self.diagnosis())?;
        ensure!(back == text, "the echo differs");
        Ok(())
    }

    /// What must hold in every test: nothing went out in the clear, every
    /// opened packet was sound, and no window was overrun.
    fn sound(&self) -> Result<Counters> {
        let counters = self.peer.counters();
        ensure!(counters.plain_received == 0, "the daemon sent in the clear: {counters:?}");
        ensure!(counters.keys_received == 0, "the daemon sent an unsigned key: {counters:?}");
        ensure!(counters.bad_packets == 0, "the daemon sent unsound packets: {counters:?}");
        ensure!(counters.queue_overruns == 0, "the daemon overran the window: {counters:?}");
        ensure!(counters.gave_up == 0, "the daemon stopped acknowledging: {counters:?}");
        Ok(counters)
    }

    fn diagnosis(&self) -> String {
        format!(
            "{:?}\nthe daemon's log ends:\n{}",
            self.peer.counters(),
            self.daemon.process.log_tail()
        )
    }
}

/// Different data each way at the same time, compared to the byte.
async fn exchange(mut near: Stream, far: &peer::Stream, len: usize) -> Result<Stream> {
    let (out, back) = (Pattern::new(1).bytes(len), Pattern::new(2).bytes(len));
    {
        let (mut read, mut write) = tokio::io::split(&mut near);
        let outbound = async {
            write.write_all(&out).await?;
            write.flush().await?;
            anyhow::Ok(())
        };
        let inbound = async {
            let mut received = vec![0; len];
            read.read_exact(&mut received).await?;
            anyhow::Ok(received)
        };
        let (a, b, c, d) = within("the exchange", async {
            tokio::join!(outbound, far.read_exact(len), far.write(&back), inbound)
        })
        .await?;
        a.context("the daemon's write")?;
        c.context("the peer's write")?;
        ensure!(b.context("at the peer")? == out, "what the peer received differs");
        ensure!(d.context("at the daemon")? == back, "what the daemon received differs");
    }
    Ok(near)
}

/// A refusal counter of the daemon.
async fn refused(client: &Client, rule: &str) -> Result<u64> {
    let info = client.info_json().await?;
    info["refused"][rule].as_u64().with_context(|| format!("no counter {rule} in {info}"))
}
