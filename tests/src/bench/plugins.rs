//! Plugins and scripts: what a call costs, what a stream through one loses, and
//! how fast rules and sinks are.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use pilot_host::journal::{Journal, JournalLimits, SinkSettings};
use pilot_plugin::{JoinRequest, Verdict};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::process_platform::Alone;
use super::receiver::Receiver;
use super::report::Report;
use super::rows::{MIB, Plan, RUNS, figure, finish, rate, this_program};
use crate::harness::{self, Daemon, Network, establish_trust, eventually};

/// The rows of this file.
pub(super) const ROWS: [&str; 9] = [
    "plugin.call",
    "plugin.read",
    "plugin.load",
    "plugin.echo",
    "plugin.echo.vs_native",
    "lua.echo",
    "lua.validate",
    "webhook.deliver",
    "nameserver.query",
];

/// Port of the script that sends back what it gets.
const LUA_PORT: u64 = 2007;

/// Runs those that are wanted.
pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    if plan.wants(&["plugin.call", "plugin.read", "plugin.load"]) {
        calls(plan, report)?;
    }
    let daemons = ["plugin.echo", "plugin.echo.vs_native", "lua.echo", "nameserver.query"];
    if plan.wants(&daemons) {
        streams(plan, report).await?;
    }
    if plan.wants(&["lua.validate"]) {
        rules(plan, report).await?;
    }
    if plan.wants(&["webhook.deliver"]) {
        webhooks(plan, report).await?;
    }
    Ok(())
}

/// A shared library of this build.
fn library(name: &str) -> Result<PathBuf> {
    let folder = std::env::current_exe()?;
    let folder = folder.parent().context("this program lies in no folder")?;
    let file = folder.join(format!("libpilot_plugin_{}.so", name.replace('-', "_")));
    ensure!(file.is_file(), "{} is missing; build the workspace first", file.display());
    Ok(file)
}

fn calls(plan: &Plan, report: &mut Report) -> Result<()> {
    let echo = library("echo")?;
    for run in 0..RUNS {
        let rounds = u32::try_from(plan.size(5_000_000))?;
        let time = pilot_host::time_events(&echo, Alone::context("echo"), rounds);
        let time = time.map_err(anyhow::Error::msg)?;
        report.add("plugin.call", "ns", time.call.as_nanos() as f64);
        report.add("plugin.read", "ns", time.read.as_nanos() as f64);
        // A path of its own each time, as a file that is loaded is not again.
        let copy =
            std::env::temp_dir().join(format!("pilot-bench-{}-{run}.so", std::process::id()));
        fs::copy(&echo, &copy)?;
        let begun = Instant::now();
        let backend = pilot_host::open_native(&copy)?;
        let instance = backend.start(&json!({}), Alone::context("echo"))?;
        report.add("plugin.load", "ms", begun.elapsed().as_secs_f64() * 1e3);
        drop(instance);
        fs::remove_file(copy)?;
    }
    Ok(())
}

/// One node asks, one answers with plugins, one with an echo compiled in.
async fn streams(plan: &Plan, report: &mut Report) -> Result<()> {
    eprintln!("starting three daemons");
    let network = Network::start()?;
    let start = |name: &str, program: &str| {
        let mut options = network.options(name).program(program);
        let own = plan.settings.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for (key, value) in harness::LIFTED.into_iter().chain(own) {
            options = options.set(key, value);
        }
        Daemon::start(network.folder(), options)
    };
    let asks = start("asks", "pilot-daemon")?;
    let answers = start("answers", "pilot-daemon")?;
    let native = start("native", "native-echo-daemon")?;
    for daemon in [&asks, &answers, &native] {
        daemon.joined().await?;
    }
    establish_trust(&asks, &answers).await?;
    establish_trust(&asks, &native).await?;
    let scripts = answers.home.join("scripts");
    fs::create_dir_all(&scripts)?;
    fs::write(scripts.join("reflect.lua"), REFLECT)?;
    let client = asks.client().await?;
    let (plugins, compiled) = (answers.address().await?, native.address().await?);
    eventually("the script answers", async || {
        client.dial(&format!("{plugins}:{LUA_PORT}")).await.ok()
    })
    .await?;
    let workload = |address: &str, name: &str, numbers: &[u64]| -> Result<Value> {
        let socket = asks.socket.to_str().context("socket path is not UTF-8")?;
        let mut command: Command = this_program()?;
        command.args(["role", "client", "pilot", socket, &format!("{address}:0"), name]);
        command.args(numbers.iter().map(u64::to_string));
        finish(name, command).with_context(|| format!("it said: {}", answers.process.log_tail()))
    };
    let bytes = plan.size(256 * MIB);
    for _ in 0..RUNS {
        if plan.wants(&["plugin.echo", "plugin.echo.vs_native"]) {
            let ours = rate(&workload(&plugins, "echo", &[bytes, 7])?)?;
            let theirs = rate(&workload(&compiled, "echo", &[bytes, 7])?)?;
            report.add("plugin.echo", "MB/s", ours);
            report.add("plugin.echo.vs_native", "ratio", ours / theirs);
        }
        if plan.wants(&["lua.echo"]) {
            report.add("lua.echo", "MB/s", rate(&workload(&plugins, "echo", &[bytes, LUA_PORT])?)?);
        }
        if plan.wants(&["nameserver.query"]) {
            let done = workload(&plugins, "queries", &[plan.size(1_000_000)])?;
            report.add("nameserver.query", "per second", figure(&done, "per_s")?);
        }
    }
    Ok(())
}

const REFLECT: &str = r#"
return {
  kind = "service",
  port = 2007,
  serve = function(stream)
    while true do
      local data = stream:read()
      if not data then return end
      stream:write(data)
    end
  end,
}
"#;

/// A rule in Lua, asked by many at once.
async fn rules(plan: &Plan, report: &mut Report) -> Result<()> {
    const SOURCE: &str = r#"
return {
  kind = "rule",
  validate = function(request)
    if request.proof == "open sesame" and #request.tags < 8 then return true end
    return false, "wrong word"
  end,
}
"#;
    /// Questions under way at a time.
    const AT_ONCE: u64 = 512;
    let backend =
        pilot_host::open_lua_source("gate", SOURCE.as_bytes()).map_err(|e| anyhow!("{e}"))?;
    let instance = backend.start(&json!({}), Alone::context("gate"))?;
    let request = JoinRequest {
        rule: "gate".into(),
        network: 3,
        network_name: "lab".into(),
        node: NodeId(77),
        address: Address::backbone(NodeId(77)),
        public_key: "a2V5".into(),
        owner: "somebody".into(),
        hostname: "far".into(),
        tags: vec!["worker".into()],
        proof: json!("open sesame"),
        source: "127.0.0.1".into(),
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: 1,
    };
    for _ in 0..RUNS {
        let each = plan.size(400_000) / AT_ONCE;
        let begun = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (instance, request) = (Arc::clone(&instance), request.clone());
            asking.spawn(async move {
                for _ in 0..each {
                    let verdict = instance.validate(request.clone()).await;
                    ensure!(verdict == Ok(Verdict::allow()), "the rule said {verdict:?}");
                }
                Ok(())
            });
        }
        while let Some(done) = asking.join_next().await {
            done??;
        }
        let asked = (each * AT_ONCE) as f64;
        report.add("lua.validate", "per second", asked / begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Events from the journal through the webhook sink to a receiver on loopback.
async fn webhooks(plan: &Plan, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let receiver = Receiver::start().await?;
    let backend = pilot_host::open_native(&library("sink-webhook")?)?;
    let config = json!({ "url": receiver.url(), "mode": "batch" });
    let instance = backend.start(&config, Alone::context("sink-webhook"))?;
    let (journal, _) = Journal::open(folder.path(), JournalLimits::default())?;
    let sink = backend.manifest().sinks.first().context("the plugin has no sink")?.name.clone();
    let deliver = { Arc::clone(&instance) };
    let deliver: pilot_host::Deliver = Arc::new(move |batch| deliver.deliver(batch));
    let settings = SinkSettings { batch: 1000, ..SinkSettings::default() };
    let attached = journal.attach(&sink, settings, deliver)?;
    for _ in 0..RUNS {
        let events = plan.size(100_000);
        let before = attached.status().delivered;
        let begun = Instant::now();
        for number in 0..events {
            journal.emit(pilot_host::events::Happening::DataDatagram {
                src_addr: Address::backbone(NodeId(77)),
                src_port: 40_000,
                dst_port: 5001,
                size: number,
            });
            if number % 1000 == 999 {
                // As fast as the disk takes them, so that none is dropped.
                journal.flushed().await?;
            }
        }
        let until = Instant::now() + Duration::from_secs(120);
        while attached.status().delivered < before + events {
            let status = attached.status();
            ensure!(Instant::now() < until, "the sink stands still: {status:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let rate = events as f64 / begun.elapsed().as_secs_f64();
        report.add("webhook.deliver", "per second", rate);
    }
    ensure!(receiver.events() >= attached.status().delivered, "events were lost on the way");
    Ok(())
}
