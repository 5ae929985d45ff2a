//! `registry.push`: from the moment trust is revoked at the registry until the
//! other daemon has closed its stream, while a thousand simulated nodes have
//! sessions as well. One run of a hundred revocations and more: each needs trust
//! to be established anew.
//!
//! The revocation is signed with the key of one daemon and sent to the registry
//! past that daemon, which therefore cannot tell its peer by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use pilot_sdk::Stream;
use pilot_wire::NodeId;
use pilot_wire::registry::{FrameBuffer, Request, Signature, TrustRevoked, challenge, parse_reply};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::Report;
use super::rows::Plan;
use crate::harness::{self, Daemon, Network, Process, command, establish_trust, eventually};

/// The row.
pub(super) const ROWS: [&str; 1] = ["registry.push"];
/// Simulated nodes with sessions.
const WATCHERS: u64 = 1000;
/// Revocations.
const ROUNDS: u64 = 120;
const PORT: u16 = 5000;
/// A stream that stays open longer was forgotten.
const NOTICE: Duration = Duration::from_secs(20);

/// Runs the row.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    eprintln!("registry.push: {WATCHERS} simulated sessions, {ROUNDS} revocations");
    let network = Network::start()?;
    let (a, b) = network.pair_with(&harness::LIFTED).await?;
    let _fleet = watchers(&network, plan.size(WATCHERS))?;
    let listener = b.client().await?.listen(PORT).await?;
    let revoker = Revoker::new(&network, &a, &b).await?;
    let client = a.client().await?;
    let target = format!("{}:{PORT}", b.address().await?);
    let mut times = Vec::new();
    for round in 0..plan.size(ROUNDS) {
        if round > 0 {
            establish_trust(&a, &b).await?;
        }
        let mut dialled = eventually("a stream between the two", async || {
            timeout(NOTICE, client.dial(&target)).await.ok()?.ok()
        })
        .await?;
        let (accepted, _) =
            timeout(NOTICE, listener.accept()).await.context("no stream came")??;
        let since = Instant::now();
        let closed = async { timeout(NOTICE, ended(&mut dialled)).await.map(|()| since.elapsed()) };
        let (revoked, closed) = tokio::join!(revoker.revoke(), closed);
        revoked?;
        times.push(closed.context("the stream was not closed")?);
        drop(accepted);
    }
    times.sort_unstable();
    let at =
        |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    eprintln!("  half of them within {:.1} ms", at(50));
    report.add("registry.push", "ms", at(99));
    Ok(())
}

/// A fleet whose sessions stay open until it is dropped.
fn watchers(network: &Network, count: u64) -> Result<Process> {
    let mut fleet = command("pilotctl")?;
    let count = count.to_string();
    fleet
        .env("PILOT_HOME", network.folder())
        .env("PILOT_REGISTRY", network.registry_addr())
        .args(["--json", "fleet", "--nodes", &count, "--watchers", &count, "--hold", "--keep"]);
    Process::start("fleet", fleet, &network.folder().join("fleet.log"))
}

/// Waits until a stream is over, however it ends.
async fn ended(stream: &mut Stream) {
    let mut buffer = [0; 64];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}

/// Says at the registry that one daemon no longer trusts the other.
struct Revoker {
    registry: String,
    frame: Vec<u8>,
}

impl Revoker {
    /// In the name of `b`.
    async fn new(network: &Network, a: &Daemon, b: &Daemon) -> Result<Self> {
        let (node_id, peer_id) = (b.node().await?, a.node().await?);
        let signature = sign(b, node_id, peer_id)?;
        let mut frame = Vec::new();
        Request::RevokeTrust { node_id, peer_id, signature }.append_to(&mut frame)?;
        Ok(Self { registry: network.registry_addr().to_owned(), frame })
    }

    /// Returns when the registry has done it.
    async fn revoke(&self) -> Result<()> {
        let mut stream = TcpStream::connect(&self.registry).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&self.frame).await?;
        let mut frames = FrameBuffer::new();
        loop {
            if let Some(body) = frames.next_body()? {
                parse_reply::<TrustRevoked>(body)?;
                return Ok(());
            }
            let n = stream.read_buf(frames.space(4096)).await?;
            ensure!(n > 0, "the registry closed the connection");
        }
    }
}

/// With the key of a daemon's identity file (protocol page "Services", section
/// 1, "Storage").
fn sign(daemon: &Daemon, node: NodeId, peer: NodeId) -> Result<Signature> {
    let file = std::fs::read(daemon.home.join("identity.key"))?;
    let identity: Value = serde_json::from_slice(&file)?;
    let private = STANDARD.decode(identity["private_key"].as_str().context("no private key")?)?;
    let private: &[u8; 64] = private.as_slice().try_into().context("not 64 bytes")?;
    let key = SigningKey::from_keypair_bytes(private)?;
    Ok(Signature(key.sign(challenge::revoke_trust(node, peer).as_bytes()).to_bytes()))
}
