//! The published peer against the published vectors.

use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use pilot_wire::NodeId;
use pilot_wire::sack::Block;
use pilot_wire::tunnel::{AuthKey, Frame};
use serde_json::Value;
use tokio::sync::oneshot;

use super::crypto::{ProcessKey, Refused, ReplayWindow, Session, signature_holds};
use super::receive::{End, Inbox, Receiver};
use super::send::{SEGMENT, Sender, Timeout, Transmit};

mod pairs;

fn vector(name: &str) -> Value {
    let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex(value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}")))
}

fn fixed<const N: usize>(value: &Value, key: &str) -> [u8; N] {
    bytes(value, key).try_into().unwrap()
}

fn number(value: &Value, key: &str) -> u32 {
    u32::try_from(value[key].as_u64().unwrap()).unwrap()
}

fn auth_of(frame: &[u8]) -> AuthKey {
    let Ok(Frame::AuthKey(auth)) = Frame::parse(frame) else { panic!("not a key exchange") };
    auth
}

fn sealed_nonce(frame: &[u8]) -> pilot_wire::tunnel::Nonce {
    let Ok(Frame::Sealed { nonce, .. }) = Frame::parse(frame) else { panic!("not sealed") };
    nonce
}

#[test]
fn keys_and_sealed_frames_are_those_of_the_vectors() {
    let v = vector("tunnel");
    let key = |node: &str| ProcessKey::from_bytes(fixed(&v[node], "x25519_private"));
    let (a, b) = (key("a"), key("b"));
    assert_eq!(a.public, fixed(&v["a"], "x25519_public"));
    let aes: [u8; 32] = fixed(&v, "aes256_key");
    assert_eq!(a.session_key(&b.public), Some(aes));
    assert_eq!(b.session_key(&a.public), Some(aes));
    assert_eq!(a.session_key(&[0; 32]), None);
    for (node, key, frame) in [("a", &a, "pila_a"), ("b", &b, "pila_b")] {
        let identity = SigningKey::from_bytes(&fixed(&v[node], "ed25519_seed"));
        let ours = key.auth_frame(NodeId(number(&v[node], "node_id")), &identity);
        assert_eq!(ours[..], bytes(&v, frame));
        assert!(signature_holds(&auth_of(&ours)));
    }
    for case in v["pils"].as_array().unwrap() {
        let frame = bytes(case, "frame");
        let nonce = sealed_nonce(&frame);
        let mut receiver = Session::new(aes, a.public, [0; 4]);
        assert_eq!(receiver.open(nonce, &frame).unwrap(), bytes(case, "plaintext"));
        assert_eq!(receiver.open(nonce, &frame), Err(Refused::Replay));
        if nonce.counter == 1 {
            let mut sender = Session::new(aes, b.public, nonce.prefix);
            let from = NodeId(number(case, "sender_node_id"));
            assert_eq!(sender.seal(from, &bytes(case, "plaintext")), frame);
        }
    }
    let registered: [u8; 32] = fixed(&v["a"], "ed25519_public");
    for case in v["pila_acceptance"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // What the registry knows, as the case's name says.
        let known = match name {
            "registry has another key" => Some([9; 32]),
            "registry lookup fails" => None,
            _ => Some(registered),
        };
        let frame = bytes(case, "frame");
        let accepted = match Frame::parse(&frame) {
            Ok(Frame::AuthKey(auth)) => known == Some(auth.identity) && signature_holds(&auth),
            _ => false,
        };
        assert_eq!(accepted, case["accepted"], "{name}");
    }
}

#[test]
fn the_whole_captured_session_can_be_decrypted() {
    let v = vector("tunnel_session");
    let first = ProcessKey::from_bytes(fixed(&v["node"], "x25519_private_first"));
    let second = ProcessKey::from_bytes(fixed(&v["node"], "x25519_private_after_rekey"));
    let identity = SigningKey::from_bytes(&fixed(&v["node"], "ed25519_seed"));
    let mut current = &first;
    let mut key = None;
    let (mut ours, mut theirs, mut opened, mut replayed) = (None, None, 0, 0);
    for frame in v["frames"].as_array().unwrap() {
        let wire = bytes(frame, "frame");
        let outbound = frame["direction"] == "node-to-reference";
        match Frame::parse(&wire).unwrap() {
            Frame::AuthKey(auth) => {
                assert!(signature_holds(&auth), "{}", frame["note"]);
                if outbound {
                    current = if auth.key == first.public { &first } else { &second };
                    assert_eq!(current.auth_frame(NodeId(2), &identity)[..], wire);
                    // The reference starts its window anew, with each frame.
                    if let Some(key) = key {
                        ours = Some(Session::new(key, current.public, [0; 4]));
                    }
                } else {
                    let derived = current.session_key(&auth.key).unwrap();
                    assert_eq!(derived, fixed(frame, "aes256_key"));
                    if key != Some(derived) {
                        key = Some(derived);
                        ours = Some(Session::new(derived, current.public, [0; 4]));
                    }
                    theirs = Some((derived, auth.key));
                }
            }
            Frame::Sealed { nonce, .. } => {
                let Some(plaintext) = frame["plaintext"].as_str() else {
                    // Replayed by the node after a repeated key exchange: the
                    // emptied window lets it through, as the answer shows.
                    replayed += 1;
                    continue;
                };
                let opener = if outbound {
                    ours.as_mut().unwrap().open(nonce, &wire)
                } else {
                    // The prefix changes with each accepted key exchange.
                    let (key, peer) = theirs.unwrap();
                    Session::new(key, peer, [0; 4]).open(nonce, &wire)
                };
                assert_eq!(opener.unwrap(), hex(plaintext), "{}", frame["note"]);
                opened += 1;
            }
            _ => {}
        }
    }
    let frames = v["frames"].as_array().unwrap();
    let known = frames.iter().filter(|f| f["plaintext"].is_string()).count();
    assert_eq!((opened, replayed), (known, 1));
}

#[test]
fn the_replay_window_gives_the_published_verdicts() {
    for case in vector("replay_window")["cases"].as_array().unwrap() {
        let mut window = ReplayWindow::default();
        for step in case["steps"].as_array().unwrap() {
            let counter = step["counter"].as_str().unwrap().parse().unwrap();
            assert_eq!(window.accept(counter), step["accepted"], "{}: {step}", case["name"]);
        }
    }
}

#[test]
fn a_forged_frame_raises_the_maximum_and_leaves_no_mark() {
    let (key, peer) = ([7; 32], [8; 32]);
    let mut sender = Session::new(key, peer, [1; 4]);
    let mut receiver = Session::new(key, peer, [2; 4]);
    let genuine: Vec<_> = (0..300).map(|_| sender.seal(NodeId(1), b"packet")).collect();
    let mut forged = genuine[299].clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(receiver.open(sealed_nonce(&forged), &forged), Err(Refused::Tag));
    assert_eq!(receiver.open(sealed_nonce(&genuine[0]), &genuine[0]), Err(Refused::Replay));
    assert!(receiver.open(sealed_nonce(&genuine[299]), &genuine[299]).is_ok());
}

#[test]
fn segments_are_put_in_order_as_published() {
    for case in vector("sack")["receive"].as_array().unwrap() {
        let mut receiver = Receiver::new(number(case, "expected_seq"));
        let inbox = Inbox::default();
        for segment in case["segments"].as_array().unwrap() {
            let data = vec![0; number(segment, "len") as usize];
            receiver.segment(number(segment, "seq"), &data, |s| inbox.push(s));
            let context = format!("{}: {segment}", case["name"]);
            assert_eq!(receiver.expected, number(segment, "cumulative_ack"), "{context}");
            assert_eq!(receiver.buffered() as u64, segment["buffered"], "{context}");
            assert_eq!(u32::from(inbox.free()), number(segment, "recv_window"), "{context}");
            let blocks: Vec<Block> = segment["sack_blocks"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|b| Block { left: number(b, "left"), right: number(b, "right") })
                .collect();
            assert_eq!(receiver.blocks().as_slice(), blocks, "{context}");
        }
    }
}

#[tokio::test]
async fn a_full_queue_takes_nothing_and_the_end_comes_after_the_data() {
    let inbox = Inbox::default();
    for _ in 0..super::receive::QUEUE {
        assert!(inbox.push(vec![1]));
    }
    assert_eq!(inbox.free(), 0);
    assert!(!inbox.push(vec![2]));
    inbox.end(End::Finished);
    inbox.end(End::Reset);
    for _ in 0..super::receive::QUEUE {
        assert_eq!(inbox.read().await, Ok(vec![1]));
    }
    assert_eq!(inbox.read().await, Err(End::Finished));
}

/// A sender with `len` bytes written and everything polled that may leave.
fn sending(len: usize, now: Instant) -> (Sender, Vec<Transmit>, oneshot::Receiver<bool>) {
    let mut sender = Sender::new(1, 1_048_576);
    let (done, written) = oneshot::channel();
    sender.write(&vec![5; len], done, now);
    let sent = std::iter::from_fn(|| sender.poll(now)).collect();
    (sender, sent, written)
}

#[test]
fn the_sender_cuts_4096_byte_segments_and_holds_back_the_rest() {
    let now = Instant::now();
    let (mut sender, sent, mut written) = sending(9000, now);
    let lens: Vec<usize> = sent.iter().map(|(_, d)| d.len()).collect();
    assert_eq!(lens, [4096, 4096]);
    assert_eq!(written.try_recv(), Ok(true));
    assert!(sender.poll(now + Duration::from_millis(39)).is_none());
    let (seq, rest) = sender.poll(now + Duration::from_millis(40)).unwrap();
    assert_eq!((seq, rest.len()), (8193, 808));
    let (_, alone, _) = sending(5, now);
    assert_eq!(alone.len(), 1, "nothing is unacknowledged, so it leaves at once");
}

#[test]
fn the_sender_obeys_windows_and_takes_zero_for_no_limit() {
    let now = Instant::now();
    let (mut sender, sent, _written) = sending(50 * SEGMENT, now);
    assert_eq!(sent.len(), 10, "the initial congestion window");
    sender.peer_window(2);
    assert!(sender.acknowledge(1 + 8 * 4096, true, now).is_none());
    assert!(sender.poll(now).is_none(), "two in flight fill a window of two");
    sender.peer_window(0);
    assert!(sender.poll(now).is_some());
}

#[test]
fn the_sender_repeats_one_segment_per_timeout_and_gives_up_after_eight() {
    let start = Instant::now();
    let (mut sender, sent, _written) = sending(3 * SEGMENT, start);
    assert_eq!(sent.len(), 3);
    sender.sacked(&[Block { left: 1, right: 4097 }]);
    let mut now = start;
    let mut repeated = Vec::new();
    loop {
        now += Duration::from_millis(100);
        match sender.timeout(now) {
            Timeout::Again((seq, data)) => {
                assert_eq!((seq, data.len()), (4097, 4096), "the first that is not held");
                repeated.push(now - start);
            }
            Timeout::GiveUp => break,
            Timeout::None | Timeout::Probe => {}
        }
    }
    assert_eq!(repeated.len(), 7);
    assert_eq!(repeated[0], Duration::from_secs(1));
    // Without a sample: 1 s, then doubled once for the episode.
    let given_up = now - start;
    assert!((15.0..15.6).contains(&given_up.as_secs_f64()), "{given_up:?}");
    assert_eq!(sender.retransmits, 7);
}

#[test]
fn the_third_duplicate_repeats_a_segment() {
    let now = Instant::now();
    let (mut sender, _sent, _written) = sending(3 * SEGMENT, now);
    assert!(sender.acknowledge(4097, true, now).is_none());
    for _ in 0..2 {
        assert!(sender.acknowledge(4097, true, now).is_none());
    }
    assert!(sender.acknowledge(4097, false, now).is_none(), "with a payload it does not count");
    assert_eq!(sender.acknowledge(4097, true, now).unwrap().0, 4097);
}
