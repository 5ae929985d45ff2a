//! Attacks with frames: forged, replayed, in the clear, in another's name.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{Config, Event, Permission, Refusal};
use pilot_wire::packet::{Flags, Protocol};

use crate::crypto::KeyPair;
use crate::net::{Net, address};
use crate::villain::{Villain, socket};

const EVIL: u32 = 66;

/// Weakness 2: counters count only once the tag is verified.
#[test]
fn a_forged_counter_does_not_close_the_window() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 20_000, |_| {});
    let genuine = net.recorded(1, 0, b"PILS").pop().expect("a frame");
    for counter in [u64::MAX, u64::MAX - 1, 1 << 40, 10_000, 0] {
        for known_prefix in [true, false] {
            let mut forged = genuine.clone();
            forged[12..20].copy_from_slice(&counter.to_be_bytes());
            if !known_prefix {
                forged[8..12].copy_from_slice(&[1, 2, 3, 4]);
            }
            net.inject(0, address(EVIL), &forged);
            net.inject(0, address(2), &forged);
        }
    }
    assert_eq!(net.refused(0, Refusal::Undecryptable) + net.refused(0, Refusal::Replay), 20);
    net.converse(&pair, 20_000, |_| {});
}

/// Weakness 3: nothing in the clear is acted on, and none of it is answered.
#[test]
fn packets_in_the_clear_are_dropped() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 5_000, |_| {});
    net.pass(Duration::from_secs(5));
    let (sent, events) = (net.log.len(), net.nodes[0].events.len());
    let local = net.nodes[1].core.streams()[0].local_port;
    let villain = Villain::registered(&mut net, 2);
    let mut plain = 0;
    for flags in 0..16 {
        for protocol in 0..=5 {
            for port in [7, 444, 1000, 0] {
                let mut header = villain.header(1, port);
                header.flags = Flags::from_bits(flags);
                header.protocol = Protocol::from_number(protocol);
                header.source = socket(2, local);
                let mut frame = b"PILT".to_vec();
                frame.extend(header.to_packet(b"hello"));
                net.inject(0, address(2), &frame);
                plain += 1;
            }
        }
    }
    assert_eq!(net.refused(0, Refusal::Unauthenticated), plain);
    let told = net.nodes[0].events[events..].iter();
    assert!(told.clone().all(|e| matches!(e, Event::Refused { .. })), "{:?}", told.as_slice());
    assert_eq!(net.log.len(), sent, "nothing is answered");
    net.converse(&pair, 5_000, |_| {});
}

/// Weakness 4: while no key is held, only key exchanges leave. [`Net`] checks
/// every datagram.
#[test]
fn nothing_leaves_in_the_clear_while_no_key_is_held() {
    let mut net = Net::new(2, &Config::default());
    net.cut = true;
    let stream = net.nodes[0].core.dial(socket(2, 1000), net.now).expect("the dial starts");
    net.nodes[0].core.write(stream, Bytes::from_static(b"secret"), net.now).expect("open");
    net.nodes[0].core.send_datagram(socket(2, 9), b"secret", net.now).expect("sent");
    net.pass(Duration::from_secs(120));
    assert!(net.log.len() > 5);
    assert!(net.log.iter().all(|s| s.data.starts_with(b"PILA")));
}

/// Weakness 5: a trusted peer speaks for itself only, and only to this node.
#[test]
fn the_inner_addresses_must_be_those_of_the_tunnel() {
    let mut net = Net::new(2, &Config::default());
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    villain.meet(&mut net, 0);
    net.nodes[0].core.listen(1000).expect("free");
    villain.mail(&mut net);
    let mut syn = villain.header(1, 1000);
    syn.flags = Flags::SYN;
    for (source, destination) in [(2, 1), (3, 99), (1, 1), (0, 1), (3, u32::MAX), (99, 1)] {
        syn.source = socket(source, 50_001);
        syn.destination = socket(destination, 1000);
        for protocol in [Protocol::Stream, Protocol::Datagram, Protocol::Control] {
            syn.protocol = protocol;
            villain.send(&mut net, 0, &syn, b"x");
        }
    }
    assert_eq!(net.refused(0, Refusal::AddressMismatch), 18);
    assert_eq!(net.nodes[0].core.open_streams(), 0);
    assert_eq!(villain.answers(&mut net), []);
    let spoke = |e: &Event| matches!(e, Event::Incoming { .. } | Event::Datagram { .. });
    assert!(!net.nodes[0].events.iter().any(spoke));
}

/// The node number outside is not authenticated: a frame sealed by one peer
/// under the name of another opens with no key of that other's.
#[test]
fn a_frame_opens_only_with_the_key_of_the_node_it_names() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    villain.meet(&mut net, 0);
    let header = villain.header(1, 1000);
    let mut frame = villain.seal(&header, b"x");
    frame[4..8].copy_from_slice(&2u32.to_be_bytes());
    net.inject(0, address(2), &frame);
    assert_eq!(net.refused(0, Refusal::Undecryptable), 1);
    net.converse(&pair, 5_000, |_| {});
}

/// A published peer draws a new prefix for every exchange that it takes, and
/// an attacker can repeat exchanges to it. The core replaces the key when that
/// becomes too much.
#[test]
fn many_prefixes_under_one_key_lead_to_a_new_key() {
    let mut net = Net::new(1, &Config::default());
    let own = KeyPair::new([9; 32]);
    let villain = Villain::registered(&mut net, 2);
    net.permit(0, 2, Permission::Trusted);
    net.inject(0, villain.address, &own.offer(2, &villain.identity));
    let first = net.mail.remove(&villain.address).unwrap_or_default();
    let key = first.iter().find_map(|f| crate::crypto::offered_key(f)).expect("an answer");
    let mut ping = villain.header(1, 0);
    ping.protocol = Protocol::Control;
    ping.flags = Flags::NONE;
    for n in 0..200u8 {
        let frame = own.channel(key, [n, 1, 1, 1]).seal(2, &ping.to_packet(b"are you there"));
        net.inject(0, villain.address, &frame);
        net.pass(Duration::from_millis(50));
    }
    let mail = net.mail.remove(&villain.address).unwrap_or_default();
    let offers = mail.iter().filter_map(|f| crate::crypto::offered_key(f));
    let fresh = offers.filter(|k| *k != key).count();
    assert!((1..20).contains(&fresh), "{fresh} new keys offered in ten seconds");
}
