//! The driver socket with a client that knows only the published messages.

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network, Pattern, eventually};
use pilot_tests::peer::driver::{PublishedDriver, code};
use pilot_wire::Address;
use serde_json::{Value, json};

use super::{PORT, within};

async fn drivers(a: &Daemon, b: &Daemon) -> Result<(PublishedDriver, PublishedDriver)> {
    Ok((PublishedDriver::connect(&a.socket).await?, PublishedDriver::connect(&b.socket).await?))
}

/// A request that must fail; its text without `daemon: `.
async fn error(driver: &PublishedDriver, code: u8, payload: &[u8]) -> Result<String> {
    let reply = within("an error", driver.request(code, payload)).await?;
    let Err(error) = reply else { anyhow::bail!("0x{code:02X} {payload:?} succeeded") };
    let text = error.to_string();
    Ok(text.strip_prefix("daemon: ").with_context(|| text.clone())?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_commands_get_the_published_texts() -> Result<()> {
    let network = Network::start()?;
    let daemon = network.daemon("agent-a").await?;
    let driver = PublishedDriver::connect(&daemon.socket).await?;
    for (code, payload, text) in [
        (code::BIND, &[0x13][..], "bind: missing port"),
        (code::DIAL, &[0], "dial: missing address/port"),
        (code::SEND, &[], "send: missing conn_id"),
        (code::CLOSE, &[0, 0], "close: missing conn_id"),
        (code::SEND_DATAGRAM, &[0], "sendto: missing address/port"),
        (code::RESOLVE_HOSTNAME, &[], "resolve_hostname: missing hostname"),
        (code::SET_VISIBILITY, &[], "set_visibility: missing value"),
        (code::SET_TASK_EXEC, &[], "set_task_exec: missing value"),
        (code::SET_TAGS, br#"["a","b","c","d"]"#, "set_tags: maximum 3 tags allowed"),
        (code::HANDSHAKE, &[], "handshake: missing sub-command"),
        (code::HANDSHAKE, &[0x77], "handshake: unknown sub-command 0x77"),
        (code::HANDSHAKE, &[1, 0], "handshake request: missing node_id"),
        (code::HANDSHAKE, &[2], "handshake approve: missing node_id"),
        (code::HANDSHAKE, &[3], "handshake reject: missing node_id"),
        (code::HANDSHAKE, &[6], "handshake revoke: missing node_id"),
        (0x55, &[], "unknown command: 0x55"),
    ] {
        ensure!(error(&driver, code, payload).await? == text, "0x{code:02X}: not {text:?}");
    }
    let tags = error(&driver, code::SET_TAGS, b"nope").await?;
    ensure!(tags.starts_with("set_tags: invalid JSON"), "{tags}");
    let revoke = error(&driver, code::HANDSHAKE, &[6, 0, 0, 0, 77]).await?;
    ensure!(revoke.contains("node 77 was not trusted"), "{revoke}");
    // An empty message is ignored, a closed connection unknown to nobody.
    driver.raw(&[0, 0, 0, 0]).await?;
    driver.close(999).await?;
    within("the notice", driver.closed(999, 1)).await??;
    driver.send(999, b"x").await?;
    let stray = within("the error of a send", driver.stray_error()).await??;
    ensure!(stray == "connection 999 not found", "{stray}");
    let broadcast = Address { network: 0, node: pilot_wire::NodeId::BROADCAST };
    driver.send_datagram(broadcast, PORT, b"x").await?;
    let stray = within("the error of a datagram", driver.stray_error()).await??;
    ensure!(stray.starts_with("sendto: "), "{stray}");
    ensure!(driver.info().await?["node_id"].as_u64() > Some(0), "it still serves");
    ensure!(driver.unclaimed().is_empty(), "{:?}", driver.unclaimed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_state_have_the_published_shapes() -> Result<()> {
    let network = Network::start()?;
    let daemon = network.daemon("agent-a").await?;
    let driver = PublishedDriver::connect(&daemon.socket).await?;
    let info = driver.info().await?;
    let published = pilot_wire_capture_keys()?;
    for key in &published {
        ensure!(!info[key].is_null(), "info has no {key}: {info}");
    }
    let node = info["node_id"].clone();
    let found = driver.json(code::RESOLVE_HOSTNAME, b"agent-a").await?;
    ensure!(found["type"] == "resolve_hostname_ok" && found["node_id"] == node, "{found}");
    ensure!(found["address"] == info["address"] && found["hostname"] == "agent-a", "{found}");
    let unknown = error(&driver, code::RESOLVE_HOSTNAME, b"nobody").await?;
    ensure!(unknown.starts_with("resolve_hostname: "), "{unknown}");

    let set = driver.json(code::SET_HOSTNAME, b"alice-agent").await?;
    ensure!(set["type"] == "set_hostname_ok" && set["hostname"] == "alice-agent", "{set}");
    ensure!(driver.info().await?["hostname"] == "alice-agent");
    let bad = error(&driver, code::SET_HOSTNAME, b"Bad_Name").await?;
    ensure!(bad.starts_with("set_hostname: "), "{bad}");
    let cleared = driver.json(code::SET_HOSTNAME, b"").await?;
    ensure!(cleared["hostname"] == "", "{cleared}");

    for (byte, text) in [(1, "public"), (0, "private")] {
        let set = driver.json(code::SET_VISIBILITY, &[byte]).await?;
        ensure!(set["type"] == "set_visibility_ok" && set["visibility"] == text, "{set}");
    }
    let tags = driver.json(code::SET_TAGS, br##"["web","#gpu"]"##).await?;
    ensure!(tags["type"] == "set_tags_ok" && tags["tags"] == json!(["web", "gpu"]), "{tags}");
    let tags = driver.json(code::SET_TAGS, b"[]").await?;
    ensure!(tags["tags"].is_null(), "{tags}");
    let task = driver.json(code::SET_TASK_EXEC, &[1]).await?;
    ensure!(task["type"] == "set_task_exec_ok" && task["task_exec"] == true, "{task}");

    ensure!(driver.handshake(4, None, "").await? == json!({"pending": []}));
    ensure!(driver.handshake(5, None, "").await? == json!({"trusted": []}));
    let approved = driver.handshake(2, Some(pilot_wire::NodeId(77)), "").await?;
    ensure!(approved["status"] == "approved" && approved["node_id"] == 77, "{approved}");
    let gone = driver.json(code::DEREGISTER, &[]).await?;
    ensure!(gone["type"] == "deregister_ok", "{gone}");
    ensure!(driver.unclaimed().is_empty(), "{:?}", driver.unclaimed());
    Ok(())
}

/// The keys of info in the capture.
fn pilot_wire_capture_keys() -> Result<Vec<String>> {
    let v: Value = serde_json::from_str(include_str!("../../vectors/ipc_live.json"))?;
    let frames = v["frames"].as_array().context("no frames")?;
    let first = frames.iter().find(|f| f["direction"] == "daemon-to-driver").context("no reply")?;
    let message = hex::decode(first["frame"].as_str().context("no frame")?)?;
    let info: Value = serde_json::from_slice(&message[5..])?;
    let keys: Vec<String> = info.as_object().context("no object")?.keys().cloned().collect();
    ensure!(keys.len() > 15, "the capture begins with something else: {keys:?}");
    Ok(keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_published_drivers_use_streams_and_datagrams() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (at_a, at_b) = drivers(&a, &b).await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let to_b = Address::backbone(node_b);
    at_b.bind(PORT).await?;
    let twice = error(&at_b, code::BIND, &PORT.to_be_bytes()).await?;
    ensure!(twice == format!("port {PORT} already bound"), "{twice}");
    let nobody = [&to_b.to_bytes()[..], &9999u16.to_be_bytes()].concat();
    ensure!(error(&at_a, code::DIAL, &nobody).await? == "connection refused");
    let unknown = [&Address::backbone(pilot_wire::NodeId(4444)).to_bytes()[..], &[0, 7]].concat();
    let text = error(&at_a, code::DIAL, &unknown).await?;
    ensure!(text.starts_with("resolve node 4444"), "{text}");

    let near = within("the dial", at_a.dial(to_b, PORT)).await??;
    let accepted = within("the accept", at_b.accept()).await??;
    ensure!(accepted.local_port == PORT && accepted.remote.address.node == node_a, "{accepted:?}");
    let far = accepted.connection;
    let (out, back) = (Pattern::new(1).bytes(3 << 20), Pattern::new(2).bytes(3 << 20));
    let (sent, received, answered, answer) = within("the exchange", async {
        tokio::join!(
            at_a.send(near, &out),
            at_b.receive_exact(far, out.len()),
            at_b.send(far, &back),
            at_a.receive_exact(near, back.len()),
        )
    })
    .await?;
    sent?;
    answered?;
    ensure!(received? == out && answer? == back, "data differs");

    let info = at_a.info().await?;
    let connection = info["conn_list"]
        .as_array()
        .and_then(|l| l.iter().find(|c| c["id"] == near))
        .with_context(|| format!("connection {near} is not in {info}"))?;
    ensure!(connection["state"] == "ESTABLISHED" && connection["remote_port"] == PORT);

    let datagram = eventually("a datagram", async || {
        at_a.send_datagram(to_b, PORT + 1, b"dg!").await.ok()?;
        let wait = std::time::Duration::from_millis(300);
        tokio::time::timeout(wait, at_b.datagram(PORT + 1)).await.ok()?.ok()
    })
    .await?;
    ensure!(datagram.data == b"dg!" && datagram.source.address.node == node_a, "{datagram:?}");

    // Two notices at the one who closes, one at the other.
    at_b.close(far).await?;
    within("the notices at b", at_b.closed(far, 2)).await??;
    within("the notice at a", at_a.closed(near, 1)).await??;
    at_a.send(near, b"x").await?;
    let stray = within("the error of a late send", at_a.stray_error()).await??;
    ensure!(stray.starts_with("send: ") || stray.contains("not found"), "{stray}");
    for driver in [&at_a, &at_b] {
        ensure!(driver.unclaimed().is_empty(), "{:?}", driver.unclaimed());
    }
    Ok(())
}

/// What a published driver leaves behind when it goes: its streams end and its
/// ports are free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_disconnects_frees_its_ports_and_ends_its_streams() -> Result<()> {
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (at_a, at_b) = drivers(&a, &b).await?;
    let to_b = Address::backbone(b.node().await?);
    at_b.bind(PORT).await?;
    let near = within("the dial", at_a.dial(to_b, PORT)).await??;
    within("the accept", at_b.accept()).await??;
    drop(at_b);
    within("the notice", at_a.closed(near, 1)).await??;
    let again = PublishedDriver::connect(&b.socket).await?;
    eventually("the port to be free", async || again.bind(PORT).await.ok()).await?;
    let near = within("the dial", at_a.dial(to_b, PORT)).await??;
    at_a.send(near, b"anew").await?;
    let accepted = within("the accept", again.accept()).await??;
    ensure!(within("data", again.receive_exact(accepted.connection, 4)).await?? == b"anew");
    Ok(())
}

/// A published driver that does not read gets no more than a bound, and the
/// daemon goes on serving others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_driver_that_does_not_read_stops_only_itself() -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let network = Network::start()?;
    let (a, b) = network.pair().await?;
    let mut mute = tokio::net::UnixStream::connect(&b.socket).await?;
    mute.write_all(&[0, 0, 0, 3, code::BIND, (PORT >> 8) as u8, PORT as u8]).await?;
    let to_b = Address::backbone(b.node().await?);
    let at_a = PublishedDriver::connect(&a.socket).await?;
    let near =
        eventually("the port to be bound", async || at_a.dial(to_b, PORT).await.ok()).await?;
    // More than every buffer on the way; the send does not come to its end.
    let flood = vec![7; 64 << 20];
    tokio::select! {
        sent = at_a.send(near, &flood) => anyhow::bail!("64 MiB went somewhere: {sent:?}"),
        served = async {
            for _ in 0..20 {
                let other = PublishedDriver::connect(&b.socket).await?;
                within("another driver to be served", other.info()).await??;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        } => served?,
    }
    drop(mute);
    Ok(())
}
