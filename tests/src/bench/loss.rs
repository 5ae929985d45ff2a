//! Rows on bad links: one stream through the impairment relay. Client and
//! server sides of it, and what is made of their figures.
//!
//! All runs of a row go on at once, each with its own relay and daemons: they
//! share nothing but the cores, which 100 Mbit/s each leave mostly idle, and
//! the bench stays within its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{pattern, pour};
use super::report::Report;
use super::rows::{PORT, Plan, RUNS, serve, this_program};
use super::server::TIMED;
use super::transport::{Connector, Stream, now};
use crate::harness::{Daemon, Network, Process, establish_trust, eventually};
use crate::impair::{Profile, Relay, Statistics};

/// Bits per second of the bottleneck.
const RATE: u64 = 100_000_000;
/// Row, share lost in each direction, round-trip time in milliseconds.
const CELLS: [(&str, f64, u64); 8] = [
    ("loss.0.20", 0.0, 20),
    ("loss.0.1.20", 0.001, 20),
    ("loss.1.20", 0.01, 20),
    ("loss.3.20", 0.03, 20),
    ("loss.0.100", 0.0, 100),
    ("loss.0.1.100", 0.001, 100),
    ("loss.1.100", 0.01, 100),
    ("loss.3.100", 0.03, 100),
];
const BLACK_HOLE: &str = "mtu.blackhole";
/// From the first byte written: the ramp of slow start counts.
const WINDOW: Duration = Duration::from_secs(10);
const QUICK_WINDOW: Duration = Duration::from_secs(3);
/// What is received is noted in spans of this.
const BUCKET: Duration = Duration::from_millis(10);
/// When the MTU drops, from the first byte written.
const DROP_AT: Duration = Duration::from_secs(3);
/// How long the path has to get better after that.
const RECOVERY_LIMIT: Duration = Duration::from_secs(12);
/// What was inside the path when the MTU dropped has come out after this:
/// queue and delay, and a little for late wake-ups.
const DRAINED: Duration = Duration::from_millis(60);
/// Goodput is compared over this.
const COMPARED: Duration = Duration::from_millis(100);
/// No path MTU probe was dropped for this long: the search has ended.
const SETTLED: Duration = Duration::from_millis(1200);
/// The search and setting up take this long at most.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// What the programs may take beyond the window until they say something.
const SLACK: Duration = Duration::from_secs(20);
/// A relay whose datagrams are later than this changes what it measures.
const LATE: Duration = Duration::from_millis(2);

/// Runs the rows that are wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let window = if plan.quick { QUICK_WINDOW } else { WINDOW };
    for (seed, (row, loss, round_trip)) in CELLS.into_iter().enumerate() {
        if plan.wants(&[row]) {
            let round_trip = Duration::from_millis(round_trip);
            eprintln!("{row}: {RUNS} streams for {} s", window.as_secs());
            cell(report, row, Profile::path(RATE, round_trip, loss), window, seed as u64)
                .await
                .context(row)?;
        }
    }
    if plan.wants(&[BLACK_HOLE]) {
        eprintln!("{BLACK_HOLE}: {RUNS} streams, and a smaller MTU on the way");
        black_hole(report).await.context(BLACK_HOLE)?;
    }
    Ok(())
}

/// Two daemons that reach each other through a relay only.
struct Lane {
    relay: Relay,
    a: Daemon,
    target: String,
    server: Process,
    _b: Daemon,
}

impl Lane {
    /// On a clean path with the delay and rate of `profile`; returns when the
    /// path MTU is known.
    async fn start(network: &Network, name: &str, profile: Profile, seed: u64) -> Result<Self> {
        let relay = Relay::between(Profile { loss: 0.0, ..profile }, seed)?;
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
        let lane = Self { relay, a, target: format!("{address}:{PORT}"), server, _b: b };
        lane.settle().await?;
        Ok(lane)
    }

    /// Waits until the search for the path MTU has ended: its probes that are
    /// too large fall to the relay, which counts them.
    async fn settle(&self) -> Result<()> {
        let started = Instant::now();
        let (mut dropped, mut since) = (0, Instant::now());
        while since.elapsed() < SETTLED {
            ensure!(started.elapsed() < SETTLE_LIMIT, "path MTU probes do not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.relay.statistics();
            let count = now.up.too_large + now.down.too_large;
            if count != dropped {
                (dropped, since) = (count, Instant::now());
            }
        }
        Ok(())
    }

    /// Starts a stream that is written as fast as it goes for `window`.
    fn stream(&self, window: Duration) -> Result<Process> {
        let socket = self.a.socket.to_str().context("socket path is not UTF-8")?;
        let mut command = this_program()?;
        command.args(["role", "client", "pilot", socket, &self.target, "timed"]);
        command.arg(window.as_millis().to_string());
        Process::start("client", command, &self.a.home.join("client.log"))
    }

    /// What the server received in the window.
    fn received(&self, window: Duration) -> Result<Received> {
        let line = self.server.next_line(window + SLACK);
        let line = line.with_context(|| format!("no figures: {}", self.server.log_tail()))?;
        let received = Received::parse(&serde_json::from_str(&line)?)?;
        // What came another way was not measured.
        let relayed = self.relay.statistics().up.delivered_bytes;
        let bytes = received.bytes();
        ensure!(relayed > bytes, "{bytes} bytes arrived, {relayed} of them through the relay");
        Ok(received)
    }
}

async fn lanes(network: &Network, profile: Profile, seed: u64) -> Result<[Lane; RUNS]> {
    let start = |n: u64| {
        Lane::start(network, ["x", "y", "z"][n as usize % RUNS], profile, seed * RUNS as u64 + n)
    };
    let (x, y, z) = tokio::try_join!(start(0), start(1), start(2))?;
    Ok([x, y, z])
}

async fn cell(
    report: &mut Report,
    row: &'static str,
    profile: Profile,
    window: Duration,
    seed: u64,
) -> Result<()> {
    let network = Network::start()?;
    let lanes = lanes(&network, profile, seed).await?;
    let mut before = Vec::new();
    let mut clients = Vec::new();
    for lane in &lanes {
        lane.relay.set_profile(profile);
        before.push(lane.relay.statistics());
        clients.push(lane.stream(window)?);
    }
    for (lane, before) in lanes.iter().zip(before) {
        let bytes = lane.received(window)?.bytes();
        explain(&before, &lane.relay.statistics());
        report.add(row, "ratio", bytes as f64 * 8.0 / window.as_secs_f64() / RATE as f64);
    }
    drop(clients);
    Ok(())
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
    let lanes = lanes(&network, profile, 100).await?;
    let mut clients = Vec::new();
    let before = lanes.each_ref().map(|lane| lane.relay.statistics());
    for lane in &lanes {
        clients.push(lane.stream(window)?);
    }
    tokio::time::sleep(DROP_AT).await;
    let dropped = now();
    for lane in &lanes {
        lane.relay.set_profile(Profile { mtu: 1280, ..profile });
    }
    for (lane, before) in lanes.iter().zip(before) {
        let received = lane.received(window)?;
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
    }
    drop(clients);
    Ok(())
}

/// What arrived when.
#[derive(Debug)]
struct Received {
    /// When the first byte was written, since the Unix epoch.
    start: Duration,
    /// Bytes in each [`BUCKET`] since.
    buckets: Vec<u64>,
}

impl Received {
    fn parse(line: &Value) -> Result<Self> {
        let start = line["start"].as_u64().context("no start")?;
        let buckets = line["buckets"].as_array().context("no buckets")?;
        let buckets = buckets.iter().map(|b| b.as_u64().context("not a count of bytes"));
        let buckets = buckets.collect::<Result<_>>()?;
        Ok(Self { start: Duration::from_nanos(start), buckets })
    }

    fn bytes(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// From a change at `at` until the end of the first [`COMPARED`] span, none
    /// of it from before the change, with half of the goodput that was before.
    fn recovery(&self, at: Duration) -> Option<Duration> {
        let index = |d: Duration| (d.as_nanos() / BUCKET.as_nanos()) as usize;
        let (change, compared) = (index(at), index(COMPARED));
        // Over a second, so that one wave of the window does not decide.
        let past = &self.buckets.get(change.saturating_sub(100)..change)?;
        let usual = past.iter().sum::<u64>() as f64 / past.len().max(1) as f64;
        let first = change + 1 + index(DRAINED);
        let after = self.buckets.get(first..)?;
        let enough =
            |span: &[u64]| span.iter().sum::<u64>() as f64 >= usual * compared as f64 / 2.0;
        let found = after.windows(compared).position(enough)?;
        let end = BUCKET * u32::try_from(first + found + compared).ok()?;
        Some(end.saturating_sub(at))
    }
}

/// The client's side: says when it starts, then writes until killed or told.
pub(super) async fn give(to: &Connector, millis: u64) -> Result<()> {
    let mut stream = to.connect().await?;
    let data = pattern(1 << 20);
    stream.write_u8(TIMED).await?;
    stream.write_u64(millis).await?;
    let start = now();
    stream.write_u64(u64::try_from(start.as_nanos())?).await?;
    println!("{}", json!({ "ready": "timed" }));
    let window = Duration::from_millis(millis);
    match tokio::time::timeout(window, pour(&mut stream, &data, u64::MAX)).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => bail!("wrote all there is"),
        Err(_) => Ok(()),
    }
}

/// The server's side: takes what comes until the window ends and prints it. Not
/// through the stream, whose path is what is measured.
pub(super) async fn take(stream: &mut Stream) -> Result<()> {
    let window = Duration::from_millis(stream.read_u64().await?);
    let start = Duration::from_nanos(stream.read_u64().await?);
    let count = usize::try_from(window.as_nanos() / BUCKET.as_nanos())?;
    let mut buckets = vec![0u64; count];
    let mut buffer = vec![0; 256 << 10];
    loop {
        let left = (start + window).saturating_sub(now());
        if left.is_zero() {
            break;
        }
        // A stream that has ended or stands still gives what came so far.
        let Ok(read) = tokio::time::timeout(left, stream.read(&mut buffer)).await else { break };
        let n = read?;
        if n == 0 {
            break;
        }
        let index = now().saturating_sub(start).as_nanos() / BUCKET.as_nanos();
        if let Some(bucket) = usize::try_from(index).ok().and_then(|i| buckets.get_mut(i)) {
            *bucket += n as u64;
        }
    }
    println!("{}", json!({ "start": u64::try_from(start.as_nanos())?, "buckets": buckets }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goodput of 1,000 bytes a bucket, with `gap` (buckets) after `at` in
    /// which nothing comes, and `then` bytes a bucket after it.
    fn received(at: usize, gap: usize, then: u64) -> Received {
        let mut buckets = vec![1000; at];
        buckets.extend(vec![0; gap]);
        buckets.extend(vec![then; 1000]);
        Received { start: Duration::ZERO, buckets }
    }

    #[test]
    fn recovery_ends_with_half_of_the_goodput() {
        let at = BUCKET * 300;
        // Half of a span at the old rate is enough.
        let back = received(300, 100, 1000).recovery(at).unwrap();
        assert_eq!(back, Duration::from_millis(1050));
        let back = received(300, 100, 500).recovery(at).unwrap();
        assert_eq!(back, Duration::from_millis(1100));
        assert_eq!(received(300, 100, 499).recovery(at), None);
    }

    #[test]
    fn what_was_under_way_is_no_recovery() {
        let mut received = received(300, 100, 1000);
        // Five more buckets come out of the path after the change.
        received.buckets[300..305].fill(5000);
        let back = received.recovery(BUCKET * 300).unwrap();
        assert_eq!(back, Duration::from_millis(1050));
    }

    #[test]
    fn no_outage_is_a_short_recovery() {
        let back = received(300, 0, 1000).recovery(BUCKET * 300).unwrap();
        assert_eq!(back, BUCKET + DRAINED + COMPARED);
    }

    #[test]
    fn a_report_is_read_back() {
        let line = json!({ "start": 5, "buckets": [1, 2] });
        let received = Received::parse(&line).unwrap();
        assert_eq!((received.start, received.bytes()), (Duration::from_nanos(5), 3));
        assert!(Received::parse(&json!({ "start": 5 })).is_err());
    }
}
