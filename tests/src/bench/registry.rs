//! `registry.*`: what a registry carries.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::registry_push;
use super::registry_state;
use super::report::{Report, target_dir};
use super::rows::{Plan, RUNS, figure, finish, this_program};
use crate::harness::{self, Process};

/// Registrations a second while lookups are timed.
const WRITES: u64 = 10_000;
/// How long that goes on.
const WRITING: u64 = 10;
/// No fleet takes longer unless it hangs.
const FLEET_LIMIT: Duration = Duration::from_secs(120);

/// Runs the rows that are wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    load(plan, report)?;
    if plan.wants(&["registry.lookup_p99_under_writes", "registry.writes_under_lookups"]) {
        mixed(plan, report)?;
    }
    if plan.wants(&registry_state::ROWS) {
        registry_state::run(plan, report)?;
    }
    if plan.wants(&registry_push::ROWS) {
        registry_push::run(plan, report).await?;
    }
    Ok(())
}

/// A folder on the disk of the build folder: a temporary folder may be in
/// memory, where syncing costs nothing.
pub(super) fn store_folder() -> Result<TempDir> {
    let folder: PathBuf = target_dir()?.join("bench");
    std::fs::create_dir_all(&folder)?;
    Ok(tempfile::Builder::new().prefix("registry-").tempdir_in(&folder)?)
}

/// A registry with its state in `store`.
pub(super) fn start(store: &TempDir) -> Result<Process> {
    let mut server = harness::command("pilot-registry")?;
    server
        .args(["-addr", "127.0.0.1:0", "-register-rate", "0", "-store"])
        .arg(store.path().join("registry.db"));
    Process::start("pilot-registry", server, &store.path().join("registry.log"))
}

/// Requests of one kind, as fast as they are answered.
fn load(plan: &Plan, report: &mut Report) -> Result<()> {
    let rows: [(&'static str, &str, u64); 3] = [
        ("registry.register", "register", 100_000),
        ("registry.lookup", "lookup", 500_000),
        ("registry.heartbeat", "heartbeat", 200_000),
    ];
    for (row, kind, count) in rows {
        if !plan.wants(&[row]) {
            continue;
        }
        for run in 0..RUNS {
            let store = store_folder()?;
            let server = start(&store)?;
            let mut load = this_program()?;
            load.args(["role", "registry", server.ready_text("addr")?, kind])
                .args([plan.size(count), 64, 16, run as u64].map(|n| n.to_string()));
            let rate = finish(row, load)?;
            report.add(row, "1/s", figure(&rate, "per_second")?);
        }
    }
    Ok(())
}

/// Lookups while registrations come at a fixed rate. The rate that was reached
/// stands in a row of its own, for without it the first means little.
fn mixed(plan: &Plan, report: &mut Report) -> Result<()> {
    eprintln!("registry.lookup_p99_under_writes: {WRITES} registrations a second meanwhile");
    let seconds = if plan.quick { 3 } else { WRITING };
    for _ in 0..RUNS {
        let store = store_folder()?;
        let server = start(&store)?;
        let addr = server.ready_text("addr")?.to_owned();
        // Nodes to look up.
        let first = fleet(&addr, &["--nodes", "1000", "--seed", "1", "--keep"])?;
        let known = first["nodes"].as_u64().context("no nodes")?;
        let writer = {
            let addr = addr.clone();
            let nodes = (WRITES * seconds).to_string();
            let rate = WRITES.to_string();
            thread::spawn(move || {
                fleet(&addr, &["--nodes", &nodes, "--rate", &rate, "--seed", "2", "--keep"])
            })
        };
        let mut probe = this_program()?;
        // A little shorter, so that it ends while writing still goes on.
        probe.args(["role", "registry", &addr, "probe", &(seconds - 1).to_string()]);
        probe.arg(known.to_string());
        let lookups = finish("lookups", probe)?;
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        report.add("registry.lookup_p99_under_writes", "ms", figure(&lookups, "p99_ms")?);
        let register = &written["phases"]["register"];
        report.add("registry.writes_under_lookups", "1/s", figure(register, "per_second")?);
    }
    Ok(())
}

/// Runs a simulated fleet to its end; gives its report.
fn fleet(addr: &str, args: &[&str]) -> Result<Value> {
    let mut pilotctl = harness::command("pilotctl")?;
    pilotctl.env("PILOT_HOME", target_dir()?.join("bench")).env("PILOT_REGISTRY", addr);
    pilotctl.args(["--json", "fleet"]).args(args);
    let done = harness::run("fleet", pilotctl, FLEET_LIMIT)?;
    anyhow::ensure!(done.status.success(), "fleet failed: {}", done.stderr.trim());
    let mut answer: Value = serde_json::from_str(&done.stdout)?;
    Ok(answer["data"].take())
}
