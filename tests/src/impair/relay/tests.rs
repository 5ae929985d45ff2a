//! The relay over real sockets on loopback, with bounded waits.

use std::net::UdpSocket;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let at = socket.local_addr().unwrap();
    (socket, at)
}

fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

/// Until the statistics are as wanted.
fn until(relay: &Relay, wanted: impl Fn(&Statistics) -> bool) -> Statistics {
    let deadline = Instant::now() + LIMIT;
    loop {
        let statistics = relay.statistics();
        if wanted(&statistics) {
            return statistics;
        }
        assert!(Instant::now() < deadline, "{statistics:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_client_has_its_own_way_back() {
    let (server, target) = socket();
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay = Relay::listen(listen, target, Profile::default(), 1).unwrap();
    let ((one, _), (two, _)) = (socket(), socket());
    one.send_to(b"one", relay.near()).unwrap();
    let (said, from_one) = next(&server);
    assert_eq!(said, b"one");
    two.send_to(b"two", relay.near()).unwrap();
    let (said, from_two) = next(&server);
    assert_eq!(said, b"two");
    assert_ne!(from_one, from_two);
    server.send_to(b"to two", from_two).unwrap();
    server.send_to(b"to one", from_one).unwrap();
    assert_eq!(next(&one), (b"to one".to_vec(), relay.near()));
    assert_eq!(next(&two), (b"to two".to_vec(), relay.near()));
    // Nobody but the target may answer.
    two.send_to(b"forged", from_one).unwrap();
    until(&relay, |s| s.strangers == 1);
}

#[test]
fn a_reserved_place_serves_its_two_parties_only() {
    let ((client, client_at), (server, target)) = (socket(), socket());
    let relay = Relay::between(Profile::default(), 1).unwrap();
    let far = relay.far().unwrap();
    client.send_to(b"too early", relay.near()).unwrap();
    until(&relay, |s| s.strangers == 1);
    relay.connect(client_at, target);
    // The order is taken with the next turn, and seen in nothing else.
    let deadline = Instant::now() + LIMIT;
    server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = loop {
        client.send_to(b"hello", relay.near()).unwrap();
        if let Ok(got) = server.recv_from(&mut buffer) {
            break got;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!((&buffer[..len], from), (&b"hello"[..], far));
    server.send_to(b"back", far).unwrap();
    assert_eq!(next(&client), (b"back".to_vec(), relay.near()));
    let before = relay.statistics().strangers;
    socket().0.send_to(b"who?", relay.near()).unwrap();
    until(&relay, |s| s.strangers == before + 1);
}

#[test]
fn coalesced_datagrams_are_taken_apart() {
    let (server, target) = socket();
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay = Relay::listen(listen, target, Profile::default(), 1).unwrap();
    let (client, _) = socket();
    let state = quinn_udp::UdpSocketState::new((&client).into()).unwrap();
    let contents: Vec<u8> = (0..13_500u32).map(|n| (n / 1400) as u8).collect();
    let batch = quinn_udp::Transmit {
        destination: relay.near(),
        ecn: None,
        contents: &contents,
        segment_size: Some(1400),
        src_ip: None,
    };
    state.try_send((&client).into(), &batch).unwrap();
    let mut got = Vec::new();
    for n in 0..10 {
        let (data, _) = next(&server);
        assert_eq!(data.len(), if n == 9 { 900 } else { 1400 });
        got.extend(data);
    }
    assert_eq!(got, contents);
    let statistics = until(&relay, |s| s.up.delivered == 10);
    assert_eq!(statistics.up.offered, 10);
    assert_eq!(statistics.up.offered_bytes, 13_500);
}

#[test]
fn rate_and_delay_hold_in_real_time() {
    let (server, target) = socket();
    // 10 Mbit/s: 100 packets of 1,000 bytes with headers take 80 ms.
    let profile = Profile {
        rate: Some(10_000_000),
        delay: Duration::from_millis(30),
        queue: super::super::Queue::Bytes(1 << 20),
        ..Profile::default()
    };
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay = Relay::listen(listen, target, profile, 1).unwrap();
    let (client, _) = socket();
    let start = Instant::now();
    for _ in 0..100 {
        client.send_to(&[0; 1000 - super::super::HEADERS], relay.near()).unwrap();
    }
    next(&server);
    assert!(start.elapsed() >= Duration::from_micros(30_800), "{:?}", start.elapsed());
    for _ in 1..100 {
        next(&server);
    }
    // Never early. How late depends on the machine, and is in the statistics.
    assert!(start.elapsed() >= Duration::from_millis(110), "{:?}", start.elapsed());
    let lateness = until(&relay, |s| s.up.delivered == 100).lateness;
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(lateness.quantile(0.5) <= lateness.quantile(1.0));
    assert!(lateness.quantile(1.0) <= lateness.worst);
}

#[test]
fn a_new_mtu_counts_from_when_it_is_set() {
    let ((client, _), (server, target)) = (socket(), socket());
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay = Relay::listen(listen, target, Profile::default(), 1).unwrap();
    client.send_to(&[1; 1472], relay.near()).unwrap();
    assert_eq!(next(&server).0.len(), 1472);
    client.send_to(&[1; 1473], relay.near()).unwrap();
    until(&relay, |s| s.up.too_large == 1);
    relay.set_profile(Profile { mtu: 1280, ..Profile::default() });
    let deadline = Instant::now() + LIMIT;
    while relay.statistics().up.too_large == 1 {
        client.send_to(&[2; 1253], relay.near()).unwrap();
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    client.send_to(&[3; 1252], relay.near()).unwrap();
    while next(&server).0 != [3; 1252] {}
}

#[test]
fn clients_are_bounded() {
    let (server, target) = socket();
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay = Relay::listen(listen, target, Profile::default(), 1).unwrap();
    let clients: Vec<_> = (0..MAX_CLIENTS + 1).map(|_| socket().0).collect();
    let mut ways = Vec::new();
    for client in &clients {
        client.send_to(b"x", relay.near()).unwrap();
        ways.push(next(&server).1);
    }
    // The first made room for the last; both are served when they ask again.
    for index in [MAX_CLIENTS, 0] {
        clients[index].send_to(b"again", relay.near()).unwrap();
        let (said, way) = next(&server);
        assert_eq!(said, b"again");
        assert_eq!(way == ways[index], index != 0);
        server.send_to(b"yes", way).unwrap();
        assert_eq!(next(&clients[index]).0, b"yes");
    }
}

#[test]
fn a_taken_port_is_named() {
    let (_socket, at) = socket();
    let error = Relay::listen(at, at, Profile::default(), 1).err().unwrap().to_string();
    assert!(error.contains(&at.to_string()), "{error}");
}

#[test]
fn lateness_is_counted_in_powers_of_two() {
    let mut lateness = Lateness::default();
    assert_eq!(lateness.quantile(0.99), Duration::ZERO);
    for micros in [0, 3, 3, 3, 900] {
        lateness.note(Duration::from_micros(micros));
    }
    assert_eq!(lateness.quantile(0.5), Duration::from_micros(4));
    assert_eq!(lateness.quantile(0.8), Duration::from_micros(4));
    assert_eq!(lateness.quantile(1.0), Duration::from_micros(900));
    lateness.note(Duration::from_secs(1000));
    assert_eq!(lateness.worst, Duration::from_secs(1000));
}
