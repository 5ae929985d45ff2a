//! Plugins, scripts, sinks and the services that ship with Pilot, in real
//! daemons.

mod drop_in;
mod hostile;
mod services;
mod signatures;
mod transfer;
mod webhook;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::{Client, Stream};
use pilot_tests::harness::{Daemon, Network, eventually, round_trip};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long anything may take that works.
const NOTICE: Duration = Duration::from_secs(30);

/// A daemon that serves, and one that trusts it and asks.
struct Pair {
    asks: Daemon,
    serves: Daemon,
    client: Client,
    /// Address of the one that serves.
    address: String,
    // Last: its folder must outlive what runs in it.
    network: Network,
}

impl Pair {
    async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// With further lines in the configuration of the one that serves.
    async fn start_with(lines: &str) -> Result<Self> {
        let network = Network::start()?;
        let options = |name: &str| network.options(name).without_limits().set("idle-timeout", "5s");
        let asks = Daemon::start(network.folder(), options("asks").set("no-plugins", "true"))?;
        let serves = Daemon::start(network.folder(), options("serves").lines(lines))?;
        pilot_tests::harness::establish_trust(&asks, &serves).await?;
        let (client, address) = (asks.client().await?, serves.address().await?);
        Ok(Self { asks, serves, client, address, network })
    }

    async fn dial(&self, port: u16) -> Result<Stream, pilot_sdk::Error> {
        self.client.dial(format!("{}:{port}", self.address)).await
    }

    /// A stream to a port that is about to be served.
    async fn open(&self, port: u16) -> Result<Stream> {
        let dialled = eventually("a stream to open", async || self.dial(port).await.ok());
        dialled.await.with_context(|| format!("port {port}\n{}", self.serves.process.log_tail()))
    }

    /// Waits until nobody answers on a port.
    async fn until_closed(&self, port: u16) -> Result<()> {
        eventually("a port to be closed", async || self.dial(port).await.err().map(drop))
            .await
            .with_context(|| format!("port {port}\n{}", self.serves.process.log_tail()))
    }

    /// Whatever happened, the daemon is the same process and serves port 7.
    async fn still_serves(&mut self) -> Result<()> {
        let log = self.serves.process.log_tail();
        ensure!(self.serves.process.is_running(), "the daemon has ended: {log}");
        let stream = self.dial(7).await.with_context(|| format!("port 7\n{log}"))?;
        timeout(NOTICE, round_trip(stream, 7, 100_000)).await.context("port 7 hangs")?
    }
}

/// Says something on a stream and gives the answer up to its end.
async fn ask(mut stream: Stream, question: &[u8]) -> Result<Vec<u8>> {
    let answer = async {
        stream.write_all(question).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    timeout(NOTICE, answer).await.context("no answer")?
}

/// One piece of data, and one back of `len` bytes.
async fn exchange(stream: &mut Stream, question: &[u8], len: usize) -> Result<String> {
    let mut answer = vec![0; len];
    let talk = async {
        stream.write_all(question).await?;
        stream.read_exact(&mut answer).await
    };
    timeout(NOTICE, talk).await.context("no answer")??;
    Ok(String::from_utf8(answer)?)
}

/// Text in a path, for a configuration.
fn shown(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy().as_ref()).to_string()
}
