//! What strangers, trusted peers and blocked ones may do, and what happens to
//! open streams when that changes.

use std::time::Duration;

use pilot_core::{CloseReason, Config, Event, Permission, Refusal};
use pilot_wire::packet::{Flags, Protocol};

use crate::net::Net;
use crate::villain::Villain;

fn victim(permission: Permission) -> (Net, Villain) {
    let mut net = Net::new(1, &Config::default());
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, permission);
    for port in [7, 444, 1000] {
        net.nodes[0].core.listen(port).expect("free");
    }
    villain.meet(&mut net, 0);
    villain.mail(&mut net);
    (net, villain)
}

/// Weakness 13: to a stranger only port 444 exists.
#[test]
fn a_stranger_finds_only_the_trust_port() {
    let (mut net, mut villain) = victim(Permission::Stranger);
    let mut header = villain.header(1, 7);
    for port in [7, 1000, 1234, 0, 65_535] {
        header.destination.port = port;
        for flags in [Flags::SYN, Flags::SYN | Flags::FIN, Flags::ACK, Flags::FIN, Flags::RST] {
            header.flags = flags;
            villain.send(&mut net, 0, &header, b"");
        }
    }
    header.flags = Flags::NONE;
    header.protocol = Protocol::Datagram;
    villain.send(&mut net, 0, &header, b"hello");
    net.pass(Duration::from_secs(3));
    assert_eq!(villain.mail(&mut net), [], "silence");
    assert_eq!(net.refused(0, Refusal::Untrusted), 11);
    assert_eq!(net.nodes[0].core.open_streams(), 0);
    assert!(!net.nodes[0].events.iter().any(|e| matches!(e, Event::Datagram { .. })));

    let mut hold = villain.open(&mut net, 0, 50_001, 444, true);
    hold.data(&mut villain, &mut net, 0, b"handshake");
    let incoming = net.nodes[0].events.iter().find_map(|e| match e {
        Event::Incoming { stream, local_port: 444, .. } => Some(*stream),
        _ => None,
    });
    assert_eq!(net.read_all((0, incoming.expect("port 444 is open"))), b"handshake");
}

#[test]
fn a_trusted_peer_is_told_that_nothing_listens() {
    let (mut net, mut villain) = victim(Permission::Trusted);
    let mut header = villain.header(1, 1234);
    header.flags = Flags::SYN;
    villain.send(&mut net, 0, &header, b"");
    let answers = villain.answers(&mut net);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0.flags, Flags::RST);
    villain.open(&mut net, 0, 50_001, 1000, false);
    header.flags = Flags::NONE;
    header.protocol = Protocol::Datagram;
    villain.send(&mut net, 0, &header, b"hello");
    assert!(net.nodes[0].events.iter().any(|e| matches!(e, Event::Datagram { .. })));
}

/// Weakness 18: only a ping that could be one is answered, once.
#[test]
fn pings_cannot_bounce() {
    let (mut net, mut villain) = victim(Permission::Trusted);
    let mut ping = villain.header(1, 0);
    ping.protocol = Protocol::Control;
    for (source, port, flags) in
        [(0, 0, Flags::NONE), (50_000, 0, Flags::ACK), (0, 0, Flags::ACK), (50_000, 7, Flags::NONE)]
    {
        ping.source.port = source;
        ping.destination.port = port;
        ping.flags = flags;
        villain.send(&mut net, 0, &ping, b"12345678");
    }
    assert_eq!(villain.answers(&mut net), []);
    ping.source.port = 50_000;
    ping.destination.port = 0;
    ping.flags = Flags::NONE;
    ping.seq = 41;
    villain.send(&mut net, 0, &ping, b"12345678");
    let answers = villain.answers(&mut net);
    assert_eq!(answers.len(), 1);
    let (answer, payload) = &answers[0];
    assert_eq!((answer.flags, answer.ack, payload.as_slice()), (Flags::ACK, 42, &b"12345678"[..]));

    let (mut net, mut stranger) = victim(Permission::Stranger);
    stranger.send(&mut net, 0, &ping, b"12345678");
    assert_eq!(stranger.answers(&mut net), [], "a stranger's ping is not answered");
}

#[test]
fn streams_end_on_both_sides_when_trust_ends() {
    let mut net = Net::new(2, &Config::default());
    let (to_peer, from_peer) = (net.connect(0, 1, 1000), net.connect(1, 0, 1001));
    let handshake = net.connect(1, 0, 444);
    net.converse(&to_peer, 10_000, |_| {});
    net.permit(0, 2, Permission::Stranger);
    net.pass(Duration::from_millis(200));
    for (pair, own, other) in [(&to_peer, 0, 1), (&from_peer, 1, 0)] {
        assert_eq!(net.closed(pair.ends[own]), Some(CloseReason::Untrusted), "here");
        assert_eq!(net.closed(pair.ends[other]), Some(CloseReason::Reset), "at the peer");
    }
    net.converse(&handshake, 1_000, |_| {});
    let before = net.nodes[0].core.open_streams();
    net.nodes[1].core.dial(crate::villain::socket(1, 1001), net.now).expect("the dial starts");
    net.pass(Duration::from_secs(5));
    assert_eq!(net.nodes[0].core.open_streams(), before, "no new stream");
    assert!(net.refused(0, Refusal::Untrusted) > 0);
}

#[test]
fn a_blocked_peer_gets_no_answer_to_anything() {
    let mut net = Net::new(2, &Config::default());
    let pairs = [net.connect(1, 0, 1000), net.connect(1, 0, 444), net.connect(0, 1, 1001)];
    net.permit(0, 2, Permission::Blocked);
    net.pass(Duration::from_millis(200));
    for pair in &pairs {
        for end in pair.ends {
            assert!(net.closed(end).is_some(), "every stream ends on both sides");
        }
    }
    let mut villain = Villain::registered(&mut net, 2);
    let sent = net.log.iter().filter(|s| s.from == net.nodes[0].address).count();
    for frame in net.recorded(1, 0, b"PIL") {
        net.inject(0, villain.address, &frame);
    }
    let offer = villain.keys.offer(2, &villain.identity);
    net.inject(0, villain.address, &offer);
    net.nodes[1].core.dial(crate::villain::socket(1, 444), net.now).expect("the dial starts");
    net.pass(Duration::from_secs(30));
    assert_eq!(net.log.iter().filter(|s| s.from == net.nodes[0].address).count(), sent);
    assert!(net.refused(0, Refusal::Blocked) > 3);
    assert_eq!(villain.mail(&mut net), []);
}

#[test]
fn trust_that_returns_needs_no_restart() {
    let mut net = Net::new(2, &Config::default());
    net.connect(1, 0, 1000);
    for permission in [Permission::Blocked, Permission::Stranger] {
        net.permit(0, 2, permission);
        net.pass(Duration::from_secs(20));
        net.permit(0, 2, Permission::Trusted);
        let pair = net.connect(1, 0, 1000);
        net.converse(&pair, 10_000, |_| {});
    }
}

/// Forgetting a peer drops its keys here only; the peer's frames then bring
/// about a new exchange (section 10, last row).
#[test]
fn a_peer_that_was_forgotten_can_come_back() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.nodes[0].core.forget_peer(pilot_wire::NodeId(2));
    net.pass(Duration::from_secs(5));
    assert_eq!(net.closed(pair.ends[1]), Some(CloseReason::Untrusted));
    let again = net.connect(0, 1, 1001);
    net.converse(&again, 10_000, |_| {});
    let back = net.connect(1, 0, 1002);
    net.converse(&back, 10_000, |_| {});
}
