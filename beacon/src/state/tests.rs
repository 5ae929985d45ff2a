//! The captured conversation, bounds and expiry in virtual time, mutations.

use proptest::prelude::*;

use super::*;

const NODE_1: &str = "127.0.0.1:25201";
const NODE_2: &str = "127.0.0.1:25202";
const PEER: &str = "127.0.0.1:25301";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the server would send for an action, as (to, bytes).
fn sent(action: Action, datagram: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
    let encode = |message: Message<'_>| {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    };
    match action {
        Action::Observed { to } => vec![(to, encode(Message::DiscoverReply { endpoint: to }))],
        Action::Introduce { requester, target } => vec![
            (requester, encode(Message::PunchCommand { endpoint: target })),
            (target, encode(Message::PunchCommand { endpoint: requester })),
        ],
        Action::Deliver { to } => {
            let mut bytes = datagram.to_vec();
            vec![(to, deliver_in_place(&mut bytes).unwrap().to_vec())]
        }
        Action::Forward { to } => vec![(to, datagram.to_vec())],
        Action::Learnt | Action::Drop(_) => vec![],
    }
}

#[test]
fn captured_conversation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/beacon.json");
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let place = |name: &str| match name {
        n if n.starts_with("node 1 ([::1]:41071)") => addr("[::1]:41071"),
        n if n.starts_with("node 1") => addr(NODE_1),
        n if n.starts_with("node 2") => addr(NODE_2),
        n if n.starts_with("peer beacon") => addr(PEER),
        other => panic!("{other}"),
    };
    let now = Instant::now();
    let mut state = State::new(5);
    state.set_peers([addr(PEER)]);
    let mut owed = VecDeque::new();
    for message in vectors["messages"].as_array().unwrap() {
        let text = |key: &str| message[key].as_str().unwrap();
        let frame = hex::decode(text("frame")).unwrap();
        let note = text("note");
        if text("to") == "beacon" {
            assert!(owed.is_empty(), "before {note}: unexpected {owed:?}");
            owed = sent(state.handle(&frame, place(text("from")), now), &frame).into();
        } else if note.starts_with("gossip sync") {
            let mut sync = Vec::new();
            state.write_sync(&mut sync);
            let (Ok(Message::Sync { nodes: ours, beacon }), Ok(Message::Sync { nodes, .. })) =
                (Message::parse(&sync), Message::parse(&frame))
            else {
                panic!("not a sync");
            };
            let sorted = |nodes: NodeList<'_>| {
                let mut ids: Vec<_> = nodes.iter().collect();
                ids.sort();
                ids
            };
            assert_eq!((beacon, sorted(ours)), (5, sorted(nodes)));
        } else if note.starts_with("discover reply over IPv6") {
            let to = place(text("to"));
            let action = state.handle(&[1, 0, 0, 0, 9], to, now);
            assert_eq!(sent(action, &[]), [(to, frame)]);
        } else {
            assert_eq!(owed.pop_front(), Some((place(text("to")), frame)), "{note}");
        }
    }
    assert!(owed.is_empty());
}

fn discover(node: u32) -> Vec<u8> {
    let mut out = Vec::new();
    Message::Discover { node: NodeId(node) }.encode(&mut out);
    out
}

fn relay(to: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let (sender, destination) = (NodeId(1), NodeId(to));
    Message::Relay { sender, destination, frame: b"x" }.encode(&mut out);
    out
}

#[test]
fn nothing_from_a_peer_goes_to_a_peer() {
    let now = Instant::now();
    let mut state = State::new(5);
    let other = addr("127.0.0.1:25302");
    state.set_peers([addr(PEER), other]);
    let sync = hex::decode("07000000060001000000 63".replace(' ', "")).unwrap();
    assert_eq!(state.handle(&sync, addr(PEER), now), Action::Learnt);
    assert_eq!(state.handle(&sync, addr(NODE_1), now), Action::Drop(DropReason::Stranger));
    assert_eq!(state.handle(&relay(99), addr(NODE_1), now), Action::Forward { to: addr(PEER) });
    let dropped = Action::Drop(DropReason::UnknownNode);
    assert_eq!(state.handle(&relay(99), other, now), dropped);
    assert_eq!(state.handle(&relay(99), addr(PEER), now), dropped);
    state.set_peers([other]);
    assert_eq!(state.handle(&relay(99), addr(NODE_1), now), dropped);
}

#[test]
fn entries_expire_and_peers_too() {
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut state = State::new(5);
    state.set_peers([addr(PEER)]);
    state.handle(&discover(1), addr(NODE_1), at(0));
    state.handle(&discover(2), addr(NODE_2), at(0));
    state.handle(&discover(2), addr(NODE_2), at(500));
    state.handle(&discover(0), addr(NODE_2), at(500));
    assert_eq!(state.len(), 2);
    let sync = hex::decode("0700000006000100000063").unwrap();
    state.handle(&sync, addr(PEER), at(590));
    state.expire(at(600));
    assert_eq!(
        state.handle(&relay(1), addr(NODE_2), at(600)),
        Action::Drop(DropReason::UnknownNode)
    );
    assert_eq!(
        state.handle(&relay(2), addr(NODE_1), at(600)),
        Action::Deliver { to: addr(NODE_2) }
    );
    assert_eq!(state.handle(&relay(99), addr(NODE_1), at(600)), Action::Forward { to: addr(PEER) });
    state.expire(at(650));
    assert_eq!(
        state.handle(&relay(99), addr(NODE_1), at(650)),
        Action::Drop(DropReason::UnknownNode)
    );
    state.expire(at(1100));
    assert!(state.is_empty() && state.by_age.is_empty());
}

#[test]
fn the_least_recently_seen_makes_room() {
    let start = Instant::now();
    let mut state = State::with_capacity(0, 3);
    for (second, node) in [1, 2, 3, 1, 4, 5].into_iter().enumerate() {
        let now = start + Duration::from_secs(second as u64);
        state.handle(&discover(node), addr(NODE_1), now);
        assert_eq!(state.nodes.len(), state.by_age.len());
    }
    let mut left: Vec<_> = state.nodes.keys().map(|n| n.0).collect();
    left.sort_unstable();
    assert_eq!(left, [1, 4, 5]);
}

#[test]
fn a_full_sync_fits_one_datagram() {
    let now = Instant::now();
    let mut state = State::new(1);
    for node in 1..=20_000 {
        state.handle(&discover(node), addr(NODE_1), now);
    }
    let mut out = Vec::new();
    state.write_sync(&mut out);
    assert!(out.len() <= 65_507, "{}", out.len());
    assert!(
        matches!(Message::parse(&out), Ok(Message::Sync { nodes, .. }) if nodes.len() == MAX_SYNC_NODES)
    );
}

proptest! {
    #[test]
    fn any_bytes_keep_the_tables_in_step(
        datagrams in prop::collection::vec(
            (0u8..9, prop::collection::vec(0u8..4, 0..16), 0u16..4), 0..200),
    ) {
        let start = Instant::now();
        let mut state = State::with_capacity(1, 8);
        state.set_peers([addr("127.0.0.1:1")]);
        for (i, (kind, mut bytes, port)) in datagrams.into_iter().enumerate() {
            bytes.insert(0, kind);
            let from = SocketAddr::from(([127, 0, 0, 1], port));
            let now = start + Duration::from_secs(i as u64 * 20);
            let action = state.handle(&bytes, from, now);
            prop_assert!(sent(action, &bytes).iter().all(|(_, b)| !b.is_empty()));
            state.expire(now);
            prop_assert!(state.nodes.len() <= 8);
            prop_assert_eq!(state.nodes.len(), state.by_age.len());
        }
    }
}
