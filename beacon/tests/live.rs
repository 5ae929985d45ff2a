//! The beacon over real sockets: answers, survives thousands of mutated
//! datagrams, ends cleanly, and its binary fails with one clear line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use pilot_beacon::state::Counters;
use pilot_beacon::{Beacon, Config};
use pilot_wire::NodeId;
use pilot_wire::beacon::Message;
use rand::{RngExt as _, SeedableRng as _};

fn with_beacon(config: Config, test: impl FnOnce(SocketAddr, Option<SocketAddr>)) -> Counters {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let beacon = runtime.block_on(Beacon::bind(config)).unwrap();
    let (addr, health) = (beacon.local_addr(), beacon.health_addr());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = runtime.spawn(beacon.run(async {
        let _ = stopped.await;
    }));
    test(addr, health);
    drop(stop);
    runtime.block_on(task).unwrap()
}

fn node() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn send(socket: &UdpSocket, beacon: SocketAddr, message: Message<'_>) {
    let mut out = Vec::new();
    message.encode(&mut out);
    socket.send_to(&out, beacon).unwrap();
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 65_535];
    let (n, _) = socket.recv_from(&mut buffer).unwrap();
    buffer[..n].to_vec()
}

fn check_serves(beacon: SocketAddr) {
    let (a, b) = (node(), node());
    for (socket, id) in [(&a, 1), (&b, 2)] {
        send(socket, beacon, Message::Discover { node: NodeId(id) });
        let endpoint = socket.local_addr().unwrap();
        assert_eq!(Message::parse(&receive(socket)), Ok(Message::DiscoverReply { endpoint }));
    }
    send(&a, beacon, Message::PunchRequest { requester: NodeId(1), target: NodeId(2) });
    for (socket, other) in [(&a, &b), (&b, &a)] {
        let endpoint = other.local_addr().unwrap();
        assert_eq!(Message::parse(&receive(socket)), Ok(Message::PunchCommand { endpoint }));
    }
    let frame = [7; 1400];
    let (sender, destination) = (NodeId(1), NodeId(2));
    send(&a, beacon, Message::Relay { sender, destination, frame: &frame });
    assert_eq!(Message::parse(&receive(&b)), Ok(Message::RelayDeliver { sender, frame: &frame }));
}

/// Asks until answered: a full receive buffer drops what comes meanwhile.
fn await_drained(beacon: SocketAddr) {
    let socket = node();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let answered = (0..100).any(|_| {
        send(&socket, beacon, Message::Discover { node: NodeId(3) });
        socket.recv_from(&mut [0; 64]).is_ok()
    });
    assert!(answered, "the beacon no longer answers");
}

#[test]
fn serves_and_survives_mutations() {
    let counters = with_beacon(Config::at("127.0.0.1:0"), |beacon, _| {
        check_serves(beacon);
        let socket = node();
        let mut rng = rand::rngs::StdRng::seed_from_u64(0xBEAC);
        let mut seeds = Vec::new();
        for message in [
            Message::Discover { node: NodeId(9) },
            Message::PunchRequest { requester: NodeId(9), target: NodeId(1) },
            Message::Relay { sender: NodeId(9), destination: NodeId(77), frame: b"payload" },
            Message::RelayDeliver { sender: NodeId(9), frame: b"payload" },
        ] {
            let mut out = Vec::new();
            message.encode(&mut out);
            seeds.push(out);
        }
        seeds.push(vec![7, 0, 0, 0, 6, 0xFF, 0xFF, 0, 0]);
        for i in 0..6000 {
            let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            if i % 100 == 0 {
                bytes = vec![rng.random(); rng.random_range(0..60_000)];
            }
            socket.send_to(&bytes, beacon).unwrap();
        }
        await_drained(beacon);
        check_serves(beacon);
    });
    assert!(counters.malformed > 0 && counters.stranger + counters.direction > 0, "{counters:?}");
}

#[test]
fn health_is_answered() {
    let config = Config { health: Some("127.0.0.1:0".to_owned()), ..Config::at("127.0.0.1:0") };
    with_beacon(config, |_, health| {
        let get = |path: &str| {
            let mut stream = TcpStream::connect(health.unwrap()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(get("/healthz").starts_with("HTTP/1.1 200") && get("/healthz").ends_with("ok"));
        assert!(get("/").starts_with("HTTP/1.1 404"));
    });
}

#[test]
fn two_beacons_share_their_nodes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Both need each other's address before they start: take two free ports.
    let ports = [node(), node()].map(|s| s.local_addr().unwrap());
    let mut running = Vec::new();
    for (own, other) in [(0, 1), (1, 0)] {
        let config = Config {
            beacon_id: own as u32 + 1,
            peers: vec![ports[other].to_string()],
            gossip: Duration::from_millis(50),
            ..Config::at(ports[own].to_string())
        };
        let beacon = runtime.block_on(Beacon::bind(config)).unwrap();
        running.push(runtime.spawn(beacon.run(std::future::pending())));
    }
    let (a, b) = (node(), node());
    send(&b, ports[1], Message::Discover { node: NodeId(2) });
    receive(&b);
    // The next sync carries it over, within the gossip interval.
    a.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let frame = b"over two beacons";
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut buffer = [0; 2048];
    let delivered = loop {
        let (sender, destination) = (NodeId(1), NodeId(2));
        send(&a, ports[0], Message::Relay { sender, destination, frame });
        match b.recv_from(&mut buffer) {
            Ok((n, from)) => break (n, from),
            Err(_) => assert!(std::time::Instant::now() < deadline, "never delivered"),
        }
    };
    assert_eq!(delivered.1, ports[1]);
    let expected = Message::RelayDeliver { sender: NodeId(1), frame };
    assert_eq!(Message::parse(&buffer[..delivered.0]), Ok(expected));
    running.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn binary_is_ready_and_ends_on_sigterm() {
    let binary = env!("CARGO_BIN_EXE_pilot-beacon");
    let mut child =
        Command::new(binary).args(["-addr", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["ready"], "pilot-beacon");
    let addr: SocketAddr = ready["addr"].as_str().unwrap().parse().unwrap();
    check_serves(addr);

    let second = Command::new(binary).args(["--addr", &addr.to_string()]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.lines().count() == 1 && text.contains(&addr.to_string()), "{text}");

    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}
