//! Networks, news of the registry and its audit log, with real daemons, a real
//! registry and `pilotctl`.

mod audit;
mod auto_join;
mod broadcast;
mod endpoints;
mod expiry;
mod invitations;
mod outage;
mod published;
mod raw;
mod revocation;
mod tls;
mod token_network;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::{Client, Stream};
use pilot_tests::harness::{
    Daemon, Network, RegistryOptions, drain_prefix, eventually, round_trip,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long anything may take that works.
const NOTICE: Duration = Duration::from_secs(30);
/// Long enough for a SYN and a few repetitions.
const NO_ANSWER: Duration = Duration::from_secs(3);
/// Where listeners of the tests are.
const PORT: u16 = 5000;

/// A registry with an administrator, and a beacon.
fn with_admin() -> Result<Network> {
    Network::start_with(RegistryOptions::new().with_admin())
}

/// Has the administrator make a network, and gives its number.
fn create(network: &Network, name: &str, more: &[&str]) -> Result<u64> {
    let args = [&["network", "create", name], more].concat();
    let made = network.pilotctl(&args)?;
    made["network"]["id"].as_u64().with_context(|| format!("no number in {made}"))
}

/// The secret of a new token.
fn token(network: &Network, name: &str, more: &[&str]) -> Result<String> {
    let args = [&["network", "token", "create", name], more].concat();
    let made = network.pilotctl(&args)?;
    Ok(made["secret"].as_str().with_context(|| format!("no secret in {made}"))?.to_owned())
}

/// Joins with a token, as its user does, and gives the membership.
fn join(daemon: &Daemon, name: &str, token: &str) -> Result<Value> {
    let file = daemon.home.join("token");
    std::fs::write(&file, token)?;
    let file = file.to_str().context("path")?;
    let mut joined = daemon.pilotctl(&["network", "join", name, "--token-file", file, "--wait"])?;
    Ok(joined["membership"].take())
}

/// How a network stands in `pilotctl info`.
fn standing(daemon: &Daemon, name: &str) -> Result<Value> {
    let info = daemon.pilotctl(&["info"])?;
    let list = info["networks"].as_array().context("info has no networks")?;
    Ok(list.iter().find(|n| n["name"] == name).cloned().unwrap_or_default())
}

/// Waits until a network stands as `wanted` says.
async fn until_standing(
    daemon: &Daemon,
    name: &str,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let client = daemon.client().await?;
    let mut last = Value::Null;
    let waited = eventually(what, async || {
        let info = client.info_json().await.ok()?;
        last = info["networks"].as_array()?.iter().find(|n| n["name"] == name)?.clone();
        wanted(&last).then(|| last.clone())
    });
    let waited = waited.await;
    waited.with_context(|| {
        format!("{} in {name}, last {last}:\n{}", daemon.name, daemon.process.log_tail())
    })
}

/// The same for the state alone.
async fn until_state(daemon: &Daemon, name: &str, state: &str) -> Result<Value> {
    until_standing(daemon, name, state, |n| n["state"] == state).await
}

/// Waits until what the daemon says of its registry is as `wanted` says.
async fn until_registry(
    daemon: &Daemon,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let client = daemon.client().await?;
    let mut last = Value::Null;
    let waited = eventually(what, async || {
        last = client.info_json().await.ok()?["registry"].take();
        wanted(&last).then(|| last.clone())
    });
    let waited = waited.await;
    waited.with_context(|| format!("{}, last {last}:\n{}", daemon.name, daemon.process.log_tail()))
}

/// Waits for a session with the registry.
async fn until_session(daemon: &Daemon) -> Result<()> {
    let open = |r: &Value| r["state"] == "up" && r["session"] == "open" && r["registered"] == true;
    until_registry(daemon, "a session with the registry", open).await.map(drop)
}

/// Dials until it works and moves a little data both ways.
async fn works(from: &Daemon, to: &str, seed: u64) -> Result<()> {
    let client = from.client().await?;
    let mut last = String::new();
    let dialled = eventually("a stream to open", async || match client.dial(to).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            last = e.to_string();
            None
        }
    });
    let stream = dialled.await.with_context(|| {
        format!("round {seed}, last {last:?}; {} says:\n{}", from.name, from.process.log_tail())
    })?;
    timeout(NOTICE, round_trip(stream, seed, 100_000)).await.context("a round trip hangs")?
}

/// The echo service of a daemon.
async fn echo_of(daemon: &Daemon) -> Result<String> {
    Ok(format!("{}:7", daemon.address().await?))
}

async fn cannot_open(client: &Client, target: &str) -> Result<()> {
    match timeout(NO_ANSWER, client.dial(target)).await {
        Ok(Ok(_)) => anyhow::bail!("a stream to {target} was opened"),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// A stream that is open at both ends and idle.
struct Held {
    /// At the daemon that dialled.
    dialled: Stream,
    /// At the other.
    accepted: Stream,
    /// While these live so do the streams.
    _clients: (Client, Client),
}

impl Held {
    /// Opens it, to [`PORT`] at `address`, an address of `to`.
    async fn open_at(from: &Daemon, to: &Daemon, address: &str) -> Result<Self> {
        let (client, server) = (from.client().await?, to.client().await?);
        let listener = server.listen(PORT).await?;
        let target = format!("{address}:{PORT}");
        let mut last = String::new();
        let dialled = eventually("a stream to open", async || match client.dial(&target).await {
            Ok(stream) => Some(stream),
            Err(e) => {
                last = e.to_string();
                None
            }
        });
        let dialled = dialled.await.with_context(|| {
            format!("{target}, last {last:?}; {}:\n{}", from.name, from.process.log_tail())
        })?;
        let (accepted, _) =
            timeout(NOTICE, listener.accept()).await.context("no stream came")??;
        let mut held = Self { dialled, accepted, _clients: (client, server) };
        held.lives().await?;
        Ok(held)
    }

    async fn open(from: &Daemon, to: &Daemon) -> Result<Self> {
        Self::open_at(from, to, &to.address().await?).await
    }

    /// A few bytes in both directions.
    async fn lives(&mut self) -> Result<()> {
        passes(&mut self.dialled, &mut self.accepted).await?;
        passes(&mut self.accepted, &mut self.dialled).await
    }

    /// Waits until the one that dialled finds it broken off.
    async fn ends_where_dialled(&mut self) -> Result<()> {
        breaks_off(&mut self.dialled).await.context("where it was dialled")
    }

    /// Waits until the other one finds it broken off.
    async fn ends_where_accepted(&mut self) -> Result<()> {
        breaks_off(&mut self.accepted).await.context("where it was accepted")
    }

    async fn ends(&mut self) -> Result<()> {
        self.ends_where_dialled().await?;
        self.ends_where_accepted().await
    }
}

/// A few bytes.
async fn passes(from: &mut Stream, to: &mut Stream) -> Result<()> {
    let mut there = [0; 5];
    let passed = async {
        from.write_all(b"still").await?;
        to.read_exact(&mut there).await
    };
    timeout(NOTICE, passed).await.context("the held stream hangs")??;
    ensure!(&there == b"still", "{there:?}");
    Ok(())
}

async fn breaks_off(stream: &mut Stream) -> Result<()> {
    let (_, _, end) =
        timeout(NOTICE, drain_prefix(stream, 1)).await.context("the stream stays open")?;
    ensure!(end.is_err(), "what was broken off looks like an orderly end");
    Ok(())
}

/// Sends a datagram until it arrives.
async fn datagram_arrives(from: &Daemon, to: &Daemon, text: &str) -> Result<()> {
    let (client, server) = (from.client().await?, to.client().await?);
    let mut inbox = server.datagrams();
    let target = format!("{}:{PORT}", to.address().await?);
    eventually("a datagram to arrive", async || {
        client.send_datagram(&target, text.as_bytes()).await.ok()?;
        let next = timeout(Duration::from_millis(200), inbox.recv()).await.ok()?.ok()?;
        (next.data == text.as_bytes() && next.destination_port == PORT).then_some(())
    })
    .await
}

/// Makes two daemons trust each other whose trust has just ended: what was said
/// of that may still be on its way, and ends the first attempt.
async fn trust_again(a: &Daemon, b: &Daemon) -> Result<()> {
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let (client_a, client_b) = (a.client().await?, b.client().await?);
    let trusts = async |client: &Client, node| {
        client.trusted().await.is_ok_and(|trusted| trusted.iter().any(|t| t.node_id == node))
    };
    eventually("trust to be made again", async || {
        client_a.handshake_request(node_b, "again").await.ok()?;
        client_b.handshake_request(node_a, "again").await.ok()?;
        for _ in 0..40 {
            if trusts(&client_a, node_b).await && trusts(&client_b, node_a).await {
                return Some(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    })
    .await
    .with_context(|| format!("{}\n{}", a.process.log_tail(), b.process.log_tail()))
}

/// Dates trust back, while the daemon is not running: what was made a moment ago
/// is given a minute.
fn trusts_for_long(daemon: &Daemon) -> Result<()> {
    let path = daemon.home.join("trust.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let trusted = file["trusted"].as_array_mut().context("nobody is trusted")?;
    for peer in trusted {
        peer["approved_at"] = json!("2026-01-01T00:00:00Z");
    }
    Ok(std::fs::write(path, file.to_string())?)
}

/// Whether an error says something.
fn says(error: &Value, text: &str) -> Result<()> {
    let whole = json!([error["message"], error["reason"], error["hint"]]).to_string();
    ensure!(whole.contains(text), "{error} does not say {text:?}");
    Ok(())
}
