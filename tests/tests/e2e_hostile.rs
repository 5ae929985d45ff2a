//! Thousands of malformed, truncated, replayed and random messages at every
//! socket of running programs, which then still serve.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{EchoApp, Network, Pattern, eventually, resident_bytes, round_trip};
use pilot_wire::beacon;
use pilot_wire::ipc::{Command, Features, HELLO_VERSION, Handshake};
use pilot_wire::registry::{PublicKey, Request};
use pilot_wire::{Address, NodeId};
use tokio::time::timeout;

/// Mutations per socket.
const ROUNDS: u64 = 4000;
/// More memory than this after an attack is a leak.
const GROWTH: u64 = 64 << 20;

/// One mutation of a message: flipped, cut, grown, spliced or replaced bytes,
/// or a length field that lies.
fn mutate(random: &mut Pattern, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = u8::try_from(random.below(256)).unwrap_or(0);
            }
            2 => bytes.truncate(at),
            3 => {
                let len = random.below(40);
                let tail = random.bytes(len);
                bytes.splice(at..at, tail);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            5 if bytes.len() >= 4 => {
                let at = random.below(bytes.len() - 3);
                let lie: [u8; 4] = match random.below(4) {
                    0 => [0; 4],
                    1 => [0xFF; 4],
                    2 => [0x7F, 0xFF, 0xFF, 0xFF],
                    _ => 1_048_577_u32.to_be_bytes(),
                };
                bytes[at..at + 4].copy_from_slice(&lie);
            }
            6 => {
                let len = random.below(1500);
                bytes = random.bytes(len);
            }
            _ => {}
        }
    }
    bytes.truncate(60_000);
    bytes
}

/// Beginnings of every kind of tunnel frame, with plausible fields for `to`.
fn tunnel_corpus(from: NodeId, random: &mut Pattern) -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for magic in [b"PILT", b"PILS", b"PILK", b"PILA", b"PILP"] {
        for len in [0, 4, 16, 40, 80, 132, 400, 1400] {
            let mut frame = magic.to_vec();
            frame.extend(from.0.to_be_bytes());
            frame.extend(random.bytes(len));
            corpus.push(frame);
        }
    }
    corpus
}

fn beacon_corpus(random: &mut Pattern) -> Result<Vec<Vec<u8>>> {
    let mut corpus: Vec<Vec<u8>> = (0..8_u8)
        .map(|kind| [vec![kind], 7_u32.to_be_bytes().to_vec(), random.bytes(24)].concat())
        .collect();
    let mut discover = Vec::new();
    beacon::Message::Discover { node: NodeId(7) }.encode(&mut discover);
    corpus.push(discover);
    Ok(corpus)
}

/// Throws datagrams at a socket, with pauses so that the kernel's queue is not
/// what drops them.
fn throw(at: SocketAddr, seed: u64, corpus: &[Vec<u8>]) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut random = Pattern::new(seed);
    for round in 0..ROUNDS {
        let bytes = mutate(&mut random, corpus);
        // Refused by the kernel (too large, queue full): the next one counts.
        let _ = socket.send_to(&bytes, at);
        if round % 32 == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_survives_thousands_of_datagrams() -> Result<()> {
    let network = Network::start()?;
    let (mut a, mut b) = network.pair().await?;
    let target = format!("{}:5000", b.address().await?);
    let server = b.client().await?;
    let _echo = EchoApp::start(&server, 5000).await?;
    let client = a.client().await?;
    // A stream that is open during all of it.
    let through = client.dial(&target).await?;
    let transfer = tokio::spawn(round_trip(through, 9, 16 << 20));
    let before = resident_bytes(b.process.pid())?;
    let (at, from) = (b.udp()?, a.node().await?);
    tokio::task::spawn_blocking(move || {
        let mut random = Pattern::new(1);
        let mut corpus = tunnel_corpus(from, &mut random);
        corpus.extend(tunnel_corpus(NodeId(77), &mut random));
        corpus.extend(beacon_corpus(&mut random)?);
        throw(at, 2, &corpus)
    })
    .await??;
    timeout(Duration::from_secs(60), transfer).await.context("the stream hangs")???;
    let stream = client.dial(&target).await?;
    timeout(Duration::from_secs(30), round_trip(stream, 10, 1 << 20)).await.context("hangs")??;
    ensure!(a.process.is_running() && b.process.is_running(), "a daemon has ended");
    let info = b.info().await?;
    let refused = info["refused"].as_object().context("no counters")?;
    let total: u64 = refused.values().filter_map(serde_json::Value::as_u64).sum();
    ensure!(total > ROUNDS / 4, "only {total} of {ROUNDS} frames are counted: {refused:?}");
    let grown = resident_bytes(b.process.pid())?.saturating_sub(before);
    ensure!(grown < GROWTH, "the daemon grew by {grown} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beacon_survives_thousands_of_datagrams() -> Result<()> {
    let mut network = Network::start()?;
    let at: SocketAddr = network.beacon_addr().parse()?;
    let before = resident_bytes(network.beacon().pid())?;
    let mut random = Pattern::new(3);
    let mut corpus = beacon_corpus(&mut random)?;
    corpus.extend(tunnel_corpus(NodeId(5), &mut random));
    tokio::task::spawn_blocking(move || throw(at, 4, &corpus)).await??;
    ensure!(network.beacon().is_running(), "the beacon has ended");
    let grown = resident_bytes(network.beacon().pid())?.saturating_sub(before);
    ensure!(grown < GROWTH, "the beacon grew by {grown} bytes");

    // It still tells a node where it is.
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut discover = Vec::new();
    beacon::Message::Discover { node: NodeId(9) }.encode(&mut discover);
    let own = socket.local_addr()?;
    eventually("the beacon to answer", async || {
        socket.send_to(&discover, at).ok()?;
        let mut buffer = [0; 100];
        let (n, _) = socket.recv_from(&mut buffer).ok()?;
        let port = own.port().to_be_bytes();
        buffer[..n].windows(2).any(|w| w == port).then_some(())
    })
    .await
}

fn ipc_corpus() -> Vec<Vec<u8>> {
    let to = Address::backbone(NodeId(2)).port(7);
    let mut dial = Vec::new();
    Command::Dial { to }.encode(&mut dial);
    let inner = dial[4..].to_vec();
    let commands = [
        Command::Hello { version: HELLO_VERSION, features: Features::ALL, receive_credit: 65536 },
        Command::Bind { port: 5555 },
        Command::Dial { to },
        Command::Send { connection: 1, data: b"some data" },
        Command::Close { connection: 1 },
        Command::SendDatagram { to, data: b"some data" },
        Command::Info,
        Command::Handshake(Handshake::Request { node: NodeId(300), justification: "because" }),
        Command::Handshake(Handshake::Pending),
        Command::ResolveHostname("agent-b"),
        Command::SetTags(b"[\"one\",\"two\"]"),
        Command::Request { id: 9, command: &inner },
        Command::Credit { connection: 1, bytes: u32::MAX },
        Command::Shutdown { connection: 1 },
        Command::Unbind { port: 5555 },
    ];
    commands
        .iter()
        .map(|command| {
            let mut out = Vec::new();
            command.encode(&mut out);
            out
        })
        .collect()
}

/// Writes mutations into connections, a new one as soon as the other side
/// closes; what comes back is read and thrown away.
fn pour_into<S: Read + Write>(
    seed: u64,
    corpus: &[Vec<u8>],
    connect: impl Fn() -> std::io::Result<S>,
) -> Result<()> {
    let mut random = Pattern::new(seed);
    let mut stream = connect()?;
    let mut sink = vec![0; 1 << 16];
    for round in 0..ROUNDS {
        let written = stream.write_all(&mutate(&mut random, corpus));
        let closed = match stream.read(&mut sink) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        };
        // A length that lies makes the other side wait for more; a new
        // connection now and then keeps the attack going.
        if written.is_err() || closed || round % 16 == 0 {
            stream = connect()?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_survives_thousands_of_driver_messages() -> Result<()> {
    let network = Network::start()?;
    let (mut a, b) = network.pair().await?;
    let client = a.client().await?;
    let through = client.dial(&format!("{}:7", b.address().await?)).await?;
    let transfer = tokio::spawn(round_trip(through, 9, 16 << 20));
    let before = resident_bytes(a.process.pid())?;
    let socket = a.socket.clone();
    tokio::task::spawn_blocking(move || {
        pour_into(5, &ipc_corpus(), || {
            let stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            Ok(stream)
        })
    })
    .await??;
    timeout(Duration::from_secs(60), transfer).await.context("the stream hangs")???;
    ensure!(a.process.is_running(), "the daemon has ended: {}", a.process.log_tail());
    // The attacker spoke as the user of this daemon and may have renamed it or
    // left the registry; what counts is that it serves on.
    let info = eventually("the daemon to answer", async || a.info().await.ok()).await?;
    ensure!(info["uptime_secs"].is_number(), "{info}");
    let fresh = a.client().await?;
    let stream = eventually("a stream to open", async || {
        fresh.dial(&format!("{}:7", b.address().await.ok()?)).await.ok()
    })
    .await?;
    timeout(Duration::from_secs(30), round_trip(stream, 10, 1 << 20)).await.context("hangs")??;
    let grown = resident_bytes(a.process.pid())?.saturating_sub(before);
    ensure!(grown < GROWTH, "the daemon grew by {grown} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_survives_thousands_of_requests() -> Result<()> {
    let mut network = Network::start()?;
    let a = network.daemon("agent-a").await?;
    let before = resident_bytes(network.registry().pid())?;
    let addr = network.registry_addr().to_owned();
    tokio::task::spawn_blocking(move || {
        let key = PublicKey([7; 32]);
        let requests = [
            Request::Register {
                listen_addr: "127.0.0.1:4000",
                public_key: key,
                owner: "somebody",
                hostname: "somewhere",
                timestamp: Some(1),
                proof: None,
            },
            Request::Lookup { node_id: NodeId(1) },
            Request::ResolveHostname { hostname: "agent-a" },
        ];
        let mut corpus = Vec::new();
        for request in &requests {
            let mut frame = Vec::new();
            request.append_to(&mut frame)?;
            corpus.push(frame);
        }
        for text in [
            r#"{"type":"heartbeat","node_id":1,"signature":"AAAA"}"#,
            r#"{"type":"set_tags","node_id":1,"tags":[1,"a",null,{"b":[]}],"signature":7}"#,
            r#"{"type":"report_trust","node_id":-1,"peer_id":1e300,"signature":""}"#,
            r#"{"type":["lookup"],"node_id":{"node_id":1}}"#,
            r"null",
            r"[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]",
        ] {
            let len = u32::try_from(text.len())?.to_be_bytes();
            corpus.push([&len[..], text.as_bytes()].concat());
        }
        pour_into(6, &corpus, || {
            let stream = TcpStream::connect(&addr)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            Ok(stream)
        })
    })
    .await??;
    ensure!(network.registry().is_running(), "the registry has ended");
    let b = network.daemon("agent-b").await?;
    let found = b.client().await?.resolve("agent-a").await?;
    ensure!(found.node_id == a.node().await?, "{found:?}");
    let grown = resident_bytes(network.registry().pid())?.saturating_sub(before);
    ensure!(grown < GROWTH, "the registry grew by {grown} bytes");
    Ok(())
}
