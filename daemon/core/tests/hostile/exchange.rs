//! Attacks on the key exchange.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{Config, Permission, Refusal};
use pilot_wire::tunnel::COMPACT;

use crate::crypto::KeyPair;
use crate::net::{Net, Sent, address, identity};
use crate::villain::Villain;

const EVIL: u32 = 66;

/// Every forgery of a key exchange in the name of node 2 by somebody who does
/// not have its identity key.
fn forgeries() -> Vec<Vec<u8>> {
    let evil = KeyPair::new([7; 32]);
    let genuine = KeyPair::new([8; 32]).offer(2, &identity(2));
    let mut bad_signature = genuine.clone();
    bad_signature[100] ^= 1;
    let mut other_key = genuine.clone();
    other_key[8..40].copy_from_slice(&evil.public);
    // Signed by the attacker, the true identity written over its own.
    let mut borrowed = evil.offer(2, &identity(EVIL));
    borrowed[40..72].copy_from_slice(identity(2).verifying_key().as_bytes());
    // The true signature, under a weak identity key for which anything holds.
    let mut weak = genuine.clone();
    weak[40..72].fill(0);
    let mut other_node = KeyPair::new([9; 32]).offer(3, &identity(2));
    other_node[4..8].copy_from_slice(&2u32.to_be_bytes());
    vec![evil.offer(2, &identity(EVIL)), bad_signature, other_key, borrowed, weak, other_node]
}

#[test]
fn a_forged_exchange_is_refused_before_first_contact() {
    let mut net = Net::new(1, &Config::default());
    net.keys.insert(2, identity(2).verifying_key().to_bytes());
    net.permit(0, 2, Permission::Trusted);
    let forgeries = forgeries();
    for frame in &forgeries {
        net.inject(0, address(EVIL), frame);
    }
    assert_eq!(net.refused(0, Refusal::BadIdentity), forgeries.len() as u64);
    assert_eq!(net.sessions(0), 0);
    assert!(net.log.is_empty(), "nothing is answered");
    assert_eq!(net.path(0, 2), None);
}

/// Weakness 1: the key that a peer once proved must stay what later exchanges
/// are compared with.
#[test]
fn a_forged_exchange_is_refused_after_first_contact() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.pass(Duration::from_secs(5));
    let sessions = net.sessions(0);
    for round in 0..20 {
        for frame in forgeries() {
            // From elsewhere, and with the peer's own address as source.
            net.inject(0, address(EVIL), &frame);
            net.inject(0, address(2), &frame);
        }
        net.pass(Duration::from_millis(400 * (round % 3)));
    }
    assert_eq!(net.sessions(0), sessions);
    assert_eq!(net.path(0, 2), Some((address(2), false)));
    assert!(net.mail.is_empty(), "nothing was sent to the attacker");
    net.converse(&pair, 50_000, |_| {});
}

/// Weakness 6: a recorded exchange moves no endpoint, empties no window and
/// replaces no key.
#[test]
fn a_recorded_exchange_changes_nothing() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 20_000, |_| {});
    net.pass(Duration::from_secs(1));
    let exchanges = net.recorded(1, 0, b"PILA");
    let frames = net.recorded(1, 0, b"PILS");
    assert!(!exchanges.is_empty() && frames.len() > 3);
    // Also after the peer has been silent, when a new address is most welcome.
    for silence in [0, 5, 40] {
        net.pass(Duration::from_secs(silence));
        let (sessions, replays) = (net.sessions(0), net.refused(0, Refusal::Replay));
        for exchange in &exchanges {
            net.inject(0, address(EVIL), exchange);
        }
        for frame in &frames {
            net.inject(0, address(EVIL), frame);
        }
        assert_eq!(net.sessions(0), sessions, "no new session");
        assert_eq!(net.refused(0, Refusal::Replay), replays + frames.len() as u64);
        assert_eq!(net.path(0, 2), Some((address(2), false)));
        net.converse(&pair, 20_000, |_| {});
    }
}

/// As above, with exchanges that the core has never seen: their keys are new
/// to it, and it cannot know their age.
#[test]
fn a_recorded_exchange_that_never_arrived_moves_no_endpoint() {
    let mut net = Net::new(2, &Config::default());
    net.cut = true;
    let to = crate::villain::socket(1, 1000);
    net.nodes[1].core.dial(to, net.now).expect("the dial starts");
    net.pass(Duration::from_secs(60));
    let held_back = net.recorded(1, 0, b"PILA");
    assert!(held_back.len() >= 4);
    net.cut = false;
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 20_000, |_| {});
    for exchange in &held_back {
        net.pass(Duration::from_secs(10));
        net.inject(0, address(EVIL), exchange);
        assert_eq!(net.path(0, 2), Some((address(2), false)), "the endpoint stays");
        // This side speaks first, so that it would have to use the new address.
        let hello = Bytes::from_static(b"hello");
        net.nodes[0].core.write(pair.ends[1].1, hello, net.now).expect("open");
        let before = net.now;
        let arrived =
            net.until(Duration::from_secs(2), |net| net.read_all(pair.ends[0]) == b"hello");
        assert!(arrived, "what is sent next arrives");
        assert!(net.now.since(before) < Duration::from_millis(50), "and at once");
    }
    net.converse(&pair, 20_000, |_| {});
}

/// A recorded exchange that arrives while the core waits for an answer to its
/// own can be taken for one. That may cost time, never the tunnel.
#[test]
fn a_recorded_exchange_in_place_of_an_answer_only_costs_time() {
    let config = Config { rekey_after: Duration::from_secs(20), ..Config::default() };
    let mut net = Net::new(2, &config);
    net.cut = true;
    net.nodes[1].core.dial(crate::villain::socket(1, 1000), net.now).expect("the dial starts");
    net.pass(Duration::from_secs(60));
    let held_back = net.recorded(1, 0, b"PILA");
    net.cut = false;
    let pair = net.connect(1, 0, 1000);
    for exchange in held_back.iter().take(4) {
        net.pass(Duration::from_secs(25));
        let offers = net.recorded(0, 1, b"PILA").len();
        let hello = Bytes::from_static(b"x");
        net.nodes[0].core.write(pair.ends[1].1, hello, net.now).expect("open");
        let rekeying =
            net.until(Duration::from_secs(30), |net| net.recorded(0, 1, b"PILA").len() > offers);
        assert!(rekeying, "the core offers a new key");
        net.inject(0, address(EVIL), exchange);
        let got = net.until(Duration::from_secs(10), |net| !net.read_all(pair.ends[0]).is_empty());
        assert!(got, "the byte arrives");
    }
    net.converse(&pair, 20_000, |_| {});
}

/// A recording of the peer's exchanges as long as anybody likes never brings
/// back a session whose frames were recorded too.
#[test]
fn no_number_of_recorded_exchanges_revives_an_old_session() {
    let mut net = Net::new(1, &Config::default());
    let mut villain = Villain::registered(&mut net, 2);
    net.permit(0, 2, Permission::Trusted);
    villain.meet(&mut net, 0);
    net.nodes[0].core.listen(1000).expect("free");
    let syn = {
        let mut syn = villain.header(1, 1000);
        syn.flags = pilot_wire::packet::Flags::SYN;
        villain.seal(&syn, &[])
    };
    net.inject(0, villain.address, &syn);
    assert_eq!(net.nodes[0].core.open_streams(), 1);
    let first = villain.keys.offer(2, &villain.identity);
    for n in 0..60u8 {
        let offer = KeyPair::new([n ^ 0x80; 32]).offer(2, &villain.identity);
        net.inject(0, address(EVIL), &offer);
    }
    net.inject(0, address(EVIL), &first);
    net.inject(0, address(EVIL), &syn);
    let accepted = net.nodes[0].events.iter();
    let accepted = accepted.filter(|e| matches!(e, pilot_core::Event::Incoming { .. })).count();
    assert_eq!(accepted, 1, "the recorded frame is not taken again");
}

/// Weakness 8: unknown senders cost bounded memory and no answers, and others
/// get through.
#[test]
fn a_flood_of_unknown_exchanges_is_bounded() {
    let mut net = Net::new(2, &Config::default());
    net.registry_answers = false;
    let offer = KeyPair::new([7; 32]).offer(1, &identity(EVIL));
    for n in 0..10_000u32 {
        let mut frame = offer.clone();
        frame[4..8].copy_from_slice(&(1000 + n).to_be_bytes());
        net.inject(0, address(EVIL), &frame);
        if n % 100 == 0 {
            net.pass(Duration::from_millis(100));
        }
    }
    let questions: Vec<_> = net.nodes[0]
        .events
        .iter()
        .filter_map(|e| match e {
            pilot_core::Event::NeedKey { node } => Some(*node),
            _ => None,
        })
        .collect();
    assert!(!questions.is_empty() && questions.len() <= 256, "{} questions", questions.len());
    assert!(net.refused(0, Refusal::Overload) > 9_000);
    assert!(net.nodes[0].core.peers().is_empty(), "no state for any of them");
    assert!(net.log.is_empty(), "nothing is answered");
    assert!(net.nodes[0].events.len() < 1000, "few events tell of it");
    net.registry_answers = true;
    for node in questions {
        net.handle(0, pilot_core::Input::IdentityKey { node, key: None });
    }
    net.pass(Duration::from_secs(1));
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 10_000, |_| {});
}

/// Weakness 9: whatever is repeated to it, a core seals no two frames with the
/// same nonce, and what it sends stays readable. Every frame is checked by
/// [`Net`].
#[test]
fn no_nonce_is_used_twice() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    let mut turn = 0usize;
    net.converse(&pair, 30_000_000, |net| {
        turn += 1;
        for (from, to) in [(0, 1), (1, 0)] {
            if turn.is_multiple_of(20) {
                let exchanges = net.recorded(from, to, b"PILA");
                let again = exchanges[turn / 20 % exchanges.len()].clone();
                net.inject(to, address(EVIL), &again);
                net.inject(to, net.nodes[from].address, &again);
            }
        }
    });
    let of_tunnel = |s: &&Sent| s.data.starts_with(b"PILS") || s.data[0] == COMPACT;
    let sealed = net.log.iter().filter(of_tunnel).count();
    assert!(sealed >= 1_500, "{sealed} frames");
}

/// Weakness 7, and the rest of section 5: an exchange without identity is
/// never taken, whatever the registry says.
#[test]
fn an_unauthenticated_exchange_is_never_taken() {
    for registry_answers in [true, false] {
        let mut net = Net::new(2, &Config::default());
        net.registry_answers = registry_answers;
        let mut frame = b"PILK".to_vec();
        frame.extend_from_slice(&2u32.to_be_bytes());
        frame.extend_from_slice(&KeyPair::new([7; 32]).public);
        net.inject(0, address(EVIL), &frame);
        net.pass(Duration::from_secs(10));
        assert_eq!(net.refused(0, Refusal::Unauthenticated), 1);
        assert_eq!(net.sessions(0), 0);
        assert!(net.log.is_empty(), "nothing is answered");
    }
}

/// A key of low order gives an all-zero secret, which anybody knows.
#[test]
fn a_key_of_low_order_is_refused() {
    let mut net = Net::new(1, &Config::default());
    let villain = Villain::registered(&mut net, 2);
    let mut challenge = b"auth".to_vec();
    challenge.extend_from_slice(&2u32.to_be_bytes());
    challenge.extend_from_slice(&[0; 32]);
    let signature = ed25519_dalek::Signer::sign(&villain.identity, &challenge).to_bytes();
    let mut frame = b"PILA".to_vec();
    frame.extend_from_slice(&challenge[4..]);
    frame.extend_from_slice(villain.identity.verifying_key().as_bytes());
    frame.extend_from_slice(&signature);
    net.inject(0, villain.address, &frame);
    assert_eq!(net.refused(0, Refusal::RetiredKey), 1);
    assert_eq!(net.sessions(0), 0);
}
