//! Networks beside the backbone: who reaches an address in one, who may say
//! something to all of it, and what ends when it is not shared any more.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{
    CloseReason, Config, DatagramError, DialError, Event, Input, MAX_BROADCAST, Permission, Refusal,
};
use pilot_wire::packet::{Flags, Protocol};
use pilot_wire::{Address, NodeId, SocketAddress};

use crate::net::{Net, Pair};
use crate::villain::Villain;

const LAB: u16 = 5;

fn at(network: u16, node: u32, port: u16) -> SocketAddress {
    Address { network, node: NodeId(node) }.port(port)
}

fn everybody(network: u16) -> SocketAddress {
    at(network, u32::MAX, 1000)
}

/// Nodes that are all in network 5, and share nothing else.
fn lab(count: u32) -> Net {
    let mut net = Net::new(count, &Config::default());
    for node in 0..count as usize {
        net.handle(node, Input::Networks(&[LAB, 6]));
        for peer in (1..=count).filter(|peer| *peer as usize != node + 1) {
            net.handle(
                node,
                Input::Shared { node: NodeId(peer), networks: &[LAB], speaks: &[LAB] },
            );
        }
    }
    net
}

fn open(net: &mut Net, a: usize, b: usize, network: u16, port: u16) -> Option<Pair> {
    let _ = net.nodes[b].core.listen(port);
    let to = at(network, net.nodes[b].id, port);
    let dialled = net.nodes[a].core.dial(to, net.now).expect("the dial starts");
    let mut accepted = None;
    let seen = net.nodes[b].events.len();
    let open = net.until(Duration::from_secs(20), |net| {
        accepted = net.nodes[b].events[seen..].iter().find_map(|e| match e {
            Event::Incoming { stream, remote, .. } => Some((*stream, *remote)),
            _ => None,
        });
        net.nodes[a].events.contains(&Event::Connected { stream: dialled })
    });
    let (accepted, remote) = accepted.filter(|_| open)?;
    assert_eq!(remote.address, Address { network, node: NodeId(net.nodes[a].id) });
    Some(Pair { ends: [(a, dialled), (b, accepted)] })
}

#[test]
fn an_address_in_a_shared_network_carries_streams() {
    let mut net = lab(2);
    let pair = open(&mut net, 0, 1, LAB, 1000).expect("both are in it");
    net.converse(&pair, 300_000, |_| {});
    // The same port over the backbone is another stream.
    let other = net.connect(0, 1, 1000);
    net.converse(&other, 10_000, |_| {});
    net.converse(&pair, 10_000, |_| {});
}

#[test]
fn a_network_that_is_not_shared_is_silence() {
    let mut net = lab(2);
    assert!(open(&mut net, 0, 1, 6, 1000).is_none());
    assert!(net.refused(1, Refusal::NotShared) > 0);
    assert_eq!(net.nodes[1].core.open_streams(), 0);
    let error = net.nodes[0].core.dial(at(9, 2, 1000), net.now).expect_err("not a member");
    assert_eq!(error, DialError::NotAMember(9));
    net.nodes[0].core.send_datagram(at(6, 2, 1000), b"x", net.now).expect("a member itself");
    net.pass(Duration::from_secs(1));
    assert!(!net.nodes[1].events.iter().any(|e| matches!(e, Event::Datagram { .. })));
    let error = net.nodes[0].core.send_datagram(at(9, 2, 1), b"x", net.now);
    assert_eq!(error, Err(DatagramError::NotAMember(9)));
}

#[test]
fn streams_of_a_network_end_with_it_and_no_others() {
    for own in [true, false] {
        let mut net = lab(2);
        let in_lab = open(&mut net, 0, 1, LAB, 1000).expect("shared");
        let outside = net.connect(0, 1, 1001);
        net.converse(&in_lab, 10_000, |_| {});
        match own {
            true => net.handle(1, Input::Networks(&[6])),
            false => net.handle(1, Input::Shared { node: NodeId(1), networks: &[], speaks: &[] }),
        }
        net.pass(Duration::from_millis(200));
        assert_eq!(net.closed(in_lab.ends[1]), Some(CloseReason::Untrusted));
        assert_eq!(net.closed(in_lab.ends[0]), Some(CloseReason::Reset));
        net.converse(&outside, 10_000, |_| {});
        assert!(open(&mut net, 0, 1, LAB, 1000).is_none(), "and none begins");
    }
}

fn heard(net: &Net, node: usize) -> Vec<(SocketAddress, Address, Bytes)> {
    let datagram = |e: &Event| match e {
        Event::Datagram { source, destination, data, .. } => {
            Some((*source, *destination, data.clone()))
        }
        _ => None,
    };
    net.nodes[node].events.iter().filter_map(datagram).collect()
}

#[test]
fn a_broadcast_reaches_the_members_it_is_sent_to() {
    let mut net = lab(4);
    let to = everybody(LAB);
    let recipients = [1, 2, 3].map(NodeId);
    net.nodes[0].core.broadcast(to, &recipients, 77, b"hello", net.now).expect("a member");
    net.pass(Duration::from_secs(2));
    for node in [1, 2] {
        let expected = (at(LAB, 1, 77), to.address, Bytes::from_static(b"hello"));
        assert_eq!(heard(&net, node), [expected]);
    }
    assert_eq!(heard(&net, 0), [], "not to itself");
    assert_eq!(heard(&net, 3), [], "not to others");
}

#[test]
fn what_cannot_be_broadcast_is_said() {
    let mut net = lab(2);
    let now = net.now;
    let core = &mut net.nodes[0].core;
    let mut send = |to, data: &[u8]| core.broadcast(to, &[NodeId(2)], 0, data, now);
    assert_eq!(send(everybody(9), b"x"), Err(DatagramError::NotAMember(9)));
    assert_eq!(send(everybody(0), b"x"), Err(DatagramError::Broadcast));
    assert_eq!(send(at(LAB, 2, 1), b"x"), Err(DatagramError::Broadcast));
    let error = DatagramError::TooLarge { len: MAX_BROADCAST + 1, limit: MAX_BROADCAST };
    assert_eq!(send(everybody(LAB), &[0; MAX_BROADCAST + 1]), Err(error));
    assert_eq!(send(everybody(LAB), &[0; MAX_BROADCAST]), Ok(()));
    net.pass(Duration::from_secs(2));
    assert_eq!(heard(&net, 1).len(), 1, "the largest passes every path");
}

/// A peer that speaks to a network it is not in, or too often.
#[test]
fn broadcasts_of_outsiders_and_floods_are_dropped() {
    let mut net = Net::new(1, &Config::default());
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    net.handle(0, Input::Networks(&[LAB, 6]));
    net.handle(0, Input::Shared { node: NodeId(3), networks: &[LAB], speaks: &[LAB] });
    villain.meet(&mut net, 0);
    let mut header = villain.header(1, 1000);
    header.flags = Flags::NONE;
    header.protocol = Protocol::Datagram;
    for (from, to) in [(6, 6), (0, 0)] {
        header.source.address.network = from;
        header.destination = everybody(to);
        villain.send(&mut net, 0, &header, b"x");
    }
    header.source.address.network = 0;
    header.destination = everybody(LAB);
    villain.send(&mut net, 0, &header, b"x");
    assert_eq!(heard(&net, 0), []);
    assert_eq!(net.refused(0, Refusal::NotShared), 1);
    assert_eq!(net.refused(0, Refusal::AddressMismatch), 2);
    header.source.address.network = LAB;
    for _ in 0..50 {
        villain.send(&mut net, 0, &header, b"x");
    }
    assert_eq!(heard(&net, 0).len(), 20);
    assert_eq!(net.refused(0, Refusal::BroadcastRate), 30);
    // A stream cannot be opened to everybody.
    header.protocol = Protocol::Stream;
    header.flags = Flags::SYN;
    villain.send(&mut net, 0, &header, b"");
    assert_eq!(net.refused(0, Refusal::AddressMismatch), 3);
    net.permit(0, 3, Permission::Stranger);
    header.protocol = Protocol::Datagram;
    header.flags = Flags::NONE;
    villain.send(&mut net, 0, &header, b"x");
    assert_eq!(net.refused(0, Refusal::Untrusted), 1, "a network alone is no permission");
}

#[test]
fn who_may_not_broadcast_is_not_heard() {
    let mut net = lab(2);
    net.connect(0, 1, 1001);
    net.handle(1, Input::Shared { node: NodeId(1), networks: &[LAB, 6], speaks: &[6] });
    net.nodes[0].core.broadcast(everybody(LAB), &[NodeId(2)], 0, b"no", net.now).expect("sent");
    net.pass(Duration::from_secs(1));
    assert_eq!(heard(&net, 1), []);
    assert_eq!(net.refused(1, Refusal::BroadcastRight), 1);
}
