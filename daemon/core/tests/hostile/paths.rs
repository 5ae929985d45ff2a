//! Attacks on where datagrams go, and the honest peer that moves.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_core::{Config, Event, Input, Permission, Refusal};
use pilot_wire::NodeId;
use pilot_wire::beacon::Message;

use crate::net::{Net, address, beacon};
use crate::villain::Villain;

const EVIL: u32 = 66;

fn encoded(message: Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn with_beacon(count: u32) -> Net {
    let mut net = Net::new(count, &Config::default());
    for node in 0..count as usize {
        net.handle(node, Input::Beacon(Some(beacon())));
    }
    net
}

/// Weakness 12: beacon messages count only from the beacon.
#[test]
fn beacon_messages_of_others_are_refused() {
    let mut net = with_beacon(2);
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 5_000, |_| {});
    net.pass(Duration::from_secs(10));
    let frames = net.recorded(1, 0, b"PIL");
    let (sent, told) = (net.log.len(), net.nodes[0].events.len());
    let mut messages: Vec<_> = frames
        .iter()
        .map(|frame| encoded(Message::RelayDeliver { sender: NodeId(2), frame }))
        .collect();
    messages.push(encoded(Message::PunchCommand { endpoint: address(EVIL) }));
    messages.push(encoded(Message::DiscoverReply { endpoint: address(EVIL) }));
    let count = messages.len() as u64;
    for message in &messages {
        net.inject(0, address(EVIL), message);
    }
    assert_eq!(net.refused(0, Refusal::NotTheBeacon), count);
    assert_eq!(net.path(0, 2), Some((address(2), false)));
    assert_eq!(net.log.len(), sent, "nothing is sent for them");
    assert!(net.nodes[0].events[told..].iter().all(|e| matches!(e, Event::Refused { .. })));
}

/// Even the beacon cannot make a node flood somebody.
#[test]
fn punch_commands_are_limited() {
    let mut net = with_beacon(1);
    let target: SocketAddr = address(77);
    let command = encoded(Message::PunchCommand { endpoint: target });
    for _ in 0..1000 {
        net.inject(0, beacon(), &command);
    }
    let punches = net.mail.remove(&target).unwrap_or_default();
    assert!(punches.iter().all(|p| p == b"PILP"));
    assert_eq!(punches.len(), 60, "three for each of twenty a second");
}

/// The sender in the relay header must be that of the frame.
#[test]
fn a_relayed_frame_must_be_of_the_sender_it_names() {
    let mut net = with_beacon(2);
    let pair = net.connect(1, 0, 1000);
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    villain.meet(&mut net, 0);
    let header = villain.header(1, 1000);
    let sealed = villain.seal(&header, b"x");
    let offer = villain.keys.offer(3, &villain.identity);
    for (sender, frame) in [(2, &sealed), (99, &sealed), (2, &offer)] {
        let message = Message::RelayDeliver { sender: NodeId(sender), frame };
        net.inject(0, beacon(), &encoded(message));
    }
    assert_eq!(net.refused(0, Refusal::AddressMismatch), 3);
    assert_eq!(net.path(0, 2), Some((address(2), false)));
    assert_eq!(net.path(0, 3), Some((address(3), false)), "nobody was moved to the relay");
    net.converse(&pair, 5_000, |_| {});
}

/// Weakness 12 again: recorded frames that the beacon itself delivers do not
/// switch a peer to the relay.
#[test]
fn replayed_frames_through_the_beacon_move_nobody() {
    let mut net = with_beacon(2);
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 5_000, |_| {});
    let frames = net.recorded(1, 0, b"PIL");
    net.pass(Duration::from_secs(20));
    for frame in &frames {
        let message = Message::RelayDeliver { sender: NodeId(2), frame };
        net.inject(0, beacon(), &encoded(message));
    }
    assert_eq!(net.path(0, 2), Some((address(2), false)));
    net.converse(&pair, 5_000, |_| {});
}

/// Weakness 42: a peer whose address changes is followed once the new address
/// has answered, and the stream does not notice.
#[test]
fn a_stream_follows_a_peer_that_moves() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    let moved: SocketAddr = "192.168.7.7:5555".parse().expect("an address");
    let mut steps = 0;
    net.converse(&pair, 2_000_000, |net| {
        steps += 1;
        if steps == 5 {
            net.nodes[1].address = moved;
        }
    });
    assert!(steps > 5, "it moved in the middle");
    assert_eq!(net.path(0, 2), Some((moved, false)));
    assert_eq!(net.path(1, 1), Some((address(1), false)));
}

/// A genuine frame that an attacker sends on from its own address is not
/// enough to be followed: the answer to the probe has to come from there too.
#[test]
fn a_frame_from_elsewhere_alone_moves_nobody() {
    let mut net = Net::new(1, &Config::default());
    let mut villain = Villain::registered(&mut net, 2);
    net.permit(0, 2, Permission::Trusted);
    villain.meet(&mut net, 0);
    net.nodes[0].core.listen(1000).expect("free");
    let mut hold = villain.open(&mut net, 0, 50_000, 1000, true);
    net.pass(Duration::from_secs(10));
    for n in 0..20 {
        let frame = villain.seal(&hold.header, b"x");
        hold.header.seq += 1;
        net.inject(0, address(EVIL), &frame);
        assert_eq!(net.path(0, 2), Some((address(2), false)), "frame {n}");
        net.pass(Duration::from_secs(2));
    }
    let probes = net.mail.remove(&address(EVIL)).unwrap_or_default();
    assert!(!probes.is_empty() && probes.len() <= 20, "{} probes", probes.len());
}

/// Weakness 41: the relay is used while the direct path is blocked, and no
/// longer.
#[test]
fn a_blocked_direct_path_falls_back_to_the_relay_and_returns() {
    let mut net = with_beacon(2);
    net.beacon_only = true;
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 50_000, |_| {});
    assert_eq!(net.path(1, 1), Some((address(1), true)));
    let there = &net.nodes[0].core.peers()[0];
    assert!(there.relay && there.endpoint.is_none(), "it was never heard directly");
    net.beacon_only = false;
    net.pass(Duration::from_secs(40));
    net.converse(&pair, 50_000, |_| {});
    assert_eq!(net.path(0, 2), Some((address(2), false)));
    assert_eq!(net.path(1, 1), Some((address(1), false)));
}
