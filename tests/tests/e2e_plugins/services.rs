//! The services that ship with Pilot, between two daemons, as `pilotctl` and
//! streams reach them.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network, Process, eventually};
use serde_json::{Value, json};

use crate::{NOTICE, Pair, ask, exchange};

/// What runs by default, and where.
const SHIPPED: [(&str, u16); 9] = [
    ("control", 1),
    ("echo", 7),
    ("nameserver", 53),
    ("http", 80),
    ("secure", 443),
    ("stdio", 1000),
    ("data-exchange", 1001),
    ("event-stream", 1002),
    ("tasks", 1003),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_answer_as_they_should() -> Result<()> {
    let mut pair = Pair::start().await?;
    pair.still_serves().await?;
    let node = pair.serves.node().await?;

    // Port 1: a line, a line of JSON.
    let answer = ask(pair.open(1).await?, b"status\nPING\n").await?;
    let lines: Vec<Value> = answer
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<Result<_, _>>()?;
    ensure!(lines.len() == 2, "{lines:?}");
    ensure!(lines[0]["address"] == pair.address.as_str(), "{lines:?}");
    ensure!(lines[0]["node_id"] == node.0 && lines[1]["pong"] == true, "{lines:?}");

    // Port 80: a page and what it shows, and nothing else.
    let page = get(&pair, "/").await?;
    ensure!(page.starts_with("HTTP/1.1 200 OK") && page.contains(&pair.address), "{page}");
    let status = get(&pair, "/status.json").await?;
    let (head, body) = status.split_once("\r\n\r\n").context("no end of the head")?;
    ensure!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    let body: Value = serde_json::from_str(body)?;
    ensure!(body.to_string().contains(&pair.address), "{body}");
    ensure!(get(&pair, "/../identity.key").await?.starts_with("HTTP/1.1 4"), "a secret is served");

    // Port 1000: a line for the log, and no answer.
    let nothing = ask(pair.open(1000).await?, b"a line \x1b[31m for whoever reads it\n").await?;
    ensure!(nothing.is_empty(), "{nothing:?}");
    let file = pair.serves.home.join("stdio.log");
    let log = eventually("the line", async || {
        fs::read_to_string(&file).ok().filter(|text| text.contains("for whoever reads it"))
    });
    let (log, asks) = (log.await?, pair.asks.address().await?);
    ensure!(log.contains(&asks) && !log.contains('\x1b'), "{log:?}");

    // Port 443: through a channel that both ends have bound to the tunnel.
    let channel = ["secure", "connect", &pair.address, "--message", "hush", "--bound"];
    let said = pair.asks.pilotctl(&channel)?;
    ensure!(said["response"] == "hush" && said["bound"] == true, "{said}");

    plugins_are_listed(&pair.serves)
}

/// `pilotctl plugins`, in both forms.
fn plugins_are_listed(daemon: &Daemon) -> Result<()> {
    let data = daemon.pilotctl(&["plugins"])?;
    let list = data["plugins"].as_array().context("no list")?;
    let text = daemon.pilotctl_text(&["plugins"])?;
    for (name, port) in SHIPPED {
        let plugin = list.iter().find(|p| p["name"] == name).context(name)?;
        ensure!(plugin["state"] == "running" && plugin["generation"] == 1, "{plugin}");
        let services = plugin["provides"]["services"].as_array().context(name)?;
        ensure!(services.iter().any(|s| s["ports"] == json!([port])), "{plugin}");
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        let row = row.with_context(|| format!("no row of {name}: {text}"))?;
        ensure!(row.contains("running") && row.contains(&port.to_string()), "{row}");
    }
    ensure!(list.len() == SHIPPED.len(), "{data}");

    let echo = daemon.pilotctl(&["plugins", "echo"])?;
    let file = echo["file"].as_str().context("no file")?;
    ensure!(echo["sha256"].as_str().is_some_and(|hash| hash.len() == 64), "{echo}");
    ensure!(echo["streams_total"].as_u64() >= Some(1) && echo["errors"] == 0, "{echo}");
    ensure!(echo["isolation"] == "none" && echo["last_reload"]["result"] == "started", "{echo}");
    let text = daemon.pilotctl_text(&["plugins", "echo"])?;
    for part in ["running", file, "echo on 7", "started (start)"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    let error = daemon.pilotctl_error(&["plugins", "ehco"])?;
    ensure!(error["code"] == "not_found", "{error}");
    ensure!(error["message"].as_str().is_some_and(|m| m.contains("event-stream")), "{error}");
    Ok(())
}

async fn get(pair: &Pair, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    let mut stream = pair.open(80).await?;
    let talk = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8(answer)?)
    };
    tokio::time::timeout(NOTICE, talk).await.context("no answer")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_messages() -> Result<()> {
    let pair = Pair::start().await?;
    let (asks, serves, at) = (&pair.asks, &pair.serves, pair.address.as_str());
    let own = asks.address().await?;

    let done = asks.pilotctl(&["name-register", at, "A", "printer"])?;
    ensure!(done["address"] == own.as_str(), "{done}");
    let found = asks.pilotctl(&["resolve", at, "A", "printer"])?;
    ensure!(found["address"] == own.as_str(), "{found}");
    asks.pilotctl(&["name-register", at, "S", "printing", "0", "631"])?;
    let found = asks.pilotctl(&["resolve", at, "S", "0", "631"])?;
    let service = json!([{ "name": "printing", "address": own, "port": 631 }]);
    ensure!(found["services"] == service, "{found}");
    // A name of somebody else's address is not for us to give.
    let error = asks.pilotctl_error(&["name-register", at, "A", "thief", at])?;
    ensure!(error["reason"].as_str().is_some_and(|r| r.contains("another node")), "{error}");
    let error = asks.pilotctl_error(&["resolve", at, "A", "thief"])?;
    ensure!(error["code"] == "not_found", "{error}");
    // It answers queries of its own node's names as the registry has them.
    let found = asks.pilotctl(&["resolve", at, "A", "serves"])?;
    ensure!(found["address"] == at, "{found}");

    for (kind, text) in [("text", "hello"), ("json", "{\"n\":1}"), ("binary", "\u{1}\u{2}")] {
        let sent = asks.pilotctl(&["send-message", at, "--data", text, "--type", kind])?;
        ensure!(sent["ack"].as_str().is_some_and(|ack| ack.starts_with("ACK")), "{sent}");
    }
    let inbox = serves.pilotctl(&["inbox"])?;
    ensure!(inbox["total"] == 3, "{inbox}");
    let messages = inbox["messages"].as_array().context("no messages")?;
    ensure!(messages.iter().all(|m| m["from"] == own.as_str()), "{inbox}");
    ensure!(messages.iter().any(|m| m["data"] == "hello" && m["type"] == "TEXT"), "{inbox}");
    let cleared = serves.pilotctl(&["inbox", "--clear"])?;
    ensure!(cleared["cleared"] == 3, "{cleared}");
    ensure!(serves.pilotctl(&["inbox"])?["total"] == 0);

    // A restart keeps names.
    let mut serves = pair.serves;
    serves.stop()?;
    serves.start_again()?;
    serves.joined().await?;
    let found =
        eventually("the name", async || pair.asks.pilotctl(&["resolve", at, "A", "printer"]).ok());
    ensure!(found.await?["address"] == own.as_str());
    drop(pair.network);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_and_wildcards() -> Result<()> {
    let pair = Pair::start().await?;
    let at = pair.address.as_str();
    let subscribe = |topic: &str| pair.asks.pilotctl_command("--json", &["subscribe", at, topic]);
    let log = pair.asks.home.join("subscriber.log");
    let of_one = subscriber(&pair, subscribe("rooms.*.heat")?, &log, "rooms.probe.heat").await?;
    let of_all = subscriber(&pair, subscribe("rooms.>")?, &log, "rooms.probe").await?;
    for (topic, data) in [
        ("rooms.kitchen.heat", "20"),
        ("rooms.kitchen.light", "on"),
        ("rooms.attic.heat.max", "40"),
        ("cellar.heat", "8"),
        ("rooms.attic.heat", "31"),
    ] {
        let done = pair.asks.pilotctl(&["publish", at, topic, "--data", data])?;
        ensure!(done["bytes"] == data.len(), "{done}");
    }
    let said = heard(&of_one, "rooms.attic.heat")?;
    ensure!(
        said == [("rooms.kitchen.heat", "20"), ("rooms.attic.heat", "31")].map(owned),
        "{said:?}"
    );
    let said = heard(&of_all, "rooms.attic.heat")?;
    let expected = [
        ("rooms.kitchen.heat", "20"),
        ("rooms.kitchen.light", "on"),
        ("rooms.attic.heat.max", "40"),
        ("rooms.attic.heat", "31"),
    ];
    ensure!(said == expected.map(owned), "{said:?}");
    Ok(())
}

fn owned((topic, data): (&str, &str)) -> (String, String) {
    (topic.to_owned(), data.to_owned())
}

/// A running `pilotctl subscribe` that has shown its first event, a probe,
/// which is published until then: nothing else says that it is subscribed.
async fn subscriber(
    pair: &Pair,
    command: Command,
    log: &std::path::Path,
    probe: &str,
) -> Result<Process> {
    let log = log.to_owned();
    let start = tokio::task::spawn_blocking(move || Process::start("subscribe", command, &log));
    while !start.is_finished() {
        pair.asks.pilotctl(&["publish", &pair.address, probe, "--data", "probe"])?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.await?
}

/// Topics and data up to that of the topic `last`, without probes. Publishers
/// come one after another, each when the one before has ended.
fn heard(subscriber: &Process, last: &str) -> Result<Vec<(String, String)>> {
    let mut heard = Vec::new();
    loop {
        let line = subscriber.next_line(NOTICE).context("the subscriber hears nothing")?;
        let event: Value = serde_json::from_str(&line)?;
        let part = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        if part("data") == "probe" {
            continue;
        }
        heard.push((part("topic"), part("data")));
        if part("topic") == last {
            return Ok(heard);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_done_and_paid() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (from, to) = (a.address().await?, b.address().await?);
    let node = b.node().await?.0.to_string();
    let score = |daemon: &Daemon| -> Result<i64> {
        let found = daemon.pilotctl(&["lookup", &node])?;
        found["polo_score"].as_i64().with_context(|| format!("no polo_score in {found}"))
    };
    let before = score(&a)?;
    let asked = a.pilotctl(&["task", "submit", &to, "--task", "count the sheep"])?;
    ensure!(asked["accepted"] == true && asked["status"] == 200, "{asked}");
    let id = asked["task_id"].as_str().context("no id")?;
    let received = eventually("the task", async || {
        let list = b.pilotctl(&["task", "list", "--type", "received"]).ok()?;
        list["tasks"].as_array()?.iter().find(|t| t["task_id"] == id).cloned()
    });
    let received = received.await?;
    ensure!(received["from"] == from.as_str() && received["status"] == "NEW", "{received}");
    ensure!(b.pilotctl_error(&["task", "execute"])?["code"] == "not_found");

    b.pilotctl(&["task", "accept", "--id", id])?;
    until_task(&a, id, "ACCEPTED").await?;
    let begun = b.pilotctl(&["task", "execute"])?;
    ensure!(begun["task_description"] == "count the sheep", "{begun}");
    until_task(&a, id, "EXECUTING").await?;
    let sent = b.pilotctl(&["task", "send-results", "--id", id, "--results", "1912 sheep"])?;
    ensure!(sent["sent_to"] == from.as_str(), "{sent}");
    until_task(&a, id, "COMPLETED").await?;
    let results = fs::read_dir(a.home.join("tasks/results"))?.collect::<Result<Vec<_>, _>>()?;
    ensure!(results.len() == 1, "{results:?}");
    ensure!(fs::read_to_string(results[0].path())? == "1912 sheep");
    // Quick work is worth one.
    let paid = eventually("the polo score", async || score(&a).ok().filter(|s| *s != before));
    ensure!(paid.await? == before + 1);
    Ok(())
}

async fn until_task(daemon: &Daemon, id: &str, status: &str) -> Result<()> {
    let mut last = Value::Null;
    let waited = eventually("the task's status", async || {
        last = daemon.pilotctl(&["task", "list", "--type", "submitted"]).ok()?;
        let task = last["tasks"].as_array()?.iter().find(|t| t["task_id"] == id)?;
        (task["status"] == status).then_some(())
    });
    waited.await.with_context(|| format!("{status}: {last}\n{}", daemon.process.log_tail()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_streams_of_port_1_share_nothing() -> Result<()> {
    let pair = Pair::start().await?;
    let (mut one, mut other) = (pair.open(1).await?, pair.open(1).await?);
    let pong = "{\"pong\":true}\n";
    ensure!(exchange(&mut one, b"pi", 0).await?.is_empty());
    ensure!(exchange(&mut other, b"ping\n", pong.len()).await? == pong);
    ensure!(exchange(&mut one, b"ng\n", pong.len()).await? == pong);
    Ok(())
}
