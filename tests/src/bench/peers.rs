//! `make bench-peers`: the rows that compare with iroh and quinn. The transports
//! come from the program that depends on them; the workloads are those of
//! `make bench`, taken in turn or at once.

use anyhow::{Context, Result};
use serde_json::Value;

use super::loss::{CELLS, Cell, together};
use super::report::Report;
use super::rows::{MIB, Pair, Plan, RUNS, client, figure, rate, serve};
use crate::harness::{Network, Process};

/// The transport compared on a clean loopback.
const IROH: &str = "iroh";
/// The transport compared on bad links.
const QUINN: &str = "quinn";

/// Runs everything that is wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let stream = plan.wants(&["stream.oneway.vs_iroh", "peer.iroh.oneway", "peer.pilot.oneway"]);
    let latency = plan.wants(&["rtt.vs_iroh", "peer.iroh.rtt.p50", "peer.pilot.rtt.p50"]);
    if stream || latency {
        let pair = Pair::start(plan).await?;
        let iroh = Iroh::start(&pair)?;
        if stream {
            oneway(plan, report, &pair, &iroh)?;
        }
        if latency {
            ping_pong(plan, report, &pair, &iroh)?;
        }
    }
    for cell in CELLS {
        let [ratio, theirs, ours] = names(&cell);
        if plan.wants(&[&ratio, &theirs, &ours]) {
            eprintln!("{}: {RUNS} streams of Pilot and {RUNS} of {QUINN}", cell.row);
            loss(plan, report, &cell).await.context(cell.row)?;
        }
    }
    Ok(())
}

/// The server of the other side, beside the daemons of ours.
struct Iroh {
    place: String,
    _server: Process,
}

impl Iroh {
    fn start(pair: &Pair) -> Result<Self> {
        let server = serve(pair.network.folder(), "iroh-server", &[IROH])?;
        Ok(Self { place: server.ready_text("at")?.to_owned(), _server: server })
    }

    fn run(&self, workload: &str, numbers: &[u64]) -> Result<Value> {
        client(&[IROH, &self.place], workload, numbers)
            .with_context(|| format!("the server said: {}", self._server.log_tail()))
    }
}

fn oneway(plan: &Plan, report: &mut Report, pair: &Pair, iroh: &Iroh) -> Result<()> {
    eprintln!("stream.oneway: in turn with {IROH}, content first");
    pair.pilot("verify", &[plan.size(256 * MIB)])?;
    iroh.run("verify", &[plan.size(256 * MIB)])?;
    let bytes = plan.size(2048 * MIB);
    for _ in 0..RUNS {
        let ours = rate(&pair.pilot("oneway", &[bytes, 1])?)?;
        let theirs = rate(&iroh.run("oneway", &[bytes, 1])?)?;
        report.add("peer.pilot.oneway", "MB/s", ours);
        report.add("peer.iroh.oneway", "MB/s", theirs);
        report.add("stream.oneway.vs_iroh", "ratio", ours / theirs);
    }
    Ok(())
}

fn ping_pong(plan: &Plan, report: &mut Report, pair: &Pair, iroh: &Iroh) -> Result<()> {
    let rounds = plan.size(20_000);
    for _ in 0..RUNS {
        let ours = figure(&pair.pilot("pingpong", &[rounds])?, "p50_us")?;
        let theirs = figure(&iroh.run("pingpong", &[rounds])?, "p50_us")?;
        report.add("peer.pilot.rtt.p50", "us", ours);
        report.add("peer.iroh.rtt.p50", "us", theirs);
        report.add("rtt.vs_iroh", "ratio", ours / theirs);
    }
    Ok(())
}

/// The ratio's row, the other side's, and ours.
fn names(cell: &Cell) -> [String; 3] {
    let row = cell.row;
    [format!("{row}.vs_quic"), format!("peer.{QUINN}.{row}"), format!("peer.pilot.{row}")]
}

/// All runs of both at once: each has a relay of its own with the same
/// properties, and the n-th of both the same seed.
async fn loss(plan: &Plan, report: &mut Report, cell: &Cell) -> Result<()> {
    let network = Network::start()?;
    let (ours, theirs) = tokio::try_join!(
        cell.pilot(&network, plan.quick),
        cell.other(&network, QUINN, plan.quick)
    )?;
    let count = ours.len();
    let mut lanes: Vec<_> = ours.into_iter().chain(theirs).collect();
    let runs = together(&mut lanes).await?;
    let (ours, theirs) = runs.split_at(count);
    let [ratio_row, their_row, our_row] = names(cell);
    for (ours, theirs) in ours.iter().zip(theirs) {
        report.add(&our_row, "ratio", ours.goodput());
        report.add(&their_row, "ratio", theirs.goodput());
        report.add(&ratio_row, "ratio", ours.goodput() / theirs.goodput());
        report.series.add(&our_row, &ours.received);
        report.series.add(&their_row, &theirs.received);
    }
    Ok(())
}
