//! `workers.*`: one daemon and eight peers, with two workers and with one, in
//! turn.
//!
//! All of it shares the cores of one machine. For the first row the daemon
//! has to be what limits: its peers are stopped while it sends, as if they
//! were elsewhere, and datagrams need no answer. For the second row the peers
//! work too, which on two cores leaves a second worker little to win.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pilot_sdk::Client;
use pilot_wire::Address;
use pilot_wire::ipc::{Command, Event, split_message};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::client::{pattern, pour};
use super::report::Report;
use super::rows::{PORT, Plan, RUNS, figure, finish, serve, this_program};
use super::server::SINK;
use super::transport::now;
use crate::harness::{Daemon, LIFTED, Network, Process, cpu_time, establish_trust, eventually};

const PEERS: usize = 8;
/// Payload of a datagram: small, so that what each costs the daemon outweighs
/// the copies on the way to it.
const PAYLOAD: usize = 64;
/// Datagrams to one peer in a row.
const IN_A_ROW: usize = 16;
/// The port they go to; nobody listens.
const NOWHERE: u16 = 5009;

/// Runs the rows that are wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    if !plan.wants(&["workers.2.vs_1", "workers.2.streams.vs_1"]) {
        return Ok(());
    }
    eprintln!("workers.*: starting two daemons, of one and two workers, and eight peers");
    let mut star = Star::start().await?;
    for _ in 0..RUNS {
        let [one, two] = star.datagrams(if plan.quick { 1 } else { 4 }).await?;
        report.add("workers.2.vs_1", "ratio", two / one);
    }
    for _ in 0..RUNS {
        let [one, two] = star.streams(plan.size(1 << 30))?;
        report.add("workers.2.streams.vs_1", "ratio", two / one);
    }
    Ok(())
}

/// Two daemons, with one worker and with two, that have the same peers.
struct Star {
    hubs: [Daemon; 2],
    peers: Vec<Daemon>,
    _servers: Vec<Process>,
    targets: Vec<String>,
    // Last: its folder must outlive what runs in it.
    _network: Network,
}

impl Star {
    async fn start() -> Result<Self> {
        let network = Network::start()?;
        let options = |name: &str| {
            LIFTED.iter().fold(network.options(name), |o, (key, value)| o.set(key, value))
        };
        let mut peers = Vec::new();
        let mut servers = Vec::new();
        let mut targets = Vec::new();
        // One after the other, so that their numbers follow each other and
        // half of them belong to each worker.
        for n in 0..PEERS {
            let name = format!("peer-{n}");
            let peer =
                network.daemon_with(options(&name).set("trust-auto-approve", "true")).await?;
            let socket = peer.socket.to_str().context("socket path is not UTF-8")?;
            servers.push(serve(network.folder(), &format!("sink-{n}"), &["pilot", socket, PORT])?);
            targets.push(peer.address().await?);
            peers.push(peer);
        }
        let hub = |workers: &'static str| {
            let options = options(&format!("hub-{workers}")).set("workers", workers);
            network.daemon_with(options.set("trust-auto-approve", "true"))
        };
        let hubs = [hub("1").await?, hub("2").await?];
        for hub in &hubs {
            for (peer, target) in peers.iter().zip(&targets) {
                establish_trust(hub, peer).await?;
                // So that the tunnel is up.
                drop(hub.client().await?.dial(&format!("{target}:7")).await?);
            }
        }
        let info = hubs[1].info().await?;
        let of_first = |p: &&Value| p["worker"] == 0;
        let list = info["peer_list"].as_array().context("no peers")?;
        let first = list.iter().filter(of_first).count();
        ensure!(first * 2 == PEERS, "{first} of {PEERS} peers belong to the first worker");
        Ok(Self { hubs, peers, _servers: servers, targets, _network: network })
    }

    /// Datagrams a second that each hub sends to peers that are stopped.
    async fn datagrams(&mut self, seconds: u64) -> Result<[f64; 2]> {
        let mut rates = [0.0; 2];
        for (hub, rate) in self.hubs.iter().zip(&mut rates) {
            let before = cpu_time(hub.process.pid())?;
            self.peers.iter_mut().for_each(|peer| peer.process.signal(Signal::STOP));
            let flooded = role(hub, "flood", seconds, &self.targets);
            self.peers.iter_mut().for_each(|peer| peer.process.signal(Signal::CONT));
            let cpu = cpu_time(hub.process.pid())?.saturating_sub(before);
            let flooded = flooded?;
            let span = figure(&flooded, "seconds")?;
            *rate = figure(&flooded, "datagrams")? / span;
            let cores = cpu.as_secs_f64() / span;
            eprintln!("  {}: {rate:.0} datagrams a second, {cores:.2} cores", hub.name);
            for peer in &self.peers {
                eventually("a peer to go on", async || peer.info().await.ok()).await?;
            }
        }
        Ok(rates)
    }

    /// Megabytes a second of eight streams, one to each peer, taken by its
    /// application.
    fn streams(&self, bytes: u64) -> Result<[f64; 2]> {
        let mut rates = [0.0; 2];
        for (hub, rate) in self.hubs.iter().zip(&mut rates) {
            let before = cpu_time(hub.process.pid())?;
            let poured = role(hub, "pour", bytes, &self.targets)?;
            let cpu = cpu_time(hub.process.pid())?.saturating_sub(before);
            let seconds = figure(&poured, "seconds")?;
            *rate = figure(&poured, "bytes")? / 1e6 / seconds;
            let cores = cpu.as_secs_f64() / seconds;
            eprintln!("  {}: {rate:.0} MB/s of streams, {cores:.2} cores", hub.name);
        }
        Ok(rates)
    }
}

fn role(hub: &Daemon, kind: &str, amount: u64, targets: &[String]) -> Result<Value> {
    let mut command = this_program()?;
    command.args(["role", "workers", kind]).arg(&hub.socket).arg(amount.to_string());
    command.args(targets);
    finish(kind, command).map_err(|e| e.context(hub.process.log_tail()))
}

/// Runs as an application: `flood SOCKET SECONDS ADDRESS...` or
/// `pour SOCKET BYTES ADDRESS...`.
pub(super) async fn application(args: &[&str]) -> Result<()> {
    let [kind, socket, amount, targets @ ..] = args else { bail!("too few arguments") };
    let amount = amount.parse()?;
    let said = match *kind {
        "flood" => flood(socket, Duration::from_secs(amount), targets).await?,
        "pour" => streams(socket, amount, targets).await?,
        other => bail!("unknown workload {other}"),
    };
    println!("{said}");
    Ok(())
}

/// Sends datagrams to all targets for a while, many in one write, so that the
/// application costs little beside the daemon; what counts is what the daemon
/// says it sent.
async fn flood(socket: &str, span: Duration, targets: &[&str]) -> Result<Value> {
    let mut round = Vec::new();
    for target in targets {
        let address: Address = target.parse()?;
        let to = address.port(NOWHERE);
        for _ in 0..IN_A_ROW {
            Command::SendDatagram { to, data: &[0x5A; PAYLOAD] }.encode(&mut round);
        }
    }
    ensure!(!round.is_empty(), "no targets");
    let mut daemon = UnixStream::connect(socket).await?;
    // Warm, and the counters start from a daemon that has nothing to do.
    daemon.write_all(&round).await?;
    let before = sent(&mut daemon).await?;
    let start = Instant::now();
    while start.elapsed() < span {
        daemon.write_all(&round).await?;
    }
    let after = sent(&mut daemon).await?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "datagrams": after - before, "seconds": seconds }))
}

/// Frames the daemon has sent, after it has done all that was asked before.
async fn sent(daemon: &mut UnixStream) -> Result<u64> {
    let mut command = Vec::new();
    Command::Info.encode(&mut command);
    daemon.write_all(&command).await?;
    let mut buffer = Vec::new();
    loop {
        if let Ok(Some((body, used))) = split_message(&buffer) {
            if let Ok(Event::Json { body, .. }) = Event::parse(body) {
                let info: Value = serde_json::from_slice(body)?;
                return info["pkts_sent"].as_u64().context("no pkts_sent in info");
            }
            buffer.drain(..used);
            continue;
        }
        ensure!(daemon.read_buf(&mut buffer).await? > 0, "the daemon hung up");
    }
}

/// One stream to each target, all at once, over one client.
async fn streams(socket: &str, bytes: u64, targets: &[&str]) -> Result<Value> {
    let client = Client::connect_to(socket).await?;
    let pattern: std::sync::Arc<[u8]> = pattern(1 << 20).into();
    let each = bytes / targets.len().max(1) as u64;
    let mut open = Vec::new();
    for target in targets {
        let mut stream = client.dial(&format!("{target}:{PORT}")).await?;
        stream.write_u8(SINK).await?;
        stream.write_u64(each).await?;
        stream.flush().await?;
        open.push(stream);
    }
    let start = now();
    let mut tasks = JoinSet::new();
    for mut stream in open {
        let pattern = std::sync::Arc::clone(&pattern);
        tasks.spawn(async move {
            pour(&mut stream, &pattern, each).await?;
            anyhow::Ok(Duration::from_nanos(stream.read_u64().await?))
        });
    }
    let mut end = start;
    while let Some(done) = tasks.join_next().await {
        end = end.max(done??);
    }
    let seconds = end.saturating_sub(start).as_secs_f64();
    Ok(json!({ "bytes": each * targets.len() as u64, "seconds": seconds }))
}
