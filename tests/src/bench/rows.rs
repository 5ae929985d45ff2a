//! The workloads, in the order in which they are run, and what each row means.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::Report;
use super::server::DATAGRAM_PORT;
use crate::harness::{
    self, Daemon, DaemonOptions, Network, Process, cpu_time, resident_bytes, scheduled_time,
};

/// Port of the server application.
pub(super) const PORT: &str = "5000";
/// Runs of each row.
pub(super) const RUNS: usize = 3;
/// No workload takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);
pub(super) const MIB: u64 = 1 << 20;

/// What to run.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Smaller workloads.
    pub(super) quick: bool,
    /// Prefixes of the rows wanted; empty means all.
    pub(super) only: Vec<String>,
    /// Settings of the daemons beside the lifted limits.
    pub(super) settings: Vec<(String, String)>,
}

impl Plan {
    pub(super) fn wants(&self, rows: &[&str]) -> bool {
        let wanted = |row: &&str| self.only.iter().any(|o| row.starts_with(o.as_str()));
        self.only.is_empty() || rows.iter().any(wanted)
    }

    /// A size, or a tenth of it.
    pub(super) fn size(&self, full: u64) -> u64 {
        if self.quick { full / 10 } else { full }
    }
}

/// Runs everything that is wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let tunnel_rows = [
        "stream.oneway",
        "stream.oneway.vs_tcp",
        "stream.cpu",
        "stream.oneway8",
        "stream.echo",
        "stream.burst256k",
        "rtt.p50",
        "rtt.p99",
        "rtt.vs_tcp",
        "conn.rate",
        "datagram.rate",
    ];
    if plan.wants(&tunnel_rows) {
        let pair = Pair::start(plan).await?;
        streams(plan, report, &pair)?;
        latency(plan, report, &pair)?;
        connections(plan, report, &pair)?;
    }
    super::loss::run(plan, report).await?;
    super::workers::run(plan, report).await?;
    if plan.wants(&super::cost::ROWS) {
        super::cost::run(plan, report)?;
    }
    if plan.wants(&super::plugins::ROWS) {
        super::plugins::run(plan, report).await?;
    }
    if plan.wants(&["conn.idle_bytes"]) {
        idle_connections(plan, report).await?;
    }
    if plan.wants(&["daemon.idle_rss", "daemon.idle_cpu"]) {
        idle_daemons(plan, report).await?;
    }
    super::registry::run(plan, report).await?;
    Ok(())
}

/// Two daemons that trust each other, and the server application at the
/// second one, over Pilot and over TCP.
pub(super) struct Pair {
    a: Daemon,
    b: Daemon,
    target: String,
    tcp: String,
    _pilot_server: Process,
    _tcp_server: Process,
    // Last: its folder must outlive what runs in it.
    pub(super) network: Network,
}

impl Pair {
    pub(super) async fn start(plan: &Plan) -> Result<Self> {
        eprintln!("starting two daemons");
        let network = Network::start()?;
        let own = plan.settings.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let settings: Vec<_> = harness::LIFTED.into_iter().chain(own).collect();
        let (a, b) = network.pair_with(&settings).await?;
        let target = format!("{}:{PORT}", b.address().await?);
        let socket = b.socket.to_str().context("socket path is not UTF-8")?;
        let folder = network.folder();
        let pilot_server = serve(folder, "pilot-server", &["pilot", socket, PORT])?;
        let tcp_server = serve(folder, "tcp-server", &["tcp"])?;
        let tcp = tcp_server.ready_text("at")?.to_owned();
        Ok(Self {
            a,
            b,
            target,
            tcp,
            _pilot_server: pilot_server,
            _tcp_server: tcp_server,
            network,
        })
    }

    /// A workload over Pilot.
    pub(super) fn pilot(&self, workload: &str, numbers: &[u64]) -> Result<Value> {
        let socket = self.a.socket.to_str().context("socket path is not UTF-8")?;
        client(&["pilot", socket, &self.target], workload, numbers).with_context(|| {
            format!("daemons said: {} {}", self.a.process.log_tail(), self.b.process.log_tail())
        })
    }

    /// The same over TCP.
    fn tcp(&self, workload: &str, numbers: &[u64]) -> Result<Value> {
        client(&["tcp", &self.tcp], workload, numbers)
    }

    fn cpu(&self) -> Result<Duration> {
        Ok(cpu_time(self.a.process.pid())? + cpu_time(self.b.process.pid())?)
    }

    fn resident(&self) -> Result<u64> {
        Ok(resident_bytes(self.a.process.pid())? + resident_bytes(self.b.process.pid())?)
    }
}

pub(super) fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

pub(super) fn serve(folder: &Path, name: &str, place: &[&str]) -> Result<Process> {
    let mut command = this_program()?;
    command.args(["role", "serve"]).args(place);
    Process::start(name, command, &folder.join(format!("{name}.log")))
}

pub(super) fn client(place: &[&str], workload: &str, numbers: &[u64]) -> Result<Value> {
    let mut command = this_program()?;
    command.args(["role", "client"]).args(place).arg(workload);
    command.args(numbers.iter().map(u64::to_string));
    finish(workload, command)
}

pub(super) fn finish(workload: &str, command: Command) -> Result<Value> {
    let done = harness::run(workload, command, LIMIT)?;
    anyhow::ensure!(done.status.success(), "{workload} failed: {}", done.stderr.trim());
    let line = done.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{workload} said {line:?}"))
}

pub(super) fn figure(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no {key} in {value}"))
}

pub(super) fn rate(value: &Value) -> Result<f64> {
    Ok(figure(value, "bytes")? / 1e6 / figure(value, "seconds")?)
}

fn streams(plan: &Plan, report: &mut Report, pair: &Pair) -> Result<()> {
    if plan.wants(&["stream.oneway", "stream.oneway.vs_tcp", "stream.cpu"]) {
        eprintln!("stream.oneway: content first, then speed, in turn with TCP");
        pair.pilot("verify", &[plan.size(256 * MIB)])?;
        let bytes = plan.size(2048 * MIB);
        for _ in 0..RUNS {
            let before = pair.cpu()?;
            let ours = rate(&pair.pilot("oneway", &[bytes, 1])?)?;
            let cpu = pair.cpu()?.saturating_sub(before);
            let tcp = rate(&pair.tcp("oneway", &[bytes, 1])?)?;
            report.add("stream.oneway", "MB/s", ours);
            report.add("stream.oneway.vs_tcp", "ratio", ours / tcp);
            report.add("stream.cpu", "ns/byte", cpu.as_nanos() as f64 / bytes as f64);
        }
    }
    if plan.wants(&["stream.oneway8"]) {
        for _ in 0..RUNS {
            let ours = rate(&pair.pilot("oneway", &[plan.size(2048 * MIB), 8])?)?;
            report.add("stream.oneway8", "MB/s", ours);
        }
    }
    if plan.wants(&["stream.echo"]) {
        for _ in 0..RUNS {
            let ours = rate(&pair.pilot("echo", &[plan.size(256 * MIB), 7])?)?;
            report.add("stream.echo", "MB/s", ours);
        }
    }
    if plan.wants(&["stream.burst256k"]) {
        for _ in 0..RUNS {
            let ours = figure(&pair.pilot("burst", &[256 << 10, plan.size(100)])?, "mb_per_s")?;
            report.add("stream.burst256k", "MB/s", ours);
        }
    }
    Ok(())
}

fn latency(plan: &Plan, report: &mut Report, pair: &Pair) -> Result<()> {
    if plan.wants(&["rtt.p50", "rtt.p99", "rtt.vs_tcp"]) {
        for _ in 0..RUNS {
            let ours = pair.pilot("pingpong", &[plan.size(20_000)])?;
            let tcp = pair.tcp("pingpong", &[plan.size(20_000)])?;
            report.add("rtt.p50", "us", figure(&ours, "p50_us")?);
            report.add("rtt.p99", "us", figure(&ours, "p99_us")?);
            let ratio = figure(&ours, "p50_us")? / figure(&tcp, "p50_us")?;
            report.add("rtt.vs_tcp", "ratio", ratio);
        }
    }
    Ok(())
}

fn connections(plan: &Plan, report: &mut Report, pair: &Pair) -> Result<()> {
    if plan.wants(&["conn.rate"]) {
        for _ in 0..RUNS {
            let ours = pair.pilot("dials", &[plan.size(5000), 64])?;
            report.add("conn.rate", "1/s", figure(&ours, "per_second")?);
        }
    }
    if plan.wants(&["datagram.rate"]) {
        for _ in 0..RUNS {
            let ours = pair.pilot("datagrams", &[plan.size(200_000)])?;
            let lost = 1.0 - figure(&ours, "delivered")? / figure(&ours, "sent")?;
            eprintln!("  port {DATAGRAM_PORT}: {:.1} % not delivered", lost * 100.0);
            report.add("datagram.rate", "1/s", figure(&ours, "per_second")?);
        }
    }
    Ok(())
}

/// Fresh daemons for each run, so that memory kept from before cannot hide
/// what the connections need.
async fn idle_connections(plan: &Plan, report: &mut Report) -> Result<()> {
    let count = plan.size(10_000);
    for _ in 0..RUNS {
        let pair = Pair::start(plan).await?;
        // A first connection brings up what every later one shares.
        pair.pilot("dials", &[1, 1])?;
        let before = pair.resident()?;
        let socket = pair.a.socket.to_str().context("socket path is not UTF-8")?;
        let mut command = this_program()?;
        command.args(["role", "client", "pilot", socket, &pair.target, "idle"]);
        command.arg(count.to_string());
        let log = pair.network.folder().join("idle.log");
        let _holder = Process::start("idle connections", command, &log)?;
        let grown = pair.resident()?.saturating_sub(before);
        report.add("conn.idle_bytes", "bytes", grown as f64 / count as f64);
    }
    Ok(())
}

/// Three pairs at once: they are idle and do not disturb each other.
async fn idle_daemons(plan: &Plan, report: &mut Report) -> Result<()> {
    let network = Network::start()?;
    let mut pairs = Vec::new();
    for n in 0..RUNS {
        // Default settings, half a minute between heartbeats included.
        let start = |letter: char| {
            let name = format!("idle-{letter}{n}");
            let options = DaemonOptions::new(&name, network.registry_addr(), network.beacon_addr());
            network.daemon_with(options.set("trust-auto-approve", "true"))
        };
        let (mut a, mut b) = (start('a').await?, start('b').await?);
        harness::establish_trust(&a, &b).await?;
        // Again without the short keepalive that made the meeting quick.
        for daemon in [&mut a, &mut b] {
            daemon.stop()?;
            daemon.set("keepalive", "30s");
            daemon.start_again()?;
            daemon.joined().await?;
        }
        let stream = a.client().await?.dial(&format!("{}:7", b.address().await?)).await?;
        drop(stream);
        pairs.push((a, b));
    }
    let window = Duration::from_secs(if plan.quick { 6 } else { 60 });
    eprintln!("daemon.idle_*: {} s of nothing", window.as_secs());
    // Past the closing of the stream that made the tunnel.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut before = Vec::new();
    for (a, _) in &pairs {
        before.push(scheduled_time(a.process.pid())?);
    }
    tokio::time::sleep(window).await;
    for ((a, _), before) in pairs.iter().zip(before) {
        let used = scheduled_time(a.process.pid())?.saturating_sub(before);
        let minute = used.as_secs_f64() * 1e3 * 60.0 / window.as_secs_f64();
        report.add("daemon.idle_cpu", "ms", minute);
        let resident = resident_bytes(a.process.pid())?;
        report.add("daemon.idle_rss", "MiB", resident as f64 / MIB as f64);
    }
    Ok(())
}
