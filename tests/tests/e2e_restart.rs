//! Things that end and come back: daemons, the registry, in the middle of work.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{
    Daemon, EchoApp, Network, Process, command, drain_prefix, establish_trust, eventually, pour,
    round_trip,
};
use pilot_wire::NodeId;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// How long an ending may take to be noticed at the other side.
const NOTICE: Duration = Duration::from_secs(30);

/// A UDP port that is free now, for a daemon that must be found again where it
/// was.
fn free_udp_port() -> Result<String> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Dials until it works and moves a little data both ways.
async fn works(from: &Daemon, to: &str, seed: u64) -> Result<()> {
    let client = from.client().await?;
    let mut last = String::new();
    let dialled = eventually("a stream to open", async || match client.dial(to).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            last = e.to_string();
            None
        }
    });
    let stream = dialled.await.with_context(|| {
        format!("round {seed}, last {last:?}; {} says:\n{}", from.name, from.process.log_tail())
    })?;
    timeout(NOTICE, round_trip(stream, seed, 300_000)).await.context("a round trip hangs")?
}

async fn registry_state(daemon: &Daemon) -> Option<String> {
    let info = daemon.info().await.ok()?;
    info["registry"]["state"].as_str().map(str::to_owned)
}

async fn until_registry(daemon: &Daemon, up: bool) -> Result<()> {
    let what = format!("{} to see the registry {}", daemon.name, if up { "up" } else { "down" });
    eventually(&what, async || {
        let state = registry_state(daemon).await?;
        ((state == "up") == up).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_comes_back_under_its_address() -> Result<()> {
    let network = Network::start()?;
    let (a, mut b) = network.pair().await?;
    let (address, node) = (b.address().await?, b.node().await?);
    let target = format!("{address}:7");
    works(&a, &target, 1).await?;

    // Orderly, then killed: nothing of it is left at the peer's side either.
    b.stop()?;
    ensure!(!b.socket.exists(), "the socket file is left behind");
    b.start_again()?;
    ensure!(b.joined().await? == node, "another node number");
    ensure!(b.address().await? == address, "another address");
    works(&a, &target, 2).await?;

    b.process.kill();
    ensure!(b.socket.exists(), "a killed daemon cannot have removed its socket");
    b.start_again()?;
    ensure!(b.joined().await? == node, "another node number after a kill");
    works(&a, &target, 3).await?;
    // And the other way round: it remembers whom it trusts.
    works(&b, &format!("{}:7", a.address().await?), 4).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_when_the_peer_is_killed() -> Result<()> {
    let network = Network::start()?;
    let (a, mut b) = network.pair_with(&[("idle-timeout", "5s")]).await?;
    let server = b.client().await?;
    let listener = server.listen(5000).await?;
    let client = a.client().await?;
    let mut stream = client.dial(&format!("{}:5000", b.address().await?)).await?;
    let (_held, _) = listener.accept().await?;
    b.process.kill();
    let (_, _, end) = timeout(NOTICE, drain_prefix(&mut stream, 1))
        .await
        .context("the stream to a killed peer stays open")?;
    ensure!(end.is_err(), "a killed peer looks like an orderly end");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_is_killed_under_load() -> Result<()> {
    let mut network = Network::start()?;
    let (a, b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let server = b.client().await?;
    let _echo = EchoApp::start(&server, 5000).await?;
    let target = format!("{}:5000", b.address().await?);
    let client = a.client().await?;

    for round in 0..3 {
        // A name that is acknowledged just before the kill must survive it.
        let name = format!("round-{round}");
        server.set_hostname(&name).await?;
        let stream = client.dial(&target).await?;
        let transfer = tokio::spawn(round_trip(stream, round, 24 << 20));
        network.kill_registry();
        // Neither running nor new streams to a known peer need the registry.
        works(&a, &target, 100 + round).await.context("without a registry")?;
        until_registry(&a, false).await?;
        network.restart_registry()?;
        timeout(Duration::from_secs(60), transfer).await.context("the transfer hangs")???;
        until_registry(&a, true).await?;
        until_registry(&b, true).await?;
        let found = eventually("the name", async || client.resolve(&name).await.ok()).await?;
        ensure!(found.node_id == node_b, "{found:?}");
    }
    ensure!(a.node().await? == node_a && b.node().await? == node_b, "a node number changed");
    // Somebody new joins and gets a number of its own.
    let c = network.daemon("agent-c").await?;
    let node_c = c.node().await?;
    ensure!(node_c != node_a && node_c != node_b, "a node number was given twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_know_each_other_start_without_a_registry() -> Result<()> {
    let mut network = Network::start()?;
    let fixed = |name: &str| -> Result<Daemon> {
        let options = network.options(name).set("listen", &free_udp_port()?);
        Daemon::start(network.folder(), options)
    };
    let (mut a, mut b) = (fixed("agent-a")?, fixed("agent-b")?);
    let (node_a, node_b): (NodeId, NodeId) = (a.joined().await?, b.joined().await?);
    establish_trust(&a, &b).await?;
    let target = format!("{}:7", b.address().await?);
    works(&a, &target, 1).await?;

    a.stop()?;
    b.stop()?;
    network.kill_registry();
    a.start_again()?;
    b.start_again()?;
    ensure!(a.node().await? == node_a && b.node().await? == node_b, "numbers are forgotten");
    until_registry(&a, false).await?;
    works(&a, &target, 2).await.context("without a registry")?;
    works(&b, &format!("{}:7", a.address().await?), 3).await.context("without a registry")?;

    network.restart_registry()?;
    until_registry(&a, true).await?;
    ensure!(a.joined().await? == node_a, "another number after joining");
    ensure!(b.joined().await? == node_b, "another number after joining");
    works(&a, &target, 4).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_daemon_waits_for_the_registry() -> Result<()> {
    let mut network = Network::start()?;
    network.kill_registry();
    let a = Daemon::start(network.folder(), network.options("agent-a"))?;
    ensure!(a.process.ready()["registry"] == "unreachable", "{}", a.process.ready());
    let info = a.info().await?;
    ensure!(info["registry"]["state"] != "up", "{info}");
    let refused = a.client().await?.dial("0:0000.0000.0001:7").await;
    ensure!(refused.is_err(), "a daemon without an address has dialled");
    let why = a.pilotctl_error(&["find", "anybody"])?;
    ensure!(why["message"].as_str().is_some_and(|m| !m.is_empty()), "{why}");

    network.restart_registry()?;
    a.joined().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_arrives_although_the_daemon_is_told_to_end() -> Result<()> {
    const LEN: u64 = 48 << 20;
    let network = Network::start()?;
    let (mut a, b) = network.pair().await?;
    let server = b.client().await?;
    let listener = server.listen(5000).await?;
    let client = a.client().await?;
    let mut stream = client.dial(&format!("{}:5000", b.address().await?)).await?;
    let (mut arriving, _) = listener.accept().await?;
    let reader = tokio::spawn(async move { drain_prefix(&mut arriving, 1).await });
    pour(&mut stream, 1, LEN).await?;
    stream.shutdown().await?;
    a.process.signal(Signal::TERM);
    let (len, intact, end) = timeout(NOTICE, reader).await.context("the reader hangs")??;
    ensure!(intact, "the content differs after {len} bytes");
    end.with_context(|| format!("no clean end, {len} of {LEN} bytes: {}", a.process.log_tail()))?;
    ensure!(len == LEN, "{len} of {LEN} bytes, then a clean end");
    let status = a.process.wait(NOTICE)?;
    ensure!(status.success(), "the daemon ended with {status}");
    Ok(())
}

/// Ends one of the daemons while an application writes without pause. Returns
/// what the application wrote and what the other one got.
async fn end_in_mid_transfer(of_the_sender: bool) -> Result<()> {
    let network = Network::start()?;
    let (mut a, mut b) = network.pair().await?;
    let server = b.client().await?;
    let listener = server.listen(5000).await?;
    let client = a.client().await?;
    let mut stream = client.dial(&format!("{}:5000", b.address().await?)).await?;
    let (mut arriving, _) = listener.accept().await?;
    let (started, has_started) = tokio::sync::oneshot::channel();
    let reader = tokio::spawn(async move {
        let mut first = [0; 1 << 16];
        let read = tokio::io::AsyncReadExt::read_exact(&mut arriving, &mut first).await;
        let _ = started.send(());
        read.map_err(anyhow::Error::from)?;
        anyhow::Ok((first, arriving))
    });
    // Far more than fits before the daemon is told to end.
    let writer = tokio::spawn(async move {
        let outcome = pour(&mut stream, 1, 64 << 30).await;
        (outcome, stream)
    });
    has_started.await?;
    let (first, mut arriving) = reader.await??;
    let ending = if of_the_sender { &mut a } else { &mut b };
    ending.process.signal(Signal::TERM);

    let (outcome, _stream) =
        timeout(NOTICE, writer).await.context("the writer is not told of the end")??;
    ensure!(outcome.is_err(), "64 GiB cannot have been written");
    let mut whole = first.chain_with(&mut arriving);
    let (len, intact, _end) =
        timeout(NOTICE, drain_prefix(&mut whole, 1)).await.context("the reader hangs")?;
    ensure!(intact, "what arrived is not what was written, from byte {len} on");
    ensure!(len >= 1 << 16, "bytes that had arrived are gone");
    let ending = if of_the_sender { &mut a } else { &mut b };
    let status = ending.process.wait(NOTICE)?;
    ensure!(status.success(), "the daemon ended with {status}: {}", ending.process.log_tail());
    ensure!(!ending.socket.exists(), "the socket file is left behind");
    Ok(())
}

/// Bytes already read, put back in front.
trait ChainWith {
    fn chain_with<R: tokio::io::AsyncRead>(&self, rest: R) -> tokio::io::Chain<&[u8], R>;
}

impl<const N: usize> ChainWith for [u8; N] {
    fn chain_with<R: tokio::io::AsyncRead>(&self, rest: R) -> tokio::io::Chain<&[u8], R> {
        tokio::io::AsyncReadExt::chain(&self[..], rest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sending_daemon_ends_in_mid_transfer() -> Result<()> {
    end_in_mid_transfer(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiving_daemon_ends_in_mid_transfer() -> Result<()> {
    end_in_mid_transfer(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_of_a_living_daemon_is_not_taken() -> Result<()> {
    let network = Network::start()?;
    let a = network.daemon("agent-a").await?;
    let home = network.folder().join("intruder");
    std::fs::create_dir(&home)?;
    let mut intruder = command("pilot-daemon")?;
    intruder.env("PILOT_HOME", &home).args(["-registry", network.registry_addr()]);
    intruder.args(["-listen", "127.0.0.1:0", "-socket"]).arg(&a.socket);
    let done = pilot_tests::harness::run("intruder", intruder, NOTICE)?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    let socket = a.socket.to_str().context("path")?;
    ensure!(done.stderr.contains(socket), "the socket is not named: {}", done.stderr);
    a.info().await.context("the living daemon lost its socket")?;
    Ok(())
}

#[test]
fn every_program_ends_on_sigterm_and_sigint() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("pilot-").tempdir()?;
    for signal in [Signal::TERM, Signal::INT] {
        for (name, args) in [
            ("pilot-registry", ["-addr", "127.0.0.1:0", "-log-level", "info"]),
            ("pilot-beacon", ["-addr", "127.0.0.1:0", "-log-level", "info"]),
            ("pilot-rendezvous", ["-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0"]),
        ] {
            let mut program = command(name)?;
            program.args(args);
            let log = folder.path().join(name);
            let mut program = Process::start(name, program, &log)?;
            program.signal(signal);
            let status = program.wait(Duration::from_secs(10))?;
            ensure!(status.success(), "{name} ended with {status}: {}", program.log_tail());
        }
    }
    Ok(())
}
