//! Rows on bad links: the timed stream through the impairment relay, over Pilot
//! and over other transports, and what is made of the figures.
//!
//! Several streams go on at once, each with its own relay and daemons: they
//! share nothing but the cores, which 100 Mbit/s each leave mostly idle, and
//! the bench stays within its time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::Report;
use super::rows::{PORT, Plan, RUNS, serve, this_program};
use super::series::Mark;
use super::timed::{GO, Received};
use super::transport::now;
use crate::harness::{Daemon, Network, Process, establish_trust, eventually};
use crate::impair::{Profile, Relay, Statistics};

/// Bits per second of the bottleneck.
pub(super) const RATE: u64 = 100_000_000;
const BLACK_HOLE: &str = "mtu.blackhole";
/// Cells measured at once in `make bench`: six streams.
const AT_ONCE: usize = 2;
/// When the MTU drops, from the first byte written.
const DROP_AT: Duration = Duration::from_secs(3);
/// How long the path has to get better after that.
const RECOVERY_LIMIT: Duration = Duration::from_secs(12);
/// No path MTU probe was dropped for this long: the search has ended.
pub(super) const SETTLED: Duration = Duration::from_millis(1200);
/// The search and setting up take this long at most.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// A relay has taken its orders after this.
const ORDERED: Duration = Duration::from_millis(20);
/// What the programs may take beyond the window until they say something.
const SLACK: Duration = Duration::from_secs(20);
/// A relay whose datagrams are later than this changes what it measures.
const LATE: Duration = Duration::from_millis(2);

/// One kind of bad link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) row: &'static str,
    /// Share lost in each direction.
    loss: f64,
    /// Milliseconds.
    round_trip: u64,
    /// Of the first of its runs; the others follow.
    seed: u64,
}

/// Every cell, those with the same window together.
pub(super) const CELLS: [Cell; 8] = [
    Cell::new("loss.0.20", 0.0, 20, 0),
    Cell::new("loss.0.1.20", 0.001, 20, 1),
    Cell::new("loss.1.20", 0.01, 20, 2),
    Cell::new("loss.3.20", 0.03, 20, 3),
    Cell::new("loss.0.100", 0.0, 100, 4),
    Cell::new("loss.0.1.100", 0.001, 100, 5),
    Cell::new("loss.1.100", 0.01, 100, 6),
    Cell::new("loss.3.100", 0.03, 100, 7),
];

impl Cell {
    const fn new(row: &'static str, loss: f64, round_trip: u64, index: u64) -> Self {
        Self { row, loss, round_trip, seed: index * RUNS as u64 }
    }

    fn profile(&self) -> Profile {
        Profile::path(RATE, Duration::from_millis(self.round_trip), self.loss)
    }

    /// From the first byte written: the ramp of slow start counts. It takes
    /// half a second at 100 ms, and so that it counts no more than at 20 ms,
    /// those cells run longer.
    pub(super) fn window(&self, quick: bool) -> Duration {
        match (quick, self.round_trip >= 100) {
            (false, false) => Duration::from_secs(10),
            (false, true) => Duration::from_secs(30),
            (true, false) => Duration::from_secs(3),
            (true, true) => Duration::from_secs(9),
        }
    }

    /// The cell's runs over Pilot, prepared one beside the other.
    pub(super) async fn pilot(&self, network: &Network, quick: bool) -> Result<Vec<Lane>> {
        let start = |run| {
            let name = format!("{}-{run}", self.seed);
            Lane::pilot(network, name, self.profile(), self.seed + run, self.window(quick))
        };
        let (x, y, z) = tokio::try_join!(start(0), start(1), start(2))?;
        Ok(vec![x, y, z])
    }

    /// The same over another transport.
    pub(super) async fn other(
        &self,
        network: &Network,
        transport: &'static str,
        quick: bool,
    ) -> Result<Vec<Lane>> {
        let start = |run| {
            let folder = network.folder().join(format!("{transport}-{}-{run}", self.seed));
            Lane::other(folder, transport, self.profile(), self.seed + run, self.window(quick))
        };
        let (x, y, z) = tokio::try_join!(start(0), start(1), start(2))?;
        Ok(vec![x, y, z])
    }
}

/// Runs the rows that are wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let wanted: Vec<Cell> = CELLS.into_iter().filter(|c| plan.wants(&[c.row])).collect();
    let same_path = |a: &Cell, b: &Cell| a.round_trip == b.round_trip;
    for cells in wanted.chunk_by(same_path).flat_map(|cells| cells.chunks(AT_ONCE)) {
        let rows: Vec<&str> = cells.iter().map(|c| c.row).collect();
        eprintln!("{}: {RUNS} streams each", rows.join(" and "));
        measure(plan, report, cells).await.with_context(|| rows.join(", "))?;
    }
    if plan.wants(&[BLACK_HOLE]) {
        eprintln!("{BLACK_HOLE}: {RUNS} streams, and a smaller MTU on the way");
        black_hole(report).await.context(BLACK_HOLE)?;
    }
    Ok(())
}

async fn measure(plan: &Plan, report: &mut Report, cells: &[Cell]) -> Result<()> {
    let network = Network::start()?;
    let mut lanes = Vec::new();
    let mut rows = Vec::new();
    for cell in cells {
        for lane in cell.pilot(&network, plan.quick).await? {
            lanes.push(lane);
            rows.push(cell.row);
        }
    }
    for (row, run) in rows.into_iter().zip(together(&mut lanes).await?) {
        report.add(row, "ratio", run.goodput());
        report.series.add(row, &run.received);
    }
    Ok(())
}

/// A relay, what sends through it, and what receives.
pub(super) struct Lane {
    relay: Relay,
    /// What the relay does while it is measured.
    profile: Profile,
    window: Duration,
    client: Process,
    server: Process,
    _daemons: Option<[Daemon; 2]>,
}

/// What came of a lane.
pub(super) struct Run {
    pub(super) received: Received,
    window: Duration,
}

impl Run {
    /// Share of the bottleneck.
    pub(super) fn goodput(&self) -> f64 {
        self.received.bytes() as f64 * 8.0 / self.window.as_secs_f64() / RATE as f64
    }
}

impl Lane {
    /// Two daemons that reach each other through a relay only. On a clean path
    /// with the delay and rate of `profile`; returns when the path MTU is known.
    async fn pilot(
        network: &Network,
        name: String,
        profile: Profile,
        seed: u64,
        window: Duration,
    ) -> Result<Self> {
        let relay = Relay::between(clean(profile), seed)?;
        let far = relay.far().context("a relay without a far side")?;
        // Without a beacon nobody hears of an address behind the relay.
        let options = |side: &str, endpoint: std::net::SocketAddr| {
            let options = network.options(&format!("{side}-{name}"));
            options.set("beacon", "").set("endpoint", &endpoint.to_string())
        };
        let a = Daemon::start(network.folder(), options("a", far))?;
        let b = Daemon::start(network.folder(), options("b", relay.near()))?;
        relay.connect(a.udp()?, b.udp()?);
        establish_trust(&a, &b).await?;
        let address = b.address().await?;
        let socket = b.socket.to_str().context("socket path is not UTF-8")?;
        let server = serve(network.folder(), &format!("server-{name}"), &["pilot", socket, PORT])?;
        let client = a.client().await?;
        eventually("a stream through the relay", async || {
            client.dial(&format!("{address}:7")).await.ok()
        })
        .await?;
        settle(&relay).await?;
        let socket = a.socket.to_str().context("socket path is not UTF-8")?;
        let target = format!("{address}:{PORT}");
        let client = writer(a.home.join("client.log"), ["pilot", socket, &target], window).await?;
        Ok(Self { relay, profile, window, client, server, _daemons: Some([a, b]) })
    }

    /// Two programs that use another transport, through a relay likewise.
    async fn other(
        folder: PathBuf,
        transport: &'static str,
        profile: Profile,
        seed: u64,
        window: Duration,
    ) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let server = serve(&folder, "server", &[transport])?;
        let any = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let place = server.ready_text("at")?;
        let (target, key) = place.split_once('/').context("a place without a slash")?;
        let relay = Relay::listen(any, target.parse()?, clean(profile), seed)?;
        let place = format!("{}/{key}", relay.near());
        let client = writer(folder.join("client.log"), [transport, &place], window).await?;
        Ok(Self { relay, profile, window, client, server, _daemons: None })
    }

    /// What the server received in the window.
    fn received(&self) -> Result<Received> {
        let line = self.server.next_line(self.window + SLACK);
        let line = line.with_context(|| {
            format!("no figures: {} {}", self.client.log_tail(), self.server.log_tail())
        })?;
        let received = Received::parse(&serde_json::from_str(&line)?)?;
        // What came another way was not measured.
        let relayed = self.relay.statistics().up.delivered_bytes;
        let bytes = received.bytes();
        ensure!(relayed > bytes, "{bytes} bytes arrived, {relayed} of them through the relay");
        Ok(received)
    }
}

/// The same path without loss.
fn clean(profile: Profile) -> Profile {
    Profile { loss: 0.0, ..profile }
}

/// Waits until the daemons' search for the path MTU has ended: its probes that
/// are too large fall to the relay, which counts them.
async fn settle(relay: &Relay) -> Result<()> {
    let started = Instant::now();
    let (mut dropped, mut since) = (0, Instant::now());
    while since.elapsed() < SETTLED {
        ensure!(started.elapsed() < SETTLE_LIMIT, "path MTU probes do not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = relay.statistics();
        let count = now.up.too_large + now.down.too_large;
        if count != dropped {
            (dropped, since) = (count, Instant::now());
        }
    }
    Ok(())
}

/// The client program, ready to write when it is told to go. It may take a
/// while, and others are to start meanwhile.
async fn writer<const N: usize>(
    log: PathBuf,
    place: [&str; N],
    window: Duration,
) -> Result<Process> {
    let mut command = this_program()?;
    command.args(["role", "client"]).args(place);
    command.args(["timed", &window.as_millis().to_string()]);
    tokio::task::spawn_blocking(move || Process::start_to_tell("client", command, &log)).await?
}

/// Makes the paths bad, and has all streams written at once.
pub(super) async fn together(lanes: &mut [Lane]) -> Result<Vec<Run>> {
    for lane in &*lanes {
        lane.relay.set_profile(lane.profile);
    }
    tokio::time::sleep(ORDERED).await;
    let mut before = Vec::new();
    for lane in &mut *lanes {
        before.push(lane.relay.statistics());
        lane.client.tell(GO)?;
    }
    let mut runs = Vec::new();
    for (lane, before) in lanes.iter().zip(before) {
        let received = lane.received()?;
        explain(&before, &lane.relay.statistics());
        runs.push(Run { received, window: lane.window });
    }
    Ok(runs)
}

/// What the relay did, beside the figure.
fn explain(before: &Statistics, after: &Statistics) {
    let (up, was) = (&after.up, &before.up);
    let late = after.lateness.quantile(0.99);
    eprintln!(
        "  {} datagrams: {} lost, {} beyond the queue, {} beyond the MTU; longest queue {} KB; \
         sent late by {late:?} at most for 99 %{}",
        up.offered - was.offered,
        up.lost - was.lost,
        up.queue_full - was.queue_full,
        up.too_large - was.too_large,
        up.longest_queue / 1000,
        if late > LATE { " (the machine is too busy for this row)" } else { "" },
    );
}

async fn black_hole(report: &mut Report) -> Result<()> {
    let profile = Profile::path(RATE, Duration::from_millis(20), 0.0);
    let window = DROP_AT + RECOVERY_LIMIT;
    let network = Network::start()?;
    let start = |run: u64| Lane::pilot(&network, format!("mtu-{run}"), profile, 300 + run, window);
    let (x, y, z) = tokio::try_join!(start(0), start(1), start(2))?;
    let mut lanes = [x, y, z];
    let before = lanes.each_ref().map(|lane| lane.relay.statistics());
    for lane in &mut lanes {
        lane.client.tell(GO)?;
    }
    tokio::time::sleep(DROP_AT).await;
    let dropped = now();
    for lane in &lanes {
        lane.relay.set_profile(Profile { mtu: 1280, ..profile });
    }
    for (lane, before) in lanes.iter().zip(before) {
        let received = lane.received()?;
        let after = lane.relay.statistics();
        explain(&before, &after);
        ensure!(
            after.up.too_large > before.up.too_large,
            "the path was never used beyond 1280 bytes, so that nothing was measured"
        );
        let at = dropped.saturating_sub(received.start);
        let back = received.recovery(at).unwrap_or_else(|| {
            eprintln!("  still not back");
            window.saturating_sub(at)
        });
        report.add(BLACK_HOLE, "s", back.as_secs_f64());
        report.series.add(BLACK_HOLE, &received);
        report.series.mark(BLACK_HOLE, Mark { at, what: "path MTU 1500 to 1280".to_owned() });
    }
    Ok(())
}
