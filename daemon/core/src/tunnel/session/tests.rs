//! The published vectors, opened and sealed by a session.

use serde_json::Value;

use super::*;

fn vectors(name: &str) -> Value {
    let file = format!("{}/../../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).expect("the vectors are there");
    serde_json::from_str(&text).expect("JSON")
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("text")).expect("hex")
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().expect("the right length")
}

fn session(secret: [u8; 32], remote: X25519Public) -> Session {
    let secret = StaticSecret::from(secret);
    let local = PublicKey::from(&secret).to_bytes();
    Session::derive(&secret, local, remote, [1, 2, 3, 4], Time::ZERO).expect("a sound key")
}

fn nonce_of(frame: &[u8]) -> Nonce {
    let counter = u64::from_be_bytes(frame[12..20].try_into().expect("8 bytes"));
    Nonce { prefix: frame[8..12].try_into().expect("4 bytes"), counter }
}

#[test]
fn opens_the_published_frames() {
    let v = vectors("tunnel.json");
    let (a, b) = (&v["a"], &v["b"]);
    let mut at_b = session(array(&b["x25519_private"]), array(&a["x25519_public"]));
    let mut at_a = session(array(&a["x25519_private"]), array(&b["x25519_public"]));
    let frames = v["pils"].as_array().expect("a list");
    assert!(frames.len() >= 5);
    for case in frames {
        let mut frame = bytes(&case["frame"]);
        let nonce = nonce_of(&frame);
        assert_eq!(nonce.to_bytes(), array::<12>(&case["nonce"]), "{}", case["name"]);
        let receiver = if case["sender_node_id"] == 1 { &mut at_b } else { &mut at_a };
        let spare = frame.clone();
        let (packet, newest) =
            receiver.open(nonce, Shape::Published, &mut frame[SEALED_HEADER_LEN..]).expect("opens");
        assert_eq!(packet, bytes(&case["plaintext"]), "{}", case["name"]);
        assert!(newest);
        let mut again = spare;
        let replayed = receiver.open(nonce, Shape::Published, &mut again[SEALED_HEADER_LEN..]);
        assert_eq!(replayed.expect_err("seen"), OpenError::Replay);
    }
}

#[test]
fn opens_a_whole_captured_conversation() {
    let v = vectors("tunnel_session.json");
    let node = &v["node"];
    let frames = v["frames"].as_array().expect("a list");
    let reference = frames
        .iter()
        .filter(|f| f["direction"] == "reference-to-node")
        .map(|f| bytes(&f["frame"]))
        .find(|f| f.starts_with(b"PILA"))
        .expect("its key exchange");
    let remote: X25519Public = reference[8..40].try_into().expect("32 bytes");
    let keys = ["x25519_private_first", "x25519_private_after_rekey"];
    let mut opened = 0;
    for case in frames.iter().filter(|f| f["plaintext"].is_string()) {
        let frame = bytes(&case["frame"]);
        if !frame.starts_with(b"PILS") {
            continue;
        }
        // The capture repeats counters on purpose: a session of its own each.
        let fits = keys.iter().any(|key| {
            let mut body = frame[SEALED_HEADER_LEN..].to_vec();
            let mut session = session(array(&node[*key]), remote);
            session
                .open(nonce_of(&frame), Shape::Published, &mut body)
                .is_ok_and(|(packet, _)| packet == bytes(&case["plaintext"]))
        });
        assert!(fits, "{}", case["note"]);
        opened += 1;
    }
    assert!(opened >= 5, "{opened} frames");
}

#[test]
fn refuses_a_key_of_low_order() {
    let secret = StaticSecret::from([5; 32]);
    let local = PublicKey::from(&secret).to_bytes();
    for remote in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert!(Session::derive(&secret, local, remote, [0; 4], Time::ZERO).is_none());
    }
}

/// Both ends of one session; each frame is opened once, changed ones never.
#[test]
fn what_one_end_seals_the_other_opens_once() {
    let secrets = [[3; 32], [4; 32]];
    let publics = secrets.map(|s| PublicKey::from(&StaticSecret::from(s)).to_bytes());
    let mut ends = [session(secrets[0], publics[1]), session(secrets[1], publics[0])];
    for n in 0..100u8 {
        let mut frame = vec![n; SEALED_HEADER_LEN + 50 + TAG_LEN];
        ends[0].seal(NodeId(1), Shape::Published, &mut frame);
        for at in [8, 15, SEALED_HEADER_LEN, frame.len() - 1] {
            let mut changed = frame.clone();
            changed[at] ^= 4;
            let nonce = nonce_of(&changed);
            assert!(
                ends[1].open(nonce, Shape::Published, &mut changed[SEALED_HEADER_LEN..]).is_err()
            );
        }
        let nonce = nonce_of(&frame);
        // Its own frame, sent back to it, opens by the key; the tunnel refuses
        // it for its inner source.
        let mut again = frame.clone();
        let (packet, _) =
            ends[1].open(nonce, Shape::Published, &mut frame[SEALED_HEADER_LEN..]).expect("opens");
        assert_eq!(packet, [n; 50]);
        assert_eq!(
            ends[1]
                .open(nonce, Shape::Published, &mut again[SEALED_HEADER_LEN..])
                .expect_err("seen"),
            OpenError::Replay
        );
    }
}

#[test]
fn the_two_ends_never_share_a_prefix() {
    for n in 0..50 {
        let secrets = [[n; 32], [n + 100; 32]];
        let publics = secrets.map(|s| PublicKey::from(&StaticSecret::from(s)).to_bytes());
        let prefix = |i: usize| session(secrets[i], publics[1 - i]).send.prefix;
        assert_ne!(prefix(0)[0] & 0x80, prefix(1)[0] & 0x80);
    }
}

#[test]
fn prefixes_per_key_are_bounded() {
    let mut end = session([3; 32], PublicKey::from(&StaticSecret::from([4; 32])).to_bytes());
    for n in 0..20u8 {
        let mut peer = session([4; 32], PublicKey::from(&StaticSecret::from([3; 32])).to_bytes());
        peer.send.prefix = [n, 9, 9, 9];
        let mut frame = vec![0; SEALED_HEADER_LEN + 50 + TAG_LEN];
        peer.seal(NodeId(1), Shape::Published, &mut frame);
        let result = end
            .open(nonce_of(&frame), Shape::Published, &mut frame[SEALED_HEADER_LEN..])
            .map(|_| ());
        let expected = if n < 8 { Ok(()) } else { Err(OpenError::TooManyPrefixes) };
        assert_eq!(result, expected, "prefix {n}");
    }
}

/// Neither form of frame can be passed off as the other, though key and nonce
/// are the same.
#[test]
fn the_form_of_a_frame_is_authenticated() {
    let secrets = [[3; 32], [4; 32]];
    let publics = secrets.map(|s| PublicKey::from(&StaticSecret::from(s)).to_bytes());
    for (sealed, claimed) in
        [(Shape::Published, Shape::Compact), (Shape::Compact, Shape::Published)]
    {
        let mut ends = [session(secrets[0], publics[1]), session(secrets[1], publics[0])];
        let mut frame = vec![0; sealed.header_len() + 100 + TAG_LEN];
        ends[0].seal(NodeId(1), sealed, &mut frame);
        let nonce = Nonce { prefix: ends[0].send.prefix, counter: 1 };
        let body = &mut frame[sealed.header_len()..];
        let mut copy = body.to_vec();
        assert_eq!(ends[1].open(nonce, claimed, &mut copy).err(), Some(OpenError::Tag));
        assert!(ends[1].open(nonce, sealed, body).is_ok());
    }
}
