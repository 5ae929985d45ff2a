//! `pilotctl fleet` against a real registry: what it says it did is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Network, Process, RegistryOptions, eventually};
use pilot_wire::NodeId;
use pilot_wire::registry::{FrameBuffer, Lookup, Request, parse_reply};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NODES: u64 = 200;

fn phase<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let phase = &report["phases"][name];
    ensure!(phase.is_object(), "no phase {name} in {report}");
    ensure!(phase["refused"] == 0, "{name} was refused: {phase}");
    Ok(phase)
}

async fn lookup(network: &Network, node: u32) -> Result<Lookup> {
    let mut stream = TcpStream::connect(network.registry_addr()).await?;
    let mut frame = Vec::new();
    Request::Lookup { node_id: NodeId(node) }.append_to(&mut frame)?;
    stream.write_all(&frame).await?;
    let mut frames = FrameBuffer::new();
    loop {
        if let Some(body) = frames.next_body()? {
            return Ok(parse_reply(body)?);
        }
        ensure!(stream.read_buf(frames.space(4096)).await? > 0, "the registry hung up");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_does_what_it_reports() -> Result<()> {
    let network = Network::start_with(RegistryOptions::new().with_admin())?;
    let report = network.pilotctl(&[
        "fleet",
        "--nodes",
        "200",
        "--connections",
        "4",
        "--trust-pairs",
        "50",
        "--networks",
        "2",
        "--members",
        "20",
        "--watchers",
        "30",
        "--heartbeats",
        "500ms",
        "--keep",
    ])?;
    ensure!(phase(&report, "register")?["requests"] == NODES, "{report}");
    ensure!(phase(&report, "trust")?["requests"] == 100, "each side states it: {report}");
    ensure!(phase(&report, "join")?["requests"] == 40, "{report}");
    ensure!(phase(&report, "session")?["requests"] == 30, "{report}");
    let beats = phase(&report, "heartbeat")?["requests"].as_u64().context("a number")?;
    ensure!(beats > 0, "{report}");
    let watchers = &report["watchers"];
    ensure!(watchers["opened"] == 30 && watchers["lost"] == 0, "{watchers}");
    // The first 30 nodes have sessions, and pairs are of neighbours: the first
    // of them has one watched side, the others two.
    let told = watchers["news"]["trust"].as_u64().context("no news of trust")?;
    ensure!(told >= 30, "{watchers}");

    let list = network.pilotctl(&["network", "list"])?;
    let networks = report["networks"].as_array().context("no networks")?;
    for id in networks {
        let all = list["networks"].as_array().context("no networks")?;
        let found = all.iter().find(|n| n["id"] == *id).context("not there")?;
        ensure!(found["members"] == 20, "{found}");
    }
    let members = network.pilotctl(&["network", "members", &networks[1].to_string()])?;
    let member = &members["members"][0]["node_id"];
    let member = u32::try_from(member.as_u64().context("no member")?)?;
    let known = lookup(&network, member).await?;
    ensure!(known.networks.len() == 2, "the backbone and one network: {known:?}");

    // The same seed is the same fleet; without --keep it takes itself out.
    let again = network.pilotctl(&["fleet", "--nodes", "200", "--networks", "2"])?;
    ensure!(again["networks"] == report["networks"], "{again}");
    ensure!(phase(&again, "deregister")?["requests"] == NODES, "{again}");
    ensure!(lookup(&network, member).await.is_err(), "node {member} is still there");
    let list = network.pilotctl(&["network", "list"])?;
    let left = list["networks"].as_array().context("no networks")?;
    ensure!(left.iter().all(|n| n["id"] == 0), "{list}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_holds_reports_first() -> Result<()> {
    let network = Network::start_with(RegistryOptions::new().with_admin())?;
    let command =
        network.admin_command(&["fleet", "--nodes", "20", "--watchers", "10", "--hold"])?;
    let log = network.folder().join("fleet.log");
    let mut fleet = Process::start("fleet", command, &log)?;
    lookup(&network, 1).await?;
    let status = fleet.terminate(Duration::from_secs(20))?;
    ensure!(status.success(), "{status}: {}", fleet.log_tail());
    eventually("the fleet to have left", async || lookup(&network, 1).await.is_err().then_some(()))
        .await
}

#[test]
fn a_registry_that_throttles_is_named() -> Result<()> {
    let network = Network::start_with(RegistryOptions::new().set("register-rate", "10"))?;
    let error = network.pilotctl_error(&["fleet", "--nodes", "200"])?;
    ensure!(error["reason"] == "rate_limited", "{error}");
    let hint = error["hint"].as_str().context("no hint")?;
    ensure!(hint.contains("-register-rate 0"), "{error}");
    Ok(())
}

#[test]
fn a_fleet_with_proofs_registers() -> Result<()> {
    let network = Network::start()?;
    let args = ["fleet", "--nodes", "50", "--proof", "--rate", "500"];
    let report = network.pilotctl(&args)?;
    let register = phase(&report, "register")?;
    ensure!(register["requests"] == 50, "{report}");
    let seconds = register["seconds"].as_f64().context("a number")?;
    // The last of 50 is due after 49 of 500 parts of a second.
    ensure!(seconds >= 0.097, "faster than asked for: {register}");
    Ok(())
}
